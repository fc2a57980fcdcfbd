"""FaissVectorStore: the store's LlamaIndex face."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from luotuo_integrations.array_embeddings import fingerprint_of, gives_arrays, model_name_of
from luotuo_integrations.llama_filters import translate_filters
from luotuo_integrations.llama_queries import MMR_ARGUMENTS, answer
from luotuo_integrations.store.batch import check_id
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.table import StoredDocument
from luotuo_integrations.store.vector_math import Metric

_DEFAULT_PATH = "./storage/default__vector_store"


class FaissVectorStore(BasePydanticVectorStore):
    """A vector store on faiss for LlamaIndex, with texts, deletes, filters, keywords and MMR.

    It is the store behind ``FAISS``: either opens what the other has saved. Similarities in results are higher for
    what is more alike: cosines, inner products, or 1 / (1 + distance) for the Euclidean metric.

    Example:
        >>> embed_model = LuotuoEmbeddings()
        >>> context = StorageContext.from_defaults(vector_store=FaissVectorStore(embed_model))
        >>> index = VectorStoreIndex.from_documents(documents, context, embed_model=embed_model)
        >>> index.vector_store.persist("知识库")
        >>> store = FaissVectorStore.from_persist_path("知识库", embed_model)
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model)
        >>> index.as_retriever(vector_store_query_mode="hybrid", alpha=0.6).retrieve("XK-2093 卡纸")

    Args:
        embed_model: The model whose vectors will be added; a store that was saved then opens with the same model only.
            None checks the vectors' dimension alone.
        metric: ``"cosine"``, ``"inner_product"`` or ``"euclidean"``.
        index_factory: faiss factory string, for instance ``"Flat"`` (exact), ``"HNSW32"`` or ``"IVF256,Flat"``.
            ``"Int8"`` and ``"Binary"`` keep 1 byte or 1 bit a number in memory, compare the best candidates by their
            whole vectors, and leave those on the disk once a saved store is opened.
        search_effort: How hard an approximate index looks (faiss ``nprobe`` or ``efSearch``; candidates a result
            for ``"Int8"`` and ``"Binary"``).
        device: ``"cpu"``, or ``"cuda"`` to search on a GPU.

    Raises:
        ImportError: If faiss is not installed.
        TypeError: If ``embed_model`` is no embedding model, for instance a faiss index.
        ValueError: If an argument is not one of those allowed.
    """

    stores_text: bool = True
    is_embedding_query: bool = True

    _core: FaissCore = PrivateAttr()

    def __init__(
        self,
        embed_model: Any = None,
        *,
        metric: Metric = "cosine",
        index_factory: str = "Flat",
        search_effort: int | None = None,
        device: str = "cpu",
    ) -> None:
        if not (embed_model is None or gives_arrays(embed_model) or isinstance(embed_model, BaseEmbedding)):
            msg = (
                f"The embed_model is {type(embed_model).__name__}; give LuotuoEmbeddings() or another embedding model"
                " of LlamaIndex. The store makes its faiss index itself: type index_factory='HNSW32' for another kind"
            )
            raise TypeError(msg)
        super().__init__(stores_text=True, is_embedding_query=True)
        self._core = FaissCore(
            embed_model.dimension if gives_arrays(embed_model) else None,
            metric=metric,
            index_factory=index_factory,
            search_effort=search_effort,
            fingerprint=fingerprint_of(embed_model),
            model="" if embed_model is None else model_name_of(embed_model),
            device=device,
        )

    @classmethod
    def from_core(cls, core: FaissCore, embed_model: Any = None) -> "FaissVectorStore":
        """Give a store that exists already its LlamaIndex face.

        Raises:
            StoreMismatchError: If the store was built by another model.
        """
        if gives_arrays(embed_model):
            core.check_model(embed_model.fingerprint, embed_model.model, embed_model.dimension)
        store = cls()
        store._core = core
        return store

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows the class."""
        return "LuotuoFaissVectorStore"

    @property
    def client(self) -> FaissCore:
        """The store itself: arrays in, hits out."""
        return self._core

    def __len__(self) -> int:
        return len(self._core)

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes with their embeddings; a node whose id is there replaces that one.

        Returns:
            The node ids.

        Raises:
            ValueError: If a node has no embedding, or one of another dimension than the store's.
        """
        _refuse_unknown(kwargs, "add", "no further arguments")
        vectors = [node.get_embedding() for node in nodes]
        contents = [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        # LlamaIndex writes the whole node out, number by number, only to leave the vector away: it goes before.
        bare = [node.model_copy(update={"embedding": None}) for node in nodes]
        metadatas = [node_to_metadata_dict(node, remove_text=True, flat_metadata=False) for node in bare]
        return self._core.add(vectors, contents, metadatas, [node.node_id for node in nodes])

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document; if there are none, that is no error.

        Raises:
            TypeError: If the id is not a string; None would stand for all nodes without a document.
        """
        _refuse_unknown(delete_kwargs, "delete", "ref_doc_id")
        self._core.delete_where({"ref_doc_id": check_id(ref_doc_id, name="ref_doc_id")})

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id, by filter, or those that fulfil both.

        Raises:
            ValueError: If neither is given; ``clear`` deletes everything.
        """
        _refuse_unknown(delete_kwargs, "delete_nodes", "node_ids, filters")
        if node_ids is None and translate_filters(filters) is None:
            msg = "delete_nodes() needs node_ids or filters; to delete everything type clear()"
            raise ValueError(msg)
        self._core.delete([stored.id for stored in self._stored(node_ids, filters)])

    def clear(self) -> None:
        """Delete everything."""
        self._core.clear()

    # -- questions ----------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, by filter, or those that fulfil both; without either all of them."""
        return [as_node(stored) for stored in self._stored(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes that fit a query best, by its vector, by its words, or by both.

        - ``default``: nearest vectors; ``mmr``: of these, diverse ones.
        - ``text_search``, ``sparse``: nodes that share words, or pairs of characters, with ``query_str``; similarities
          are BM25 scores. Nodes that share nothing are not found, so maybe none is. The embedding model is not asked.
        - ``hybrid``: both rankings, fused; similarities are fused scores, up to 1 for cosines. ``alpha`` weighs them: 1
          takes vectors alone, 0 keywords alone; None takes the weights of ``HybridSettings``.

        Args:
            query: ``similarity_top_k`` says how many nodes, unless ``sparse_top_k`` (``text_search``, ``sparse``) or
                ``hybrid_top_k`` (``hybrid``) does; with ``hybrid``, ``sparse_top_k`` says how many of each ranking are
                fused, 100 if it is None. ``filters``, ``doc_ids`` and ``node_ids`` are applied before the search; an
                empty list of ids limits nothing, as LlamaIndex's own retriever passes one.
            **kwargs: For ``mmr``: ``mmr_threshold`` (1 looks at nearness only, 0 at diversity only; 0.5), and how many
                of the nearest to choose from: ``mmr_prefetch_k``, or ``mmr_prefetch_factor`` (4) times as many as
                wanted. Any other name raises TypeError.

        Returns:
            Nodes, similarities and ids, best first.

        Raises:
            ValueError: If the query has no vector or no text where its mode needs it, a number is out of range, or it
                asks for another mode.
        """
        _refuse_unknown(kwargs, "query", ", ".join(MMR_ARGUMENTS))
        hits = answer(self._core, query, kwargs)
        return VectorStoreQueryResult(
            nodes=[as_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def _stored(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[StoredDocument]:
        where = translate_filters(filters)
        if node_ids is None:
            return self._core.find(where)
        found = self._core.get(node_ids)
        if where is None:
            return found
        passing = {stored.id for stored in self._core.find(where)}
        return [stored for stored in found if stored.id in passing]

    # -- off the event loop -------------------------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """``add`` in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """``delete`` in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """``delete_nodes`` in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """``clear`` in a thread."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """``get_nodes`` in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """``query`` in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    # -- files --------------------------------------------------------------------------------------------------------

    def persist(self, persist_path: str = _DEFAULT_PATH, fs: Any = None) -> None:
        """Save to the folder ``persist_path``; an ending ".json", which StorageContext puts, is left off.

        Raises:
            OSError: If it cannot be written. What was there is untouched.
            ValueError: If ``fs`` is not the local file system.
        """
        self._core.save(_folder(persist_path, fs))

    @classmethod
    def from_persist_path(
        cls,
        persist_path: str,
        embed_model: Any = None,
        *,
        fs: Any = None,
        device: str = "cpu",
        verify: bool = False,
    ) -> "FaissVectorStore":
        """Open a folder that ``persist``, or FAISS.save_local, wrote.

        Args:
            persist_path: The folder.
            embed_model: The model that queries will be embedded with; None checks nothing.
            fs: Must be local.
            device: ``"cpu"``, or ``"cuda"`` to search on a GPU.
            verify: Compare all checksums; sizes are always checked.

        Raises:
            FileNotFoundError: If the folder holds no store.
            StoreCorruptError: If a file is missing, truncated or edited.
            StoreMismatchError: If the store was built by another model.
        """
        core = FaissCore.load(_folder(persist_path, fs), device=device, verify=verify)
        return cls.from_core(core, embed_model)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = "./storage",
        embed_model: Any = None,
        *,
        namespace: str = "default",
        fs: Any = None,
    ) -> "FaissVectorStore":
        """Open the store in a folder that ``StorageContext.persist(persist_dir)`` wrote; see ``from_persist_path``."""
        return cls.from_persist_path(str(Path(persist_dir) / f"{namespace}__vector_store"), embed_model, fs=fs)


def as_node(stored: Hit | StoredDocument) -> BaseNode:
    """A document of the store as a node."""
    if "_node_content" in stored.metadata:
        return metadata_dict_to_node(stored.metadata, text=stored.content)
    return TextNode(id_=stored.id, text=stored.content, metadata=stored.metadata)  # saved by the LangChain face


def _folder(persist_path: str, fs: Any) -> Path:
    if fs is not None and "file" not in fs.protocol:  # fsspec's name for local files
        msg = f"fs is {type(fs).__name__}; this store saves to local folders only. Leave fs out"
        raise ValueError(msg)
    path = Path(persist_path)
    return path.with_suffix("") if path.suffix == ".json" else path


def _refuse_unknown(kwargs: dict[str, Any], method: str, allowed: str) -> None:
    for name in kwargs:
        if name not in allowed.split(", "):
            msg = f"{method}() knows no {name!r}; allowed: {allowed}"
            raise TypeError(msg)
