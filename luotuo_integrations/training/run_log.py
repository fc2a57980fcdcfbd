"""RunLog: a run's log.jsonl, and TensorBoard where it is installed."""

import contextlib
import importlib.util
import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

logger = logging.getLogger(__name__)


class RunLog:
    """Appends events to ``log.jsonl``, a line each; numbers go to ``tensorboard/`` too.

    A log that cannot be written, the disk being full, is no reason to stop: one warning is given.

    Args:
        folder: Of the run.
        enabled: Whether to write at all; one process of several does.
    """

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8") if enabled else None
        self._board: Any = None
        if enabled and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in (self._file, self._board):
            if one is not None:
                with contextlib.suppress(OSError):  # a full disk again: what could be written is
                    one.close()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Write one event.

        Args:
            event: ``"step"``, ``"evaluation"``, ``"mining"``.
            step: Optimizer steps done.
            **values: Numbers, and one level of named numbers.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}, ensure_ascii=False) + "\n")
            self._file.flush()
            self._draw(event, step, values)
        except OSError as error:
            self._board = None
            if not self._warned:
                logger.warning("The log of the run cannot be written (%s); training goes on", error)
            self._warned = True

    def _draw(self, event: str, step: int, values: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in values.items():
            numbers = value.items() if isinstance(value, dict) else [("", value)]
            for key, number in numbers:
                self._board.add_scalar("/".join(filter(None, (event, name, key))), number, step)
