import json
import shutil
from pathlib import Path

import pytest

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import LuotuoError, ModelFormatError, ModelNotFoundError
from luotuo_integrations.pooling import POOLINGS
from luotuo_integrations.registry import ASSETS, CARDS, DEFAULT_MODEL, RERANKERS, find_card, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(cache: Path, repository: str, files: dict[str, str], commit: str = COMMIT) -> Path:
    """A repository in the hub's cache, as the hub library lays it out."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    for name, text in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(text)
    return snapshot


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_cards_are_sound(card) -> None:
    assert card.pooling in POOLINGS
    assert card.dimension > 0
    assert card.max_tokens > 0
    assert card.licence
    assert set(card.prompts) <= {"query", "passage"}
    low, high = card.similarity_range
    assert -1 <= low < high <= 1
    assert all(0 < short < card.dimension for short in card.matryoshka)
    assert card.source in {"bundled", card.name}
    if card.relevance is not None:
        assert card.relevance[0] > 0


def test_cards_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CARDS[DEFAULT_MODEL].dimension = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        CARDS["x"] = CARDS[DEFAULT_MODEL]  # type: ignore[index]
    with pytest.raises(TypeError):
        CARDS[DEFAULT_MODEL].prompts["query"] = ""  # type: ignore[index]


def test_the_cards_of_luotuo_bert_say_what_must_be_done() -> None:
    for name in ("luotuo-bert", "luotuo-bert-medium", "luotuo-bert-en"):
        card = CARDS[f"silk-road/{name}"]
        assert card.remote_code
        assert (card.dimension, card.pooling) == (1536, "cls")
        assert "convert_luotuo_bert" in card.note
        assert "model_args=Namespace(" in card.note


def test_the_default_is_in_the_package() -> None:
    folder = resolve(DEFAULT_MODEL)
    assert folder == ASSETS / DEFAULT_MODEL
    assert (folder / "config.json").is_file()


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "模型" / "我的"
    folder.mkdir(parents=True)
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("模型/我的") == Path("模型/我的")  # a folder goes before a repository of that name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/模型/我的") == folder


def test_a_folder_of_a_known_name_in_the_working_folder_does_not_hide_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DEFAULT_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(DEFAULT_MODEL) == ASSETS / DEFAULT_MODEL


@pytest.mark.parametrize(
    "name", ["", "没有这个模型", "/no/such/folder", "./models/bge", "../bge", "~/models/bge", "~nobody/bge", "a/b/c"]
)
def test_what_cannot_be_a_model_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "config.json" in message
    assert DEFAULT_MODEL in message
    assert isinstance(caught.value, LuotuoError)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_name_without_its_owner_is_answered_with_the_whole_name() -> None:
    with pytest.raises(ModelNotFoundError, match=r"is it 'BAAI/bge-small-zh-v1\.5'\?"):
        resolve("bge-small-zh-v1.5")
    with pytest.raises(ModelNotFoundError) as caught:  # a missing folder is no such slip
        resolve("/models/bge-small-zh-v1.5")
    assert "is it" not in str(caught.value)


def test_without_a_network_the_hub_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"'owner/model'.*could not be reached.*'luotuo-mini' is in the"):
        resolve("owner/model", cache_folder=tmp_path)


@pytest.mark.parametrize("name", ["", "没有这个模型", "/no/such/folder", "./models/bge", "owner/model"])
def test_a_missing_reranker_is_told_of_rerankers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, cache_folder=tmp_path, kind="reranker")
    message = str(caught.value)
    assert message.startswith(f"No reranker {name!r}: ")
    assert "config.json" in message
    assert all(known in message for known in RERANKERS)
    assert not any(card in message for card in CARDS)  # an embedding model is no answer here


def test_a_reranker_without_its_owner_is_answered_with_the_whole_name() -> None:
    with pytest.raises(ModelNotFoundError, match=r"is it 'BAAI/bge-reranker-base'\?"):
        resolve("bge-reranker-base", kind="reranker")
    for name in ("bge-small-zh-v1.5", "/models/bge-reranker-base"):
        with pytest.raises(ModelNotFoundError) as caught:
            resolve(name, kind="reranker")
        assert "is it" not in str(caught.value)


def test_a_gated_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="asks for a login"):
        resolve("google/embeddinggemma-300m", cache_folder=tmp_path)


@pytest.mark.parametrize("name", ["silk-road/luotuo-bert", "silk-road/luotuo-bert-en"])
def test_a_model_with_code_of_its_own_is_not_even_downloaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="convert_luotuo_bert"):
        resolve(name, cache_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_copy_in_the_hub_cache_is_used(tmp_path: Path) -> None:
    files = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "w"}
    snapshot = hub_cache(tmp_path, "BAAI/bge-small-zh-v1.5", files)
    assert resolve("BAAI/bge-small-zh-v1.5", cache_folder=tmp_path) == snapshot
    assert resolve("BAAI/bge-small-zh-v1.5", cache_folder=str(tmp_path), revision=COMMIT) == snapshot


HEADS = json.dumps(
    [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "2_Dense", "type": "x.Dense"}]
)
SHARDS = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"config.json": "{}"}, {"model.safetensors": "w"}),
        ({"model.safetensors": "w"}, {"config.json": "{}"}),
        ({"modules.json": HEADS, "model.safetensors": "w"}, {"2_Dense/model.safetensors": "w"}),
        (
            {"config.json": "{}", "model-1.safetensors": "w", "model.safetensors.index.json": SHARDS},
            {"model-2.safetensors": "w"},
        ),
    ],
    ids=["weights", "config", "head", "shard"],
)
def test_an_interrupted_download_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], missing: dict[str, str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = hub_cache(tmp_path, "owner/model", files)
    with pytest.raises(ModelNotFoundError):
        resolve("owner/model", cache_folder=tmp_path)
    hub_cache(tmp_path, "owner/model", missing)
    assert resolve("owner/model", cache_folder=tmp_path) == snapshot


def test_a_model_loads_from_the_hub_cache_with_its_card(tmp_path: Path, tiny_folder: Path) -> None:
    snapshot = hub_cache(tmp_path, "intfloat/multilingual-e5-small", {"README.md": ""})
    shutil.copytree(tiny_folder, snapshot, dirs_exist_ok=True)
    encoder = Encoder("intfloat/multilingual-e5-small", cache_folder=tmp_path, device="cpu")
    assert encoder.folder == snapshot
    assert encoder.card == CARDS["intfloat/multilingual-e5-small"]
    assert encoder.encode(["你好"]).shape == (1, 24)


def test_cards_are_found_by_name_by_folder_and_by_place_in_the_cache() -> None:
    card = CARDS["BAAI/bge-small-zh-v1.5"]
    for name in (
        "BAAI/bge-small-zh-v1.5",
        "bge-small-zh-v1.5",
        "/data/models/bge-small-zh-v1.5",
        Path("models") / "bge-small-zh-v1.5",
        f"/root/.cache/huggingface/hub/models--BAAI--bge-small-zh-v1.5/snapshots/{COMMIT}",
    ):
        assert find_card(name) == card
    for name in ("bge-small-zh", "my-bge-small-zh-v1.5", "bge-small-zh-v1.5-finetuned", "", "/", "/data/bge/model"):
        assert find_card(name) is None
