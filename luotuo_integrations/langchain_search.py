"""Searching a store in LangChain's words: the reading half of FAISS."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore
from typing_extensions import override

from luotuo_integrations.array_embeddings import embed_queries, gives_arrays, model_name_of
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.filters import Filter, Predicate
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.table import StoredDocument
from luotuo_integrations.store.vector_math import Matrix, Scores, relevance
from luotuo_integrations.texts import check_query, check_texts

Where = Filter | Predicate

_HINTS = {
    "fetch_k": "filters are applied before the search, so only max_marginal_relevance_search has a fetch_k",
    "score_threshold": "type similarity_search_with_relevance_scores(query, score_threshold=0.5)",
    "distance_strategy": "type metric='cosine', 'inner_product' or 'euclidean'",
    "normalize_L2": "metric='cosine', the default, normalises",
    "relevance_score_fn": "relevance follows from metric and model",
    "index_name": "give each store a folder of its own",
}


class SearchableStore(VectorStore):
    """What LangChain can ask a store: nearest documents, with scores or relevances, alike or diverse.

    Args:
        core: The store.
        embedding: The embeddings that it was built with.
    """

    def __init__(self, core: FaissCore, embedding: Embeddings) -> None:
        self._core = core
        self._embedding = embedding

    @property
    def core(self) -> FaissCore:
        """The store itself: arrays in, hits out."""
        return self._core

    @property
    @override
    def embeddings(self) -> Embeddings:
        """The embeddings object."""
        return self._embedding

    # -- searching ----------------------------------------------------------------------------------------------------

    @override
    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find the k documents nearest to the query; see ``similarity_search_with_score``."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    @override
    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Find the k documents nearest to the query, with their scores.

        Args:
            query: The query.
            k: How many, 1 or more; fewer are given if fewer are there.
            filter: Only documents whose metadata passes, a dict as in ``store.filters`` or a function of the metadata.
                It is applied before the search: the k nearest of those that pass are found.
            **kwargs: None; any other name raises TypeError.

        Returns:
            Documents with cosines, inner products (higher is better) or distances (lower is better), best first.

        Raises:
            StoreMismatchError: If the embedding's vectors have another dimension than the store's.
        """
        refuse_unknown(kwargs, "similarity_search", "k, filter")
        return self._found(self._query_vectors([check_query(query)]), k, filter)[0]

    def similarity_search_batch(
        self,
        queries: Sequence[str],
        k: int = 4,
        filter: Where | None = None,  # noqa: A002
    ) -> list[list[tuple[Document, float]]]:
        """``similarity_search_with_score`` for many queries in one go: one pass of the model, one search of the index.

        Args:
            queries: The queries.
            k: How many for each query.
            filter: As in ``similarity_search_with_score``, for all queries.

        Returns:
            For each query its documents with their scores, best first.

        Raises:
            TypeError: If the queries are not a list of strings.
        """
        check_texts(queries)
        return self._found(self._query_vectors(list(queries)), k, filter)

    @override
    def similarity_search_by_vector(
        self,
        embedding: Sequence[float] | npt.NDArray[np.floating[Any]],
        k: int = 4,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find the k documents nearest to a query's vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self,
        embedding: Sequence[float] | npt.NDArray[np.floating[Any]],
        k: int = 4,
        filter: Where | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Find the k documents nearest to a query's vector, with their scores."""
        refuse_unknown(kwargs, "similarity_search_by_vector", "k, filter")
        return self._found([embedding], k, filter)[0]

    @override
    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents near the query but not near each other.

        Args:
            query: The query.
            k: How many.
            fetch_k: How many of the nearest to choose from.
            lambda_mult: 1 looks at nearness only, 0 at diversity only.
            filter: As in ``similarity_search_with_score``.
            **kwargs: None; any other name raises TypeError.

        Returns:
            Documents in the order in which they were chosen.
        """
        vector = self._query_vectors([check_query(query)])[0]
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    @override
    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float] | npt.NDArray[np.floating[Any]],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """``max_marginal_relevance_search`` for a query's vector."""
        refuse_unknown(kwargs, "max_marginal_relevance_search", "k, fetch_k, lambda_mult, filter")
        hits = self._core.search_diverse(embedding, k, fetch_k=fetch_k, lambda_mult=lambda_mult, where=filter)
        return [as_document(hit) for hit in hits]

    def keyword_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,  # noqa: A002
    ) -> list[tuple[Document, float]]:
        """Find the documents that share words, or pairs of characters, with the query; the embedding is not asked.

        Args:
            query: The query.
            k: How many, 1 or more.
            filter: As in ``similarity_search_with_score``.

        Returns:
            Documents with their BM25 scores, best first; only those that share something, so maybe none. See
            ``FaissCore.keyword_search``; ``store.core.use_keywords(...)`` chooses how texts are split.
        """
        return [(as_document(hit), hit.score) for hit in self._core.keyword_search(check_query(query), k, where=filter)]

    def relevance(self, scores: npt.ArrayLike) -> Scores:
        """Turn scores into relevances in [0, 1], in the order of similarity.

        For cosine the model's own calibration is used where it has one, else see ``store.reader``.
        """
        if self._core.metric == "cosine" and gives_arrays(self._embedding):
            return self._embedding.relevance(scores)
        return relevance(self._core.metric, scores)

    @override
    def _select_relevance_score_fn(self) -> Any:
        return lambda score: float(self.relevance(score))

    # -- searching off the event loop ---------------------------------------------------------------------------------
    # The query goes through the embedding's own asynchronous road, which lets concurrent queries share a batch.

    @override
    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """``similarity_search`` off the event loop."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    @override
    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """``similarity_search_with_score`` off the event loop."""
        vector = await self._aquery_vector(query)
        return await run_in_executor(None, self.similarity_search_with_score_by_vector, vector, k, **kwargs)

    @override
    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """``max_marginal_relevance_search`` off the event loop."""
        vector = await self._aquery_vector(query)
        return await run_in_executor(
            None, self.max_marginal_relevance_search_by_vector, vector, k, fetch_k, lambda_mult, **kwargs
        )

    async def akeyword_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,  # noqa: A002
    ) -> list[tuple[Document, float]]:
        """``keyword_search`` off the event loop."""
        return await run_in_executor(None, self.keyword_search, query, k, filter)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _found(self, vectors: Any, k: int, where: Where | None) -> list[list[tuple[Document, float]]]:
        return [[(as_document(hit), hit.score) for hit in hits] for hits in self._core.search(vectors, k, where=where)]

    def _query_vectors(self, queries: list[str]) -> Matrix:
        vectors = embed_queries(self._embedding, queries)
        if len(vectors):
            self._core.check_model("", model_name_of(self._embedding), vectors.shape[1])
        return vectors

    async def _aquery_vector(self, query: str) -> Matrix:
        vector = np.asarray(await self._embedding.aembed_query(check_query(query)), dtype=np.float32)
        self._core.check_model("", model_name_of(self._embedding), len(vector))
        return vector


def as_document(stored: Hit | StoredDocument) -> Document:
    """A stored document as LangChain's Document."""
    return Document(id=stored.id, page_content=stored.content, metadata=stored.metadata)


def refuse_unknown(kwargs: dict[str, Any], method: str, allowed: str) -> None:
    """Raise TypeError for keyword arguments that nobody knows; LangChain's signatures let anything through."""
    for name in kwargs:
        msg = f"{method}() knows no {name!r}; allowed: {allowed}"
        raise TypeError(f"{msg}. {_HINTS[name]}" if name in _HINTS else msg)
