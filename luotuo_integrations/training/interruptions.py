"""Ctrl-C and SIGTERM as something to ask about between two steps."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C, or SIGTERM, into an event; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
        event.set()
        logger.warning("Stopping after this step; press Ctrl-C again to stop at once, without a checkpoint")
        signal.signal(signal.SIGINT, before.get(signal.SIGINT, signal.default_int_handler))

    before.update({number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
