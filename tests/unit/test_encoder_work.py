"""How much work embedding is, counted and not timed: padding, forward passes, copies. A regression shows here first."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luotuo_integrations import encoder as encoder_module
from luotuo_integrations.encoder import CHUNK, Encoder

SHORTEST, LONGEST = 10, 2_000
SOURCE = "试用期员工可以请年假吗？一线城市住宿标准为每晚不超过四百五十元，丢失电脑要在两小时内上报。" * 60


class Counter:
    """In the place of the model's forward: counts, and computes nothing."""

    def __init__(self, encoder: Encoder) -> None:
        self.dimension = encoder.model.dimension
        self.shapes: list[tuple[int, int]] = []
        self.real = 0

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.shapes.append(tuple(input_ids.shape))
        self.real += int(attention_mask.sum())
        return torch.ones(len(input_ids), self.dimension)

    @property
    def padded(self) -> int:
        return sum(rows * tokens for rows, tokens in self.shapes)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(device="cpu", dtype="float32", backend="torch")


@pytest.fixture
def counter(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Counter:
    counted = Counter(encoder)
    monkeypatch.setattr(encoder.model, "forward", counted)
    return counted


def mixed_texts(count: int) -> list[str]:
    """Log-uniform lengths, as chunks and questions together have them."""
    generator = random.Random(0)
    lengths = [round(SHORTEST * (LONGEST / SHORTEST) ** generator.random()) for _ in range(count)]
    return [SOURCE[start : start + length] for start, length in zip(range(count), lengths, strict=True)]


@pytest.mark.parametrize("count", [256, 3_000])
def test_hardly_any_token_is_padding(encoder: Encoder, counter: Counter, count: int) -> None:
    encoder.encode(mixed_texts(count))
    assert counter.padded / counter.real <= 1.05


def test_short_questions_share_forward_passes(encoder: Encoder, counter: Counter) -> None:
    questions = [SOURCE[start : start + 6 + start % 9] for start in range(512)]
    encoder.encode(questions, "query")
    assert counter.padded / counter.real <= 1.05
    assert len(counter.shapes) <= 1 + counter.real // (encoder.max_tokens_per_batch // 4)


def test_a_handful_of_texts_is_one_pass_whatever_it_pads(encoder: Encoder, counter: Counter) -> None:
    encoder.encode(["年假", "试用期员工可以请年假吗？", SOURCE[:90]])
    assert len(counter.shapes) == 1


def test_no_batch_is_over_its_budget(encoder: Encoder, counter: Counter) -> None:
    encoder.encode(mixed_texts(256))
    assert all(rows * tokens <= encoder.max_tokens_per_batch for rows, tokens in counter.shapes)


def test_vectors_leave_the_device_once_a_chunk_and_are_not_joined_again(
    encoder: Encoder, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[int] = []
    cat = torch.cat

    def count_joins(parts: Any, *arguments: Any, **options: Any) -> Tensor:
        joined.append(sum(len(part) for part in parts))
        return cat(parts, *arguments, **options)

    def refuse(parts: Any, *_: Any, **__: Any) -> None:
        assert not any(np.ndim(part) == 2 for part in parts), "the finished vectors were copied again"
        return original(parts)

    original = np.concatenate
    monkeypatch.setattr(torch, "cat", count_joins)
    monkeypatch.setattr(encoder_module.np, "concatenate", refuse)
    texts = [SOURCE[start % 500 : start % 500 + 20] for start in range(CHUNK + 76)]
    out = np.empty((len(texts), encoder.dimension), np.float32)
    assert encoder.encode(texts, out=out) is out
    assert len(joined) == 2
    assert sum(joined) == len(texts)
    assert encoder.encode(texts).shape == out.shape
    assert len(joined) == 4


def test_forward_passes_have_few_shapes(encoder: Encoder, counter: Counter) -> None:
    """Kernels are made and kept for each shape: a small batch at the end of every chunk would make hundreds."""
    generator = random.Random(0)
    starts = (generator.randrange(len(SOURCE) - 20) for _ in range(6 * CHUNK))
    encoder.encode([SOURCE[start : start + generator.randint(5, 20)] for start in starts])
    lengths = {tokens for _, tokens in counter.shapes}
    assert len(set(counter.shapes)) <= 4 * len(lengths) + 1


def test_each_text_is_tokenized_once(encoder: Encoder, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = encoder.tokenizer.encode

    def watched(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return encode(texts)

    monkeypatch.setattr(encoder.tokenizer, "encode", watched)
    texts = mixed_texts(300)
    encoder.encode(texts)
    assert sorted(seen) == sorted(encoder.prompts["passage"] + text for text in texts)
