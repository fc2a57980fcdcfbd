"""FAISS for LangChain: what its users type, what went wrong with the old class, and the road to the bundled model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from character_embeddings import CharacterArrays, CharacterEmbeddings
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, index

from luotuo_integrations.store.vector_math import METRICS
from luotuo_integrations.vectorstores import FAISS

TEXTS = ["年假每年十五天", "病假需要医院证明", "出差住宿每晚五百元", "加班可以调休", "试用期三个月"]


def documents() -> list[Document]:
    departments = ["人事", "人事", "财务", "人事", "人事"]
    return [
        Document(page_content=text, metadata={"部门": department, "页": page}, id=f"d{page}")
        for page, (text, department) in enumerate(zip(TEXTS, departments, strict=True))
    ]


@pytest.fixture
def store() -> FAISS:
    return FAISS.from_documents(documents(), CharacterEmbeddings())


# -- what users type --------------------------------------------------------------------------------------------------


def test_from_documents_and_search(store: FAISS) -> None:
    found = store.similarity_search("出差住宿", k=2)
    assert found[0] == documents()[2]
    assert len(found) == 2
    assert len(store) == 5
    assert repr(store) == "FAISS(5 documents, model='CharacterEmbeddings', metric='cosine', 'Flat')"


def test_documents_come_back_exactly_and_nothing_given_is_changed() -> None:
    given = documents()
    store = FAISS.from_documents(given, CharacterEmbeddings())
    given[0].metadata["页"] = "改"
    assert store.get_by_ids(["d0"]) == documents()[:1]
    store.similarity_search("年假")[0].metadata["页"] = "改"
    assert sorted(store.documents(), key=lambda document: str(document.id)) == documents()
    assert given[1:] == documents()[1:]


def test_from_texts_with_some_ids(store: FAISS) -> None:
    store = FAISS.from_texts(TEXTS[:2], CharacterEmbeddings(), [{"页": 1}, {"页": 2}], ids=["甲", None])  # type: ignore[list-item]
    assert store.get_by_ids(["甲"])[0].page_content == TEXTS[0]
    assert len({document.id for document in store.documents()}) == 2


@pytest.mark.parametrize("embedding", [CharacterEmbeddings(), CharacterArrays()])
def test_an_empty_store_works_and_grows(embedding: Embeddings, tmp_path: Path) -> None:
    for store in (FAISS(embedding), FAISS.from_documents([], embedding), FAISS.from_texts([], embedding)):
        assert store.similarity_search("年假") == []
        assert store.similarity_search_batch([]) == []
        assert store.max_marginal_relevance_search("年假") == []
        assert bool(store) is True
        store.save_local(tmp_path)
        opened = FAISS.load_local(tmp_path, embedding)
        opened.add_texts(["年假十五天"])
        assert opened.similarity_search("年假")[0].page_content == "年假十五天"


def test_from_embeddings_and_by_vector() -> None:
    embedding = CharacterEmbeddings()
    vectors = embedding.embed_documents(TEXTS)
    store = FAISS.from_embeddings(zip(TEXTS, vectors, strict=True), embedding, [{"页": i} for i in range(5)])
    assert store.add_embeddings([("新", np.ones(32))], ids=["新"]) == ["新"]
    query = embedding.embed_query("出差住宿每晚五百元")
    for vector in (query, np.array(query, dtype=np.float32)):
        assert store.similarity_search_by_vector(vector, k=1)[0].metadata == {"页": 2}
        document, score = store.similarity_search_with_score_by_vector(vector, k=1, filter={"页": {"$gt": 2}})[0]
        assert document.metadata["页"] > 2
        assert -1 <= score <= 1
        assert len(store.max_marginal_relevance_search_by_vector(vector, k=3)) == 3


def test_search_in_one_go_equals_one_by_one(store: FAISS) -> None:
    queries = ["出差", "年假", "试用期"]
    together = store.similarity_search_batch(queries, k=3, filter={"部门": "人事"})
    single = [store.similarity_search_with_score(query, 3, {"部门": "人事"}) for query in queries]
    assert [[document for document, _ in found] for found in together] == [[d for d, _ in found] for found in single]
    assert np.allclose([[s for _, s in found] for found in together], [[s for _, s in found] for found in single])


def test_filters_delete_and_upsert(store: FAISS) -> None:
    assert [document.id for document in store.similarity_search("年假", k=9, filter={"部门": "财务"})] == ["d2"]
    assert [document.id for document in store.similarity_search("年假", filter=lambda m: m["页"] == 4)] == ["d4"]
    assert store.delete(["d0", "没有"]) is True
    assert store.delete(filter={"部门": "财务"}) is True
    assert {document.id for document in store.documents()} == {"d1", "d3", "d4"}
    store.add_documents([Document(page_content="病假要医院证明", metadata={"版": 2}, id="d1")])
    assert store.get_by_ids(["d1"])[0].metadata == {"版": 2}
    assert len(store) == 3
    with pytest.raises(ValueError, match=r"clear\(\)"):
        store.delete()
    with pytest.raises(TypeError, match="give a list"):
        store.delete("d1")  # type: ignore[arg-type]
    store.clear()
    assert len(store) == 0


def test_merge_from_keeps_the_source(store: FAISS) -> None:
    other = FAISS.from_texts(["报销要发票", "新年假"], CharacterEmbeddings(), ids=["x", "d0"])
    with pytest.raises(ValueError, match="on_conflict"):
        store.merge_from(other)
    assert store.merge_from(other, on_conflict="skip") == ["x"]
    assert len(store) == 6
    assert other.similarity_search("报销", k=1)[0].id == "x"
    assert store.get_by_ids(["d0"])[0].page_content == TEXTS[0]


def test_langchains_index_function_keeps_the_store_in_step_with_its_source() -> None:
    store, records = FAISS(CharacterEmbeddings()), InMemoryRecordManager("手册")
    records.create_schema()
    given = [Document(page_content=text, metadata={"source": f"{i}.md"}) for i, text in enumerate(TEXTS)]
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(given, records, store, **options)["num_added"] == 5
    assert index(given[:3], records, store, **options) == {
        "num_added": 0,
        "num_updated": 0,
        "num_skipped": 3,
        "num_deleted": 2,
    }
    assert len(store) == 3


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("embedding", [CharacterEmbeddings(), CharacterArrays()])
def test_relevance_is_in_the_order_of_the_scores(metric: Any, embedding: Embeddings) -> None:
    store = FAISS.from_texts(TEXTS, embedding, metric=metric)
    scored = store.similarity_search_with_score("出差住宿每晚五百元", k=5)
    relevant = store.similarity_search_with_relevance_scores("出差住宿每晚五百元", k=5)
    assert [document for document, _ in scored] == [document for document, _ in relevant]
    values = [value for _, value in relevant]
    assert values == sorted(values, reverse=True)
    assert 0 <= min(values) < max(values) <= 1
    assert all(type(value) is float for value in values)
    scores = [score for _, score in scored]
    assert scores == sorted(scores, reverse=metric != "euclidean")
    if metric != "inner_product":
        assert scored[0][0].page_content == TEXTS[2]
        assert values[0] == pytest.approx(1.0, abs=1e-3)
    expected = {"cosine": 1.0, "euclidean": 0.0}
    if metric in expected:
        assert scores[0] == pytest.approx(expected[metric], abs=2e-3)


def test_the_models_own_relevance_is_used_for_cosine_only() -> None:
    scores = [0.5, 0.9]
    assert np.allclose(FAISS(CharacterArrays()).relevance(scores), [0.5**4, 0.9**4])
    assert np.allclose(FAISS(CharacterEmbeddings()).relevance(scores), [0.75, 0.95])
    assert np.allclose(FAISS(CharacterArrays(), metric="euclidean").relevance(scores), [1 / 1.5, 1 / 1.9])


def test_retrievers(store: FAISS) -> None:
    assert [document.id for document in store.as_retriever(search_kwargs={"k": 1}).invoke("试用期三个月")] == ["d4"]
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 4, "lambda_mult": 0.3})
    assert len(diverse.invoke("年假")) == 2
    strict = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.999, "filter": {"部门": "人事"}}
    )
    assert [document.id for document in strict.invoke(TEXTS[0])] == ["d0"]
    assert strict.invoke(TEXTS[2]) == []


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_arguments_are_refused_with_the_allowed_ones(store: FAISS) -> None:
    with pytest.raises(TypeError, match=r"knows no 'metrc'; allowed: ids, metric, index_factory"):
        FAISS.from_texts(TEXTS, CharacterEmbeddings(), metrc="cosine")
    with pytest.raises(TypeError, match=r"'distance_strategy'.*metric='cosine'"):
        FAISS.from_documents(documents(), CharacterEmbeddings(), distance_strategy="COSINE")
    with pytest.raises(TypeError, match="knows no 'n'"):
        store.similarity_search("年假", n=3)
    with pytest.raises(TypeError, match="applied before the search"):
        store.as_retriever(search_kwargs={"fetch_k": 50}).invoke("年假")
    with pytest.raises(TypeError, match="similarity_search_with_relevance_scores"):
        store.similarity_search_with_score("年假", score_threshold=0.5)
    with pytest.raises(TypeError, match="'where'"):
        store.max_marginal_relevance_search("年假", where={})
    with pytest.raises(TypeError, match="knows no 'force'; allowed: ids, filter"):
        store.delete(["d1"], force=True)
    with pytest.raises(TypeError, match="knows no 'unknown'"):
        store.add_documents(documents(), unknown=1)


def test_bad_input_is_refused_before_anything_is_embedded() -> None:
    embedding = CharacterArrays()
    store = FAISS(embedding, index_factory="IVF4,Flat")
    for call in (
        lambda: store.add_texts("年假"),
        lambda: store.add_texts(["年假", None]),  # type: ignore[list-item]
        lambda: store.add_texts(TEXTS, [{}]),
        lambda: store.add_texts(TEXTS, [{"日": object()}] * 5),
        lambda: store.add_texts(TEXTS, ids=["一"]),
        lambda: store.add_texts(TEXTS[:3]),  # too few to train on
        lambda: FAISS.from_texts(TEXTS, embedding, index_factory="IVF5,PQ3"),  # 32 is no multiple of 3
        lambda: FAISS.from_texts(TEXTS, embedding, metric="cos"),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert embedding.encoded == 0
    assert len(store) == 0
    store.add_texts(TEXTS)
    assert len(store) == 5


def test_bad_queries_and_numbers(store: FAISS) -> None:
    for query in (None, 3, ["年假"], b"x"):
        with pytest.raises(TypeError, match=r"query is .*it must be one string"):
            store.similarity_search(query)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"texts\[1\] is None"):
        store.similarity_search_batch(["年假", None])  # type: ignore[list-item]
    for k in (0, -3):
        with pytest.raises(ValueError, match="1 or more"):
            store.similarity_search("年假", k=k)
    assert len(store.similarity_search("年假", k=10_000)) == 5
    assert len(store.similarity_search("")) == 4


@pytest.mark.parametrize("embedding", [None, "luotuo", FAISS, lambda text: [0.0]])
def test_what_is_no_embeddings_object_is_refused(embedding: Any) -> None:
    with pytest.raises(TypeError, match=r"Embeddings object, for instance LuotuoEmbeddings\(\)"):
        FAISS(embedding)


def test_an_embedding_that_gives_wrong_vectors_changes_nothing(monkeypatch: pytest.MonkeyPatch, store: FAISS) -> None:
    for vectors, words in (
        ([[float("nan")] * 32], r"vectors\[0\] holds NaN"),
        ([[1.0] * 31], r"shape \(1, 31\)"),
        ([], "0 vectors for 1 texts"),
        ([["a"] * 32], "floats"),
    ):
        monkeypatch.setattr(CharacterEmbeddings, "embed_documents", lambda self, texts, given=vectors: given)
        with pytest.raises((TypeError, ValueError), match=words):
            store.add_texts(["新"])
    assert len(store) == 5


def test_faiss_that_is_not_installed_is_named_before_anything_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = CharacterArrays()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"luotuo-integrations\[faiss\]"):
        FAISS.from_texts(TEXTS, embedding)
    assert embedding.encoded == 0
