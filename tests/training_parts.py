"""What the tests of the trainer share: a tiny model with its texts, and a trainer over them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.config_sections import BatchConfig, LossConfig, OptimizerConfig, RunConfig
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.strategies import apply_strategy
from luotuo_integrations.training.table import TextTable, TokenTable
from luotuo_integrations.training.trainer import Trainer
from luotuo_integrations.training.training_run import make_accelerator
from luotuo_integrations.training.training_set import TeacherTable, TrainingSet

LOSS = {"feature": LossConfig(), "kl": LossConfig(weights=(0.0, 1.0)), "cse": LossConfig(weights=(0.0, 0.1))}
CHARACTERS = "试用期员工可以请年假吗出差住宿标准每晚不超过四百五十元"


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 4 to 20 characters that the tiny tokenizer knows."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(generator.choice(list(CHARACTERS), generator.integers(4, 20)))] = None
    return list(found)


@dataclass
class Parts:
    """A tiny model and numbered texts, of which the first and second halves are pairs."""

    folder: Path
    model: EmbeddingModel
    tokens: TokenTable
    numbers: Any
    teacher: TeacherTable

    def training_set(self, config: TrainConfig, **options: Any) -> TrainingSet:
        has = ["teacher", *(["negatives"] if config.mining.negatives else [])]
        objective = Objective(config.loss or LOSS, has, config.matryoshka)
        return TrainingSet("pairs", self.numbers, objective, config.batch, teacher=self.teacher, **options)

    def trainer(self, config: TrainConfig, run: Path, **options: Any) -> Trainer:
        run.mkdir(parents=True, exist_ok=True)
        apply_strategy(self.model, config.strategy)
        options.setdefault("sets", [self.training_set(config, mining=config.mining)])
        return Trainer(
            config=config,
            model=self.model,
            tokens=self.tokens,
            accelerator=make_accelerator(RunConfig(device="cpu")),
            folder=run,
            **options,
        )


def make_parts(folder: Path, pairs: int = 24, seed: int = 0) -> Parts:
    """Load the tiny model, and give it ``pairs`` pairs with random teacher vectors."""
    model = EmbeddingModel.load(folder)
    table = TextTable()
    numbers = table.add_all(texts(2 * pairs), "passage").reshape(2, pairs).T.copy()
    tokens = TokenTable.of(table, TextTokenizer(folder), dict(model.settings.prompts), 32)
    generator = np.random.default_rng(seed)
    half = generator.normal(size=(pairs, model.dimension))
    other = half + 0.5 * generator.normal(size=half.shape)
    vectors = np.concatenate([half, other]).astype(np.float32)
    return Parts(folder, model, tokens, numbers, TeacherTable(vectors, np.arange(len(vectors))))


def make_config(**options: Any) -> TrainConfig:
    """Small batches, two epochs, a learning rate at which the tiny model learns."""
    config = TrainConfig(
        loss=LOSS,
        batch=BatchConfig(size=8),
        optimizer=OptimizerConfig(epochs=2, learning_rate=1e-2),
    )
    return replace(config, **options)


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of each step in a run's log; of a step that was repeated after a resume, the last."""
    import json

    lines = (json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return sorted({line["step"]: line["loss"] for line in lines if line["event"] == "step"}.items())


Evaluate = Callable[[], tuple[dict[str, float], str]]
