"""From token vectors to one vector a text. Padding may stand on either side; it never counts."""

from collections.abc import Sequence

import torch
from torch import Tensor

POOLINGS = ("cls", "mean", "last", "first_last_mean", "embedding_last_mean", "weighted_mean")
# These average two of the model's layers, so the backbone must return all of them.
NEEDS_HIDDEN_STATES = frozenset({"first_last_mean", "embedding_last_mean"})


def pool(hidden_states: Sequence[Tensor], attention_mask: Tensor, pooling: str) -> Tensor:
    """Pool token vectors into text vectors.

    Args:
        hidden_states: Token vectors by layer, each (B, T, H): the embedding layer first, the last layer last. Poolings
            outside ``NEEDS_HIDDEN_STATES`` read only the last entry.
        attention_mask: (B, T), 1 for tokens and 0 for padding. Every row must hold a token.
        pooling: One of ``POOLINGS``. ``cls`` is the first token, ``last`` the last one; ``mean`` is over tokens;
            ``first_last_mean`` and ``embedding_last_mean`` average the last layer with the first layer or with the
            embedding layer before the mean; ``weighted_mean`` weights token i (from 1) by i (SGPT, Muennighoff 2022).

    Returns:
        (B, H), in the dtype of the token vectors. Means are summed in float32.

    Raises:
        ValueError: If the pooling is unknown.
    """
    tokens = hidden_states[-1]  # (B, T, H)
    rows = torch.arange(len(tokens), device=tokens.device)
    if pooling == "cls":
        return tokens[rows, attention_mask.argmax(dim=1)]
    if pooling == "last":
        from_the_end = attention_mask.flip(dims=(1,)).argmax(dim=1)  # (B,)
        return tokens[rows, attention_mask.shape[1] - 1 - from_the_end]
    if pooling == "first_last_mean":
        tokens = (hidden_states[1] + tokens) / 2
    elif pooling == "embedding_last_mean":
        tokens = (hidden_states[0] + tokens) / 2
    elif pooling not in {"mean", "weighted_mean"}:
        msg = f"pooling={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}"
        raise ValueError(msg)
    weights = attention_mask.cumsum(dim=1) * attention_mask if pooling == "weighted_mean" else attention_mask
    # float16 overflows: the weights of 512 tokens sum to 131,328. And some models leave NaN where padding stands, which
    # a weight of zero would not remove.
    weights = weights.unsqueeze(-1).float()  # (B, T, 1)
    total = (tokens.float() * weights).masked_fill(weights == 0, 0.0).sum(dim=1)  # (B, H)
    return (total / weights.sum(dim=1).clamp(min=1.0)).to(tokens.dtype)
