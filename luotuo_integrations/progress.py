"""A progress bar that is there only when asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Tells a progress bar what was done."""

    def __call__(self, count: float, note: str = "", /) -> None:
        """Add ``count`` finished items; ``note`` is shown beside the bar."""


@lru_cache(maxsize=1)
def standard_error() -> "Console":
    """The one console for progress bars and for what is printed while they are shown, so that lines do not mix."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress_bar(description: str, total: int | None, *, enabled: bool) -> Iterator[Advance]:
    """Show a progress bar on standard error for the time of a with-block.

    Args:
        description: What is counted.
        total: How many there are; None where nobody knows.
        enabled: Whether to show anything.

    Yields:
        A function to call with the number of items just finished; parts of an item count too. A note is shown beside
        the bar until the next one.
    """
    if not enabled:
        yield _ignore
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
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=standard_error()) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(count: float, note: str = "", /) -> None:
            progress.advance(task, count)
            if note:
                progress.update(task, note=note)

        yield advance


def _ignore(count: float, note: str = "", /) -> None:
    """Show nothing."""
