"""Concurrent callers share one forward pass."""

import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from luotuo_integrations.errors import LuotuoError

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")

_IDLE_SECONDS = 5.0


class Coalescer(Generic[Key, Item, Result]):
    """One worker thread that answers all requests waiting at a time in one call.

    A lone request waits for nobody: the worker takes whatever is in the queue, and what arrives while it works makes
    the next batch. The thread starts with the first request and ends after some idle seconds, so that nothing has to
    be closed. A forked child starts a thread of its own.

    Args:
        function: Called in the worker with a key and the items of all requests of that key, in order of arrival;
            returns one result an item. If it fails, the requests are tried again in halves, so that an error reaches
            only the caller whose items caused it; a ``LuotuoError``, a missing model for instance, reaches all.
    """

    def __init__(self, function: Callable[[Key, list[Item]], Sequence[Result]]) -> None:
        self._function = function
        self._line: _Line[Key, Item, Result] = _Line()

    def submit(self, key: Key, items: Sequence[Item]) -> "Future[list[Result]]":
        """Ask for results.

        Args:
            key: Requests of the same key are answered together.
            items: What to answer.

        Returns:
            A future of one result an item. A cancelled request costs nothing if it has not begun.
        """
        line = self._line
        if line.process != os.getpid():  # in a forked child its thread is gone, and nobody will release its lock
            line = self._line = _Line()
        future: Future[list[Result]] = Future()
        with line.lock:
            line.requests.put((key, list(items), future))
            if line.worker is None or not line.worker.is_alive():
                line.worker = threading.Thread(
                    target=_work, args=(weakref.ref(self), line), name="luotuo-coalesce", daemon=True
                )
                line.worker.start()
        return future

    def answer(self, requests: "list[tuple[Key, list[Item], Future[list[Result]]]]") -> None:
        """Answer requests, those of one key together; called by the worker."""
        for key in dict.fromkeys(key for key, _, _ in requests):
            waiting = [(items, future) for other, items, future in requests if other == key]
            self._answer(key, [(items, future) for items, future in waiting if future.set_running_or_notify_cancel()])

    def _answer(self, key: Key, requests: "list[tuple[list[Item], Future[list[Result]]]]") -> None:
        if not requests:
            return
        failure: BaseException | None = None
        try:
            results = list(self._function(key, [item for items, _ in requests for item in items]))
        except BaseException as error:  # noqa: BLE001 - the callers must hear of it, whatever it is
            failure = error
        if failure is not None and (len(requests) == 1 or isinstance(failure, LuotuoError)):
            for _, future in requests:
                future.set_exception(failure)
            return
        if failure is not None:
            middle = len(requests) // 2
            self._answer(key, requests[:middle])
            self._answer(key, requests[middle:])
            return
        start = 0
        for items, future in requests:
            future.set_result(results[start : start + len(items)])
            start += len(items)


class _Line(Generic[Key, Item, Result]):
    """The requests that wait in one process, and the thread that takes them."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.requests: queue.SimpleQueue[tuple[Key, list[Item], Future[list[Result]]]] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.worker: threading.Thread | None = None

    def take(self) -> list[tuple[Key, list[Item], "Future[list[Result]]"]]:
        """Wait a while for requests and take all there are; an empty list means that the worker must end."""
        try:
            requests = [self.requests.get(timeout=_IDLE_SECONDS)]
        except queue.Empty:
            with self.lock:  # whoever puts a request after this finds no worker, and starts one
                if self.requests.empty():
                    self.worker = None
                    return []
                requests = [self.requests.get()]
        while not self.requests.empty():
            requests.append(self.requests.get())
        return requests


def _work(owner: "weakref.ref[Coalescer[Key, Item, Result]]", line: "_Line[Key, Item, Result]") -> None:
    # The owner, and through it the model, is held only while it answers: an idle worker keeps no model in memory.
    while requests := line.take():
        coalescer = owner()
        if coalescer is None:
            for _, _, future in requests:
                future.cancel()
            return
        coalescer.answer(requests)
        del coalescer, requests
