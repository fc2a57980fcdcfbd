"""Checkpoints: whole or not at all, and the newest whole one is used."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luotuo_integrations.training import checkpoints as module
from luotuo_integrations.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    load_optimizer,
    load_trained,
    optimizer_tensors,
    trained_tensors,
)


def write(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.write(step, {"数": torch.full((3,), float(step))}, {"step": step})


def test_the_newest_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for step in (5, 9, 100):
        write(checkpoints, step)
    assert checkpoints.steps() == [100, 9]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.state == {"step": 100}
    assert newest.tensors["数"].tolist() == [100.0] * 3


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_one_that_was_cut_short_is_passed_over_and_named(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    path = write(checkpoints, 2) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.state["step"] == 1
    assert "step-00000002 is damaged" in caplog.text


def test_a_full_disk_leaves_the_one_before_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_flush", full)
        with pytest.raises(OSError, match="No space left"):
            write(checkpoints, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    write(checkpoints, 2)
    assert checkpoints.steps() == [2, 1]


def test_the_same_step_is_written_again_after_a_resume(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 3)
    write(checkpoints, 3)
    assert json.loads((tmp_path / "step-00000003" / "state.json").read_text()) == {"step": 3}


def test_model_and_optimizer_come_back_to_the_bit() -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    saved = {name: one.clone() for name, one in trained_tensors(model).items()}
    state = {name: one.clone() for name, one in optimizer_tensors(model, optimizer).items()}
    step(model, optimizer)
    other, other_optimizer = make()
    load_trained(other, saved)
    load_optimizer(other, other_optimizer, state)
    step(other, other_optimizer)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_tensors_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="'weight' differs"):
        load_trained(nn.Linear(3, 2), trained_tensors(nn.Linear(4, 2)))
    with pytest.raises(CheckpointError, match="'bias' differs"):
        load_trained(nn.Linear(3, 2), trained_tensors(nn.Linear(3, 2, bias=False)))
