"""Indexes of short codes whose best candidates are compared once more, by their whole vectors.

=============  ============================================================  ==========================================
index_factory  in memory for a vector of D numbers, besides 8 bytes of keys  candidates compared again, for k results
=============  ============================================================  ==========================================
``"Int8"``     D bytes: each number as one of 256 steps (faiss SQ8)          4 k
``"Binary"``   D / 8 + 8 bytes: signs and two numbers (faiss RaBitQ)         16 k
=============  ============================================================  ==========================================

The whole vectors lie in memory until the store is saved, and in the store's folder, memory-mapped, once it is opened
from there. Scores are exact, since they are those of the whole vectors; what the codes can cost is a row among the
nearest that is no candidate.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luotuo_integrations._optional import require
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.comparing import CHUNK, faiss_metric, final_scores, nearest_rows
from luotuo_integrations.store.faiss_files import read_faiss, write_faiss
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind
from luotuo_integrations.store.interrupts import finish
from luotuo_integrations.store.table import Rows
from luotuo_integrations.store.vector_math import Matrix, unit_rows
from luotuo_integrations.store.whole_vectors import GrowingArray, WholeVectors

CODES, WHOLE = "index.faiss", "vectors.npy"  # names of a saved store's parts

_FEWEST_RESULTS = 4  # candidates are those of at least so many results: one alone would leave few to choose from
_MARKED_SHARE = 0.125  # removed rows are only marked until they are so many: taking one out moves the others
# Codes are fitted to the vectors that are there: to their mean, or to the range of each number. The first batch may be
# a single text, so they are fitted anew when the store has grown fourfold, until there are plenty.
_GROWTH, _PLENTY = 4, 65_536


class Coding(NamedTuple):
    """How a kind keeps a vector in memory.

    Args:
        factory: faiss factory string of the codes.
        effort: Candidates compared again for each result, where the user names no ``search_effort``.
    """

    factory: str
    effort: int


RESCORED: Mapping[str, Coding] = {"Int8": Coding("SQ8", 4), "Binary": Coding("RaBitQ", 16)}


class _Held(NamedTuple):
    """What is held; the place of a row is the same in all of it. Replaced at once, so that nothing can come between.

    Codes and vectors grow before ``places`` do: what an interrupted addition left behind the last place is not there.

    Args:
        codes: faiss index of the codes.
        whole: Whole vectors.
        places: Place -> row, ascending.
        marked: Places of removed rows.
        fitted_to: How many vectors the codes were fitted to, less those that are taken out; 0 if that is not known.
    """

    codes: Any
    whole: WholeVectors
    places: GrowingArray
    marked: set[int]
    fitted_to: int


class RescoredIndex:
    """Vectors by row number, as ``VectorIndex`` keeps them, in the kinds ``"Int8"`` and ``"Binary"``.

    No training is needed. Not locked: the caller lets one thread change it at a time, while none searches.

    Args:
        kind: Dimension, metric (any), and a key of ``RESCORED``.
        search_effort: How many candidates are compared again for each result, 1 or more; None: see the table above.
        device: ``"cpu"`` only.

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If the device is not the CPU.
    """

    def __init__(self, kind: IndexKind, *, search_effort: int | None = None, device: str = "cpu") -> None:
        self._faiss = require("faiss", extra="faiss")
        if device != "cpu":
            msg = (
                f"device={device!r} works with Flat and IVF indexes, not with index_factory={kind.factory!r}. Type "
                "device='cpu' or index_factory='Flat'"
            )
            raise ValueError(msg)
        self._kind, self._coding = kind, RESCORED[kind.factory]
        self._effort = search_effort or self._coding.effort
        places = GrowingArray(np.zeros(0, dtype=np.int64))
        self._held = _Held(self._new_codes(), WholeVectors(kind.dimension), places, set(), 0)
        self._unmarked: Any = None  # faiss' selector of the others, made when it is needed

    def __len__(self) -> int:
        return len(self._held.places.values) - len(self._held.marked)

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return self._kind.dimension

    # -- changes ------------------------------------------------------------------------------------------------------

    def train(self, vectors: Matrix) -> None:
        """Fit the codes to typical vectors float32 (N, D); those that are fitted already are left as they are."""
        if not self._held.fitted_to and not len(self._held.places.values) and len(vectors):
            fresh = self._new_codes()
            fresh.train(self._scaled(vectors))
            self._held = self._held._replace(codes=fresh, fitted_to=len(vectors))

    def check_training(self, count: int) -> None:
        """Do nothing: these kinds need no training, and take any number of vectors."""

    def add(self, vectors: Matrix, rows: Rows) -> None:
        """Add vectors.

        Args:
            vectors: float32 (N, D).
            rows: int64 (N,), ascending, above all rows that were ever used.
        """
        if len(rows) == 0:
            return
        try:
            self._append(self._scaled(vectors), rows)
        except BaseException:
            finish(self._cut_back)
            raise

    def _append(self, vectors: Matrix, rows: Rows) -> None:
        self._cut_back()  # in case that failed, too
        self._unmarked = None
        # What needs memory comes first, so that little can fail later.
        self._held.places.reserve(len(rows))
        self._held.whole.reserve(len(rows))
        grown, fitted_to = len(self._held.places.values) + len(rows), self._held.fitted_to
        if fitted_to == 0 or (fitted_to < _PLENTY and grown >= _GROWTH * fitted_to):
            self._held = self._held._replace(codes=self._coded_anew(vectors))
            fitted_to = grown
        else:
            self._held.codes.add(vectors)
        self._held.whole.append(vectors)
        self._held.places.append(rows)  # from here on they are held
        self._held = self._held._replace(fitted_to=fitted_to)

    def _cut_back(self) -> None:
        """Take out the codes and vectors that have no row yet, after an addition that failed."""
        codes, count = self._held.codes, len(self._held.places.values)
        self._held.whole.cut(count)
        if codes.ntotal > count:
            codes.remove_ids(self._faiss.IDSelectorRange(count, codes.ntotal))

    def discard(self, rows: Rows) -> None:
        """Remove rows, held or not. Memory comes back when an eighth is removed; the codes are copied for that."""
        held = self._held.places.values
        if len(rows) == 0 or len(held) == 0:
            return
        places = np.minimum(np.searchsorted(held, rows), len(held) - 1)
        self._unmarked = None
        self._held.marked.update(places[held[places] == rows].tolist())
        if len(self._held.marked) > _MARKED_SHARE * len(held):
            self._take_out_marked()

    def rebuild(self) -> None:
        """Take out what was removed, and fit the codes to the vectors that are there now. Vectors stay as they are."""
        self._take_out_marked()
        if len(self):
            codes = self._coded_anew(np.zeros((0, self.dimension), dtype=np.float32))
            self._held = self._held._replace(codes=codes, fitted_to=len(self))

    def _take_out_marked(self) -> None:
        if not self._held.marked:
            return
        left = self._left()
        whole, rows = self._held.whole.only(left), GrowingArray(self._held.places.values[left])
        self._unmarked = None
        self._held = _Held(self._codes_left(), whole, rows, set(), self._fitted_left())

    def _coded_anew(self, more: Matrix) -> Any:
        """Codes of all vectors and of ``more`` behind them, fitted to them."""
        held, whole = len(self._held.places.values), self._held.whole
        step = max(1, (held + len(more)) // _PLENTY)
        fresh = self._new_codes()
        fresh.train(np.vstack([whole.take(np.arange(0, held, step)), more[::step]]))
        for start in range(0, held, CHUNK):
            fresh.add(whole.take(np.arange(start, min(start + CHUNK, held))))
        fresh.add(more)
        return fresh

    # -- questions ----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Rows:
        """Rows that are held and not removed, ascending."""
        held: Rows = self._held.places.values[self._left()]
        return held

    def vectors(self, rows: Rows) -> Matrix:
        """Vectors of rows that are held: float32 (N, D), not approximate; of length 1 for cosine."""
        return self._held.whole.take(np.searchsorted(self._held.places.values, rows))

    def search(self, queries: Matrix, k: int, allowed: Rows | None = None) -> tuple[Matrix, Rows]:
        """Find the nearest rows: candidates by their codes, and the best of those by their whole vectors.

        Args:
            queries: float32 (Q, D).
            k: How many, at least 1.
            allowed: Only these rows, each of them held; None means all.

        Returns:
            Scores float32 (Q, k') and rows int64 (Q, k'), best first, with k' = min(k, how many there are to find).
            Cosines in [-1, 1], inner products, or Euclidean distances (not squared). Exact search, where there are no
            more rows to find than candidates.
        """
        available = len(self) if allowed is None else len(allowed)
        k = min(k, available)
        if k == 0 or len(queries) == 0:
            return np.zeros((len(queries), k), dtype=np.float32), np.zeros((len(queries), k), dtype=np.int64)
        queries = self._scaled(queries)
        candidates = self._effort * max(k, _FEWEST_RESULTS)
        if candidates >= available:
            scores, rows = self._compare(queries, k, self.rows if allowed is None else allowed)
        else:
            scores, rows = self._rescore(queries, k, candidates, allowed)
        return final_scores(scores, self._kind.metric), rows

    def _rescore(self, queries: Matrix, k: int, candidates: int, allowed: Rows | None) -> tuple[Matrix, Rows]:
        _, places = self._held.codes.search(queries, candidates, params=self._parameters(allowed))
        scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        for number, found in enumerate(places):
            # In the order in which the vectors lie in the file. A code of vectors so large that their squares overflow
            # is no number, and faiss finds nothing by it: -1.
            chosen = np.sort(found[found >= 0])
            held = self._held.places.values[chosen]
            if len(held) < k:
                held = self.rows if allowed is None else allowed
            query = queries[number : number + 1]
            scores[number], rows[number] = (best[0] for best in self._compare(query, k, held))
        return scores, rows

    def _compare(self, queries: Matrix, k: int, rows: Rows) -> tuple[Matrix, Rows]:
        return nearest_rows(queries, k, rows, self.vectors, self._kind.metric)

    def _parameters(self, allowed: Rows | None) -> Any:
        """Which places to look at, as faiss takes it; None for all."""
        if allowed is not None:
            return self._selecting(np.searchsorted(self._held.places.values, allowed))
        if self._all_count():
            return None
        if self._unmarked is None:
            self._unmarked = self._selecting(self._left())
        return self._unmarked

    def _selecting(self, places: Rows) -> Any:
        chosen = np.zeros(int(places.max()) + 1, dtype=np.bool_)
        chosen[places] = True
        selector = self._faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        return self._faiss.SearchParameters(sel=selector)

    # -- files --------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Callable[[Path], None]]:
        """Name of each file of a saved store that this index fills -> the function that writes it."""
        return {CODES: self._write_codes, WHOLE: self._write_whole}

    def facts(self) -> dict[str, int]:
        """What ``restore`` needs to know besides the files."""
        return {"fitted_to": self._fitted_left()}

    def restore(
        self, paths: Mapping[str, Path], rows: Rows, *, memory_map: bool, facts: Mapping[str, int] | None = None
    ) -> None:
        """Take codes and vectors from files that the functions of ``parts`` wrote.

        Args:
            paths: Name of each part -> its file.
            rows: The rows they are of, ascending.
            memory_map: Leave the whole vectors in their file, and read those that a search needs.
            facts: What the method of this name told; without it, the next addition fits the codes anew.

        Raises:
            StoreCorruptError: If a file is damaged, of another kind, or of another number of rows.
        """
        codes = read_faiss(paths[CODES])
        expected, metric = self._new_codes(), faiss_metric(self._kind.metric)
        if type(codes) is not type(expected) or codes.d != expected.d or codes.metric_type != metric:
            msg = f"{paths[CODES]} is not the kind of index that manifest.json names. Restore the folder, or build it "
            raise StoreCorruptError(msg + "again")
        if codes.ntotal != len(rows) or codes.sa_code_size() != expected.sa_code_size():
            msg = f"{paths[CODES]} holds {codes.ntotal} codes for {len(rows)} documents. Restore the folder, or build "
            raise StoreCorruptError(msg + "the store again")
        whole = WholeVectors.read(paths[WHOLE], self.dimension, len(rows), memory_map=memory_map)
        self._unmarked = None
        self._held = _Held(codes, whole, GrowingArray(rows), set(), (facts or {}).get("fitted_to", 0))

    def _write_codes(self, path: Path) -> None:
        write_faiss(self._codes_left(), path)

    def _write_whole(self, path: Path) -> None:
        self._held.whole.write(path, self._left())

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _new_codes(self) -> Any:
        return self._faiss.index_factory(self.dimension, self._coding.factory, faiss_metric(self._kind.metric))

    def _scaled(self, vectors: Matrix) -> Matrix:
        return unit_rows(vectors) if self._kind.metric == "cosine" else vectors

    def _left(self) -> Rows:
        """Places that are not removed, ascending."""
        left = np.ones(len(self._held.places.values), dtype=np.bool_)
        left[self._marked_places()] = False
        return np.flatnonzero(left)

    def _all_count(self) -> bool:
        """Tell whether each of the codes is that of a row that is not removed."""
        return not self._held.marked and self._held.codes.ntotal == len(self._held.places.values)

    def _codes_left(self) -> Any:
        """Codes of the places that are not removed: a copy, since others may be searching, or Ctrl-C be pressed."""
        if self._all_count():
            return self._held.codes
        codes, count = self._faiss.clone_index(self._held.codes), len(self._held.places.values)
        gone = np.concatenate([self._marked_places(), np.arange(count, codes.ntotal)])
        codes.remove_ids(self._faiss.IDSelectorBatch(gone))
        return codes

    def _fitted_left(self) -> int:
        """How many of the vectors that the codes were fitted to are left; those were the first."""
        return self._held.fitted_to - int((self._marked_places() < self._held.fitted_to).sum())

    def _marked_places(self) -> Rows:
        return np.fromiter(self._held.marked, dtype=np.int64, count=len(self._held.marked))


def new_index(kind: IndexKind, *, search_effort: int | None = None, device: str = "cpu") -> VectorIndex | RescoredIndex:
    """Make an empty index of any kind; see the two classes for the arguments and errors."""
    made = RescoredIndex if kind.factory in RESCORED else VectorIndex
    return made(kind, search_effort=search_effort, device=device)
