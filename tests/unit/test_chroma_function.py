"""The embedding function that chromadb knows as "luotuo", used through plain chromadb."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.utils.embedding_functions import known_embedding_functions
from langchain_core.embeddings import DeterministicFakeEmbedding
from safetensors.numpy import load_file, save_file

from luotuo_integrations.chroma import Chroma, LuotuoEmbeddingFunction, collection_slug
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError

TEXTS = ["试用期可以请年假吗", "出差住宿标准每晚四百五十元", "今天天气很好", "报销发票需要什么材料", "公司在哪里"]


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


def test_function_embeds_passages_and_queries_each_in_their_way(embeddings: LuotuoEmbeddings) -> None:
    function = LuotuoEmbeddingFunction(embeddings)
    assert np.array_equal(np.stack(function(TEXTS)), embeddings.encode(TEXTS, "passage"))
    assert np.array_equal(np.stack(function.embed_query(TEXTS)), embeddings.encode(TEXTS, "query"))
    assert not np.allclose(np.stack(function(TEXTS)), np.stack(function.embed_query(TEXTS)))
    assert {vector.dtype for vector in function(TEXTS)} == {np.dtype(np.float32)}


def test_function_is_registered_and_its_config_survives_json(embeddings: LuotuoEmbeddings, tiny_folder: Path) -> None:
    assert known_embedding_functions["luotuo"] is LuotuoEmbeddingFunction
    embeddings = LuotuoEmbeddings(
        model=str(tiny_folder), dimensions=12, query_prompt="问：", device="cpu", cache_folder="/缓存", dtype="float32"
    )
    config = LuotuoEmbeddingFunction(embeddings).get_config()
    assert config == {
        "model": str(tiny_folder),
        "dimensions": 12,
        "query_prompt": "问：",
        "fingerprint": embeddings.fingerprint,
    }
    built = LuotuoEmbeddingFunction.build_from_config(json.loads(json.dumps(config)))
    assert built.get_config() == config
    assert np.array_equal(np.stack(built.embed_query(TEXTS)), embeddings.encode(TEXTS, "query"))


def test_function_finds_a_relative_model_folder_from_elsewhere(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    config = LuotuoEmbeddingFunction(LuotuoEmbeddings(model=tiny_folder.name, device="cpu")).get_config()
    assert config["model"] == str(tiny_folder)


def test_building_a_function_loads_no_model_and_shares_it(embeddings: LuotuoEmbeddings) -> None:
    missing = {"model": "没有/这个模型", "fingerprint": "0" * 32}
    assert LuotuoEmbeddingFunction.build_from_config(missing).get_config() == missing
    config = LuotuoEmbeddingFunction(embeddings).get_config()
    first, second = (LuotuoEmbeddingFunction.build_from_config(config) for _ in range(2))
    assert first.embeddings is second.embeddings


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": "luotuo-mini"},
        {"model": "", "fingerprint": "0"},
        {"model": "luotuo-mini", "fingerprint": "0", "trust_remote_code": True},
    ],
)
def test_function_refuses_a_config_that_is_not_its_own(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"get_config\(\)"):
        LuotuoEmbeddingFunction.build_from_config(config)


def test_function_refuses_other_embeddings() -> None:
    with pytest.raises(TypeError, match=r"DeterministicFakeEmbedding; give LuotuoEmbeddings"):
        LuotuoEmbeddingFunction(DeterministicFakeEmbedding(size=3))  # type: ignore[arg-type]


def test_plain_chromadb_is_queried_by_text_without_naming_a_function(
    embeddings: LuotuoEmbeddings, folder: Path
) -> None:
    client = chromadb.PersistentClient(folder)
    collection = client.create_collection("handbook", embedding_function=LuotuoEmbeddingFunction(embeddings))
    collection.add(ids=list("12345"), documents=TEXTS)
    SharedSystemClient.clear_system_cache()

    reopened = chromadb.PersistentClient(folder).get_collection("handbook")
    assert reopened.configuration_json["hnsw"]["space"] == "cosine"
    found = reopened.query(query_texts=["年假"], n_results=5)
    expected = cosines(embeddings, "年假")
    assert found["ids"][0] == [str(i + 1) for i in np.argsort(-expected)]
    assert found["distances"][0] == pytest.approx(np.sort(1 - expected), abs=1e-5)


def test_a_collection_of_plain_chromadb_opens_in_langchain(embeddings: LuotuoEmbeddings, folder: Path) -> None:
    client = chromadb.PersistentClient(folder)
    collection = client.create_collection("handbook", embedding_function=LuotuoEmbeddingFunction(embeddings))
    collection.add(ids=list("12345"), documents=TEXTS)
    assert Chroma("handbook", embeddings, client=client).similarity_search(TEXTS[0], k=5)


def test_a_model_that_has_changed_on_disk_is_not_used(
    embeddings: LuotuoEmbeddings, other_model: LuotuoEmbeddings, folder: Path
) -> None:
    claimed = LuotuoEmbeddingFunction(other_model, fingerprint=embeddings.fingerprint)
    collection = chromadb.PersistentClient(folder).create_collection("handbook", embedding_function=claimed)
    with pytest.raises(StoreMismatchError, match=f"另一个模型.*{other_model.fingerprint}.*{embeddings.fingerprint}"):
        collection.query(query_texts=["年假"])


def test_another_model_is_refused_for_a_collection(
    embeddings: LuotuoEmbeddings, other_model: LuotuoEmbeddings, store: Chroma, caplog: pytest.LogCaptureFixture
) -> None:
    collection = store._client.get_collection(collection_slug("员工手册"))
    with pytest.raises(StoreMismatchError, match=r"小模型.*另一个模型"):
        collection.modify(configuration={"embedding_function": LuotuoEmbeddingFunction(other_model)})
    # chromadb has stored the other function before it asked; the vectors' model still opens the collection.
    with caplog.at_level(logging.WARNING):
        again = Chroma("员工手册", embeddings, client=store._client)
    assert "names another model for query_texts" in caplog.text
    assert again.get_by_ids(["1"])[0].page_content == TEXTS[0]
    with pytest.raises(StoreMismatchError):
        Chroma("员工手册", other_model, client=store._client)


def test_settings_of_queries_may_change(embeddings: LuotuoEmbeddings, tiny_folder: Path, store: Chroma) -> None:
    changed = LuotuoEmbeddings(model=str(tiny_folder), query_prompt="问：", device="cpu")
    collection = store._client.get_collection(collection_slug("员工手册"))
    collection.modify(configuration={"embedding_function": LuotuoEmbeddingFunction(changed)})
    distances = store._client.get_collection(collection.name).query(query_texts=["年假"], n_results=5)["distances"]
    assert distances[0] == pytest.approx(np.sort(1 - cosines(changed, "年假")), abs=1e-5)


def test_telemetry_is_off_and_plain_clients_of_the_folder_still_open(store: Chroma, folder: Path) -> None:
    assert store._client.get_settings().anonymized_telemetry is False
    assert chromadb.PersistentClient(folder).get_collection(collection_slug("员工手册")).count() == 5


@pytest.mark.parametrize(
    ("missing", "module"),
    [
        ("chromadb", "chroma_function"),
        ("langchain_chroma", "chroma"),
        ("llama_index.vector_stores.chroma", "llama_chroma"),
    ],
)
def test_a_missing_package_names_the_extra(missing: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"luotuo_integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'luotuo-integrations\[chroma\]'"):
        __import__(f"luotuo_integrations.{module}")


def test_the_package_does_not_import_chromadb() -> None:
    code = "import luotuo_integrations, sys; assert not {'chromadb', 'langchain_chroma'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
