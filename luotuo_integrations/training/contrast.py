"""Losses of fine-tuning: rankings of scored pairs, and contrasts of queries, positives and hard negatives.

The cosines are taken here: vectors come as the model gives them. In a batch of B queries with K hard negatives each,
the candidates of every query are all B positives, then all B * K negatives, row by row (``negatives.flatten(0, 1)``):
candidate i is the own positive of query i. ``ignore`` is a boolean matrix (B, candidates): True takes a candidate out
of a query's negatives, because it is the same text as the positive for instance; at the own positive it has no effect.

Half-precision tensors are computed in float32; call outside of autocast, which would undo that.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from luotuo_integrations.training.losses import check_positive, cosine_matrix, full_precision


def cosent_loss(scores: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """Ranking of scored pairs: log(1 + sum over label_i > label_j of exp(scale * (score_j - score_i))).

    CoSENT by Su Jianlin, https://kexue.fm/archives/8847. Only the order of the labels counts.

    Args:
        scores: (N,), the cosines of N pairs.
        labels: (N,), what people say of the same pairs; higher is more similar.
        scale: Above 0; the inverse of a temperature.

    Returns:
        A scalar, at least 0; 0, with a gradient of zeros, if all labels are equal.

    Raises:
        ValueError: If the shapes are not (N,) and (N,), or the scale is not above 0.
    """
    check_positive("scale", scale)
    if scores.ndim != 1 or scores.shape != labels.shape:
        msg = f"scores are {tuple(scores.shape)}, labels {tuple(labels.shape)}; both must be (N,)"
        raise ValueError(msg)
    scores = full_precision(scores) * scale
    wrong_by = scores.unsqueeze(0) - scores.unsqueeze(1)
    return _log_one_plus_sum(wrong_by, labels.unsqueeze(1) > labels.unsqueeze(0))


def angle_loss(first: Tensor, second: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """Ranking of scored pairs by angles between complex vectors, whose gradient does not fade where a cosine's does.

    AnglE (Li and Li 2023, arXiv:2309.12871) as its authors compute it: the halves of a vector are the real and the
    imaginary part of D / 2 complex numbers z (of ``first``) and w (of ``second``). Division z / w, with the lengths
    taken over the whole vectors, gives real parts (ac + bd) and imaginary parts (bc - ad) over |z| |w|; the score of
    a pair is |sum of all real and imaginary parts|. Scores are ranked by ``cosent_loss``.

    Args:
        first: (N, D), D even.
        second: (N, D).
        labels: (N,); higher is more similar.
        scale: Above 0.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: If shapes do not fit, D is odd, or the scale is not above 0.
    """
    if first.ndim != 2 or first.shape != second.shape or first.shape[1] % 2:
        msg = f"Vectors are {tuple(first.shape)} and {tuple(second.shape)}; both must be (N, D) with an even D"
        raise ValueError(msg)
    a, b = F.normalize(full_precision(first), dim=1).chunk(2, dim=1)
    c, d = F.normalize(full_precision(second), dim=1).chunk(2, dim=1)
    scores = (a * c + b * d + b * c - a * d).sum(dim=1).abs()
    return cosent_loss(scores, labels, scale)


def softmax_contrast(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """In-batch softmax (InfoNCE, arXiv:1807.03748): each query must find its positive among all candidates.

    The mean over i of log(sum_c exp(cos(q_i, c) / t)) - cos(q_i, p_i) / t. ``symmetric`` averages this with the same
    for the positives, which must find their query among the queries.

    Args:
        query: (B, D).
        positive: (B, D).
        negatives: (B, K, D), or None.
        temperature: t, above 0.
        symmetric: Whether positives look for queries as well.
        ignore: (B, B + B * K); see above. From positive to query, its first B columns hold too.

    Returns:
        A scalar, at least 0; 0 for one query without negatives.

    Raises:
        ValueError: If shapes do not fit, or the temperature is not above 0.
    """
    check_positive("temperature", temperature)
    cosines, excluded = _candidate_cosines(query, positive, negatives, ignore)
    logits = (cosines / temperature).masked_fill(excluded, -math.inf)
    own = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, own)
    if symmetric:
        loss = (loss + F.cross_entropy(logits[:, : len(logits)].T, own)) / 2
    return loss


def sigmoid_contrast(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    bias: float = -5.0,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss (SigLIP, Zhai 2023, arXiv:2303.15343): whether a candidate belongs to a query, each by itself.

    -1/B * sum over i and c of log sigmoid(z_ic * (cos(q_i, c) / t + bias)), z = 1 for the own positive, else -1. Here
    t and the bias are constants: a candidate is taken for a positive from cosine -bias * t on, 0.5 unless told.

    Args:
        query: (B, D).
        positive: (B, D).
        negatives: (B, K, D), or None.
        temperature: t, above 0.
        bias: Negative, because most candidates are negatives.
        ignore: (B, B + B * K); see above.

    Returns:
        A scalar above 0: summed over the candidates, mean over the queries.

    Raises:
        ValueError: If shapes do not fit, or the temperature is not above 0.
    """
    check_positive("temperature", temperature)
    cosines, excluded = _candidate_cosines(query, positive, negatives, ignore)
    sign = 2 * torch.eye(*cosines.shape, dtype=cosines.dtype, device=cosines.device) - 1
    terms = -F.logsigmoid(sign * (cosines / temperature + bias))
    return terms.masked_fill(excluded, 0).sum() / len(cosines)


def triplet_loss(query: Tensor, positive: Tensor, negatives: Tensor, margin: float = 0.2) -> Tensor:
    """Triplet hinge on cosine distances: the mean over i, k of max(0, cos(q_i, n_ik) - cos(q_i, p_i) + margin).

    Args:
        query: (B, D).
        positive: (B, D).
        negatives: (B, K, D), K at least 1; each meets its own query only.
        margin: A difference of cosines, at least 0.

    Returns:
        A scalar, at least 0.

    Raises:
        ValueError: If shapes do not fit, or the margin is negative.
    """
    _check_shapes(query, positive, negatives)
    if not margin >= 0:
        msg = f"margin is {margin}; it must be at least 0"
        raise ValueError(msg)
    unit_query = F.normalize(full_precision(query), dim=-1)
    to_positive = (unit_query * F.normalize(full_precision(positive), dim=-1)).sum(dim=-1)
    to_negatives = (unit_query.unsqueeze(1) * F.normalize(full_precision(negatives), dim=-1)).sum(dim=-1)
    return (to_negatives - to_positive.unsqueeze(1) + margin).clamp(min=0).mean()


def in_batch_cosent(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    scale: float = 20.0,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """CoSENT on what a batch says by itself: each pair ranks above all other candidates of its query.

    log(1 + sum over i and c != p_i of exp(scale * (cos(q_i, c) - cos(q_i, p_i)))), one logarithm for the batch, so
    that the worst-ranked queries have the most weight. One logarithm for each query, as uniem has it for pairs, would
    be ``softmax_contrast`` with temperature 1 / scale.

    Args:
        query: (B, D).
        positive: (B, D).
        negatives: (B, K, D), or None.
        scale: Above 0.
        ignore: (B, B + B * K); see above.

    Returns:
        A scalar, at least 0; 0, with a gradient of zeros, for one query without negatives.

    Raises:
        ValueError: If shapes do not fit, or the scale is not above 0.
    """
    check_positive("scale", scale)
    cosines, excluded = _candidate_cosines(query, positive, negatives, ignore)
    wrong_by = scale * (cosines - cosines.diagonal().unsqueeze(1))
    own = torch.eye(*cosines.shape, dtype=torch.bool, device=cosines.device)
    return _log_one_plus_sum(wrong_by, ~(excluded | own))


def matryoshka(
    loss: Callable[..., Tensor],
    vectors: Sequence[Tensor],
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """A loss of vectors cut to their first numbers, so that the cut ones are of use too (arXiv:2205.13147).

    sum_d w_d * loss(vectors cut to d) / sum_d w_d: however many dimensions, the size stays that of one loss.

    Args:
        loss: Takes the cut vectors, in order, and normalises by itself; what else it needs is bound to it before.
        vectors: Each (..., D), of one D.
        dimensions: Each in 1 .. D. Give D itself too: it is not added.
        weights: One for each dimension, at least 0 and not all 0; None makes them equal.

    Returns:
        A scalar.

    Raises:
        ValueError: If a dimension or the weights are not allowed.
    """
    width = min(tensor.shape[-1] for tensor in vectors)
    if not dimensions or not all(1 <= dimension <= width for dimension in dimensions):
        msg = f"dimensions are {list(dimensions)}; give at least one, each from 1 to {width}"
        raise ValueError(msg)
    weights = [1.0] * len(dimensions) if weights is None else weights
    if len(weights) != len(dimensions) or min(weights) < 0 or sum(weights) <= 0:
        msg = f"weights are {list(weights)}; give {len(dimensions)}, one for each dimension, at least 0 and not all 0"
        raise ValueError(msg)
    total = loss(*(tensor[..., : dimensions[0]] for tensor in vectors)) * weights[0]
    for dimension, weight in zip(dimensions[1:], weights[1:], strict=True):
        total = total + loss(*(tensor[..., :dimension] for tensor in vectors)) * weight
    return total / sum(weights)


def _candidate_cosines(
    query: Tensor, positive: Tensor, negatives: Tensor | None, ignore: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cosines (B, C) of queries to candidates, and which of them are excluded (never the diagonal)."""
    _check_shapes(query, positive, negatives)
    candidates = positive if negatives is None else torch.cat([positive, negatives.flatten(0, 1)])
    cosines = cosine_matrix(query, candidates)
    own = torch.eye(*cosines.shape, dtype=torch.bool, device=cosines.device)
    if ignore is None:
        return cosines, torch.zeros_like(own)
    if ignore.dtype != torch.bool or ignore.shape != cosines.shape:
        msg = f"ignore is {ignore.dtype} {tuple(ignore.shape)}; it must be boolean {tuple(cosines.shape)}"
        raise ValueError(msg)
    return cosines, ignore & ~own


def _log_one_plus_sum(exponents: Tensor, counted: Tensor) -> Tensor:
    """log(1 + sum of exp over what counts), without overflow."""
    chosen = exponents.masked_fill(~counted, -math.inf).flatten()
    return torch.cat([chosen.new_zeros(1), chosen]).logsumexp(dim=0)


def _check_shapes(query: Tensor, positive: Tensor, negatives: Tensor | None) -> None:
    fits = query.ndim == 2 and query.shape == positive.shape
    if negatives is not None:
        fits = fits and negatives.ndim == 3 and negatives.shape[::2] == query.shape and negatives.shape[1] > 0
    if not fits:
        given = [None if tensor is None else tuple(tensor.shape) for tensor in (query, positive, negatives)]
        msg = f"query, positive and negatives are {given}; they must be (B, D), (B, D) and None or (B, K, D), K above 0"
        raise ValueError(msg)
