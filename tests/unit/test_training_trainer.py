"""Trainer: it learns, resumes to the bit, stops when told and when the loss is no number."""

import io
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luotuo_integrations.training import checkpoints as checkpoints_module
from luotuo_integrations.training import trainer as trainer_module
from luotuo_integrations.training.config import ConfigError, TrainConfig
from luotuo_integrations.training.config_sections import (
    BatchConfig,
    LossConfig,
    MiningConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
)
from luotuo_integrations.training.mining import Mined
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.run_log import RunLog
from luotuo_integrations.training.trainer import Trainer, TrainingDivergedError
from luotuo_integrations.training.training_set import TrainingSet, plan_epoch
from tests.training_parts import losses, make_config, make_parts


class PowerCutError(Exception):
    """Ends a run from outside, as a power cut would."""


def stop_after(trainer: Trainer, steps: int, error: type[BaseException] = PowerCutError) -> None:
    """Let a trainer fail after so many steps."""
    step = trainer._step

    def limited(*arguments: Any) -> None:
        if trainer.state.step >= steps:
            raise error
        step(*arguments)

    trainer._step = limited  # type: ignore[method-assign]


def test_the_loss_falls_and_every_step_is_logged(tiny_folder: Path, tmp_path: Path) -> None:
    config = make_config(loss={"feature": LossConfig()}, optimizer=OptimizerConfig(epochs=12, learning_rate=1e-2))
    trainer = make_parts(tiny_folder).trainer(config, tmp_path)
    state = trainer.train()
    found = losses(tmp_path)
    assert [step for step, _ in found] == list(range(1, 37))
    assert np.mean([loss for _, loss in found[-3:]]) < 0.9 * np.mean([loss for _, loss in found[:3]])
    assert (state.step, state.epoch, state.texts) == (36, 12, 12 * 48)
    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"epoch", "loss", "parts", "learning_rate", "gradient_norm", "texts_per_second", "seconds"} <= line.keys()


def test_warm_up_rises_and_the_cosine_falls_to_the_final_share(tiny_folder: Path, tmp_path: Path) -> None:
    settings = OptimizerConfig(epochs=10, learning_rate=1e-3, warmup_share=0.2, final_share=0.1)
    trainer = make_parts(tiny_folder).trainer(make_config(optimizer=settings), tmp_path)
    trainer.train()
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines())
    factors = [line["learning_rate"] / 1e-3 for line in lines if line["event"] == "step"]
    assert trainer.total_steps == len(factors) == 30
    assert factors[:6] == pytest.approx([(step + 1) / 7 for step in range(6)])
    for step in range(6, 30):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 6) / 24)) / 2
        assert factors[step] == pytest.approx(expected)


CONFIGS = {
    "plain": make_config(),
    "everything": make_config(
        batch=BatchConfig(size=6, kind="neighbours", pool=12, accumulation=2),
        student=StudentConfig(dropout=0.2),
        mining=MiningConfig(negatives=2, every_steps=2, margin=0.0),
        loss={"softmax": LossConfig(), "feature": LossConfig(weights=(1.0, 0.5))},
        optimizer=OptimizerConfig(epochs=3, learning_rate=1e-2),
    ),
    "lora": make_config(),
}


def full_trainer(tiny_folder: Path, config: TrainConfig, run: Path) -> Trainer:
    from luotuo_integrations.training.table import embed_numbers

    parts = make_parts(tiny_folder)

    def vectors_of(numbers: Any) -> Any:
        return embed_numbers(parts.model, parts.tokens, numbers, budget=1000, device=torch.device("cpu"))

    def evaluate() -> tuple[dict[str, float], str]:
        vectors = vectors_of(parts.numbers[:, 0])
        return {"dev/spread": float(-np.abs(vectors @ vectors.T).mean())}, "dev/spread"

    return parts.trainer(config, run, evaluate=evaluate, vectors_of=vectors_of)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_that_was_cut_off_goes_on_to_the_last_bit(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    if name == "lora":
        pytest.importorskip("peft")
        config = replace(config, strategy=replace(config.strategy, name="lora"))
    whole = full_trainer(tiny_folder, config, tmp_path / "whole")
    whole.train()
    last = whole.state.step
    assert last >= 5
    for stop in range(1, last):
        run = tmp_path / f"cut-{stop}"
        cut = full_trainer(tiny_folder, replace(config, run=RunConfig(checkpoint_minutes=0)), run)
        stop_after(cut, stop)
        with pytest.raises(PowerCutError):
            cut.train()
        resumed = full_trainer(tiny_folder, config, run)
        resumed.train()
        assert losses(run) == losses(tmp_path / "whole")
        for (key, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other), key
        assert (resumed.state.best_step, resumed.state.best_value) == (whole.state.best_step, whole.state.best_value)


def test_negatives_that_are_replaced_after_a_step_are_in_the_next_batch_also_after_a_resume(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = TrainingSet.mine

    def rolling(self: TrainingSet, *arguments: Any, **options: Any) -> int:
        """Replace all negatives each time."""
        found = mine(self, *arguments, **options)
        assert self.mined is not None
        self.mined = Mined(np.roll(self.mined.indices, 1, axis=0), self.mined.cosines)
        return found

    monkeypatch.setattr(TrainingSet, "mine", rolling)
    config = replace(CONFIGS["everything"], mining=MiningConfig(negatives=2, every_steps=1, margin=0.0))
    full_trainer(tiny_folder, config, tmp_path / "whole").train()
    run = tmp_path / "cut"
    cut = full_trainer(tiny_folder, replace(config, run=RunConfig(checkpoint_minutes=0)), run)
    stop_after(cut, 3)
    with pytest.raises(PowerCutError):
        cut.train()
    full_trainer(tiny_folder, config, run).train()
    assert losses(run) == losses(tmp_path / "whole")


def test_a_checkpoint_that_was_cut_short_costs_its_steps_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    full_trainer(tiny_folder, make_config(), tmp_path / "whole").train()
    run = tmp_path / "cut"
    cut = full_trainer(tiny_folder, make_config(run=RunConfig(checkpoint_minutes=0)), run)
    stop_after(cut, 4)
    with pytest.raises(PowerCutError):
        cut.train()
    path = run / "checkpoints" / "step-00000004" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    full_trainer(tiny_folder, make_config(), run).train()
    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_writes_a_checkpoint_and_the_run_goes_on(
    tiny_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    full_trainer(tiny_folder, make_config(), tmp_path / "whole").train()
    run = tmp_path / "stopped"
    trainer = full_trainer(tiny_folder, make_config(), run)
    handler = signal.getsignal(number)
    step = trainer._step

    def interrupted(*arguments: Any) -> None:
        step(*arguments)
        if trainer.state.step == 2:
            os.kill(os.getpid(), number)

    trainer._step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="Interrupted at step 2 of 6"):
        trainer.train()
    assert trainer.checkpoints.steps() == [2]
    assert signal.getsignal(number) == handler
    full_trainer(tiny_folder, make_config(), run).train()
    assert losses(run) == losses(tmp_path / "whole")


def test_a_log_that_cannot_be_written_does_not_stop_the_training(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    trainer = make_parts(tiny_folder).trainer(make_config(), tmp_path)
    log = RunLog(tmp_path)
    log._file = FullDisk()  # type: ignore[assignment]
    monkeypatch.setattr(trainer_module, "RunLog", lambda *_, **__: log)
    assert trainer.train().step == 6
    assert caplog.text.count("The log of the run cannot be written") == 1


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    parts = make_parts(tiny_folder)
    parts.teacher.vectors[parts.teacher.rows[parts.numbers[3, 0]]] = math.nan
    trainer = parts.trainer(make_config(), tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"The loss is nan at step \d .*Lower optimizer.learning_rate"):
        trainer.train()
    assert all(torch.isfinite(one).all() for one in trainer.model.parameters())


def test_a_gradient_that_is_no_number_stops_too(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = make_parts(tiny_folder).trainer(make_config(), tmp_path)
    backward = trainer.runner.backward

    def broken(*arguments: Any, **options: Any) -> Any:
        values = backward(*arguments, **options)
        next(iter(trainer.runner.parameters)).grad.fill_(math.inf)  # type: ignore[union-attr]
        return values

    trainer.runner.backward = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingDivergedError, match="The gradient norm is"):
        trainer.train()


def test_a_full_disk_is_a_warning_and_training_ends_all_the_same(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "_flush", full)
    trainer = full_trainer(tiny_folder, make_config(), tmp_path)
    trainer.train()
    assert trainer.state.step == 6
    assert "No checkpoint could be written at step 3" in caplog.text
    assert trainer.checkpoints.steps() == []


def test_the_best_evaluation_is_what_stays(tiny_folder: Path, tmp_path: Path) -> None:
    parts = make_parts(tiny_folder)
    values = iter([0.1, 0.9, 0.2, 0.3])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate() -> tuple[dict[str, float], str]:
        seen.append({name: one.detach().clone() for name, one in parts.model.named_parameters()})
        return {"dev/score": next(values)}, "dev/score"

    config = make_config(optimizer=OptimizerConfig(epochs=4, learning_rate=1e-2))
    state = parts.trainer(config, tmp_path, evaluate=evaluate).train()
    assert (state.best_step, state.best_value) == (6, 0.9)
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, seen[1][name]), name
        assert not torch.equal(parameter, seen[3][name]) or "key.bias" in name


def test_a_model_that_never_gets_better_is_left_as_it_began(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = make_parts(tiny_folder)
    began = {name: one.detach().clone() for name, one in parts.model.named_parameters()}
    trainer = parts.trainer(make_config(), tmp_path, evaluate=lambda: ({"dev/score": 0.4}, "dev/score"), start=0.5)
    state = trainer.train()
    assert (state.best_step, state.best_value, state.step) == (0, 0.5, 6)
    assert "No evaluation was better than the start" in caplog.text
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, began[name]), name


def test_clipping_bounds_the_step(tiny_folder: Path, tmp_path: Path) -> None:
    norms = {}
    for clip in (0.0, 1e-3):
        settings = OptimizerConfig(epochs=1, learning_rate=1e-2, clip_norm=clip)
        trainer = make_parts(tiny_folder).trainer(make_config(optimizer=settings), tmp_path / str(clip))
        trainer.train()
        gradients = [one.grad for one in trainer.model.parameters() if one.grad is not None]
        norms[clip] = float(torch.stack([one.norm() for one in gradients]).norm())
    assert norms[1e-3] <= 1.001e-3
    assert norms[0.0] > 1e-2


def test_accumulation_is_the_mean_of_its_batches(tiny_folder: Path, tmp_path: Path) -> None:
    """Feature loss is a mean over rows: two batches of 6 make the gradient of one of 12."""
    found = []
    for batch in (BatchConfig(size=12), BatchConfig(size=6, accumulation=2)):
        trainer = make_parts(tiny_folder).trainer(
            make_config(batch=batch, loss={"feature": LossConfig()}), tmp_path / str(batch.size)
        )
        rows = np.arange(12).reshape(batch.accumulation, -1)
        for number, part in enumerate(rows):
            passes = trainer.runner.prepare(trainer.sets[0].batch(part))
            trainer.runner.backward(passes, 0, weight=1 / len(rows), draw=(0, number))
        found.append({name: one.grad for name, one in trainer.model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_sets_of_different_kinds_are_mixed_and_each_row_comes_once(tiny_folder: Path, tmp_path: Path) -> None:
    parts = make_parts(tiny_folder)
    pairs = parts.training_set(make_config())
    labels = np.linspace(0, 1, 10, dtype=np.float32)
    scored = TrainingSet(
        "scored",
        parts.numbers[:10],
        Objective({"cosent": LossConfig()}, ["labels"]),
        BatchConfig(size=5),
        labels=labels,
    )
    plan = plan_epoch([pairs, scored], parts.tokens.lengths, seed=0, epoch=0, accumulation=1)
    for one, count in ((pairs, 24), (scored, 10)):
        rows = np.concatenate([rows for step in plan for owner, rows in step if owner is one])
        assert sorted(rows.tolist()) == list(range(count))
    owners = [step[0][0].name for step in plan]
    assert owners != sorted(owners)
    trainer = parts.trainer(make_config(), tmp_path, sets=[pairs, scored])
    trainer.train()
    parts_seen = {
        name for line in (tmp_path / "log.jsonl").read_text().splitlines() for name in json.loads(line)["parts"]
    }
    assert parts_seen == {"feature", "kl", "cse", "cosent"}


def test_hard_negatives_are_other_rows_positives_and_are_replaced_when_they_get_easy(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = CONFIGS["everything"]
    trainer = full_trainer(tiny_folder, config, tmp_path)
    trainer.train()
    one = trainer.sets[0]
    assert one.mined is not None
    batch = one.batch(np.arange(24))
    assert batch.numbers.shape == (24, 4)
    positives = set(one.numbers[:, 1].tolist())
    for row in batch.numbers:
        assert set(row[2:].tolist()) <= positives - {int(row[1])}
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    mining = [event for event in events if event["event"] == "mining"]
    assert [event["step"] for event in mining] == [0, 2, 4, 6]
    assert mining[0]["replaced"] == 48


def test_a_set_must_have_two_rows_and_a_teacher_for_neighbours(tiny_folder: Path) -> None:
    parts = make_parts(tiny_folder)
    objective = Objective({"cse": LossConfig()}, [])
    with pytest.raises(ConfigError, match="few: 1 rows to train on, but at least 2"):
        TrainingSet("few", parts.numbers[:1], objective, BatchConfig())
    with pytest.raises(ConfigError, match="needs a teacher's vectors; use 'random'"):
        TrainingSet("near", parts.numbers, objective, BatchConfig(kind="neighbours"))


def test_the_log_goes_to_tensorboard_where_it_is_installed(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make_parts(tiny_folder).trainer(make_config(), tmp_path).train()
    written = list((tmp_path / "tensorboard").iterdir())
    assert len(written) == 1
    assert written[0].stat().st_size > 500
    shutil.rmtree(tmp_path / "tensorboard")
