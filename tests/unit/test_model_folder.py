import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hub_layouts import POOLING_FLAGS

from luotuo_integrations.errors import LuotuoError, ModelFormatError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings, read_json, read_settings, write_settings
from luotuo_integrations.pooling import POOLINGS
from luotuo_integrations.registry import CARDS

CARD = CARDS["BAAI/bge-small-zh-v1.5"]
THEIRS = "sentence_transformers.models."


def put(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def folder_with(folder: Path, *kinds: str, pooling: Any = None) -> Path:
    modules = [{"type": THEIRS + kind, "path": f"{index}_{kind}" if index else ""} for index, kind in enumerate(kinds)]
    put(folder, "modules.json", modules)
    return put(folder, "1_Pooling/config.json", pooling or {"pooling_mode": "mean"})


def test_a_plain_transformers_folder_is_read_by_its_card_or_as_mean(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == ModelSettings(prompts={"query": "", "passage": ""})
    settings = read_settings(tmp_path, CARD)
    assert (settings.pooling, settings.normalize, settings.max_tokens) == ("cls", True, 512)
    assert settings.prompts == CARD.prompts


@pytest.mark.parametrize("name", ["cls", "mean", "weightedmean", "lasttoken"])
def test_old_flags_and_new_names_of_poolings_mean_the_same(tmp_path: Path, name: str) -> None:
    flags = {"word_embedding_dimension": 8, **{flag: mode == name for mode, flag in POOLING_FLAGS.items()}}
    old = read_settings(folder_with(tmp_path / "a", "Transformer", "Pooling", pooling=flags))
    new = read_settings(folder_with(tmp_path / "b", "Transformer", "Pooling", pooling={"pooling_mode": name}))
    listed = read_settings(folder_with(tmp_path / "c", "Transformer", "Pooling", pooling={"pooling_mode": [name]}))
    assert old.pooling == new.pooling == listed.pooling
    assert old.pooling in POOLINGS
    assert old.pooling.replace("_", "").startswith(name.removesuffix("token"))


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode": "max"}, "'max'; supported are cls, mean"),
        ({"pooling_mode_max_tokens": True}, "'max'"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls', 'mean'\]; exactly one"),
        ({"pooling_mode_cls_token": False}, "no pooling"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ([1], "a JSON list"),
    ],
)
def test_poolings_that_are_not_supported_are_refused(tmp_path: Path, pooling: Any, message: str) -> None:
    folder_with(tmp_path, "Transformer", "Pooling", pooling=pooling)
    with pytest.raises(ModelFormatError, match=message):
        read_settings(tmp_path, CARD)


@pytest.mark.parametrize(
    "kind", [THEIRS + "CNN", THEIRS + "StaticEmbedding", "custom_st.Transformer", "sentence_transformers.models.LSTM"]
)
def test_modules_that_are_not_supported_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder_with(tmp_path, "Transformer", "Pooling")
    put(tmp_path, "modules.json", [{"type": kind, "path": ""}, {"type": THEIRS + "Pooling", "path": "1_Pooling"}])
    with pytest.raises(ModelFormatError, match=kind.replace(".", r"\.")):
        read_settings(tmp_path)


@pytest.mark.parametrize("modules", ["{}", '[{"path": ""}]', '["x"]', "[1]", "[", "", "\ufeff["])
def test_a_damaged_list_of_modules_is_refused(tmp_path: Path, modules: str) -> None:
    put(tmp_path, "modules.json", modules)
    with pytest.raises(ModelFormatError, match=r"modules\.json"):
        read_settings(tmp_path)


def test_normalisation_is_what_the_card_says_or_else_the_folder(tmp_path: Path) -> None:
    without = folder_with(tmp_path / "a", "Transformer", "Pooling")
    with_it = folder_with(tmp_path / "b", "Transformer", "Pooling", "Normalize")
    assert not read_settings(without).normalize
    assert read_settings(with_it).normalize
    assert read_settings(without, CARDS["moka-ai/m3e-base"]).normalize


def test_dense_heads_are_read_in_order(tmp_path: Path) -> None:
    folder_with(tmp_path, "Transformer", "Pooling", "Dense", "Dense")
    put(tmp_path, "2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    put(tmp_path, "3_Dense/config.json", {"in_features": 3})
    # sentence-transformers takes Tanh where the file names no activation.
    assert read_settings(tmp_path).heads == (DenseSettings("2_Dense", "Identity"), DenseSettings("3_Dense", "Tanh"))


@pytest.mark.parametrize("more", [{"use_residual": True}, {"module_input_name": "token_embeddings"}])
def test_dense_heads_of_another_kind_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    folder_with(tmp_path, "Transformer", "Pooling", "Dense")
    put(tmp_path, "2_Dense/config.json", more)
    with pytest.raises(ModelFormatError, match="2_Dense"):
        read_settings(tmp_path)


def test_the_longest_length_and_lowercase(tmp_path: Path) -> None:
    assert read_settings(tmp_path).max_tokens is None
    put(tmp_path, "sentence_bert_config.json", {"max_seq_length": 77, "do_lower_case": True})
    settings = read_settings(tmp_path, CARD)
    assert (settings.max_tokens, settings.lowercase) == (77, True)
    put(tmp_path, "sentence_bert_config.json", {"max_seq_length": None})
    settings = read_settings(tmp_path, CARD)
    assert (settings.max_tokens, settings.lowercase) == (512, False)


def test_prompts_without_a_known_name_are_not_lost_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "config_sentence_transformers.json", {"prompts": {"s2p_query": "Instruct: ", "sts": "相似："}})
    with caplog.at_level(logging.WARNING):
        assert read_settings(tmp_path).prompts == {"query": "", "passage": ""}
    assert "'s2p_query', 'sts'" in caplog.text
    assert "query_prompt=" in caplog.text


@pytest.mark.parametrize("about", [{}, {"prompts": None}, {"prompts": {}}, {"prompts": {"query": "", "document": ""}}])
def test_a_folder_without_prompts_takes_those_of_the_card(tmp_path: Path, about: dict[str, Any]) -> None:
    put(tmp_path, "config_sentence_transformers.json", about)
    assert read_settings(tmp_path, CARD).prompts == CARD.prompts
    assert read_settings(tmp_path).prompts == {"query": "", "passage": ""}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, pooling: str, normalize: bool) -> None:
    settings = ModelSettings(
        pooling=pooling,
        normalize=normalize,
        max_tokens=300,
        prompts={"query": "问：", "passage": "文：\n"},
        lowercase=True,
        heads=(DenseSettings("2_Dense", "Tanh"), DenseSettings("3_Dense", "Identity")),
    )
    write_settings(tmp_path, settings, 16)
    for head in settings.heads:  # their own files are written with their weights
        put(tmp_path, f"{head.folder}/config.json", {"activation_function": f"torch.nn.modules.{head.activation}"})
    assert read_settings(tmp_path) == settings
    assert "问：" in (tmp_path / "config_sentence_transformers.json").read_text(encoding="utf-8")


def test_pooling_flags_are_written_beside_the_name(tmp_path: Path) -> None:
    write_settings(tmp_path, ModelSettings(pooling="last"), 16)
    written = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert written["pooling_mode"] == "lasttoken"
    assert {flag: written[flag] for flag in POOLING_FLAGS.values()} == {
        flag: flag == "pooling_mode_lasttoken" for flag in POOLING_FLAGS.values()
    }


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    for name, content in (("a.json", b"{"), ("b.json", b"\xff\xfe"), ("c.json", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFormatError, match=name) as caught:
            read_json(tmp_path / name)
        assert "download or copy it again" in str(caught.value)
        assert isinstance(caught.value, LuotuoError)
