"""HybridRetriever: a LangChain retriever by vectors and keywords together."""

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Self

from luotuo_integrations.array_embeddings import embed_queries
from luotuo_integrations.hybrid_search import HybridMethod, HybridSettings, hybrid_search
from luotuo_integrations.langchain_search import SearchableStore, as_document
from luotuo_integrations.store.vector_math import Matrix, as_matrix
from luotuo_integrations.texts import check_query


class HybridRetriever(BaseRetriever):
    """Finds documents by the query's vector and by its words, which find names, numbers and codes that vectors blur.

    The keyword index is built at the first question, kept up to date by the store, and saved with it.

    Args:
        store: A FAISS store of this package.
        k: How many documents, from 1; ``retriever.invoke(query, k=10)`` sets it for one call.
        weights: Of vectors and of keywords, from 0.
        method: ``"calibrated"``, ``"weighted"`` or ``"reciprocal_rank"``; see ``HybridSettings``.
        fetch_k: How many of each ranking are fused.
        lambda_mult: Choose diverse documents after the fusion: 1 looks at the score alone, 0 at diversity alone.
        filter: Only documents whose metadata passes, for both searches; see ``store.filters``.
        rerank: A document compressor that orders what was found anew, ``LuotuoReranker`` for instance.
        rerank_k: How many fused documents it is given, at least k.

    Example:
        >>> store = FAISS.from_texts(["年假十五天", "差旅住宿标准"], LuotuoEmbeddings())
        >>> HybridRetriever.from_store(store, k=1).invoke("可以休几天假")[0].page_content
        '年假十五天'

    Raises:
        TypeError: If the store is not one of this package.
        ValueError: If a number is out of range.
    """

    store: Any = Field(repr=False)
    k: int = Field(default=4, ge=1)
    weights: tuple[float, float] = HybridSettings.weights
    method: HybridMethod = HybridSettings.method
    fetch_k: int = Field(default=HybridSettings.fetch_k, ge=1)
    lambda_mult: float | None = None
    filter: Any = None
    rerank: BaseDocumentCompressor | None = None
    rerank_k: int = Field(default=20, ge=1)
    _settings: HybridSettings = PrivateAttr()

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def model_post_init(self, context: Any, /) -> None:
        """Check what was given."""
        super().model_post_init(context)
        if not isinstance(self.store, SearchableStore):
            msg = f"store is {type(self.store).__name__}; give a FAISS store of luotuo_integrations"
            raise TypeError(msg)
        self._settings = HybridSettings(self.weights, self.method, self.fetch_k, self.lambda_mult)

    @classmethod
    def from_store(
        cls,
        store: SearchableStore,
        *,
        k: int = 4,
        weights: tuple[float, float] = HybridSettings.weights,
        method: HybridMethod = HybridSettings.method,
        fetch_k: int = HybridSettings.fetch_k,
        lambda_mult: float | None = None,
        filter: Any = None,  # noqa: A002
        rerank: BaseDocumentCompressor | None = None,
        rerank_k: int = 20,
    ) -> Self:
        """Make a retriever; the arguments are the class's."""
        return cls(
            store=store,
            k=k,
            weights=weights,
            method=method,
            fetch_k=fetch_k,
            lambda_mult=lambda_mult,
            filter=filter,
            rerank=rerank,
            rerank_k=rerank_k,
        )

    def search_with_score(self, query: str, k: int | None = None) -> list[tuple[Document, float]]:
        """The fused ranking, before any reranking.

        Args:
            query: The query.
            k: How many; None as the retriever says.

        Returns:
            Documents with scores, up to 1 for cosines, best first; see ``hybrid_search``.

        Raises:
            ValueError: If k is less than 1.
        """
        wanted = self._wanted(k)
        vector = embed_queries(self.store.embeddings, [check_query(query)])[0]
        return self._fused(vector, query, wanted)

    def _wanted(self, k: int | None) -> int:
        if k is not None and k < 1:
            msg = f"k={k} must be 1 or more"
            raise ValueError(msg)
        return self.k if k is None else k

    def _fused(self, vector: Matrix, query: str, k: int) -> list[tuple[Document, float]]:
        hits = hybrid_search(self.store.core, vector, query, k, settings=self._settings, where=self.filter)
        return [(as_document(hit), hit.score) for hit in hits]

    def _candidates(self, vector: Matrix, query: str, k: int) -> list[Document]:
        most = k if self.rerank is None else max(k, self.rerank_k)
        return [document for document, _ in self._fused(vector, query, most)]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        wanted = self._wanted(k)
        vector = embed_queries(self.store.embeddings, [check_query(query)])[0]
        found = self._candidates(vector, query, wanted)
        if self.rerank is not None and found:
            found = list(self.rerank.compress_documents(found, query, callbacks=run_manager.get_child()))
        return found[:wanted]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        wanted = self._wanted(k)
        vector = as_matrix([await self.store.embeddings.aembed_query(check_query(query))], name="the query's vector")[0]
        found = await run_in_executor(None, self._candidates, vector, query, wanted)
        if self.rerank is not None and found:
            found = list(await self.rerank.acompress_documents(found, query, callbacks=run_manager.get_child()))
        return found[:wanted]
