"""HybridNodeRetriever: a LlamaIndex retriever by vectors and keywords together."""

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from luotuo_integrations.hybrid_search import HybridMethod, HybridSettings, hybrid_search
from luotuo_integrations.llama_filters import translate_filters
from luotuo_integrations.llama_stores import FaissVectorStore, as_node
from luotuo_integrations.store.core import FaissCore


class HybridNodeRetriever(BaseRetriever):
    """Finds nodes by the query's vector and by its words.

    The keyword index is built at the first question, kept up to date by the store, and saved with it. Reranking is
    LlamaIndex's affair: hand ``LuotuoRerank`` to the query engine's ``node_postprocessors``.

    Args:
        store: A FaissVectorStore of this package.
        embed_model: The model that the store was built with.
        similarity_top_k: How many nodes, from 1.
        weights: Of vectors and of keywords, from 0.
        method: ``"calibrated"``, ``"weighted"`` or ``"reciprocal_rank"``; see ``HybridSettings``.
        fetch_k: How many of each ranking are fused.
        lambda_mult: Choose diverse nodes after the fusion: 1 looks at the score alone, 0 at diversity alone.
        filters: Only nodes whose metadata passes, for both searches.

    Raises:
        TypeError: If the store is not one of this package.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        store: FaissVectorStore,
        embed_model: BaseEmbedding,
        *,
        similarity_top_k: int = 4,
        weights: tuple[float, float] = HybridSettings.weights,
        method: HybridMethod = HybridSettings.method,
        fetch_k: int = HybridSettings.fetch_k,
        lambda_mult: float | None = None,
        filters: MetadataFilters | None = None,
    ) -> None:
        if similarity_top_k < 1:
            msg = f"similarity_top_k={similarity_top_k} must be 1 or more"
            raise ValueError(msg)
        self._core, self._embed_model, self._k = _core_of(store), embed_model, similarity_top_k
        self._settings = HybridSettings(weights, method, fetch_k, lambda_mult)
        self._where = translate_filters(filters)
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None:
            vector = self._embed_model.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        return self._found(vector, query_bundle.query_str)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None:
            vector = await self._embed_model.aget_agg_embedding_from_queries(query_bundle.embedding_strs)
        return await asyncio.to_thread(self._found, vector, query_bundle.query_str)

    def _found(self, vector: Any, text: str) -> list[NodeWithScore]:
        hits = hybrid_search(self._core, vector, text, self._k, settings=self._settings, where=self._where)
        return [NodeWithScore(node=as_node(hit), score=hit.score) for hit in hits]


def _core_of(store: object) -> FaissCore:
    if not isinstance(store, FaissVectorStore):
        msg = f"store is {type(store).__name__}; give a FaissVectorStore of luotuo_integrations"
        raise TypeError(msg)
    return store.client
