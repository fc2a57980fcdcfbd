import pytest
import torch
from torch import Tensor

from luotuo_integrations.pooling import NEEDS_HIDDEN_STATES, POOLINGS, pool


def by_loops(layers: list[Tensor], mask: Tensor, pooling: str) -> Tensor:
    """Each definition written out, text by text and token by token."""
    rows = []
    for row in range(len(mask)):
        kept = [column for column in range(mask.shape[1]) if mask[row, column]]
        first, last = [layer[row] for layer in (layers[0], layers[-1])]
        if pooling == "cls":
            rows.append(last[kept[0]])
        elif pooling == "last":
            rows.append(last[kept[-1]])
        elif pooling == "mean":
            rows.append(sum(last[column] for column in kept) / len(kept))
        elif pooling == "first_last_mean":
            rows.append(sum((layers[1][row][column] + last[column]) / 2 for column in kept) / len(kept))
        elif pooling == "embedding_last_mean":
            rows.append(sum((first[column] + last[column]) / 2 for column in kept) / len(kept))
        elif pooling == "weighted_mean":
            weights = range(1, len(kept) + 1)
            rows.append(sum(w * last[column] for w, column in zip(weights, kept, strict=True)) / sum(weights))
    return torch.stack(rows)


def padded(side: str) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(4, 7, 5, generator=generator) for _ in range(4)]
    mask = torch.zeros(4, 7, dtype=torch.long)
    for row, length in enumerate((7, 1, 3, 5)):
        mask[row, :length] = 1
    return layers, mask.flip(dims=(1,)) if side == "left" else mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_loops(pooling: str, side: str) -> None:
    layers, mask = padded(side)
    torch.testing.assert_close(pool(layers, mask, pooling), by_loops(layers, mask, pooling))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("rubbish", [1e6, float("nan"), float("inf")])
def test_what_stands_in_the_padding_never_counts(pooling: str, side: str, rubbish: float) -> None:
    layers, mask = padded(side)
    dirty = [layer.masked_fill(mask.unsqueeze(-1) == 0, rubbish) for layer in layers]
    torch.testing.assert_close(pool(dirty, mask, pooling), pool(layers, mask, pooling))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_half_precision_neither_overflows_nor_drifts(pooling: str, dtype: torch.dtype) -> None:
    # The weights of 2,000 tokens sum to two million, far beyond float16; the tokens themselves to 200,000.
    tokens = torch.full((1, 2000, 2), 100.0, dtype=dtype)
    pooled = pool([tokens], torch.ones(1, 2000, dtype=torch.long), pooling)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), torch.full((1, 2), 100.0))


def test_only_the_two_layer_means_need_all_layers() -> None:
    layers, mask = padded("right")
    for pooling in POOLINGS:
        if pooling not in NEEDS_HIDDEN_STATES:
            torch.testing.assert_close(pool(layers[-1:], mask, pooling), pool(layers, mask, pooling))


def test_gradients_reach_the_tokens_and_not_the_padding() -> None:
    layers, mask = padded("right")
    tokens = layers[-1].requires_grad_()
    pool([tokens], mask, "mean").sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[mask == 1] != 0).all()
    assert (tokens.grad[mask == 0] == 0).all()


def test_an_unknown_pooling_is_refused_with_the_known_ones() -> None:
    layers, mask = padded("right")
    with pytest.raises(ValueError, match=r"'max' is unknown.*cls, mean, last"):
        pool(layers, mask, "max")
