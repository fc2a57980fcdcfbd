"""TrainingRun: what distillation and fine-tuning share: load the student, train, evaluate, export, report."""

import atexit
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import distributed as dist

from luotuo_integrations._optional import require
from luotuo_integrations.batching import default_budget
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.config_sections import RunConfig
from luotuo_integrations.training.evaluate import EvaluationSet, evaluate, main_metric
from luotuo_integrations.training.export import ModelDescription, check_onnx, export_model
from luotuo_integrations.training.report import write_report
from luotuo_integrations.training.run_folder import RunFolder
from luotuo_integrations.training.strategies import apply_strategy, finish_strategy, trainable_parameters
from luotuo_integrations.training.table import Ids, TextTable, TokenTable, embed_numbers
from luotuo_integrations.training.trainer import Metrics, Trainer
from luotuo_integrations.training.training_set import TrainingSet

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

MATRIX_ROWS = 128  # of R and S in the report
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Halves of which the report shows R beside S.

    Attributes:
        left: n front halves.
        right: n back halves.
        kinds: How they are embedded.
        teacher: S, float32 (n, n): the teacher's cosines.
    """

    left: Sequence[str]
    right: Sequence[str]
    kinds: tuple[Kind, Kind]
    teacher: Vectors


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves.

    Attributes:
        model: Folder that LuotuoEmbeddings and sentence-transformers load.
        report: report.md.
        before: Metrics of the student as it began.
        after: Metrics of the student as it was exported.
        teacher: The teacher's own, where it is known.
    """

    model: Path
    report: Path
    before: Metrics
    after: Metrics
    teacher: Metrics


def make_accelerator(config: RunConfig) -> "Accelerator":
    """Devices, processes and precision: what ``accelerate launch`` or torchrun set up, or this process alone.

    Raises:
        ImportError: If accelerate is not installed.
    """
    accelerate = require("accelerate", extra="train")
    state = require("accelerate.state", extra="train")
    if not state.is_initialized() or state.PartialState().num_processes == 1:
        # Accelerate keeps device and precision for the process; the next run in a notebook may want others.
        state.AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = config.device == "cpu"
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) and not on_cpu
    precision = ("bf16" if has_bf16 else "no") if config.precision == "auto" else config.precision
    # The other processes wait while one asks the teacher, evaluates or exports, and that may take days.
    patience = require("accelerate.utils", extra="train").InitProcessGroupKwargs(timeout=PATIENCE)
    had_group = dist.is_available() and dist.is_initialized()
    accelerator: Accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision=precision, kwargs_handlers=[patience])
    if accelerator.num_processes > 1 and not had_group:
        # A group that is still open when the interpreter ends has threads running: the process may abort.
        atexit.register(accelerator.end_training)
    return accelerator


class TrainingRun:
    """A student in a run folder, ready to be trained.

    Args:
        folder: Of the run.
        config: Of the run.
        student: Folder of the student as it begins.
        accelerator: Of `make_accelerator`.
        show_progress: Show progress bars.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        student: Path,
        accelerator: "Accelerator",
        *,
        show_progress: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.student = student
        self.accelerator = accelerator
        self.show_progress = show_progress and accelerator.is_main_process
        self.model = EmbeddingModel.load(student).to(accelerator.device)
        if config.run.onnx:  # told now, not after the training
            check_onnx(self.model)
        settings = self.model.settings
        self.tokenizer = TextTokenizer(student / settings.transformer, lowercase=settings.lowercase)
        self.max_tokens = config.student.max_tokens or settings.max_tokens or 512
        self.budget = default_budget(accelerator.device.type)

    def tokens(self, table: TextTable, *, show_progress: bool = False) -> TokenTable:
        """The tokens of every text of a table."""
        prompts = dict(self.model.settings.prompts)
        return TokenTable.of(table, self.tokenizer, prompts, self.max_tokens, show_progress=show_progress)

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Embed texts with the student as it stands: float32 (N, D)."""
        table = TextTable()
        numbers = table.add_all(texts, kind)
        return self._embed(self.tokens(table), numbers)

    def train(
        self,
        table: TextTable,
        sets: Sequence[TrainingSet],
        evaluations: Sequence[EvaluationSet],
        *,
        teacher: Metrics,
        description: Callable[[Metrics], ModelDescription],
        matrix: Matrix | None = None,
    ) -> RunResult:
        """Train, evaluate, export and report.

        Args:
            table: The texts of the sets.
            sets: What to train on.
            evaluations: What to measure, before, while and after.
            teacher: The teacher's own metrics.
            description: Metrics to the model card.
            matrix: For the picture of R beside S.
        """
        tokens = self.tokens(table, show_progress=self.show_progress)
        main = main_metric(evaluations)
        before = self._before(evaluations)
        apply_strategy(self.model, self.config.strategy)
        learning, everything = trainable_parameters(self.model)
        logger.info("%d of %d parameters learn", learning, everything)
        trainer = Trainer(
            config=self.config,
            model=self.model,
            tokens=tokens,
            sets=sets,
            accelerator=self.accelerator,
            folder=self.folder.path,
            evaluate=lambda: (evaluate(self.encode, evaluations), main),
            start=before[main],
            vectors_of=lambda numbers: self._embed(tokens, numbers),
            show_progress=self.show_progress,
        )
        state = trainer.train()
        model, report = self.folder.path / "model", self.folder.path / "report.md"
        if self.accelerator.is_main_process:
            finish_strategy(self.model, self.config.strategy)
            after = evaluate(self.encode, evaluations)
            self.folder.add_metrics(
                before=before,
                after=after,
                teacher=teacher,
                main=main,
                best_step=state.best_step,
                steps=state.step,
                seconds=state.seconds,
                texts=state.texts,
            )
            self._write_matrix(matrix)
            self._export(model, description(after))
            report = write_report(self.folder.path)
        self.accelerator.wait_for_everyone()
        return RunResult(model, report, before, self.folder.metrics()["after"], teacher)

    def _before(self, evaluations: Sequence[EvaluationSet]) -> Metrics:
        """Metrics of the student as it begins; of a run that goes on, those that were measured then."""
        before: Metrics | None = self.folder.metrics().get("before")
        self.accelerator.wait_for_everyone()  # all have read it, or will evaluate as well
        if before is None:
            before = evaluate(self.encode, evaluations)
            logger.info("Before: %s", ", ".join(f"{key} {value:.4f}" for key, value in before.items()))
            if self.accelerator.is_main_process:
                self.folder.add_metrics(before=before)
        return before

    def _embed(self, tokens: TokenTable, numbers: Ids) -> Vectors:
        return embed_numbers(self.model, tokens, numbers, budget=self.budget, device=self.accelerator.device)

    def _write_matrix(self, matrix: Matrix | None) -> None:
        if matrix is None:
            return
        columns = zip((matrix.left, matrix.right), matrix.kinds, strict=True)
        first, second = (unit(self.encode(texts, kind)) for texts, kind in columns)
        tensors = {"student": first @ second.T, "teacher": np.ascontiguousarray(matrix.teacher, np.float32)}
        temporary = self.folder.path / ".similarity.partial"
        try:
            save_file(tensors, temporary)
            temporary.replace(self.folder.path / "similarity.safetensors")
        except SafetensorError as error:  # its own error for a full disk
            msg = f"{self.folder.path} cannot be written ({error}). Make room on the disk, then add --resume"
            raise OSError(msg) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _export(self, folder: Path, description: ModelDescription) -> None:
        self.model.settings = replace(self.model.settings, max_tokens=self.max_tokens)
        options: dict[str, Any] = {"card": description, "overwrite": True}
        tokenizer = self.tokenizer.tokenizer
        export_model(self.model, tokenizer, folder, onnx=self.config.run.onnx, **options)
        if self.config.run.pack != "none":
            packed = folder.with_name(f"model-{self.config.run.pack}")
            export_model(self.model, tokenizer, packed, pack=self.config.run.pack, **options)


def unit(vectors: Vectors) -> Vectors:
    """Vectors of length 1: (N, D)."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled
