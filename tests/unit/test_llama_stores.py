"""FaissVectorStore for LlamaIndex: index, retrieve, filter, delete, MMR, persist, and the same folder in LangChain."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.llama_filters import translate_filters
from luotuo_integrations.llama_stores import FaissVectorStore
from luotuo_integrations.vectorstores import FAISS

TEXTS = ["年假每年十五天", "病假需要医院证明", "出差住宿每晚五百元", "加班可以调休"]
VECTORS = [[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.7, 0.7, 0.2]]
DEPARTMENTS = ["人事", "人事", "财务", "人事"]


def nodes() -> list[TextNode]:
    return [
        TextNode(
            id_=f"n{i}",
            text=TEXTS[i],
            metadata={"部门": DEPARTMENTS[i], "页": i},
            embedding=VECTORS[i],
            excluded_embed_metadata_keys=["页"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"手册{i // 2}")},
        )
        for i in range(4)
    ]


@pytest.fixture
def store() -> FaissVectorStore:
    store = FaissVectorStore()
    assert store.add(nodes()) == ["n0", "n1", "n2", "n3"]
    return store


def query(*vector: float, k: int = 4, **options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=list(vector), similarity_top_k=k, **options)


def matching(**options: Any) -> MetadataFilters:
    filters = [MetadataFilter(key=key, value=value) for key, value in options.items()]
    return MetadataFilters(filters=filters)


def test_nodes_come_back_as_they_were(store: FaissVectorStore) -> None:
    found = store.query(query(1, 0, 0, k=2))
    assert found.ids == ["n0", "n1"]
    assert found.similarities == pytest.approx([1.0, 0.9 / (0.81 + 0.01) ** 0.5])
    expected = nodes()
    for node in expected:
        node.embedding = None
    assert found.nodes == expected[:2]
    assert store.get_nodes(["n3", "没有", "n2"]) == [expected[3], expected[2]]
    assert store.get_nodes() == expected
    assert found.nodes[0].ref_doc_id == "手册0"


def test_other_kinds_of_nodes_keep_their_kind() -> None:
    store = FaissVectorStore()
    image = ImageNode(id_="图", text="组织结构图", image_path="图.png", embedding=VECTORS[0])
    pointer = IndexNode(id_="指", text="见附录", index_id="附录", embedding=VECTORS[1])
    store.add([image, pointer])
    found = store.get_nodes(["图", "指"])
    assert [type(node) for node in found] == [ImageNode, IndexNode]
    assert found[0].image_path == "图.png"
    assert found[1].index_id == "附录"


def test_adding_again_replaces(store: FaissVectorStore) -> None:
    store.add([TextNode(id_="n0", text="年假二十天", embedding=[0.0, 0.0, 1.0])])
    assert len(store) == 4
    assert store.query(query(0, 0, 1, k=1)).nodes[0].get_content() == "年假二十天"


def test_limits_are_applied_before_the_search(store: FaissVectorStore) -> None:
    assert store.query(query(1, 0, 0, k=1, filters=matching(部门="财务"))).ids == ["n2"]
    assert store.query(query(1, 0, 0, k=1, node_ids=["n2", "n3"])).ids == ["n3"]
    assert store.query(query(1, 0, 0, k=4, doc_ids=["手册1"])).ids == ["n3", "n2"]
    assert store.query(query(1, 0, 0, doc_ids=["手册1"], filters=matching(部门="人事"))).ids == ["n3"]
    assert len(store.query(query(1, 0, 0, node_ids=[], doc_ids=[])).ids) == 4
    assert store.query(query(1, 0, 0, filters=matching(部门="没有"))).ids == []


def test_mmr(store: FaissVectorStore) -> None:
    plain = query(1, 0.05, 0, k=2, mode=VectorStoreQueryMode.MMR)
    assert store.query(plain, mmr_threshold=1.0).ids == ["n0", "n1"]
    assert store.query(plain, mmr_threshold=0.2).ids == ["n0", "n2"]
    assert store.query(plain, mmr_threshold=0.2, mmr_prefetch_k=2).ids == ["n0", "n1"]
    assert store.query(plain, mmr_threshold=0.2, mmr_prefetch_factor=1).ids == ["n0", "n2"]
    plain.mmr_threshold = 0.2
    assert store.query(plain).ids == ["n0", "n2"]
    with pytest.raises(ValueError, match="both given"):
        store.query(plain, mmr_prefetch_k=2, mmr_prefetch_factor=2)


def test_similarities_are_higher_for_what_is_nearer() -> None:
    for metric in ("cosine", "inner_product", "euclidean"):
        store = FaissVectorStore(metric=metric)  # type: ignore[arg-type]
        store.add(nodes())
        found = store.query(query(1, 0, 0))
        assert found.similarities == sorted(found.similarities, reverse=True)
        assert found.ids[0] == "n0"
        assert found.similarities[0] == pytest.approx(1.0)


def test_delete(store: FaissVectorStore) -> None:
    store.delete("手册0")
    assert [node.node_id for node in store.get_nodes()] == ["n2", "n3"]
    store.delete("没有")
    store.delete_nodes(["n2", "n3"], matching(部门="人事"))
    assert [node.node_id for node in store.get_nodes()] == ["n2"]
    store.delete_nodes(filters=matching(部门="财务"))
    assert store.query(query(1, 0, 0)).ids == []
    store.add(nodes())
    store.delete_nodes(["n0", "没有"])
    assert len(store) == 3
    with pytest.raises(ValueError, match=r"clear\(\)"):
        store.delete_nodes()
    store.clear()
    assert (len(store), bool(store)) == (0, True)


def test_refusals(store: FaissVectorStore) -> None:
    with pytest.raises(ValueError, match="'semantic_hybrid' is not possible here; type 'default', 'mmr', "):
        store.query(query(1, 0, 0, mode=VectorStoreQueryMode.SEMANTIC_HYBRID))
    with pytest.raises(ValueError, match="no query_embedding"):
        store.query(VectorStoreQuery(query_str="年假"))
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        store.query(query(1, 0))
    with pytest.raises(ValueError, match="embedding not set"):
        store.add([TextNode(text="没有向量")])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        store.add([TextNode(text="短向量", embedding=[1.0, 2.0])])
    for call in (
        lambda: store.query(query(1, 0, 0), alpha=1),
        lambda: store.add([], batch=1),
        lambda: store.delete("手册0", force=True),
        lambda: store.delete_nodes(["n0"], force=True),
    ):
        with pytest.raises(TypeError, match="allowed:"):
            call()
    assert len(store) == 4


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filters_agree_with_llama_indexs_own_reading() -> None:
    rng = random.Random(3)
    metadatas: list[dict[str, Any]] = [
        {
            "部门": rng.choice(["财务", "财务部", "人事", ""]),
            "页": rng.choice([1, 2, 3.5, 10]),
            "标签": rng.choice([[], ["报销"], ["报销", "差旅"], ["年假"]]),
        }
        for _ in range(60)
    ]
    store = FaissVectorStore()
    store.add([TextNode(id_=str(i), text="文", metadata=m, embedding=VECTORS[0]) for i, m in enumerate(metadatas)])
    choices: list[tuple[str, FilterOperator, Any]] = [
        ("部门", FilterOperator.EQ, "财务"),
        ("部门", FilterOperator.NE, "财务"),
        ("部门", FilterOperator.IN, ["财务", "人事"]),
        ("部门", FilterOperator.NIN, ["财务", "人事"]),
        ("部门", FilterOperator.TEXT_MATCH, "财"),
        ("部门", FilterOperator.TEXT_MATCH_INSENSITIVE, "财务"),
        ("部门", FilterOperator.IS_EMPTY, None),
        ("页", FilterOperator.GT, 2),
        ("页", FilterOperator.GTE, 2),
        ("页", FilterOperator.LT, 3.5),
        ("页", FilterOperator.LTE, 3.5),
        ("标签", FilterOperator.CONTAINS, "差旅"),
        ("标签", FilterOperator.ANY, ["差旅", "年假"]),
        ("标签", FilterOperator.ALL, ["报销", "差旅"]),
        ("标签", FilterOperator.IS_EMPTY, None),
        ("没有", FilterOperator.IS_EMPTY, None),
        ("没有", FilterOperator.NE, 1),
        ("没有", FilterOperator.EQ, "财务"),
    ]
    seen = set()
    for condition in FilterCondition:
        for _ in range(40):
            parts = [
                MetadataFilter(key=key, operator=operator, value=value)
                for key, operator, value in rng.sample(choices, rng.choice([1, 1, 2, 3]))
            ]
            filters = MetadataFilters(filters=parts, condition=condition)
            passes = build_metadata_filter_fn(lambda id_: metadatas[int(id_)], filters)
            expected = [str(i) for i in range(60) if passes(str(i))]
            assert [node.node_id for node in store.get_nodes(filters=filters)] == expected, filters
            seen.add(len(expected))
    assert len(seen) > 10


def test_nested_and_empty_filters() -> None:
    inner = MetadataFilters(
        filters=[MetadataFilter(key="页", value=1), MetadataFilter(key="页", value=2)], condition=FilterCondition.OR
    )
    outer = MetadataFilters(filters=[MetadataFilter(key="部门", value="财务"), inner])
    assert translate_filters(outer) == {
        "$and": [{"部门": {"$eq": "财务"}}, {"$or": [{"页": {"$eq": 1}}, {"页": {"$eq": 2}}]}]
    }
    empty = MetadataFilters(filters=[])
    assert translate_filters(None) is None
    assert translate_filters(empty) is None
    assert translate_filters(MetadataFilters(filters=[empty], condition=FilterCondition.NOT)) is None
    with pytest.raises(ValueError, match="'any' needs a list"):
        translate_filters(
            MetadataFilters(filters=[MetadataFilter(key="标签", value="甲", operator=FilterOperator.ANY)])
        )


# -- files ------------------------------------------------------------------------------------------------------------


def test_persist_and_open(store: FaissVectorStore, tmp_path: Path) -> None:
    path = str(tmp_path / "知识库.json")
    store.persist(path, fs=fsspec.filesystem("file"))
    assert (tmp_path / "知识库" / "manifest.json").exists()
    opened = FaissVectorStore.from_persist_path(str(tmp_path / "知识库"), verify=True)
    assert opened.get_nodes() == store.get_nodes()
    assert opened.query(query(1, 0, 0)) == store.query(query(1, 0, 0))
    with pytest.raises(ValueError, match="local folders only"):
        store.persist(path, fs=fsspec.filesystem("memory"))
    with pytest.raises(FileNotFoundError):
        FaissVectorStore.from_persist_dir(str(tmp_path))


def test_a_relative_path_without_a_folder_works(
    store: FaissVectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store.persist("index")
    assert len(FaissVectorStore.from_persist_path("index")) == 4


def test_both_faces_open_the_same_folder(store: FaissVectorStore, tmp_path: Path) -> None:
    store.persist(str(tmp_path / "甲"))
    langchain = FAISS.load_local(tmp_path / "甲", FixedEmbeddings())
    found = langchain.similarity_search("随便", k=1, filter={"部门": "财务"})[0]
    assert (found.id, found.page_content, found.metadata["页"]) == ("n2", TEXTS[2], 2)
    langchain.add_texts(["从 LangChain 来"], [{"部门": "法务"}], ids=["新"])
    langchain.save_local(tmp_path / "乙")
    llama = FaissVectorStore.from_persist_path(str(tmp_path / "乙"))
    assert llama.get_nodes(filters=matching(部门="法务")) == [
        TextNode(id_="新", text="从 LangChain 来", metadata={"部门": "法务"})
    ]


class FixedEmbeddings(LuotuoEmbeddings):
    """Every text has the same vector of three numbers."""

    @property
    def dimension(self) -> int:
        return 3

    @property
    def fingerprint(self) -> str:
        return ""

    def encode(self, texts: Any, *_: Any, **__: Any) -> Any:
        return np.tile(np.array([[1.0, 0.2, 0.1]], dtype=np.float32), (len(texts), 1))


# -- LlamaIndex end to end, with the bundled model --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LuotuoEmbeddings:
    return LuotuoEmbeddings()


@pytest.mark.parametrize("use_async", [True, False])
def test_index_retrieve_delete_and_reopen(model: LuotuoEmbeddings, tmp_path: Path, use_async: bool) -> None:
    documents = [Document(text=text, id_=f"d{i}", metadata={"部门": DEPARTMENTS[i]}) for i, text in enumerate(TEXTS)]
    context = StorageContext.from_defaults(vector_store=FaissVectorStore(model))
    index = VectorStoreIndex.from_documents(documents, context, embed_model=model, use_async=use_async)
    found = index.as_retriever(similarity_top_k=1).retrieve("外地办事的酒店能报多少钱")
    assert found[0].text == TEXTS[2]
    assert 0 < found[0].score <= 1
    filtered = index.as_retriever(similarity_top_k=9, filters=matching(部门="人事")).retrieve("酒店")
    assert {node.metadata["部门"] for node in filtered} == {"人事"}
    diverse = index.as_retriever(vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.3})
    assert len(diverse.retrieve("请假")) == 2
    index.delete_ref_doc("d2")
    context.persist(str(tmp_path / "存储"))
    store = FaissVectorStore.from_persist_dir(str(tmp_path / "存储"), model)
    assert len(store) == 3
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "存储"), vector_store=store)
    reopened = load_index_from_storage(context, embed_model=model)
    assert reopened.as_retriever(similarity_top_k=1).retrieve("生病请假要什么材料")[0].text == TEXTS[1]
    assert len(VectorStoreIndex.from_vector_store(store, model).as_retriever().retrieve("调休")) == 2


def test_an_ingestion_pipeline_fills_the_store(model: LuotuoEmbeddings) -> None:
    store = FaissVectorStore(model)
    IngestionPipeline(transformations=[model], vector_store=store).run(nodes=[TextNode(text=text) for text in TEXTS])
    assert {node.get_content() for node in store.get_nodes()} == set(TEXTS)


def test_a_store_of_another_model_is_refused(model: LuotuoEmbeddings, tmp_path: Path) -> None:
    FaissVectorStore(model).persist(str(tmp_path))
    FaissVectorStore.from_persist_path(str(tmp_path), model)
    with pytest.raises(StoreMismatchError, match="was built with the model 'luotuo-mini'"):
        FaissVectorStore.from_persist_path(str(tmp_path), LuotuoEmbeddings(passage_prompt="文档："))
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        FaissVectorStore(model).add(nodes()[:1])


async def test_asynchronous_calls_leave_the_loop_free(store: FaissVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    for name in ("add", "delete", "delete_nodes", "query", "get_nodes", "clear"):
        original = getattr(FaissVectorStore, name)

        def watched(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return original(self, *args, **kwargs)

        monkeypatch.setattr(FaissVectorStore, name, watched)
    await store.async_add([TextNode(id_="新", text="新", embedding=[0.0, 0.0, 1.0])])
    found, got = await asyncio.gather(store.aquery(query(0, 0, 1, k=1)), store.aget_nodes(["新"]))
    assert found.ids == ["新"]
    assert got[0].node_id == "新"
    await store.adelete("手册0")
    await store.adelete_nodes(["新"])
    assert len(store) == 2
    await store.aclear()
    assert len(store) == 0
    assert threading.get_ident() not in threads
