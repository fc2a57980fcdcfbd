"""faiss indexes in files, through Python's own files so that any path works."""

import os
from pathlib import Path
from typing import Any

from luotuo_integrations._optional import require
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.index_kinds import last_line


def write_faiss(index: Any, path: Path) -> None:
    """Write a faiss index to a new file."""
    faiss = require("faiss", extra="faiss")
    with path.open("xb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)
        faiss.write_index(index, writer)
        del writer  # it holds back a last block until then


def can_map(path: Path) -> bool:
    """Tell whether faiss can memory-map a file; it opens the file itself, on Windows only by a plain ASCII path."""
    faiss = require("faiss", extra="faiss")
    return hasattr(faiss, "IO_FLAG_MMAP_IFC") and (os.name == "posix" or str(path).isascii())


def read_faiss(path: Path, *, memory_map: bool = False) -> Any:
    """Read a faiss index.

    Args:
        path: The file.
        memory_map: Let the operating system page it in; faiss then ends the whole process if the index is changed.

    Raises:
        StoreCorruptError: If the file is damaged.
    """
    faiss = require("faiss", extra="faiss")
    try:
        if memory_map:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        with path.open("rb") as file:
            return faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except RuntimeError as error:  # faiss raises nothing else
        msg = f"{path} is damaged: {last_line(error)}. Restore the folder, or build the store again"
        raise StoreCorruptError(msg) from error
