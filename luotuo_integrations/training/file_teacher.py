"""Vectors made earlier, in a file, as a teacher."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.training.teacher_calls import Estimate, TeacherError

VECTOR_FILES = (".jsonl", ".npy", ".safetensors")
ALLOWED_FILES = (
    'a .jsonl file of {"text", "embedding"} lines, or a .npy or .safetensors file (tensor "vectors") with texts.jsonl '
    "beside it, or the folder of such files"
)

_CHUNK = 2_048  # texts looked up at once


class FileTeacher:
    """Vectors made earlier, looked up by text; they serve queries and passages alike.

    Args:
        path: A .jsonl file of ``{"text": ..., "embedding": [...]}`` lines; a .npy file, or a .safetensors file with a
            tensor ``vectors``, (N, D), and beside it texts.jsonl with N lines ``{"text": ...}``; or the folder that
            holds texts.jsonl and one such file.
        licence: What may be done with the vectors.

    Raises:
        TeacherError: If a file is missing, damaged, or does not fit the other.
    """

    def __init__(
        self, path: str | Path, *, licence: str = "unknown: see the terms of whoever made the vectors"
    ) -> None:
        path = Path(path)
        if path.is_dir():
            path = _vector_file(path)
        if path.suffix not in VECTOR_FILES or not path.is_file():
            msg = f"There are no vectors at {path}. Give {ALLOWED_FILES}"
            raise TeacherError(msg)
        self.path = path
        self._licence = licence
        if path.suffix == ".jsonl":
            texts, self._vectors = _read_lines(path)
        else:
            texts, self._vectors = _read_texts(path.with_name("texts.jsonl")), _read_array(path)
        if self._vectors.ndim != 2 or len(self._vectors) != len(texts) or not len(texts):
            shape = self._vectors.shape
            msg = f"{path} holds vectors of shape {shape} for {len(texts)} texts; it must be ({len(texts)}, D), N > 0"
            raise TeacherError(msg)
        self._rows: dict[str, int] = {}
        for row, text in enumerate(texts):
            first = self._rows.setdefault(text, row)
            if first != row and not np.array_equal(self._vectors[first], self._vectors[row]):
                msg = f"{path} gives two different vectors, rows {first} and {row}, for one text: {text[:40]!r}"
                raise TeacherError(msg)

    @property
    def name(self) -> str:
        """The file's name and a hash of its texts and of a sample of its vectors."""
        digest = hashlib.blake2b(repr(self._vectors.shape).encode(), digest_size=8)
        for text in self._rows:
            digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        sample = np.linspace(0, len(self._vectors) - 1, num=min(256, len(self._vectors))).astype(np.int64)
        digest.update(np.ascontiguousarray(self._vectors[sample]).tobytes())
        return f"file:{self.path.name};{digest.hexdigest()}"

    @property
    def licence(self) -> str:
        """As given."""
        return self._licence

    @property
    def distinguishes_kinds(self) -> bool:
        """Never: a text has one vector."""
        return False

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Nothing is called, nothing costs."""
        check_texts(texts)
        return Estimate(len(texts), 0, 0, 0.0)

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:  # noqa: ARG002
        """Look texts up, 2,048 at a time.

        Raises:
            TeacherError: If the file lacks a text, or a vector is not finite or all zeros.
        """
        check_texts(texts)
        if missing := [text for text in texts if text not in self._rows]:
            msg = f"{self.path} has no vector for {len(missing)} of {len(texts)} texts, first {missing[0][:80]!r}"
            raise TeacherError(msg)
        return self._chunks(texts)

    def _chunks(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Vectors]]:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            vectors = np.asarray(self._vectors[[self._rows[text] for text in chunk]], dtype=np.float32)
            bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
            if len(bad):
                msg = f"{self.path} has NaN, infinity or only zeros for the text {chunk[bad[0]][:80]!r}"
                raise TeacherError(msg)
            yield list(range(start, start + len(chunk))), vectors


def _vector_file(folder: Path) -> Path:
    found = [path for path in sorted(folder.iterdir()) if path.suffix in VECTOR_FILES and path.name != "texts.jsonl"]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        msg = f"{folder} must hold one file of vectors beside texts.jsonl, but it holds {names}. Give {ALLOWED_FILES}"
        raise TeacherError(msg)
    return found[0]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbers and objects of a JSON Lines file, each with a "text" that is a string."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    item = json.loads(line)
                    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
                        msg = f'{path}, line {number} is {line.strip()[:80]!r}; it must be an object with a "text"'
                        raise TeacherError(msg)
                    yield number, item
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise TeacherError(msg) from error


def _read_texts(path: Path) -> list[str]:
    return [str(item["text"]) for _, item in _lines(path)]


def _read_lines(path: Path) -> tuple[list[str], Vectors]:
    texts: list[str] = []
    rows: list[Vectors] = []
    for number, item in _lines(path):
        try:
            row = np.asarray(item.get("embedding"), dtype=np.float32)
        except (TypeError, ValueError):
            row = np.empty((), dtype=np.float32)
        if row.ndim != 1 or not len(row) or (rows and len(row) != len(rows[0])):
            wanted = f"{len(rows[0])} numbers" if rows else "numbers"
            msg = f'{path}, line {number}: "embedding" must be a list of {wanted}'
            raise TeacherError(msg)
        texts.append(str(item["text"]))
        rows.append(row)
    return texts, np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)


def _read_array(path: Path) -> Vectors:
    """Vectors of a .npy file, which stays on the disk, or of a .safetensors file."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            from safetensors.numpy import load_file

            array = load_file(path)["vectors"]
    except KeyError as error:
        msg = f"{path} has no tensor 'vectors'"
        raise TeacherError(msg) from error
    except Exception as error:
        msg = f"{path} cannot be read: {error}"
        raise TeacherError(msg) from error
    if array.dtype.kind != "f":
        msg = f"{path} holds {array.dtype}; vectors must be floating-point numbers"
        raise TeacherError(msg)
    vectors: Vectors = array  # float16 and float64 too: rows become float32 when they are looked up
    return vectors
