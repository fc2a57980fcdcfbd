"""ReadWriteLock: readers together, a writer alone, and none of them starved."""

import threading
from collections.abc import Callable

import pytest

from luotuo_integrations.store.locks import ReadWriteLock


def started(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_readers_hold_it_together() -> None:
    lock, barrier = ReadWriteLock(), threading.Barrier(3, timeout=20)

    def read() -> None:
        with lock.read():
            barrier.wait()  # breaks unless all three are inside

    threads = [started(read) for _ in range(3)]
    for thread in threads:
        thread.join(20)
    assert not barrier.broken


def test_a_writer_is_alone() -> None:
    lock, inside, worst = ReadWriteLock(), [0], [0]

    def write() -> None:
        for _ in range(200):
            with lock.write():
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                inside[0] -= 1

    def read() -> None:
        for _ in range(200):
            with lock.read():
                assert inside[0] == 0

    threads = [started(target) for target in (write, read, write, read)]
    for thread in threads:
        thread.join(20)
    assert worst[0] == 1
    assert not any(thread.is_alive() for thread in threads)


def test_a_waiting_writer_goes_before_new_readers() -> None:
    lock, order = ReadWriteLock(), []

    def write() -> None:
        with lock.write():
            order.append("write")

    def read() -> None:
        with lock.read():
            order.append("read")

    with lock.read():
        writer = started(write)
        while not lock._writers_waiting:
            pass
        reader = started(read)
        reader.join(0.2)
        assert order == []
    writer.join(20)
    reader.join(20)
    assert order == ["write", "read"]


def test_an_error_inside_gives_it_back() -> None:
    lock = ReadWriteLock()
    for hold in (lock.read, lock.write):
        with pytest.raises(ZeroDivisionError), hold():
            raise ZeroDivisionError
    with lock.write():
        pass
