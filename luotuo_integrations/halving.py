"""Batches on a device that may run out of memory: one forward pass at a time, and in halves where one does not fit."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from luotuo_integrations.batching import default_budget
from luotuo_integrations.devices import is_out_of_memory

logger = logging.getLogger(__name__)

Row = TypeVar("Row")


class HalvingRunner:
    """A base of what runs padded batches: ``Encoder`` and ``CrossEncoder``.

    Attributes:
        device: Where the model is.
        max_tokens_per_batch: Padded tokens in one forward pass; it falls when memory runs out, and stays there.

    Args:
        device: See above.
        max_tokens_per_batch: See above; from 1. None takes the device's default.

    Raises:
        ValueError: If the budget is less than 1.
    """

    def __init__(self, device: torch.device, max_tokens_per_batch: int | None) -> None:
        if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
            msg = f"max_tokens_per_batch={max_tokens_per_batch} must be at least 1, or None for the device's default"
            raise ValueError(msg)
        self.device = device
        self.max_tokens_per_batch = max_tokens_per_batch or default_budget(device.type)
        self._lock = threading.Lock()  # one forward pass at a time: more would only share the device

    def _in_halves(
        self, run: Callable[[Sequence[Row]], Tensor], rows: Sequence[Row], length: Callable[[Row], int], unit: str
    ) -> list[Tensor]:
        """Run one batch; where memory runs out, its halves, and lower the budget of the batches to come.

        Args:
            run: The forward pass of rows, (n, ...).
            rows: At least one, longest first.
            length: Tokens of a row.
            unit: What a row is, for the message: ``"text"``.

        Returns:
            What ``run`` gave, in the order of the rows.

        Raises:
            MemoryError: If a single row does not fit.
        """
        try:
            with self._lock:
                return [run(rows)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            longest = length(rows[0])
            if len(rows) == 1:
                msg = f"Out of memory on {self.device} for one {unit} of {longest} tokens; lower max_length"
                raise MemoryError(msg) from error
            self.max_tokens_per_batch = min(self.max_tokens_per_batch, max(len(rows) * longest // 2, longest))
            logger.warning(
                "Out of memory on %s: max_tokens_per_batch is now %d", self.device, self.max_tokens_per_batch
            )
        # Only here, outside of the handler, the error no longer holds the tensors of the pass that failed.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(rows) // 2
        return [
            *self._in_halves(run, rows[:middle], length, unit),
            *self._in_halves(run, rows[middle:], length, unit),
        ]
