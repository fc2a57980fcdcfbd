"""A progress bar that is there only when asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@lru_cache(maxsize=1)
def standard_error() -> "Console":
    """The one console for progress bars and for what is printed while they are shown, so that lines do not mix."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress_bar(description: str, total: int | None, *, enabled: bool) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on standard error for the time of a with-block.

    Args:
        description: What is counted.
        total: How many there are; None where nobody knows.
        enabled: Whether to show anything.

    Yields:
        A function to call with the number of items just finished; parts of an item count too.
    """
    if not enabled:
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counted = "{task.completed:.0f}" + ("" if total is None else "/{task.total:.0f}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(counted),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=standard_error()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
