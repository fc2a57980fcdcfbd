"""Trainer: one loop that reads top to bottom. What it needs is passed in; where it stands is in its state."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.progress import Advance, progress_bar
from luotuo_integrations.training.checkpoints import (
    Checkpoints,
    load_optimizer,
    load_trained,
    optimizer_tensors,
    trained_tensors,
)
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.interruptions import interruptions
from luotuo_integrations.training.mining import Mined
from luotuo_integrations.training.run_log import RunLog
from luotuo_integrations.training.schedule import warm_then_cosine
from luotuo_integrations.training.steps import Passes, StepRunner
from luotuo_integrations.training.strategies import parameter_groups
from luotuo_integrations.training.table import Ids, TokenTable
from luotuo_integrations.training.train_state import TrainState
from luotuo_integrations.training.training_set import TrainingSet, VectorsOf, plan_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
Metrics = dict[str, float]


class TrainingDivergedError(LuotuoError, ArithmeticError):
    """The loss or the gradient is no longer finite."""


class Trainer:
    """Trains a model on sets of rows.

    Args:
        config: Optimizer, schedule, batches, checkpoints.
        model: With its strategy applied; it is moved to the accelerator's device.
        tokens: The tokens of all texts.
        sets: What to train on, each with its own objective; their batches are mixed.
        accelerator: Devices, processes and precision.
        folder: Of the run: checkpoints, log and best weights go there.
        evaluate: Gives metrics of the model as it stands, and the name of the one to judge by (higher is better).
        start: The main metric of the model as it begins; weights that never reach it are not taken in the end.
        vectors_of: Gives the student's vectors of numbered texts, for mining; None where nothing is mined.
        show_progress: Show a progress bar.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        model: EmbeddingModel,
        tokens: TokenTable,
        sets: Sequence[TrainingSet],
        accelerator: "Accelerator",
        folder: Path,
        evaluate: Callable[[], tuple[Metrics, str]] | None = None,
        start: float | None = None,
        vectors_of: VectorsOf | None = None,
        show_progress: bool = False,
    ) -> None:
        self.config = config
        self.model = model.to(accelerator.device)
        self.tokens = tokens
        self.sets = list(sets)
        self.accelerator = accelerator
        self.folder = folder
        self.evaluate = evaluate
        self.start = start
        self.vectors_of = vectors_of
        self.show_progress = show_progress and accelerator.is_main_process
        self.state = TrainState()
        self.runner = StepRunner(
            self.model, tokens, accelerator, config.batch, dropout=config.student.dropout, seed=config.seed
        )
        settings = config.optimizer
        groups = parameter_groups(
            model, config.strategy, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.peaks = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.run.keep_checkpoints)
        self.total_steps = len(self.plan(0)) * settings.epochs
        self._clock = time.monotonic()

    def plan(self, epoch: int) -> list[list[tuple[TrainingSet, Ids]]]:
        """The batches of each optimizer step of an epoch."""
        return plan_epoch(
            self.sets,
            self.tokens.lengths,
            seed=self.config.seed,
            epoch=epoch,
            accumulation=self.config.batch.accumulation,
            device=self.accelerator.device,
        )

    def train(self) -> TrainState:
        """Train to the end, from the newest checkpoint where there is one, and leave the best weights in the model.

        Raises:
            TrainingDivergedError: If the loss or the gradient is not finite; the checkpoint before is kept.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, when a checkpoint was written.
            MemoryError: If a single text does not fit the device.
        """
        self._resume()
        with (
            RunLog(self.folder, enabled=self.accelerator.is_main_process) as log,
            progress_bar("Training", self.total_steps, enabled=self.show_progress) as advance,
            interruptions() as interrupted,
        ):
            advance(self.state.step)
            if self.start is not None and self.state.step == 0 and self.accelerator.is_main_process:
                self._keep_best(self.start)
            self._mine(log, first=True)
            saved = self._clock = time.monotonic()
            while self.state.epoch < self.config.optimizer.epochs:
                for passes in self._prepared(self.plan(self.state.epoch)[self.state.position :]):
                    self._step(passes, log, advance)
                    self._mine(log)
                    every = self.config.evaluation.every_steps
                    if every and self.state.step % every == 0:
                        self._evaluate(log)
                    self._stop_if(interrupted)
                    if time.monotonic() - saved > 60 * self.config.run.checkpoint_minutes:
                        self.checkpoint()
                        saved = self._clock = time.monotonic()
                self.state.epoch, self.state.position = self.state.epoch + 1, 0
                self._evaluate(log)
                self.checkpoint()
                saved = self._clock = time.monotonic()
                self._stop_if(interrupted, saved=True)
        self._take_best()
        return self.state

    def checkpoint(self) -> bool:
        """Write a checkpoint; a full disk is a warning, and the checkpoint before stays. Says whether it worked."""
        if not self.accelerator.is_main_process:
            return True
        tensors = {f"model/{name}": one for name, one in trained_tensors(self.model).items()}
        optimizer = optimizer_tensors(self.model, self.optimizer)
        tensors |= {f"optimizer/{name}": one for name, one in optimizer.items()}
        for number, one in enumerate(self.sets):
            if one.mined is not None:
                tensors[f"mined/{number}/indices"] = torch.from_numpy(one.mined.indices)
                tensors[f"mined/{number}/cosines"] = torch.from_numpy(one.mined.cosines)
        try:
            self.checkpoints.write(self.state.step, tensors, asdict(self.state))
        except OSError as error:
            logger.warning(
                "No checkpoint could be written at step %d (%s). The one before is kept and training goes on; make "
                "room on the disk",
                self.state.step,
                error,
            )
            return False
        return True

    def _resume(self) -> None:
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            return
        known = {one.name for one in fields(TrainState)}
        self.state = TrainState(**{name: value for name, value in checkpoint.state.items() if name in known})
        kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "mined": {}}
        for name, tensor in checkpoint.tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = tensor
        load_trained(self.model, kinds["model"])
        load_optimizer(self.model, self.optimizer, kinds["optimizer"])
        for number, one in enumerate(self.sets):
            if f"{number}/indices" in kinds["mined"]:
                indices, cosines = kinds["mined"][f"{number}/indices"], kinds["mined"][f"{number}/cosines"]
                one.mined = Mined(indices.numpy(), cosines.numpy())
        logger.info("Going on from step %d of %d", self.state.step, self.total_steps)

    def _prepared(self, plan: list[list[tuple[TrainingSet, Ids]]]) -> Iterator[list[Passes]]:
        """Each step's padded batches, made by a thread while the device works on the step before."""

        def prepare(step: list[tuple[TrainingSet, Ids]]) -> list[Passes]:
            return [self.runner.prepare(one.batch(rows)) for one, rows in step]

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="luotuo-batch") as ahead:
            pending = ahead.submit(prepare, plan[0]) if plan else None
            for following in [*plan[1:], None]:
                if pending is None:
                    return
                ready = pending.result()
                # What is mined after this step belongs in the next batch, as it would after a resume.
                early = not self._mines_after(self.state.step + 1)
                pending = ahead.submit(prepare, following) if following is not None and early else None
                yield ready
                if following is not None and not early:
                    pending = ahead.submit(prepare, following)

    def _step(self, batches: list[Passes], log: RunLog, advance: Advance) -> None:
        """One optimizer step."""
        state, epoch = self.state, self.state.epoch
        settings = self.config.optimizer
        factor = warm_then_cosine(state.step, self.total_steps, settings.warmup_share, settings.final_share)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for number, passes in enumerate(batches):
            values = self.runner.backward(passes, epoch, weight=1 / len(batches), draw=(state.step, number))
            for name, value in values.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value / len(batches)
        numbers = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
        self._check_finite(numbers, numbers["loss"], "loss")
        self.runner.sum_gradients()
        longest = self.config.optimizer.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.runner.parameters, longest))
        self._check_finite(numbers, norm, "gradient norm")
        self.optimizer.step()
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now  # waiting for the batch included
        texts = sum(passes.batch.numbers.size for passes in batches)
        state.step, state.position = state.step + 1, state.position + 1
        state.texts, state.seconds = state.texts + texts, state.seconds + seconds
        loss = numbers.pop("loss")
        log.write(
            "step",
            state.step,
            epoch=epoch,
            loss=loss,
            parts=numbers,
            learning_rate=self.config.optimizer.learning_rate * factor,
            gradient_norm=norm,
            texts_per_second=texts / max(seconds, 1e-9),
            seconds=state.seconds,
        )
        shown = " ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        advance(1, f"loss {loss:.4f}  {shown}  {texts / max(seconds, 1e-9):.0f} texts/s")

    def _check_finite(self, parts: dict[str, float], value: float, what: str) -> None:
        if math.isfinite(value):
            return
        shown = ", ".join(f"{name} {one:.4g}" for name, one in parts.items())
        rate = self.optimizer.param_groups[-1]["lr"]
        msg = (
            f"The {what} is {value} at step {self.state.step + 1} ({shown}; learning rate {rate:.3g}). The weights of "
            "the last checkpoint are sound. Lower optimizer.learning_rate, raise the temperatures, or set "
            "run.precision='no', and start again in another folder"
        )
        raise TrainingDivergedError(msg)

    def _mine(self, log: RunLog, *, first: bool = False) -> None:
        """Find hard negatives before the first step; later, every n steps, replace those that became easy."""
        settings = self.config.mining
        due = settings.negatives if first else self._mines_after(self.state.step)
        if not due or self.vectors_of is None:
            return
        for one in self.sets:
            if first and (one.mined is not None or one.mining.negatives == 0):
                continue
            source = one.teacher.of if first and one.teacher is not None else self.vectors_of
            count = one.mine(source, seed=self.config.seed + self.state.step, device=self.accelerator.device)
            if source is not self.vectors_of and settings.every_steps:
                one.remember_cosines(self.vectors_of)
            log.write("mining", self.state.step, replaced=count)
        self._clock = time.monotonic()

    def _mines_after(self, step: int) -> bool:
        """Whether negatives are looked at again after a step."""
        settings = self.config.mining
        return bool(settings.negatives and settings.every_steps and step % settings.every_steps == 0)

    def _evaluate(self, log: RunLog) -> None:
        if self.evaluate is not None and self.accelerator.is_main_process:
            metrics, main = self.evaluate()
            log.write("evaluation", self.state.step, metrics=metrics)
            logger.info("Step %d: %s", self.state.step, ", ".join(f"{key} {one:.4f}" for key, one in metrics.items()))
            if self.state.best_value is None or metrics[main] > self.state.best_value:
                self._keep_best(metrics[main])
        self.accelerator.wait_for_everyone()
        self._clock = time.monotonic()

    def _keep_best(self, value: float) -> None:
        temporary = self.folder / f".{BEST}.partial"
        try:
            save_file({name: one.cpu() for name, one in trained_tensors(self.model).items()}, temporary)
            temporary.replace(self.folder / BEST)
        except Exception as error:  # noqa: BLE001  (safetensors has its own error for a full disk)
            logger.warning("The best weights so far could not be written (%s); training goes on", error)
            return
        finally:
            temporary.unlink(missing_ok=True)
        self.state.best_step, self.state.best_value = self.state.step, value

    def _take_best(self) -> None:
        best = self.folder / BEST
        if self.state.best_step not in (-1, self.state.step) and best.is_file():
            load_trained(self.model, load_file(best))
            if self.state.best_step == 0:
                logger.warning("No evaluation was better than the start: the model is exported as it began")
                return
            logger.info("The best evaluation was at step %d; its weights are taken", self.state.best_step)

    def _stop_if(self, interrupted: threading.Event, *, saved: bool = False) -> None:
        """Stop all processes after the same step where one was interrupted."""
        stop = interrupted.is_set()
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(stop), device=self.accelerator.device)
            stop = bool(self.accelerator.reduce(flag, reduction="sum"))
        if stop:
            where = "it" if saved or self.checkpoint() else "the one before"
            msg = f"Interrupted at step {self.state.step} of {self.total_steps}; there is a checkpoint of {where}"
            raise KeyboardInterrupt(msg)
