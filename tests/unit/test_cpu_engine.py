"""The CPU engine: oneDNN's products give what torch's give, and are used only where they do."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

from luotuo_integrations import cpu_engine
from luotuo_integrations.cpu_engine import PackedLinear, fastest_on_cpu
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.model_folder import ModelSettings
from luotuo_integrations.modeling import EmbeddingModel

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

SETTINGS = ModelSettings(pooling="mean", normalize=True)
BOTH = [torch.float32, torch.bfloat16]


def bert(width: int = 128, activation: str = "gelu") -> EmbeddingModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        hidden_act=activation,
    )
    return EmbeddingModel(BertModel(config, add_pooling_layer=False), SETTINGS).eval()


def qwen() -> EmbeddingModel:
    """Causal, with fewer heads for keys than for queries, and rotary positions."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=100,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        use_cache=False,
    )
    return EmbeddingModel(Qwen3Model(config), ModelSettings(pooling="last", normalize=True)).eval()


def batch(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, 100, mask.shape, generator=torch.Generator().manual_seed(1)), mask


def embed(model: EmbeddingModel, *lengths: int) -> Tensor:
    with torch.inference_mode():
        return nn.functional.normalize(model(*batch(*lengths)).float(), dim=1)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the measurement prefer these types, in this order: a test must not depend on the machine's speed."""

    def prefer(*dtypes: torch.dtype) -> None:
        monkeypatch.setattr(cpu_engine, "_faster_dtypes", lambda *_: list(dtypes))

    return prefer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packed_linear_multiplies_as_linear_does(bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 70, bias=bias)
    packed = PackedLinear(linear.to(dtype))
    for shape in ((3, 96), (2, 5, 96), (1, 96)):
        values = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(
                packed(values.to(dtype)).float(), linear.float()(values), atol=tolerance, rtol=tolerance
            )
        linear.to(dtype)


def test_packed_linear_applies_the_exact_gelu() -> None:
    torch.manual_seed(0)
    linear, values = nn.Linear(64, 96), 3 * torch.randn(5, 64)
    expected = [[0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in linear(values).tolist()]
    with torch.inference_mode():
        found = PackedLinear(linear, gelu=True)(values)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("activation", "fused"), [("gelu", True), ("gelu_new", False), ("relu", False)])
def test_only_the_exact_gelu_is_part_of_the_product(activation: str, fused: bool, choose: Any) -> None:
    model = bert(activation=activation)
    choose(torch.float32)
    packed, engine = fastest_on_cpu(model, allow_bfloat16=False)
    assert engine == "onednn"
    layers = [layer.intermediate for layer in packed.backbone.encoder.layer]
    assert [isinstance(layer.intermediate_act_fn, nn.Identity) for layer in layers] == [fused] * 2
    torch.testing.assert_close(embed(packed, 9, 4), embed(model, 9, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [bert, qwen])
@pytest.mark.parametrize("dtype", BOTH)
def test_vectors_are_those_of_the_model(make: Any, dtype: torch.dtype, choose: Any) -> None:
    model = make()
    expected = embed(model, 9, 9, 7, 1)
    choose(dtype)
    packed, engine = fastest_on_cpu(model, allow_bfloat16=True)
    assert engine == "onednn"
    assert packed is not model
    assert not any(type(module) is nn.Linear for module in packed.modules())
    found = embed(packed, 9, 9, 7, 1)
    assert float((found * expected).sum(dim=1).min()) > 0.9999
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(embed(model, 9, 9, 7, 1), expected)  # the given model is left as it was


def test_what_need_not_change_is_shared_and_buffers_keep_their_type(choose: Any) -> None:
    model = qwen()
    choose(torch.float32)
    packed, _ = fastest_on_cpu(model, allow_bfloat16=False)
    assert packed.backbone.embed_tokens.weight.data_ptr() == model.backbone.embed_tokens.weight.data_ptr()
    choose(torch.bfloat16)
    packed, _ = fastest_on_cpu(model, allow_bfloat16=True)
    assert packed.backbone.embed_tokens.weight.dtype == torch.bfloat16
    assert packed.backbone.rotary_emb.inv_freq.dtype == torch.float32


def test_a_faster_type_that_disagrees_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, choose: Any, caplog: pytest.LogCaptureFixture
) -> None:
    choose(torch.bfloat16, torch.float32)
    monkeypatch.setattr(cpu_engine, "_least_cosine", lambda _, other: 0.9998 if is_bfloat16(other) else 1.0)
    with caplog.at_level(logging.INFO, logger="luotuo_integrations"):
        packed, engine = fastest_on_cpu(bert(), allow_bfloat16=True)
    assert engine == "onednn"
    assert not is_bfloat16(packed)
    assert "torch.bfloat16 is not used: a cosine of 0.999800" in caplog.text


def is_bfloat16(model: EmbeddingModel) -> bool:
    return {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_wrong_products_are_found_out(monkeypatch: pytest.MonkeyPatch, choose: Any) -> None:
    class Wrong(PackedLinear):
        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values).flip(-1)

    choose(torch.float32)
    monkeypatch.setattr(cpu_engine, "PackedLinear", Wrong)
    model = bert()
    assert fastest_on_cpu(model, allow_bfloat16=True) == (model, "torch")


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, AttributeError])
def test_a_torch_without_the_operator_goes_on_as_it_is(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, choose: Any
) -> None:
    def missing(*_: nn.Linear, **__: bool) -> nn.Module:
        raise error("no oneDNN")

    choose(torch.float32)
    monkeypatch.setattr(cpu_engine, "PackedLinear", missing)
    model = bert()
    assert fastest_on_cpu(model, allow_bfloat16=True) == (model, "torch")


def test_narrow_models_and_other_types_are_left_alone(choose: Any) -> None:
    choose(torch.float32)
    for model in (bert(width=64), bert().half(), bert().double()):
        assert fastest_on_cpu(model, allow_bfloat16=True) == (model, "torch")


def test_only_what_is_allowed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[torch.dtype]] = []

    def note(_: nn.Linear, dtypes: set[torch.dtype]) -> list[torch.dtype]:
        asked.append(set(dtypes))
        return []

    monkeypatch.setattr(cpu_engine, "_faster_dtypes", note)
    fastest_on_cpu(bert(), allow_bfloat16=False)
    fastest_on_cpu(bert(), allow_bfloat16=True)
    fastest_on_cpu(bert().bfloat16(), allow_bfloat16=False)
    assert asked == [{torch.float32}, {torch.float32, torch.bfloat16}, {torch.bfloat16}]


def test_measurement_orders_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts products: torch's takes 9, float32 3, bfloat16 2."""
    clock = [0.0]
    cost = {torch.float32: 3.0, torch.bfloat16: 2.0}

    class Counted(PackedLinear):
        def forward(self, values: Tensor) -> Tensor:
            clock[0] += cost[values.dtype]
            return values

    linear = nn.Linear(64, 64)
    linear.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 9.0))
    monkeypatch.setattr(cpu_engine, "PackedLinear", Counted)
    monkeypatch.setattr(cpu_engine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cpu_engine, "_measured", {})
    assert cpu_engine._faster_dtypes(linear, set(BOTH)) == [torch.bfloat16, torch.float32]
    cost[torch.bfloat16] = 8.9  # hardly faster: not worth another type
    assert cpu_engine._measure(linear, set(BOTH)) == [torch.float32]
    # Another model of the process runs as the first does.
    assert cpu_engine._faster_dtypes(nn.Linear(64, 64), set(BOTH)) == [torch.bfloat16, torch.float32]
    assert cpu_engine._faster_dtypes(linear, {torch.float32}) == [torch.float32]


# -- attention --------------------------------------------------------------------------------------------------------


def naive_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    rows, heads, tokens, width = query.shape
    output = torch.zeros(rows, tokens, heads, width)
    for row in range(rows):
        for head in range(heads):
            for token in range(tokens):
                seen = [other for other in range(tokens) if mask is None or mask[row, 0, token, other]]
                scores = [float(query[row, head, token] @ key[row, head, other]) / math.sqrt(width) for other in seen]
                weights = torch.softmax(torch.tensor(scores), dim=0)
                for weight, other in zip(weights, seen, strict=True):
                    output[row, token, head] += weight * value[row, head, other]
    return output


@pytest.mark.parametrize("texts_at_once", [1, 2, 8])
@pytest.mark.parametrize("mask", [None, "padding", "causal"])
def test_attention_equals_a_double_loop(texts_at_once: int, mask: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # Seen as (B, T, heads, width) by the model, and handed over transposed.
    query, key, value = (torch.randn(3, 7, 2, 8).transpose(1, 2) for _ in range(3))
    seen = None
    if mask == "padding":
        seen = (torch.arange(7) < torch.tensor([7, 4, 1])[:, None]).view(3, 1, 1, 7).expand(3, 1, 7, 7)
    elif mask == "causal":
        seen = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 1, 7, 7)
    monkeypatch.setattr(cpu_engine, "_SCORES", texts_at_once * 2 * 7 * 7 * 4)
    output, weights = cpu_engine._attention(nn.Identity(), query, key, value, seen, is_causal=False)
    assert weights is None
    torch.testing.assert_close(output, naive_attention(query, key, value, seen), atol=1e-5, rtol=1e-5)


def test_long_texts_and_causal_models_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(2, 2, 5, 8) for _ in range(3))
    layer = nn.Identity()
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    found, _ = cpu_engine._attention(layer, query, key, value, None, is_causal=True)
    torch.testing.assert_close(found, naive_attention(query, key, value, causal), atol=1e-5, rtol=1e-5)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("all scores of a long text were held at once")

    monkeypatch.setattr(cpu_engine, "_MOST_SCORES", 2 * 5 * 5 * 4 - 1)
    monkeypatch.setattr(torch, "baddbmm", refuse)
    found, _ = cpu_engine._attention(layer, query, key, value, None, is_causal=False)
    torch.testing.assert_close(found, naive_attention(query, key, value, None), atol=1e-5, rtol=1e-5)


# -- the encoder ------------------------------------------------------------------------------------------------------


def test_the_bundled_model_gives_the_same_vectors_by_each_engine() -> None:
    texts = ["试用期可以请年假吗？", "出差住宿标准是每晚四百五十元。" * 30, "", "ＡＢＣ 2026年"]
    plain = Encoder(device="cpu", backend="torch", dtype="float32")
    assert plain.engine == "torch"
    expected = plain.encode(texts)
    for dtype in ("auto", "float32", "bfloat16"):
        found = Encoder(device="cpu", dtype=dtype).encode(texts)
        assert float((found * expected).sum(axis=1).min()) > 0.9999


def test_packed_weights_are_not_saved_by_mistake(tmp_path: Path, choose: Any) -> None:
    choose(torch.float32)
    packed, _ = fastest_on_cpu(bert(), allow_bfloat16=False)
    with pytest.raises(RuntimeError, match=r"load it with backend='torch'"):
        packed.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="backend='onnx' is unknown; use 'auto' or 'torch'"):
        Encoder(tiny_folder, backend="onnx")
