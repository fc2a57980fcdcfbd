"""Objective: the named parts of a loss, each with a weight by epoch, over the vectors of one batch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.training.config_sections import LossConfig
from luotuo_integrations.training.contrast import (
    angle_loss,
    cosent_loss,
    in_batch_cosent,
    matryoshka,
    sigmoid_contrast,
    softmax_contrast,
    triplet_loss,
)
from luotuo_integrations.training.losses import (
    cosine_matrix,
    cse_loss,
    feature_loss,
    masked_margin_loss,
    similarity_kl,
)


class ObjectiveError(LuotuoError, ValueError):
    """A loss is unknown, has an option that it does not know, or lacks what it compares."""


@dataclass(frozen=True, slots=True)
class StepVectors:
    """What a loss sees of one batch of B rows.

    Attributes:
        columns: The student's vectors, each (B, D): query, positive, then one column a hard negative.
        teacher: The teacher's vectors, column by column (B, E), of length 1; None in fine-tuning.
        labels: Scores of the rows, (B,); None for pairs and triplets.
        ignore: bool (B, B + B * K): candidates that are no negatives of a query, being the same text as its positive.
    """

    columns: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None
    ignore: Tensor | None = None

    @property
    def negatives(self) -> Tensor | None:
        """(B, K, D), or None without hard negatives."""
        return torch.stack(self.columns[2:], dim=1) if len(self.columns) > 2 else None


def _teacher(vectors: StepVectors) -> tuple[Tensor, ...]:
    assert vectors.teacher is not None
    return vectors.teacher


def _similarities(vectors: StepVectors) -> tuple[Tensor, Tensor]:
    """R and S, each (B, B): cosines of first with second column, the student's and the teacher's."""
    teacher = _teacher(vectors)
    return cosine_matrix(vectors.columns[0], vectors.columns[1]), cosine_matrix(teacher[0], teacher[1])


def feature(vectors: StepVectors, distance: Any = "l1") -> Tensor:
    """Distance of each vector to the teacher's, over all columns."""
    return feature_loss(torch.cat(vectors.columns), torch.cat(_teacher(vectors)), distance)


def cse(vectors: StepVectors, temperature: float = 0.05) -> Tensor:
    """In-batch cross entropy by row and by column."""
    return cse_loss(cosine_matrix(vectors.columns[0], vectors.columns[1]), temperature)


def kl(
    vectors: StepVectors,
    temperature: float = 0.03,
    teacher_temperature: float | None = None,
    prior: float = 0.0,
    direction: Any = "forward",
) -> Tensor:
    """KL of the similarity matrices by row and by column."""
    student, teacher = _similarities(vectors)
    return similarity_kl(
        student, teacher, temperature, teacher_temperature=teacher_temperature, prior=prior, direction=direction
    )


def margin(vectors: StepVectors, margin: float = 0.1) -> Tensor:
    """Masked margin."""
    return masked_margin_loss(*_similarities(vectors), margin)


def softmax(vectors: StepVectors, temperature: float = 0.05, symmetric: bool = False) -> Tensor:
    """In-batch softmax contrast with hard negatives."""
    first, second = vectors.columns[:2]
    return softmax_contrast(
        first, second, vectors.negatives, temperature=temperature, symmetric=symmetric, ignore=vectors.ignore
    )


def sigmoid(vectors: StepVectors, temperature: float = 0.1) -> Tensor:
    """In-batch sigmoid contrast with hard negatives."""
    first, second = vectors.columns[:2]
    return sigmoid_contrast(first, second, vectors.negatives, temperature=temperature, ignore=vectors.ignore)


def triplet(vectors: StepVectors, margin: float = 0.2) -> Tensor:
    """Hinge of cosines over the hard negatives."""
    first, second = vectors.columns[:2]
    negatives = vectors.negatives
    assert negatives is not None
    return triplet_loss(first, second, negatives, margin=margin)


def batch_cosent(vectors: StepVectors, scale: float = 20.0) -> Tensor:
    """CoSENT over the pairs of a batch."""
    first, second = vectors.columns[:2]
    return in_batch_cosent(first, second, vectors.negatives, scale=scale, ignore=vectors.ignore)


def cosent(vectors: StepVectors, scale: float = 20.0) -> Tensor:
    """CoSENT over scored pairs."""
    scores = torch.nn.functional.cosine_similarity(vectors.columns[0], vectors.columns[1])
    return cosent_loss(scores, _labels(vectors), scale)


def angle(vectors: StepVectors, scale: float = 20.0) -> Tensor:
    """AnglE over scored pairs."""
    return angle_loss(vectors.columns[0], vectors.columns[1], _labels(vectors), scale)


def _labels(vectors: StepVectors) -> Tensor:
    assert vectors.labels is not None
    return vectors.labels


@dataclass(frozen=True, slots=True)
class LossKind:
    """A loss by name: its function, and what it needs beside two columns."""

    function: Callable[..., Tensor]
    needs: str = ""  # "teacher", "labels", "negatives"
    cuttable: bool = True  # whether shorter vectors can be asked to serve too


LOSS_KINDS: dict[str, LossKind] = {
    "feature": LossKind(feature, "teacher", cuttable=False),
    "kl": LossKind(kl, "teacher"),
    "cse": LossKind(cse),
    "margin": LossKind(margin, "teacher"),
    "softmax": LossKind(softmax),
    "sigmoid": LossKind(sigmoid),
    "triplet": LossKind(triplet, "negatives"),
    "in-batch-cosent": LossKind(batch_cosent),
    "cosent": LossKind(cosent, "labels"),
    "angle": LossKind(angle, "labels"),
}


@dataclass(frozen=True, slots=True)
class LossPart:
    """One part, ready to be computed."""

    name: str
    function: Callable[[StepVectors], Tensor]
    weights: tuple[float, ...]
    cuttable: bool

    def weight(self, epoch: int) -> float:
        """Weight in an epoch, counted from 0; the last one stays."""
        return self.weights[min(epoch, len(self.weights) - 1)]


class Objective:
    """The sum of weighted parts.

    Args:
        parts: Name of each part and its settings.
        has: What batches will hold beside two columns: any of ``"teacher"``, ``"labels"``, ``"negatives"``.
        matryoshka: Shorter dimensions that must serve too: every part that compares similarities is the mean over
            these and the whole.

    Raises:
        ObjectiveError: If a loss or an option is unknown, or needs what batches will not hold.
    """

    def __init__(self, parts: Mapping[str, LossConfig], has: Sequence[str], matryoshka: Sequence[int] = ()) -> None:
        self.parts = [_loss_part(name, config, has) for name, config in parts.items()]
        if not self.parts:
            msg = f"no loss is given; name one or more of {', '.join(LOSS_KINDS)}"
            raise ObjectiveError(msg)
        self.matryoshka = tuple(matryoshka)
        last = max(len(part.weights) for part in self.parts)
        idle = [epoch for epoch in range(last) if not any(part.weight(epoch) for part in self.parts)]
        if idle:
            msg = f"in epoch {idle[0] + 1} every part of the loss has weight 0; give one a weight above 0"
            raise ObjectiveError(msg)

    def __call__(self, vectors: StepVectors, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            vectors: The batch.
            epoch: From 0: decides the weights.

        Returns:
            The weighted sum, and each part that has a weight in this epoch, unweighted.

        Raises:
            ObjectiveError: If a Matryoshka dimension is longer than the vectors.
        """
        whole = vectors.columns[0].shape[1]
        wrong = [dimension for dimension in self.matryoshka if not 0 < dimension < whole]
        if wrong:
            msg = f"matryoshka holds {wrong[0]}, but must be 1 to {whole - 1} for vectors of {whole} numbers"
            raise ObjectiveError(msg)
        active = [part for part in self.parts if part.weight(epoch)]
        values = {part.name: self._value(part, vectors) for part in active}
        total = torch.stack([part.weight(epoch) * values[part.name] for part in active]).sum()
        return total, values

    def _value(self, part: LossPart, vectors: StepVectors) -> Tensor:
        if not part.cuttable or not self.matryoshka:
            return part.function(vectors)
        whole = vectors.columns[0].shape[1]
        return matryoshka(
            lambda *columns: part.function(replace(vectors, columns=columns)),
            vectors.columns,
            [*self.matryoshka, whole],
        )


def _loss_part(name: str, config: LossConfig, has: Sequence[str]) -> LossPart:
    kind_name = config.kind or name
    if kind_name not in LOSS_KINDS:
        msg = f"loss {kind_name!r} is unknown; choose of {', '.join(LOSS_KINDS)}"
        raise ObjectiveError(msg)
    kind = LOSS_KINDS[kind_name]
    if kind.needs and kind.needs not in has:
        given = ", ".join(has) or "two texts a row and nothing else"
        msg = f"loss {kind_name!r} needs {kind.needs}, but the data has {given}; choose another loss"
        raise ObjectiveError(msg)
    options = config.options()
    known = [option for option in inspect.signature(kind.function).parameters if option != "vectors"]
    unknown = [option for option in options if option not in known]
    if unknown:
        msg = f"loss {kind_name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        raise ObjectiveError(msg)

    def function(vectors: StepVectors) -> Tensor:
        return kind.function(vectors, **options)

    return LossPart(name, function, config.weights, kind.cuttable)
