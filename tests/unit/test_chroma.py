"""Chroma as LangChain's vector store."""

import json
import runpy
import shutil
from pathlib import Path

import chromadb
import langchain_chroma
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.errors import NotFoundError
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from safetensors.numpy import load_file, save_file

from luotuo_integrations.chroma import Chroma, LuotuoEmbeddingFunction, collection_slug
from luotuo_integrations.chroma_collections import flatten_metadata
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.mapper import LinearQueryMapper

TEXTS = ["试用期可以请年假吗", "出差住宿标准每晚四百五十元", "今天天气很好", "报销发票需要什么材料", "公司在哪里"]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(model=str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def other_model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LuotuoEmbeddings:
    """Another model of the same dimension."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "另一个模型")
    weights = load_file(folder / "model.safetensors")
    save_file({name: array * 1.5 for name, array in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return LuotuoEmbeddings(model=str(folder), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A path that no other test uses: Chroma shares what is open under one path."""
    return tmp_path / "数据" / "向量库"


@pytest.fixture
def store(embeddings: LuotuoEmbeddings, folder: Path) -> Chroma:
    return Chroma.from_texts(TEXTS, embeddings, ids=list("12345"), collection_name="员工手册", persist_directory=folder)


def cosines(embeddings: LuotuoEmbeddings, query: str) -> np.ndarray:
    """Cosines of TEXTS with the query, one by one."""
    passages, vector = embeddings.encode(TEXTS, "passage"), embeddings.encode([query], "query")[0]
    return np.array([p @ vector / np.linalg.norm(p) / np.linalg.norm(vector) for p in passages])


# Names of collections


@pytest.mark.parametrize("name", ["langchain", "abc", "A.b_c-9", "1.2.3.4.5x"])
def test_names_that_chroma_takes_stay(name: str) -> None:
    assert collection_slug(name) == name


def test_other_names_become_the_same_slug_everywhere(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    names = ["员工手册", "产品 手册", "ab", "_abc", "127.0.0.1", "x" * 513, "café", "🐫" * 3]
    slugs = [collection_slug(name) for name in names]
    assert slugs[0] == "luotuo-29db8fcc1ccf1a6a148553d51350f8cb"
    assert len(set(slugs)) == len(names)
    assert collection_slug("cafe\u0301") == slugs[6]
    client = chromadb.PersistentClient(folder)
    for name, slug in zip(names, slugs, strict=True):
        Chroma(name, embeddings, client=client)
        assert client.get_collection(slug).metadata["luotuo_name"] == name


@pytest.mark.parametrize("name", ["", " \n", None])
def test_a_blank_name_is_refused(name: str, embeddings: LuotuoEmbeddings) -> None:
    with pytest.raises(ValueError, match="collection_name="):
        Chroma(name, embeddings)


# Opening


def test_collection_is_kept_on_disk_with_its_name_and_model(
    embeddings: LuotuoEmbeddings, store: Chroma, folder: Path
) -> None:
    SharedSystemClient.clear_system_cache()
    again = Chroma("员工手册", embeddings, persist_directory=folder, create_collection_if_not_exists=False)
    assert {document.page_content for document in again.similarity_search("年假", k=10)} == set(TEXTS)
    assert again._collection.metadata == {
        "luotuo_name": "员工手册",
        "luotuo_model": embeddings.model,
        "luotuo_dimension": 24,
        "luotuo_fingerprint": embeddings.fingerprint,
    }


def test_another_model_or_dimension_is_refused(
    other_model: LuotuoEmbeddings, tiny_folder: Path, store: Chroma, folder: Path
) -> None:
    shorter = LuotuoEmbeddings(model=str(tiny_folder), dimensions=12, device="cpu")
    with pytest.raises(
        StoreMismatchError, match=r"'员工手册' holds .*小模型' \(24 dim.*asked for .*另一个模型' \(24 dim"
    ):
        Chroma("员工手册", other_model, persist_directory=folder)
    with pytest.raises(StoreMismatchError, match=r"小模型' \(24 dimensions.*小模型' \(12 dimensions.*collection_name"):
        Chroma.from_texts(["新"], shorter, collection_name="员工手册", persist_directory=folder)
    assert store._collection.count() == 5


def test_collections_that_name_no_model_or_another_space_are_refused(
    embeddings: LuotuoEmbeddings, folder: Path
) -> None:
    client = chromadb.PersistentClient(folder)
    langchain_chroma.Chroma("plain", embeddings, client=client)
    with pytest.raises(StoreMismatchError, match="does not say which model"):
        Chroma("plain", embeddings, client=client)
    with pytest.warns(UserWarning, match="space l2 is not supported"):
        client.create_collection(
            "euclidean", embedding_function=LuotuoEmbeddingFunction(embeddings), configuration={"hnsw": {"space": "l2"}}
        )
    with pytest.raises(StoreMismatchError, match="measures by 'l2'"):
        Chroma("euclidean", embeddings, client=client)


def test_a_collection_that_is_not_there_is_named_and_nothing_is_made(
    embeddings: LuotuoEmbeddings, store: Chroma, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match=r"no collection '员工手冊'; there are: '员工手册'"):
        Chroma("员工手冊", embeddings, persist_directory=folder, create_collection_if_not_exists=False)
    wrong = tmp_path / "写错的路径"
    with pytest.raises(NotFoundError, match="写错的路径' holds no Chroma database"):
        Chroma("员工手册", embeddings, persist_directory=wrong, create_collection_if_not_exists=False)
    assert not wrong.exists()


def test_index_settings_are_kept_beside_cosine(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    client = chromadb.PersistentClient(folder)
    asked = {"hnsw": {"ef_search": 321}}
    store = Chroma(
        "手册", embeddings, client=client, collection_configuration=asked, collection_metadata={"版本": "第三版"}
    )
    index = store._collection.configuration_json["hnsw"]
    assert (index["space"], index["ef_search"]) == ("cosine", 321)
    assert store._collection.metadata["版本"] == "第三版"
    assert asked == {"hnsw": {"ef_search": 321}}
    for refused in ({"hnsw": {"space": "l2"}}, {"embedding_function": LuotuoEmbeddingFunction(embeddings)}):
        with pytest.raises(ValueError, match="leave both out"):
            Chroma("另一本", embeddings, client=client, collection_configuration=refused)


def test_other_embeddings_are_refused_before_a_folder_is_made(folder: Path) -> None:
    with pytest.raises(TypeError, match="DeterministicFakeEmbedding"):
        Chroma("员工手册", DeterministicFakeEmbedding(size=3), persist_directory=folder)  # type: ignore[arg-type]
    assert not folder.exists()


def test_a_reset_collection_is_empty_and_still_right(embeddings: LuotuoEmbeddings, store: Chroma) -> None:
    store.reset_collection()
    store.add_texts(TEXTS[:1])
    assert store._collection.metadata["luotuo_fingerprint"] == embeddings.fingerprint
    assert store._collection.configuration_json["hnsw"]["space"] == "cosine"


# Scores


def test_scores_and_relevances_are_right_and_in_order(embeddings: LuotuoEmbeddings, store: Chroma) -> None:
    query = "年假可以请几天"
    expected = np.sort(cosines(embeddings, query))[::-1]
    scored = store.similarity_search_with_score(query, k=5)
    assert [distance for _, distance in scored] == pytest.approx(1 - expected, abs=1e-5)
    relevant = store.similarity_search_with_relevance_scores(query, k=5)
    assert [document.id for document, _ in relevant] == [document.id for document, _ in scored]
    assert [score for _, score in relevant] == pytest.approx(embeddings.relevance(expected), abs=1e-5)
    threshold = (relevant[1][1] + relevant[2][1]) / 2
    found = store.similarity_search_with_relevance_scores(query, k=5, score_threshold=threshold)
    assert [document.id for document, _ in found] == [document.id for document, _ in relevant[:2]]


def test_relevance_stays_between_0_and_1_and_may_be_replaced(
    embeddings: LuotuoEmbeddings, store: Chroma, folder: Path
) -> None:
    relevance = store._select_relevance_score_fn()
    assert [relevance(-1e-6), relevance(0.0), relevance(1.0), relevance(2.000001)] == pytest.approx([1, 1, 0.5, 0])
    own = Chroma("员工手册", embeddings, persist_directory=folder, relevance_score_fn=lambda distance: 0.25 * distance)
    assert own._select_relevance_score_fn()(2.0) == 0.5


async def test_retrievers_filters_and_diversity_work(store: Chroma) -> None:
    store.add_texts(["外地住宿标准"], [{"来源": {"文件": "差旅.md", "页": 3}}], ids=["6"])
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"来源.页": 3}})
    assert [document.id for document in retriever.invoke("住宿")] == ["6"]
    assert [document.id for document in await retriever.ainvoke("住宿")] == ["6"]
    assert len(store.max_marginal_relevance_search("住宿", k=3)) == 3


# Writing


def test_more_documents_than_chroma_takes_at_once(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    count = 5_600
    texts = [f"员工{number}" for number in range(count)]
    store = Chroma("大集合", embeddings, persist_directory=folder)
    assert count > store._client.get_max_batch_size()
    ids = store.add_documents([Document(text, metadata={"号": i}) for i, text in enumerate(texts)])
    assert len(set(ids)) == store._collection.count() == count
    last = store.get_by_ids(ids[-2:])
    assert {document.page_content: document.metadata["号"] for document in last} == {"员工5598": 5598, "员工5599": 5599}
    store.delete(ids)
    assert store._collection.count() == 0


def test_batches_keep_texts_vectors_and_metadata_together(
    embeddings: LuotuoEmbeddings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Chroma("小批次", embeddings, persist_directory=folder)
    monkeypatch.setattr(store._client, "get_max_batch_size", lambda: 2)
    store.add_texts(iter(TEXTS), [{"号": 1}, {}, {"号": 3}, {}, {"号": 5}], ids=list("12345"))
    kept = store._collection.get(include=["documents", "metadatas", "embeddings"])
    order = np.argsort(kept["ids"])
    assert [kept["documents"][i] for i in order] == TEXTS
    assert [kept["metadatas"][i] for i in order] == [{"号": 1}, None, {"号": 3}, None, {"号": 5}]
    assert np.allclose(kept["embeddings"][order], embeddings.encode(TEXTS, "passage"), atol=1e-6)


def test_the_same_id_replaces_text_vector_and_all_metadata(embeddings: LuotuoEmbeddings, store: Chroma) -> None:
    store.add_texts(["旧的说法"], [{"版本": 1, "作者": "张三"}], ids=["x"])
    store.add_texts(["新的说法"], [{"版本": 2}], ids=["x"])
    assert store.get_by_ids(["x"]) == [Document(id="x", page_content="新的说法", metadata={"版本": 2})]
    store.update_document("x", Document("最后的说法"))
    assert store.get_by_ids(["x"]) == [Document(id="x", page_content="最后的说法")]
    kept = store._collection.get(ids=["x"], include=["embeddings"])["embeddings"][0]
    assert np.allclose(kept, embeddings.encode(["最后的说法"], "passage")[0], atol=1e-6)
    assert store.add_texts(["一", "二", "三"], ids=["y", None, "y"])[::2] == ["y", "y"]  # type: ignore[list-item]
    assert store.get_by_ids(["y"])[0].page_content == "三"


def test_getting_and_deleting_nothing_is_no_error(store: Chroma) -> None:
    assert store.get_by_ids([]) == []
    store.delete([])
    assert store.add_texts([]) == []
    assert store._collection.count() == 5
    with pytest.raises(ValueError, match="At least one of"):
        store.delete()


BAD_INPUT = [
    pytest.param("一句话", None, None, TypeError, "texts is str", id="bare string"),
    pytest.param(["好", None], None, None, TypeError, r"texts\[1\]", id="no text"),
    pytest.param(["好", "\ud800"], None, None, ValueError, r"texts\[1\].*surrogate", id="lone surrogate"),
    pytest.param(["好", "坏"], [{}], None, ValueError, "1 metadatas .* 2 texts", id="too little metadata"),
    pytest.param(["好"], None, ["1", "2"], ValueError, "2 ids .* 1 texts", id="too many ids"),
    pytest.param(["好"], None, [""], ValueError, r"ids\[0\]", id="empty id"),
    pytest.param(["好"], [{"价": float("nan")}], None, ValueError, "价", id="not a number"),
    pytest.param(["好"], [{"价": object()}], None, TypeError, "价", id="an object"),
    pytest.param(["好"], [{"$价": 1}], None, ValueError, r"\$价", id="reserved key"),
]


@pytest.mark.parametrize(("texts", "metadatas", "ids", "error", "message"), BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_made(
    texts: list[str],
    metadatas: list[dict[str, object]] | None,
    ids: list[str] | None,
    error: type[Exception],
    message: str,
    embeddings: LuotuoEmbeddings,
    store: Chroma,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        store.add_texts(texts, metadatas, ids)
    assert store._collection.count() == 5
    with pytest.raises(error, match=message):
        Chroma.from_texts(texts, embeddings, metadatas, ids, collection_name="坏", persist_directory=tmp_path / "新")
    assert not (tmp_path / "新").exists()


def test_a_wrong_query_vector_is_refused(store: Chroma) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\); it must be \(N, 24\)"):
        store.similarity_search_by_vector([1.0, 0.0, 0.0])


# Metadata


def test_metadata_is_flattened_and_given_documents_stay_as_they_are(store: Chroma) -> None:
    metadata = {
        "来源": {"文件": "差旅.md", "位置": {"页": 3}},
        "标签": ["差旅", "住宿"],
        "混合": ["页", 3, None],
        "空": None,
        "无": [],
        "里外": {"空": {}},
        "有效": True,
        "价": 450.5,
    }
    before = json.dumps(metadata)
    store.add_documents([Document("住宿标准", metadata=metadata, id="m")])
    assert json.dumps(metadata) == before
    assert store.get_by_ids(["m"])[0].metadata == {
        "来源.文件": "差旅.md",
        "来源.位置.页": 3,
        "标签": ["差旅", "住宿"],
        "混合": '["页", 3, null]',
        "有效": True,
        "价": 450.5,
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"甲.乙": 1, "甲": {"乙": 2}}, "'甲.乙' is there twice"),
        ({"": 1}, "refuses the metadata key ''"),
        ({"#甲": 1}, "'#甲'"),
        ({"chroma:document": "甲"}, "'chroma:document'"),
        ({"号": 2**63}, "64 bits"),
        ({"号": [1, -(2**70)]}, "64 bits"),
    ],
)
def test_metadata_that_chroma_would_refuse_or_change_is_named(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flatten_metadata(metadata)


# With the bundled model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chroma_langchain", ["休假制度.md · 试用期员工年休假", "休假制度.md · 婚假", "只查休假制度"]),
        ("chroma_llamaindex", ["禾渡家App与售后服务 · 寄修流程", "删去"]),
    ],
)
def test_examples_find_the_right_section(name: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert [words for words in expected if words not in printed] == []


# Query mapper


def test_a_query_mapper_moves_queries_and_leaves_what_is_stored(
    embeddings: LuotuoEmbeddings, store: Chroma, folder: Path
) -> None:
    size = embeddings.dimension
    turn = np.eye(size, dtype=np.float32)[::-1] - np.eye(size, dtype=np.float32)
    mapper = LinearQueryMapper(turn, np.zeros(size, np.float32), embeddings.model, embeddings.fingerprint)
    mapped = embeddings.model_copy(update={"mapper": mapper})
    passages, vector = embeddings.encode(TEXTS, "passage"), mapper(embeddings.encode(["住宿标准"], "query"))[0]
    expected = dict(zip(TEXTS, (1 - passages @ vector).tolist(), strict=True))  # Chroma's scores are distances
    opened = Chroma(collection_name="员工手册", embedding_function=mapped, persist_directory=folder)
    found = {one.page_content: score for one, score in opened.similarity_search_with_score("住宿标准", k=5)}
    assert found == pytest.approx(expected, abs=1e-4)
    opened.add_texts(["新的一段"], ids=["6"])
    stored = store.get(ids=["6"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, embeddings.encode(["新的一段"], "passage"), atol=1e-5)
