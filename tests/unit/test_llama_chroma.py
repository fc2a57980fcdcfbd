"""Chroma as LlamaIndex's vector store."""

import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.errors import NotFoundError
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import Document, TextNode
from llama_index.core.vector_stores import (
    ExactMatchFilter,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from luotuo_integrations.chroma import collection_slug
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.llama_chroma import ChromaVectorStore, llama_chroma_store

TEXTS = ["试用期可以请年假吗", "出差住宿标准每晚四百五十元", "今天天气很好", "报销发票需要什么材料", "公司在哪里"]
QUERY = "年假可以请几天"


@pytest.fixture(scope="module")
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(model=str(tiny_folder), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A path that no other test uses: Chroma shares what is open under one path."""
    return tmp_path / "数据" / "向量库"


@pytest.fixture
def store(embeddings: LuotuoEmbeddings, folder: Path) -> ChromaVectorStore:
    store = llama_chroma_store("产品手册", embeddings, persist_directory=folder)
    store.add(nodes_of(embeddings, TEXTS))
    return store


def nodes_of(embeddings: LuotuoEmbeddings, texts: Sequence[str]) -> list[TextNode]:
    vectors = embeddings.encode(texts, "passage").tolist()
    return [
        TextNode(text=text, id_=f"n{i}", embedding=vector, metadata={"号": i})
        for i, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]


def query_for(embeddings: LuotuoEmbeddings, **settings: object) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=embeddings.embed_query(QUERY), similarity_top_k=5, **settings)


def cosines(embeddings: LuotuoEmbeddings) -> np.ndarray:
    """Cosines of TEXTS with QUERY, one by one."""
    passages, vector = embeddings.encode(TEXTS, "passage"), embeddings.encode([QUERY], "query")[0]
    return np.array([p @ vector / np.linalg.norm(p) / np.linalg.norm(vector) for p in passages])


# In an index


async def test_index_gives_cosines_and_opens_again(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    store = llama_chroma_store("产品手册", embeddings, persist_directory=folder)
    VectorStoreIndex.from_documents(
        [Document(text=text, id_=f"文{i}") for i, text in enumerate(TEXTS)],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embeddings,
    )
    SharedSystemClient.clear_system_cache()
    store = llama_chroma_store("产品手册", embeddings, persist_directory=folder, create=False)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embeddings)
    hits = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    expected = cosines(embeddings)
    assert [hit.text for hit in hits] == [TEXTS[i] for i in np.argsort(-expected)]
    assert [hit.score for hit in hits] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)
    assert [hit.text for hit in await index.as_retriever(similarity_top_k=5).aretrieve(QUERY)] == [
        hit.text for hit in hits
    ]
    index.delete_ref_doc("文0")
    assert {hit.text for hit in index.as_retriever(similarity_top_k=5).retrieve(QUERY)} == set(TEXTS[1:])


async def test_more_nodes_than_chroma_takes_at_once(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    store = llama_chroma_store("大集合", embeddings, persist_directory=folder)
    nodes = nodes_of(embeddings, [f"员工{number}" for number in range(5_600)])
    ids = await store.async_add(nodes)
    assert ids == [node.node_id for node in nodes]
    assert store.client.count() == 5_600
    assert [node.get_content() for node in store.get_nodes(["n5599"])] == ["员工5599"]
    found = await store.aquery(VectorStoreQuery(query_embedding=nodes[5_599].get_embedding(), similarity_top_k=1))
    assert found.similarities == pytest.approx([1.0], abs=1e-5)
    store.clear()
    assert store.client.count() == 0


# Queries


def test_similarities_are_cosines_also_with_diversity(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    expected = {f"n{i}": cosine for i, cosine in enumerate(cosines(embeddings))}
    for query in (query_for(embeddings), query_for(embeddings, mode=VectorStoreQueryMode.MMR)):
        found = store.query(query)
        assert dict(zip(found.ids, found.similarities, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_opposite_vectors_have_cosine_minus_one(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    opposite = (-embeddings.encode(TEXTS[:1], "passage")[0]).tolist()
    found = store.query(VectorStoreQuery(query_embedding=opposite, similarity_top_k=5))
    assert found.ids[-1] == "n0"
    assert found.similarities[-1] == pytest.approx(-1, abs=1e-5)


def test_filters_and_ids_limit_a_query(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    above = MetadataFilters(filters=[MetadataFilter(key="号", value=2, operator=FilterOperator.GTE)])
    assert set(store.query(query_for(embeddings, filters=above)).ids) == {"n2", "n3", "n4"}
    assert set(store.query(query_for(embeddings, node_ids=["n1", "n3"])).ids) == {"n1", "n3"}
    assert set(store.query(query_for(embeddings, filters=above, node_ids=["n1", "n3"])).ids) == {"n3"}
    assert set(store.query(query_for(embeddings, doc_ids=[], node_ids=[])).ids) == {"n0", "n1", "n2", "n3", "n4"}
    assert store.query(query_for(embeddings, doc_ids=["没有这篇"])).ids == []
    assert store.query(VectorStoreQuery(similarity_top_k=2, node_ids=["n4"])).ids == ["n4"]


def test_doc_ids_limit_a_query(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=embeddings)
    for name in ("甲", "乙"):
        index.insert(Document(text=f"{name}公司的天气", id_=name))
    assert [hit.text for hit in index.as_retriever(doc_ids=["乙"]).retrieve("天气")] == ["乙公司的天气"]


# Nodes


def test_the_same_id_replaces_a_node(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    new = nodes_of(embeddings, ["新的说法"])[0]
    new.metadata = {"版本": 2}
    assert store.add([new]) == ["n0"]
    (kept,) = store.get_nodes(["n0"])
    assert (kept.get_content(), kept.metadata) == ("新的说法", {"版本": 2})
    assert "号" not in store.client.get(ids=["n0"])["metadatas"][0]
    assert store.client.count() == len(TEXTS)


def test_nested_metadata_comes_back_and_is_filtered_flat(
    embeddings: LuotuoEmbeddings, store: ChromaVectorStore
) -> None:
    node = nodes_of(embeddings, ["出差补贴"])[0]
    node.id_ = "深"
    node.metadata = {"来源": {"页": 3, "无": None}, "标签": ["差旅", 1], "日期": date(2026, 11, 1)}
    store.add([node])
    found = store.query(
        query_for(embeddings, filters=MetadataFilters(filters=[ExactMatchFilter(key="来源.页", value=3)]))
    )
    assert found.ids == ["深"]
    assert found.nodes[0].metadata == {"来源": {"页": 3, "无": None}, "标签": ["差旅", 1], "日期": "2026-11-01"}


def test_deleting_by_filter_by_id_and_nothing(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    first = MetadataFilters(filters=[ExactMatchFilter(key="号", value=0)])
    store.delete_nodes(filters=first)
    store.delete_nodes(filters=first)
    store.delete_nodes([])
    store.delete_nodes(["没有"])
    store.delete_nodes(["n1", "n2"], filters=MetadataFilters(filters=[ExactMatchFilter(key="号", value=2)]))
    assert set(store.client.get()["ids"]) == {"n1", "n3", "n4"}
    store.clear()
    store.clear()
    assert store.add([]) == []
    assert store.query(query_for(embeddings)).nodes == []


def test_bad_nodes_are_refused_and_nothing_is_written(embeddings: LuotuoEmbeddings, store: ChromaVectorStore) -> None:
    good = nodes_of(embeddings, ["好", "坏"])
    good[0].id_, good[1].id_ = "好", "坏"
    for change, error, message in (
        ({"embedding": None}, ValueError, "embedding not set"),
        ({"embedding": [0.5] * 12}, StoreMismatchError, r"12 numbers.* 24 numbers each.*embed_model"),
        ({"embedding": [float("nan")] * 24}, ValueError, "NaN"),
        ({"metadata": {"价": 2**64}}, ValueError, "价"),
    ):
        bad = good[1].model_copy(update=change)
        with pytest.raises(error, match=message):
            store.add([good[0], bad])
        assert store.client.count() == len(TEXTS)


# Opening


def test_another_model_or_dimension_is_refused(
    embeddings: LuotuoEmbeddings, store: ChromaVectorStore, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_folder, tmp_path / "另一个模型")
    with (other / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(StoreMismatchError, match=r"'产品手册' holds .*小模型.*另一个模型"):
        llama_chroma_store("产品手册", LuotuoEmbeddings(model=str(other), device="cpu"), persist_directory=folder)
    with pytest.raises(StoreMismatchError, match=r"3 numbers.* 24 numbers"):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0, 0.0], similarity_top_k=1))


def test_a_collection_that_is_not_there_is_named_and_nothing_is_made(
    embeddings: LuotuoEmbeddings, store: ChromaVectorStore, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no collection '产品'; there are: '产品手册'"):
        llama_chroma_store("产品", embeddings, persist_directory=folder, create=False)
    with pytest.raises(NotFoundError, match="holds no Chroma database"):
        llama_chroma_store("产品手册", embeddings, persist_directory=tmp_path / "写错", create=False)
    assert not (tmp_path / "写错").exists()


def test_a_client_or_memory_may_be_used(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    client = chromadb.PersistentClient(folder)
    assert llama_chroma_store("产品手册", embeddings, client=client).client.name == collection_slug("产品手册")
    with pytest.raises(ValueError, match="give one of them"):
        llama_chroma_store("产品手册", embeddings, client=client, persist_directory=folder)
    in_memory = llama_chroma_store("内存里的手册", embeddings)
    in_memory.add(nodes_of(embeddings, TEXTS))
    assert llama_chroma_store("内存里的手册", embeddings, create=False).client.count() == len(TEXTS)
    with pytest.raises(TypeError, match="DeterministicFakeEmbedding"):
        llama_chroma_store("产品手册", DeterministicFakeEmbedding(size=3))  # type: ignore[arg-type]


def test_plain_chromadb_queries_the_same_collection_by_text(
    embeddings: LuotuoEmbeddings, store: ChromaVectorStore, folder: Path
) -> None:
    collection = chromadb.PersistentClient(folder).get_collection(collection_slug("产品手册"))
    distances = collection.query(query_texts=[QUERY], n_results=5)["distances"][0]
    assert distances == pytest.approx(np.sort(1 - cosines(embeddings)), abs=1e-5)
