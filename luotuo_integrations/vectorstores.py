"""FAISS: the store's LangChain face, with the names that users of LangChain's own FAISS class know."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from typing_extensions import Self, override

from luotuo_integrations.array_embeddings import (
    check_embedding,
    dimension_of,
    embed_passages,
    fingerprint_of,
    gives_arrays,
    model_name_of,
)
from luotuo_integrations.langchain_search import SearchableStore, Where, as_document, refuse_unknown
from luotuo_integrations.store.batch import DocumentBatch, check_documents
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.merge import OnConflict, merge_stores
from luotuo_integrations.store.vector_math import Matrix, Metric, as_matrix


class FAISS(SearchableStore):
    """A vector store on faiss for LangChain.

    Texts, metadata and ids lie in SQLite beside the vectors; no pickle is read or written. Scores, filters and files
    are described in ``store.reader``, ``store.filters`` and ``store.files``.

    Example:
        >>> store = FAISS.from_texts(["年假十五天", "差旅住宿标准"], LuotuoEmbeddings(), [{"页": 3}, {"页": 8}])
        >>> store.similarity_search("可以休几天假", k=1, filter={"页": {"$lt": 5}})
        [Document(id='…', metadata={'页': 3}, page_content='年假十五天')]

    Args:
        embedding: A LangChain Embeddings object. LuotuoEmbeddings hands its vectors over as arrays.
        metric: ``"cosine"``, ``"inner_product"`` or ``"euclidean"``.
        index_factory: faiss factory string: ``"Flat"`` is exact, ``"HNSW32"`` or ``"IVF256,Flat"`` are for millions.
            ``"Int8"`` and ``"Binary"`` keep 1 byte or 1 bit a number in memory, compare the best candidates by their
            whole vectors, and leave those on the disk once a saved store is opened.
        search_effort: How hard an approximate index looks (faiss ``nprobe`` or ``efSearch``; candidates a result
            for ``"Int8"`` and ``"Binary"``).
        device: ``"cpu"``, or ``"cuda"`` to search on a GPU.

    Raises:
        ImportError: If faiss is not installed.
        TypeError: If the embedding is not an Embeddings object.
        ValueError: If an argument is not one of those allowed.
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        metric: Metric = "cosine",
        index_factory: str = "Flat",
        search_effort: int | None = None,
        device: str = "cpu",
    ) -> None:
        check_embedding(embedding)
        # Only a Flat index fits any dimension: others are tried now, not after texts have been embedded.
        known = gives_arrays(embedding) or index_factory != "Flat"
        core = FaissCore(
            dimension_of(embedding) if known else None,
            metric=metric,
            index_factory=index_factory,
            search_effort=search_effort,
            model=model_name_of(embedding),
            device=device,
        )
        super().__init__(core, embedding)

    @classmethod
    def from_core(cls, core: FaissCore, embedding: Embeddings) -> Self:
        """Give a store that exists already its LangChain face.

        Raises:
            StoreMismatchError: If the store was built by another model.
        """
        check_embedding(embedding)
        dimension = None if core.dimension is None else dimension_of(embedding)
        core.check_model(fingerprint_of(embedding), model_name_of(embedding), dimension)
        store = cls.__new__(cls)
        SearchableStore.__init__(store, core, embedding)
        return store

    def __len__(self) -> int:
        return len(self._core)

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def __repr__(self) -> str:
        core = self._core
        return f"FAISS({len(core)} documents, model={core.model!r}, metric={core.metric!r}, {core.index_factory!r})"

    # -- adding -------------------------------------------------------------------------------------------------------

    @classmethod
    @override
    def from_documents(cls, documents: list[Document], embedding: Embeddings, **kwargs: Any) -> Self:
        """Make a store of Documents, under their ids where they have some; other arguments as of ``from_texts``."""
        return super().from_documents(_checked_documents(documents), embedding, **kwargs)

    @override
    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add Documents, or replace those whose ids are there; other arguments as of ``add_texts``."""
        return super().add_documents(_checked_documents(documents), **kwargs)

    @classmethod
    @override
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        metric: Metric = "cosine",
        index_factory: str = "Flat",
        search_effort: int | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts; ``[]`` makes an empty one. See the class and ``add_texts`` for the arguments."""
        refuse_unknown(kwargs, "from_texts", "ids, metric, index_factory, search_effort, device")
        store = cls(embedding, metric=metric, index_factory=index_factory, search_effort=search_effort, device=device)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_embeddings(
        cls,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        metric: Metric = "cosine",
        index_factory: str = "Flat",
        search_effort: int | None = None,
        device: str = "cpu",
    ) -> Self:
        """Make a store of pairs (text, vector) that ``embedding`` has made before."""
        store = cls(embedding, metric=metric, index_factory=index_factory, search_effort=search_effort, device=device)
        store.add_embeddings(text_embeddings, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_embeddings(
        cls, text_embeddings: Iterable[tuple[str, Sequence[float]]], embedding: Embeddings, **kwargs: Any
    ) -> Self:
        """``from_embeddings`` off the event loop."""
        return await run_in_executor(None, cls.from_embeddings, text_embeddings, embedding, **kwargs)

    @override
    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and add them; a text whose id is there replaces that document.

        Args:
            texts: Texts.
            metadatas: One dict of JSON values a text.
            ids: One id a text, None among them for a new one. Of an id given twice, the last text counts.
            batch_size: LangChain's ``index()`` passes it; the model makes its own batches and needs none.
            **kwargs: None; any other name raises TypeError.

        Returns:
            The ids, one a text.

        Raises:
            TypeError: If something has a type that cannot be stored.
            ValueError: If numbers differ, or an index that needs training is given too few texts at first.
        """
        del batch_size
        refuse_unknown(kwargs, "add_texts", "metadatas, ids, batch_size")
        batch = check_documents(texts, metadatas, ids)
        self._core.check_room(len(batch.kept))
        self._add(batch, embed_passages(self._embedding, batch.contents))
        return batch.ids

    def add_embeddings(
        self,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
    ) -> list[str]:
        """Add pairs (text, vector); see ``add_texts``."""
        pairs = _checked_pairs(text_embeddings)
        batch = check_documents([text for text, _ in pairs], metadatas, ids)
        self._add(batch, as_matrix([pairs[position][1] for position in batch.kept]))
        return batch.ids

    def _add(self, batch: DocumentBatch, vectors: Matrix) -> None:
        if len(vectors) and not len(self._core):
            self._core.fingerprint = fingerprint_of(self._embedding)
        self._core.add_batch(batch, vectors)

    def merge_from(self, target: "FAISS", *, on_conflict: OnConflict = "error") -> list[str]:
        """Add the documents of ``target``, which stays as it is; see ``merge_stores``. Returns the ids added."""
        return merge_stores(self._core, target.core, on_conflict=on_conflict)

    # -- documents ----------------------------------------------------------------------------------------------------

    @override
    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by id, in the order asked for; ids that are not there are left out."""
        return [as_document(document) for document in self._core.get(ids)]

    def documents(self, filter: Where | None = None) -> list[Document]:  # noqa: A002
        """Documents that a filter lets through, in the order in which they were added; None gives all."""
        return [as_document(document) for document in self._core.find(filter)]

    @override
    def delete(self, ids: list[str] | None = None, *, filter: Where | None = None, **kwargs: Any) -> bool:
        """Delete documents by id or by filter; ids that are not there are no error.

        Returns:
            True.

        Raises:
            ValueError: If neither or both are given. ``clear`` deletes everything.
        """
        refuse_unknown(kwargs, "delete", "ids, filter")
        if (ids is None) == (filter is None):
            msg = "delete() needs either ids or filter; to delete everything type clear()"
            raise ValueError(msg)
        if ids is not None:
            self._core.delete(ids)
        elif filter is not None:
            self._core.delete_where(filter)
        return True

    def clear(self) -> None:
        """Delete everything."""
        self._core.clear()

    # -- files --------------------------------------------------------------------------------------------------------

    def save_local(self, folder_path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save to a folder; a store that is there stays whole until the new one is complete. See ``FaissCore.save``."""
        refuse_unknown(kwargs, "save_local", "folder_path")
        self._core.save(folder_path)

    @classmethod
    def load_local(
        cls,
        folder_path: str | os.PathLike[str],
        embeddings: Embeddings,
        *,
        device: str = "cpu",
        verify: bool = False,
        memory_map: bool = True,
        allow_dangerous_deserialization: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Open a store that ``save_local`` wrote.

        Args:
            folder_path: The folder. For one that LangChain's own FAISS wrote type ``import_langchain_faiss``.
            embeddings: The embeddings that the store was built with.
            device: ``"cpu"``, or ``"cuda"`` to search on a GPU.
            verify: Compare all checksums; sizes are always checked.
            memory_map: Read documents and a Flat index from their files as they are needed; see ``FaissCore.load``.
            allow_dangerous_deserialization: Has no effect, is accepted from old code: nothing dangerous is read here.
            **kwargs: None; any other name raises TypeError.

        Raises:
            FileNotFoundError: If the folder holds no store.
            StoreCorruptError: If a file is missing, truncated or edited.
            StoreMismatchError: If the store was built by another model.
        """
        del allow_dangerous_deserialization
        refuse_unknown(kwargs, "load_local", "folder_path, embeddings, device, verify, memory_map")
        check_embedding(embeddings)
        return cls.from_core(
            FaissCore.load(folder_path, device=device, verify=verify, memory_map=memory_map), embeddings
        )


def _checked_documents(documents: object) -> list[Document]:
    listed: list[Any] = list(documents) if isinstance(documents, Iterable) else [documents]
    for index, document in enumerate(listed):
        if not isinstance(document, Document):
            msg = (
                f"documents[{index}] is {type(document).__name__}: {document!r:.80}; give a list of Documents."
                " Of texts: from_texts(). load_documents() gives two: documents, problems = load_documents(folder)"
            )
            raise TypeError(msg)
    return listed


def _checked_pairs(pairs: Iterable[Any]) -> list[tuple[str, Any]]:
    listed = list(pairs)
    for index, pair in enumerate(listed):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            msg = f"text_embeddings[{index}] is {pair!r:.80}; give pairs (text, vector)"
            raise TypeError(msg)
    return listed
