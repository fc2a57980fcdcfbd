"""VectorRows: where the vectors of windows of texts go, into an array that was given or into one of their own."""

import numpy as np

from luotuo_integrations.texts import Vectors


class VectorRows:
    """Rows of the result of ``encode``, filled window by window.

    Args:
        out: float32 array (N, D) to fill, or None.
        count: How many texts will come; None where nobody knows.
        dimension: D.

    Raises:
        TypeError: If ``out`` is no array.
        ValueError: If ``out`` is of another type or shape, or cannot be written to.
    """

    def __init__(self, out: object, count: int | None, dimension: int) -> None:
        self._out = None if out is None else _checked(out, count, dimension)
        self._dimension = dimension
        self._parts: list[Vectors] = []
        self._filled = 0

    def take(self, count: int) -> Vectors:
        """The next rows, float32 (count, D), to be filled by the caller.

        Raises:
            ValueError: If ``out`` has no such rows.
        """
        start, self._filled = self._filled, self._filled + count
        if self._out is None:
            self._parts.append(np.empty((count, self._dimension), np.float32))
            return self._parts[-1]
        if self._filled > len(self._out):
            msg = f"out has {len(self._out)} rows, but more texts than that came"
            raise ValueError(msg)
        return self._out[start : self._filled]

    def whole(self) -> Vectors:
        """All rows, float32 (N, D): ``out`` itself where it was given.

        Raises:
            ValueError: If ``out`` has more rows than were taken.
        """
        if self._out is not None:
            if self._filled != len(self._out):
                msg = (
                    f"out has {len(self._out)} rows, but {self._filled} texts came; "
                    f"the first {self._filled} rows are filled"
                )
                raise ValueError(msg)
            return self._out
        if len(self._parts) == 1:
            return self._parts[0]
        return np.concatenate(self._parts) if self._parts else np.empty((0, self._dimension), np.float32)


def _checked(out: object, count: int | None, dimension: int) -> Vectors:
    wanted = f"a writeable float32 array ({'N' if count is None else count}, {dimension})"
    if not isinstance(out, np.ndarray):
        msg = f"out is {type(out).__name__}; it must be {wanted}"
        raise TypeError(msg)
    if out.ndim != 2 or out.shape[1] != dimension or out.dtype != np.float32 or not out.flags.writeable:
        msg = f"out is {'' if out.flags.writeable else 'read-only '}{out.dtype} {out.shape}; it must be {wanted}"
        raise ValueError(msg)
    if count is not None and count != len(out):
        msg = f"out has {len(out)} rows for {count} texts; it must be {wanted}"
        raise ValueError(msg)
    return out
