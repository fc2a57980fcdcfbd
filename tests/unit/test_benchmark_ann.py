"""The benchmark of approximate indexes runs, and what it calls exact is; how fast they are is not tested."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from benchmarks import ann


def test_it_prints_and_writes_every_kind_and_effort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "结果.json"
    kinds = ["Flat", "Int8", "Binary", "SQ8", "HNSW32", "IVF256,Flat", "LSH384rt", "RaBitQ", "signs"]
    monkeypatch.setattr(sys, "argv", ["ann.py", "--size", "1000", "--kinds", *kinds, "--json", str(file)])
    ann.main()
    printed = capsys.readouterr().out
    assert "1,000 vectors of 384 numbers (clusters), 500 queries" in printed
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = {(row["kind"], row["effort"]): row for row in results["rows"]}
    raw = {"LSH384rt, raw", "RaBitQ, raw", "signs, raw"}
    assert set(rows) == {(kind, one) for kind in kinds[:6] for one in ann.STORE_KINDS[kind]} | {
        (one, None) for one in raw
    }
    assert all(kind in printed for kind, _ in rows)
    assert rows["Flat", None]["recall"] == 1.0
    assert rows["IVF256,Flat", 4]["recall"] <= rows["IVF256,Flat", 64]["recall"]
    assert all(0.1 < row["recall"] <= 1 for row in rows.values())
    # 4 bytes a number, 1 byte, 1 bit.
    memory = {kind: row["memory_megabytes"] for (kind, effort), row in rows.items() if effort is None}
    assert memory["Flat"] > 3 * memory["SQ8"] > 9 * memory["signs, raw"]
    assert memory["Flat"] > 3 * memory["Int8"] > 15 * memory["Binary"]
    # The codes come on top of the whole vectors there; all other files are read as they are.
    for (kind, _), row in rows.items():
        added = row["disk_megabytes"] - row["memory_megabytes"]
        assert added == pytest.approx(1000 * (384 * 4 - 8) / 1e6, abs=0.01) if kind in ("Int8", "Binary") else not added
    assert rows["Int8", None]["recall"] > 0.999
    assert rows["Binary", None]["recall"] > 0.99 > rows["RaBitQ, raw", None]["recall"]


def test_cut_vectors_are_compared_with_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    kinds = [f"Flat, cut to {dimension}" for dimension in (256, 128, 64)]
    monkeypatch.setattr(sys, "argv", ["ann.py", "--size", "500", "--kinds", *kinds, "--json", str(file)])
    ann.main()
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["kind"] for row in rows] == kinds
    assert 1 > rows[0]["recall"] > rows[1]["recall"] > rows[2]["recall"] > 0.1
    assert rows[0]["memory_megabytes"] > 3 * rows[2]["memory_megabytes"]
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in kinds)


def test_vectors_have_length_one_and_depend_on_the_seed_alone() -> None:
    vectors, queries = ann.clusters(200, 3)
    assert vectors.shape == (200, 384)
    assert queries.shape == (ann.QUERIES, 384)
    assert np.allclose(np.linalg.norm(np.vstack([vectors, queries]), axis=1), 1, atol=1e-5)
    assert (ann.clusters(200, 3)[0] == vectors).all()
    assert not np.allclose(ann.clusters(200, 4)[0], vectors)


def test_vectors_of_texts_are_those_of_the_bundled_model() -> None:
    vectors, queries = ann.text_vectors(3, 0)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(np.vstack([vectors, queries]), axis=1), 1, atol=1e-4)
