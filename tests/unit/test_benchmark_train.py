"""The benchmark of the trainer runs, and its systems compute the same loss; how fast they are is not tested."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks import train
from luotuo_integrations.training.config_sections import RunConfig

Lines = Callable[[], list[list[str]]]
TINY = ["--student", "random:1x32", "--device", "cpu"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "student"
    return train.build_student("random:1x32", folder, teacher_dimension=train.DIMENSION)


def test_it_prints_a_ratio_for_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*TINY, "--rounds", "2", "--steps", "2", "--batch", "4"])
    printed = capsys.readouterr().out
    for name in (train.OURS, train.LONGEST, train.PASSES):
        found = re.search(rf"^{re.escape(name)} +(\S+) +(\S+) +(\S+) +(\S+) ", printed, re.MULTILINE)
        assert found is not None, printed
        rate, *ratios = map(float, found.groups())
        assert rate > 0
        assert ratios == [1, 1, 1] if name == train.OURS else min(ratios) > 0
    idle = [float(share) for share in re.findall(r"(\S+)%", printed)]
    assert len(idle) == 2
    assert all(0 < share < 100 for share in idle)


def test_systems_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CSE_WEIGHT", 0.2)
    with pytest.raises(SystemExit, match="the losses of the first step differ"):
        train.main([*TINY, "--rounds", "1", "--steps", "1", "--batch", "4"])


def test_texts_are_different_and_as_long_as_asked(student: Path) -> None:
    tokens, rows = train.Work(student, 16, 2, (40, 128), RunConfig()).read()
    assert rows.shape == (32, 2)
    assert len(np.unique(rows)) == len(tokens) == 64
    assert tokens.lengths.min() >= 30
    assert tokens.lengths.max() <= 128
    assert 70 <= tokens.lengths.mean() <= 98


@pytest.fixture
def memory_lines(student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """What the benchmark of memory prints, in words; measured by threads, as new processes take seconds to start."""
    monkeypatch.setattr(train, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))

    def measure() -> list[list[str]]:
        train.memory(train.Work(student, 1, 1, (8, 16), RunConfig(device="cpu")), large=6, fits=4)
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return measure


def test_memory_is_measured_for_both_ways(memory_lines: Lines) -> None:
    lines = memory_lines()
    assert [line[:-4] for line in lines[1:4]] == [["6", "not", "kept"], ["4", "not", "kept"], ["4", "kept"]]
    for line in lines[1:4]:
        before, peak, _ = map(float, line[-3:])
        assert 0 < before <= peak
    assert float(lines[-1][-4]) > 0


def test_what_would_not_fit_is_not_tried(memory_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "used_and_free", lambda device: (2**30, 0))
    lines = memory_lines()
    assert lines[3][-6:] == ["1.00", "would", "be", "needed:", "not", "done"]
    assert len(lines) == 4
