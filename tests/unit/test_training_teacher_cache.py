"""The cache of a teacher's vectors: asked once, kept whatever happens."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.openai_teacher import OpenAICompatibleTeacher
from luotuo_integrations.training.teacher_cache import CachedTeacher
from luotuo_integrations.training.teachers import Estimate, TeacherError, embed
from tests.embedding_stub import EmbeddingStub, stub_vector

ROOT = Path(__file__).parents[2]
TEXTS = [f"第{number}段：报销差旅费要附发票" for number in range(10)]
SECRET = "sk-stub-7f3a91c2"


class CountingTeacher:
    """Vectors of the stub, three texts a batch, the last batch first; notes what it was asked."""

    licence = "CC0-1.0"
    distinguishes_kinds = True

    def __init__(self, name: str = "counting", *, dimension: int = 8, cost: float | None = 0.5) -> None:
        self.name = name
        self.dimension = dimension
        self.cost = cost
        self.asked: list[str] = []
        self.stop_after: int | None = None
        self.error: BaseException = TeacherError("the stub stops here")

    def estimate(self, texts: Sequence[str]) -> Estimate:
        return Estimate(len(texts), -(-len(texts) // 3), 10 * len(texts), self.cost)

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        starts = range(0, len(texts), 3)
        for done, start in enumerate(reversed(starts)):
            if done == self.stop_after:
                raise self.error
            positions = list(range(start, min(start + 3, len(texts))))
            self.asked += [texts[position] for position in positions]
            yield positions, np.stack([stub_vector(texts[position], self.dimension, kind) for position in positions])


def expected(texts: Sequence[str], kind: Kind = "passage") -> Vectors:
    return np.stack([stub_vector(text, 8, kind) for text in texts])


def looked_up(cache: CachedTeacher, texts: Sequence[str], kind: Kind = "passage") -> Vectors:
    vectors, rows = cache.vectors(texts, kind)
    assert rows.dtype == np.int64
    assert vectors.dtype == np.float32
    found: Vectors = np.asarray(vectors[rows])
    return found


def test_each_text_is_asked_once_in_whatever_run(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    texts = [*TEXTS[:5], TEXTS[0], TEXTS[4]]
    assert np.array_equal(looked_up(CachedTeacher(teacher, tmp_path), texts), expected(texts))
    again = CachedTeacher(teacher, tmp_path)
    assert len(again) == 5
    assert np.array_equal(looked_up(again, TEXTS), expected(TEXTS))
    assert Counter(teacher.asked) == Counter(TEXTS)


def test_queries_and_passages_and_teachers_are_kept_apart(tmp_path: Path) -> None:
    first, second = CountingTeacher("甲/1"), CountingTeacher("甲 1")
    cache = CachedTeacher(first, tmp_path)
    assert np.array_equal(looked_up(cache, TEXTS, "query"), expected(TEXTS, "query"))
    assert np.array_equal(looked_up(cache, TEXTS, "passage"), expected(TEXTS, "passage"))
    looked_up(CachedTeacher(second, tmp_path), TEXTS)
    assert (len(first.asked), len(second.asked)) == (20, 10)
    assert len(list(tmp_path.iterdir())) == 2


def test_vectors_are_mapped_from_the_disk_and_read_only(tmp_path: Path) -> None:
    vectors, rows = CachedTeacher(CountingTeacher(), tmp_path).vectors(TEXTS, "passage")
    assert isinstance(vectors, np.memmap)
    assert sorted(rows) == list(range(10))
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1


def test_no_texts_ask_for_nothing(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    vectors, rows = CachedTeacher(teacher, tmp_path / "new").vectors([], "query")
    assert (vectors.shape, rows.shape) == ((0, 0), (0,))
    assert not (tmp_path / "new").exists()


def test_the_cache_is_a_teacher_itself(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    cache = CachedTeacher(teacher, tmp_path)
    assert (cache.name, cache.licence) == ("counting", "CC0-1.0")
    assert cache.estimate(TEXTS).texts == 10
    assert np.array_equal(embed(cache, [*TEXTS, TEXTS[3]], "query"), expected([*TEXTS, TEXTS[3]], "query"))
    assert cache.estimate(TEXTS, "query").texts == 0
    assert cache.estimate(TEXTS, "passage").texts == 10


def test_an_error_keeps_what_was_finished(tmp_path: Path) -> None:
    for error in (TeacherError("out of credit"), KeyboardInterrupt()):
        teacher = CountingTeacher(type(error).__name__)
        teacher.stop_after, teacher.error = 2, error
        with pytest.raises(type(error)):
            CachedTeacher(teacher, tmp_path).vectors(TEXTS, "passage")
        kept = list(teacher.asked)
        assert len(kept) == 4  # the last batch, of one text, and one of three
        teacher.stop_after = None
        assert np.array_equal(looked_up(CachedTeacher(teacher, tmp_path), TEXTS), expected(TEXTS))
        assert Counter(teacher.asked) == Counter(TEXTS)


def test_the_estimate_is_told_before_the_first_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = CountingTeacher()
    told: list[tuple[Estimate, int]] = []
    cache = CachedTeacher(teacher, tmp_path, on_estimate=lambda estimate: told.append((estimate, len(teacher.asked))))
    cache.vectors(TEXTS[:4], "query")
    cache.vectors(TEXTS[:5], "query")
    cache.vectors(TEXTS[:5], "query")
    assert [(estimate.texts, asked) for estimate, asked in told] == [(4, 0), (1, 4)]
    with caplog.at_level("INFO"):
        CachedTeacher(teacher, tmp_path).vectors(TEXTS, "query")
    assert "5 texts, 2 requests, about 50 tokens, 0.5000 USD" in caplog.text


def test_a_cost_above_the_limit_is_refused_before_the_first_call(tmp_path: Path) -> None:
    dear, unknown = CountingTeacher(cost=2.0), CountingTeacher(cost=None)
    with pytest.raises(TeacherError, match=r"2\.0000 USD, above max_cost=1\.5"):
        CachedTeacher(dear, tmp_path, max_cost=1.5).vectors(TEXTS, "query")
    with pytest.raises(TeacherError, match=r"unknown.*price_per_million_tokens"):
        CachedTeacher(unknown, tmp_path, max_cost=1.5).vectors(TEXTS, "query")
    assert dear.asked == unknown.asked == []
    assert len(looked_up(CachedTeacher(dear, tmp_path, max_cost=2.0), TEXTS, "query")) == 10
    CachedTeacher(unknown, tmp_path, max_cost=0).vectors(TEXTS, "query")  # all there: costs nothing
    with pytest.raises(ValueError, match="max_cost"):
        CachedTeacher(dear, tmp_path, max_cost=-1)


@pytest.mark.parametrize(
    ("name", "bytes_left", "kept"),
    [("keys.bin", 7 * 16 + 5, 7), ("keys.bin", 0, 0), ("vectors.f32", 7 * 32 + 31, 7), ("vectors.f32", 3 * 32, 3)],
)
def test_truncated_files_cost_only_what_is_lost(tmp_path: Path, name: str, bytes_left: int, kept: int) -> None:
    teacher = CountingTeacher()
    cache = CachedTeacher(teacher, tmp_path)
    cache.vectors(TEXTS, "passage")
    os.truncate(cache.folder / name, bytes_left)
    again = CachedTeacher(teacher, tmp_path)
    assert len(again) == kept
    assert np.array_equal(looked_up(again, TEXTS), expected(TEXTS))
    assert len(teacher.asked) == 10 + 10 - kept
    assert np.array_equal(looked_up(CachedTeacher(teacher, tmp_path), TEXTS), expected(TEXTS))


def test_a_cache_that_another_process_filled_is_read_again(tmp_path: Path) -> None:
    early, late = CountingTeacher(), CountingTeacher()
    waiting = CachedTeacher(late, tmp_path)
    CachedTeacher(early, tmp_path).vectors(TEXTS, "passage")
    assert np.array_equal(looked_up(waiting, TEXTS), expected(TEXTS))
    assert late.asked == []


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    cache = CachedTeacher(CountingTeacher(), tmp_path)
    cache.vectors(TEXTS, "passage")
    meta = cache.folder / "meta.json"
    good = json.loads(meta.read_text(encoding="utf-8"))
    assert good == {"format": 1, "teacher": "counting", "dimension": 8}
    for bad in ("{", "[]", '{"format": 1}', json.dumps({**good, "dimension": 0})):
        meta.write_text(bad, encoding="utf-8")
        with pytest.raises(TeacherError, match="damaged"):
            CachedTeacher(CountingTeacher(), tmp_path)
    meta.write_text(json.dumps({**good, "format": 2}), encoding="utf-8")
    with pytest.raises(TeacherError, match="format 2"):
        CachedTeacher(CountingTeacher(), tmp_path)
    meta.unlink()
    with pytest.raises(TeacherError, match=r"meta\.json"):
        CachedTeacher(CountingTeacher(), tmp_path)


def test_a_teacher_that_changes_its_dimension_is_refused(tmp_path: Path) -> None:
    CachedTeacher(CountingTeacher(), tmp_path).vectors(TEXTS[:5], "passage")
    changed = CachedTeacher(CountingTeacher(dimension=9), tmp_path)
    with pytest.raises(TeacherError, match=r"9 numbers.*8"):
        changed.vectors(TEXTS, "passage")
    assert np.array_equal(looked_up(CachedTeacher(CountingTeacher(), tmp_path), TEXTS), expected(TEXTS))


def test_vectors_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    class Broken(CountingTeacher):
        def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
            for positions, vectors in super().embed_batches(texts, kind):
                vectors[-1, -1] = np.nan
                yield positions, vectors

    with pytest.raises(TeacherError, match="not finite"):
        CachedTeacher(Broken(), tmp_path).vectors(TEXTS, "passage")
    assert len(CachedTeacher(CountingTeacher(), tmp_path)) == 0


def test_a_teacher_that_repeats_or_leaves_out_is_refused(tmp_path: Path) -> None:
    class Repeating(CountingTeacher):
        def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
            yield [0], expected(texts[:1])
            yield [0], expected(texts[:1])

    class Lazy(CountingTeacher):
        def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
            yield [0], expected(texts[:1])

    with pytest.raises(TeacherError, match="twice"):
        CachedTeacher(Repeating("repeating"), tmp_path).vectors(TEXTS, "passage")
    with pytest.raises(TeacherError, match="no vector for 9 texts"):
        CachedTeacher(Lazy("lazy"), tmp_path).vectors(TEXTS, "passage")


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python process that can import the package and the tests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def read_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def test_one_process_writes_at_a_time_and_others_read(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    cache = CachedTeacher(teacher, tmp_path)
    cache.vectors(TEXTS[:5], "passage")
    script = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    input()"
    with python(script, cache.folder / "lock") as other:
        try:
            assert read_line(other.stdout) == "held"
            with pytest.raises(TeacherError, match="Another process"):
                cache.vectors(TEXTS, "passage")
            assert np.array_equal(looked_up(cache, TEXTS[:5]), expected(TEXTS[:5]))
        finally:
            other.kill()
    assert np.array_equal(looked_up(cache, TEXTS), expected(TEXTS))
    assert len(teacher.asked) == 10


FULL_DISK = """
import resource, sys
from pathlib import Path
from luotuo_integrations.training.teacher_cache import CachedTeacher
from tests.unit.test_training_teacher_cache import CountingTeacher, TEXTS
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # bytes in a file: six rows of 32
cache = CachedTeacher(CountingTeacher(), Path(sys.argv[1]))
try:
    cache.vectors(TEXTS, "passage")
except OSError as error:
    print(error.errno, len(cache), error, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    with python(FULL_DISK, tmp_path) as process:
        line = read_line(process.stdout)
    assert line.startswith(f"{errno.EFBIG} 4 ")
    assert "4 vectors are kept" in line
    teacher = CountingTeacher()
    cache = CachedTeacher(teacher, tmp_path)
    assert (cache.folder / "vectors.f32").stat().st_size == 4 * 32
    assert (cache.folder / "keys.bin").stat().st_size == 4 * 16
    assert np.array_equal(looked_up(cache, TEXTS), expected(TEXTS))
    assert len(teacher.asked) == 6


def hired(base_url: str, **options: object) -> OpenAICompatibleTeacher:
    settings = {"max_items": 4, "requests_at_once": 3, **options}
    return OpenAICompatibleTeacher("stub", base_url=base_url, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["nan", "zero", "fewer", "same index", "uneven", "hang up", "401", "no data"])
def test_no_bad_answer_reaches_the_disk(tmp_path: Path, fault: str) -> None:
    with EmbeddingStub(faults=["", fault]) as server:
        teacher = hired(server.base_url, requests_at_once=1, attempts=1)
        with pytest.raises(TeacherError):
            CachedTeacher(teacher, tmp_path).vectors(TEXTS, "passage")
        cache = CachedTeacher(teacher, tmp_path)
        assert 4 <= len(cache) == sum(server.answered.values())
        vectors, rows = cache.vectors(TEXTS, "passage")
        assert np.array_equal(vectors[rows], np.stack([stub_vector(text) for text in TEXTS]))
        assert server.answered == Counter(TEXTS)


def test_no_key_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", SECRET)
    with EmbeddingStub(api_key=SECRET) as server:
        CachedTeacher(hired(server.base_url, api_key_variable="STUB_KEY"), tmp_path).vectors(TEXTS, "passage")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"vectors.f32", "keys.bin", "meta.json"}
    assert not any(SECRET.encode() in path.read_bytes() or SECRET in str(path) for path in files)


# Imports once, then makes a child for each line that comes in: starting anew takes a second each time.
KILLED = """
import os, sys
from pathlib import Path
import openai
from tests.unit.test_training_teacher_cache import CachedTeacher, hired
folder, base_url, count = sys.argv[1:]
texts = [f"第{number}条" for number in range(int(count))]
for line in sys.stdin:
    child = os.fork()
    if not child:
        CachedTeacher(hired(base_url), Path(folder)).vectors(texts, "passage")
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_any_moment_repeats_no_call_whose_vectors_were_kept(tmp_path: Path) -> None:
    texts = [f"第{number}条" for number in range(160)]
    chance = random.Random(7)
    killed, kept_at = 0, []
    with (
        EmbeddingStub(on_request=lambda _: time.sleep(0.002)) as server,
        python(KILLED, tmp_path, server.base_url, len(texts)) as parent,
    ):
        assert parent.stdin is not None
        for _ in range(3):
            target = len(server.requests) + chance.randrange(2, 13)
            print("go", file=parent.stdin, flush=True)
            child = int(read_line(parent.stdout))
            while len(server.requests) < target:
                time.sleep(0.0005)
            time.sleep(chance.random() * 0.005)
            os.kill(child, signal.SIGKILL)
            killed += read_line(parent.stdout) == "-9"
            reader = CachedTeacher(hired(server.base_url), tmp_path)
            kept_at.append((len(server.requests), {text for text in texts if reader.estimate([text]).texts == 0}))
        print("go", file=parent.stdin, flush=True)
        assert (read_line(parent.stdout).isdigit(), read_line(parent.stdout)) == (True, "0")
        parent.stdin.close()
    assert killed == 3
    assert 0 < len(kept_at[0][1]) < len(kept_at[-1][1]) < len(texts)
    for number, kept in kept_at:
        later = {text for request in server.requests[number:] for text in request["input"]}
        assert not later & kept
    asked = Counter(text for request in server.requests for text in request["input"])
    in_flight = 2 * 3 * 4  # twice the requests at once, four texts each
    assert set(asked) == set(texts)
    assert sum(asked.values()) <= len(texts) + killed * in_flight
    vectors, rows = CachedTeacher(hired(server.base_url), tmp_path).vectors(texts, "passage")
    assert vectors.shape == (len(texts), 8)
    assert np.array_equal(vectors[rows], np.stack([stub_vector(text) for text in texts]))


def test_texts_may_each_have_a_kind_of_their_own(tmp_path: Path) -> None:
    told: list[Estimate] = []
    cache = CachedTeacher(CountingTeacher(), tmp_path, on_estimate=told.append)
    texts, kinds = ["骆驼", "沙漠", "骆驼"], ("query", "passage", "passage")
    vectors, rows = cache.vectors(texts, kinds)
    for text, kind, row in zip(texts, kinds, rows, strict=True):
        assert np.array_equal(vectors[row], stub_vector(text, 8, kind))
    assert [estimate.texts for estimate in told] == [3]  # one estimate for both kinds
    with pytest.raises(ValueError, match="shorter"):
        cache.vectors(texts, ["query"])
