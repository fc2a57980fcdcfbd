"""Chroma for LangChain, opened right; and the names that chromadb users need."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document

from luotuo_integrations._optional import require
from luotuo_integrations.chroma_collections import (
    Records,
    check_collection,
    check_folder,
    check_records,
    collection_slug,
    cosine_configuration,
    model_metadata,
    not_found,
    write_records,
)
from luotuo_integrations.chroma_function import LuotuoEmbeddingFunction, checked_embeddings
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.store.batch import check_ids
from luotuo_integrations.store.vector_math import as_matrix

try:
    import langchain_chroma
    from chromadb.api import ClientAPI
    from chromadb.config import Settings
    from chromadb.errors import NotFoundError
except ModuleNotFoundError as missing:
    require(missing.name or "langchain_chroma", extra="chroma")
    raise

__all__ = ["Chroma", "LuotuoEmbeddingFunction", "collection_slug"]


class Chroma(langchain_chroma.Chroma):
    """LangChain's Chroma store for LuotuoEmbeddings, with what must be set right set right.

    Beside what ``langchain_chroma.Chroma`` does: scores are by cosine; any number of documents can be added at a
    time; a collection may be named in Chinese; metadata may be nested; adding under an id that is there replaces the
    whole document; and a collection that another model made is refused.

    Scores: ``similarity_search_with_score`` gives the cosine distance, 1 - cosine, in [0, 2], smaller is better, as
    LangChain's own class does. ``similarity_search_with_relevance_scores`` gives ``LuotuoEmbeddings.relevance`` of
    the cosine, in [0, 1], larger is better.

    Metadata: see ``chroma_collections.flatten_metadata`` for what becomes of dicts, lists and None.

    Example:
        >>> from luotuo_integrations import LuotuoEmbeddings
        >>> from luotuo_integrations.chroma import Chroma
        >>> store = Chroma.from_documents(
        ...     documents, LuotuoEmbeddings(), collection_name="员工手册", persist_directory="索引"
        ... )
        >>> store.similarity_search("未入职的同事可以出差吗", k=4)
        >>> store = Chroma("员工手册", LuotuoEmbeddings(), persist_directory="索引")  # later, to open it again

    Args:
        collection_name: Any name. Where Chroma would refuse it, the collection is stored under
            ``collection_slug(name)``, and the name is kept in its metadata.
        embedding_function: The embeddings; None is the bundled model.
        persist_directory: Folder of the database; without it and without a client, it is in memory, and shared by all
            stores of the process.
        host: Host name of a Chroma server.
        port: Its port.
        headers: HTTP headers for the server.
        chroma_cloud_api_key: Key of Chroma Cloud.
        tenant: Tenant of the server or cloud.
        database: Database of the server or cloud.
        client_settings: Settings of the client that is made.
        collection_metadata: What else to keep beside the collection.
        collection_configuration: Settings of its index, for instance ``{"hnsw": {"ef_search": 200}}``.
        client: A chromadb client to use instead of making one.
        relevance_score_fn: Turns a distance into a relevance; None is the model's own.
        create_collection_if_not_exists: Make the collection where it is not there; False makes that an error.
        ssl: Whether to talk to the server over TLS.

    Raises:
        TypeError: If the embeddings are not LuotuoEmbeddings.
        ValueError: If ``collection_name`` is blank, or ``persist_directory`` is "".
        StoreMismatchError: If another model made the collection, or it does not measure by cosine.
        chromadb.errors.NotFoundError: If the collection is not there and must not be made.
    """

    def __init__(
        self,
        collection_name: str = "langchain",
        embedding_function: LuotuoEmbeddings | None = None,
        persist_directory: str | Path | None = None,
        host: str | None = None,
        port: int | None = None,
        headers: dict[str, str] | None = None,
        chroma_cloud_api_key: str | None = None,
        tenant: str | None = None,
        database: str | None = None,
        client_settings: Settings | None = None,
        collection_metadata: dict[str, Any] | None = None,
        collection_configuration: dict[str, Any] | None = None,
        client: ClientAPI | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
        create_collection_if_not_exists: bool | None = True,
        *,
        ssl: bool = False,
    ) -> None:
        embeddings = checked_embeddings(embedding_function)
        slug = collection_slug(collection_name)
        check_folder(persist_directory, collection_name, create=bool(create_collection_if_not_exists))
        try:
            super().__init__(
                collection_name=slug,
                embedding_function=embeddings,
                persist_directory=None if persist_directory is None else str(persist_directory),
                host=host,
                port=port,
                headers=headers,
                chroma_cloud_api_key=chroma_cloud_api_key,
                tenant=tenant,
                database=database,
                client_settings=client_settings,
                collection_metadata={**(collection_metadata or {}), **model_metadata(collection_name, embeddings)},
                collection_configuration=cosine_configuration(embeddings, collection_configuration),
                client=client,
                relevance_score_fn=relevance_score_fn,
                create_collection_if_not_exists=create_collection_if_not_exists,
                ssl=ssl,
            )
        except NotFoundError as error:
            if create_collection_if_not_exists:
                raise
            raise not_found(collection_name, self._client) from error
        self._model = embeddings
        check_collection(self._collection, collection_name, embeddings)

    @property
    def embeddings(self) -> LuotuoEmbeddings:
        """The embeddings that documents and queries go through."""
        return self._model

    @classmethod
    def from_texts(  # type: ignore[override]  # the other arguments are those of __init__, by name
        cls,
        texts: Iterable[str],
        embedding: LuotuoEmbeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "Chroma":
        """Open a collection and add texts to it.

        Args:
            texts: N texts.
            embedding: The embeddings; None is the bundled model.
            metadatas: N dicts.
            ids: N ids; new ones where none is given.
            kwargs: Arguments of the class, such as ``collection_name`` and ``persist_directory``.

        Returns:
            The store.

        Raises:
            TypeError: If a text, an id or a metadata value has a type that cannot be stored.
            ValueError: If the numbers differ, or metadata cannot be stored. No collection is made then.
        """
        records = check_records(texts, metadatas or None, ids)
        store = cls(embedding_function=embedding, **kwargs)
        store._write(records)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[str] | None = None,
        **kwargs: Any,  # noqa: ARG002 - LangChain's indexing hands over a batch_size
    ) -> list[str]:
        """Add texts, or replace those whose ids are there; all are checked and embedded before any is written.

        Args:
            texts: N texts, any number.
            metadatas: N dicts.
            ids: N ids, with None for a new one. Of an id given twice, the last text counts.
            kwargs: What LangChain hands over; none is used, batches are as large as Chroma takes them.

        Returns:
            N ids in the order given.

        Raises:
            TypeError: If a text, an id or a metadata value has a type that cannot be stored; the message names it.
            ValueError: If the numbers differ, or metadata cannot be stored.
        """
        return self._write(check_records(texts, metadatas or None, ids))

    def _write(self, records: Records) -> list[str]:
        if records.ids:
            vectors = self._model.encode(records.texts, "passage")
            write_records(self._client, self._collection, records, vectors)
        return records.given_ids

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangChain's name
        where_document: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """``similarity_search`` for a query's vector; ValueError if it has another length, or holds NaN."""
        self._check_vector(embedding)
        return super().similarity_search_by_vector(embedding, k, filter, where_document, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangChain's name
        where_document: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """``max_marginal_relevance_search`` for a query's vector; ValueError if it has another length, or holds NaN."""
        self._check_vector(embedding)
        return super().max_marginal_relevance_search_by_vector(
            embedding, k, fetch_k, lambda_mult, filter, where_document, **kwargs
        )

    def _check_vector(self, embedding: list[float]) -> None:
        # Chroma answers a vector of NaN with whatever it holds.
        as_matrix([embedding], self._model.dimension, name="queries")

    def update_documents(self, ids: list[str], documents: list[Document]) -> None:
        """Replace documents; an id that is not there is added."""
        self.add_documents(documents, ids=ids)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> None:
        """Delete by id; ids that are not there, and ``[]``, are no error.

        Args:
            ids: The ids.
            kwargs: ``where`` and ``where_document`` of chromadb, to delete by metadata or content.
        """
        if ids is None or ids:
            super().delete(ids, **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Get documents by id, in any order; ids that are not there are left out."""
        if not ids:
            return []
        found = self._collection.get(ids=check_ids(ids), include=["documents", "metadatas"])
        rows = zip(found["ids"], found["documents"] or [], found["metadatas"] or [], strict=True)
        return [Document(id=id_, page_content=text or "", metadata=dict(fields or {})) for id_, text, fields in rows]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self.override_relevance_score_fn is not None:
            return self.override_relevance_score_fn
        return lambda distance: float(self._model.relevance(np.clip(1 - distance, -1.0, 1.0)))
