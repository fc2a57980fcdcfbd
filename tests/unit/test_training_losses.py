"""Distillation losses against double loops in Python floats."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luotuo_integrations.training.losses import (
    cosine_matrix,
    cse_loss,
    diagonal_prior,
    feature_loss,
    masked_margin_loss,
    similarity_kl,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(size: int, seed: int) -> Tensor:
    return torch.tanh(numbers(size, size, seed=seed))


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def columns(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def naive_kl(student: Tensor, teacher: Tensor, at: float, teacher_at: float, prior: float, forward: bool) -> float:
    parts = []
    for turn in (lambda matrix: matrix, columns):
        ours, theirs = turn(student.tolist()), turn(teacher.tolist())
        total = 0.0
        for i in range(len(ours)):
            p = softmax([value / at for value in ours[i]])
            q = softmax([value / teacher_at for value in theirs[i]])
            if prior:
                q = [math.sqrt((1 - prior) * q[j] ** 2 + prior * (i == j)) for j in range(len(q))]
                q = [value / sum(q) for value in q]
            of, to = (q, p) if forward else (p, q)
            total += sum(of[j] * math.log(of[j] / to[j]) for j in range(len(p)))
        parts.append(total / len(ours))
    return sum(parts) / 2


def test_cosine_matrix_is_the_cosine_of_each_two_rows() -> None:
    first, second = numbers(3, 5), numbers(4, 5, seed=1)
    expected = [[cosine(a, b) for b in second.tolist()] for a in first.tolist()]
    torch.testing.assert_close(cosine_matrix(first, second), torch.tensor(expected, dtype=torch.float64))


def test_cosine_matrix_computes_half_precision_in_float32() -> None:
    first = numbers(3, 64).to(torch.bfloat16)
    got = cosine_matrix(first, first)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.diagonal(), torch.ones(3), atol=1e-6, rtol=0)


def test_a_row_of_zeros_has_cosine_zero() -> None:
    first = torch.zeros(1, 4, requires_grad=True)
    value = cosine_matrix(first, numbers(2, 4).float())
    assert value.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (2, 3))])
def test_cosine_matrix_refuses_what_does_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, D\) and \(M, D\)"):
        cosine_matrix(torch.ones(shapes[0]), torch.ones(shapes[1]))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_feature_loss_is_the_mean_distance_of_the_rows(rows: int) -> None:
    student, teacher = numbers(rows, 6), numbers(rows, 6, seed=1)
    together = list(zip(student.tolist(), teacher.tolist(), strict=True))
    l1 = sum(sum(abs(a - b) for a, b in zip(f, g, strict=True)) / math.sqrt(6) for f, g in together) / rows
    mse = sum(sum((a - b) ** 2 for a, b in zip(f, g, strict=True)) for f, g in together) / rows
    angular = sum(1 - cosine(f, g) for f, g in together) / rows
    assert feature_loss(student, teacher).item() == pytest.approx(l1)
    assert feature_loss(student, teacher, "mse").item() == pytest.approx(mse)
    assert feature_loss(student, teacher, "cosine").item() == pytest.approx(angular)


def test_l1_is_at_most_the_euclidean_distance() -> None:
    student, teacher = numbers(1, 32), numbers(1, 32, seed=1)
    assert feature_loss(student, teacher) <= (student - teacher).norm()
    torch.testing.assert_close(feature_loss(teacher + 0.5, teacher), torch.full((1, 32), 0.5).norm().double())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cse_loss_is_cross_entropy_by_row_and_by_column(size: int) -> None:
    similarity = cosines(size, 3)
    rows, by_column = similarity.tolist(), columns(similarity.tolist())
    expected = 0.0
    for i in range(size):
        expected -= math.log(softmax([value / 0.2 for value in rows[i]])[i]) / (2 * size)
        expected -= math.log(softmax([value / 0.2 for value in by_column[i]])[i]) / (2 * size)
    assert cse_loss(similarity, 0.2).item() == pytest.approx(expected)


def test_diagonal_prior_is_the_formula_in_probabilities() -> None:
    probabilities = cosines(4, 1).softmax(dim=1)
    raw = (0.7 * probabilities.square() + 0.3 * torch.eye(4)).sqrt()
    got = diagonal_prior(probabilities.log(), 0.3).exp()
    torch.testing.assert_close(got, raw / raw.sum(dim=1, keepdim=True))
    torch.testing.assert_close(got.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_without_a_prior_nothing_changes_and_near_one_the_diagonal_is_left() -> None:
    logarithms = cosines(4, 1).log_softmax(dim=1)
    assert diagonal_prior(logarithms, 0.0) is logarithms
    torch.testing.assert_close(diagonal_prior(logarithms, 1e-12), logarithms, atol=1e-9, rtol=0)
    almost = diagonal_prior(logarithms, 1 - 1e-12).exp()
    torch.testing.assert_close(almost, torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prior", [-0.1, 1.0, math.nan])
def test_a_prior_outside_its_range_is_refused(prior: float) -> None:
    with pytest.raises(ValueError, match="prior is"):
        diagonal_prior(torch.zeros(2, 2), prior)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("prior", [0.0, 0.4])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("teacher_temperature", [None, 0.6])
def test_similarity_kl_is_the_divergence_by_row_and_by_column(
    size: int, prior: float, direction: str, teacher_temperature: float | None
) -> None:
    student, teacher = cosines(size, 1), cosines(size, 2)
    got = similarity_kl(
        student, teacher, 0.3, teacher_temperature=teacher_temperature, prior=prior, direction=direction
    )
    expected = naive_kl(student, teacher, 0.3, teacher_temperature or 0.3, prior, direction == "forward")
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_similarity_kl_is_zero_where_both_agree_and_above_elsewhere() -> None:
    student, teacher = cosines(4, 1), cosines(4, 2)
    assert similarity_kl(teacher, teacher, 0.1).item() == pytest.approx(0, abs=1e-12)
    assert similarity_kl(student, teacher, 0.1).item() > 0.01


def test_similarity_kl_takes_matrices_that_are_not_square_unless_there_is_a_prior() -> None:
    student, teacher = numbers(2, 3), numbers(2, 3, seed=1)
    assert similarity_kl(student, teacher, 1.0).item() == pytest.approx(naive_kl(student, teacher, 1, 1, 0, True))
    with pytest.raises(ValueError, match="must be square"):
        similarity_kl(student, teacher, 1.0, prior=0.1)


def naive_margin(student: Tensor, teacher: Tensor, margin: float) -> float:
    terms = []
    for i in range(len(student)):
        for j in range(len(student)):
            if j != i and teacher[i, j] < teacher[i, i] - margin:
                terms.append(max(0.0, (student[i, j] - student[i, i]).item() + margin))
            if j != i and teacher[j, i] < teacher[i, i] - margin:
                terms.append(max(0.0, (student[j, i] - student[i, i]).item() + margin))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_masked_margin_is_the_mean_hinge_over_what_the_teacher_finds_clearly_less_similar(
    size: int, margin: float
) -> None:
    student, teacher = cosines(size, 5), cosines(size, 6)
    expected = naive_margin(student, teacher, margin)
    assert masked_margin_loss(student, teacher, margin).item() == pytest.approx(expected)


def test_masked_margin_leaves_false_negatives_alone() -> None:
    teacher = torch.tensor([[0.9, 0.85], [0.2, 0.9]])
    student = torch.tensor([[0.5, 0.7], [0.0, 0.5]], requires_grad=True)
    masked_margin_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad[0, 1] == 0
    worse = torch.tensor([[0.5, 0.0], [0.7, 0.5]])
    assert masked_margin_loss(worse, teacher).item() == pytest.approx(0.3)


def test_masked_margin_is_zero_with_a_gradient_where_nothing_is_left() -> None:
    student = cosines(3, 1).requires_grad_()
    loss = masked_margin_loss(student, torch.ones(3, 3))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


SMOOTH: list[Callable[[Tensor], Tensor]] = [
    lambda x: cosine_matrix(x, numbers(3, 4, seed=7)),
    lambda x: feature_loss(x, numbers(4, 4, seed=7)),
    lambda x: feature_loss(x, numbers(4, 4, seed=7), "mse"),
    lambda x: feature_loss(x, numbers(4, 4, seed=7), "cosine"),
    lambda x: cse_loss(x, 0.3),
    lambda x: diagonal_prior(x.log_softmax(dim=1), 0.3),
    lambda x: similarity_kl(x, cosines(4, 7), 0.3, prior=0.2),
    lambda x: similarity_kl(x, cosines(4, 7), 0.3, prior=0.2, direction="reverse"),
    lambda x: masked_margin_loss(x, cosines(4, 7)),
]


@pytest.mark.parametrize("loss", SMOOTH)
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (cosines(4, 0).requires_grad_(),))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = cosines(3, 1).requires_grad_(), cosines(3, 2).requires_grad_()
    losses = [
        *(feature_loss(student, teacher, distance) for distance in ("l1", "mse", "cosine")),
        similarity_kl(student, teacher, 0.1, prior=0.1),
        masked_margin_loss(student, teacher),
    ]
    torch.stack(losses).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_extreme_cosines_overflow_nowhere_in_float32(direction: str, prior: float) -> None:
    worst = (1 - 2 * torch.eye(4)).requires_grad_()
    teacher = 2 * torch.eye(4) - 1
    loss = similarity_kl(worst, teacher, 0.005, prior=prior, direction=direction) + cse_loss(worst, 0.005)
    loss.backward()
    assert loss.isfinite()
    assert loss > 100
    assert worst.grad is not None
    assert worst.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: cse_loss(m, 0.0), "temperature is 0.0"),
        (lambda m: cse_loss(m, math.inf), "temperature is inf"),
        (lambda m: cse_loss(m[:2], 0.1), "must be square"),
        (lambda m: similarity_kl(m, m, -1.0), "temperature is -1.0"),
        (lambda m: similarity_kl(m, m, 1.0, teacher_temperature=0.0), "teacher_temperature is 0.0"),
        (lambda m: similarity_kl(m, m[:2], 1.0), "both must be one matrix shape"),
        (lambda m: similarity_kl(m, m, 1.0, direction="backward"), "'forward' or 'reverse'"),
        (lambda m: feature_loss(m, m, "l2"), "'l1', 'mse' or 'cosine'"),
        (lambda m: feature_loss(m, m[:, :2]), "both must be one matrix shape"),
        (lambda m: masked_margin_loss(m, m, -0.1), "margin is -0.1"),
        (lambda m: masked_margin_loss(m[:2], m[:2]), "must be square"),
    ],
)
def test_bad_input_is_refused(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.eye(3))
