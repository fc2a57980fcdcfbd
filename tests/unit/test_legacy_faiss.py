"""Import of LangChain's old folders: documents come over, nothing in the pickle is run."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from luotuo_integrations.errors import StoreCorruptError, StoreMismatchError
from luotuo_integrations.legacy_faiss import import_langchain_faiss

TEXTS = ["年假十五天", "病假要证明", "出差住宿五百元"]
EMBEDDING = DeterministicFakeEmbedding(size=8)
MODULE = "langchain_community.docstore.in_memory"


@pytest.fixture
def docstore(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class under the name that LangChain's pickles hold, so that one can be written without LangChain's package."""
    module = types.ModuleType(MODULE)

    class InMemoryDocstore:
        def __init__(self, documents: dict[str, Any]) -> None:
            self._dict = documents

    InMemoryDocstore.__module__, InMemoryDocstore.__qualname__ = MODULE, "InMemoryDocstore"
    module.InMemoryDocstore = InMemoryDocstore  # type: ignore[attr-defined]
    for name in ("langchain_community", "langchain_community.docstore"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, module)
    return InMemoryDocstore


def vectors() -> npt.NDArray[np.float32]:
    return np.array(EMBEDDING.embed_documents(TEXTS), dtype=np.float32)


def write(folder: Path, content: Any, index: Any = None, protocol: int = 4) -> Path:
    if index is None:
        index = faiss.IndexFlatL2(8)
        index.add(vectors())
    faiss.write_index(index, str(folder / "index.faiss"))
    (folder / "index.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def documents() -> dict[str, Document]:
    return {f"id{i}": Document(id=f"id{i}", page_content=text, metadata={"页": i}) for i, text in enumerate(TEXTS)}


@pytest.mark.parametrize("protocol", [4, 5])
def test_documents_ids_and_vectors_come_over(docstore: Any, tmp_path: Path, protocol: int) -> None:
    write(tmp_path, (docstore(documents()), {i: f"id{i}" for i in range(3)}), protocol=protocol)
    del sys.modules[MODULE]  # nothing of LangChain's is imported to read it
    store = import_langchain_faiss(tmp_path, EMBEDDING, metric="euclidean")
    assert store.documents() == list(documents().values())
    assert np.allclose(store.core.vectors(["id0", "id1", "id2"]), vectors())
    assert store.similarity_search("病假要证明", k=1)[0].id == "id1"
    store.save_local(tmp_path / "新")


def test_deleted_rows_and_ivf_indexes(docstore: Any, tmp_path: Path) -> None:
    index = faiss.index_factory(8, "IVF1,Flat")
    index.train(vectors())
    index.add(vectors())
    write(tmp_path, (docstore(documents()), {0: "id2", 2: "id0"}), index)
    store = import_langchain_faiss(tmp_path, EMBEDDING, metric="inner_product")
    assert [document.id for document in store.documents()] == ["id2", "id0"]
    assert np.allclose(store.core.vectors(["id2", "id0"]), vectors()[[0, 2]])


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self._reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, __import__, print, set])
def test_a_pickle_that_would_run_something_is_refused(call: Any, docstore: Any, tmp_path: Path) -> None:
    marker = tmp_path / "发作"
    arguments = (f"touch '{marker}'",) if call is os.system else (f"open({str(marker)!r}, 'w')",)
    for content in (Evil(call, *arguments), (docstore({"id0": Evil(call, *arguments)}), {0: "id0"})):
        write(tmp_path, content)
        with pytest.raises(StoreCorruptError, match="which is neither a document nor a docstore"):
            import_langchain_faiss(tmp_path, EMBEDDING)
    assert not marker.exists()


def test_what_is_no_such_folder_is_refused(docstore: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        import_langchain_faiss(tmp_path, EMBEDDING)
    table = {i: f"id{i}" for i in range(3)}
    for content in (None, 7, (), ({}, {}), (docstore(documents()), None), (docstore(documents()), {0: "别的"})):
        write(tmp_path, content)
        with pytest.raises(StoreCorruptError):
            import_langchain_faiss(tmp_path, EMBEDDING)
    write(tmp_path, (docstore(documents()), {**table, 3: "id0"}))  # a row that the index does not have
    with pytest.raises(StoreCorruptError, match=r"index\.faiss cannot be imported"):
        import_langchain_faiss(tmp_path, EMBEDDING)
    write(tmp_path, (docstore(documents()), table))
    with pytest.raises(StoreMismatchError, match="8"):
        import_langchain_faiss(tmp_path, DeterministicFakeEmbedding(size=4))
    for damaged in (b"", b"\x80\x04", b"no pickle", (tmp_path / "index.pkl").read_bytes()[:-20]):
        (tmp_path / "index.pkl").write_bytes(damaged)
        with pytest.raises(StoreCorruptError, match="cannot be imported"):
            import_langchain_faiss(tmp_path, EMBEDDING)
