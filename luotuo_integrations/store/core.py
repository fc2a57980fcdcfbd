"""FaissCore: vectors and documents together, with ids, filters and files; it knows no framework."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.batch import DocumentBatch, check_documents, check_ids
from luotuo_integrations.store.files import Manifest, StoreFolder
from luotuo_integrations.store.filters import Filter, Predicate
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind
from luotuo_integrations.store.interrupts import finish
from luotuo_integrations.store.keyword_index import KeywordIndex
from luotuo_integrations.store.reader import StoreReader
from luotuo_integrations.store.rescoring import RESCORED, RescoredIndex, new_index
from luotuo_integrations.store.table import DocumentTable, Rows
from luotuo_integrations.store.vector_math import Matrix, Metric, as_matrix

_DOCUMENTS, _KEYWORDS = "documents.sqlite", "keywords.safetensors"


class FaissCore(StoreReader):
    """A vector store with documents. Every method may be called from any thread.

    Adding under an id that is there replaces that document. A change happens wholly or not at all: arguments are
    checked before anything is touched, and vectors and documents stay in step whatever fails.

    Args:
        dimension: Length D of a vector; None takes it from the first vectors.
        metric: ``"cosine"``, ``"inner_product"`` or ``"euclidean"``.
        index_factory: faiss factory string, for instance ``"Flat"``, ``"HNSW32"`` or ``"IVF256,Flat"``; or
            ``"Int8"`` or ``"Binary"``: short codes in memory, see ``store.rescoring``.
        search_effort: How hard an approximate index looks; see ``VectorIndex`` and ``RescoredIndex``.
        fingerprint: Of the model that makes the vectors; "" for an unknown one.
        model: Its name, for messages.
        device: ``"cpu"``, or ``"cuda"`` to search on a GPU.

    Raises:
        ImportError: If faiss is not installed.
        ValueError: If an argument is not one of those allowed.
    """

    def __init__(
        self,
        dimension: int | None = None,
        *,
        metric: Metric = "cosine",
        index_factory: str = "Flat",
        search_effort: int | None = None,
        fingerprint: str = "",
        model: str = "",
        device: str = "cpu",
    ) -> None:
        if search_effort is not None and search_effort < 1:
            msg = f"search_effort={search_effort!r} must be 1 or more, or None"
            raise ValueError(msg)
        super().__init__(metric, fingerprint=fingerprint, model=model)
        self._factory, self._effort, self._device = index_factory, search_effort, device
        self._next_row = 0
        self._index = None if dimension is None else self._new_index(dimension)
        if dimension is None and index_factory in ("Flat", *RESCORED):
            self._new_index(1)  # refuses a device or a missing faiss now, not after texts have been embedded

    def __repr__(self) -> str:
        return (
            f"FaissCore({len(self)} documents, dimension={self.dimension}, metric={self.metric!r}, "
            f"index_factory={self.index_factory!r}, model={self.model!r})"
        )

    @property
    def index_factory(self) -> str:
        """The faiss factory string."""
        return self._factory

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(
        self,
        vectors: Any,
        contents: Iterable[str],
        metadatas: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Add documents, or replace those whose ids are there.

        Args:
            vectors: float32 (N, D), finite. For cosine they are scaled to length 1 on the way in.
            contents: N texts.
            metadatas: N dicts of JSON values, with None for {}.
            ids: N ids, with None for a new one. Of an id given twice, the last document counts.

        Returns:
            N ids in the order given.

        Raises:
            TypeError: If something has a type that cannot be stored.
            ValueError: If numbers or dimensions differ, a number is not finite, or the index lacks training vectors.
        """
        batch = check_documents(contents, metadatas, ids)
        matrix = as_matrix(vectors, self.dimension)
        if len(matrix) != len(batch.ids):
            msg = f"{len(matrix)} vectors were given for {len(batch.ids)} texts; give one each"
            raise ValueError(msg)
        self.add_batch(batch, matrix if len(batch.kept) == len(matrix) else matrix[batch.kept])
        return batch.ids

    def add_batch(self, batch: DocumentBatch, vectors: Matrix) -> None:
        """Add documents that are checked already; ``vectors`` are those of the documents kept, float32 (N, D)."""
        vectors = as_matrix(vectors, self.dimension)
        if len(vectors) != len(batch.kept):
            msg = f"{len(vectors)} vectors were given for {len(batch.kept)} different documents; give one each"
            raise ValueError(msg)
        if len(vectors) == 0:
            return
        with self._lock.write():
            index = self._index if self._index is not None else self._new_index(vectors.shape[1])
            if index.dimension != vectors.shape[1]:  # another thread's first vectors may have come in between
                as_matrix(vectors, index.dimension)
            rows = np.arange(self._next_row, self._next_row + len(vectors), dtype=np.int64)
            self._next_row += len(vectors)  # even if this fails: a row number is never used twice
            known = self._table.rows_of(batch.kept_ids) if len(index) else {}
            replaced = np.array(sorted(known.values()), dtype=np.int64)
            keywords = self._keywords_to_change()
            try:
                with self._table.transaction():
                    self._table.delete(replaced)
                    self._table.insert(rows, batch.kept_ids, batch.contents, batch.metadatas)
                    index.add(vectors, rows)
                    if keywords is not None:
                        keywords.add(rows, batch.contents)
                self._index, self._spread = index, None
                index.discard(replaced)
                if keywords is not None:
                    keywords.discard(replaced)
            except BaseException:
                finish(lambda: self._follow_table(index, np.concatenate([rows, replaced])))
                raise

    def train(self, vectors: Any) -> None:
        """Train an IVF, PQ or SQ index on typical vectors before the first are added; others need none.

        Raises:
            ValueError: If there are too few; the message says how many are needed.
        """
        matrix = as_matrix(vectors, self.dimension)
        with self._lock.write():
            index = self._index if self._index is not None else self._new_index(matrix.shape[1])
            index.train(matrix)
            self._index = index

    def check_room(self, count: int) -> None:
        """Raise ValueError if adding ``count`` documents would fail because an untrained index needs more of them."""
        with self._lock.read():
            if self._index is not None and count:
                self._index.check_training(count)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete by id; ids that are not there are no error. Returns how many documents are gone."""
        wanted = check_ids(ids)
        with self._lock.write():
            return self._delete_rows(np.array(sorted(self._table.rows_of(wanted).values()), dtype=np.int64))

    def delete_where(self, where: Filter | Predicate) -> int:
        """Delete the documents that a filter lets through. Returns how many are gone.

        Raises:
            ValueError: If the filter is empty; ``clear`` deletes everything.
        """
        if not callable(where) and not where:
            msg = "delete_where({}) would delete everything; type clear() if that is meant"
            raise ValueError(msg)
        limit = self._prepared(where)
        with self._lock.write():
            rows = self._limited(limit, None)
            return 0 if rows is None else self._delete_rows(rows)

    def _delete_rows(self, rows: Rows) -> int:
        index = self._index
        if len(rows) and index is not None:
            keywords, self._spread = self._keywords_to_change(), None
            try:
                self._table.delete(rows)
                index.discard(rows)
                if keywords is not None:
                    keywords.discard(rows)
            except BaseException:
                finish(lambda: self._follow_table(index, rows))
                raise
        return len(rows)

    def _follow_table(self, index: VectorIndex | RescoredIndex, rows: Rows) -> None:
        """After a change that failed: take those of its rows that have no document out of the other indexes.

        The documents change wholly or not at all, so they tell whether the change came before the failure.
        """
        held = self._table.existing(rows)
        gone = np.setdiff1d(rows, held)
        index.discard(gone)
        if self._keywords is not None:
            self._keywords.discard(gone)
        if len(held):
            self._index, self._spread = index, None

    def _keywords_to_change(self) -> KeywordIndex | None:
        """The keyword index, read if it was left in its file: damage shows before anything is changed."""
        if self._keywords is not None:
            self._keywords.read()
        return self._keywords

    def clear(self) -> None:
        """Delete everything. Dimension, metric and model stay; an index that was trained must be trained again."""
        with self._lock.write():
            index = None if self._index is None else self._new_index(self._index.dimension)
            keywords = None if self._keywords is None else KeywordIndex(self._keywords.tokenizer)
            table = DocumentTable()
            self._index, self._keywords, self._table, self._spread = index, keywords, table, None  # all or nothing

    def rebuild(self) -> None:
        """Build the faiss index anew, for an HNSW graph after many deletes or an IVF index that has grown.

        See ``VectorIndex.rebuild``.
        """
        with self._lock.write():
            if self._index is not None:
                self._index.rebuild()

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the store to a folder. What was saved there before stays whole until the new files are complete.

        Raises:
            OSError: If it cannot be written, for instance because the disk is full.
            StoreMismatchError: If the folder holds another program's manifest.json.
        """
        with self._lock.read():
            facts: dict[str, Any] = {
                "metric": self.metric,
                "dimension": self.dimension,
                "index_factory": self.index_factory,
                "search_effort": self._effort,
                "fingerprint": self.fingerprint,
                "model": self.model,
                "count": len(self._table),
                "next_row": self._next_row,
            }
            parts = {_DOCUMENTS: self._table.write}
            if self._index is not None:
                parts.update(self._index.parts())
                facts["index"] = self._index.facts()
            if self._keywords is not None:
                parts[_KEYWORDS] = self._keywords.save
            StoreFolder(folder).save(facts, parts)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: str = "cpu", verify: bool = False, memory_map: bool = True
    ) -> "FaissCore":
        """Open a store that ``save`` wrote.

        Args:
            folder: The folder.
            device: ``"cpu"``, or ``"cuda"`` to search on a GPU.
            verify: Compare all checksums, which reads every byte; sizes are always checked.
            memory_map: Read documents, and the vectors of a Flat, Int8 or Binary index, from their files as they are
                needed, instead of all at once. Nobody may overwrite the files meanwhile; a later ``save`` does not, it
                makes new ones.

        Raises:
            FileNotFoundError: If the folder holds no store.
            StoreCorruptError: If a file is missing, truncated or edited.
            StoreMismatchError: If the files are another program's, or of a newer version of this one.
        """
        return StoreFolder(folder).load(
            lambda manifest: cls._restored(manifest, device=device, memory_map=memory_map), verify=verify
        )

    @classmethod
    def _restored(cls, manifest: Manifest, *, device: str, memory_map: bool) -> "FaissCore":
        facts = manifest.facts
        names = ("dimension", "metric", "index_factory", "search_effort", "fingerprint", "model")
        core = cls(**{name: facts[name] for name in names}, device=device)
        core._table = DocumentTable(manifest.path(_DOCUMENTS), in_place=memory_map)
        core._next_row = facts["next_row"]
        rows = core._table.rows()
        parts = () if core._index is None else core._index.parts().keys()
        paths = {part: path for part in parts if (path := manifest.path(part)) is not None}
        if len(rows) != facts["count"] or len(paths) < len(parts):
            raise _unlike(manifest)
        if len(rows) and (rows[-1] >= core._next_row or core._index is None):
            raise _unlike(manifest)
        if core._index is not None:
            core._index.restore(paths, rows, memory_map=memory_map, facts=facts.get("index"))
        core._keywords = _restored_keywords(manifest, len(rows), read=not memory_map)
        return core

    def _new_index(self, dimension: int) -> VectorIndex | RescoredIndex:
        kind = IndexKind(dimension, self._metric, self._factory)
        return new_index(kind, search_effort=self._effort, device=self._device)


def _restored_keywords(manifest: Manifest, count: int, *, read: bool) -> KeywordIndex | None:
    """The keyword index of a store of ``count`` documents, if it has one; its texts are read at their first use."""
    path = manifest.path(_KEYWORDS)
    if path is None:
        return None
    keywords = KeywordIndex.load(path)
    if len(keywords) != count:
        raise _unlike(manifest)
    if read:
        keywords.read()
    return keywords


def _unlike(manifest: Manifest) -> StoreCorruptError:
    msg = f"The files in {manifest.folder} do not belong together. Restore the folder, or build it again"
    return StoreCorruptError(msg)
