"""The vectors of a store: a faiss index keyed by row numbers, where any row can be selected, removed and read back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from luotuo_integrations._optional import require
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.comparing import CHUNK, final_scores, nearest_rows
from luotuo_integrations.store.faiss_files import can_map, read_faiss, write_faiss
from luotuo_integrations.store.gpu_copy import MOST_RESULTS, GpuCopy
from luotuo_integrations.store.index_kinds import (
    Family,
    IndexKind,
    family_of,
    innermost,
    number_the_rest,
    training_size,
)
from luotuo_integrations.store.interrupts import finish
from luotuo_integrations.store.table import Rows
from luotuo_integrations.store.vector_math import Matrix, unit_rows

INDEX = "index.faiss"

# A filter that lets few rows of an HNSW graph through is searched exactly: a walk over the graph would miss some.
_EXACT_SHARE, _EXACT_ROWS = 0.1, 20_000
# faiss' selection looks at every row of a Flat index, for each query: a few rows, or rows for many queries, are copied
# out and compared instead.
_COPIED_SHARE, _COPIED_QUERIES = 0.02, 16
# Removed rows are only marked at first, because a Flat index moves its memory at each removal, and an HNSW graph
# cannot lose any. A PQ index cannot pass over rows in a search, and its codes are soon moved.
_MARKED_SHARE: dict[Family | None, float] = {"flat": 0.125, "pq": 0.0, "hnsw": 1.0}
_TRAINING_ROWS_PER_CENTROID = 256  # faiss uses no more


class VectorIndex:
    """Vectors by row number. Rows are given by the caller, ascending, and never used twice.

    Not locked: the caller lets one thread change it at a time, while none searches.

    Args:
        kind: Dimension, metric and faiss factory string.
        search_effort: Lists that an IVF index visits (faiss ``nprobe``) or candidates that an HNSW index keeps
            (faiss ``efSearch``). None: the 16th part of the lists and at least 8; 64 candidates.
        device: ``"cpu"``, or ``"cuda"`` for a copy on the GPU that answers searches without a filter.

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If the factory string or the device cannot be used.
    """

    def __init__(self, kind: IndexKind, *, search_effort: int | None = None, device: str = "cpu") -> None:
        self._faiss = require("faiss", extra="faiss")
        self._kind = kind
        self._search_effort = search_effort
        self._index = kind.build()
        self._family = family_of(self._index)
        self._gpu = None if device == "cpu" else GpuCopy(device)
        if self._gpu is not None and self._family in ("hnsw", "pq"):
            msg = f"device={device!r} works with Flat and IVF indexes, not with index_factory={kind.factory!r}"
            raise ValueError(msg)
        self._marked: set[int] = set()  # removed, but still in the faiss index
        self._unmarked: Any = None  # faiss' selector of the others, made when it is needed
        self._mapped = False

    def __len__(self) -> int:
        return int(self._index.ntotal) - len(self._marked)

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return self._kind.dimension

    # -- changes ------------------------------------------------------------------------------------------------------

    def train(self, vectors: Matrix) -> None:
        """Fit the index's centroids; an index that needs none, or has them, is left as it is.

        Args:
            vectors: float32 (N, D), typical of what will be added.

        Raises:
            ValueError: If there are too few vectors; the message says how many are needed.
        """
        self.check_training(len(vectors))
        if not self._index.is_trained:
            fresh = self._kind.build()  # a training that fails half-way leaves no trace
            fresh.train(self._scaled(vectors))
            self._index = fresh

    def check_training(self, count: int) -> None:
        """Raise ValueError if the index is not trained and ``count`` vectors are too few for it."""
        needed = training_size(self._index)
        if not self._index.is_trained and count < needed:
            msg = (
                f"index_factory={self._kind.factory!r} must be trained on at least {needed} vectors and was given "
                f"{count}. Add {needed} or more at first, call train(vectors), or type index_factory='Flat'"
            )
            raise ValueError(msg)

    def add(self, vectors: Matrix, rows: Rows) -> None:
        """Add vectors, training on them first where that is needed.

        Args:
            vectors: float32 (N, D).
            rows: int64 (N,), ascending, above all rows that were ever used.
        """
        self.train(vectors)
        self._own()
        self._changed()
        try:
            self._index.add_with_ids(self._scaled(vectors), rows)  # all at once: faiss then makes room once
        except BaseException:
            finish(lambda: self._take_back(rows))
            raise

    def _take_back(self, rows: Rows) -> None:
        if self._family != "ivf":
            number_the_rest(self._index, rows)
        self.discard(rows)

    def discard(self, rows: Rows) -> None:
        """Remove rows; those that are not held are no error.

        A row is gone from every search at once. Its memory comes back later: for a Flat or SQ index when an eighth is
        marked as removed, for an HNSW graph with ``rebuild``.
        """
        if len(rows) == 0:
            return
        self._changed()
        if self._family == "ivf":
            # With a hash table as direct map, faiss removes by this selector only.
            self._index.remove_ids(self._faiss.IDSelectorArray(np.ascontiguousarray(rows, dtype=np.int64)))
            return
        self._marked.update(self._among_held(rows).tolist())
        if len(self._marked) > _MARKED_SHARE[self._family] * self._index.ntotal:
            self._own()
            try:
                self._index.remove_ids(self._faiss.IDSelectorBatch(self._marked_rows()))
            finally:  # Ctrl-C reaches Python when faiss has removed them: none may stay marked then
                finish(self._unmark_removed)

    def rebuild(self) -> None:
        """Build the index anew from the vectors it holds: without removed rows, trained on what is there now.

        A compressed index (SQ, PQ) holds approximate vectors only, and becomes a little more approximate by this.
        """
        rows = self.rows
        fresh = self._kind.build()
        if not fresh.is_trained:
            needed = training_size(fresh)
            if len(rows) < needed:
                return  # too little is left to train on; what there is still works
            step = max(1, len(rows) // (needed * _TRAINING_ROWS_PER_CENTROID))
            fresh.train(self.vectors(rows[::step]))
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            fresh.add_with_ids(self.vectors(chunk), chunk)
        self._changed()
        self._index, self._mapped, self._marked = fresh, False, set()

    def _unmark_removed(self) -> None:
        self._marked = set(self._among_held(self._marked_rows()).tolist())

    # -- questions ----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Rows:
        """Rows that are held and not removed, ascending."""
        return np.setdiff1d(self._held(), self._marked_rows(), assume_unique=True)

    def vectors(self, rows: Rows) -> Matrix:
        """Vectors of rows that are held.

        Returns:
            float32 (N, D): as the index keeps them, so of length 1 for cosine, and approximate for SQ, PQ and PCA.
        """
        if len(rows) == 0:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return cast("Matrix", self._index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64)))

    def search(self, queries: Matrix, k: int, allowed: Rows | None = None) -> tuple[Matrix, Rows]:
        """Find the nearest rows.

        Args:
            queries: float32 (Q, D).
            k: How many, at least 1.
            allowed: Only these rows, each of them held; None means all. No allowed row is overlooked.

        Returns:
            Scores float32 (Q, k') and rows int64 (Q, k'), best first, with k' = min(k, how many there are to find).
            Cosines in [-1, 1], inner products, or Euclidean distances (not squared).
        """
        k = min(k, len(self) if allowed is None else len(allowed))
        if k == 0 or len(queries) == 0:
            return np.zeros((len(queries), k), dtype=np.float32), np.zeros((len(queries), k), dtype=np.int64)
        queries = self._scaled(queries)
        if self._gpu is not None and allowed is None and not self._marked and k <= MOST_RESULTS:
            scores, rows = self._gpu.search(self._index, queries, k)
        elif allowed is not None and self._compares(len(queries), allowed):
            scores, rows = self._compare(queries, k, allowed)
        else:
            scores, rows = self._find(queries, k, self._parameters(k, allowed))
        short = (rows < 0).any(axis=1)
        if short.any():  # the lists visited, or the part of the graph walked, held too few
            scores[short], rows[short] = self._search_everywhere(queries[short], k, allowed)
        return final_scores(scores, self._kind.metric), rows

    def _compares(self, queries: int, allowed: Rows) -> bool:
        """Tell whether to compare with each allowed row instead of letting faiss select them."""
        if self._family == "hnsw":
            return len(allowed) <= max(_EXACT_ROWS, _EXACT_SHARE * len(self))
        if self._family == "pq":
            return True
        few = len(allowed) <= _COPIED_SHARE * len(self)
        return self._kind.factory == "Flat" and (few or queries >= _COPIED_QUERIES)

    def _search_everywhere(self, queries: Matrix, k: int, allowed: Rows | None) -> tuple[Matrix, Rows]:
        if self._family == "hnsw":
            return self._compare(queries, k, self.rows if allowed is None else allowed)
        return self._find(queries, k, self._parameters(k, allowed, everywhere=True))

    def _find(self, queries: Matrix, k: int, parameters: Any) -> tuple[Matrix, Rows]:
        """Let faiss search; -1 stands for a row that it did not find."""
        if self._family == "ivf":
            return cast("tuple[Matrix, Rows]", self._index.search(queries, k, params=parameters))
        # The index inside the map is asked. The map would wake all threads to number the results: on a machine with
        # other work, that takes longer than a single query.
        scores, places = self._index.index.search(queries, k, params=parameters)
        return scores, np.where(places < 0, -1, self._held()[places])

    def _compare(self, queries: Matrix, k: int, rows: Rows) -> tuple[Matrix, Rows]:
        return nearest_rows(queries, k, rows, self.vectors, self._kind.metric)

    def _parameters(self, k: int, allowed: Rows | None, *, everywhere: bool = False) -> Any:
        """Which rows to look at and how hard to look, as faiss takes it."""
        chosen = {"sel": self._selector(allowed)} if allowed is not None or self._marked else {}
        if self._family == "ivf":
            lists = int(innermost(self._index).nlist)
            visited = min(self._search_effort or max(8, lists // 16), lists)
            # A filtered search visits every list: the rows a filter leaves may lie in any of them.
            return self._faiss.SearchParametersIVF(
                nprobe=lists if everywhere or allowed is not None else visited, **chosen
            )
        if self._family == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(self._search_effort or 64, 2 * k), **chosen)
        return self._faiss.SearchParameters(**chosen) if chosen else None

    def _selector(self, allowed: Rows | None) -> Any:
        if allowed is None:
            if self._unmarked is None:
                marked = self._places(np.sort(self._marked_rows()))
                self._unmarked = self._faiss.IDSelectorNot(self._faiss.IDSelectorBatch(marked))
            return self._unmarked
        places = self._places(allowed)
        chosen = np.zeros(int(places.max()) + 1, dtype=np.bool_)
        chosen[places] = True
        return self._faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))

    # -- files --------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Callable[[Path], None]]:
        """Name of each file of a saved store that this index fills -> the function that writes it."""
        return {INDEX: self.write}

    def facts(self) -> dict[str, int]:
        """What ``restore`` needs to know besides the files: nothing."""
        return {}

    def restore(
        self, paths: Mapping[str, Path], rows: Rows, *, memory_map: bool, facts: Mapping[str, int] | None = None
    ) -> None:
        """Take the vectors from the files that ``parts`` names; see ``read``."""
        del facts
        self.read(paths[INDEX], rows, memory_map=memory_map)

    def write(self, path: Path) -> None:
        """Write the index to a new file, through a Python file so that any path works."""
        write_faiss(self._index, path)

    def read(self, path: Path, rows: Rows, *, memory_map: bool) -> None:
        """Take the vectors from a file that ``write`` made.

        Args:
            path: The file.
            rows: The rows that count, ascending; others in the file had been removed.
            memory_map: Let the operating system page the file in as it is needed, where index and path allow it.

        Raises:
            StoreCorruptError: If the file is damaged or holds another kind of index.
        """
        mapped = memory_map and self._kind.factory == "Flat" and can_map(path)
        index = read_faiss(path, memory_map=mapped)
        if not self._kind.matches(index):
            msg = f"{path} is not the kind of index that manifest.json names. Restore the folder, or build it again"
            raise StoreCorruptError(msg)
        self._changed()
        self._index, self._mapped = index, mapped
        self._marked.clear()
        held = self._held()
        lacking = int((~np.isin(rows, held)).sum())
        if lacking:
            msg = f"{path} lacks the vectors of {lacking} documents. Restore the folder, or build the store again"
            raise StoreCorruptError(msg)
        self.discard(np.setdiff1d(held, rows, assume_unique=True))

    def _own(self) -> None:
        """Copy a memory-mapped index into memory first: faiss ends the whole process when a mapped one is changed."""
        if self._mapped:
            self.rebuild()

    # -- faiss --------------------------------------------------------------------------------------------------------

    def _scaled(self, vectors: Matrix) -> Matrix:
        return unit_rows(vectors) if self._kind.metric == "cosine" else vectors

    def _held(self) -> Rows:
        """Rows in the faiss index, ascending, those marked as removed among them; the next change spoils the view."""
        if self._index.ntotal == 0:
            return np.zeros(0, dtype=np.int64)
        if self._family != "ivf":
            return cast("Rows", self._faiss.rev_swig_ptr(self._index.id_map.data(), self._index.ntotal))
        lists = innermost(self._index).invlists
        sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
        parts = [self._faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
        return np.sort(np.concatenate(parts))

    def _among_held(self, rows: Rows) -> Rows:
        """Those of the rows that are in the faiss index; not for IVF, whose rows are not ascending."""
        held = self._held()
        places = np.minimum(np.searchsorted(held, rows), len(held) - 1)
        return rows[held[places] == rows] if len(held) else held

    def _places(self, rows: Rows) -> Rows:
        """What the index that is searched calls rows that are held: an IVF index by number, others by place."""
        return rows if self._family == "ivf" else np.searchsorted(self._held(), rows)

    def _marked_rows(self) -> Rows:
        return np.fromiter(self._marked, dtype=np.int64, count=len(self._marked))

    def _changed(self) -> None:
        """Forget what was made of the index as it was."""
        self._unmarked = None
        if self._gpu is not None:
            self._gpu.forget()
