"""FineTuner: a few pairs, triplets or scored pairs of your own in, the same model, better at them, out."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luotuo_integrations.model_folder import read_object, read_settings
from luotuo_integrations.registry import DEFAULT_MODEL, resolve
from luotuo_integrations.texts import Kind
from luotuo_integrations.training.cleaning import split_records
from luotuo_integrations.training.config import ConfigError, TrainConfig
from luotuo_integrations.training.config_sections import (
    BatchConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
)
from luotuo_integrations.training.evaluate import EvaluationSet, evaluation_of
from luotuo_integrations.training.export import ModelDescription
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.records import Pair, Record, ScoredPair, Triplet, read_records, texts_of
from luotuo_integrations.training.run_folder import RunFolder
from luotuo_integrations.training.students import build_student
from luotuo_integrations.training.table import Ids, TextTable
from luotuo_integrations.training.trainer import Metrics
from luotuo_integrations.training.training_run import RunResult, TrainingRun, make_accelerator
from luotuo_integrations.training.training_set import TrainingSet

logger = logging.getLogger(__name__)

MOST_NEGATIVES = 8  # of one query in a batch
WANTED_STEPS = 300
MOST_DISTRACTORS = 2_000  # passages of the training side among which the held-out queries search too
MOST_EPOCHS = 10
BATCH = 32
DEV_SHARE = 0.1
LEARNING_RATE = 2e-5  # of a model 768 wide; narrower ones learn faster
WIDTH = 768

# Softmax needs hard negatives no more than in-batch ones; scored pairs are ranked.
DEFAULT_LOSS: dict[type, dict[str, LossConfig]] = {
    Pair: {"softmax": LossConfig(temperature=0.05)},
    Triplet: {"softmax": LossConfig(temperature=0.05)},
    ScoredPair: {"cosent": LossConfig(scale=20.0)},
}
KINDS: dict[type, tuple[Kind, Kind]] = {
    Pair: ("query", "passage"),
    Triplet: ("query", "passage"),
    ScoredPair: ("query", "query"),
}


class FineTuner:
    """Fine-tunes a model on records; their kind, the loss and the numbers are inferred where the config is silent.

    Args:
        config: A recipe. Where ``loss`` is empty, the loss of the records' kind is used; where ``batch`` or
            ``optimizer`` is as it comes, what `inferred` tells.
        dataset: Records, mappings or a Hugging Face dataset, in place of the files in ``config.data.records``.
        show_progress: Show progress bars.

    Raises:
        ConfigError: If there is nothing to train on, or the scores are all equal.
        ValueError: If the kind of the records cannot be told from their fields.
    """

    def __init__(self, config: TrainConfig, *, dataset: Any = None, show_progress: bool = False) -> None:
        if dataset is None and not config.data.records:
            msg = "no records are given; type --pairs FILE, or set data.records in the recipe"
            raise ConfigError(msg)
        sources = [dataset] if dataset is not None else [Path(one) for one in config.data.records]
        self.records: list[Record] = [record for source in sources for record in read_records(source)]
        self.kind = self._one_kind()
        self.config = self._completed(config)
        self.show_progress = show_progress

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        dataset: Any,
        out: str | Path = "runs/finetuned",
        show_progress: bool = False,
    ) -> "FineTuner":
        """A tuner with everything inferred.

        Args:
            model: A name in the registry, a repository name on the hub, or a folder.
            dataset: Records, mappings, a file or several, or a Hugging Face dataset.
            out: Folder of the run.
            show_progress: Show progress bars.
        """
        data = DataConfig(dev_share=DEV_SHARE)
        if _are_files(dataset):
            files = [dataset] if isinstance(dataset, str | Path) else dataset
            data, dataset = replace(data, records=tuple(map(str, files))), None
        config = TrainConfig(data=data)
        config = replace(config, student=StudentConfig(base=str(model)), run=RunConfig(out=str(out)))
        return cls(config, dataset=dataset, show_progress=show_progress)

    def _completed(self, config: TrainConfig) -> TrainConfig:
        config = config.with_default_loss(DEFAULT_LOSS[self.kind])
        silent = [name for name in ("batch", "optimizer") if getattr(config, name) == getattr(TrainConfig(), name)]
        if not silent:
            return config
        inferred = self.inferred(_width(config.student.base))
        return replace(config, **{name: inferred[name] for name in silent})

    def inferred(self, width: int) -> dict[str, Any]:
        """Batch size, epochs and learning rate that suit the number of records and the model's width.

        Small sets are passed over more often, until about 300 steps; the best evaluation counts in the end.
        """
        size = min(BATCH, max(len(self.records) // 4, 2))
        steps = math.ceil(len(self.records) * 0.9 / size)
        epochs = min(max(math.ceil(WANTED_STEPS / steps), 1), MOST_EPOCHS)
        rate = LEARNING_RATE * max(1.0, WIDTH / width)
        return {
            "batch": BatchConfig(size=size),
            "optimizer": OptimizerConfig(epochs=epochs, learning_rate=rate, warmup_share=0.1),
        }

    def run(self, *, epochs: int | None = None, resume: bool = False) -> RunResult:
        """Split, train, evaluate, export and report.

        Args:
            epochs: In place of the config's.
            resume: Go on with the run in ``config.run.out``; without one there, begin.

        Raises:
            RunError: If the folder holds a run and ``resume`` is false, or the configuration or texts have changed.
            KeyboardInterrupt: After Ctrl-C; nothing finished is lost.
        """
        config = self.config
        if epochs is not None:
            config = replace(config, optimizer=replace(config.optimizer, epochs=epochs))
        objective = self._objective(config)  # a bad loss is told before any work
        accelerator = make_accelerator(config.run)
        train, dev = self._split(config)
        others = [record.positive for record in train if not isinstance(record, ScoredPair)][:MOST_DISTRACTORS]
        evaluations = [evaluation_of(dev, "dev", distractors=others), *self._further_evaluations(config)]
        counts = {"train": len(train), "dev": len(dev), "kind": self.kind.__name__}
        with accelerator.main_process_first():
            folder = RunFolder(config.run.out, config, resume=resume or not accelerator.is_main_process)
            folder.begin(map(repr, (*train, *dev)), counts, write=accelerator.is_main_process)
            student = folder.student
            if not student.is_dir():
                build_student(
                    config.student.build,
                    student,
                    base=config.student.base,
                    texts=[text for record in train for text in texts_of(record)],
                    max_tokens=config.student.max_tokens,
                    prefix_tokens=config.strategy.prefix_tokens,
                    seed=config.seed,
                )
        run = TrainingRun(folder, config, student, accelerator, show_progress=self.show_progress)
        table = TextTable()
        labels = None
        if self.kind is ScoredPair:
            labels = np.array([record.score for record in train if isinstance(record, ScoredPair)], np.float32)
        rows = TrainingSet(
            "records", self._numbers(table, train), objective, config.batch, labels=labels, mining=config.mining
        )
        return run.train(
            table, [rows], evaluations, teacher={}, description=lambda after: self._description(config, after, counts)
        )

    def _split(self, config: TrainConfig) -> tuple[list[Record], list[Record]]:
        """Records to train on, and to evaluate on: of a few scored pairs two are held out, for one has no order."""
        share, count, total = config.data.dev_share, config.data.dev_count, len(self.records)
        least = 2 if self.kind is ScoredPair else 1
        if count is None and 0 < share * total < least < total:
            count = least
        train, dev = split_records(self.records, dev_share=share, dev_count=count, seed=config.seed)
        if len(train) < 2 or len(dev) < least:
            msg = (
                f"The {total} records give {len(train)} to train on and {len(dev)} for evaluation, but at least 2 and "
                f"{least} are needed. Give more records, or set data.dev_count={least}"
            )
            raise ConfigError(msg)
        return train, dev

    def _objective(self, config: TrainConfig) -> Objective:
        if config.mining.negatives and self.kind is ScoredPair:
            msg = "mining.negatives has no meaning for scored pairs; set it to 0"
            raise ConfigError(msg)
        has = {Pair: [], Triplet: ["negatives"], ScoredPair: ["labels"]}[self.kind]
        if self.kind is Pair and config.mining.negatives:
            has = ["negatives"]
        return Objective(config.loss, has, config.matryoshka)

    def _one_kind(self) -> type[Record]:
        kinds = Counter(type(record) for record in self.records)
        if len(kinds) != 1:
            found = ", ".join(f"{count} {kind.__name__}" for kind, count in kinds.items()) or "none"
            msg = f"records of one kind are needed, but there are: {found}. Give each kind its own run"
            raise ConfigError(msg)
        scores = {record.score for record in self.records if isinstance(record, ScoredPair)}
        if len(scores) == 1:
            msg = f"all scores are {scores.pop()}: there is nothing to rank. Give pairs of different scores"
            raise ConfigError(msg)
        return next(iter(kinds))

    def _numbers(self, table: TextTable, records: Sequence[Record]) -> Ids:
        """Text numbers of the columns: (N, 2), or (N, 2 + K) for triplets, whose negatives are repeated up to K."""
        first_kind, second_kind = KINDS[self.kind]
        negatives = [len(record.negatives) for record in records if isinstance(record, Triplet)]
        width = min(max(negatives, default=0), MOST_NEGATIVES)
        rows = []
        for record in records:
            first, second, *others = texts_of(record)
            repeated = [others[number % len(others)] for number in range(width)]
            rows.append([table.add(first, first_kind), *(table.add(text, second_kind) for text in (second, *repeated))])
        return np.array(rows, np.int64)

    def _further_evaluations(self, config: TrainConfig) -> list[EvaluationSet]:
        files = [*config.evaluation.retrieval, *config.evaluation.similarity]
        return [evaluation_of(read_records(Path(one)), Path(one).stem) for one in files]

    def _description(self, config: TrainConfig, metrics: Metrics, counts: dict[str, Any]) -> ModelDescription:
        data = ", ".join(config.data.records) or "records given in Python"
        return ModelDescription(
            name=config.run.name or f"{config.run.out}/model",
            base=config.student.base,
            teacher=None,
            data=f"{counts['train']} {counts['kind']} records for training, {counts['dev']} for evaluation: {data}",
            licence=config.run.licence,
            metrics=metrics,
        )


def _are_files(dataset: Any) -> bool:
    if isinstance(dataset, list | tuple):
        return bool(dataset) and all(isinstance(one, str | Path) for one in dataset)
    return isinstance(dataset, str | Path)


def _width(model: str | Path) -> int:
    """Width of a model's tokens, from its config.json."""
    folder = resolve(model)
    config = read_object(folder / read_settings(folder).transformer / "config.json")
    return int(config.get("hidden_size") or WIDTH)
