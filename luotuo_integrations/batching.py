"""Batches by token budget, and windows over an iterator of any length."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

MOST_PADDING = 0.04  # padded tokens for each real one


def token_budget_batches(lengths: Sequence[int], budget: int, least: int | None = None) -> Iterator[list[int]]:
    """Group texts so that a padded batch stays within a budget: count * longest <= budget.

    Sorted by length, longest first: the batch that needs the most memory comes first, so that a shortage shows at
    once, and neighbours pad little.

    Args:
        lengths: Token count of each text.
        budget: Padded tokens in a batch. A single text longer than the budget is a batch of its own.
        least: A batch of so many tokens ends rather than pad more than ``MOST_PADDING`` of them; None pads on.

    Yields:
        Positions in ``lengths``. Every position comes exactly once.
    """
    least = budget if least is None else least
    batch: list[int] = []
    longest = tokens = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = max(lengths[position], 1)
        padded = (len(batch) + 1) * longest
        if batch and (padded > budget or (tokens >= least and padded > (1 + MOST_PADDING) * (tokens + length))):
            yield batch
            batch, tokens = [], 0
        if not batch:
            longest = length
        batch.append(position)
        tokens += length
    if batch:
        yield batch


def windows(
    items: Iterable[Item],
    size: int,
    *,
    weigh: Callable[[Item], int] | None = None,
    max_weight: float = math.inf,
) -> Iterator[list[Item]]:
    """Cut an iterable into lists, without reading ahead of the one in hand.

    Args:
        items: Any iterable, however long.
        size: Most items in a list.
        weigh: Weight of an item, its length for instance.
        max_weight: A list is closed as soon as it weighs so much; its last item may take it beyond.

    Yields:
        Lists of at least one item, in order.
    """
    window: list[Item] = []
    weight = 0
    for item in items:
        window.append(item)
        weight += weigh(item) if weigh is not None else 0
        if len(window) >= size or weight >= max_weight:
            yield window
            window, weight = [], 0
    if window:
        yield window
