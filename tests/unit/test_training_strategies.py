"""Strategies: after a step of an optimizer only what should have changed has changed, tensor by tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertModel

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.model_folder import ModelSettings
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.strategies import (
    StrategySettings,
    apply_strategy,
    finish_strategy,
    parameter_groups,
    trainable_parameters,
)

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 198, 199, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
WORDS = "backbone.embeddings.word_embeddings.weight"


@pytest.fixture
def model(tiny_folder: Path) -> EmbeddingModel:
    return EmbeddingModel.load(tiny_folder)


def modernbert() -> EmbeddingModel:
    """A backbone without any bias."""
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    sizes = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return EmbeddingModel(ModernBertModel(ModernBertConfig(**sizes, **tokens, intermediate_size=32)), ModelSettings())


def step(model: EmbeddingModel, settings: StrategySettings, times: int = 3) -> None:
    """Train a little, with as much weight decay as would show anywhere."""
    groups = parameter_groups(model, settings, learning_rate=0.01, weight_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    for _ in range(times):
        optimizer.zero_grad()
        model(IDS, MASK).square().sum().backward()
        optimizer.step()


def changed(model: EmbeddingModel, before: dict[str, torch.Tensor]) -> set[str]:
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def train(model: EmbeddingModel, settings: StrategySettings) -> set[str]:
    """Apply, step, finish; return the names of the tensors that are not what they were."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_strategy(model, settings)
    step(model, settings)
    finish_strategy(model, settings)
    return changed(model, before)


def parameters(model: EmbeddingModel) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_full_changes_every_weight(model: EmbeddingModel) -> None:
    assert train(model, StrategySettings()) == parameters(model)


def test_frozen_embeddings_stay(model: EmbeddingModel) -> None:
    names = parameters(model)
    embeddings = {name for name in names if name.startswith("backbone.embeddings.")}
    assert len(embeddings) == 5
    assert train(model, StrategySettings(freeze_embeddings=True)) == names - embeddings


def test_bias_changes_biases_and_heads_alone(model: EmbeddingModel) -> None:
    biases = {name for name in parameters(model) if name.endswith(".bias")}
    assert len(biases) == 17
    # A bias of the keys adds one number to all attention scores of a query, which softmax takes out again: what moves
    # it is rounding.
    keys = {name for name in biases if ".key." in name}
    assert train(model, StrategySettings("bias")) | keys == biases | {"heads.0.0.weight"}


def test_heads_stay_where_their_rate_is_zero(model: EmbeddingModel) -> None:
    assert "heads.0.0.weight" not in train(model, StrategySettings("bias", head_learning_rate=0))
    assert "heads.0.0.weight" not in train(model, StrategySettings(head_learning_rate=0))


@pytest.mark.parametrize("freeze", [False, True])
def test_prefix_changes_the_last_rows_and_heads_alone(model: EmbeddingModel, freeze: bool) -> None:
    before = model.backbone.get_input_embeddings().weight.detach().clone()
    settings = StrategySettings("prefix", prefix_tokens=2, freeze_embeddings=freeze)
    assert train(model, settings) == {WORDS, "heads.0.0.weight"}
    after = model.backbone.get_input_embeddings().weight
    assert torch.equal(after[:-2], before[:-2])
    assert (after[-2:] != before[-2:]).all()
    model(IDS, MASK).sum().backward()  # the mask is gone
    assert after.grad is not None
    assert after.grad[5].any()


def test_lora_changes_the_attention_and_heads_alone(model: EmbeddingModel) -> None:
    names = ("self.query", "self.key", "self.value", "output.dense")
    attention = {f"backbone.encoder.layer.{layer}.attention.{name}.weight" for layer in range(2) for name in names}
    assert train(model, StrategySettings("lora", lora_rank=2)) == attention | {"heads.0.0.weight"}


def test_lora_changes_its_targets_and_prefix_rows_where_asked(model: EmbeddingModel) -> None:
    before = model.backbone.get_input_embeddings().weight.detach().clone()
    settings = StrategySettings("lora", lora_targets=("query",), prefix_tokens=1, head_learning_rate=0)
    queries = {f"backbone.encoder.layer.{layer}.attention.self.query.weight" for layer in range(2)}
    assert train(model, settings) == queries | {WORDS}
    assert torch.equal(model.backbone.get_input_embeddings().weight[:-1], before[:-1])


def test_merged_lora_gives_the_vectors_it_gave_unmerged(model: EmbeddingModel) -> None:
    settings = StrategySettings("lora", lora_rank=4)
    config, names, rng = model.backbone.config.to_dict(), parameters(model), torch.random.get_rng_state()
    plain = model(IDS, MASK)
    apply_strategy(model, settings)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert model.backbone.config.to_dict() == config
    torch.testing.assert_close(model(IDS, MASK), plain, rtol=0, atol=1e-6)
    step(model, settings)
    unmerged = model(IDS, MASK)
    assert (unmerged - plain).abs().max() > 0.01
    finish_strategy(model, settings)
    torch.testing.assert_close(model(IDS, MASK), unmerged, rtol=0, atol=1e-5)
    assert parameters(model) == names
    assert not hasattr(model.backbone, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_lora_starts_from_the_same_numbers_each_time(tiny_folder: Path) -> None:
    weights = []
    for _ in range(2):
        model = EmbeddingModel.load(tiny_folder)
        apply_strategy(model, StrategySettings("lora"))
        weights.append(model.backbone.encoder.layer[1].attention.self.query.lora_A["default"].weight)
    assert weights[0].any()
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["full", "bias", "prefix", "lora"])
def test_a_trained_model_is_saved_as_a_plain_folder(
    name: Any, model: EmbeddingModel, tiny_folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    train(model, StrategySettings(name, prefix_tokens=name == "prefix"))
    folder = model.save(tmp_path / "trained", TextTokenizer(tiny_folder).tokenizer)
    loaded = EmbeddingModel.load(folder)
    assert loaded.state_dict().keys() == EmbeddingModel.load(tiny_folder).state_dict().keys()
    torch.testing.assert_close(loaded(IDS, MASK), model(IDS, MASK), rtol=0, atol=1e-6)
    texts = ["员工可以请年假吗", "出差住宿标准 abc"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name="query")
    ours = Encoder(folder, device="cpu").encode(texts, kind="query")
    torch.testing.assert_close(torch.from_numpy(theirs), torch.from_numpy(ours), rtol=0, atol=1e-5)


def test_layer_decay_by_hand(model: EmbeddingModel) -> None:
    settings = StrategySettings(layer_decay=0.5, head_learning_rate=10.0)
    apply_strategy(model, settings)
    groups = parameter_groups(model, settings, learning_rate=0.8, weight_decay=0.1)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("embeddings", pytest.approx(0.1), 0.1),
        ("embeddings, no decay", pytest.approx(0.1), 0.0),
        ("layer 0", pytest.approx(0.2), 0.1),
        ("layer 0, no decay", pytest.approx(0.2), 0.0),
        ("layer 1", pytest.approx(0.4), 0.1),
        ("layer 1, no decay", pytest.approx(0.4), 0.0),
        ("heads", pytest.approx(8.0), 0.1),
    ]


def test_every_learning_weight_is_in_one_group_and_vectors_do_not_decay(model: EmbeddingModel) -> None:
    settings = StrategySettings()
    apply_strategy(model, settings)
    groups = parameter_groups(model, settings, learning_rate=0.1, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups} == {0.1}
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.0) == (parameter.ndim == 1)


def test_a_last_norm_learns_like_the_top_and_lora_like_its_layer() -> None:
    model = modernbert()
    full = StrategySettings(layer_decay=0.5)
    apply_strategy(model, full)
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, full, learning_rate=1, weight_decay=0)}
    assert rates["backbone, no decay"] == 1
    assert rates["layer 1"] == 0.5
    assert rates["embeddings"] == 0.125
    finish_strategy(model, full)
    lora = StrategySettings("lora", layer_decay=0.5)
    apply_strategy(model, lora)
    groups = parameter_groups(model, lora, learning_rate=1, weight_decay=0.1)
    assert [(group["name"], group["lr"]) for group in groups] == [("layer 0", 0.25), ("layer 1", 0.5)]


def test_prefix_rows_have_no_weight_decay(model: EmbeddingModel) -> None:
    settings = StrategySettings("prefix", prefix_tokens=3)
    apply_strategy(model, settings)
    groups = parameter_groups(model, settings, learning_rate=0.1, weight_decay=0.1)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("embeddings, no decay", 0.0),
        ("heads", 0.1),
    ]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (StrategySettings(), None),
        (StrategySettings("bias"), 2 * (7 * 16 + 32) + 16 + 24 * 16),
        (StrategySettings("prefix", prefix_tokens=3), 3 * 16 + 24 * 16),
        (StrategySettings("lora", lora_rank=2, lora_targets=("query",)), 2 * 2 * (16 + 16) + 24 * 16),
    ],
)
def test_learning_numbers_are_counted(model: EmbeddingModel, settings: StrategySettings, count: int | None) -> None:
    plain = sum(parameter.numel() for parameter in model.parameters())
    apply_strategy(model, settings)
    trainable, whole = trainable_parameters(model)
    assert trainable == (plain if count is None else count)
    assert whole == plain + (2 * 2 * (16 + 16) if settings.name == "lora" else 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "adapter"}, "name='adapter' is not allowed: full or bias or prefix or lora"),
        ({"layer_decay": 0.0}, "layer_decay=0.0 is not allowed: above 0, at most 1"),
        ({"layer_decay": 1.1}, "layer_decay=1.1"),
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"lora_alpha": 0.0}, "lora_alpha=0.0"),
        ({"lora_targets": ()}, r"lora_targets=\(\)"),
        ({"name": "prefix"}, "prefix_tokens=0 is not allowed: at least 1 for 'prefix'"),
        ({"head_learning_rate": -1.0}, "head_learning_rate=-1.0"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StrategySettings(**options)


def test_what_a_model_lacks_is_named(model: EmbeddingModel) -> None:
    with pytest.raises(ValueError, match="this model has no biases; choose 'lora' or 'full'"):
        apply_strategy(modernbert(), StrategySettings("bias"))
    with pytest.raises(ValueError, match="lora_targets: q_proj names no linear map of BertModel; it has dense, key"):
        apply_strategy(model, StrategySettings("lora", lora_targets=("query", "q_proj")))
    with pytest.raises(ValueError, match="prefix_tokens=201, but the model has only 200 word embeddings"):
        apply_strategy(model, StrategySettings("prefix", prefix_tokens=201))
    settings = StrategySettings("lora", head_learning_rate=0)
    apply_strategy(model, settings)
    with pytest.raises(ValueError, match="already carries a strategy: call finish_strategy"):
        apply_strategy(model, StrategySettings())


def test_a_strategy_under_which_nothing_learns_is_refused(model: EmbeddingModel) -> None:
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight learns"):
        parameter_groups(model, StrategySettings(), learning_rate=0.1, weight_decay=0)


def test_unknown_layers_matter_only_to_layer_decay(model: EmbeddingModel) -> None:
    model.backbone.encoder.blocks = model.backbone.encoder.layer
    del model.backbone.encoder.layer
    flat = StrategySettings()
    apply_strategy(model, flat)
    groups = parameter_groups(model, flat, learning_rate=0.1, weight_decay=0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="BertModel keeps its layers in none of"):
        apply_strategy(model, StrategySettings(layer_decay=0.9))
