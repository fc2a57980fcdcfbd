"""Fine-tuning losses against double loops in Python floats."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luotuo_integrations.training.contrast import (
    angle_loss,
    cosent_loss,
    in_batch_cosent,
    matryoshka,
    sigmoid_contrast,
    softmax_contrast,
    triplet_loss,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(size: int, negatives: int = 0, width: int = 6) -> tuple[Tensor, Tensor, Tensor | None]:
    hard = numbers(size, negatives, width, seed=2) if negatives else None
    return numbers(size, width), numbers(size, width, seed=1), hard


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def candidates_of(positive: Tensor, negatives: Tensor | None) -> list[list[float]]:
    rows: list[list[float]] = positive.tolist()
    for own in [] if negatives is None else negatives.tolist():
        rows.extend(own)
    return rows


def cosines_of(query: Tensor, positive: Tensor, negatives: Tensor | None) -> list[list[float]]:
    return [[cosine(q, c) for c in candidates_of(positive, negatives)] for q in query.tolist()]


def some_ignored(size: int, negatives: int) -> Tensor:
    """A third of the candidates, own positives among them: these must count in spite of it."""
    return numbers(size, size * (1 + negatives), seed=9) > 0.4


SHAPES = pytest.mark.parametrize(("size", "negatives"), [(1, 0), (1, 2), (2, 0), (4, 0), (4, 3)])
MASKED = pytest.mark.parametrize("masked", [False, True])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_cosent_is_the_sum_over_wrongly_ranked_pairs(count: int) -> None:
    scores, labels = torch.tanh(numbers(count)), torch.tensor([3, 1, 2, 2, 0, 1, 3])[:count]
    total = 1.0
    for i in range(count):
        for j in range(count):
            if labels[i] > labels[j]:
                total += math.exp(5.0 * (scores[j] - scores[i]).item())
    assert cosent_loss(scores, labels, 5.0).item() == pytest.approx(math.log(total))


def test_cosent_is_zero_with_a_gradient_where_all_labels_are_equal() -> None:
    scores = numbers(4).requires_grad_()
    loss = cosent_loss(scores, torch.ones(4))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0] * 4


def test_cosent_pushes_scores_towards_the_order_of_the_labels() -> None:
    scores = torch.tensor([0.1, 0.9], requires_grad=True)
    cosent_loss(scores, torch.tensor([1.0, 0.0])).backward()
    assert scores.grad is not None
    assert scores.grad[0] < 0 < scores.grad[1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_angle_is_division_of_complex_numbers_ranked_by_cosent(count: int) -> None:
    first, second, labels = numbers(count, 6), numbers(count, 6, seed=1), torch.arange(count) % 3
    scores = []
    for z, w in zip(first.tolist(), second.tolist(), strict=True):
        length = math.sqrt(sum(value * value for value in z)), math.sqrt(sum(value * value for value in w))
        whole = sum(complex(z[k], z[k + 3]) * complex(w[k], w[k + 3]).conjugate() for k in range(3))
        quotient = whole / (length[0] * length[1])
        scores.append(abs(quotient.real + quotient.imag))
    expected = cosent_loss(torch.tensor(scores, dtype=torch.float64), labels, 20.0)
    assert angle_loss(first, second, labels).item() == pytest.approx(expected.item())


def test_the_angle_score_of_equal_vectors_is_one() -> None:
    first = numbers(2, 4)
    second = torch.stack([first[0], torch.stack([-first[1, 1], first[1, 0], -first[1, 3], first[1, 2]])])
    got = angle_loss(first, second, torch.tensor([1, 0]), 1.0)
    z, w = first[1], second[1]
    other = abs(
        (z[0] * w[0] + z[1] * w[1] + z[2] * w[2] + z[3] * w[3])
        + (z[2] * w[0] + z[3] * w[1] - z[0] * w[2] - z[1] * w[3])
    ) / (z.norm() * w.norm())
    assert got.item() == pytest.approx(math.log(1 + math.exp(other.item() - 1)))


@SHAPES
@MASKED
@pytest.mark.parametrize("symmetric", [False, True])
def test_softmax_contrast_is_cross_entropy_over_the_candidates(
    size: int, negatives: int, masked: bool, symmetric: bool
) -> None:
    query, positive, hard = batch(size, negatives)
    ignore = some_ignored(size, negatives) if masked else None
    cosines = cosines_of(query, positive, hard)
    there = back = 0.0
    for i in range(size):
        own = math.exp(cosines[i][i] / 0.2)
        others = [math.exp(cosines[i][c] / 0.2) for c in range(len(cosines[i])) if counts(ignore, i, c)]
        there -= math.log(own / (own + sum(others))) / size
        queries = [math.exp(cosines[j][i] / 0.2) for j in range(size) if counts(ignore, j, i)]
        back -= math.log(own / (own + sum(queries))) / size
    expected = (there + back) / 2 if symmetric else there
    got = softmax_contrast(query, positive, hard, 0.2, symmetric, ignore=ignore)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def counts(ignore: Tensor | None, query: int, candidate: int) -> bool:
    """Whether a candidate is a negative of a query."""
    return query != candidate and (ignore is None or not ignore[query, candidate])


@SHAPES
@MASKED
def test_sigmoid_contrast_decides_each_candidate_by_itself(size: int, negatives: int, masked: bool) -> None:
    query, positive, hard = batch(size, negatives)
    ignore = some_ignored(size, negatives) if masked else None
    cosines = cosines_of(query, positive, hard)
    expected = 0.0
    for i in range(size):
        for c in range(len(cosines[i])):
            if i == c or counts(ignore, i, c):
                sign = 1 if i == c else -1
                expected += math.log(1 + math.exp(-sign * (cosines[i][c] / 0.2 - 3.0))) / size
    got = sigmoid_contrast(query, positive, hard, 0.2, -3.0, ignore=ignore)
    assert got.item() == pytest.approx(expected)


@SHAPES
@MASKED
def test_in_batch_cosent_ranks_each_pair_above_the_other_candidates(size: int, negatives: int, masked: bool) -> None:
    query, positive, hard = batch(size, negatives)
    ignore = some_ignored(size, negatives) if masked else None
    cosines = cosines_of(query, positive, hard)
    total = 1.0
    for i in range(size):
        for c in range(len(cosines[i])):
            if counts(ignore, i, c):
                total += math.exp(4.0 * (cosines[i][c] - cosines[i][i]))
    got = in_batch_cosent(query, positive, hard, 4.0, ignore=ignore)
    assert got.item() == pytest.approx(math.log(total), abs=1e-12)


@pytest.mark.parametrize(("size", "negatives"), [(1, 1), (2, 1), (3, 4)])
def test_triplet_is_the_mean_hinge_over_own_negatives(size: int, negatives: int) -> None:
    query, positive, hard = batch(size, negatives)
    assert hard is not None
    terms = []
    for q, p, own in zip(query.tolist(), positive.tolist(), hard.tolist(), strict=True):
        terms += [max(0.0, cosine(q, n) - cosine(q, p) + 0.3) for n in own]
    assert triplet_loss(query, positive, hard, 0.3).item() == pytest.approx(sum(terms) / len(terms))


def test_the_same_positive_twice_is_no_negative_when_ignored() -> None:
    query, positive, _ = batch(2)
    twice = positive[:1].repeat(2, 1).requires_grad_()
    ignore = torch.tensor([[False, True], [True, False]])
    for loss in (softmax_contrast, partial(softmax_contrast, symmetric=True), in_batch_cosent):
        assert loss(query, twice).item() > 0.6  # log 2 or more: as if one text were wrong and right
        (gradient,) = torch.autograd.grad(loss(query, twice, ignore=ignore), twice)
        assert gradient.abs().max() < 1e-12
    assert sigmoid_contrast(query, twice, ignore=ignore) < sigmoid_contrast(query, twice)


def test_matryoshka_is_the_weighted_mean_over_cut_vectors() -> None:
    query, positive, hard = batch(3, 2, width=8)
    assert hard is not None
    by_dimension = [softmax_contrast(query[:, :d], positive[:, :d], hard[:, :, :d]).item() for d in (8, 4, 2)]
    equal = matryoshka(softmax_contrast, (query, positive, hard), (8, 4, 2))
    assert equal.item() == pytest.approx(sum(by_dimension) / 3)
    weighted = matryoshka(softmax_contrast, (query, positive, hard), (8, 4, 2), (2.0, 1.0, 0.0))
    assert weighted.item() == pytest.approx((2 * by_dimension[0] + by_dimension[1]) / 3)


def test_matryoshka_binds_what_is_not_a_vector() -> None:
    first, second, labels = numbers(4, 8), numbers(4, 8, seed=1), torch.arange(4)
    got = matryoshka(partial(angle_loss, labels=labels), (first, second), (4,))
    assert got.item() == pytest.approx(angle_loss(first[:, :4], second[:, :4], labels).item())


SMOOTH: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda q, p, n: softmax_contrast(q, p, n, 0.3, True, ignore=some_ignored(3, 2)),
    lambda q, p, n: sigmoid_contrast(q, p, n, 0.3, ignore=some_ignored(3, 2)),
    lambda q, p, n: in_batch_cosent(q, p, n, 3.0, ignore=some_ignored(3, 2)),
    lambda q, p, n: triplet_loss(q, p, n),
    lambda q, p, n: cosent_loss(q[:, 0], torch.tensor([1, 0, 2]), 3.0) + 0 * (p.sum() + n.sum()),
    lambda q, p, n: angle_loss(q, p, torch.tensor([1, 0, 2]), 3.0) + 0 * n.sum(),
    lambda q, p, n: matryoshka(softmax_contrast, (q, p, n), (2, 6)),
]


@pytest.mark.parametrize("loss", SMOOTH)
def test_gradients_are_those_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    inputs = tuple(tensor.requires_grad_() for tensor in batch(3, 2) if tensor is not None)
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(
    "loss",
    [
        partial(softmax_contrast, temperature=0.005, symmetric=True),
        partial(sigmoid_contrast, temperature=0.005),
        partial(in_batch_cosent, scale=500.0),
        triplet_loss,
        lambda q, p, n: cosent_loss((q * p).sum(dim=1) / 25, torch.tensor([2, 1, 0]), 500.0) + n.sum() * 0,
        lambda q, p, n: angle_loss(q, p, torch.tensor([2, 1, 0]), 500.0) + n.sum() * 0,
    ],
)
def test_extreme_cosines_overflow_nowhere_in_float32(loss: Callable[..., Tensor]) -> None:
    query = torch.tensor([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[-5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    negatives = torch.tensor([[[5.0, 0.0]], [[-5.0, 0.0]], [[5.0, 0.0]]])
    value = loss(query, positive, negatives)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_one_query_without_negatives_has_nothing_to_learn_but_a_gradient() -> None:
    for loss in (softmax_contrast, partial(softmax_contrast, symmetric=True), in_batch_cosent):
        query = numbers(1, 4).requires_grad_()
        value = loss(query, numbers(1, 4, seed=1))
        value.backward()
        assert value.item() == pytest.approx(0)
        assert query.grad is not None
        assert query.grad.abs().max() < 1e-12


def test_the_length_of_vectors_does_not_count() -> None:
    query, positive, hard = batch(3, 2)
    assert hard is not None
    labels = torch.arange(3)
    for loss in (softmax_contrast, sigmoid_contrast, in_batch_cosent, triplet_loss):
        torch.testing.assert_close(loss(query * 7, positive * 0.1, hard * 3), loss(query, positive, hard))
    torch.testing.assert_close(angle_loss(query * 7, positive, labels), angle_loss(query, positive, labels))


def test_half_precision_is_computed_in_float32() -> None:
    query, positive, _ = batch(3)
    value = softmax_contrast(query.to(torch.bfloat16), positive.to(torch.bfloat16))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(softmax_contrast(query, positive).item(), rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, p, n: softmax_contrast(q, p, n, 0.0), "temperature is 0.0"),
        (lambda q, p, n: sigmoid_contrast(q, p, n, -1.0), "temperature is -1.0"),
        (lambda q, p, n: in_batch_cosent(q, p, n, math.nan), "scale is nan"),
        (lambda q, p, n: cosent_loss(q[:, 0], q[:, 0], 0.0), "scale is 0.0"),
        (lambda q, p, n: cosent_loss(q, q), r"both must be \(N,\)"),
        (lambda q, p, n: softmax_contrast(q, p[:2]), "query, positive and negatives are"),
        (lambda q, p, n: softmax_contrast(q, p, n[:2]), "query, positive and negatives are"),
        (lambda q, p, n: softmax_contrast(q, p, n[:, :0]), "K above 0"),
        (lambda q, p, n: triplet_loss(q, p, n[:, 0]), "query, positive and negatives are"),
        (lambda q, p, n: triplet_loss(q, p, n, -0.1), "margin is -0.1"),
        (lambda q, p, n: softmax_contrast(q, p, n, ignore=torch.zeros(3, 3).bool()), r"boolean \(3, 9\)"),
        (lambda q, p, n: softmax_contrast(q, p, ignore=torch.zeros(3, 3)), "ignore is torch.float32"),
        (lambda q, p, n: angle_loss(q[:, :5], p[:, :5], torch.arange(3)), "an even D"),
        (lambda q, p, n: matryoshka(softmax_contrast, (q, p), (7,)), "from 1 to 6"),
        (lambda q, p, n: matryoshka(softmax_contrast, (q, p), ()), "at least one"),
        (lambda q, p, n: matryoshka(softmax_contrast, (q, p), (6, 2), (1.0,)), "give 2"),
        (lambda q, p, n: matryoshka(softmax_contrast, (q, p), (6, 2), (0.0, 0.0)), "not all 0"),
    ],
)
def test_bad_input_is_refused(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*batch(3, 2))
