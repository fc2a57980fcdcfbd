import json
import logging
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import character_tokenizer
from hub_layouts import LAYOUTS, make_tokenizer, write_layout
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5Model,
)

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings
from luotuo_integrations.modeling import ACTIVATIONS, EmbeddingModel, make_head
from luotuo_integrations.pooling import NEEDS_HIDDEN_STATES, POOLINGS, pool
from luotuo_integrations.quantization import write_packed

SIZES = {
    "vocab_size": 200,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.4,
}
IDS = torch.tensor([[2, 9, 10, 11, 3], [2, 12, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def tiny_bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(max_position_embeddings=64, **SIZES), add_pooling_layer=False).eval()


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "模型"))


def vectors_of(model: EmbeddingModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, MASK)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_forward_is_backbone_then_pooling_then_heads(pooling: str) -> None:
    backbone = tiny_bert()
    weight, bias, second = torch.randn(24, 16), torch.randn(24), torch.randn(3, 24)
    settings = ModelSettings(pooling=pooling, heads=(DenseSettings("2_Dense", "Tanh"), DenseSettings("3_Dense")))
    model = EmbeddingModel(backbone, settings, [make_head(weight, bias, "Tanh"), make_head(second)]).eval()
    with torch.inference_mode():
        output = backbone(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
        layers = output.hidden_states if pooling in NEEDS_HIDDEN_STATES else [output.last_hidden_state]
        expected = (pool(layers, MASK, pooling) @ weight.T + bias).tanh() @ second.T
    torch.testing.assert_close(vectors_of(model), expected)
    assert (model.dimension, model.hidden_size) == (3, 16)


def test_without_heads_a_vector_is_as_wide_as_a_token() -> None:
    assert EmbeddingModel(tiny_bert(), ModelSettings()).dimension == 16


def test_heads_and_settings_must_agree() -> None:
    with pytest.raises(ValueError, match="1 heads given, but the settings name 0"):
        EmbeddingModel(tiny_bert(), ModelSettings(), [make_head(torch.randn(2, 16))])
    with pytest.raises(ValueError, match="pooling='max'"):
        EmbeddingModel(tiny_bert(), ModelSettings(pooling="max"))


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padding_may_stand_anywhere(side: str) -> None:
    model = EmbeddingModel(tiny_bert(), ModelSettings(pooling="weighted_mean"))
    ids = {"left": [0, 0, 2, 12, 3], "right": [2, 12, 3, 0, 0], "between": [2, 0, 12, 0, 3]}[side]
    with torch.inference_mode():
        alone = model(torch.tensor([[2, 12, 3]]), torch.ones(1, 3, dtype=torch.long))
        row = torch.tensor([ids])
        torch.testing.assert_close(model(row, (row != 0).long()), alone)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_saved_folder_loads_here_and_in_sentence_transformers(tmp_path: Path, activation: str) -> None:
    settings = ModelSettings(
        pooling="cls", max_tokens=40, prompts={"query": "问", "passage": ""}, heads=[DenseSettings("x", activation)]
    )
    head = make_head(torch.randn(24, 16), torch.randn(24), activation)
    model = EmbeddingModel(tiny_bert(), settings, [head]).eval()
    folder = model.save(tmp_path / "新" / "模型", character_tokenizer())
    loaded = EmbeddingModel.load(folder)
    torch.testing.assert_close(vectors_of(loaded), vectors_of(model))
    assert loaded.settings.prompts == settings.prompts
    assert loaded.settings.heads == (DenseSettings("2_Dense", activation),)
    assert not loaded.training
    texts = ["试用期", "出差住宿标准每晚不超过四百五十元" * 9]
    theirs = SentenceTransformer(str(folder), device="cpu").encode_query(texts)
    torch.testing.assert_close(
        torch.from_numpy(Encoder(folder, device="cpu").encode(texts, "query")), torch.from_numpy(theirs)
    )
    assert [path.name for path in folder.parent.iterdir()] == ["模型"]


def test_a_folder_that_sentence_transformers_saved_again_loads_here(tmp_path: Path) -> None:
    for layout in LAYOUTS[::4]:
        folder = write_layout(layout, tmp_path, old_pooling=True)
        peer = SentenceTransformer(str(folder), device="cpu")
        peer.save(str(tmp_path / "again"))
        encoder = Encoder(tmp_path / "again", device="cpu", normalize=True)
        theirs = peer.encode_document(["试用期可以请年假吗"], normalize_embeddings=True)
        torch.testing.assert_close(torch.from_numpy(encoder.encode(["试用期可以请年假吗"])), torch.from_numpy(theirs))


def test_a_plain_transformers_folder_loads(tmp_path: Path) -> None:
    backbone = tiny_bert()
    backbone.save_pretrained(tmp_path)
    model = EmbeddingModel.load(tmp_path)
    assert model.settings.pooling == "mean"
    torch.testing.assert_close(vectors_of(model), vectors_of(EmbeddingModel(backbone, ModelSettings())))


@pytest.mark.parametrize(
    ("whole", "bare"),
    [
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), lambda model: model.bert),
        (
            lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=1, head_dim=8, **SIZES)),
            lambda model: model.model,
        ),
    ],
    ids=["masked", "causal"],
)
def test_the_backbone_of_a_language_model_is_found_in_it(tmp_path: Path, whole, bare) -> None:
    torch.manual_seed(0)
    language_model = whole().eval()
    language_model.save_pretrained(tmp_path)
    expected = EmbeddingModel(bare(language_model), ModelSettings())
    torch.testing.assert_close(vectors_of(EmbeddingModel.load(tmp_path)), vectors_of(expected))


def test_old_folders_keep_the_backbone_in_a_subfolder(tmp_path: Path, tiny_folder: Path) -> None:
    names = {path.name for path in tiny_folder.iterdir()} - {"modules.json", "1_Pooling", "2_Dense"}
    for name in sorted(names - {"config_sentence_transformers.json"}):
        (tmp_path / "0_Transformer").mkdir(exist_ok=True)
        source = tiny_folder / name
        if source.is_file():
            shutil.copy(source, tmp_path / "0_Transformer" / name)
    for name in ("1_Pooling", "2_Dense"):
        shutil.copytree(tiny_folder / name, tmp_path / name)
    shutil.copy(tiny_folder / "config_sentence_transformers.json", tmp_path)
    modules = json.loads((tiny_folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder(tmp_path, device="cpu")
    torch.testing.assert_close(encoder.encode(["出差"]), Encoder(tiny_folder, device="cpu").encode(["出差"]))
    assert len(encoder.fingerprint) == 32
    shutil.copy(tmp_path / "0_Transformer" / "config.json", tmp_path / "0_Transformer" / "tokenizer.json")
    with pytest.raises(ModelFormatError, match="0_Transformer"):  # the tokenizer is read there, too
        Encoder(tmp_path, device="cpu")


def test_packed_weights_load_as_their_open_counterpart(tmp_path: Path, copied: Path) -> None:
    before = EmbeddingModel.load(copied)
    write_packed(copied / "packed.safetensors", load_file(copied / "model.safetensors"))
    (copied / "model.safetensors").unlink()
    after = EmbeddingModel.load(copied)
    assert not after.training
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
    torch.testing.assert_close(vectors_of(after), vectors_of(before), rtol=0, atol=0)


def test_packed_weights_that_lack_a_tensor_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    write_packed(copied / "packed.safetensors", weights)
    with pytest.raises(ModelFormatError, match=r"lack 1 tensors.*encoder\.layer\.1\.output\.dense\.weight"):
        EmbeddingModel.load(copied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_positions_stay_exact_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """A whole-module .to(bfloat16) rounds the rotary frequencies, and misplaces every far token."""
    torch.manual_seed(0)
    Qwen3Model(Qwen3Config(num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, **SIZES)).save_pretrained(
        tmp_path
    )
    whole, half = EmbeddingModel.load(tmp_path), EmbeddingModel.load(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    for name, buffer in whole.named_buffers():
        assert torch.equal(dict(half.named_buffers())[name], buffer), name


def test_loading_is_silent_and_leaves_the_settings_of_transformers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)  # with a pooler, which is not used
    capfd.readouterr()
    transformers_logging.set_verbosity_warning()
    EmbeddingModel.load(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == logging.WARNING
    assert transformers_logging.is_progress_bar_enabled()


# -- damaged folders --------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_never_filled_with_random_numbers(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights.pop("encoder.layer.0.attention.self.query.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"lack 1 tensors.*attention\.self\.query\.weight"):
        EmbeddingModel.load(copied)


def test_a_tensor_of_another_shape_is_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = torch.randn(100, 16)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        EmbeddingModel.load(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors", "packed.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"rubbish" * 99])
def test_damaged_weights_are_refused(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content)
    with pytest.raises(ModelFormatError):
        EmbeddingModel.load(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors"])
def test_truncated_weights_are_refused(copied: Path, name: str) -> None:
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFormatError):
        EmbeddingModel.load(copied)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "2_Dense/model.safetensors", "2_Dense/config.json"]
)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ModelFormatError, match=r"config\.json|safetensors|2_Dense"):
        EmbeddingModel.load(copied)


@pytest.mark.parametrize("config", ["{}", "[]", "{", '{"model_type": "not-a-model"}', '{"model_type": 3}'])
def test_a_config_that_describes_no_model_is_refused(copied: Path, config: str) -> None:
    (copied / "config.json").write_text(config)
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        EmbeddingModel.load(copied)


def test_a_transformers_that_does_not_know_a_decisive_field_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers 4.51 reads EmbeddingGemma's use_bidirectional_attention, and computes in one direction."""
    monkeypatch.setattr("luotuo_integrations.pretrained._DECISIVE_FIELDS", ("a_field_of_next_year",))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"a_field_of_next_year": True}))
    with pytest.raises(ModelFormatError, match=r"a_field_of_next_year.*bert.*pip install --upgrade transformers"):
        EmbeddingModel.load(copied)
    (copied / "config.json").write_text(json.dumps(config | {"a_field_of_next_year": False}))
    assert EmbeddingModel.load(copied).dimension == 24


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelFormatError, match="t5 with encoder and decoder"):
        EmbeddingModel.load(tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(copied: Path) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin.*save_pretrained"):
        EmbeddingModel.load(copied)


def test_a_pickled_head_loads_as_arrays_only(copied: Path) -> None:
    expected = vectors_of(EmbeddingModel.load(copied))
    torch.save(load_file(copied / "2_Dense" / "model.safetensors"), copied / "2_Dense" / "pytorch_model.bin")
    (copied / "2_Dense" / "model.safetensors").unlink()
    torch.testing.assert_close(vectors_of(EmbeddingModel.load(copied)), expected)
    torch.save(nn.Linear(2, 2), copied / "2_Dense" / "pytorch_model.bin")  # an object, not arrays
    with pytest.raises(ModelFormatError, match="2_Dense"):
        EmbeddingModel.load(copied)


def test_an_unknown_activation_is_refused(copied: Path) -> None:
    settings = json.loads((copied / "2_Dense" / "config.json").read_text())
    settings["activation_function"] = "torch.nn.modules.activation.Softplus"
    (copied / "2_Dense" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelFormatError, match="Softplus; supported are Identity, Tanh"):
        EmbeddingModel.load(copied)


# -- code in the folder -----------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({marker!r}).write_text("run")

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def with_code(folder: Path, marker: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


def test_code_in_a_folder_is_not_run_unless_asked_for(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    expected = vectors_of(EmbeddingModel.load(copied))
    marker = tmp_path / "marker"
    with_code(copied, marker)
    with pytest.raises(ModelFormatError, match=r"trust_remote_code=True.*convert_luotuo_bert"):
        EmbeddingModel.load(copied)
    with pytest.raises(ModelFormatError, match="trust_remote_code=True"):
        Encoder(copied, device="cpu")
    assert not marker.exists()
    model = EmbeddingModel.load(copied, trust_remote_code=True)
    assert marker.exists()
    torch.testing.assert_close(vectors_of(model), expected)


# -- saving -----------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_not_overwritten_unless_asked_for(copied: Path) -> None:
    model = EmbeddingModel(tiny_bert(5), ModelSettings())
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    model.save(copied, overwrite=True)
    assert not (copied / "2_Dense").exists()
    torch.testing.assert_close(vectors_of(EmbeddingModel.load(copied)), vectors_of(model))
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize("culprit", ["safetensors", "rename"])
def test_a_failed_save_leaves_the_old_folder_and_nothing_else(
    copied: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    model = EmbeddingModel(tiny_bert(5), ModelSettings(heads=[DenseSettings("h")]), [make_head(torch.randn(4, 16))])
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    if culprit == "safetensors":

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("luotuo_integrations.modeling.save_file", full)
    else:
        replace = Path.replace

        def stubborn(self: Path, target: Path) -> Path:
            if self.name == "model":
                raise PermissionError(13, "Permission denied")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", stubborn)
    with pytest.raises(OSError, match=r"No space|Permission"):
        model.save(copied, overwrite=True)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_the_class_trains(tiny_folder: Path) -> None:
    model = EmbeddingModel.load(tiny_folder).train()
    vectors_loss = model(IDS, MASK).square().sum()
    vectors_loss.backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert missing == []


def test_models_load_in_several_threads_at_once(tiny_folder: Path) -> None:
    expected = vectors_of(EmbeddingModel.load(tiny_folder))
    found: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(vectors_of(EmbeddingModel.load(tiny_folder)))) for _ in "四个线程"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for vectors in found:
        torch.testing.assert_close(vectors, expected)


def test_our_folders_are_plain_transformers_folders_too(tiny_folder: Path) -> None:
    assert isinstance(AutoModel.from_pretrained(tiny_folder), BertModel)
    assert make_tokenizer("bert").pad_token_id == 0
