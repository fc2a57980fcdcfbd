"""Import of folders that LangChain's own FAISS class saved: the pickle in them is read without running any of it."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from langchain_core.embeddings import Embeddings

from luotuo_integrations._optional import require
from luotuo_integrations.array_embeddings import model_name_of
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.index_kinds import last_line
from luotuo_integrations.store.vector_math import Matrix, Metric
from luotuo_integrations.vectorstores import FAISS

# Every class that LangChain has put into such a pickle; none of them is imported, each becomes a _Record.
_KNOWN = {
    ("langchain_community.docstore.in_memory", "InMemoryDocstore"),
    ("langchain.docstore.in_memory", "InMemoryDocstore"),
    ("langchain_core.documents.base", "Document"),
    ("langchain_core.documents", "Document"),
    ("langchain.schema.document", "Document"),
    ("langchain.schema", "Document"),
    ("langchain.docstore.document", "Document"),
}


def import_langchain_faiss(
    folder_path: str | os.PathLike[str], embedding: Embeddings, *, index_name: str = "index", metric: Metric = "cosine"
) -> FAISS:
    """Read a folder that ``save_local`` of LangChain's own FAISS class wrote.

    The pickle is taken apart by an unpickler that makes plain records of LangChain's documents and refuses every other
    name in it, so that nothing in the file can be run.

    Args:
        folder_path: The folder with ``index.faiss`` and ``index.pkl``; it is not changed.
        embedding: The embeddings that it was built with.
        index_name: What the files are called.
        metric: Metric of the new store; the old folder does not tell.

    Returns:
        A new store in memory with the same ids; type ``save_local`` to keep it.

    Raises:
        FileNotFoundError: If a file is missing.
        StoreCorruptError: If a file is damaged, or the pickle holds anything but documents.
        StoreMismatchError: If the embedding gives vectors of another dimension.
    """
    folder = Path(folder_path)
    pickled, index_path = folder / f"{index_name}.pkl", folder / f"{index_name}.faiss"
    with pickled.open("rb") as file:
        ids, documents = _documents(_load(file, pickled), pickled)
    vectors = _vectors(index_path, np.fromiter(ids, dtype=np.int64, count=len(ids)))
    core = FaissCore(vectors.shape[1], metric=metric, model=model_name_of(embedding))
    store = FAISS.from_core(core, embedding)
    store.add_embeddings(
        zip([document["page_content"] for document in documents], vectors, strict=True),
        [document["metadata"] for document in documents],
        ids=list(ids.values()),
    )
    return store


# What the pickle module raises on bytes that are no pickle, besides its own error.
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)


class _Record:
    """Stands for an object in the pickle: keeps its state and does nothing."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        # pydantic keeps the fields under "__dict__", an ordinary object is its fields.
        self.state = state.get("__dict__", state) if isinstance(state, dict) else {}


class _DocumentsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) in _KNOWN:
            return _Record
        msg = f"it names {module}.{name}, which is neither a document nor a docstore"
        raise pickle.UnpicklingError(msg)


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        return _DocumentsOnly(file).load()
    except _BROKEN as error:
        msg = f"{path} cannot be imported: {error}. Build the store again from the documents"
        raise StoreCorruptError(msg) from error


def _documents(content: Any, path: Path) -> tuple[dict[int, str], list[Mapping[str, Any]]]:
    """Id by position in the index, and the documents in that order."""
    docstore, ids = content if isinstance(content, tuple) and len(content) == 2 else (None, None)
    stored = docstore.state.get("_dict") if isinstance(docstore, _Record) else None
    if not isinstance(ids, dict) or not isinstance(stored, dict):
        msg = f"{path} does not hold a docstore and a table of ids, as LangChain's FAISS writes them"
        raise StoreCorruptError(msg)
    documents: list[Mapping[str, Any]] = []
    for id_ in ids.values():
        document = stored.get(id_)
        fields = document.state if isinstance(document, _Record) else {}
        if "page_content" not in fields:
            msg = f"{path} has no document for the id {id_!r}; build the store again from the documents"
            raise StoreCorruptError(msg)
        documents.append({"page_content": fields["page_content"], "metadata": fields.get("metadata") or {}})
    return ids, documents


def _vectors(path: Path, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Matrix:
    faiss = require("faiss", extra="faiss")
    try:
        with path.open("rb") as file:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        if hasattr(index, "make_direct_map"):  # an IVF index finds single vectors through it
            index.make_direct_map()
        vectors: Matrix = index.reconstruct_batch(positions)
    except RuntimeError as error:  # faiss raises nothing else
        msg = f"{path} cannot be imported: {last_line(error)}. Build the store again from the documents"
        raise StoreCorruptError(msg) from error
    return vectors
