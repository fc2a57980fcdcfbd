"""Bad input to stores, documents, splitters and keyword search: a clear error, and nothing lost.

docs/bad-input.md says which test shows what, those of other files too.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from character_embeddings import CharacterArrays, CharacterEmbeddings
from chromadb.api.shared_system_client import SharedSystemClient
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from luotuo_integrations.chroma import Chroma, collection_slug
from luotuo_integrations.documents import load_documents
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import DocumentError, ModelNotFoundError, StoreMismatchError
from luotuo_integrations.llama_chroma import llama_chroma_store
from luotuo_integrations.llama_stores import FaissVectorStore
from luotuo_integrations.local_chat import local_chat_model
from luotuo_integrations.node_parser import ChineseNodeParser
from luotuo_integrations.parsing.formats import read_docx, read_html
from luotuo_integrations.parsing.pdf import read_pdf
from luotuo_integrations.retrieval import BM25Retriever, character_bigrams, words
from luotuo_integrations.splitter import ChineseTextSplitter
from luotuo_integrations.store.batch import check_documents, check_ids
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.vectorstores import FAISS

TEXTS = ["年假每年十五天", "病假需要医院证明"]
LONG = "长" * 100_000
NAN = [float("nan")] * 32


@pytest.fixture(params=[CharacterEmbeddings, CharacterArrays])
def store(request: pytest.FixtureRequest) -> FAISS:
    return FAISS.from_texts(TEXTS, request.param(), ids=["a", "b"])


@pytest.fixture
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(model=str(tiny_folder), device="cpu")


@pytest.fixture
def _fresh_chroma() -> Any:
    yield
    SharedSystemClient.clear_system_cache()


# -- FAISS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [None, 3, "裸字符串", b"x", {"甲": 1}, {"甲", "乙"}, [None], [3], [["甲"]]])
def test_what_is_no_list_of_texts_is_refused_and_nothing_added(store: FAISS, texts: Any) -> None:
    with pytest.raises(TypeError, match=r"give a list, for one: \[text\]|texts\[0\] is"):
        store.add_texts(texts)
    assert len(store) == 2


@pytest.mark.parametrize("queries", [None, 3, "年假病假"])
def test_a_bare_string_is_not_searched_character_by_character(store: FAISS, queries: Any) -> None:
    with pytest.raises(TypeError, match="give a list of strings"):
        store.similarity_search_batch(queries)


@pytest.mark.parametrize("query", ["", "  ", "\ud800", LONG])
async def test_every_string_is_a_query(store: FAISS, query: str) -> None:
    assert len(store.similarity_search(query)) == 2
    assert len(await store.asimilarity_search(query)) == 2


@pytest.mark.parametrize("query", [None, 3, ["年假"]])
async def test_what_is_no_query_is_refused_on_every_road(store: FAISS, query: Any) -> None:
    roads: list[Callable[[Any], Any]] = [store.similarity_search, store.max_marginal_relevance_search]
    for road in roads:
        with pytest.raises(TypeError, match="it must be one string"):
            road(query)
    for slow in (store.asimilarity_search, store.amax_marginal_relevance_search):
        with pytest.raises(TypeError, match="it must be one string"):
            await slow(query)


@pytest.mark.parametrize("documents", [None, "文档", ["文档"], ([Document("文档")], []), Document("文档")])
def test_what_is_no_list_of_documents_is_refused(store: FAISS, documents: Any) -> None:
    with pytest.raises(TypeError, match=r"documents\[0\] is .*from_texts.*load_documents"):
        store.add_documents(documents)
    with pytest.raises(TypeError, match=r"documents\[0\] is"):
        FAISS.from_documents(documents, CharacterEmbeddings())
    assert len(store) == 2


def test_documents_may_come_from_an_iterator(store: FAISS) -> None:
    assert store.add_documents(Document(text, metadata={"页": 1}) for text in TEXTS)  # type: ignore[arg-type]
    assert [document.metadata for document in store.documents()] == [{}, {}, {"页": 1}, {"页": 1}]


@pytest.mark.parametrize("pairs", [["年假"], ["病假条"], [("年假",)], [("年假", [1.0], {})], [3]])
def test_what_are_no_pairs_is_refused(store: FAISS, pairs: Any) -> None:
    with pytest.raises(TypeError, match=r"text_embeddings\[0\] is .*give pairs \(text, vector\)"):
        store.add_embeddings(pairs)
    assert len(store) == 2


@pytest.mark.parametrize("vector", [NAN, [1.0] * 31, [], None, "x", [[1.0] * 32]])
def test_a_bad_vector_is_refused_on_every_road(store: FAISS, vector: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="queries"):
        store.similarity_search_by_vector(vector)
    with pytest.raises((TypeError, ValueError), match="queries"):
        store.max_marginal_relevance_search_by_vector(vector)
    with pytest.raises((TypeError, ValueError), match="vectors"):
        store.add_embeddings([("年假", vector)])
    assert len(store) == 2


def test_ids_may_be_asked_for_as_a_set_but_texts_have_an_order() -> None:
    assert sorted(check_ids({"甲", "乙"})) == sorted(["甲", "乙"])
    with pytest.raises(TypeError, match=r"ids is set.*give a list, for one: \[id\]"):
        check_documents(["甲"], ids={"一"})  # type: ignore[arg-type]


def test_a_file_in_place_of_a_folder_is_named(store: FAISS, tmp_path: Path) -> None:
    file = tmp_path / "手册.txt"
    file.write_text("试用期", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="is a file; a store is a folder: give the folder"):
        store.save_local(file)
    with pytest.raises(NotADirectoryError, match="is a file; a store is a folder: give the folder"):
        FAISS.load_local(file, CharacterEmbeddings())
    assert file.read_text(encoding="utf-8") == "试用期"


def test_a_full_disk_names_the_folder(monkeypatch: pytest.MonkeyPatch, store: FAISS, tmp_path: Path) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() raises it, without a file name

    monkeypatch.setattr(VectorIndex, "write", no_space)
    with pytest.raises(OSError, match=r"No space left.*向量库") as caught:
        store.save_local(tmp_path / "向量库")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "向量库").iterdir()] == ["save.lock"]


def test_the_old_argument_index_name_gets_a_hint(store: FAISS, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"index_name.*give each store a folder of its own"):
        store.save_local(tmp_path / "库", index_name="手册")
    with pytest.raises(TypeError, match=r"index_name.*give each store a folder of its own"):
        FAISS.load_local(tmp_path / "库", CharacterEmbeddings(), index_name="手册")
    assert not (tmp_path / "库").exists()


# -- FaissVectorStore -------------------------------------------------------------------------------------------------


def test_deleting_no_document_deletes_nothing() -> None:
    langchain_store = FAISS.from_texts(TEXTS, CharacterArrays())  # its documents have no ref_doc_id
    store = FaissVectorStore.from_core(langchain_store.core)
    for ref_doc_id in (None, 3):
        with pytest.raises(TypeError, match="ref_doc_id is"):
            store.delete(ref_doc_id)  # type: ignore[arg-type]
    assert len(store) == 2


@pytest.mark.parametrize("model", ["luotuo", 384, object()])
def test_what_is_no_embedding_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"give LuotuoEmbeddings\(\).*index_factory"):
        FaissVectorStore(model)


# -- Chroma -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_fresh_chroma")
def test_chroma_refuses_vectors_that_it_cannot_compare(embeddings: LuotuoEmbeddings, tmp_path: Path) -> None:
    store = Chroma.from_texts(TEXTS, embeddings, ids=["甲乙", "丙"], persist_directory=tmp_path / "库")
    for vector in ([float("nan")] * 24, [1.0] * 3, None):
        with pytest.raises((TypeError, ValueError), match="queries"):
            store.similarity_search_by_vector(vector)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match="queries"):
            store.max_marginal_relevance_search_by_vector(vector)  # type: ignore[arg-type]
    vector = embeddings.embed_query(TEXTS[0])
    assert len(store.similarity_search_by_vector(vector, k=1)) == 1
    assert len(store.max_marginal_relevance_search_by_vector(vector, 1)) == 1
    with pytest.raises(TypeError, match="give a list"):
        store.get_by_ids("甲乙")
    nodes = llama_chroma_store("节点", embeddings, persist_directory=tmp_path / "库")
    nodes.add([TextNode(text=TEXTS[0], embedding=vector)])
    with pytest.raises(ValueError, match="NaN"):
        nodes.query(VectorStoreQuery(query_embedding=[float("nan")] * 24))
    with pytest.raises(StoreMismatchError, match="3 numbers"):
        nodes.query(VectorStoreQuery(query_embedding=[1.0] * 3))


def test_chroma_is_not_opened_where_it_would_lose_its_data(
    embeddings: LuotuoEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "文件").write_text("试用期", encoding="utf-8")
    for opened in (
        lambda folder: Chroma("手册", embeddings, persist_directory=folder),
        lambda folder: llama_chroma_store("手册", embeddings, persist_directory=folder),
    ):
        with pytest.raises(ValueError, match="persist_directory=''; give a folder"):
            opened("")
        with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
            opened(tmp_path / "文件")
    assert [path.name for path in tmp_path.iterdir()] == ["文件"]


def test_a_collection_name_must_be_text_that_can_be_written() -> None:
    with pytest.raises(ValueError, match="collection_name holds a lone surrogate"):
        collection_slug("\ud800手册")


# -- documents, splitters, keyword search -----------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["长", "。", "a", " ", "\n", "（", "“", "- 项\n", "| 甲 | 乙\n", "```\n", "第一条 "])
def test_a_long_text_of_anything_is_split_without_loss(mark: str) -> None:
    text = (mark * 100_000)[:100_000]
    chunks = ChineseTextSplitter(400, 0).split_text(text)
    assert all(len(chunk) <= 400 for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split())


@pytest.mark.parametrize("texts", [None, 3, "裸字符串"])
def test_a_bare_string_is_not_split_character_by_character(texts: Any) -> None:
    with pytest.raises(TypeError, match="give a list of strings"):
        ChineseTextSplitter().create_documents(texts)


@pytest.mark.parametrize("text", [None, 3, [], ["试用期"], b"x"])
def test_what_is_no_text_is_not_split_nor_searched(text: Any) -> None:
    retriever = BM25Retriever.from_documents([Document("试用期为三个月")])
    for split in (ChineseTextSplitter().split_text, ChineseNodeParser().split_text):
        with pytest.raises(TypeError, match="text must be a string"):
            split(text)
    for tokens in (words, character_bigrams, retriever.invoke):
        with pytest.raises(TypeError, match="it must be one string"):
            tokens(text)


@pytest.mark.parametrize("query", ["", " \n", "\ud800", LONG])
def test_a_query_without_known_words_finds_nothing(query: str) -> None:
    assert BM25Retriever.from_documents([Document("试用期为三个月"), Document("")]).invoke(query) == []


def test_an_empty_path_is_not_taken_for_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "手册.txt").write_text("试用期为三个月。", encoding="utf-8")
    with pytest.raises(ValueError, match="path is ''"):
        load_documents("")
    assert len(load_documents(".").documents) == 1
    for name in ("", "模型/没有"):
        with pytest.raises(ModelNotFoundError, match="there is no folder"):
            local_chat_model(name)


@pytest.mark.parametrize(
    ("missing", "read"),
    [("bs4", lambda: read_html("<p>")), ("docx", lambda: read_docx(b"")), ("pypdf", lambda: read_pdf(b""))],
)
def test_a_missing_reader_names_its_extra(
    missing: str, read: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'luotuo-integrations\[docs\]'"):
        read()


def test_a_folder_of_unreadable_files_tells_the_first_reason(tmp_path: Path) -> None:
    for name, data in (
        ("空.txt", b""),
        ("白.md", "　\n ".encode()),
        ("坏.pdf", b"%PDF-1.4"),
        ("坏.docx", b"PK\x03\x04"),
    ):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DocumentError, match=r"None of the 4 files.*the first: Cannot read"):
        load_documents(tmp_path)
    shutil.copy(Path(__file__), tmp_path / "好.txt")
    documents, problems = load_documents(tmp_path)
    assert [document.metadata["source"] for document in documents] == ["好.txt"]
    assert {problem.source for problem in problems} == {"空.txt", "白.md", "坏.pdf", "坏.docx"}


@pytest.mark.parametrize(("opening", "item"), [("<ul>", "<li>项"), ("<table>", "<tr><td>甲<td>乙")])
def test_the_work_on_elements_left_open_grows_with_their_number(opening: str, item: str) -> None:
    def work(count: int) -> int:
        calls = 0

        def count_call(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            text = read_html(opening + item * count).text
        finally:
            sys.setprofile(None)
        assert text.count("\n") == count - 1
        return calls

    read_html(opening + item)  # what is imported and compiled once
    assert work(1600) < 6 * work(400)  # 4 times as many; the square would be 16


def test_numbers_of_numpy_are_numbers(store: FAISS) -> None:
    assert len(store.similarity_search("年假", k=np.int64(1))) == 1
