"""Measures of embeddings by their cosines: vectors in, ``dict[str, float]`` or a number out.

For two halves of N texts, L and R below are their vectors at length 1 and ``L @ R.T`` (N, N) is the matrix of cosines:
row i belongs to the left half of text i, column i to its right half. A zero vector has the cosine 0 with everything.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luotuo_integrations.evaluation import ranking_metrics, ranks
from luotuo_integrations.texts import Vectors

Numbers = NDArray[np.float64]

_BLOCK = 1 << 24  # numbers of a score matrix at once: 64 MB
_PAIR_BLOCK = 4096  # text pairs whose vectors are gathered at once


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Measure how far one list of numbers is a straight line of the other.

    Args:
        first: (N,) numbers.
        second: (N,) numbers.

    Returns:
        From -1 to 1; 0.0 where one side is constant, which orders nothing.

    Raises:
        ValueError: If the lengths differ, there are fewer than 2 numbers, or one is not finite.
    """
    x, y = _number_pairs(first, second)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # so that squares neither overflow nor vanish
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Measure how far two lists of numbers have the same order (Spearman, 1904): Pearson's correlation of the ranks.

    Equal numbers share the mean of their ranks.

    Args:
        first: (N,) numbers.
        second: (N,) numbers.

    Returns:
        From -1 to 1; 0.0 where one side is constant, which orders nothing.

    Raises:
        ValueError: As in :func:`pearson`.
    """
    x, y = _number_pairs(first, second)
    return pearson(_average_ranks(x), _average_ranks(y))


def paired_cosines(left: Vectors, right: Vectors) -> Numbers:
    """Compute the cosine of row i with row i.

    Args:
        left: (N, D) vectors of any length.
        right: (N, D) vectors of any length.

    Returns:
        float64 (N,), from -1 to 1.

    Raises:
        ValueError: If the shapes differ or a number is not finite.
    """
    left, right = _two_halves(left, right, least=0)
    return _paired(left, right)


def teacher_gap(
    student: Vectors,
    teacher: Vectors,
    *,
    partners: tuple[Vectors, Vectors] | None = None,
    pairs: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how near a student is to its teacher on the same texts.

    Args:
        student: (N, D) vectors f_i of N >= 3 texts by the student.
        teacher: (N, E) vectors g_i of the same texts by the teacher.
        partners: The other halves of the texts, (N, D) by the student and (N, E) by the teacher. They count as further
            texts, and the correlation over the pairs (text, its other half) is given too.
        pairs: How many random pairs of different texts to compare; all pairs, where there are no more.
        seed: The same seed gives the same pairs.

    Returns:
        ``"cosine_to_teacher"``: mean cosine of f_i with g_i, only where D = E.
        ``"spearman_to_teacher"``: rank correlation of the student's cosines with the teacher's over random pairs.
        ``"pair_spearman_to_teacher"``: the same over the pairs (text, other half), only with ``partners``.

    Raises:
        ValueError: If the numbers of texts differ, there are fewer than 3 texts, ``pairs`` is below 2, or a number is
            not finite.
    """
    student, teacher = _unit(student, "student"), _unit(teacher, "teacher")
    _check_same_count(student, teacher)
    gap: dict[str, float] = {}
    if partners is not None:
        other_student, other_teacher = _two_halves(student, partners[0])[1], _two_halves(teacher, partners[1])[1]
        by_student, by_teacher = _paired(student, other_student), _paired(teacher, other_teacher)
        gap["pair_spearman_to_teacher"] = spearman(by_student, by_teacher)
        student, teacher = np.concatenate([student, other_student]), np.concatenate([teacher, other_teacher])
    if len(student) < 3 or pairs < 2:
        msg = (
            f"{len(student)} texts and {pairs} pairs were given; a rank correlation needs at least 3 texts and 2 pairs"
        )
        raise ValueError(msg)
    first, second = _random_pairs(len(student), pairs, seed)
    gap["spearman_to_teacher"] = spearman(_cosines_at(student, first, second), _cosines_at(teacher, first, second))
    if student.shape[1] == teacher.shape[1]:
        gap["cosine_to_teacher"] = float(_paired(student, teacher).mean())
    return gap


def pair_accuracy(left: Vectors, right: Vectors, *, candidates: int = 1000, seed: int = 0) -> dict[str, float]:
    """Measure how often a half finds its other half among many, the top-1 accuracy that Luotuo-BERT was judged by.

    The pairs are shuffled and cut into blocks of ``candidates``; what is left over is not used, so that every block is
    equally hard. The numbers are means over the blocks. A tie with another candidate is a miss.

    Args:
        left: (N, D) vectors.
        right: (N, D) vectors; row i belongs to row i of ``left``.
        candidates: How many right halves each left half has to choose among; N, where there are fewer.
        seed: The same seed gives the same blocks.

    Returns:
        ``"row@1"``: share of left halves whose nearest right half is their own. ``"column@1"``: the same the other way
        round. ``"pair@1"``: the mean of both. ``"candidates"``: the size of the blocks.

    Raises:
        ValueError: If the shapes differ, there are fewer than 2 pairs, ``candidates`` is below 2, or a number is not
            finite.
    """
    if candidates < 2:
        msg = f"candidates is {candidates}, but must be 2 or more: one candidate is always right"
        raise ValueError(msg)
    left, right = _two_halves(left, right)
    size = min(candidates, len(left))
    order = np.random.default_rng(seed).permutation(len(left))
    rows, columns = [], []
    for start in range(0, len(order) - size + 1, size):
        block = order[start : start + size]
        cosines = left[block] @ right[block].T
        rows.append(float((ranks(cosines, np.arange(size)) == 1).mean()))
        columns.append(float((ranks(cosines.T, np.arange(size)) == 1).mean()))
    row, column = float(np.mean(rows)), float(np.mean(columns))
    return {"row@1": row, "column@1": column, "pair@1": (row + column) / 2, "candidates": float(size)}


def off_diagonal(left: Vectors, right: Vectors) -> dict[str, float]:
    """Average the cosines of halves that do not belong together: near 1, the embeddings have collapsed.

    The (N, N) matrix is never made: its sum is (sum of L) · (sum of R), and its sum of squares is the sum over the
    entries of (L.T @ L) * (R.T @ R), both (D, D).

    Args:
        left: (N, D) vectors.
        right: (N, D) vectors; row i belongs to row i of ``left``.

    Returns:
        ``"off_diagonal_mean"`` and ``"off_diagonal_std"`` over the N (N - 1) entries off the diagonal, and
        ``"diagonal_mean"``.

    Raises:
        ValueError: If the shapes differ, there are fewer than 2 pairs, or a number is not finite.
    """
    left, right = _two_halves(left, right)
    diagonal = _paired(left, right)
    exact_left, exact_right = left.astype(np.float64), right.astype(np.float64)
    count = len(left) * (len(left) - 1)
    total = exact_left.sum(axis=0) @ exact_right.sum(axis=0) - diagonal.sum()
    squares = ((exact_left.T @ exact_left) * (exact_right.T @ exact_right)).sum() - (diagonal**2).sum()
    mean = total / count
    return {
        "off_diagonal_mean": float(mean),
        "off_diagonal_std": float(np.sqrt(max(squares / count - mean**2, 0.0))),
        "diagonal_mean": float(diagonal.mean()),
    }


def triplet_accuracy(queries: Vectors, positives: Vectors, negatives: Sequence[Vectors] | Vectors) -> float:
    """Share of all (query, negative) where the query is nearer to its positive than to the negative.

    Args:
        queries: (Q, D) vectors.
        positives: (Q, D) vectors; row i belongs to row i of ``queries``.
        negatives: The negatives of each query: Q arrays (K_i, D), or one array (Q, K, D).

    Returns:
        From 0 to 1; a tie is a miss.

    Raises:
        ValueError: If the shapes do not fit, there is no negative, or a number is not finite.
    """
    queries, positives = _two_halves(queries, positives, least=1)
    if len(negatives) != len(queries):
        msg = f"{len(queries)} queries but {len(negatives)} groups of negatives: one group a query is needed"
        raise ValueError(msg)
    groups = [_unit(group, f"negatives[{index}]") for index, group in enumerate(negatives)]
    owners = np.repeat(np.arange(len(queries)), [len(group) for group in groups])
    if not len(owners):
        msg = f"none of the {len(queries)} queries has a negative: there is nothing to compare"
        raise ValueError(msg)
    against = _paired(*_two_halves(queries[owners], np.concatenate(groups), least=1))
    return float((_paired(queries, positives)[owners] > against).mean())


def retrieval_from_vectors(
    queries: Vectors,
    passages: Vectors,
    positives: Sequence[Collection[int]] | NDArray[np.integer],
    *,
    cutoffs: Iterable[int] = (1, 5, 10),
) -> dict[str, float]:
    """Search all passages exactly, by cosine, and measure where the positives come.

    A passage that ties with a positive comes before it, so that a model that scores everything alike gains nothing.

    Args:
        queries: (Q, D) vectors.
        passages: (N, D) vectors.
        positives: The positive passages of each query, from 0 to N - 1: Q sets, or integers (Q,), one a query.
        cutoffs: The values of k of recall@k; the largest is that of mrr and ndcg.

    Returns:
        ``{"recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10"}`` for the default cutoffs, each from 0 to 1.

    Raises:
        ValueError: If the shapes do not fit, a position is out of range, no query has a positive, a cutoff is below 1,
            or a number is not finite.
    """
    queries, passages = _unit(queries, "queries"), _unit(passages, "passages")
    if queries.shape[1] != passages.shape[1] or len(positives) != len(queries):
        msg = f"queries {queries.shape}, passages {passages.shape} and {len(positives)} sets of positives do not fit"
        raise ValueError(msg)
    wanted = _position_sets(positives, len(passages))
    cutoffs = tuple(cutoffs)
    deepest = max(cutoffs, default=1)
    ranked = [
        _best_first(row, wanted[start + place], deepest)
        for start, scores in _score_blocks(queries, passages)
        for place, row in enumerate(scores)
    ]
    metrics = ranking_metrics(ranked, wanted, cutoffs=cutoffs)
    names = [f"recall@{k}" for k in cutoffs] + [f"mrr@{deepest}", f"ndcg@{deepest}"]
    return {name: metrics[name] for name in names}


def _number_pairs(first: ArrayLike, second: ArrayLike) -> tuple[Numbers, Numbers]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        msg = f"two lists of as many finite numbers, 2 or more, are needed; the shapes are {x.shape} and {y.shape}"
        raise ValueError(msg)
    return x, y


def _average_ranks(values: Numbers) -> Numbers:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Numbers = (last - (counts - 1) / 2)[group]
    return mean


def _unit(vectors: Vectors, name: str) -> Vectors:
    given = np.asarray(vectors)
    if given.ndim != 2 or not np.isfinite(given).all():
        msg = f"{name} must be finite numbers of the shape (N, D), but have the shape {given.shape} or hold NaN"
        raise ValueError(msg)
    lengths = np.linalg.norm(given.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = np.divide(given, np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return unit


def _two_halves(left: Vectors, right: Vectors, least: int = 2) -> tuple[Vectors, Vectors]:
    left, right = _unit(left, "left"), _unit(right, "right")
    if left.shape != right.shape or len(left) < least:
        msg = f"two halves of one shape (N, D) with N >= {least} are needed, but are {left.shape} and {right.shape}"
        raise ValueError(msg)
    return left, right


def _check_same_count(student: Vectors, teacher: Vectors) -> None:
    if len(student) != len(teacher):
        msg = f"{len(student)} vectors of the student but {len(teacher)} of the teacher; both must embed the same texts"
        raise ValueError(msg)


def _paired(left: Vectors, right: Vectors) -> Numbers:
    cosines: Numbers = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    return cosines


def _random_pairs(count: int, pairs: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of different texts, or so many at random, with replacement."""
    if count * (count - 1) // 2 <= pairs:
        first, second = np.triu_indices(count, k=1)
        return first, second
    generator = np.random.default_rng(seed)
    first = generator.integers(count, size=pairs)
    second = (first + generator.integers(1, count, size=pairs)) % count  # never the text itself
    return first, second


def _cosines_at(vectors: Vectors, first: NDArray[np.intp], second: NDArray[np.intp]) -> Numbers:
    blocks = [slice(start, start + _PAIR_BLOCK) for start in range(0, len(first), _PAIR_BLOCK)]
    return np.concatenate([_paired(vectors[first[block]], vectors[second[block]]) for block in blocks])


def _position_sets(positives: Sequence[Collection[int]] | NDArray[np.integer], passages: int) -> list[set[int]]:
    single = isinstance(positives, np.ndarray)
    sets = [{int(one)} if single else {int(at) for at in one} for one in positives]  # type: ignore[arg-type]
    outside = [at for one in sets for at in one if not 0 <= at < passages]
    if outside:
        msg = f"the positive {outside[0]} is no passage: positions run from 0 to {passages - 1}"
        raise ValueError(msg)
    return sets


def _score_blocks(queries: Vectors, passages: Vectors) -> Iterator[tuple[int, Vectors]]:
    rows = max(1, _BLOCK // max(1, len(passages)))
    for start in range(0, len(queries), rows):
        yield start, queries[start : start + rows] @ passages.T


def _best_first(scores: Vectors, positives: set[int], count: int) -> list[int]:
    """The places of the best scores, (at most) ``count`` of them; in a tie, positives last."""
    count = min(count, len(scores))
    if not count:
        return []
    limit = np.partition(scores, -count)[-count]
    places = np.flatnonzero(scores >= limit)
    last = np.isin(places, list(positives))
    order = np.lexsort((last, -scores[places]))[:count]
    return [int(place) for place in places[order]]
