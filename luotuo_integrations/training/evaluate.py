"""How good an encoder is: evaluation sets of texts in, ``{"set/metric": value}`` out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from luotuo_integrations.similarity_metrics import (
    off_diagonal,
    pair_accuracy,
    paired_cosines,
    pearson,
    retrieval_from_vectors,
    spearman,
    teacher_gap,
    triplet_accuracy,
)
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.records import Pair, Record, ScoredPair, Triplet

Encode: TypeAlias = Callable[[Sequence[str], Kind], Vectors]  # texts -> float32 (N, D)


@dataclass(frozen=True, slots=True, eq=False)
class PairEvaluation:
    """Halves of texts, as in distillation: does each half find its other half, and how near is the teacher?

    Attributes:
        name: Begins the keys of the metrics.
        left: N >= 2 front halves.
        right: N back halves.
        left_kind: How the front halves are encoded.
        right_kind: How the back halves are encoded.
        teacher_left: (N, E) the teacher's vectors of the front halves; None where there is no teacher.
        teacher_right: (N, E) the teacher's vectors of the back halves.
        candidates: How many back halves each front half has to choose among.
    """

    main: ClassVar[str] = "pair@1"

    name: str
    left: list[str]
    right: list[str]
    left_kind: Kind = "passage"
    right_kind: Kind = "passage"
    teacher_left: Vectors | None = None
    teacher_right: Vectors | None = None
    candidates: int = 1000

    def __post_init__(self) -> None:
        _check_columns(self.name, 2, left=self.left, right=self.right)
        sides = [side for side in (self.teacher_left, self.teacher_right) if side is not None]
        if len(sides) == 1 or any(len(side) != len(self.left) for side in sides):
            shapes = [None if side is None else side.shape for side in (self.teacher_left, self.teacher_right)]
            msg = f"{self.name!r} has {len(self.left)} pairs, but the teacher's vectors have the shapes {shapes}"
            raise ValueError(msg)

    def measure(self, encode: Encode) -> dict[str, float]:
        """Row@1, column@1 and pair@1 among ``candidates``, the off-diagonal, and the gap to the teacher."""
        left, right = encode(self.left, self.left_kind), encode(self.right, self.right_kind)
        metrics = self._alone(left, right)
        if self.teacher_left is not None and self.teacher_right is not None:
            metrics |= teacher_gap(left, self.teacher_left, partners=(right, self.teacher_right))
        return metrics

    def measure_teacher(self) -> dict[str, float]:
        """What the teacher reaches; nothing where there is none."""
        if self.teacher_left is None or self.teacher_right is None:
            return {}
        return self._alone(self.teacher_left, self.teacher_right)

    def _alone(self, left: Vectors, right: Vectors) -> dict[str, float]:
        return pair_accuracy(left, right, candidates=self.candidates) | off_diagonal(left, right)


@dataclass(frozen=True, slots=True)
class RetrievalEvaluation:
    """Queries that search passages.

    Attributes:
        name: Begins the keys of the metrics.
        queries: Q >= 1 queries.
        passages: N passages.
        positives: For each query the positions of its positives in ``passages``.
    """

    main: ClassVar[str] = "ndcg@10"

    name: str
    queries: list[str]
    passages: list[str]
    positives: list[set[int]]

    def __post_init__(self) -> None:
        _check_columns(self.name, 1, queries=self.queries, positives=self.positives)
        for query, places in zip(self.queries, self.positives, strict=True):
            if not places or not all(0 <= place < len(self.passages) for place in places):
                msg = f"{self.name!r}: the query {query!r} has the positives {places} of {len(self.passages)} passages"
                raise ValueError(msg)

    def measure(self, encode: Encode) -> dict[str, float]:
        """Recall@1, recall@5, recall@10, mrr@10 and ndcg@10 of exact search by cosine."""
        passages = encode(self.passages, "passage")
        return retrieval_from_vectors(encode(self.queries, "query"), passages, self.positives)


@dataclass(frozen=True, slots=True)
class SimilarityEvaluation:
    """Pairs of texts that people scored for their likeness (semantic textual similarity).

    Attributes:
        name: Begins the keys of the metrics.
        first: N >= 2 texts.
        second: N texts.
        scores: N scores on any scale, higher is more alike.
        first_kind: How the first texts are encoded.
        second_kind: How the second texts are encoded.
    """

    main: ClassVar[str] = "spearman"

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]
    first_kind: Kind = "query"
    second_kind: Kind = "query"

    def __post_init__(self) -> None:
        _check_columns(self.name, 2, first=self.first, second=self.second, scores=self.scores)

    def measure(self, encode: Encode) -> dict[str, float]:
        """Spearman's and Pearson's correlation of the cosines with the scores."""
        cosines = paired_cosines(encode(self.first, self.first_kind), encode(self.second, self.second_kind))
        return {"spearman": spearman(cosines, self.scores), "pearson": pearson(cosines, self.scores)}


@dataclass(frozen=True, slots=True)
class TripletEvaluation:
    """Queries with one positive and some negatives each.

    Attributes:
        name: Begins the keys of the metrics.
        queries: Q >= 1 queries.
        positives: Q passages.
        negatives: Q groups of passages.
    """

    main: ClassVar[str] = "accuracy"

    name: str
    queries: list[str]
    positives: list[str]
    negatives: list[tuple[str, ...]]

    def __post_init__(self) -> None:
        _check_columns(self.name, 1, queries=self.queries, positives=self.positives, negatives=self.negatives)
        if not any(self.negatives):
            msg = f"{self.name!r} has no negative: there is nothing to compare"
            raise ValueError(msg)

    def measure(self, encode: Encode) -> dict[str, float]:
        """Share of all (query, negative) where the query is nearer to its positive: ``"accuracy"``."""
        negatives = encode([text for group in self.negatives for text in group], "passage")
        groups = np.split(negatives, np.cumsum([len(group) for group in self.negatives])[:-1])
        positives = encode(self.positives, "passage")
        return {"accuracy": triplet_accuracy(encode(self.queries, "query"), positives, groups)}


EvaluationSet: TypeAlias = PairEvaluation | RetrievalEvaluation | SimilarityEvaluation | TripletEvaluation

# Of each kind of set the metric that says most; higher is better.
MAIN_METRICS = tuple(
    kind.main for kind in (PairEvaluation, RetrievalEvaluation, SimilarityEvaluation, TripletEvaluation)
)


def evaluate(encode: Encode, sets: Sequence[EvaluationSet]) -> dict[str, float]:
    """Measure an encoder on every set.

    Args:
        encode: Texts and their kind to float32 (N, D), of any length.
        sets: Sets of different names.

    Returns:
        ``"name/metric"`` to value. Of a pair set: row@1, column@1, pair@1, candidates, off_diagonal_mean,
        off_diagonal_std, diagonal_mean, and with a teacher spearman_to_teacher, pair_spearman_to_teacher,
        cosine_to_teacher (where the dimensions agree). Of a retrieval set: recall@1, recall@5, recall@10, mrr@10,
        ndcg@10. Of a similarity set: spearman, pearson. Of a triplet set: accuracy.

    Raises:
        ValueError: If two sets have one name, or a vector is not finite.
    """
    _check_names(sets)
    return {f"{one.name}/{key}": value for one in sets for key, value in one.measure(encode).items()}


def teacher_metrics(sets: Sequence[EvaluationSet]) -> dict[str, float]:
    """Measure the teacher, by the vectors that pair sets hold: the keys are those of :func:`evaluate`.

    Raises:
        ValueError: As in :func:`evaluate`.
    """
    _check_names(sets)
    pairs = [one for one in sets if isinstance(one, PairEvaluation)]
    return {f"{one.name}/{key}": value for one in pairs for key, value in one.measure_teacher().items()}


def main_metric(sets: Sequence[EvaluationSet]) -> str:
    """Name the metric to choose the best checkpoint by, that of the first set; higher is better.

    Raises:
        ValueError: If there is no set.
    """
    if not sets:
        msg = "there is no evaluation set, so nothing tells which checkpoint is best: give one"
        raise ValueError(msg)
    first = sets[0]
    # A student is to order texts as its teacher does; whether halves meet is a coarser, noisier measure of that.
    taught = isinstance(first, PairEvaluation) and first.teacher_left is not None
    return f"{first.name}/{'spearman_to_teacher' if taught else first.main}"


def evaluation_of(
    records: Sequence[Record],
    name: str,
    *,
    distractors: Iterable[str] = (),
    first_kind: Kind = "query",
    second_kind: Kind = "query",
) -> RetrievalEvaluation | SimilarityEvaluation | TripletEvaluation:
    """Make the evaluation that records allow.

    Args:
        records: Pairs alone or with triplets make a retrieval set; its passages are all different positives, and the
            negatives too. Triplets alone make a triplet set, scored pairs a similarity set.
        name: Begins the keys of the metrics.
        distractors: Further passages of a retrieval set, so that a few records are not found too easily.
        first_kind: How the first texts of scored pairs are encoded.
        second_kind: How the second texts of scored pairs are encoded.

    Returns:
        The set.

    Raises:
        ValueError: If there is no record, or scored pairs are mixed with others.
    """
    scored = [one for one in records if isinstance(one, ScoredPair)]
    ranked = [one for one in records if isinstance(one, Pair | Triplet)]
    if not records or (scored and ranked):
        msg = f"{name!r} has {len(scored)} scored pairs and {len(ranked)} others; one of both is needed, not both"
        raise ValueError(msg)
    if scored:
        columns = [one.first for one in scored], [one.second for one in scored], [one.score for one in scored]
        return SimilarityEvaluation(name, *columns, first_kind, second_kind)
    triplets = [one for one in ranked if isinstance(one, Triplet)]
    if len(triplets) < len(ranked):
        return _retrieval_of(ranked, name, distractors)
    queries, positives = [one.query for one in triplets], [one.positive for one in triplets]
    return TripletEvaluation(name, queries, positives, [one.negatives for one in triplets])


def _retrieval_of(records: Sequence[Pair | Triplet], name: str, distractors: Iterable[str]) -> RetrievalEvaluation:
    places: dict[str, int] = {}  # each text once, however often it comes
    wanted: dict[str, set[int]] = {}
    for one in records:
        wanted.setdefault(one.query, set()).add(places.setdefault(one.positive, len(places)))
        for negative in one.negatives if isinstance(one, Triplet) else ():
            places.setdefault(negative, len(places))
    for text in distractors:
        places.setdefault(text, len(places))
    return RetrievalEvaluation(name, list(wanted), list(places), list(wanted.values()))


def _check_columns(name: str, least: int, **columns: Sequence[object]) -> None:
    counts = {column: len(values) for column, values in columns.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) < least:
        msg = f"{name!r} needs {least} rows or more and as many of each column, but has {counts}"
        raise ValueError(msg)


def _check_names(sets: Sequence[EvaluationSet]) -> None:
    names = [one.name for one in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"more than one evaluation set is named {', '.join(map(repr, twice))}; give each its own name"
        raise ValueError(msg)
