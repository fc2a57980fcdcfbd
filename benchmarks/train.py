"""How fast the trainer trains: its texts a second beside a bare PyTorch loop, its idle time, its memory.

All systems train the same student on the same batches of pairs with the same loss (feature, KL and CSE, random teacher)
and fused AdamW. The trainer pads its batches, checks and logs. The bare loops have their tensors ready on the device:
one encodes each column of a batch in one pass, the other the very passes of the trainer. The systems take turns; the
first step of a turn is not counted, but its losses must agree.

--gradcache measures instead one step of a large contrastive batch whose activations are not kept: its peak memory, and
of a batch that fits either way memory and time beside the step that keeps them.

Run from the root of the repository: python -m benchmarks.train
"""

import argparse
import json
import logging
import multiprocessing
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.backbones import find_layers
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.config_sections import BatchConfig, LossConfig, OptimizerConfig, RunConfig
from luotuo_integrations.training.losses import cosine_matrix, cse_loss, feature_loss, similarity_kl
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.steps import ACTIVATIONS_PER_WIDTH, StepRunner
from luotuo_integrations.training.strategies import apply_strategy
from luotuo_integrations.training.students import build_student
from luotuo_integrations.training.table import Ids, TextTable, TokenTable
from luotuo_integrations.training.trainer import Trainer
from luotuo_integrations.training.training_run import make_accelerator
from luotuo_integrations.training.training_set import TeacherTable, TrainingSet

DATA = Path(__file__).parents[1] / "examples" / "data"
DIMENSION = 1_536  # of the teacher's vectors
TEMPERATURE, PRIOR, CSE_WEIGHT = 0.05, 0.3, 0.1
DISTILLATION = {
    "feature": LossConfig(),
    "kl": LossConfig(temperature=TEMPERATURE, prior=PRIOR),
    "cse": LossConfig(temperature=TEMPERATURE, weights=(CSE_WEIGHT,)),
}
OURS, LONGEST, PASSES = "trainer", "bare loop, padded to the longest", "bare loop, the trainer's passes"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a turn")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch, two texts each")
    parser.add_argument("--tokens", type=int, nargs=2, default=(40, 128), metavar=("LEAST", "MOST"))
    parser.add_argument("--student", default="bert-pruned:6", help="as of luotuo distill --student")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what accelerate finds")
    parser.add_argument("--precision", choices=("auto", "no", "bf16"), default="auto")
    parser.add_argument("--gradcache", type=int, nargs="?", const=4_096, metavar="ROWS", help="4096 if no number")
    parser.add_argument("--fits", type=int, default=512, metavar="ROWS", help="of the batch that fits either way")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; type --device cpu")
    logging.getLogger("luotuo_integrations").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        student = build_student(options.student, Path(temporary) / "student", teacher_dimension=DIMENSION)
        run = RunConfig(device=options.device, precision=options.precision)
        work = Work(student, options.batch, options.steps + 1, tuple(options.tokens), run)
        if options.gradcache is None:
            speed(work, options.rounds)
        else:
            memory(work, options.gradcache, options.fits)


@dataclass(frozen=True)
class Work:
    """What all systems do: a student's folder, rows of a batch, batches, least and most tokens of a text, device."""

    student: Path
    batch: int
    steps: int
    tokens: tuple[int, int]
    run: RunConfig

    def read(self) -> tuple[TokenTable, Ids]:
        """The tokens of all texts, and the texts of each row, (N, 2)."""
        settings = EmbeddingModel.load(self.student).settings
        tokenizer = TextTokenizer(self.student, lowercase=settings.lowercase)
        table = TextTable()
        texts = make_texts(2 * self.batch * self.steps, self.tokens, tokenizer)
        numbers = table.add_all(texts, "passage").reshape(-1, 2)
        return TokenTable.of(table, tokenizer, dict(settings.prompts), self.tokens[1]), numbers


def make_texts(count: int, tokens: tuple[int, int], tokenizer: TextTokenizer) -> list[str]:
    """Different texts of about so many tokens: sentences drawn from the example documents, after a number."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DATA.rglob("*.md")))
    sentences = [sentence for sentence in re.split(r"(?<=[。；！？])|\s+", source) if len(sentence) >= 8]
    characters = sum(map(len, sentences)) / sum(map(len, tokenizer.encode(sentences)))  # of a token
    generator = random.Random(0)
    texts = []
    for number in range(count):
        length = round(generator.uniform(*tokens) * characters)
        text = f"{number}、"
        while len(text) < length:
            text += generator.choice(sentences)
        texts.append(text[:length])
    return texts


class BareBatch(NamedTuple):
    """A batch that is ready: ids and mask of each pass, order of the vectors by column, teacher's vectors (2, B, E)."""

    passes: list[tuple[Tensor, Tensor]]
    order: Tensor
    teacher: Tensor


class Turn(NamedTuple):
    """Texts a second, and a second of CPU time; loss of the first step. Of the trainer also its idle shares of time.

    ``waiting`` lies between two steps; ``keeping`` in a step, before the first forward pass and after the optimizer.
    ``checkpoint`` is the time to write one, in seconds.
    """

    rate: float
    cpu_rate: float
    loss: float
    waiting: float = 0.0
    keeping: float = 0.0
    checkpoint: float = 0.0


def speed(work: Work, rounds: int) -> None:
    """Measure all systems in turns and print."""
    tokens, rows = work.read()
    accelerator = make_accelerator(work.run)
    vectors = np.random.default_rng(0).normal(size=(len(tokens), DIMENSION)).astype(np.float32)
    optimizer = OptimizerConfig(epochs=1, learning_rate=1e-4)
    config = TrainConfig(loss=DISTILLATION, batch=BatchConfig(size=work.batch), optimizer=optimizer, run=work.run)
    teacher, objective = TeacherTable(vectors, np.arange(len(tokens))), Objective(DISTILLATION, ["teacher"])
    training_set = TrainingSet("pairs", rows, objective, config.batch, teacher=teacher)

    def trainer(folder: Path) -> Trainer:
        model = EmbeddingModel.load(work.student)
        apply_strategy(model, config.strategy)
        return Trainer(
            config=config, model=model, tokens=tokens, sets=[training_set], accelerator=accelerator, folder=folder
        )

    whole, passes = bare_batches(trainer(work.student))  # it is only asked for its batches
    systems: dict[str, Callable[[], Turn]] = {
        OURS: partial(trainer_turn, trainer),
        LONGEST: partial(bare_turn, work.student, whole, accelerator),
        PASSES: partial(bare_turn, work.student, passes, accelerator),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in systems}
    for first in (number % len(systems) for number in range(rounds)):
        for name in [*systems, *systems][first : first + len(systems)]:
            turns[name].append(systems[name]())
    losses = [turn.loss for found in turns.values() for turn in found]
    if max(losses) - min(losses) > (1e-4 if accelerator.mixed_precision == "no" else 2e-2) * min(losses):
        raise SystemExit(f"the losses of the first step differ: {losses}")
    print(
        f"{work.batch} rows of 2 texts, {tokens.lengths.min()} to {tokens.lengths.max()} tokens, "
        f"{tokens.lengths.mean():.0f} on average; {rounds} turns of {work.steps - 1} steps; {accelerator.device}, "
        f"{torch.get_num_threads()} threads, mixed precision: {accelerator.mixed_precision}\n"
    )
    report(turns)


def bare_batches(trainer: Trainer) -> tuple[list[BareBatch], list[BareBatch]]:
    """The trainer's batches, made ready: a pass a column, and cut into the trainer's own passes."""
    device = trainer.accelerator.device

    def ready(passes: list[tuple[Tensor, Tensor]], order: Tensor, teacher: Tensor) -> BareBatch:
        moved = [(ids.to(device), mask.to(device)) for ids, mask in passes]
        return BareBatch(moved, order.to(device), teacher.to(device).transpose(0, 1).contiguous())

    whole, cut = [], []
    for training_set, rows in (one for step in trainer.plan(0) for one in step):
        batch = training_set.batch(rows)
        assert batch.teacher is not None
        columns = [trainer.tokens.batch(column) for column in batch.numbers.T]
        whole.append(ready(columns, torch.arange(batch.numbers.size), batch.teacher))
        passes = trainer.runner.prepare(batch)
        cut.append(ready(passes.inputs, passes.order, batch.teacher))
    return whole, cut


def bare_turn(student: Path, batches: list[BareBatch], accelerator: Any) -> Turn:
    """The loop that one would write without a trainer: nothing is prepared, scheduled, checked, logged or kept."""
    model = EmbeddingModel.load(student).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    first_loss, begin = torch.zeros(()), clocks(accelerator.device)
    for number, batch in enumerate(batches):
        begin = clocks(accelerator.device) if number == 1 else begin
        optimizer.zero_grad()
        with accelerator.autocast():
            vectors = torch.cat([embed(model, ids, mask) for ids, mask in batch.passes])
        left, right = F.normalize(vectors.float(), dim=1)[batch.order].chunk(2)
        loss = distillation_loss(left, right, batch.teacher[0], batch.teacher[1])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        first_loss = loss.detach() if number == 0 else first_loss
    wall, cpu = clocks(accelerator.device) - begin
    texts = sum(len(batch.order) for batch in batches[1:])
    return Turn(texts / wall, texts / cpu, first_loss.item())


def embed(model: EmbeddingModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean pooling and the heads: (B, D)."""
    hidden: Tensor = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, H)
    weights = mask.unsqueeze(-1).float()
    vectors = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    for head in model.heads:
        vectors = head(vectors)
    return vectors


def distillation_loss(left: Tensor, right: Tensor, teacher_left: Tensor, teacher_right: Tensor) -> Tensor:
    """What ``DISTILLATION`` says."""
    similarity = cosine_matrix(left, right)
    feature = feature_loss(torch.cat([left, right]), torch.cat([teacher_left, teacher_right]))
    kl = similarity_kl(similarity, cosine_matrix(teacher_left, teacher_right), TEMPERATURE, prior=PRIOR)
    return feature + kl + CSE_WEIGHT * cse_loss(similarity, TEMPERATURE)


def trainer_turn(make: Callable[[Path], Trainer]) -> Turn:
    """A whole run of the trainer, timed step by step."""
    with tempfile.TemporaryDirectory() as temporary:
        trainer = make(Path(temporary))
        step, backward = trainer._step, trainer.runner.backward
        times: list[float] = []  # of each step: its begin, first forward pass, end of the optimizer's step, end
        both = []

        def timed_step(*given: Any) -> None:
            times.append(time.perf_counter())
            step(*given)
            if trainer.state.step in (1, trainer.total_steps):
                both.append(clocks(trainer.accelerator.device))
            times.append(time.perf_counter())

        def timed_backward(*given: Any, **named: Any) -> dict[str, Tensor]:
            times.append(time.perf_counter())
            return backward(*given, **named)

        trainer._step = timed_step  # type: ignore[assignment, method-assign]
        trainer.runner.backward = timed_backward  # type: ignore[method-assign]
        trainer.optimizer.register_step_post_hook(lambda *_: times.append(time.perf_counter()))
        state = trainer.train()
        checkpoint = time.perf_counter() - times[-1]
        first = json.loads((Path(temporary) / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (begins, works, worked, ends), (wall, cpu) = np.reshape(times, (-1, 4)).T, both[1] - both[0]
    waiting = (begins[1:] - ends[:-1]).sum() / wall
    keeping = (works - begins + ends - worked)[1:].sum() / wall
    texts = state.texts * (1 - 1 / state.step)
    return Turn(texts / wall, texts / cpu, first["loss"], waiting, keeping, checkpoint)


def report(turns: dict[str, list[Turn]]) -> None:
    """Print a line a system with the trainer's speed relative to it, then where the trainer's time goes."""
    medians = {name: Turn(*map(statistics.median, zip(*found, strict=True))) for name, found in turns.items()}
    ours = medians[OURS]
    print(f"{'':34s}{'texts/s':>8s}{'trainer/this':>14s}{'by CPU time':>13s}   turn by turn")
    for name, median in medians.items():
        paired = sorted(one.rate / other.rate for one, other in zip(turns[OURS], turns[name], strict=True))
        print(
            f"{name:34s}{median.rate:8.1f}{ours.rate / median.rate:14.3f}{ours.cpu_rate / median.cpu_rate:13.3f}"
            f"   {statistics.median(paired):.3f} ({paired[0]:.3f} to {paired[-1]:.3f})"
        )
    print(f"\nidle: {ours.waiting:.2%} of the trainer's time waiting for batches, {ours.keeping:.2%} schedule and log;")
    print(f"a checkpoint, every ten minutes, takes {ours.checkpoint:.2f} s")


def memory(work: Work, large: int, fits: int) -> None:
    """Measure one step of a large batch, and of one that fits either way, each in a process of its own; print."""
    seconds: dict[bool, float] = {}
    print(f"{'rows':>6s}  {'activations':12s}{'tokens':>9s}{'GB before':>11s}{'GB peak':>9s}{'seconds':>9s}")
    for rows, kept in ((large, False), (fits, False), (fits, True)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            result = process.submit(one_step, replace(work, batch=rows, steps=1), kept).result()
        tokens, before, peak, seconds[kept] = result
        line = f"{rows:6d}  {'kept' if kept else 'not kept':12s}{tokens:9d}{before:11.2f}{peak:9.2f}"
        print(line + (f"{seconds[kept]:9.1f}" if seconds[kept] else "  would be needed: not done"), flush=True)
    if seconds[True]:
        print(f"\n{fits} rows: not to keep activations takes {seconds[False] / seconds[True]:.2f} times as long")


def one_step(work: Work, kept: bool) -> tuple[int, float, float, float]:
    """The gradient of one contrastive batch, its activations kept or not.

    Returns:
        Padded tokens, the most GB used before it and in all, and seconds: 0 where it would not fit and was not done.
    """
    accelerator = make_accelerator(work.run)
    device = accelerator.device
    tokens, rows = work.read()
    model = EmbeddingModel.load(work.student).to(device)
    settings = BatchConfig(size=work.batch, tokens_in_memory=10**12 if kept else 1)
    runner = StepRunner(model, tokens, accelerator, settings)
    objective = Objective({"softmax": LossConfig(temperature=TEMPERATURE)}, [])
    training_set = TrainingSet("pairs", rows, objective, settings)
    few, passes = (runner.prepare(training_set.batch(np.arange(count))) for count in (2, len(rows)))
    runner.backward(few, 0, weight=1.0, draw=(0, 0))  # to warm up
    before, free = used_and_free(device)
    layers = len(find_layers(model.backbone)[1])
    needed = before + 4 * ACTIVATIONS_PER_WIDTH * model.hidden_size * layers * passes.tokens
    if kept and needed > 0.6 * free:  # an estimate, and others need memory too
        return passes.tokens, before / 2**30, needed / 2**30, 0.0
    begin = clocks(device)
    runner.backward(passes, 0, weight=1.0, draw=(0, 1))
    seconds = float((clocks(device) - begin)[0])
    assert runner.tokens_in_memory == settings.tokens_in_memory, "memory ran out, and the step was done another way"
    return passes.tokens, before / 2**30, used_and_free(device)[0] / 2**30, seconds


def used_and_free(device: torch.device) -> tuple[int, int]:
    """The most bytes used so far, on a GPU by tensors, else by this process; and those that nobody uses now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[0]
    # Linux only; the resource module's number begins with that of the process which started this one.
    lines = Path("/proc/self/status").read_text().splitlines() + Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(value[0]) for name, *value in map(str.split, lines) if name in ("VmHWM:", "MemAvailable:")}
    return 1024 * kilobytes["VmHWM:"], 1024 * kilobytes["MemAvailable:"]


def clocks(device: torch.device) -> npt.NDArray[np.float64]:
    """Wall-clock and CPU seconds of this process, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
