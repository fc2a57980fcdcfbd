"""What a knowledge base knows of its files: what they were when they were indexed, and which could not be read."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

UNREADABLE_FILE = "unreadable.json"
_BLOCK = 1 << 20


class FileState(NamedTuple):
    """All that decides the passages of a file; a file whose state is the same need not be read again.

    Attributes:
        sha256: Hash of its bytes; "" where they cannot be read.
        chunk_size: Largest passage in model tokens.
        encoding: Encoding that was asked for; "" for detection.
    """

    sha256: str
    chunk_size: int
    encoding: str

    def __str__(self) -> str:
        return f"{self.sha256} {self.chunk_size} {self.encoding}"

    @classmethod
    def parse(cls, text: str) -> "FileState":
        """Read back what ``str()`` wrote."""
        sha256, chunk_size, encoding = text.split(" ", 2)
        return cls(sha256, int(chunk_size), encoding)


def sha256_of(file: Path) -> str:
    """Hash of a file's bytes; "" if they cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""  # reading the document will say why
    return digest.hexdigest()


class UnreadableFiles:
    """Files that had no text, kept beside the index: a scanned book is not searched for text at every question.

    Args:
        folder: Folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / UNREADABLE_FILE
        self._saved = self._read()
        self._reasons = dict(self._saved)

    def reason(self, source: str, state: FileState) -> str | None:
        """Why a file in this state could not be read; None if that is not known of it."""
        known_state, reason = self._reasons.get(source, ("", ""))
        return reason if known_state == str(state) else None

    def add(self, source: str, state: FileState, reason: str) -> None:
        """Note that a file in this state cannot be read."""
        self._reasons[source] = (str(state), reason)

    def keep_only(self, sources: Mapping[str, object]) -> None:
        """Forget all other files."""
        self._reasons = {source: known for source, known in self._reasons.items() if source in sources}

    def discard(self, source: str) -> None:
        """Forget a file."""
        self._reasons.pop(source, None)

    def save(self) -> None:
        """Write what has changed.

        Raises:
            OSError: If it cannot be written.
        """
        if self._reasons == self._saved:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".partial")
        try:
            temporary.write_text(json.dumps(self._reasons, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self._path)  # noqa: PTH105
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._saved = dict(self._reasons)

    def _read(self) -> dict[str, tuple[str, str]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return {source: (str(state), str(reason)) for source, (state, reason) in content.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # nothing is lost: the files are read again
