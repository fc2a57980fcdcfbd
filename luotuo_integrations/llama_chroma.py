"""Chroma for LlamaIndex, opened right."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from luotuo_integrations._optional import require
from luotuo_integrations.chroma_collections import check_folder, check_records, open_collection, write_records
from luotuo_integrations.chroma_function import checked_embeddings
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.store.vector_math import as_matrix
from luotuo_integrations.texts import Vectors

try:
    import chromadb
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from llama_index.vector_stores.chroma import ChromaVectorStore as LlamaIndexChroma
except ModuleNotFoundError as missing:
    require(missing.name or "llama_index.vector_stores.chroma", extra="chroma")
    raise


def llama_chroma_store(
    collection_name: str,
    embeddings: LuotuoEmbeddings | None = None,
    *,
    persist_directory: str | Path | None = None,
    client: ClientAPI | None = None,
    create: bool = True,
) -> "ChromaVectorStore":
    """Open a Chroma collection as a LlamaIndex vector store.

    It is the same collection that ``luotuo_integrations.chroma`` opens, with the same names and the same check of its
    model; but nodes and LangChain documents are kept in different forms, so give each framework a collection.

    Example:
        >>> embeddings = LuotuoEmbeddings()
        >>> store = llama_chroma_store("产品手册", embeddings, persist_directory="索引")
        >>> context = StorageContext.from_defaults(vector_store=store)
        >>> index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embeddings)
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model=embeddings)  # later, to open it again

    Args:
        collection_name: Any name; see ``collection_slug`` for how Chroma knows it.
        embeddings: The embeddings; give the index the same object as ``embed_model``. None is the bundled model.
        persist_directory: Folder of the database; without it and without a client, it is in memory, and shared by all
            stores of the process.
        client: A chromadb client to use instead of making one.
        create: Make the collection where it is not there; False makes that an error.

    Returns:
        The store.

    Raises:
        TypeError: If the embeddings are not LuotuoEmbeddings.
        ValueError: If both ``persist_directory`` and ``client`` are given, or the first is "".
        StoreMismatchError: If another model made the collection, or it does not measure by cosine.
        chromadb.errors.NotFoundError: If the collection is not there and must not be made.
    """
    model = checked_embeddings(embeddings)
    if client is not None and persist_directory is not None:
        msg = f"Both client and persist_directory={str(persist_directory)!r} were given; give one of them"
        raise ValueError(msg)
    check_folder(persist_directory, collection_name, create=create)
    if client is None:
        client = (
            chromadb.EphemeralClient() if persist_directory is None else chromadb.PersistentClient(persist_directory)
        )
    return ChromaVectorStore(client, open_collection(client, collection_name, model, create=create), model)


class ChromaVectorStore(LlamaIndexChroma):
    """LlamaIndex's Chroma store with what must be set right set right; ``llama_chroma_store`` makes it.

    Beside what LlamaIndex's own class does: similarities are cosines in [-1, 1]; any number of nodes can be added at
    a time; metadata may be nested (nodes come back as they were; see ``flatten_metadata`` for what filters see); a
    node whose id is there is replaced; vectors of another dimension are refused; ``delete_nodes`` takes filters; the
    ``doc_ids`` and ``node_ids`` of a query count; and adding and querying leave the event loop free.

    Args:
        chroma_client: The client that the collection was opened with.
        chroma_collection: The collection.
        embeddings: The model of its vectors.
    """

    _chroma_client: ClientAPI = PrivateAttr()
    _model: LuotuoEmbeddings = PrivateAttr()

    def __init__(self, chroma_client: ClientAPI, chroma_collection: Collection, embeddings: LuotuoEmbeddings) -> None:
        super().__init__(chroma_collection=chroma_collection)
        self._chroma_client = chroma_client
        self._model = embeddings

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:  # noqa: ARG002 - LlamaIndex's signature
        """Add nodes, or replace those whose ids are there; all are checked before any is written.

        Args:
            nodes: N nodes with their embeddings.
            add_kwargs: LlamaIndex's; none is used.

        Returns:
            N ids in the order given.

        Raises:
            StoreMismatchError: If an embedding has another dimension than the collection's model.
            ValueError: If a node has no embedding, one is not finite, or text or metadata cannot be stored.
        """
        records = check_records(
            [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            [node_to_metadata_dict(node, remove_text=True) for node in nodes],
            [node.node_id for node in nodes],
        )
        vectors = [nodes[position].get_embedding() for position in records.kept]
        if vectors:
            write_records(self._chroma_client, self._collection, records, self._checked_vectors(vectors))
        return records.given_ids

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes in a thread; see ``add``."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete_nodes(  # type: ignore[override]  # Chroma's class says list[MetadataFilters], its code takes one
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ARG002 - LlamaIndex's signature
    ) -> None:
        """Delete the nodes that have one of the ids, where given, and that the filters let through, where given."""
        if filters is not None:
            node_ids = [node.node_id for node in self.get_nodes(node_ids, filters)]  # type: ignore[arg-type]
        if node_ids:
            self._collection.delete(ids=node_ids)

    def clear(self) -> None:
        """Delete all nodes."""
        self.delete_nodes(self._collection.get(include=[])["ids"])

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query's embedding.

        Args:
            query: The embedding, how many nodes, filters, and whether to diversify (MMR). ``doc_ids`` and ``node_ids``
                limit what is searched; empty ones limit nothing.
            kwargs: What LlamaIndex's class takes: ``where``, ``where_document``, ``mmr_threshold`` and so on.

        Returns:
            Nodes, their ids, and their cosines with the query in [-1, 1], larger is more alike. For a relevance in
            [0, 1] that means the same for every model, hand the cosines to ``LuotuoEmbeddings.relevance``.

        Raises:
            StoreMismatchError: If the embedding has another dimension than the collection's model.
            ValueError: If it holds NaN or infinity.
        """
        if query.query_embedding is not None:
            self._checked_vectors([query.query_embedding])
        if query.doc_ids:
            within: list[Any] = [MetadataFilter(key="document_id", value=query.doc_ids, operator=FilterOperator.IN)]
            query = replace(query, filters=MetadataFilters(filters=within + ([query.filters] if query.filters else [])))
        if query.node_ids:
            kwargs["ids"] = query.node_ids
        result = super().query(query, **kwargs)
        if result.similarities is not None:
            # LlamaIndex's class gives exp(-distance), and the distance is 1 - cosine.
            result.similarities = [1.0 + math.log(similarity) for similarity in result.similarities]
        return result

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Query in a thread; see ``query``."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _checked_vectors(self, vectors: list[list[float]]) -> Vectors:
        for vector in vectors:
            if len(vector) != self._model.dimension:
                msg = (
                    f"An embedding of {len(vector)} numbers was given; the collection holds vectors of the model"
                    f" {self._model.model!r}, {self._model.dimension} numbers each. Give the index the same object as"
                    " embed_model that the store was opened with"
                )
                raise StoreMismatchError(msg)
        return as_matrix(vectors, name="embeddings")
