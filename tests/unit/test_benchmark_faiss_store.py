"""The benchmark of the store runs, and its systems find the same documents; how fast they are is not tested."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("faiss")

from benchmarks import faiss_store


def test_it_prints_and_writes_every_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "结果.json"
    monkeypatch.setattr(
        sys, "argv", ["faiss_store.py", "--sizes", "300", "--rounds", "2", "--peers-up-to", "0", "--json", str(file)]
    )
    faiss_store.main()
    printed = capsys.readouterr().out
    assert "300 documents" in printed
    assert "measured up to 0 documents" in printed
    seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]["300"]
    assert set(seconds) == set(faiss_store.OPERATIONS)
    for operation, calls in seconds.items():
        assert set(calls) == {faiss_store.RawFaiss.name, faiss_store.LangChainFace.name}
        assert all(len(times) >= 2 for times in calls.values()), operation


def test_both_faces_find_what_raw_faiss_finds() -> None:
    data = faiss_store.Data(2_500)
    systems = [kind(data) for kind in (faiss_store.RawFaiss, faiss_store.LangChainFace, faiss_store.LlamaFace)]
    seconds = faiss_store.measure(systems, rounds=1)  # ends with an error if they differ
    assert all(times > 0 for times in seconds["add"][faiss_store.LlamaFace.name])
