"""Keyword and hybrid search through LlamaIndex's own door: VectorStoreQuery and index.as_retriever()."""

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from luotuo_integrations import FAISS, FaissVectorStore, LuotuoEmbeddings
from luotuo_integrations.hybrid_search import HybridSettings, hybrid_search

TEXTS = [
    "型号 XK-2093 的打印机卡纸时，先打开后盖。",
    "打印机没有墨了，请联系行政部更换。",
    "试用期员工可以请年假，一年五天。",
    "出差住宿标准为每晚不超过四百五十元。",
    "丢失电脑要在两小时内上报信息安全部。",
    "报销单据须在一个月内提交。",
]
QUERY = "打印机 XK-2093 坏了"
TEXT_SEARCH, SPARSE = VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE
HYBRID, DEFAULT = VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.DEFAULT


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu")


def filled(model: LuotuoEmbeddings, metric: Any = "cosine") -> FaissVectorStore:
    store = FaissVectorStore(model, metric=metric)
    vectors = model.embed_documents(TEXTS)
    store.add(
        [
            TextNode(
                id_=f"n{number}",
                text=text,
                metadata={"页": number},
                embedding=vector,
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"手册{number // 2}")},
            )
            for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ]
    )
    return store


@pytest.fixture(params=["cosine", "inner_product", "euclidean"])
def store(request: pytest.FixtureRequest, model: LuotuoEmbeddings) -> FaissVectorStore:
    return filled(model, request.param)


def asked(model: LuotuoEmbeddings, mode: VectorStoreQueryMode, k: int = 6, **options: Any) -> VectorStoreQuery:
    given = {"query_str": QUERY, "query_embedding": model.embed_query(QUERY)}
    return VectorStoreQuery(**{**given, **options}, similarity_top_k=k, mode=mode)


@pytest.mark.parametrize("mode", [TEXT_SEARCH, SPARSE])
def test_keywords_need_no_vector(store: FaissVectorStore, mode: VectorStoreQueryMode) -> None:
    found = store.query(VectorStoreQuery(query_str=QUERY, similarity_top_k=6, mode=mode))
    hits = store.client.keyword_search(QUERY, 6)
    assert found.ids == [hit.id for hit in hits] == ["n0", "n1"]
    assert found.similarities == [hit.score for hit in hits]
    assert [node.get_content() for node in found.nodes or []] == TEXTS[:2]
    for number in ({"similarity_top_k": 1}, {"similarity_top_k": 6, "sparse_top_k": 1}):
        assert store.query(VectorStoreQuery(query_str=QUERY, mode=mode, **number)).ids == ["n0"]
    assert store.query(VectorStoreQuery(query_str="月球", mode=mode)).ids == []


@pytest.mark.parametrize("alpha", [None, 0.2, 0.5, 0.9])
def test_hybrid_is_the_fusion_of_both(store: FaissVectorStore, model: LuotuoEmbeddings, alpha: float | None) -> None:
    weights = HybridSettings.weights if alpha is None else (alpha, 1 - alpha)
    vector = model.embed_query(QUERY)
    expected = hybrid_search(store.client, vector, QUERY, 4, settings=HybridSettings(weights))
    found = store.query(asked(model, HYBRID, 4, alpha=alpha))
    assert (found.ids, found.similarities) == ([hit.id for hit in expected], [hit.score for hit in expected])
    assert all(score <= 1 for score in found.similarities or [])
    few = hybrid_search(store.client, vector, QUERY, 2, settings=HybridSettings(weights, fetch_k=2))
    query = asked(model, HYBRID, 6, alpha=alpha, hybrid_top_k=2, sparse_top_k=2)
    assert store.query(query).similarities == [hit.score for hit in few]


def test_alpha_one_is_vectors_alone_and_alpha_zero_keywords_alone(
    store: FaissVectorStore, model: LuotuoEmbeddings
) -> None:
    for alpha, mode in ((1, DEFAULT), (1.0, DEFAULT), (0, TEXT_SEARCH), (0.0, TEXT_SEARCH)):
        one_side = store.query(asked(model, mode))
        found = store.query(asked(model, HYBRID, alpha=alpha))
        assert found.ids == one_side.ids
        assert found.similarities is not None
        assert found.similarities == sorted(found.similarities, reverse=True)
        assert found.similarities[0] <= 1  # not on the scale of BM25
    nearly = store.query(asked(model, HYBRID, alpha=0.999)).ids
    assert nearly == store.query(asked(model, HYBRID, alpha=1)).ids
    assert len(store.query(asked(model, HYBRID, alpha=1, query_str=None)).ids or []) == 6
    assert store.query(asked(model, HYBRID, alpha=0, query_embedding=None)).ids == ["n0", "n1"]


@pytest.mark.parametrize("mode", [TEXT_SEARCH, HYBRID])
@pytest.mark.parametrize("alpha", [None, 0, 1])
def test_limits_are_applied_before_either_search(
    store: FaissVectorStore, model: LuotuoEmbeddings, mode: VectorStoreQueryMode, alpha: float | None
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="页", value=1)])
    for limits in ({"filters": filters}, {"node_ids": ["n1"]}, {"doc_ids": ["手册0"], "filters": filters}):
        assert store.query(asked(model, mode, alpha=alpha, **limits)).ids == ["n1"]
    assert store.query(asked(model, mode, alpha=alpha, doc_ids=["没有"])).ids == []


def test_bad_queries_are_refused(model: LuotuoEmbeddings) -> None:
    store = filled(model)
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha=.* must be between 0 \(keywords alone\) and 1"):
            store.query(asked(model, HYBRID, alpha=alpha))
    for mode in (TEXT_SEARCH, SPARSE, HYBRID):
        with pytest.raises(ValueError, match=f"no query_str, and mode '{mode.value}' looks for its words"):
            store.query(asked(model, mode, query_str=None))
        with pytest.raises(ValueError, match="similarity_top_k=0 must be 1 or more"):
            store.query(asked(model, mode, 0))
        with pytest.raises(ValueError, match="sparse_top_k=0 must be 1 or more"):
            store.query(asked(model, mode, sparse_top_k=0))
    with pytest.raises(ValueError, match="hybrid_top_k=-1 must be 1 or more"):
        store.query(asked(model, HYBRID, hybrid_top_k=-1))
    with pytest.raises(ValueError, match="no query_embedding, and mode 'hybrid' compares vectors"):
        store.query(asked(model, HYBRID, query_embedding=None))
    with pytest.raises(TypeError, match="'alpha'; allowed: mmr_threshold"):
        store.query(asked(model, HYBRID), alpha=1)


# -- through LlamaIndex -----------------------------------------------------------------------------------------------


@pytest.fixture
def index(model: LuotuoEmbeddings) -> VectorStoreIndex:
    store = FaissVectorStore(model)
    index = VectorStoreIndex.from_vector_store(store, model)
    for number, text in enumerate(TEXTS):
        index.insert(Document(text=text, id_=f"d{number}", metadata={"页": number}))
    return index


async def test_a_retriever_searches_by_keywords_without_the_model(
    index: VectorStoreIndex, model: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        pytest.fail("the embedding model was asked")

    monkeypatch.setattr(type(model), "embed_query", fail)
    monkeypatch.setattr(type(model), "aembed_query", fail)
    for mode in ("text_search", "sparse"):
        retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=3)
        for found in (retriever.retrieve(QUERY), await retriever.aretrieve(QUERY)):
            assert [one.text for one in found] == TEXTS[:2]
            assert (found[0].score or 0) > (found[1].score or 0) > 0


async def test_a_retriever_searches_hybrid(index: VectorStoreIndex, model: LuotuoEmbeddings) -> None:
    core = index.vector_store.client
    for options in ({}, {"alpha": 0.3}, {"alpha": 0.3, "hybrid_top_k": 2, "sparse_top_k": 4}):
        retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3, **options)
        alpha = options.get("alpha")
        settings = HybridSettings(
            HybridSettings.weights if alpha is None else (alpha, 1 - alpha),
            fetch_k=int(options.get("sparse_top_k", 100)),
        )
        k = int(options.get("hybrid_top_k", 3))
        expected = hybrid_search(core, model.embed_query(QUERY), QUERY, k, settings=settings)
        for found in (retriever.retrieve(QUERY), await retriever.aretrieve(QUERY)):
            assert [(one.text, one.score) for one in found] == [
                (hit.content, pytest.approx(hit.score, abs=1e-5)) for hit in expected
            ]
    filters = MetadataFilters(filters=[MetadataFilter(key="页", value=1)])
    limited = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3, filters=filters)
    assert [one.text for one in limited.retrieve(QUERY)] == [TEXTS[1]]


def test_changes_and_files_keep_the_keywords(index: VectorStoreIndex, model: LuotuoEmbeddings, tmp_path: Path) -> None:
    def words(searched: VectorStoreIndex, query: str) -> list[str]:
        retriever = searched.as_retriever(vector_store_query_mode="text_search", similarity_top_k=3)
        return [one.text for one in retriever.retrieve(query)]

    assert words(index, "XK-2093") == TEXTS[:1]
    index.delete_ref_doc("d0")
    assert words(index, "XK-2093") == []
    index.insert(Document(text="备用电池的编号是 ZQ-7。"))
    assert words(index, "ZQ-7") == ["备用电池的编号是 ZQ-7。"]
    index.vector_store.persist(str(tmp_path / "库"))
    again = FaissVectorStore.from_persist_path(str(tmp_path / "库"), model)
    assert words(VectorStoreIndex.from_vector_store(again, model), "ZQ-7") == ["备用电池的编号是 ZQ-7。"]
    langchain = FAISS.load_local(tmp_path / "库", model)
    assert [document.page_content for document, _ in langchain.keyword_search("ZQ-7")] == ["备用电池的编号是 ZQ-7。"]
