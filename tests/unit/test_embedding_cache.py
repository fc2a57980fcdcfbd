import asyncio
import copy
import itertools
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import luotuo_integrations.encoder_loader as encoder_loader
from luotuo_integrations.embedding_cache import FILE, EmbeddingCache, EmbeddingCacheError
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.texts import Vectors

SECONDS = 60  # a limit that is never reached, so that a fault fails the test and does not hang it
ROOT = Path(__file__).parents[2]
TEXTS = [
    "图书馆周一闭馆，其余日子开到晚上九点。",
    "借书证丢失要先挂失，补办需要两天。",
    "自习室的座位每天早上八点放号。",
    "还书箱在东门外面，二十四小时开放。",
]
QUESTION = "晚上几点关门？"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "向量"


@pytest.fixture
def cached(tiny_folder: Path, folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu", vector_cache=folder)


@pytest.fixture
def plain(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu")


def count_passes(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each forward pass from now on."""
    passes: list[int] = []
    forward = embeddings.encoder.model.forward

    def watched(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        passes.append(len(input_ids))
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(embeddings.encoder.model, "forward", watched)
    return passes


def numbers(texts: list[str]) -> Vectors:
    """A stand-in for a model: three numbers that tell the text apart."""
    return np.array([[len(text), sum(map(ord, text)), 1] for text in texts], np.float32).reshape(-1, 3)


def refuse(texts: list[str]) -> Vectors:
    raise AssertionError(f"{texts} should have been kept")


# -- what is embedded -------------------------------------------------------------------------------------------------


def test_the_second_call_makes_no_forward_pass(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(cached, monkeypatch)
    first = cached.encode(TEXTS)
    query = cached.embed_query(QUESTION)
    assert sum(passes) == len(TEXTS) + 1
    passes.clear()
    np.testing.assert_array_equal(cached.encode(TEXTS), first)
    np.testing.assert_array_equal(cached.embed_documents(TEXTS), first)
    np.testing.assert_array_equal(asyncio.run(cached.aembed_documents(TEXTS)), first)
    np.testing.assert_array_equal(cached.get_text_embedding_batch(TEXTS), first)
    assert cached.embed_query(QUESTION) == query
    assert asyncio.run(cached.aembed_query(QUESTION)) == query
    assert cached.get_query_embedding(QUESTION) == query
    assert passes == []
    np.testing.assert_allclose(first, plain.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(query, plain.embed_query(QUESTION), atol=1e-6)


def test_only_what_is_new_is_embedded_each_text_once_and_in_order(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(cached, monkeypatch)
    cached.encode(TEXTS[1:3])
    assert sum(passes) == 2
    texts = [TEXTS[3], TEXTS[1], "", TEXTS[0], TEXTS[3], TEXTS[2], "", "\ud800"]
    vectors = cached.encode(texts)
    assert sum(passes) == 2 + 4
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, plain.encode(texts), atol=1e-6)
    assert cached.encode([]).shape == (0, 24)


def test_queries_and_passages_are_kept_apart(cached: LuotuoEmbeddings, plain: LuotuoEmbeddings) -> None:
    for kind in ("passage", "query", "passage"):
        np.testing.assert_allclose(cached.encode(TEXTS, kind), plain.encode(TEXTS, kind), atol=1e-6)
    assert not np.allclose(cached.encode(TEXTS), cached.encode(TEXTS, "query"), atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"query_prompt": "问："},
        {"query_prompt": ""},
        {"passage_prompt": "文："},
        {"dimensions": 7},
        {"max_length": 12},
        {"normalize": False},
    ],
    ids=str,
)
def test_other_settings_have_other_vectors(
    cached: LuotuoEmbeddings, tiny_folder: Path, folder: Path, settings: dict[str, Any]
) -> None:
    cached.encode(TEXTS), cached.encode(TEXTS, "query")
    other = LuotuoEmbeddings(tiny_folder, device="cpu", vector_cache=folder, **settings)
    for kind in ("passage", "query"):
        expected = LuotuoEmbeddings(tiny_folder, device="cpu", **settings).encode(TEXTS, kind)
        np.testing.assert_allclose(other.encode(TEXTS, kind), expected, atol=1e-6)


def test_another_model_has_other_vectors(cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, folder: Path) -> None:
    cached.encode(TEXTS)
    other = LuotuoEmbeddings(device="cpu", vector_cache=folder)
    assert other.encode(TEXTS).shape == (4, 384)
    np.testing.assert_allclose(cached.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    assert len(EmbeddingCache(folder)) == 8


def test_the_mapper_comes_after_the_cache(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmapped = plain.encode(TEXTS, "query")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0].astype(np.float32)
    mapper = LinearQueryMapper(turn, np.zeros(24, np.float32), model=cached.model, fingerprint=cached.fingerprint)
    cached.mapper = mapper
    passes = count_passes(cached, monkeypatch)
    for _ in range(2):  # computed, then kept
        np.testing.assert_allclose(cached.encode(TEXTS, "query"), mapper(unmapped), atol=1e-5)
        np.testing.assert_allclose(cached.embed_query(TEXTS[0]), mapper(unmapped)[0], atol=1e-5)
        np.testing.assert_allclose(asyncio.run(cached.aembed_query(TEXTS[1])), mapper(unmapped)[1], atol=1e-5)
    cached.mapper = None
    np.testing.assert_allclose(cached.encode(TEXTS, "query"), unmapped, atol=1e-6)
    assert sum(passes) == len(TEXTS)
    assert not np.allclose(mapper(unmapped), unmapped, atol=1e-2)


# -- the ways in ------------------------------------------------------------------------------------------------------


def test_an_endless_iterator_is_read_window_by_window(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_loader, "CACHED_WINDOW", 3)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield f"第{number}号座位"

    out = np.zeros((7, 24), np.float32)
    with pytest.raises(ValueError, match="out has 7 rows, but more texts"):
        cached.encode(endless(), out=out)
    assert taken == 9
    expected = plain.encode([f"第{number}号座位" for number in range(6)])
    np.testing.assert_allclose(out[:6], expected, atol=1e-6)  # the windows that fit, which are kept too
    passes = count_passes(cached, monkeypatch)
    np.testing.assert_allclose(cached.encode(itertools.islice(endless(), 6)), expected, atol=1e-6)
    assert passes == []


def test_out_is_filled_and_checked(cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, tmp_path: Path) -> None:
    expected = plain.encode(TEXTS)
    for _ in range(2):
        out = np.memmap(tmp_path / "out.f32", np.float32, "w+", shape=(4, 24))
        assert cached.encode(iter(TEXTS), out=out) is out
        np.testing.assert_allclose(out, expected, atol=1e-6)
    with pytest.raises(ValueError, match="out has 5 rows, but 4 texts came"):
        cached.encode(iter(TEXTS), out=np.zeros((5, 24), np.float32))
    for wrong in (np.zeros((3, 24), np.float32), np.zeros((4, 24)), np.zeros((4, 9), np.float32)):
        with pytest.raises(ValueError, match="out"):
            cached.encode(TEXTS, out=wrong)


def test_what_a_plain_object_refuses_is_refused(cached: LuotuoEmbeddings) -> None:
    for texts in ("自习室", None, ["好", 3], iter(["好", None])):
        with pytest.raises(TypeError, match="texts"):
            cached.encode(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind='document'"):
        cached.encode(TEXTS, "document")  # type: ignore[arg-type]


def test_concurrent_queries_share_passes_and_the_cache(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [f"第{number % 16}个问题：{QUESTION}" for number in range(64)]
    passes = count_passes(cached, monkeypatch)

    async def ask() -> list[list[float]]:
        return await asyncio.gather(*(cached.aembed_query(query) for query in queries))

    np.testing.assert_allclose(asyncio.run(ask()), plain.encode(queries, "query"), atol=1e-5)
    assert sum(passes) == 16
    passes.clear()
    asyncio.run(ask())
    assert passes == []


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_share_what_is_kept(cached: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch, copier: Any) -> None:
    vectors = cached.encode(TEXTS)
    copied = copier(cached)
    assert copied.vector_cache == cached.vector_cache
    passes = count_passes(copied, monkeypatch)
    np.testing.assert_array_equal(copied.encode(TEXTS), vectors)
    assert passes == []
    assert len(pickle.dumps(cached)) < 2048


def test_a_copy_may_have_another_cache_or_none(
    cached: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached.encode(TEXTS)
    for other in (None, tmp_path / "别处"):
        copied = cached.model_copy(update={"vector_cache": other})
        passes = count_passes(copied, monkeypatch)
        copied.encode(TEXTS)
        assert sum(passes) == len(TEXTS)
    assert len(EmbeddingCache(tmp_path / "别处")) == len(TEXTS)


def test_the_cache_is_no_part_of_what_llama_index_hashes(cached: LuotuoEmbeddings, plain: LuotuoEmbeddings) -> None:
    assert cached.to_dict() == plain.to_dict()


def test_nothing_is_written_before_the_first_call_and_nothing_without_a_cache(
    cached: LuotuoEmbeddings, plain: LuotuoEmbeddings, folder: Path
) -> None:
    plain.encode(TEXTS)
    assert not folder.exists()
    cached.encode(TEXTS)
    assert (folder / FILE).is_file()


# -- threads and processes --------------------------------------------------------------------------------------------


def test_threads_share_it(cached: LuotuoEmbeddings, plain: LuotuoEmbeddings) -> None:
    texts = [f"第{number}排书架" for number in range(60)]
    expected = plain.encode(texts)
    results: dict[int, Vectors] = {}
    barrier = threading.Barrier(4)

    def work(index: int) -> None:
        barrier.wait()
        results[index] = np.concatenate([cached.encode(texts[start : start + 10]) for start in range(0, 60, 10)])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(results) == 4
    for vectors in results.values():
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert len(EmbeddingCache(Path(cached.vector_cache or ""))) == 60


def test_processes_make_and_fill_it_at_once(folder: Path) -> None:
    program = """
        import sys, numpy as np
        from luotuo_integrations.embedding_cache import EmbeddingCache
        first = int(sys.argv[2])
        cache = EmbeddingCache(sys.argv[1])
        for start in range(first, first + 2000, 100):
            texts = [str(number) for number in range(start, start + 100)]
            vectors = cache.vectors("甲", texts, 3, lambda texts: np.array([[int(text)] * 3 for text in texts], "f4"))
            assert (vectors[:, 0] == range(start, start + 100)).all()
    """
    # They begin together and overlap by half: each writes what another reads.
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    children = [subprocess.Popen([*command, str(1000 * index)], cwd=ROOT) for index in range(3)]
    assert [child.wait(SECONDS) for child in children] == [0, 0, 0]
    cache = EmbeddingCache(folder)
    assert len(cache) == 4000
    assert cache.vectors("甲", ["3999"], 3, refuse).tolist() == [[3999, 3999, 3999]]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_kill_loses_nothing_that_was_finished(
    tiny_folder: Path, folder: Path, plain: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
        import os, signal, sys
        import luotuo_integrations.encoder_loader as encoder_loader
        from luotuo_integrations.embeddings import LuotuoEmbeddings
        encoder_loader.CACHED_WINDOW = 10
        embeddings = LuotuoEmbeddings(sys.argv[1], device="cpu", vector_cache=sys.argv[2])
        forward = embeddings.encoder.model.forward
        passes = 0
        def dying(*arguments):
            global passes
            passes += 1
            if passes == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(*arguments)
        embeddings.encoder.model.forward = dying
        embeddings.encode(f"第{number}本" for number in range(1000))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tiny_folder), str(folder)]
    done = subprocess.run(command, cwd=ROOT, timeout=SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL
    embeddings = LuotuoEmbeddings(tiny_folder, device="cpu", vector_cache=folder)
    passes = count_passes(embeddings, monkeypatch)
    texts = [f"第{number}本" for number in range(40)]
    np.testing.assert_allclose(embeddings.encode(texts), plain.encode(texts), atol=1e-5)
    assert sum(passes) == 10


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_kill_in_the_middle_of_writing_leaves_a_sound_file(folder: Path) -> None:
    program = """
        import itertools, sys, numpy as np
        from luotuo_integrations.embedding_cache import EmbeddingCache
        cache = EmbeddingCache(sys.argv[1])
        for window in itertools.count():
            texts = [f"{window}-{number}" for number in range(2000)]
            cache.vectors("甲", texts, 384, lambda texts: np.full((2000, 384), window, "f4"))
            print(window, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    finished = -1
    for rounds in range(1, 4):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                finished = max(finished, int(line))
                if int(line) >= 2 * rounds:  # the next one is being written
                    break
            child.send_signal(signal.SIGKILL)
        cache = EmbeddingCache(folder)
        for window in range(finished + 1):
            texts = [f"{window}-{number}" for number in range(2000)]
            assert (cache.vectors("甲", texts, 384, refuse) == window).all()
        assert len(cache) % 2000 == 0
        cache.close()
    with sqlite3.connect(folder / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_the_file_again(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    cache.vectors("甲", ["一"], 3, numbers)

    def work() -> None:
        assert cache._connection is None  # the parent's was closed before the fork
        cache.vectors("甲", ["一"], 3, refuse)
        cache.vectors("甲", ["二"], 3, numbers)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(SECONDS)
    assert child.exitcode == 0
    np.testing.assert_array_equal(cache.vectors("甲", ["二", "一"], 3, refuse), numbers(["二", "一"]))


def test_a_thread_that_computes_keeps_nobody_waiting(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    cache.vectors("甲", ["一"], 3, numbers)
    entered, release = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> Vectors:
        entered.set()
        assert release.wait(SECONDS)
        return numbers(texts)

    thread = threading.Thread(target=cache.vectors, args=("甲", ["二"], 3, slow))
    thread.start()
    assert entered.wait(SECONDS)
    assert cache.vectors("甲", ["二", "一"], 3, numbers).shape == (2, 3)  # computes the same text itself
    release.set()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert len(cache) == 2


# -- the class itself -------------------------------------------------------------------------------------------------


def test_texts_of_any_length_are_told_apart(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    texts = ["", "\0", " ", "长" * 100_000, "长" * 99_999, "\ud800", "\ufffd", *map(str, range(1200))]
    vectors = cache.vectors("甲", texts, 3, numbers)
    assert len(cache) == len(texts)
    np.testing.assert_array_equal(cache.vectors("甲", texts, 3, refuse), vectors)
    assert cache.vectors("甲", [], 3, refuse).shape == (0, 3)


@pytest.mark.parametrize(("space", "text"), [("甲乙", "丙"), ("甲", "乙丙"), ("甲\0", "乙"), ("甲", "\0乙")])
def test_a_space_and_a_text_have_a_border(folder: Path, space: str, text: str) -> None:
    cache = EmbeddingCache(folder)
    for other_space, other in [("甲乙", "丙"), ("甲", "乙丙"), ("甲\0", "乙"), ("甲", "\0乙")]:
        if (other_space, other) != (space, text):
            cache.vectors(other_space, [other], 3, numbers)
    computed: list[list[str]] = []
    cache.vectors(space, [text], 3, lambda texts: computed.append(texts) or numbers(texts))  # type: ignore[func-returns-value]
    assert computed == [[text]]


def test_what_is_given_belongs_to_the_caller(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    for _ in range(2):
        vectors = cache.vectors("甲", ["一", "一"], 3, numbers)
        np.testing.assert_array_equal(vectors, numbers(["一", "一"]))
        vectors[:] = 0


def test_a_failure_while_computing_keeps_nothing(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    with pytest.raises(AssertionError, match="should have been kept"):
        cache.vectors("甲", ["一"], 3, refuse)
    with pytest.raises(ValueError, match=r"\(1, 3\) for 2 texts"):
        cache.vectors("甲", ["一", "二"], 3, lambda texts: numbers(texts[:1]))
    assert len(cache) == 0


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [("", ValueError, "empty"), ("  ", ValueError, "empty"), (True, TypeError, "True"), (3, TypeError, "path")],
)
def test_what_is_no_folder_is_refused_at_once(
    wrong: Any, error: type[Exception], match: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        LuotuoEmbeddings(tiny_folder, vector_cache=wrong)
    file = tmp_path / "文件"
    file.write_text("不是文件夹")
    with pytest.raises(NotADirectoryError, match=r"文件 is a file.*needs a folder"):
        LuotuoEmbeddings(tiny_folder, vector_cache=file)


@pytest.mark.parametrize("damage", ["other", "cut", "overwritten", "short vector"])
def test_a_damaged_file_says_what_to_delete(folder: Path, damage: str) -> None:
    texts = [str(number) for number in range(2000)]
    cache = EmbeddingCache(folder)
    cache.vectors("甲", texts, 3, numbers)
    cache.close()
    path = folder / FILE
    data = path.read_bytes()
    if damage == "other":
        path.write_text("这不是数据库" * 1000)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE vectors SET vector = x'00'")
    for _ in range(2):
        with pytest.raises(EmbeddingCacheError, match=r"vectors.sqlite3 is damaged \(.*\): delete the folder"):
            cache.vectors("甲", texts, 3, numbers)


def test_a_damaged_file_reaches_asynchronous_callers(cached: LuotuoEmbeddings, folder: Path) -> None:
    folder.mkdir()
    (folder / FILE).write_text("这不是数据库" * 1000)

    async def ask() -> list[Any]:
        calls = (cached.aembed_query(f"{number}") for number in range(8))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(answer) for answer in asyncio.run(ask())} == {EmbeddingCacheError}


def test_another_format_is_refused(folder: Path) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(EmbeddingCacheError, match="has format 9, not 1: give another vector_cache"):
        EmbeddingCache(folder).vectors("甲", ["一"], 3, numbers)


def test_a_full_disk_is_told_and_what_was_kept_stays(folder: Path) -> None:
    cache = EmbeddingCache(folder)
    cache.vectors("甲", ["一"], 3, numbers)
    with cache._open() as connection:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite's own full disk
    texts = [str(number) for number in range(5000)]
    with pytest.raises(EmbeddingCacheError, match=r"cannot be read or written: .*full.*See to its disk"):
        cache.vectors("甲", texts, 3, numbers)
    cache.close()
    assert len(cache) == 1
    assert cache.vectors("甲", texts, 3, numbers).shape == (5000, 3)
    np.testing.assert_array_equal(cache.vectors("甲", ["一"], 3, refuse), numbers(["一"]))


def test_a_text_that_cannot_be_embedded_leaves_the_windows_before(
    cached: LuotuoEmbeddings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_loader, "CACHED_WINDOW", 2)
    with pytest.raises(TypeError, match=r"texts\[3\]"):
        cached.encode(iter([*TEXTS[:3], None]))  # type: ignore[list-item]
    assert len(EmbeddingCache(folder)) == 2


def test_the_encoder_alone_does_not_use_it(cached: LuotuoEmbeddings, folder: Path) -> None:
    assert isinstance(cached.encoder, Encoder)
    cached.encoder.encode(TEXTS)
    assert not folder.exists()
