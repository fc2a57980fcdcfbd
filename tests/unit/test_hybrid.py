"""Vectors and keywords together: the search itself, and its LangChain and LlamaIndex faces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from luotuo_integrations import FAISS, FaissVectorStore, LuotuoEmbeddings
from luotuo_integrations.fusion import fuse
from luotuo_integrations.hybrid_retriever import HybridRetriever
from luotuo_integrations.hybrid_search import HybridSettings, hybrid_search
from luotuo_integrations.llama_hybrid import HybridNodeRetriever
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.store.core import FaissCore

TEXTS = [
    "型号 XK-2093 的打印机卡纸时，先打开后盖。",
    "打印机没有墨了，请联系行政部更换。",
    "试用期员工可以请年假，一年五天。",
    "出差住宿标准为每晚不超过四百五十元。",
    "丢失电脑要在两小时内上报信息安全部。",
    "报销单据须在一个月内提交。",
]
PAGES = [{"页": number} for number in range(len(TEXTS))]


@pytest.fixture(scope="module")
def embeddings() -> LuotuoEmbeddings:
    return LuotuoEmbeddings("luotuo-tiny", device="cpu", dtype="float32")


@pytest.fixture
def store(embeddings: LuotuoEmbeddings) -> FAISS:
    return FAISS.from_texts(TEXTS, embeddings, PAGES, ids=[f"第{number}段" for number in range(len(TEXTS))])


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("fetch_k", [1, 2, 100])
def test_calibrated_scores_equal_a_naive_loop(
    embeddings: LuotuoEmbeddings, weights: tuple[float, float], metric: Any, fetch_k: int
) -> None:
    store = FAISS.from_texts(TEXTS, embeddings, metric=metric)
    query = "打印机 XK-2093 没有墨了怎么办"
    vector, vectors = embeddings.encode([query], "query")[0], embeddings.encode(TEXTS)

    def nearness(first: Any, second: Any) -> float:
        return -float(np.linalg.norm(first - second)) if metric == "euclidean" else float(first @ second)

    pairs = [nearness(vectors[one], vectors[other]) for one in range(6) for other in range(one)]
    near = {text: nearness(vector, one) for text, one in zip(TEXTS, vectors, strict=True)}
    held = {text: score for document, score in store.keyword_search(query, 6) if (text := document.page_content)}
    coverage = {text: held.get(text, 0.0) / store.core.keyword_ceiling(query) for text in TEXTS}
    share = weights[1] * 13 * float(np.std(pairs))
    share = weights[1] / sum(weights) if 0 in weights else share / (weights[0] + share)
    expected = {text: (1 - share) * near[text] + share * coverage[text] for text in TEXTS}
    pool = set(sorted(near, key=lambda text: -near[text])[:fetch_k] if weights[0] else [])
    pool |= set(sorted(held, key=lambda text: -held[text])[:fetch_k] if weights[1] else [])
    settings = HybridSettings(weights, fetch_k=fetch_k)
    found = hybrid_search(store.core, vector, query, 1, settings=settings)
    assert found[0].content == max(pool, key=lambda text: expected[text])
    assert found[0].score == pytest.approx(expected[found[0].content], abs=1e-5)
    if fetch_k == 100:
        found = hybrid_search(store.core, vector, query, 6, settings=settings)
        assert {hit.content for hit in found} == pool
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        assert {hit.content: hit.score for hit in found} == pytest.approx(
            {text: expected[text] for text in pool}, abs=1e-5
        )


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_what_one_side_alone_finds_gets_the_others_score(metric: Any) -> None:
    """Five documents of two numbers; the nearest holds a word of the query, and the one that holds all is far off."""
    core = FaissCore(2, metric=metric)
    angles = (0.05, 0.3, 0.9, 1.2, 2.0)
    vectors = [[np.cos(angle), np.sin(angle)] for angle in angles]
    texts = ["年假天数", "发票", "食堂", "年假天数怎么算", "停车"]
    core.add(np.array(vectors, np.float32), texts, ids=list("甲乙丙丁戊"))
    query, text = np.array([1.0, 0.0], np.float32), "年假天数怎么算"
    everything = hybrid_search(core, query, text, 5)
    scores = {hit.id: hit.score for hit in everything}
    for weights in ((0.5, 0.5), (0.99, 0.01), (0.01, 0.99)):
        settings = HybridSettings(weights, fetch_k=1)
        found = hybrid_search(core, query, text, 1, settings=settings)[0]
        whole = {hit.id: hit.score for hit in hybrid_search(core, query, text, 5, settings=HybridSettings(weights))}
        assert found.id == ("丁" if weights[1] == 0.99 else "甲" if weights[0] == 0.99 else max(scores, key=scores.get))  # type: ignore[arg-type]
        assert found.score == pytest.approx(whole[found.id], abs=1e-6)  # as if both searches had found it


def test_documents_deleted_meanwhile_are_left_out(store: FAISS, monkeypatch: pytest.MonkeyPatch) -> None:
    search = FaissCore.keyword_search

    def delete_after(self: FaissCore, *arguments: Any, **named: Any) -> Any:
        hits = search(self, *arguments, **named)
        self.delete(["第0段"])
        return hits

    monkeypatch.setattr(FaissCore, "keyword_search", delete_after)
    retriever = HybridRetriever.from_store(store, k=3, lambda_mult=0.5)
    found = retriever.invoke("型号 XK-2093 的打印机卡纸")
    assert len(found) == 3
    assert "第0段" not in [document.id for document in found]


def test_the_spread_follows_the_documents(embeddings: LuotuoEmbeddings, store: FAISS) -> None:
    def naive(texts: list[str]) -> float:
        vectors = embeddings.encode(texts)
        return float(np.std([vectors[one] @ vectors[other] for one in range(len(texts)) for other in range(one)]))

    assert store.core.spread() == pytest.approx(naive(TEXTS), abs=1e-6)
    store.add_texts(["新的一段"], ids=["新"])
    assert store.core.spread() == pytest.approx(naive([*TEXTS, "新的一段"]), abs=1e-6)
    store.delete(["新", "第0段"])
    assert store.core.spread() == pytest.approx(naive(TEXTS[1:]), abs=1e-6)
    store.core.clear()
    assert store.core.spread() == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_documents_are_enough(embeddings: LuotuoEmbeddings, count: int) -> None:
    retriever = HybridRetriever.from_store(FAISS.from_texts(TEXTS[:count], embeddings), k=1)
    assert retriever.invoke("型号 XK-2093")[0].page_content == TEXTS[0]


@pytest.mark.parametrize("method", ["weighted", "reciprocal_rank"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_ranking_is_the_fusion_of_both(embeddings: LuotuoEmbeddings, method: Any, metric: Any) -> None:
    store = FAISS.from_texts(TEXTS, embeddings, PAGES, metric=metric)
    query, weights = "打印机 XK-2093 怎么办", (0.7, 0.3)
    vector = embeddings.encode([query], "query")[0]
    near = store.core.search(vector[None], len(TEXTS))[0]
    matching = store.core.keyword_search(query, len(TEXTS))
    sign = -1 if metric == "euclidean" else 1
    expected = fuse(
        [{hit.id: sign * hit.score for hit in near}, {hit.id: hit.score for hit in matching}], weights, method=method
    )
    found = hybrid_search(store.core, vector, query, 3, settings=HybridSettings(weights, method))
    assert [(hit.id, hit.score) for hit in found] == [(key, pytest.approx(score)) for key, score in expected[:3]]
    by_id = {hit.id: hit for hit in near}
    assert [(hit.content, hit.metadata) for hit in found] == [
        (by_id[hit.id].content, by_id[hit.id].metadata) for hit in found
    ]


def test_a_code_is_found_by_its_characters_and_a_paraphrase_by_its_meaning(store: FAISS) -> None:
    retriever = HybridRetriever.from_store(store, k=1)
    assert retriever.invoke("XK-2093")[0].page_content == TEXTS[0]
    assert retriever.invoke("笔记本被偷了该怎么办")[0].page_content == TEXTS[4]


def test_weights_of_one_side_alone_give_its_order(store: FAISS) -> None:
    query = "打印机卡纸"
    by_vector = [document.page_content for document in store.similarity_search(query, 6)]
    by_words = [document.page_content for document, _ in store.keyword_search(query, 6)]
    assert [
        one.page_content for one in HybridRetriever.from_store(store, k=6, weights=(1, 0)).invoke(query)
    ] == by_vector
    found = [one.page_content for one in HybridRetriever.from_store(store, k=6, weights=(0, 1)).invoke(query)]
    assert found == by_words


def test_a_filter_limits_both_sides(store: FAISS) -> None:
    retriever = HybridRetriever.from_store(store, k=6, filter={"页": {"$gte": 2}})
    found = retriever.invoke("打印机 XK-2093")
    assert {document.metadata["页"] for document in found} == {2, 3, 4, 5}


def test_diversity_after_the_fusion(store: FAISS) -> None:
    store.add_texts([TEXTS[0]], [{"页": 99}], ids=["重复"])
    query = "型号 XK-2093 的打印机卡纸"
    plain = [one.metadata["页"] for one in HybridRetriever.from_store(store, k=2).invoke(query)]
    assert set(plain) == {0, 99}
    diverse = [one.metadata["页"] for one in HybridRetriever.from_store(store, k=2, lambda_mult=0.3).invoke(query)]
    assert diverse[0] in {0, 99}
    assert diverse[1] not in {0, 99}
    alike = [one.metadata["页"] for one in HybridRetriever.from_store(store, k=2, lambda_mult=1).invoke(query)]
    assert set(alike) == {0, 99}


def test_changes_and_files_keep_both_sides(store: FAISS, tmp_path: Path, embeddings: LuotuoEmbeddings) -> None:
    retriever = HybridRetriever.from_store(store, k=1)
    assert retriever.invoke("ZQ-7")[0].page_content != "备用电池的编号是 ZQ-7。"
    store.add_texts(["备用电池的编号是 ZQ-7。"], ids=["电池"])
    assert retriever.invoke("ZQ-7")[0].id == "电池"
    store.save_local(str(tmp_path / "库"))
    again = FAISS.load_local(str(tmp_path / "库"), embeddings)
    assert HybridRetriever.from_store(again, k=1).invoke("ZQ-7")[0].id == "电池"
    store.delete(["电池"])
    assert retriever.invoke("ZQ-7")[0].id != "电池"


class Backwards(BaseDocumentCompressor):
    """The other way round, so that a test sees who was asked."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> list[Document]:
        return list(documents)[::-1]


async def test_a_reranker_has_the_last_word(store: FAISS) -> None:
    plain = HybridRetriever.from_store(store, k=5).invoke("打印机卡纸")
    retriever = HybridRetriever.from_store(store, k=2, rerank=Backwards(), rerank_k=5)
    expected = [document.id for document in plain[::-1][:2]]
    assert [document.id for document in retriever.invoke("打印机卡纸")] == expected
    assert [document.id for document in await retriever.ainvoke("打印机卡纸")] == expected


async def test_the_asynchronous_road_finds_the_same(store: FAISS) -> None:
    retriever = HybridRetriever.from_store(store)
    assert await retriever.ainvoke("住宿标准", k=2) == retriever.invoke("住宿标准", k=2)
    scores = [score for _, score in retriever.search_with_score("住宿标准")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4


async def test_a_query_mapper_moves_the_vectors_of_the_hybrid_search(embeddings: LuotuoEmbeddings) -> None:
    turn = np.eye(embeddings.dimension, dtype=np.float32)[::-1] - np.eye(embeddings.dimension, dtype=np.float32)
    mapper = LinearQueryMapper(turn, turn[0] * 0, embeddings.model, embeddings.fingerprint)
    store = FAISS.from_texts(TEXTS, embeddings.model_copy(update={"mapper": mapper}))
    query = "出差住宿标准"
    vector = mapper(embeddings.encode([query], "query"))[0]
    expected = [hit.id for hit in hybrid_search(store.core, vector, query, 4)]
    assert expected != [hit.id for hit in hybrid_search(store.core, embeddings.encode([query], "query")[0], query, 4)]
    retriever = HybridRetriever.from_store(store)
    assert [document.id for document in retriever.invoke(query)] == expected
    assert [document.id for document in await retriever.ainvoke(query)] == expected


def test_an_empty_store_finds_nothing(embeddings: LuotuoEmbeddings) -> None:
    retriever = HybridRetriever.from_store(FAISS.from_texts([], embeddings))
    assert retriever.invoke("年假") == []


def test_bad_input_is_refused(store: FAISS) -> None:
    with pytest.raises(TypeError, match="store is str; give a FAISS store"):
        HybridRetriever.from_store("库")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not all 0"):
        HybridRetriever.from_store(store, weights=(0, 0))
    with pytest.raises(ValueError, match="lambda_mult=2"):
        HybridRetriever.from_store(store, lambda_mult=2)
    with pytest.raises(ValueError, match="fetch_k=0"):
        HybridSettings(fetch_k=0)
    with pytest.raises(ValueError, match="method='sum' is unknown; use one of 'calibrated', 'weighted'"):
        HybridSettings(method="sum")  # type: ignore[arg-type]
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k={k} must be 1 or more"):
            HybridRetriever.from_store(store, rerank=Backwards()).invoke("年假", k=k)
        with pytest.raises(ValueError, match=f"k={k} must be 1 or more"):
            HybridRetriever.from_store(store).search_with_score("年假", k)
    with pytest.raises(ValueError, match="k=0 must be 1 or more"):
        hybrid_search(store.core, np.zeros(384, np.float32), "年假", 0)
    with pytest.raises(TypeError, match="must be one string"):
        HybridRetriever.from_store(store).search_with_score(["年假"])  # type: ignore[arg-type]


# -- LlamaIndex -------------------------------------------------------------------------------------------------------


@pytest.fixture
def node_store(embeddings: LuotuoEmbeddings) -> FaissVectorStore:
    store = FaissVectorStore.from_core(FaissCore(embeddings.dimension, model=embeddings.model), embeddings)
    nodes = [
        TextNode(id_=f"第{number}段", text=text, metadata={"页": number}, embedding=vector.tolist())
        for number, (text, vector) in enumerate(zip(TEXTS, embeddings.encode(TEXTS), strict=True))
    ]
    store.add(nodes)
    return store


async def test_llama_index_finds_what_langchain_finds(
    node_store: FaissVectorStore, store: FAISS, embeddings: LuotuoEmbeddings
) -> None:
    expected = HybridRetriever.from_store(store, k=3).search_with_score("打印机 XK-2093")
    retriever = HybridNodeRetriever(node_store, embeddings, similarity_top_k=3)
    for found in (retriever.retrieve("打印机 XK-2093"), await retriever.aretrieve("打印机 XK-2093")):
        assert [node.node.node_id for node in found] == [document.id for document, _ in expected]
        assert [node.score for node in found] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert found[0].node.metadata == {"页": 0}


def test_llama_index_filters_and_given_vectors(node_store: FaissVectorStore, embeddings: LuotuoEmbeddings) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="页", value=3)])
    retriever = HybridNodeRetriever(node_store, embeddings, filters=filters)
    assert [node.node.node_id for node in retriever.retrieve("打印机")] == ["第3段"]
    vector = embeddings.encode([TEXTS[5]])[0]
    bundle = QueryBundle("住宿", embedding=np.asarray(vector).tolist())
    found = HybridNodeRetriever(node_store, embeddings, weights=(1, 0), similarity_top_k=1).retrieve(bundle)
    assert found[0].node.node_id == "第5段"


def test_llama_index_bad_input(node_store: FaissVectorStore, embeddings: LuotuoEmbeddings) -> None:
    with pytest.raises(TypeError, match="store is FaissCore; give a FaissVectorStore"):
        HybridNodeRetriever(node_store.client, embeddings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="similarity_top_k=0"):
        HybridNodeRetriever(node_store, embeddings, similarity_top_k=0)
