"""FAISS on its roads out: to files and back, off the event loop, by arrays, and with the bundled model."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from character_embeddings import CharacterArrays, CharacterEmbeddings
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from luotuo_integrations.array_embeddings import gives_arrays
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreCorruptError, StoreMismatchError
from luotuo_integrations.store.vector_math import METRICS
from luotuo_integrations.vectorstores import FAISS

TEXTS = ["年假每年十五天", "病假需要医院证明", "出差住宿每晚五百元", "加班可以调休", "试用期三个月"]


def documents() -> list[Document]:
    departments = ["人事", "人事", "财务", "人事", "人事"]
    return [
        Document(page_content=text, metadata={"部门": department, "页": page}, id=f"d{page}")
        for page, (text, department) in enumerate(zip(TEXTS, departments, strict=True))
    ]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_save_and_load(metric: Any, tmp_path: Path) -> None:
    folder = tmp_path / "员工手册 索引"
    embedding = CharacterArrays()
    store = FAISS.from_documents(documents(), embedding, metric=metric, index_factory="IVF2,Flat")
    store.save_local(folder)
    for options in ({}, {"allow_dangerous_deserialization": True}, {"verify": True}, {"memory_map": False}):
        opened = FAISS.load_local(folder, embedding, **options)
        assert repr(opened) == repr(store)
        assert opened.similarity_search_with_score("出差", k=5) == store.similarity_search_with_score("出差", k=5)
    assert not list(folder.glob("*.pkl"))


def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    FAISS.from_texts(TEXTS, CharacterArrays(model="甲模型", fingerprint="一一")).save_local(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"'甲模型'.*'乙模型'"):
        FAISS.load_local(tmp_path, CharacterArrays(model="乙模型", fingerprint="二二"))
    with pytest.raises(StoreMismatchError, match=r"32 numbers.*gives 16"):
        FAISS.load_local(tmp_path, CharacterEmbeddings(16))
    with pytest.raises(TypeError, match="Embeddings object"):
        FAISS.load_local(tmp_path, None)  # type: ignore[arg-type]
    assert len(FAISS.load_local(tmp_path, CharacterArrays(model="改名", fingerprint="一一"))) == 5
    assert len(FAISS.load_local(tmp_path, CharacterEmbeddings(32))) == 5


def test_a_model_changed_under_an_open_store_is_noticed() -> None:
    embedding = CharacterEmbeddings()
    store = FAISS.from_texts(TEXTS, embedding)
    embedding.size = 16
    with pytest.raises(StoreMismatchError, match="gives 16"):
        store.similarity_search("年假")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    FAISS.from_texts(TEXTS, CharacterEmbeddings()).save_local(tmp_path)
    path = next(tmp_path.glob("index-*.faiss"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreCorruptError, match=path.name):
        FAISS.load_local(tmp_path, CharacterEmbeddings())


# -- off the event loop -----------------------------------------------------------------------------------------------


async def test_keyword_search_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FAISS.from_documents(documents(), CharacterEmbeddings())
    threads: set[int] = set()
    search = store.core.keyword_search

    def watched(*args: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return search(*args, **options)

    monkeypatch.setattr(store.core, "keyword_search", watched)
    found = await store.akeyword_search("年假每年几天", 2)
    assert found == store.keyword_search("年假每年几天", 2)
    assert found[0][0].page_content == TEXTS[0]
    assert threads - {threading.get_ident()}
    threads.clear()
    only = {"部门": "财务"}
    searches = (store.akeyword_search("出差年假", filter=only), store.akeyword_search("月球"))
    limited, none = await asyncio.gather(*searches)
    assert [document.id for document, _ in limited] == ["d2"]
    assert none == []
    assert threading.get_ident() not in threads
    with pytest.raises(TypeError, match="query is None"):
        await store.akeyword_search(None)  # type: ignore[arg-type]


async def test_asynchronous_calls_give_the_same_and_leave_the_loop_free() -> None:
    embedding = CharacterEmbeddings()
    store = await FAISS.afrom_documents(documents(), embedding)
    assert threading.get_ident() not in embedding.threads
    assert await store.asimilarity_search("出差住宿", k=2) == store.similarity_search("出差住宿", k=2)
    embedding.threads.clear()
    scored, relevant, diverse = await asyncio.gather(
        store.asimilarity_search_with_score("年假", k=3, filter={"部门": "人事"}),
        store.asimilarity_search_with_relevance_scores("年假", k=3, score_threshold=0.1),
        store.amax_marginal_relevance_search("年假", k=2, fetch_k=5, lambda_mult=0.2),
    )
    await store.aadd_texts(["报销要发票"], ids=["新"])
    await store.aadd_documents([Document(page_content="加班费", id="加")])
    assert threading.get_ident() not in embedding.threads
    assert scored == store.similarity_search_with_score("年假", k=3, filter={"部门": "人事"})
    assert len(relevant) == 3
    assert len(diverse) == 2
    assert [document.id for document in await store.aget_by_ids(["加", "新"])] == ["加", "新"]
    assert await store.adelete(["加"]) is True
    assert len(await store.as_retriever(search_kwargs={"k": 2}).ainvoke("年假")) == 2
    pairs = zip(TEXTS, embedding.embed_documents(TEXTS), strict=True)
    assert len(await FAISS.afrom_embeddings(pairs, embedding, metric="euclidean")) == 5
    with pytest.raises(TypeError, match="one string"):
        await store.asimilarity_search(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="knows no 'n'"):
        await store.asimilarity_search("年假", n=1)


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_embeddings_that_give_arrays_never_make_lists() -> None:
    embedding = CharacterArrays()
    assert gives_arrays(embedding)
    assert not gives_arrays(CharacterEmbeddings())
    assert not gives_arrays(DeterministicFakeEmbedding(size=4))
    store = FAISS.from_documents([*documents(), *documents()], embedding)
    assert embedding.encoded == 5  # a document given twice is embedded once
    assert store.similarity_search("出差住宿", k=1)[0].id == "d2"
    assert len(store.similarity_search_batch(TEXTS, k=2)) == 5


def test_from_documents_to_answer_with_the_bundled_model(tmp_path: Path) -> None:
    embedding = LuotuoEmbeddings()
    assert gives_arrays(embedding)
    store = FAISS.from_documents(documents(), embedding)
    assert store.similarity_search("生病请假要什么材料", k=1)[0].id == "d1"
    assert store.similarity_search("外地办事的酒店能报多少钱", k=1)[0].id == "d2"
    values = [value for _, value in store.similarity_search_with_relevance_scores("转正要多久", k=5)]
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < values[0] <= 1
    store.save_local(tmp_path)
    assert FAISS.load_local(tmp_path, LuotuoEmbeddings()).core.fingerprint == embedding.fingerprint
    with pytest.raises(StoreMismatchError, match="was built with the model"):
        FAISS.load_local(tmp_path, LuotuoEmbeddings(passage_prompt="文档："))
