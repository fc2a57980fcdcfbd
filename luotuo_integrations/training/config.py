"""TrainConfig: everything that decides a run, from a TOML file and overrides; a copy lies in every run folder."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luotuo_integrations._optional import require
from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.training.config_reader import read_dataclass
from luotuo_integrations.training.config_sections import (
    AlignmentConfig,
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MiningConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
)
from luotuo_integrations.training.strategies import StrategySettings


class ConfigError(LuotuoError, ValueError):
    """A configuration names something unknown, or a value out of range."""


# What imitates the teacher best (training/runs/README.md); the first epoch with the feature loss alone, as Luotuo did.
# Its cross entropy (cse) and diagonal prior teach halves to meet, and take the student away from the teacher's space.
DISTILLATION_LOSS: dict[str, LossConfig] = {
    "feature": LossConfig(weights=(1.0,)),
    "kl": LossConfig(weights=(0.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole run.

    Attributes:
        data: Where the texts come from.
        teacher: Who gives the vectors; not used in fine-tuning.
        student: What is trained.
        alignment: Learning a local teacher's token states first; used by ``training/make_model.py``.
        loss: Name of each part and its settings; empty takes the default of the task.
        matryoshka: Shorter dimensions that must serve too.
        batch: How rows become steps.
        mining: Hard negatives.
        strategy: Which weights learn.
        optimizer: Optimizer and schedule.
        evaluation: What is measured.
        run: Where the run lives.
        seed: Of everything that is drawn.
    """

    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    loss: dict[str, LossConfig] = field(default_factory=dict)
    matryoshka: tuple[int, ...] = ()
    batch: BatchConfig = field(default_factory=BatchConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    strategy: StrategySettings = field(default_factory=StrategySettings)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ranges(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Read nested tables, as of a TOML or JSON file.

        Raises:
            ConfigError: If a key is unknown, or a value has another type or is out of range; the message names it.
        """
        try:
            return read_dataclass(cls, values)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def from_file(cls, path: str | Path) -> "TrainConfig":
        """Read a TOML recipe, or the config.json of a run.

        Raises:
            ConfigError: If the file cannot be read, or as in `from_dict`.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else _toml().loads(text)
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read as a configuration ({error}). Give a .toml recipe or a run's config.json"
            raise ConfigError(msg) from error
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of plain values; `from_dict` reads them back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def with_values(self, values: Mapping[str, Any]) -> "TrainConfig":
        """The same configuration with values put in, as ``{"batch.size": 64}``."""
        return TrainConfig.from_dict(put_in(self.to_dict(), values))

    def with_overrides(self, overrides: Sequence[str]) -> "TrainConfig":
        """The same configuration with texts like ``"batch.size=64"`` put in; a bare word is a string.

        Raises:
            ConfigError: If one has no ``=``, or as in `from_dict`.
        """
        return self.with_values(dict(map(_override, overrides)))

    def with_default_loss(self, loss: Mapping[str, LossConfig]) -> "TrainConfig":
        """The same configuration; where it names no loss, with this one."""
        return self if self.loss else replace(self, loss=dict(loss))


def put_in(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put values with dotted names into nested tables.

    Raises:
        ConfigError: If a name goes through something that is no table.
    """
    result: dict[str, Any] = json.loads(json.dumps(values))
    for name, value in given.items():
        *tables, last = name.split(".")
        table = result
        for key in tables:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                msg = f"{name!r} cannot be set: {key!r} is a value, not a section"
                raise ConfigError(msg)
        table[last] = value
    return result


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        msg = f"{text!r} sets nothing; write SECTION.NAME=VALUE, for instance batch.size=64"
        raise ConfigError(msg)
    return name.strip(), _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return _toml().loads(f"value = {text}")["value"]
    except ValueError:
        return text  # a bare word: a name or a path


def _toml() -> Any:
    return require("tomllib", extra="train") if sys.version_info >= (3, 11) else require("tomli", extra="train")


def _check_ranges(config: TrainConfig) -> None:
    batch, optimizer, data = config.batch, config.optimizer, config.data
    rules = [
        (batch.size >= 2, f"batch.size={batch.size}", "2 or more: in-batch losses compare rows"),
        (batch.accumulation >= 1, f"batch.accumulation={batch.accumulation}", "1 or more"),
        (batch.pool >= batch.size, f"batch.pool={batch.pool}", f"batch.size ({batch.size}) or more"),
        (optimizer.epochs >= 1, f"optimizer.epochs={optimizer.epochs}", "1 or more"),
        (optimizer.learning_rate > 0, f"optimizer.learning_rate={optimizer.learning_rate}", "above 0"),
        (0 <= optimizer.warmup_share < 1, f"optimizer.warmup_share={optimizer.warmup_share}", "0 to below 1"),
        (optimizer.clip_norm >= 0, f"optimizer.clip_norm={optimizer.clip_norm}", "0 (off) or more"),
        (0 <= data.dev_share < 1, f"data.dev_share={data.dev_share}", "0 to below 1"),
        (0 < data.near_duplicates <= 1, f"data.near_duplicates={data.near_duplicates}", "above 0 to 1 (off)"),
        (0 <= config.student.dropout < 1, f"student.dropout={config.student.dropout}", "0 to below 1"),
        (config.mining.negatives >= 0, f"mining.negatives={config.mining.negatives}", "0 (off) or more"),
        (config.run.keep_checkpoints >= 1, f"run.keep_checkpoints={config.run.keep_checkpoints}", "1 or more"),
        (all(part.weights for part in config.loss.values()), "a loss part without weights", "weights = [1.0]"),
    ]
    for holds, given, allowed in rules:
        if not holds:
            msg = f"{given} is out of range; allowed: {allowed}"
            raise ConfigError(msg)
