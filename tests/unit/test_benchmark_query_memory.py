"""The benchmarks of queries and of memory run and refuse what disagrees; what they measure is not tested."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory, query


def vector(text: str) -> list[float]:
    return [1.0, 0.0] if "急" in text else [0.0, 1.0]


async def vector_later(text: str) -> list[float]:
    await asyncio.sleep(0)
    return vector(text)


def other(text: str) -> list[float]:
    return [0.0, 1.0]


SYSTEMS = {
    query.OURS: query.System(vector, vector_later),
    query.OURS_FLOAT32: query.System(vector, vector_later),
    query.HUGGING_FACE: query.System(vector, vector_later),
    query.SENTENCE_TRANSFORMERS: query.System(vector, None),
}


def test_questions_are_different_and_those_of_the_seed() -> None:
    questions = query.make_questions(600, seed=0)
    assert len(set(questions)) == 600
    assert questions == query.make_questions(600, seed=0) != query.make_questions(600, seed=1)
    assert all(1 < len(question) < 100 for question in questions)
    with pytest.raises(SystemExit, match="there are "):
        query.make_questions(10_000_000, seed=0)


def test_it_prints_a_ratio_for_every_system(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(query, "load_systems", lambda folder, prompt, device: SYSTEMS)
    options = ["--queries", "3", "--concurrent", "1", "4", "--rounds", "2", "--json", str(tmp_path / "results.json")]
    query.main(options)
    lines = capsys.readouterr().out.splitlines()
    one = [line for line in lines if line.startswith(query.SENTENCE_TRANSFORMERS)]
    assert [line.split()[-1] for line in one] == ["1.00"]
    reference = [line for line in lines if line.startswith(query.HUGGING_FACE)]
    assert [line.count("(1.00)") for line in reference[-1:]] == [2]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {name: len(times) for name, times in results["latency_seconds"].items()} == {
        query.OURS: 6,
        f"{query.OURS}, async": 6,
        query.OURS_FLOAT32: 6,
        f"{query.OURS_FLOAT32}, async": 6,
        query.HUGGING_FACE: 6,
        f"{query.HUGGING_FACE}, async": 6,
        query.SENTENCE_TRANSFORMERS: 6,
    }
    assert set(results["queries_per_second"]) == {"1", "4"}


def test_systems_that_disagree_are_refused() -> None:
    different = {**SYSTEMS, query.HUGGING_FACE: query.System(other, vector_later)}
    with pytest.raises(SystemExit, match="the vectors differ"):
        query.check_agreement(different, ["会议室在哪，急", "打印机在哪"])
    may_round = {**SYSTEMS, query.OURS: query.System(other, vector_later)}
    assert query.check_agreement(may_round, ["会议室在哪，急", "打印机在哪"]) == 1


def test_texts_are_short_and_made_one_at_a_time() -> None:
    texts = list(memory.short_texts(2000, seed=0))
    assert {len(text) for text in texts} <= set(range(5, 21))
    assert texts == list(memory.short_texts(2000, seed=0))
    assert len(set(texts)) > 1000
    assert next(memory.short_texts(10**12, seed=0))


def test_memory_is_measured_in_a_process_of_its_own(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    memory.main(["--model", str(tiny_folder), "--system", memory.OURS, "--texts", "50", "90", "--json", str(file)])
    printed = capsys.readouterr().out
    assert f"{memory.OURS}: " in printed
    measured = json.loads(file.read_text(encoding="utf-8"))["memory"][memory.OURS]
    assert set(measured) == {"50", "90"}
    for result in measured.values():
        assert result["loaded"] > 0
        assert 0 < result["peak"] <= result["whole_peak"] * 1.01


def test_the_peak_is_seen_and_growth_is_by_the_number_of_texts() -> None:
    with memory.PeakMemory() as watched:
        before = memory.resident()
        block = np.ones(50 * memory.MIB, np.uint8)
        while watched.peak < before + block.nbytes // 2:  # looked at a hundred times a second
            pass
    assert watched.peak > before
    rows = {100_000: {"peak": 100 * memory.MIB}, 300_000: {"peak": 140 * memory.MIB}}
    assert memory.growth(rows) == 20  # type: ignore[arg-type]


def test_vectors_that_differ_are_refused() -> None:
    one = np.eye(3)
    memory.check_agreement([one, one])
    with pytest.raises(SystemExit, match="least cosine 0"):
        memory.check_agreement([one, one[[1, 0, 2]]])
