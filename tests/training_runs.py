"""What the tests of whole runs share: articles, records and configurations with which the tiny model learns quickly."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luotuo_integrations.training.config import TrainConfig
from tests.training_parts import CHARACTERS

DOCUMENTS = 40


def words(generator: np.random.Generator, topic: list[str], least: int = 5, most: int = 9) -> str:
    """Some characters of a topic."""
    return "".join(generator.choice(topic, generator.integers(least, most)))


def topics(count: int, seed: int = 0) -> list[list[str]]:
    """Sets of four characters each."""
    generator = np.random.default_rng(seed)
    return [generator.choice(sorted(set(CHARACTERS)), 4, replace=False).tolist() for _ in range(count)]


def articles(count: int = DOCUMENTS, seed: int = 0) -> list[str]:
    """Articles of six sentences, each about a topic of its own: so the halves of an article belong together."""
    generator = np.random.default_rng(seed)
    return ["".join(f"{words(generator, topic)}。" for _ in range(6)) for topic in topics(count, seed)]


def distillation(base: Path, out: Path, **values: Any) -> TrainConfig:
    """A configuration for `articles`; names are written with a double underscore, as ``batch__size=8``."""
    settings: dict[str, Any] = {
        "student.base": str(base),
        "data.least_characters": 30,
        "data.most_characters": 120,
        "data.near_duplicates": 1.0,
        "data.dev_count": 8,
        "teacher.requests_at_once": 1,
        "batch.size": 16,
        "optimizer.epochs": 2,
        "optimizer.learning_rate": 1e-2,
        "run.device": "cpu",
        "run.out": str(out),
    }
    given = {name.replace("__", "."): value for name, value in values.items()}
    return TrainConfig().with_values(settings | given)


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """As if these modules were not installed. Without matplotlib a tiny run takes a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, None)
        yield
