"""How well the searches of a store find what answers a set of questions: measures, intervals, differences.

Side by side: vectors, keywords, both fused; and where they are given, a query mapper before and a reranker behind.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from luotuo_integrations.array_embeddings import embed_queries, fingerprint_of, model_name_of
from luotuo_integrations.batching import windows
from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.evaluation import DEFAULT_CUTOFFS, bootstrap_interval, ranking_values
from luotuo_integrations.hybrid_search import HybridSettings, hybrid_search
from luotuo_integrations.judgements import Judgement, judge
from luotuo_integrations.langchain_search import SearchableStore
from luotuo_integrations.pair_files import Question
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.significance import paired_significance
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.vector_math import Matrix

BASELINE = "vector"
COMPARED = "ndcg@10"  # the measure whose differences are judged
_DEPTH = 10  # of mrr@10 and ndcg@10
_QUERIES_AT_A_TIME = 256

Hits = list[list[Hit]]
Values = dict[str, npt.NDArray[np.float64]]


class EvaluationError(LuotuoError, ValueError):
    """There is nothing to measure."""


class PairScorer(Protocol):
    """What is needed of a reranker; ``CrossEncoder`` has it."""

    def scores(self, pairs: Sequence[tuple[str, str]], show_progress: bool = ...) -> npt.NDArray[np.float64]:
        """Relevances of (query, passage), (N,)."""


@dataclass(frozen=True)
class RetrievalReport:
    """What was measured.

    Attributes:
        model: Name of the store's model.
        passages: How many passages the store has.
        queries: The questions, in the order of the values.
        cut: How many of them have an answer that stands in no passage whole; see ``judgements``.
        unanswered: Questions that were left out, because no passage answers them.
        values: For each search its measures: float64 (Q,), a number a question.
        ranks: For each search the place of the first passage that answers, from 1; None where none was found.
    """

    model: str
    passages: int
    queries: tuple[str, ...]
    cut: int
    unanswered: tuple[str, ...]
    values: dict[str, Values]
    ranks: dict[str, tuple[int | None, ...]]

    @property
    def measures(self) -> list[str]:
        """recall@k for each k, mrr@10, ndcg@10."""
        return list(self.values[BASELINE])

    @cached_property
    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Search -> measure -> ``{"mean": ..., "low": ..., "high": ...}``, the 95 % bootstrap interval."""
        return {
            search: {measure: bootstrap_interval(column) for measure, column in measured.items()}
            for search, measured in self.values.items()
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, float]]:
        """Search -> its nDCG@10 minus that of the vectors: ``{"difference", "low", "high", "p"}``."""
        baseline = self.values[BASELINE][COMPARED]
        return {
            search: paired_significance(measured[COMPARED], baseline)
            for search, measured in self.values.items()
            if search != BASELINE
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        questions = [
            {"query": query, "ranks": {search: places[number] for search, places in self.ranks.items()}}
            for number, query in enumerate(self.queries)
        ]
        return {
            "model": self.model,
            "passages": self.passages,
            "questions": len(self.queries),
            "cut": self.cut,
            "unanswered": list(self.unanswered),
            "searches": self.means,
            "compared": {"measure": COMPARED, "with": BASELINE, "differences": self.differences},
            "ranks": questions,
        }


def evaluate_retrieval(
    store: SearchableStore,
    questions: Iterable[Question],
    *,
    cutoffs: Iterable[int] = DEFAULT_CUTOFFS,
    settings: HybridSettings | None = None,
    reranker: PairScorer | None = None,
    rerank_k: int = 20,
    show_progress: bool = False,
) -> RetrievalReport:
    """Measure the searches of a store on questions; the store is not changed.

    Args:
        store: A FAISS store. If its embeddings have a query mapper, the searches are measured without it and with it.
        questions: Of ``pair_files.read_questions``, or made here: ``Question(query, positive)``.
        cutoffs: The k of recall@k, each from 1.
        settings: How vectors and keywords are fused; None takes the defaults.
        reranker: Orders the best of the hybrid search anew, a ``CrossEncoder`` for instance.
        rerank_k: How many passages it is given for each question, from 1; at least as many as are looked at.
        show_progress: Show progress bars.

    Returns:
        The numbers of each search and question.

    Raises:
        EvaluationError: If the store is empty, or no passage answers any question.
        MapperError: If the mapper belongs to another model.
        ValueError: If a number is out of range.
    """
    recalls = tuple(dict.fromkeys(cutoffs))
    if not recalls or min(recalls) < 1 or rerank_k < 1:
        msg = f"cutoffs={recalls} and rerank_k={rerank_k} must be whole numbers from 1 on"
        raise ValueError(msg)
    mapper = getattr(store.embeddings, "mapper", None)
    if mapper is not None:
        mapper.check_model(fingerprint_of(store.embeddings), model_name_of(store.embeddings))
    passages = store.core.find()
    if not passages:
        msg = "The store holds no passages; index documents first: luotuo index FOLDER"
        raise EvaluationError(msg)
    judgements = judge(questions, passages, show_progress=show_progress)
    judged = judgements.judged
    if not judged:
        msg = (
            f"None of the {len(judgements.unanswered)} questions is answered by any of the {len(passages)} passages of "
            "the store: the answering text (positive) must stand in one word for word; source, where given, must be "
            "its file; ids must be the store's. `luotuo questions FOLDER --out FILE` makes questions that fit"
        )
        raise EvaluationError(msg)
    searches = _Searches(store, [one.query for one in judged], max(_DEPTH, *recalls), settings, show_progress)
    found = searches.all(mapper, reranker, rerank_k)
    labelled = {search: _labelled(hits, judged) for search, hits in found.items()}
    return RetrievalReport(
        model=store.core.model or model_name_of(store.embeddings),
        passages=len(passages),
        queries=tuple(one.query for one in judged),
        cut=sum(one.cut for one in judged),
        unanswered=judgements.unanswered,
        values={search: _measured(ranked, judged, recalls) for search, ranked in labelled.items()},
        ranks={search: tuple(map(_first_answer, ranked)) for search, ranked in labelled.items()},
    )


class _Searches:
    """The searches of a store for some questions, each with the same query vectors."""

    def __init__(
        self,
        store: SearchableStore,
        queries: list[str],
        depth: int,
        settings: HybridSettings | None,
        show_progress: bool,
    ) -> None:
        self._core, self._embeddings = store.core, store.embeddings
        self._queries, self._depth, self._settings = queries, depth, settings
        self._show_progress = show_progress
        self._scored: dict[tuple[str, str], float] = {}  # both hybrid searches find much the same

    def all(
        self, mapper: Callable[[Matrix], Matrix] | None, reranker: PairScorer | None, rerank_k: int
    ) -> dict[str, Hits]:
        """What each search finds, best first; the baseline comes first."""
        embeddings: Any = self._embeddings
        plain = embeddings if mapper is None else embeddings.model_copy(update={"mapper": None})
        vectors = embed_queries(plain, self._queries)
        roads = {"": vectors} | ({} if mapper is None else {" + mapper": mapper(vectors)})
        most = self._depth if reranker is None else max(self._depth, rerank_k)
        found, fused = {}, {}
        for road, matrix in roads.items():
            found[f"vector{road}"] = self._nearest(f"vector{road}", matrix)
            if not road:
                found["keyword"] = self._keyword()
            fused[road] = self._hybrid(f"hybrid{road}", matrix, most)
            found[f"hybrid{road}"] = [hits[: self._depth] for hits in fused[road]]
        if reranker is not None:
            for road, hits in fused.items():
                found[f"hybrid{road} + rerank"] = self._reranked(reranker, hits)
        return found

    def _nearest(self, name: str, vectors: Matrix) -> Hits:
        found: Hits = []
        with self._bar(name) as advance:
            for window in windows(range(len(vectors)), _QUERIES_AT_A_TIME):
                found += self._core.search(vectors[window], self._depth)
                advance(len(window))
        return found

    def _keyword(self) -> Hits:
        return self._one_by_one("keyword", lambda number: self._core.keyword_search(self._queries[number], self._depth))

    def _hybrid(self, name: str, vectors: Matrix, most: int) -> Hits:
        def search(number: int) -> list[Hit]:
            query = self._queries[number]
            return hybrid_search(self._core, vectors[number], query, most, settings=self._settings)

        return self._one_by_one(name, search)

    def _one_by_one(self, name: str, search: Callable[[int], list[Hit]]) -> Hits:
        found = []
        with self._bar(name) as advance:
            for number in range(len(self._queries)):
                found.append(search(number))
                advance(1)
        return found

    def _reranked(self, reranker: PairScorer, found: Hits) -> Hits:
        pairs = [(query, hit.content) for query, hits in zip(self._queries, found, strict=True) for hit in hits]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scored]
        self._scored |= dict(zip(new, reranker.scores(new, self._show_progress).tolist(), strict=True))
        return [
            sorted(hits, key=lambda hit: -self._scored[query, hit.content])[: self._depth]
            for query, hits in zip(self._queries, found, strict=True)
        ]

    def _bar(self, name: str) -> Any:
        return progress_bar(f"Searching: {name}", len(self._queries), enabled=self._show_progress)


def _labelled(found: Hits, judged: Sequence[Judgement]) -> list[list[Hashable]]:
    """Ranked ids, with the number of the answer in place of a passage that answers: a second one earns nothing."""
    ranked: list[list[Hashable]] = []
    for hits, judgement in zip(found, judged, strict=True):
        numbers = {one: number for number, answer in enumerate(judgement.answers) for one in answer}
        ranked.append([numbers.get(hit.id, hit.id) for hit in hits])
    return ranked


def _measured(ranked: list[list[Hashable]], judged: Sequence[Judgement], recalls: Sequence[int]) -> Values:
    relevant = [range(len(judgement.answers)) for judgement in judged]
    columns = ranking_values(ranked, relevant, cutoffs=dict.fromkeys((*recalls, _DEPTH)))
    names = [*(f"recall@{k}" for k in recalls), f"mrr@{_DEPTH}", COMPARED]
    return {name: columns[name] for name in names}


def _first_answer(ranked: Sequence[Hashable]) -> int | None:
    return next((place for place, label in enumerate(ranked, start=1) if isinstance(label, int)), None)
