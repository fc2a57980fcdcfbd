"""The CPU engine of rerankers: the same margins as torch's, or torch's."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_rerankers import bert_tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from luotuo_integrations import CrossEncoder, LuotuoReranker, cpu_engine
from luotuo_integrations.cpu_engine import MOST_MARGIN, PackedLinear, fastest_reranker_on_cpu
from luotuo_integrations.rerank_models import AnswerMargin, ClassifierMargin

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

SHAPE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}


def spread(model: nn.Module) -> nn.Module:
    """Weights as large as trained ones are: margins of some units, as rerankers have them."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    return model.eval()


def bert(labels: int = 1, vocabulary: int = 100) -> BertForSequenceClassification:
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=128, num_labels=labels, **SHAPE)
    model: BertForSequenceClassification = spread(BertForSequenceClassification(config))
    return model


def xlm_roberta() -> nn.Module:
    config = XLMRobertaConfig(vocab_size=100, max_position_embeddings=130, num_labels=1, **SHAPE)
    return spread(XLMRobertaForSequenceClassification(config))


def qwen() -> AnswerMargin:
    config = Qwen3Config(vocab_size=100, num_key_value_heads=2, head_dim=32, use_cache=False, **SHAPE)
    backbone = spread(Qwen3Model(config))
    return AnswerMargin(backbone, torch.randn(2, 128, generator=torch.Generator().manual_seed(1))).eval()


MODELS = {
    "bert, one label": lambda: ClassifierMargin(bert()).eval(),
    "bert, two labels": lambda: ClassifierMargin(bert(2)).eval(),
    "xlm-r": lambda: ClassifierMargin(xlm_roberta()).eval(),
    "qwen3": qwen,
}


def margins(model: nn.Module, *lengths: int) -> Tensor:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 100, mask.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: Tensor = model(ids, mask)
    return found


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the measurement prefer these types, in this order: a test must not depend on the machine's speed."""

    def prefer(*dtypes: torch.dtype) -> None:
        monkeypatch.setattr(cpu_engine, "_faster_dtypes", lambda *_: list(dtypes))

    return prefer


@pytest.mark.parametrize("kind", MODELS)
def test_margins_are_those_of_the_model(kind: str, choose: Any) -> None:
    model = MODELS[kind]()
    lengths = (60, 60, 41, 9, 9, 7, 2, 1)
    expected = margins(model, *lengths)
    assert expected.std() > 0.5  # else any margins would be near
    choose(torch.float32)
    packed, engine = fastest_reranker_on_cpu(model)
    assert engine == "onednn"
    assert type(packed) is type(model)
    assert packed is not model
    assert not any(type(module) is nn.Linear for module in packed.modules())
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    torch.testing.assert_close(margins(packed, *lengths), expected, atol=2e-5, rtol=2e-5)
    assert torch.equal(margins(model, *lengths), expected)  # the given model is left as it was


@pytest.mark.parametrize("error", [2e-3, float("nan")])
def test_margins_that_differ_a_little_are_found_out(
    error: float, monkeypatch: pytest.MonkeyPatch, choose: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(PackedLinear):
        def forward(self, values: Tensor) -> Tensor:
            product = super().forward(values)
            return product + error if product.shape[-1] == 1 else product  # the last layer, of one margin

    choose(torch.float32)
    monkeypatch.setattr(cpu_engine, "PackedLinear", Wrong)
    model = MODELS["bert, one label"]()
    with caplog.at_level(logging.INFO, logger="luotuo_integrations"):
        assert fastest_reranker_on_cpu(model) == (model, "torch")
    assert "is not used: margins are" in caplog.text
    assert error != error or error > MOST_MARGIN


def test_bfloat16_is_never_chosen_for_a_reranker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[torch.dtype]] = []
    monkeypatch.setattr(cpu_engine, "_faster_dtypes", lambda _, dtypes: asked.append(set(dtypes)) or [])
    fastest_reranker_on_cpu(MODELS["xlm-r"]())
    assert asked == [{torch.float32}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "重排模型"
    tokenizer = bert_tokenizer()
    bert(vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_relevances_are_the_same_by_each_engine(folder: Path, choose: Any) -> None:
    query, passages = "试用期可以请年假吗", ["试用期员工可以请年假", "", "出差住宿标准", "年假" * 200, "报销", "请假"]
    plain = CrossEncoder(folder, device="cpu", backend="torch")
    assert plain.engine == "torch"
    expected = plain.score(query, passages)
    assert np.ptp(expected) > 0.05
    choose(torch.float32)
    for encoder in (CrossEncoder(folder, device="cpu"), LuotuoReranker(model=folder, device="cpu").cross_encoder):
        assert encoder.engine == "onednn"
        np.testing.assert_allclose(encoder.score(query, passages), expected, atol=1e-5)
    assert LuotuoReranker(model=folder, device="cpu", backend="torch").cross_encoder.engine == "torch"
    with pytest.raises(ValueError, match="backend='onnx' is unknown; use 'auto' or 'torch'"):
        CrossEncoder(folder, backend="onnx")
