"""Vectors by place, left in the file they were saved in; those added since lie in memory behind them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.comparing import CHUNK
from luotuo_integrations.store.table import Rows
from luotuo_integrations.store.vector_math import Matrix

_ON_DISK = np.dtype("<f4")


class GrowingArray:
    """An array that grows at its end; room is kept free there, so that not every addition moves what is before it.

    Args:
        values: What it holds at first, (N, ...); it is not changed.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._room, self._count = values, len(values)

    @property
    def values(self) -> npt.NDArray[Any]:
        """What was added, (N, ...)."""
        return self._room[: self._count]

    def reserve(self, more: int) -> None:
        """Make room, so that adding ``more`` values cannot fail for lack of memory."""
        needed = self._count + more
        if needed > len(self._room):
            size = max(needed, self._count + self._count // 2)
            room = np.empty((size, *self._room.shape[1:]), dtype=self._room.dtype)
            room[: self._count] = self.values
            self._room = room

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values (M, ...) behind those that are there."""
        self.reserve(len(values))
        self._room[self._count : self._count + len(values)] = values
        self._count += len(values)

    def cut(self, count: int) -> None:
        """Forget what was added behind the first ``count`` values; nothing if there are no more."""
        self._count = min(self._count, count)


class WholeVectors:
    """float32 vectors, numbered by place from 0.

    Args:
        dimension: Length D of a vector.
        saved: float32 (M, D), never changed: the first vectors, for instance a memory-mapped file.
        kept: int64 (N,): which rows of ``saved`` count, in the order of their places; None means all.
        added: float32 (A, D): the vectors behind those.
    """

    def __init__(
        self, dimension: int, saved: Matrix | None = None, kept: Rows | None = None, added: Matrix | None = None
    ) -> None:
        empty = np.zeros((0, dimension), dtype=np.float32)
        self._dimension = dimension
        self._saved = empty if saved is None else saved
        self._kept = kept
        self._added = GrowingArray(empty if added is None else added)

    def __len__(self) -> int:
        return self._saved_count() + len(self._added.values)

    def _saved_count(self) -> int:
        return len(self._saved if self._kept is None else self._kept)

    def reserve(self, more: int) -> None:
        """Make room, so that adding ``more`` vectors cannot fail for lack of memory."""
        self._added.reserve(more)

    def append(self, vectors: Matrix) -> None:
        """Add vectors float32 (A, D); their places follow those that are there."""
        self._added.append(vectors)

    def cut(self, count: int) -> None:
        """Forget the vectors that were added behind the first ``count``; nothing if there are no more."""
        self._added.cut(max(0, count - self._saved_count()))

    def take(self, places: Rows) -> Matrix:
        """Copy the vectors at places: float32 (P, D). Of a file, only their pages are read."""
        split = self._saved_count()
        in_file = places < split
        vectors = np.empty((len(places), self._dimension), dtype=np.float32)
        early, late = places[in_file], places[~in_file]
        if len(early):
            vectors[in_file] = self._saved[early if self._kept is None else self._kept[early]]
        if len(late):
            vectors[~in_file] = self._added.values[late - split]
        return vectors

    def only(self, places: Rows) -> "WholeVectors":
        """The vectors at ascending places, renumbered. What lies in a file stays there; this one is not changed."""
        split = self._saved_count()
        early, late = places[places < split], places[places >= split]
        kept = early if self._kept is None else self._kept[early]
        return WholeVectors(self._dimension, self._saved, kept, self._added.values[late - split])

    def write(self, path: Path, places: Rows) -> None:
        """Write the vectors at places to a new .npy file, a chunk at a time."""
        header = {"descr": _ON_DISK.str, "fortran_order": False, "shape": (len(places), self._dimension)}
        with path.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(places), CHUNK):
                chunk = self.take(places[start : start + CHUNK])
                file.write(chunk.astype(_ON_DISK, copy=False).tobytes())

    @classmethod
    def read(cls, path: Path, dimension: int, count: int, *, memory_map: bool) -> "WholeVectors":
        """Open a file that ``write`` made.

        Args:
            path: The file.
            dimension: Length D of a vector.
            count: How many vectors it must hold.
            memory_map: Leave them in the file, which nobody may overwrite meanwhile; False reads them all.

        Raises:
            StoreCorruptError: If the file is damaged, or holds anything else.
        """
        try:
            saved = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
        except (ValueError, EOFError) as error:  # numpy finds no header, or less behind it than it tells
            msg = f"{path} is damaged: {error}. Restore the folder, or build the store again"
            raise StoreCorruptError(msg) from error
        found = (saved.dtype, saved.shape) if isinstance(saved, np.ndarray) else None
        if found != (_ON_DISK, (count, dimension)):
            msg = (
                f"{path} does not hold {count} vectors of {dimension} float32 numbers. Restore the folder, or build "
                "the store again"
            )
            raise StoreCorruptError(msg)
        return cls(dimension, saved)
