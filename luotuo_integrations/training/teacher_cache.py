"""A teacher whose vectors are kept on disk, so that a run that was cut off asks for nothing twice."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from luotuo_integrations.progress import progress_bar
from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.training.teacher_calls import Estimate, TeacherError
from luotuo_integrations.training.teachers import Teacher

logger = logging.getLogger(__name__)

FORMAT = 1
_KEY_BYTES = 16
_CHUNK = 2_048


class CachedTeacher:
    """A teacher that asks another one only for what it has not asked before.

    A folder of its own for each teacher's name holds ``vectors.f32`` (float32 rows, raw), ``keys.bin`` (16 bytes a
    row: BLAKE2b of the teacher's name, the kind and the text) and ``meta.json``. The first two grow at their end alone,
    and a finished batch is on the disk, vectors before keys, before the next one is taken: whatever kills the process,
    at most the calls in flight are lost. Any number of processes may read; one at a time may ask and write.

    Args:
        teacher: The teacher to ask.
        folder: Where to keep the vectors of any number of teachers.
        max_cost: Refuse, before the first call, to ask for what is estimated to cost more, in the estimate's currency.
        show_progress: Show a progress bar on standard error.
        on_estimate: Called with the estimate before the first call; None writes it to the log.

    Raises:
        ValueError: If ``max_cost`` is below 0.
        TeacherError: If the folder was written in another format, or is damaged.
    """

    def __init__(
        self,
        teacher: Teacher,
        folder: str | Path,
        *,
        max_cost: float | None = None,
        show_progress: bool = False,
        on_estimate: Callable[[Estimate], None] | None = None,
    ) -> None:
        if max_cost is not None and not max_cost >= 0:
            msg = f"max_cost={max_cost} must be 0 or more, or None for no limit"
            raise ValueError(msg)
        self._teacher = teacher
        self._name = teacher.name
        self._max_cost = max_cost
        self._show_progress = show_progress
        self._on_estimate = on_estimate
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", self._name)[:60].strip("-.")
        self.folder = Path(folder) / f"{short}-{hashlib.blake2b(self._name.encode(), digest_size=8).hexdigest()}"
        self._rows: dict[bytes, int] = {}
        self._dimension: int | None = None
        self._load()

    def __len__(self) -> int:
        """Number of vectors kept."""
        return len(self._rows)

    @property
    def name(self) -> str:
        """The name of the teacher behind."""
        return self._name

    @property
    def licence(self) -> str:
        """The licence of the teacher behind."""
        return self._teacher.licence

    @property
    def distinguishes_kinds(self) -> bool:
        """Whether the teacher behind embeds a query otherwise than a passage."""
        return self._teacher.distinguishes_kinds

    def estimate(self, texts: Sequence[str], kinds: Kind | Sequence[Kind] = "passage") -> Estimate:
        """Tell what embedding the texts that are not kept will take, without any call.

        Args:
            texts: The texts.
            kinds: What they are, all or each: a text may be kept as the one and not as the other.
        """
        missing = self._missing(texts, kinds)
        return self._teacher.estimate([text for text, _ in missing.values()])

    def vectors(self, texts: Sequence[str], kinds: Kind | Sequence[Kind]) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Embed what is missing, then give everything without reading it into memory.

        Args:
            texts: Texts, repeated ones too.
            kinds: What they are: one kind for all, or one for each.

        Returns:
            All vectors that are kept, float32 (M, D), mapped from the disk and read-only, and the row of each text,
            int64 (N,): ``vectors[rows]`` are the vectors of the texts.

        Raises:
            TeacherError: If the cost is above ``max_cost`` or unknown under one, another process is writing, the
                teacher fails, or the dimension is not what it was. What had been finished is kept.
            OSError: If the disk is full; what had been finished is kept.
        """
        check_texts(texts)
        keys = self._keys(texts, kinds)
        if any(key not in self._rows for key in keys):
            with self._writing():
                self._embed_missing(self._missing(texts, kinds))
        rows = np.fromiter((self._rows[key] for key in keys), dtype=np.int64, count=len(keys))
        if not self._rows or self._dimension is None:
            return np.empty((0, self._dimension or 0), dtype=np.float32), rows
        shape = (len(self._rows), self._dimension)
        return np.memmap(self._vectors_path, dtype="<f4", mode="r", shape=shape), rows

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        """Embed what is missing, then give all vectors in order, 2,048 at a time."""
        vectors, rows = self.vectors(texts, kind)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            yield list(range(start, start + len(chunk))), np.array(vectors[chunk])

    @property
    def _vectors_path(self) -> Path:
        return self.folder / "vectors.f32"

    @property
    def _keys_path(self) -> Path:
        return self.folder / "keys.bin"

    @property
    def _meta_path(self) -> Path:
        return self.folder / "meta.json"

    def _keys(self, texts: Sequence[str], kinds: Kind | Sequence[Kind]) -> list[bytes]:
        starts = {
            kind: hashlib.blake2b(f"{self._name}\0{kind}\0".encode(), digest_size=_KEY_BYTES) for kind in get_args(Kind)
        }
        keys = []
        for text, kind in _with_kinds(texts, kinds):
            digest = starts[kind].copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

    def _missing(self, texts: Sequence[str], kinds: Kind | Sequence[Kind]) -> dict[bytes, tuple[str, Kind]]:
        """What is not kept: key to text and kind."""
        keyed = zip(self._keys(texts, kinds), _with_kinds(texts, kinds), strict=True)
        return {key: text for key, text in keyed if key not in self._rows}

    def _load(self) -> int:
        """Read which vectors are kept, as far as both files go, and return their number."""
        if not self._meta_path.is_file():
            if self._keys_path.is_file():
                msg = f"{self.folder} has lost its meta.json: delete the folder, and its vectors are asked for again"
                raise TeacherError(msg)
            return 0
        try:
            meta = json.loads(self._meta_path.read_text(encoding="utf-8"))
            found, name, dimension = meta["format"], meta["teacher"], _checked_dimension(meta["dimension"])
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self._meta_path} is damaged: delete the folder, and its vectors are asked for again"
            raise TeacherError(msg) from error
        if (found, name) != (FORMAT, self._name):
            msg = f"{self.folder} has format {found} of {name!r}, not {FORMAT} of {self._name!r}: take another folder"
            raise TeacherError(msg)
        self._dimension = dimension
        sizes = [path.stat().st_size if path.is_file() else 0 for path in (self._keys_path, self._vectors_path)]
        count = min(sizes[0] // _KEY_BYTES, sizes[1] // (4 * dimension))
        if count != len(self._rows):
            with self._keys_path.open("rb") as file:
                keys = file.read(count * _KEY_BYTES)
            self._rows = {keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]: row for row in range(count)}
            if len(self._rows) != count:
                msg = f"{self._keys_path} is damaged: delete the folder, and its vectors are asked for again"
                raise TeacherError(msg)
        return count

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder alone, and cut off what a killed process left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            msg = f"Another process or thread is writing to {self.folder}: wait for it, or give another folder"
            raise TeacherError(msg) from error
        try:
            count = self._load()
            if self._dimension is not None:
                self._cut(count)
            yield
        finally:
            lock.release()

    def _cut(self, count: int) -> None:
        for path, size in ((self._keys_path, _KEY_BYTES), (self._vectors_path, 4 * (self._dimension or 0))):
            if path.is_file() and path.stat().st_size != count * size:
                os.truncate(path, count * size)

    def _embed_missing(self, missing: dict[bytes, tuple[str, Kind]]) -> None:
        if not missing:  # another process has embedded them meanwhile
            return
        self._tell_estimate([text for text, _ in missing.values()])
        with progress_bar("Embedding", len(missing), enabled=self._show_progress) as advance:
            for kind in get_args(Kind):
                keys = [key for key, (_, its) in missing.items() if its == kind]
                texts = [missing[key][0] for key in keys]
                for positions, vectors in self._teacher.embed_batches(texts, kind) if texts else ():
                    self._append([keys[position] for position in positions], vectors)
                    advance(len(positions))
        left = [text for key, (text, _) in missing.items() if key not in self._rows]
        if left:
            msg = f"{self._name} gave no vector for {len(left)} texts, first {left[0][:40]!r}"
            raise TeacherError(msg)

    def _tell_estimate(self, texts: list[str]) -> None:
        estimate = self._teacher.estimate(texts)
        if self._on_estimate is not None:
            self._on_estimate(estimate)
        else:
            logger.info("%s: %s", self._name, estimate)
        if self._max_cost is None:
            return
        if estimate.cost is None:
            msg = (
                f"The cost of {self._name} is unknown, and max_cost={self._max_cost}: give price_per_million_tokens "
                "(--set teacher.price_per_million_tokens=0.02)"
            )
            raise TeacherError(msg)
        if estimate.cost > self._max_cost:
            msg = f"{self._name} would take {estimate}, above max_cost={self._max_cost}: raise it, or give fewer texts"
            raise TeacherError(msg)

    def _append(self, keys: list[bytes], vectors: Vectors) -> None:
        """Put a finished batch on the disk, vectors first: a row without a key does not count."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        if rows.ndim != 2 or len(rows) != len(keys) or not np.isfinite(rows).all():
            msg = f"{self._name} gave {rows.shape} for {len(keys)} texts, or numbers that are not finite"
            raise TeacherError(msg)
        if self._dimension is None:
            self._write_meta(rows.shape[1])
        if rows.shape[1] != self._dimension:
            msg = f"{self._name} gives {rows.shape[1]} numbers, but {self.folder} holds vectors of {self._dimension}: "
            raise TeacherError(msg + "the model behind the name has changed; give another folder, or delete this one")
        if any(key in self._rows for key in keys) or len(set(keys)) != len(keys):
            msg = f"{self._name} gave a vector twice"
            raise TeacherError(msg)
        count = len(self._rows)
        try:
            for path, data in ((self._vectors_path, rows.tobytes()), (self._keys_path, b"".join(keys))):
                with path.open("ab") as file:
                    _write(file, data)
        except OSError as error:
            self._cut(count)
            msg = f"{self.folder} cannot be written; {count} vectors are kept, and will not be asked for again"
            raise OSError(error.errno, f"{error.strerror}: {msg}") from error
        self._rows.update({key: count + index for index, key in enumerate(keys)})

    def _write_meta(self, dimension: int) -> None:
        meta = {"format": FORMAT, "teacher": self._name, "dimension": dimension}
        temporary = self._meta_path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            _write(file, json.dumps(meta, ensure_ascii=False, indent=2).encode())
        temporary.replace(self._meta_path)
        self._dimension = dimension


def _with_kinds(texts: Sequence[str], kinds: Kind | Sequence[Kind]) -> Iterator[tuple[str, Kind]]:
    return zip(texts, repeat(kinds) if isinstance(kinds, str) else kinds, strict=not isinstance(kinds, str))


def _checked_dimension(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        msg = f"dimension {value!r} must be a whole number above 0"
        raise ValueError(msg)
    return value


def _write(file: BinaryIO, data: bytes) -> None:
    """Write, and wait until it is on the disk."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
