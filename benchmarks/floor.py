"""The least time that a model's matrix products can take: their operations over the rate measured on this machine.

Everything else (embeddings, softmax, normalisation, tokenization, padding, Python) counts for nothing here, so that no
program reaches the floor.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from luotuo_integrations.cpu_engine import PackedLinear
from luotuo_integrations.encoder import Encoder

TOKENS = 2_048  # rows of a product that is timed: those of a batch
ROUNDS = 20


class Floor(NamedTuple):
    """Seconds, and what they were computed from."""

    seconds: float
    gigaflop: float
    linear_rate: float  # gigaflop/s over all Linear layers
    attention_rate: float  # gigaflop/s over both products of attention


def floor(encoder: Encoder, lengths: list[int], dtype: torch.dtype) -> Floor:
    """The floor of embedding texts of these token counts, in one type, by the best kernel for each shape.

    Args:
        encoder: On torch's own modules.
        lengths: Tokens of each text, prompt and special tokens included.
        dtype: float32 or bfloat16.
    """
    config: Any = encoder.model.backbone.config
    tokens = np.minimum(lengths, encoder.max_length)
    shapes = Counter(
        (linear.in_features, linear.out_features)
        for linear in encoder.model.backbone.modules()
        if isinstance(linear, nn.Linear)
    )
    linear = sum(2.0 * count * inner * outer for (inner, outer), count in shapes.items()) * tokens.sum()
    seconds = sum(
        2.0 * count * inner * outer * tokens.sum() / linear_rate(inner, outer, dtype)
        for (inner, outer), count in shapes.items()
    )
    width = config.hidden_size // config.num_attention_heads
    attention = 4.0 * config.num_hidden_layers * config.hidden_size * (tokens.astype(float) ** 2).sum()
    # Most of attention's operations are in long texts; their products run at the higher rate.
    typical = int((tokens.astype(float) ** 3).sum() / (tokens.astype(float) ** 2).sum())
    rate = attention_rate(config.num_attention_heads, typical, width, dtype)
    return Floor(seconds + attention / rate, (linear + attention) / 1e9, linear / seconds / 1e9, rate / 1e9)


def linear_rate(inner: int, outer: int, dtype: torch.dtype) -> float:
    """Operations a second of (TOKENS, inner) times (inner, outer), by the faster of torch's two libraries."""
    layer = nn.Linear(inner, outer).to(dtype)
    values = torch.randn(TOKENS, inner).to(dtype)
    kernels: list[Callable[[], object]] = [lambda: layer(values)]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = PackedLinear(layer)
        kernels.append(lambda: packed(values))
    return 2.0 * TOKENS * inner * outer / min(map(_seconds, kernels))


def attention_rate(heads: int, tokens: int, width: int, dtype: torch.dtype) -> float:
    """Operations a second of the two products of attention over a text."""
    queries, keys, values = (torch.randn(heads, tokens, width).to(dtype) for _ in range(3))
    scores = torch.bmm(queries, keys.transpose(1, 2))
    seconds = _seconds(lambda: torch.bmm(queries, keys.transpose(1, 2))) + _seconds(lambda: torch.bmm(scores, values))
    return 4.0 * heads * tokens * tokens * width / seconds


def _seconds(product: Callable[[], object]) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(3):
            product()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            product()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
