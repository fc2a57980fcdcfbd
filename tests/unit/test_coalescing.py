import gc
import os
import queue
import signal
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest

import luotuo_integrations.coalescing as coalescing
from luotuo_integrations.coalescing import Coalescer
from luotuo_integrations.errors import ModelNotFoundError

SECONDS = 30  # a limit that is never reached, so that a fault fails the test and does not hang it


class Doubler:
    """Answers 2 * item; waits at a gate while it is closed; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, key: str, items: list[int]) -> list[int]:
        self.calls.append((key, items))
        self.entered.set()
        assert self.gate.wait(SECONDS)
        if -1 in items:
            raise ValueError("minus one")
        if -2 in items:
            raise ModelNotFoundError("no model")
        return [2 * item for item in items]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def coalescer(doubler: Doubler) -> Coalescer[str, int, int]:
    return Coalescer(doubler)


def hold(doubler: Doubler, coalescer: Coalescer[str, int, int]) -> "Future[list[int]]":
    """Send one request and keep the worker busy with it, so that the next ones wait together."""
    doubler.gate.clear()
    first = coalescer.submit("held", [0])
    assert doubler.entered.wait(SECONDS)
    return first


def test_each_request_gets_its_own_results(coalescer: Coalescer[str, int, int]) -> None:
    assert coalescer.submit("a", [1, 2, 3]).result(SECONDS) == [2, 4, 6]
    assert coalescer.submit("a", []).result(SECONDS) == []
    assert coalescer.submit("a", (5,)).result(SECONDS) == [10]


def test_requests_that_wait_are_answered_together_by_key(doubler: Doubler, coalescer: Coalescer[str, int, int]) -> None:
    first = hold(doubler, coalescer)
    waiting = [coalescer.submit("a" if number % 2 else "b", [number, number + 100]) for number in range(10)]
    doubler.gate.set()
    assert first.result(SECONDS) == [0]
    for number, future in enumerate(waiting):
        assert future.result(SECONDS) == [2 * number, 2 * number + 200]
    assert [key for key, _ in doubler.calls] == ["held", "b", "a"]
    assert doubler.calls[1][1] == [item for number in range(0, 10, 2) for item in (number, number + 100)]


@pytest.mark.parametrize("position", [0, 5, 63])
def test_a_bad_request_fails_alone(doubler: Doubler, coalescer: Coalescer[str, int, int], position: int) -> None:
    hold(doubler, coalescer)
    waiting = [coalescer.submit("a", [-1 if number == position else number]) for number in range(64)]
    doubler.gate.set()
    for number, future in enumerate(waiting):
        if number == position:
            with pytest.raises(ValueError, match="minus one"):
                future.result(SECONDS)
        else:
            assert future.result(SECONDS) == [2 * number]
    assert len(doubler.calls) <= 1 + 1 + 2 * 6  # found by halves, not one by one


def test_an_error_that_is_nobodys_input_reaches_all_at_once(
    doubler: Doubler, coalescer: Coalescer[str, int, int]
) -> None:
    hold(doubler, coalescer)
    waiting = [coalescer.submit("a", [number or -2]) for number in range(8)]
    doubler.gate.set()
    for future in waiting:
        with pytest.raises(ModelNotFoundError):
            future.result(SECONDS)
    assert len(doubler.calls) == 2


def test_a_cancelled_request_is_not_computed(doubler: Doubler, coalescer: Coalescer[str, int, int]) -> None:
    hold(doubler, coalescer)
    waiting = [coalescer.submit("a", [number]) for number in range(4)]
    assert waiting[1].cancel()
    doubler.gate.set()
    assert waiting[3].result(SECONDS) == [6]
    assert doubler.calls[1:] == [("a", [0, 2, 3])]
    with pytest.raises(CancelledError):
        waiting[1].result(SECONDS)


def test_the_worker_ends_when_idle_and_comes_back(
    doubler: Doubler, coalescer: Coalescer[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_IDLE_SECONDS", 0.01)
    assert coalescer.submit("a", [1]).result(SECONDS) == [2]
    worker = coalescer._line.worker
    if worker is not None:
        worker.join(SECONDS)
    assert coalescer._line.worker is None
    assert coalescer.submit("a", [2]).result(SECONDS) == [4]


def test_no_request_is_lost_while_workers_come_and_go(
    coalescer: Coalescer[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_IDLE_SECONDS", 0.0005)
    wrong: list[object] = []

    def ask(start: int) -> None:
        for number in range(start, start + 100):
            answer = coalescer.submit("a", [number]).result(SECONDS)
            if answer != [2 * number]:
                wrong.append((number, answer))
            time.sleep(0.0005 * (number % 3))

    threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_a_request_at_the_last_moment_is_still_taken() -> None:
    class LateQueue(queue.SimpleQueue):  # type: ignore[type-arg]
        """Reports once that nothing came, as if the request had come right after that."""

        late = True

        def get(self, block: bool = True, timeout: float | None = None) -> object:
            if self.late:
                self.late = False
                raise queue.Empty
            return super().get(block, timeout)

    line: coalescing._Line[str, int, int] = coalescing._Line()
    line.requests, line.worker = LateQueue(), threading.current_thread()
    line.requests.put(("a", [1], Future()))
    assert [(key, items) for key, items, _ in line.take()] == [("a", [1])]
    assert line.worker is threading.current_thread()


def test_a_worker_that_died_is_replaced(coalescer: Coalescer[str, int, int]) -> None:
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    coalescer._line.worker = dead
    assert coalescer.submit("a", [1]).result(SECONDS) == [2]


def test_an_idle_worker_keeps_nothing_in_memory(doubler: Doubler) -> None:
    coalescer: Coalescer[str, int, int] = Coalescer(doubler)
    assert coalescer.submit("a", [1]).result(SECONDS) == [2]
    worker, gone = coalescer._line.worker, weakref.ref(coalescer)
    del coalescer
    for _ in range(1000):  # the worker lets go right after it has answered
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.001)
    assert gone() is None
    assert worker is None or worker.daemon


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_worker_of_its_own(doubler: Doubler, coalescer: Coalescer[str, int, int]) -> None:
    first = hold(doubler, coalescer)  # the parent's worker is busy, and its lock may be held, at the time of the fork
    with coalescer._line.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)  # a deadlock must end, and fail the test
            doubler.gate.set()
            code = 1
            try:
                code = 0 if coalescer.submit("a", [21]).result(SECONDS) == [42] else 2
            except FutureTimeoutError:
                code = 3
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    doubler.gate.set()
    assert first.result(SECONDS) == [0]
    assert coalescer.submit("a", [4]).result(SECONDS) == [8]
