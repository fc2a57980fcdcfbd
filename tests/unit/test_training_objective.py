"""Objective: parts by name and epoch, what they need, Matryoshka."""

import pytest
import torch

from luotuo_integrations.training.config_sections import LossConfig
from luotuo_integrations.training.contrast import softmax_contrast
from luotuo_integrations.training.losses import cosine_matrix, cse_loss, feature_loss, similarity_kl
from luotuo_integrations.training.objective import LOSS_KINDS, Objective, ObjectiveError, StepVectors


def vectors(columns: int = 2, rows: int = 4, width: int = 8, seed: int = 0) -> StepVectors:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(rows, width, generator=generator) for _ in range(2 * columns)]
    unit = [torch.nn.functional.normalize(one, dim=1) for one in drawn]
    labels = torch.arange(rows, dtype=torch.float32)
    ignore = torch.zeros(rows, rows * (columns - 1), dtype=torch.bool)
    return StepVectors(tuple(unit[:columns]), tuple(unit[columns:]), labels, ignore)


def test_the_sum_is_weighted_by_epoch_and_the_last_weight_stays() -> None:
    parts = {"feature": LossConfig(weights=(1.0, 0.5)), "cse": LossConfig(weights=(0.0, 2.0), temperature=0.1)}
    objective = Objective(parts, ["teacher"])
    batch = vectors()
    assert batch.teacher is not None
    feature = feature_loss(torch.cat(batch.columns), torch.cat(batch.teacher), "l1")
    cse = cse_loss(cosine_matrix(*batch.columns), 0.1)
    total, values = objective(batch, epoch=0)
    assert list(values) == ["feature"]
    torch.testing.assert_close(total, feature)
    for epoch in (1, 2, 9):
        total, values = objective(batch, epoch)
        assert list(values) == ["feature", "cse"]
        torch.testing.assert_close(total, 0.5 * feature + 2.0 * cse)


def test_a_part_may_have_a_name_of_its_own_and_come_twice() -> None:
    parts = {
        "sharp": LossConfig(kind="kl", temperature=0.02, prior=0.0),
        "soft": LossConfig(kind="kl", temperature=0.2, prior=0.5),
    }
    batch = vectors()
    assert batch.teacher is not None
    total, values = Objective(parts, ["teacher"])(batch, 0)
    similarities = cosine_matrix(*batch.columns), cosine_matrix(*batch.teacher)
    expected = {
        "sharp": similarity_kl(*similarities, 0.02, prior=0.0),
        "soft": similarity_kl(*similarities, 0.2, prior=0.5),
    }
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(total, expected["sharp"] + expected["soft"])


def test_matryoshka_is_the_mean_over_dimensions_and_leaves_the_feature_loss_alone() -> None:
    parts = {"feature": LossConfig(), "softmax": LossConfig(temperature=0.1)}
    batch = vectors(columns=3)
    _, whole = Objective(parts, ["teacher", "negatives"])(batch, 0)
    _, values = Objective(parts, ["teacher", "negatives"], matryoshka=(2, 4))(batch, 0)
    torch.testing.assert_close(values["feature"], whole["feature"])
    cuts = []
    for size in (2, 4, 8):
        query, positive, negative = (column[:, :size] for column in batch.columns)
        cuts.append(softmax_contrast(query, positive, negative.unsqueeze(1), temperature=0.1))
    torch.testing.assert_close(values["softmax"], torch.stack(cuts).mean())


@pytest.mark.parametrize("name", sorted(LOSS_KINDS))
def test_every_kind_gives_a_finite_number_and_a_gradient(name: str) -> None:
    batch = vectors(columns=3)
    columns = tuple(column.clone().requires_grad_() for column in batch.columns)
    batch = StepVectors(columns, batch.teacher, batch.labels, batch.ignore)
    total, values = Objective({name: LossConfig()}, ["teacher", "negatives", "labels"])(batch, 0)
    total.backward()
    assert torch.isfinite(total)
    assert list(values) == [name]
    assert columns[0].grad is not None
    assert columns[0].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("parts", "has", "named"),
    [
        ({"klee": LossConfig()}, ["teacher"], "loss 'klee' is unknown; choose of feature, kl"),
        ({"kl": LossConfig()}, [], "loss 'kl' needs teacher, but the data has two texts a row"),
        ({"triplet": LossConfig()}, ["labels"], "needs negatives, but the data has labels"),
        ({"kl": LossConfig(margin=0.1)}, ["teacher"], "has no option 'margin'; it has temperature"),
        ({"kl": LossConfig(weights=(0.0, 1.0))}, ["teacher"], "in epoch 1 every part of the loss has weight 0"),
        ({}, ["teacher"], "no loss is given"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(parts: dict[str, LossConfig], has: list[str], named: str) -> None:
    with pytest.raises(ObjectiveError, match=named):
        Objective(parts, has)


def test_a_matryoshka_dimension_beyond_the_vectors_is_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"matryoshka holds 8, but must be 1 to 7"):
        Objective({"cse": LossConfig()}, [], matryoshka=(8,))(vectors(), 0)
