"""Losses of distillation: how far a student is from its teacher, by vectors and by similarities.

A batch is B pairs of texts that belong together, the front and the back half of an article for instance. A similarity
matrix is (B, B): row i holds the cosines of front half i to every back half, the diagonal those of the pairs.

The teacher's side is never given a gradient. Half-precision tensors are computed in float32; call outside of autocast,
which would undo that.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor


def cosine_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of every row of one matrix to every row of another.

    Args:
        first: (N, D).
        second: (M, D), on the same device.

    Returns:
        (N, M), float32 or float64, in [-1, 1] up to rounding; a row of zeros has cosine 0 to everything.

    Raises:
        ValueError: If these are not two matrices of one width.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        msg = f"Vectors are {tuple(first.shape)} and {tuple(second.shape)}; they must be (N, D) and (M, D)"
        raise ValueError(msg)
    return F.normalize(full_precision(first), dim=1) @ F.normalize(full_precision(second), dim=1).T


def feature_loss(student: Tensor, teacher: Tensor, distance: Literal["l1", "mse", "cosine"] = "l1") -> Tensor:
    """Distance of each student vector f to the teacher's vector g of the same text, mean over the rows.

    ``"l1"``: ||f - g||_1 / sqrt(D), at most ||f - g||_2, so that dimensions compare; ``"mse"``: ||f - g||_2^2;
    ``"cosine"``: 1 - cos(f, g). The first two take the vectors as they are: normalise them before, if the
    teacher's length means nothing.

    Args:
        student: (N, D).
        teacher: (N, D).
        distance: Which of the three.

    Returns:
        A scalar, at least 0 up to rounding.

    Raises:
        ValueError: If the shapes differ, or there is no such distance.
    """
    _check_same_shape(student, teacher, "vectors")
    if distance not in ("l1", "mse", "cosine"):
        msg = f"distance is {distance!r}; give 'l1', 'mse' or 'cosine'"
        raise ValueError(msg)
    student, teacher = full_precision(student), full_precision(teacher).detach()
    if distance == "l1":
        return (student - teacher).abs().sum(dim=1).mean() / math.sqrt(student.shape[1])
    if distance == "mse":
        return (student - teacher).square().sum(dim=1).mean()
    return (1 - (F.normalize(student, dim=1) * F.normalize(teacher, dim=1)).sum(dim=1)).mean()


def cse_loss(similarity: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of sentence embeddings: each row, and each column, must find its own partner.

    With R the similarities: -1/(2B) * sum_i [log softmax_j(R_ij / t) at j = i + log softmax_j(R_ji / t) at j = i]
    (InfoNCE both ways, as in CLIP, arXiv:2103.00020).

    Args:
        similarity: (B, B) of the student.
        temperature: t, above 0.

    Returns:
        A scalar, at least 0; 0 for a batch of one pair.

    Raises:
        ValueError: If the matrix is not square, or the temperature is not above 0.
    """
    _check_square(similarity)
    check_positive("temperature", temperature)
    logits = full_precision(similarity) / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def diagonal_prior(log_probabilities: Tensor, prior: float) -> Tensor:
    """Draw each row's distribution towards its own partner.

    With Q the probabilities and I the identity: Q~ = sqrt((1 - prior) Q^2 + prior I), each row then divided by its
    sum. Computed from logarithms, so that probabilities too small for a float32 keep theirs.

    Args:
        log_probabilities: log Q, (B, B), each row a distribution.
        prior: In [0, 1): 0 changes nothing, near 1 nothing but the diagonal is left.

    Returns:
        log Q~, (B, B).

    Raises:
        ValueError: If the matrix is not square, or the prior is not in [0, 1).
    """
    if not 0 <= prior < 1:
        msg = f"prior is {prior}; it must be at least 0 and below 1 (what 1 would mean is cse_loss)"
        raise ValueError(msg)
    if prior == 0:
        return log_probabilities
    _check_square(log_probabilities)
    off_diagonal = log_probabilities + math.log1p(-prior) / 2
    of_identity = torch.full_like(off_diagonal.diagonal(), math.log(prior))
    diagonal = torch.logaddexp(2 * off_diagonal.diagonal(), of_identity) / 2
    own = torch.eye(len(off_diagonal), dtype=torch.bool, device=off_diagonal.device)
    return torch.where(own, diagonal.unsqueeze(1), off_diagonal).log_softmax(dim=1)


def similarity_kl(
    student_similarity: Tensor,
    teacher_similarity: Tensor,
    temperature: float,
    *,
    teacher_temperature: float | None = None,
    prior: float = 0.0,
    direction: Literal["forward", "reverse"] = "forward",
) -> Tensor:
    """Kullback-Leibler divergence between what the teacher and the student find similar.

    Rows of R / t and of S / t_teacher become distributions P (student) and Q (teacher) by softmax; Q is drawn to the
    diagonal by ``prior`` (see ``diagonal_prior``). Forward is KL(Q || P), reverse KL(P || Q), mean over the rows. The
    same is done with columns; the loss is the mean of both.

    Args:
        student_similarity: R, (B, C).
        teacher_similarity: S, (B, C).
        temperature: t, above 0.
        teacher_temperature: t_teacher, above 0; None means ``temperature``.
        prior: In [0, 1); above 0 the matrices must be square.
        direction: Forward makes the student cover all that the teacher finds similar; reverse makes it keep to it.

    Returns:
        A scalar, at least 0 up to rounding; 0 if the distributions are equal.

    Raises:
        ValueError: If shapes differ, a temperature is not above 0, or the prior or the direction is not allowed.
    """
    _check_same_shape(student_similarity, teacher_similarity, "similarities")
    check_positive("temperature", temperature)
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    check_positive("teacher_temperature", teacher_temperature)
    if direction not in ("forward", "reverse"):
        msg = f"direction is {direction!r}; give 'forward' or 'reverse'"
        raise ValueError(msg)
    student = full_precision(student_similarity) / temperature
    teacher = full_precision(teacher_similarity).detach() / teacher_temperature
    parts = []
    for student_logits, teacher_logits in ((student, teacher), (student.T, teacher.T)):
        log_student = student_logits.log_softmax(dim=1)
        log_teacher = diagonal_prior(teacher_logits.log_softmax(dim=1), prior)
        of, to = (log_teacher, log_student) if direction == "forward" else (log_student, log_teacher)
        parts.append((of.exp() * (of - to)).sum(dim=1).mean())
    return (parts[0] + parts[1]) / 2


def masked_margin_loss(student_similarity: Tensor, teacher_similarity: Tensor, margin: float = 0.1) -> Tensor:
    """Hinge that keeps a pair more similar than what the teacher itself finds clearly less similar.

    Row terms max(0, R_ij - R_ii + m) where S_ij < S_ii - m, column terms max(0, R_ji - R_ii + m) where
    S_ji < S_ii - m, j != i; the mean of all these terms. What the teacher finds about as similar as the pair may be
    a false negative, and counts for nothing.

    Args:
        student_similarity: R, (B, B).
        teacher_similarity: S, (B, B).
        margin: m, a difference of cosines, at least 0.

    Returns:
        A scalar, at least 0; 0, with a gradient of zeros, if no term is left.

    Raises:
        ValueError: If the matrices are not square and of one shape, or the margin is negative.
    """
    _check_square(student_similarity)
    _check_same_shape(student_similarity, teacher_similarity, "similarities")
    if not margin >= 0:
        msg = f"margin is {margin}; it must be at least 0"
        raise ValueError(msg)
    student, teacher = full_precision(student_similarity), full_precision(teacher_similarity)
    terms, counted = [], []
    for ours, theirs in ((student, teacher), (student.T, teacher.T)):
        terms.append((ours - ours.diagonal().unsqueeze(1) + margin).clamp(min=0))
        counted.append(theirs < theirs.diagonal().unsqueeze(1) - margin)
    # The diagonal is never below itself, so it masks itself out.
    mask = torch.stack(counted)
    return (torch.stack(terms) * mask).sum() / mask.sum().clamp(min=1)


def token_state_loss(student: Tensor, teacher: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of token states, each dimension in units of its spread, mean over tokens and dimensions.

    A transformer's states have a few dimensions that are far larger than all others; unscaled, these alone would be
    learnt.

    Args:
        student: (N, T, H).
        teacher: (N, T, H).
        scale: (H,), above 0: the standard deviation of each of the teacher's dimensions.
        mask: (N, T), nonzero for tokens, 0 for padding; at least one token.

    Returns:
        A scalar, at least 0; 1 where the student is as far off as a standard deviation.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if student.ndim != 3 or student.shape != teacher.shape or mask.shape != student.shape[:2]:
        shapes = [tuple(one.shape) for one in (student, teacher, mask)]
        msg = f"The states are {shapes[0]} and {shapes[1]}, the mask {shapes[2]}; they must be (N, T, H) twice, (N, T)"
        raise ValueError(msg)
    real = mask.bool()
    difference = (full_precision(student[real]) - full_precision(teacher[real]).detach()) / full_precision(scale)
    return difference.square().mean()


def neighbourhood_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL from the teacher's to the student's neighbourhoods: who lies how near to whom among the texts of a batch.

    Row i of the teacher, P_i = softmax over j != i of cos(g_i, g_j) / temperature, against the student's Q_i; the mean
    over the rows of KL(P_i || Q_i).

    Args:
        student: (N, D), N of at least 2.
        teacher: (N, E).
        temperature: Above 0.

    Returns:
        A scalar, at least 0 up to rounding.

    Raises:
        ValueError: If the numbers of rows differ or are below 2, or the temperature is not above 0.
    """
    check_positive("temperature", temperature)
    if len(student) != len(teacher) or len(student) < 2:
        msg = (
            f"There are {len(student)} vectors of the student and {len(teacher)} of the teacher; give 2 or more of each"
        )
        raise ValueError(msg)
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)

    def log_neighbours(vectors: Tensor) -> Tensor:
        scores = cosine_matrix(vectors, vectors)[others].view(len(vectors), -1) / temperature
        return F.log_softmax(scores, dim=1)  # (N, N - 1)

    return F.kl_div(log_neighbours(student), log_neighbours(teacher).detach(), log_target=True, reduction="batchmean")


def full_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is if it is more precise."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_positive(name: str, value: float) -> None:
    """Refuse a temperature or a scale that is not above 0.

    Raises:
        ValueError: If ``value`` is 0, negative, infinite or not a number.
    """
    if not 0 < value < math.inf:
        msg = f"{name} is {value}; it must be a number above 0"
        raise ValueError(msg)


def _check_square(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        msg = f"The similarities are {tuple(matrix.shape)}; they must be square, with the pairs on the diagonal"
        raise ValueError(msg)


def _check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        msg = f"The student's {what} are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; both must be one"
        msg += " matrix shape"
        raise ValueError(msg)
