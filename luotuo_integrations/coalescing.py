"""Concurrent callers share one forward pass."""

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")

_IDLE_SECONDS = 5.0


class Coalescer(Generic[Key, Item, Result]):
    """One worker thread that answers all requests waiting at a time in one call.

    A lone request waits for nobody: the worker takes whatever is in the queue, and what arrives while it works makes
    the next batch. The thread starts with the first request and ends after some idle seconds, so that nothing has to
    be closed.

    Args:
        function: Called in the worker with a key and the items of all requests of that key, in order of arrival;
            returns one result an item.
    """

    def __init__(self, function: Callable[[Key, list[Item]], Sequence[Result]]) -> None:
        self._function = function
        self._requests: queue.SimpleQueue[tuple[Key, list[Item], Future[list[Result]]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def submit(self, key: Key, items: Sequence[Item]) -> "Future[list[Result]]":
        """Ask for results.

        Args:
            key: Requests of the same key are answered together.
            items: What to answer.

        Returns:
            A future of one result an item. A cancelled request costs nothing if it has not begun.
        """
        future: Future[list[Result]] = Future()
        with self._lock:
            self._requests.put((key, list(items), future))
            # A forked child inherits the attribute, but not the thread: there it is not alive.
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(
                    target=_work, args=(weakref.ref(self),), name="luotuo-coalesce", daemon=True
                )
                self._worker.start()
        return future

    def answer_waiting(self) -> bool:
        """Answer what is in the queue, waiting a while for something to come; False when the worker may end."""
        try:
            requests = [self._requests.get(timeout=_IDLE_SECONDS)]
        except queue.Empty:
            with self._lock:  # a request put before the lock was taken keeps the worker alive
                if self._requests.empty():
                    self._worker = None
                    return False
                return True
        while not self._requests.empty():
            requests.append(self._requests.get())
        for key in dict.fromkeys(key for key, _, _ in requests):
            self._answer(key, [(items, future) for other, items, future in requests if other == key])
        return True

    def _answer(self, key: Key, requests: list[tuple[list[Item], "Future[list[Result]]"]]) -> None:
        requests = [(items, future) for items, future in requests if future.set_running_or_notify_cancel()]
        if not requests:
            return
        try:
            results = list(self._function(key, [item for items, _ in requests for item in items]))
        except BaseException as error:  # noqa: BLE001 - the callers must hear of it, whatever it is
            if len(requests) == 1:
                requests[0][1].set_exception(error)
                return
            for items, future in requests:  # one caller's bad input must not fail the others
                self._answer_alone(key, items, future)
            return
        start = 0
        for items, future in requests:
            future.set_result(results[start : start + len(items)])
            start += len(items)

    def _answer_alone(self, key: Key, items: list[Item], future: "Future[list[Result]]") -> None:
        try:
            future.set_result(list(self._function(key, items)))
        except BaseException as error:  # noqa: BLE001 - as above
            future.set_exception(error)


def _work(reference: "weakref.ref[Coalescer[Key, Item, Result]]") -> None:
    # The owner is held only while it answers, so that a dropped model's memory is freed within the idle time.
    while True:
        owner = reference()
        if owner is None or not owner.answer_waiting():
            return
        del owner
