"""Batches by token budget, and windows over an iterator of any length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group texts so that a padded batch stays within a budget: count * longest <= budget.

    Sorted by length, longest first: the batch that needs the most memory comes first, so that a shortage shows at
    once, and neighbours pad little.

    Args:
        lengths: Token count of each text.
        budget: Padded tokens in a batch. A single text longer than the budget is a batch of its own.

    Yields:
        Positions in ``lengths``. Every position comes exactly once.
    """
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = longest or max(lengths[position], 1)
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch, longest = [], max(lengths[position], 1)
        batch.append(position)
    if batch:
        yield batch


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut an iterable into lists of at most ``size`` items, without reading ahead of the one in hand."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window
