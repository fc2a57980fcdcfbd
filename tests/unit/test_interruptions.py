"""Ctrl-C at any step of a change: the store is as it was before or as it should be after, and goes on working."""

import linecache
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from small_store import is_in_step, some_vectors

from luotuo_integrations.store import core as core_module
from luotuo_integrations.store import index, index_kinds, rescoring, table, whole_vectors
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.interrupts import finish
from luotuo_integrations.store.whole_vectors import GrowingArray, WholeVectors

pytest.importorskip("faiss")

KINDS = ["Flat", "HNSW16", "IVF2,Flat", "Int8", "Binary"]
EXACT = ("Flat", "HNSW16", "Int8", "Binary")  # few documents: every one is compared
FILES = {module.__file__ for module in (core_module, index, index_kinds, rescoring, table, whole_vectors)}
Oracle = dict[str, tuple[str, Any]]


def store_of(count: int, factory: str) -> tuple[FaissCore, Oracle]:
    core, vectors = FaissCore(index_factory=factory), some_vectors(count)
    ids = [f"旧{row}" for row in range(count)]
    texts = [f"年假{id_}" for id_ in ids]
    core.add(vectors, texts, None, ids)
    core.use_keywords()
    return core, {id_: (f"年假{id_}", vector) for id_, vector in zip(ids, vectors, strict=True)}


def assert_equals(core: FaissCore, oracle: Oracle, *, exact: bool = True) -> None:
    """Documents, vectors, searches by vectors and by keywords are those of a look at every document."""
    documents, vectors = core.export()
    assert {document.id: document.content for document in documents} == {id_: text for id_, (text, _) in oracle.items()}
    assert is_in_step(core)
    if not oracle:
        return
    assert len(core.keyword_search("年假", 1_000)) == len(oracle)
    units = {id_: vector / np.linalg.norm(vector) for id_, (_, vector) in oracle.items()}
    if exact:
        assert np.allclose(vectors, np.stack([units[document.id] for document in documents]), atol=1e-5)
        query = some_vectors(1, seed=77)[0]
        expected = sorted((float(unit @ query) for unit in units.values()), reverse=True)[:5]
        found = core.search(query[None] / np.linalg.norm(query), 5)[0]
        assert [hit.score * np.linalg.norm(query) for hit in found] == pytest.approx(expected, abs=1e-4)


def raising_at(number: int, reached: list[int]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises KeyboardInterrupt before the numbered line that runs in the store's files.

    Not where a with statement is left: Python looks for signals there only once it is leaving.
    """

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not line.startswith(("with ", "yield")):
            reached[0] += 1
            if reached[0] == number:
                raise KeyboardInterrupt
        return trace

    return trace


def changes(count: int) -> dict[str, tuple[Callable[[FaissCore], Any], Callable[[Oracle], Oracle]]]:
    """Name of each change -> what makes it, and what makes it of a dict; for a store of ``count`` documents."""
    few, many = [f"旧{row}" for row in range(2)], [f"旧{row}" for row in range(count - 3)]
    added = [f"新{row}" for row in range(5)] + few
    grown = [f"新{row}" for row in range(4 * count)]
    vectors = some_vectors(4 * count, seed=9)

    def adding(ids: list[str]) -> Any:
        def make(core: FaissCore) -> Any:
            return core.add(vectors[: len(ids)], [f"年假新{id_}" for id_ in ids], None, ids)

        def expect(oracle: Oracle) -> Oracle:
            return {**oracle, **{id_: (f"年假新{id_}", vectors[row]) for row, id_ in enumerate(ids)}}

        return make, expect

    def deleting(ids: list[str]) -> Any:
        return lambda core: core.delete(ids), lambda oracle: {i: v for i, v in oracle.items() if i not in ids}

    return {
        "first": adding(added),  # to an empty store
        "add": adding(added),
        "grow": adding(grown),  # codes are fitted anew
        "mark": deleting(few),
        "take out": deleting(many),
        "rebuild": (lambda core: core.rebuild(), dict),
        "clear": (lambda core: core.clear(), lambda _: {}),
    }


@pytest.mark.parametrize("change", list(changes(20)))
@pytest.mark.parametrize("factory", KINDS)
def test_an_interruption_at_any_line(factory: str, change: str, tmp_path: Path) -> None:
    make, expect = changes(20)[change]
    for number in range(1, 1_000):
        core, before = store_of(0 if change == "first" else 20, factory)
        after, reached = expect(before), [0]
        traced = sys.gettrace()
        sys.settrace(raising_at(number, reached))
        try:
            make(core)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(traced)
        ids = {document.id: document.content for document in core.find()}
        oracle = before if interrupted and ids == {id_: text for id_, (text, _) in before.items()} else after
        exact = factory in EXACT
        assert_equals(core, oracle, exact=exact)
        if number % 7 == 0:  # files are slow
            core.save(tmp_path / str(number))
            core = FaissCore.load(tmp_path / str(number), verify=True)
            assert_equals(core, oracle, exact=exact)
        if factory in EXACT or oracle:  # others would have to be trained anew
            more = some_vectors(30, seed=3)
            core.add(more, ["年假"] * 30, None, [f"又{row}" for row in range(30)])
            oracle = {**oracle, **{f"又{row}": ("年假", vector) for row, vector in enumerate(more)}}
            assert_equals(core, oracle, exact=exact)
        if not interrupted:
            assert number > 3
            return
    pytest.fail("more lines than expected")


STEPS = [(WholeVectors, "append"), (GrowingArray, "append"), (WholeVectors, "only"), (WholeVectors, "reserve")]


@pytest.mark.parametrize("step", ["codes", "remove_ids", *STEPS])
@pytest.mark.parametrize("factory", ["Int8", "Binary"])
def test_a_real_signal_right_after_each_long_step(
    factory: str, step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    core, oracle = store_of(40, factory)
    codes: Any = core._index._held.codes  # type: ignore[union-attr]
    name = {"codes": "add", "remove_ids": "remove_ids"}.get(step) or step[1]
    owner = type(codes) if isinstance(step, str) else step[0]
    made = getattr(owner, name)
    calls: list[int] = []

    def followed_by_a_signal(*arguments: Any) -> Any:
        answer = made(*arguments)
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return answer

    monkeypatch.setattr(owner, name, followed_by_a_signal)
    removing = name in ("remove_ids", "only")
    with pytest.raises(KeyboardInterrupt):
        core.delete(list(oracle)[:20]) if removing else core.add(some_vectors(9, seed=4), ["新"] * 9)
    monkeypatch.undo()
    assert calls
    if removing:
        oracle = dict(list(oracle.items())[20:])  # their documents are gone
    assert_equals(core, oracle)
    core.save(tmp_path)
    for each in (core, FaissCore.load(tmp_path, verify=True)):
        more = some_vectors(200, seed=5)
        each.add(more, ["年假"] * 200, None, [f"又{row}" for row in range(200)])
        assert_equals(each, {**oracle, **{f"又{row}": ("年假", vector) for row, vector in enumerate(more)}})


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends the process on Windows")
@pytest.mark.parametrize("factory", ["HNSW16", "PCA16,HNSW16", "HNSW16_SQ8"])
def test_a_signal_while_faiss_links_a_graph(factory: str, tmp_path: Path) -> None:
    core, rng = FaissCore(index_factory=factory), np.random.default_rng(0)
    first, second = (rng.standard_normal((count, 32), dtype=np.float32) for count in (400, 60_000))
    core.add(first, ["一"] * 400, None, [str(row) for row in range(400)])

    def add_until_interrupted() -> None:
        core.add(second, ["二"] * 60_000)
        time.sleep(60)  # a machine that was done already

    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        add_until_interrupted()
    core.delete([document.id for document in core.find() if document.content == "二"])
    assert len(core) == 400
    core.save(tmp_path)

    def found(store: FaissCore) -> float:
        best = [hits[0].id for hits in store.search(first, 1)]
        return float(np.mean([id_ == str(row) for row, id_ in enumerate(best)]))

    for each in (core, FaissCore.load(tmp_path)):
        assert found(each) > 0.97  # PCA and SQ8 are approximate
        assert {hit.content for hit in each.search(second[:1], 400)[0]} == {"一"}
        each.add(second[:50], ["三"] * 50, None, [f"三{row}" for row in range(50)])
        assert [hits[0].content for hits in each.search(second[:50], 1)].count("三") > 40
        each.rebuild()
        assert len(each) == 450
        assert found(each) > 0.97


@pytest.mark.parametrize("factory", ["Flat", "Int8", "HNSW16"])
def test_ctrl_c_pressed_again_while_the_first_is_repaired(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core, oracle = store_of(20, factory)
    kind: Any = type(core._index)
    add, discard = kind.add, kind.discard
    pressed: list[int] = []

    def interrupted(self: Any, vectors: Any, rows: Any) -> None:
        add(self, vectors, rows)
        raise KeyboardInterrupt

    def again(self: Any, rows: Any) -> None:
        pressed.append(1)
        if len(pressed) < 3:
            raise KeyboardInterrupt
        discard(self, rows)

    monkeypatch.setattr(kind, "add", interrupted)
    monkeypatch.setattr(kind, "discard", again)
    with pytest.raises(KeyboardInterrupt):
        core.add(some_vectors(9, seed=4), ["新"] * 9)
    monkeypatch.undo()
    assert_equals(core, oracle)


def test_a_repair_that_fails_otherwise_says_so() -> None:
    problems: list[type[BaseException]] = [MemoryError, KeyboardInterrupt, KeyboardInterrupt]

    def repair() -> None:
        if problems:
            raise problems.pop()

    with pytest.raises(MemoryError):
        finish(repair)
    finish(repair)
