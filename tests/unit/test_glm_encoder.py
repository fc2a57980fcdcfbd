"""The frozen GLM under a small BERT: what is trained, what is saved, and what is said when the GLM is not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, Glm4Config, Glm4Model, GlmConfig, GlmForCausalLM, GlmModel

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.glm_encoder import GlmEncoder, GlmEncoderConfig, find_glm, register_glm_encoder
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.glm_student import build_glm_student
from tests.conftest import character_tokenizer

SIZES = {
    "vocab_size": 200,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
TEXTS = ["试用期员工可以请年假吗", "出差", "今天天气很好你是谁"]


@pytest.fixture(scope="module")
def glm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glm(tmp_path_factory.mktemp("glm") / "glm", GlmModel, GlmConfig)


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory, glm_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    return build_glm_student(glm_folder, folder, layers=2, width=32, dimension=20, max_tokens=64)


def save_glm(folder: Path, model_class: Any, config_class: Any, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model_class(config_class(**SIZES)).save_pretrained(folder)
    # As with a real GLM's [gMASK]<sop>, a special token in front and none behind.
    character_tokenizer(eos=None).save_pretrained(folder)
    return folder


def batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids (B, T) and their mask, padded on the right."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(4, 200, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask, mask


def changed_config(student: Path, copy: Path, **changes: Any) -> Path:
    shutil.copytree(student, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("model_class", "config_class", "base_class"),
    [(GlmModel, GlmConfig, GlmModel), (Glm4Model, Glm4Config, Glm4Model), (GlmForCausalLM, GlmConfig, GlmModel)],
)
def test_a_student_of_each_kind_of_glm_loads(
    tmp_path: Path, model_class: Any, config_class: Any, base_class: Any
) -> None:
    glm = save_glm(tmp_path / "glm", model_class, config_class)
    folder = build_glm_student(glm, tmp_path / "student", layers=1, width=32, max_tokens=32)
    model = EmbeddingModel.load(folder)
    assert type(model.backbone.glm) is base_class
    saved = load_file(glm / "model.safetensors")
    loaded = model.backbone.glm.state_dict()
    assert {name.removeprefix("model.") for name in saved} - {"lm_head.weight"} == set(loaded)
    for name, tensor in saved.items():
        if not name.startswith("lm_head."):
            assert torch.equal(loaded[name.removeprefix("model.")], tensor), name
    assert model(*batch(5, 3)).shape == (2, 32)


def test_forward_is_the_glm_then_the_linear_then_the_bert(student_folder: Path) -> None:
    backbone: Any = EmbeddingModel.load(student_folder).backbone
    ids, mask = batch(6, 4)
    states = backbone.glm(input_ids=ids, attention_mask=mask).last_hidden_state
    inputs = states @ backbone.projection.weight.T + backbone.projection.bias
    expected = backbone.bert(inputs_embeds=inputs, attention_mask=mask, output_hidden_states=True)
    output = backbone(ids, mask, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(output.hidden_states[0], expected.hidden_states[0])
    assert torch.equal(backbone(ids, mask, return_dict=False)[0], output.last_hidden_state)


@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2, -4])
def test_any_layer_of_the_glm_can_be_read(tmp_path: Path, student_folder: Path, layer: int) -> None:
    folder = changed_config(student_folder, tmp_path / "copy", glm_layer=layer)
    backbone: Any = EmbeddingModel.load(folder).backbone
    ids, mask = batch(6, 4)
    states = backbone.glm(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 4
    expected = backbone.bert(inputs_embeds=backbone.projection(states[layer]), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(backbone(ids, mask).last_hidden_state[mask.bool()], expected[mask.bool()])


def test_the_bert_looks_both_ways_where_the_glm_looks_back_only(student_folder: Path) -> None:
    backbone: Any = EmbeddingModel.load(student_folder).backbone
    ids, mask = batch(6)
    other = ids.clone()
    other[0, -1] = ids[0, -1] % 190 + 5
    glm_states = [backbone.glm(input_ids=one, attention_mask=mask).last_hidden_state[0, 0] for one in (ids, other)]
    first, second = (backbone(one, mask).last_hidden_state[0, 0] for one in (ids, other))
    torch.testing.assert_close(*glm_states)
    assert (first - second).abs().max() > 1e-3


def test_padding_never_counts(student_folder: Path) -> None:
    model = EmbeddingModel.load(student_folder)
    ids, mask = batch(9, 4)
    with torch.no_grad():
        together = model(ids, mask)
        alone = model(ids[1:, :4], mask[1:, :4])
        left = model(ids[1:].roll(5, dims=1), mask[1:].roll(5, dims=1))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)


def test_the_encoder_takes_a_student_like_any_folder(student_folder: Path) -> None:
    encoder = Encoder(student_folder, device="cpu")
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (3, 20)
    assert encoder.max_length == 64
    assert (encoder.tokenizer.prefix, encoder.tokenizer.suffix) == ([2], [])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert (vectors @ vectors.T)[0, 1] < 0.9999


def test_saving_and_loading_keep_the_vectors(tmp_path: Path, student_folder: Path) -> None:
    first = Encoder(student_folder, device="cpu")
    copy = first.model.save(tmp_path / "copy", first.tokenizer.tokenizer)
    np.testing.assert_array_equal(Encoder(copy, device="cpu").encode(TEXTS), first.encode(TEXTS))


def test_the_weights_of_the_glm_are_not_saved(tmp_path: Path, student_folder: Path) -> None:
    copy = EmbeddingModel.load(student_folder).save(tmp_path / "copy")
    for folder in (student_folder, copy):
        names = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
        assert names == {"projection", "bert"}


def test_a_step_of_training_moves_all_but_the_glm(student_folder: Path) -> None:
    model = EmbeddingModel.load(student_folder).train()
    model.requires_grad_(True)  # as a trainer may do; the GLM must not care
    model.backbone.bert.embeddings.word_embeddings.requires_grad_(False)
    backbone: Any = model.backbone
    assert backbone.bert.training
    assert not any(module.training for module in backbone.glm.modules())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    model(*batch(7, 5)).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in backbone.glm.parameters())
    for name, parameter in model.named_parameters():
        frozen = name.startswith("backbone.glm.") or "word_embeddings" in name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_the_glm_is_frozen_as_loaded(student_folder: Path) -> None:
    model = EmbeddingModel.load(student_folder)
    assert {name.split(".")[1] for name, one in model.named_parameters() if not one.requires_grad} == {"glm"}


def test_the_glm_may_be_kept_in_half_precision(student_folder: Path) -> None:
    model = EmbeddingModel.load(student_folder)
    ids, mask = batch(7, 5)
    exact = model(ids, mask)
    model.backbone.glm.bfloat16()
    rounded = model(ids, mask)
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded).min() > 0.99


def test_the_auto_classes_load_a_student(student_folder: Path) -> None:
    register_glm_encoder()
    model = AutoModel.from_pretrained(student_folder)
    assert isinstance(model, GlmEncoder)
    ids, mask = batch(5)
    expected = EmbeddingModel.load(student_folder).backbone(ids, mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask).last_hidden_state, expected)


def test_a_glm_that_is_not_there_is_named(tmp_path: Path, student_folder: Path) -> None:
    folder = changed_config(student_folder, tmp_path / "a", glm_source="THUDM/glm-nowhere-hf")
    with pytest.raises(ModelFormatError, match=r"'THUDM/glm-nowhere-hf' is no folder.*hf download") as caught:
        EmbeddingModel.load(folder)
    assert "Copy or download the folder again" not in str(caught.value)
    folder = changed_config(student_folder, tmp_path / "b", glm_source=str(tmp_path / "moved" / "glm"))
    with pytest.raises(ModelFormatError, match="correct glm_source"):
        EmbeddingModel.load(folder)


def test_another_glm_is_refused(tmp_path: Path, student_folder: Path) -> None:
    other = save_glm(tmp_path / "glm4", Glm4Model, Glm4Config)
    folder = changed_config(student_folder, tmp_path / "copy", glm_source=str(other))
    with pytest.raises(ModelFormatError, match="model_type=glm4; this model was made with one of model_type=glm"):
        EmbeddingModel.load(folder)


@pytest.mark.parametrize("damage", ["truncated", "incomplete", "gone"])
def test_a_damaged_glm_is_refused(tmp_path: Path, glm_folder: Path, student_folder: Path, damage: str) -> None:
    glm = tmp_path / "glm"
    shutil.copytree(glm_folder, glm)
    path = glm / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "incomplete":
        weights = load_file(path)
        del weights["layers.1.mlp.down_proj.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    else:
        path.unlink()
    folder = changed_config(student_folder, tmp_path / "copy", glm_source=str(glm))
    with pytest.raises(ModelFormatError, match=r"cannot be loaded|lacks 1 tensors, 'layers\.1\.mlp\.down_proj"):
        EmbeddingModel.load(folder)


def test_a_student_that_lacks_a_tensor_is_refused(tmp_path: Path, student_folder: Path) -> None:
    shutil.copytree(student_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    del weights["projection.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"'projection\.weight'"):
        EmbeddingModel.load(tmp_path / "copy")


def test_a_model_without_its_glm_says_so() -> None:
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    model = GlmEncoder(GlmEncoderConfig(glm_config=GlmConfig(**SIZES), bert_config=small))
    with pytest.raises(RuntimeError, match="attach_glm"):
        model(*batch(3))


def test_only_glms_and_their_layers_can_be_configured() -> None:
    with pytest.raises(ValueError, match="type 'bert'; supported are glm, glm4"):
        GlmEncoderConfig(glm_config=BertConfig())
    with pytest.raises(ValueError, match="glm_layer=4 is out of range: this GLM has 3 layers"):
        GlmEncoderConfig(glm_config=GlmConfig(**SIZES), glm_layer=4)


def test_the_cache_of_the_hub_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glm_folder: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--zai-org--glm-tiny-hf"
    shutil.copytree(glm_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_glm("zai-org/glm-tiny-hf") == repository / "snapshots" / commit
    folder = build_glm_student("zai-org/glm-tiny-hf", tmp_path / "student", layers=1, width=16)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["glm_source"], config["glm_revision"]) == ("zai-org/glm-tiny-hf", commit)
    assert EmbeddingModel.load(folder).dimension == 16


def test_equal_seeds_make_equal_students_and_leave_the_generator(tmp_path: Path, glm_folder: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        folder = build_glm_student(glm_folder, tmp_path / name, layers=1, width=16, dimension=8, seed=seed)
        heads = load_file(folder / "2_Dense" / "model.safetensors")
        return load_file(folder / "model.safetensors") | heads

    state = torch.get_rng_state()
    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("projection.weight", "bert.encoder.layer.0.output.dense.weight", "linear.weight"):
        assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"dimension": 0}, "dimension=0 must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"width": 200}, "width=200 is no multiple of 64; use 192"),
    ],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, glm_folder: Path, change: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_glm_student(glm_folder, tmp_path / "student", **change)
    assert not (tmp_path / "student").exists()


def test_what_is_no_glm_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelFormatError, match="is a 'bert', not one of glm, glm4"):
        build_glm_student(tiny_folder, tmp_path / "student")
    assert not (tmp_path / "student").exists()
