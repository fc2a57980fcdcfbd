"""The documents of a store: id, text and metadata, in a private SQLite database."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.filters import Condition

Rows = npt.NDArray[np.int64]

_SCHEMA = """CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    content TEXT NOT NULL,
    metadata TEXT NOT NULL
)"""
_COLUMNS = ("row", "id", "content", "metadata")
_EXTENT = "SELECT " + ", ".join(f"(SELECT {what} FROM documents)" for what in ("count(*)", "min(row)", "max(row)"))
_CACHE_64_MIB = "PRAGMA cache_size = -65536"
_REMEMBERED = 16


class StoredDocument(NamedTuple):
    """A document as the store keeps it."""

    id: str
    content: str
    metadata: dict[str, Any]


class DocumentTable:
    """Documents by row number and by id, with SQL conditions on their metadata.

    The database is private and temporary: SQLite keeps it in memory up to 64 MiB and lets the rest go to a nameless
    temporary file. ``write`` makes the lasting copy. Each method may be called from any thread.

    Args:
        path: A file that ``write`` made, to start from; it is read, never changed.
        in_place: Read the file as it is needed, and copy it only before the first change.

    Raises:
        StoreCorruptError: If the file is not such a database.
    """

    def __init__(self, path: Path | None = None, *, in_place: bool = False) -> None:
        self._mutex = threading.RLock()
        self._answers: dict[Condition, Rows] = {}  # to conditions asked since the last change
        self._file = path  # where the documents are read from, as long as that is a file
        if path is None:
            self._connection = _private_database()
            self._connection.execute(_SCHEMA)
        else:
            self._open(path)
            if not in_place:
                self._own()

    def _open(self, path: Path) -> None:
        with _damage_of(path):
            self._connection = _connected(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
            self._connection.execute(_CACHE_64_MIB)
            columns = [name for _, name, *_ in self._connection.execute("PRAGMA table_info(documents)")]
        if tuple(columns) != _COLUMNS:
            msg = f"{path} has the columns {columns}, not {list(_COLUMNS)}. Restore the folder, or build it again"
            raise StoreCorruptError(msg)

    def _own(self) -> None:
        """Copy the documents into the private database, if they are still read from a file."""
        if self._file is None:
            return
        private = _private_database()
        with _damage_of(self._file):
            self._connection.backup(private)
        opened = self._connection
        self._connection, self._file = private, None  # at once: Ctrl-C may come after any call
        opened.close()

    def __len__(self) -> int:
        return int(self._all("SELECT count(*) FROM documents")[0][0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep all changes made inside, or none if anything raises."""
        with self._mutex:
            self._own()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._answers.clear()
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def insert(self, rows: Rows, ids: Sequence[str], contents: Sequence[str], metadatas: Iterable[str]) -> None:
        """Insert documents; ``metadatas`` is JSON text. No row or id may be there already."""
        with self._mutex:
            self._own()
            self._answers.clear()
            self._connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?)", zip(rows.tolist(), ids, contents, metadatas, strict=True)
            )

    def delete(self, rows: Rows) -> None:
        """Delete rows."""
        with self._mutex:
            self._own()
            self._answers.clear()
            self._all("DELETE FROM documents WHERE row IN (SELECT value FROM json_each(?))", _json_list(rows.tolist()))

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Row of each id that is there."""
        sql = "SELECT id, row FROM documents WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self._all(sql, _json_list(ids)))

    def rows(self, condition: Condition | None = None) -> Rows:
        """Rows that fulfil the condition, ascending; None takes all. The last few answers are remembered."""
        with self._mutex:
            if condition is None:
                count, first, last = self._all(_EXTENT)[0]
                if count and count == last - first + 1:  # none is missing in between, so that none need be read
                    return np.arange(first, last + 1, dtype=np.int64)
                condition = Condition("1")
            if condition not in self._answers:
                found = self._all(f"SELECT row FROM documents WHERE {condition.sql} ORDER BY row", *condition.values)
                rows = np.fromiter((row for (row,) in found), dtype=np.int64, count=len(found))
                rows.setflags(write=False)
                if len(self._answers) == _REMEMBERED:
                    del self._answers[next(iter(self._answers))]
                self._answers[condition] = rows
            return self._answers[condition]

    def existing(self, rows: Rows) -> Rows:
        """Those of the rows that are there, ascending."""
        sql = "SELECT row FROM documents WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row"
        found = self._all(sql, _json_list(rows.tolist()))
        return np.fromiter((row for (row,) in found), dtype=np.int64, count=len(found))

    def documents(self, rows: Rows) -> dict[int, StoredDocument]:
        """Documents by row, ascending; rows that are not there are left out."""
        sql = "SELECT * FROM documents WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row"
        found = self._all(sql, _json_list(rows.tolist()))
        return {row: StoredDocument(id_, content, json.loads(text)) for row, id_, content, text in found}

    def contents(self, rows: Rows) -> list[tuple[int, str]]:
        """Row and text of each of the rows that is there, ascending."""
        sql = "SELECT row, content FROM documents WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row"
        return self._all(sql, _json_list(rows.tolist()))

    def metadata(self) -> list[tuple[int, dict[str, Any]]]:
        """Row and metadata of every document."""
        return [(row, json.loads(text)) for row, text in self._all("SELECT row, metadata FROM documents ORDER BY row")]

    def write(self, path: Path) -> None:
        """Write a compact copy to a new file.

        Raises:
            OSError: If it cannot be written, for instance because the disk is full.
        """
        try:
            self._all("VACUUM INTO ?", str(path))
        except sqlite3.OperationalError as error:
            msg = f"{path} cannot be written: {error}"
            raise OSError(msg) from error

    def _all(self, sql: str, *values: str | int | float | None) -> list[Any]:
        with self._mutex:
            return self._connection.execute(sql, values).fetchall()


def _connected(database: str) -> sqlite3.Connection:
    return sqlite3.connect(database, check_same_thread=False, isolation_level=None, uri=True)


def _private_database() -> sqlite3.Connection:
    connection = _connected("")  # the empty name: SQLite deletes it when it is closed
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute(_CACHE_64_MIB)
    return connection


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Raise what SQLite finds wrong with a file as StoreCorruptError."""
    try:
        yield
    except sqlite3.Error as error:
        msg = f"{path} cannot be read as a database of documents: {error}. Restore the folder, or build it again"
        raise StoreCorruptError(msg) from error


def _json_list(items: Sequence[str] | list[int]) -> str:
    return json.dumps(list(items))
