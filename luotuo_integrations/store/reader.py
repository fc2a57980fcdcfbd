"""What a store can be asked: the reading half of FaissCore.

What a score is, is stated here once:

=================  =========================================  ======  ===================================
metric             score                                      better  relevance in [0, 1], 1 is most alike
=================  =========================================  ======  ===================================
``cosine``         cosine of the angle, in [-1, 1]            higher  (1 + score) / 2
``inner_product``  inner product of the vectors as they are   higher  1 / (1 + exp(-score))
``euclidean``      distance (not its square), 0 and up        lower   1 / (1 + score)
=================  =========================================  ======  ===================================

Relevance is always in the order of similarity. For cosine, the faces of the store take the relevance that was fitted
for the model, where there is one. Scores of a search by keywords are BM25's, above 0 and better when higher; see
``store.keyword_index``.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.store.batch import check_ids
from luotuo_integrations.store.filters import Condition, Filter, Predicate, compile_filter
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.keyword_index import DEFAULT_TOKENIZER, KeywordIndex
from luotuo_integrations.store.locks import ReadWriteLock
from luotuo_integrations.store.rescoring import RescoredIndex
from luotuo_integrations.store.table import DocumentTable, Rows, StoredDocument
from luotuo_integrations.store.vector_math import (
    Matrix,
    Metric,
    as_matrix,
    check_metric,
    maximal_marginal_relevance,
    score_spread,
)

_TEXTS_AT_A_TIME = 10_000
_SPREAD_SAMPLE = 256


@dataclass(frozen=True)
class Hit:
    """A document that a search found, with its score: see the table at the top of this file."""

    id: str
    content: str
    metadata: dict[str, Any]
    score: float


class StoreReader:
    """Searches vectors and looks up documents. Every method may be called from any thread.

    Args:
        metric: What scores are.
        fingerprint: Of the model that makes the vectors; "" for an unknown one.
        model: Its name, for messages.

    Raises:
        ValueError: If the metric is not known.
    """

    def __init__(self, metric: Metric, *, fingerprint: str = "", model: str = "") -> None:
        self._metric = check_metric(metric)
        self.fingerprint, self.model = fingerprint, model
        self._lock = ReadWriteLock()
        self._table = DocumentTable()
        self._index: VectorIndex | RescoredIndex | None = None  # None until the dimension is known
        self._keywords: KeywordIndex | None = None  # None until keywords are asked for
        self._building_keywords = threading.Lock()
        self._spread: float | None = None  # None after a change

    def __len__(self) -> int:
        with self._lock.read():
            return 0 if self._index is None else len(self._index)  # SQLite would count its rows one by one

    @property
    def dimension(self) -> int | None:
        """Length D of a vector; None until the first are added."""
        return None if self._index is None else self._index.dimension

    @property
    def metric(self) -> Metric:
        """What scores are: see the table at the top of this file."""
        return self._metric

    # -- questions ----------------------------------------------------------------------------------------------------

    def search(
        self, queries: Any, k: int = 4, *, where: Filter | Predicate | None = None, ids: Iterable[str] | None = None
    ) -> list[list[Hit]]:
        """Find the documents nearest to each query.

        Args:
            queries: float32 (Q, D).
            k: How many for each query, 1 or more; fewer are given if the store, or the filter, has fewer.
            where: Only documents whose metadata passes: a filter dict (see ``store.filters``) or a function of the
                metadata. It is applied before the search, so that the k nearest of those that pass are found.
            ids: Only these documents.

        Returns:
            For each query its hits, best first.

        Raises:
            ValueError: If k is less than 1, or the queries have another dimension than the store.
        """
        matrix = self._as_queries(queries)
        limit = self._prepared(where)
        with self._lock.read():
            scores, rows = self._nearest(matrix, _checked_k(k), self._limited(limit, ids))
            documents = self._table.documents(np.unique(rows))
            pairs = zip(scores.tolist(), rows.tolist(), strict=True)
            return [[Hit(*documents[row], score) for score, row in zip(*pair, strict=True)] for pair in pairs]

    def search_diverse(
        self,
        query: Any,
        k: int = 4,
        *,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        where: Filter | Predicate | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[Hit]:
        """Find documents near the query but not near each other; see ``maximal_marginal_relevance``.

        Args:
            query: float32 (D,).
            k: How many.
            fetch_k: How many of the nearest to choose from; at least k are taken.
            lambda_mult: 1 looks at nearness only, 0 at diversity only.
            where: As for ``search``.
            ids: As for ``search``.

        Returns:
            Hits in the order in which they were chosen.
        """
        matrix = self._as_queries(np.asarray(query)[None])
        most = max(_checked_k(k), _checked_k(fetch_k, "fetch_k"))
        limit = self._prepared(where)
        with self._lock.read():
            scores, rows = self._nearest(matrix, most, self._limited(limit, ids))
            order = maximal_marginal_relevance(matrix[0], self._vectors(rows[0]), k, lambda_mult)
            documents = self._table.documents(rows[0][order])
            return [Hit(*documents[int(rows[0, place])], float(scores[0, place])) for place in order]

    def keyword_search(
        self, query: str, k: int = 4, *, where: Filter | Predicate | None = None, ids: Iterable[str] | None = None
    ) -> list[Hit]:
        """Find the documents that share words, or pairs of characters, with the query; no vector is needed.

        The first search splits all documents, unless ``use_keywords`` or a file has brought a keyword index; from then
        on changes keep the index up to date and ``save`` writes it.

        Args:
            query: Any text.
            k: How many, 1 or more.
            where: As for ``search``. It limits what is found and leaves the scores as they are.
            ids: As for ``search``.

        Returns:
            Hits with their BM25 scores, best first; only documents that share something, so maybe none.

        Raises:
            StoreCorruptError: If the file of the keyword index is damaged.
            TypeError: If the query is not a string.
            ValueError: If k is less than 1.
        """
        k, limit = _checked_k(k), self._prepared(where)
        with self._lock.read():
            scores, rows = self._keyword_index().search(query, k, self._limited(limit, ids))
            documents = self._table.documents(rows)
            return [Hit(*documents[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]

    def keyword_ceiling(self, query: str) -> float:
        """What no score of ``keyword_search`` reaches for this query; see ``KeywordIndex.ceiling``."""
        with self._lock.read():
            return self._keyword_index().ceiling(query)

    def use_keywords(self, tokenizer: KeywordTokenizer | None = DEFAULT_TOKENIZER) -> None:
        """Build the keyword index with this tokenizer now, unless that is the one it has; None keeps whichever it has.

        Raises:
            TypeError: If it is not a KeywordTokenizer.
        """
        with self._lock.read():
            self._keyword_index(tokenizer)

    def get(self, ids: Iterable[str]) -> list[StoredDocument]:
        """Documents by id, in the order asked for; ids that are not there are left out."""
        wanted = check_ids(ids)
        with self._lock.read():
            rows = self._table.rows_of(wanted)
            documents = self._table.documents(np.array(list(rows.values()), dtype=np.int64))
        return [documents[rows[id_]] for id_ in wanted if id_ in rows]

    def find(self, where: Filter | Predicate | None = None) -> list[StoredDocument]:
        """Documents that a filter lets through, in the order in which they were added; None gives all."""
        limit = self._prepared(where)
        with self._lock.read():
            rows = self._limited(limit, None)
            return list(self._table.documents(self._table.rows() if rows is None else rows).values())

    def metadata(self) -> list[dict[str, Any]]:
        """Metadata of every document, in the order in which they were added; no text is read."""
        with self._lock.read():
            return [metadata for _, metadata in self._table.metadata()]

    def vectors(self, ids: Iterable[str]) -> Matrix:
        """Vectors by id, as the index keeps them: of length 1 for cosine, approximate for SQ, PQ and PCA.

        Returns:
            float32 (N, D).

        Raises:
            ValueError: If an id is not there.
        """
        wanted = check_ids(ids)
        with self._lock.read():
            rows = self._table.rows_of(wanted)
            missing = [id_ for id_ in wanted if id_ not in rows]
            if missing:
                msg = f"{len(missing)} ids are not in the store, for instance {missing[0]!r}"
                raise ValueError(msg)
            return self._vectors(np.array([rows[id_] for id_ in wanted], dtype=np.int64))

    def present_vectors(self, ids: Sequence[str]) -> tuple[list[int], Matrix]:
        """Like ``vectors``, of those that are there: their places among ``ids``, and their vectors."""
        with self._lock.read():
            rows = self._table.rows_of(check_ids(ids))
            places = [place for place, id_ in enumerate(ids) if id_ in rows]
            return places, self._vectors(np.array([rows[ids[place]] for place in places], dtype=np.int64))

    def spread(self) -> float:
        """Standard deviation of the scores between documents, over pairs of up to 256; 0 of fewer than three.

        They stand at equal distances in the order in which they were added, so that the same store gives the same.
        """
        with self._lock.read():
            if self._spread is None:
                rows = self._table.rows()
                places = np.linspace(0, len(rows) - 1, min(len(rows), _SPREAD_SAMPLE)).astype(np.int64)
                self._spread = score_spread(self._metric, self._vectors(rows[places]))
            return self._spread

    def export(self) -> tuple[list[StoredDocument], Matrix]:
        """All documents and their vectors (N, D), of one moment, in the order in which they were added."""
        with self._lock.read():
            documents = self._table.documents(self._table.rows())
            return list(documents.values()), self._vectors(np.array(list(documents), dtype=np.int64))

    def check_model(self, fingerprint: str, model: str, dimension: int | None) -> None:
        """Refuse vectors of another model than the store's.

        Raises:
            StoreMismatchError: If the dimension differs, or both fingerprints are known and differ.
        """
        if self.fingerprint and fingerprint and fingerprint != self.fingerprint:
            problem = f"was built with the model {self.model!r} ({self.fingerprint}), not {model!r} ({fingerprint})"
        elif self.dimension and dimension and dimension != self.dimension:
            problem = f"has vectors of {self.dimension} numbers (model {self.model!r}), {model!r} gives {dimension}"
        else:
            return
        msg = f"The store {problem}. Open it with the model it was built with, or build it again from the documents"
        raise StoreMismatchError(msg)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _as_queries(self, queries: Any) -> Matrix:
        return as_matrix(queries, self.dimension, name="queries")

    def _nearest(self, queries: Matrix, k: int, allowed: Rows | None) -> tuple[Matrix, Rows]:
        if self._index is None:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        return self._index.search(queries, k, allowed)

    def _keyword_index(self, tokenizer: KeywordTokenizer | None = None) -> KeywordIndex:
        """The keyword index, built if there is none, or none with this tokenizer; under the lock for reading.

        Other readers go on meanwhile, but those that need the index too.
        """
        with self._building_keywords:
            index = self._keywords
            if index is None or (tokenizer is not None and tokenizer != index.tokenizer):
                index = KeywordIndex(tokenizer or DEFAULT_TOKENIZER)
                rows = self._table.rows()
                for start in range(0, len(rows), _TEXTS_AT_A_TIME):
                    contents = self._table.contents(rows[start : start + _TEXTS_AT_A_TIME])
                    index.add(*zip(*contents, strict=True))
                self._keywords = index
            return index

    def _vectors(self, rows: Rows) -> Matrix:
        return np.zeros((0, 0), dtype=np.float32) if self._index is None else self._index.vectors(rows)

    def _prepared(self, where: Filter | Predicate | None) -> Condition | Rows | None:
        """Check a filter; a function is run at once, on all metadata.

        That is done outside the lock: the function is the caller's, may take long, and may ask this very store.
        """
        if where is None or where == {}:
            return None
        if not callable(where):
            return compile_filter(where)
        return np.array([row for row, metadata in self._table.metadata() if where(metadata)], dtype=np.int64)

    def _limited(self, limit: Condition | Rows | None, ids: Iterable[str] | None) -> Rows | None:
        """Rows that a question is limited to, each of them there now; None for no limit."""
        rows: Rows | None = None
        if isinstance(limit, Condition):
            rows = self._table.rows(limit)
        elif limit is not None:  # some may have been deleted since the function ran; rows are never used twice
            rows = self._table.existing(limit)
        if ids is None:
            return rows
        named = np.array(sorted(self._table.rows_of(check_ids(ids)).values()), dtype=np.int64)
        return named if rows is None else np.intersect1d(rows, named)


def _checked_k(k: object, name: str = "k") -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        msg = f"{name}={k!r} must be a whole number, 1 or more"
        raise ValueError(msg)
    return int(k)
