"""A copy of an index on the GPU that answers searches; the index in main memory stays the one that is changed."""

import threading
from typing import Any, cast

import numpy as np

from luotuo_integrations._optional import require
from luotuo_integrations.store.table import Rows
from luotuo_integrations.store.vector_math import Matrix

MOST_RESULTS = 2048  # faiss' limit for k on a GPU


class GpuCopy:
    """Copies the index at the first search after a change. faiss' GPU indexes take one caller at a time: it locks.

    Args:
        device: ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ValueError: If faiss has no GPU support here, or there is no such GPU.
    """

    def __init__(self, device: str) -> None:
        self._faiss = require("faiss", extra="faiss")
        name, _, number = device.partition(":")
        if name != "cuda" or not (number or "0").isdecimal():
            msg = f"device={device!r} is not known to the store; type 'cpu', 'cuda' or 'cuda:1'"
            raise ValueError(msg)
        count = self._faiss.get_num_gpus() if hasattr(self._faiss, "StandardGpuResources") else None
        if count is None:
            msg = (
                f"device={device!r}, but this faiss is built for the CPU. Type: pip uninstall faiss-cpu, then "
                "pip install 'luotuo-integrations[faiss-gpu]'; or device='cpu'"
            )
            raise ValueError(msg)
        self._number = int(number or 0)
        if self._number >= count:
            msg = f"device={device!r}, but faiss sees {count} GPUs here; type device='cpu'"
            raise ValueError(msg)
        self._resources = self._faiss.StandardGpuResources()
        self._lock = threading.Lock()
        self._copy: Any = None
        self._rows: Rows | None = None

    def forget(self) -> None:
        """Drop the copy because the index has changed."""
        with self._lock:
            self._copy = self._rows = None

    def search(self, index: Any, queries: Matrix, k: int) -> tuple[Matrix, Rows]:
        """Search the copy of ``index``; see ``faiss.Index.search``."""
        with self._lock:
            if self._copy is None:
                keyed = isinstance(index, self._faiss.IndexIDMap)
                self._rows = self._faiss.vector_to_array(index.id_map) if keyed else None
                inner = index.index if keyed else index
                self._copy = self._faiss.index_cpu_to_gpu(self._resources, self._number, inner)
            scores, found = self._copy.search(queries, k)
            if self._rows is not None:
                found = np.where(found < 0, -1, self._rows[found])
            return cast("tuple[Matrix, Rows]", (scores, found))
