"""The benchmark of keywords runs and measures what it prints; how fast that is is not tested."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from benchmarks import keywords


def test_it_prints_and_writes_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "结果.json"
    monkeypatch.setattr(sys, "argv", ["keywords.py", "--size", "200", "--json", str(file)])
    keywords.main()
    printed = capsys.readouterr().out
    results = json.loads(file.read_text(encoding="utf-8"))
    assert f"200 texts of {results['characters']:.0f} characters" in printed
    assert set(results) == {
        "characters",
        "matrix",
        "vector",
        "keyword",
        *(f"split {kind}" for kind in ("words", "bigrams", "both")),
        *(f"hybrid, {method}" for method in ("calibrated", "weighted", "reciprocal_rank")),
    }
    assert all(value > 0 for value in results.values())
    assert "vector: " in printed
    assert printed.count("times vectors alone") == 5


def test_the_same_seed_draws_the_same_texts() -> None:
    first, again = (keywords.drawn_texts(5, 3, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert len(set(first)) == 5
