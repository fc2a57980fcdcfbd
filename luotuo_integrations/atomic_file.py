"""Files that are whole or not there: written under another name first, renamed at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Write a file so that nobody ever sees half of it.

    Args:
        path: The file; its folder must exist. What is there stays until the new file is complete.

    Yields:
        Another name in the same folder to write to. That file takes the place of ``path`` at the end of the with-block,
        and is removed if the block is left by an error.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see :func:`replaced_file`."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
