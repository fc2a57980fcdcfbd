"""EmbeddingCache: vectors kept in a folder, so that no text is embedded twice. No framework and no torch here."""

import hashlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.texts import Vectors

FORMAT = 1
FILE = "vectors.sqlite3"
_SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
_KEY_BYTES = 16
_KEYS_AT_ONCE = 500  # SQLite before 3.32 takes 999 parameters
_PATIENCE_SECONDS = 60.0  # for another process that writes


class EmbeddingCacheError(LuotuoError, OSError):
    """A cache of vectors is damaged, or cannot be read or written."""


class EmbeddingCache:
    """Vectors by what was embedded, kept in a folder of this machine's own disk.

    One SQLite file with a row a vector: the key is a BLAKE2b hash of the space and the text, the vector is float32. Any
    number of threads and processes may read and write at a time. The vectors of one call are written in one
    transaction, so that whatever kills the process costs at most the call it was in. The file is opened at the first
    call, and never shrinks; to empty a cache, delete its folder.

    Args:
        folder: Where to keep the vectors, those of any number of models; it is made at the first call.

    Raises:
        TypeError: If ``folder`` is no path.
        ValueError: If it is empty.
        NotADirectoryError: If it is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _checked_folder(folder)
        self._connection: sqlite3.Connection | None = None

    def __len__(self) -> int:
        """Number of vectors kept."""
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def vectors(
        self, space: str, texts: Sequence[str], dimension: int, embed: Callable[[list[str]], Vectors]
    ) -> Vectors:
        """Give the vectors of texts; those that are not kept are computed, and kept before this returns.

        Args:
            space: Whatever else decides a vector: model, kind, prompt. The same text in another space is another text.
            texts: The texts, repeated ones too.
            dimension: Length D of a vector.
            embed: Gives float32 (M, D) for M texts, none of which is repeated or kept; called once, or not at all.

        Returns:
            float32 (N, D), in the order of the texts.

        Raises:
            EmbeddingCacheError: If the file is damaged, or cannot be read or written.
            ValueError: If ``embed`` gives another shape.
        """
        keys = _keys(space, texts)
        wanted = dict(zip(keys, texts, strict=True))
        kept = self._read(wanted, dimension)
        missing = {key: text for key, text in wanted.items() if key not in kept}
        if missing:
            # The lock is not held here: two threads may compute the same text, and no thread waits for a model.
            computed = np.ascontiguousarray(embed(list(missing.values())), dtype="<f4")
            if computed.shape != (len(missing), dimension):
                msg = f"embed gave {computed.shape} for {len(missing)} texts of dimension {dimension}"
                raise ValueError(msg)
            new = dict(zip(missing, map(bytes, computed), strict=True))
            self._write(new)
            kept |= new
        rows = bytearray().join(kept[key] for key in keys)  # not bytes: the array must be writeable
        return np.frombuffer(rows, dtype="<f4").reshape(len(keys), dimension).astype(np.float32, copy=False)

    def _read(self, keys: Collection[bytes], dimension: int) -> dict[bytes, bytes]:
        kept: dict[bytes, bytes] = {}
        asked = list(keys)
        with self._open() as connection:
            for start in range(0, len(asked), _KEYS_AT_ONCE):
                some = asked[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                kept.update(connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", some))
        if any(len(vector) != 4 * dimension for vector in kept.values()):
            reason = f"a vector has not {dimension} numbers"
            raise self._damaged(reason)
        return kept

    def _write(self, vectors: dict[bytes, bytes]) -> None:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", vectors.items())
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection alone; what SQLite raises becomes an error that says what to do."""
        with _lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
            except sqlite3.OperationalError as error:
                msg = f"{self.folder} cannot be read or written: {error}. See to its disk, or give another vector_cache"
                raise EmbeddingCacheError(msg) from error
            except sqlite3.Error as error:
                self.close()
                raise self._damaged(str(error)) from error

    def _connect(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):  # a new file turns to WAL for one process at a time; others get errors
            connection = sqlite3.connect(
                self.folder / FILE, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                # Readers do not wait for a writer. Only a power cut, not a kill, can undo what was just written.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                found = connection.execute("PRAGMA user_version").fetchone()[0]
                if found not in (0, FORMAT):
                    msg = f"{self.folder} has format {found}, not {FORMAT}: give another vector_cache"
                    raise EmbeddingCacheError(msg)
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            except BaseException:
                connection.close()
                raise
        _opened.add(self)
        return connection

    def _damaged(self, reason: str) -> EmbeddingCacheError:
        return EmbeddingCacheError(
            f"{self.folder / FILE} is damaged ({reason}): delete the folder, and its vectors are computed again"
        )

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_connection"):  # not where the arguments were refused
            self.close()


def _checked_folder(folder: object) -> Path:
    if not isinstance(folder, str | Path):
        msg = f"The folder of a vector cache is {folder!r}; it must be a path, as in vector_cache='vectors'"
        raise TypeError(msg)
    if not str(folder).strip():
        msg = "The folder of a vector cache is empty; name one, as in vector_cache='vectors'"
        raise ValueError(msg)
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        msg = f"{path} is a file; a vector cache needs a folder"
        raise NotADirectoryError(msg)
    return path


def _keys(space: str, texts: Sequence[str]) -> list[bytes]:
    # The space is hashed first, so that no prompt and text can be mistaken for another prompt and text.
    start = hashlib.blake2b(hashlib.blake2b(_encoded(space)).digest(), digest_size=_KEY_BYTES)
    keys = []
    for text in texts:
        digest = start.copy()
        digest.update(_encoded(text))
        keys.append(digest.digest())
    return keys


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# SQLite's locks do not survive a fork: the files are closed before it, and each process opens them again.
_lock = threading.Lock()
_opened: "weakref.WeakSet[EmbeddingCache]" = weakref.WeakSet()


def _before_fork() -> None:
    _lock.acquire()
    for cache in list(_opened):
        cache.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
