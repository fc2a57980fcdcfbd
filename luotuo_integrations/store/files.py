"""A store's folder: numbered data files that never change, and a manifest that is renamed into place last.

::

    manifest.json                which files count, their sizes and SHA-256 checksums, and what the store is
    index-000003.faiss           vectors, or their codes
    vectors-000003.npy           whole vectors, float32, if the index holds codes of them only
    documents-000003.sqlite      documents
    keywords-000003.safetensors  the keyword index, if the store has one
    save.lock                    empty; lets one save at a time run in the folder

Whatever moment a save is interrupted at, the manifest names complete files: the new ones or the ones before.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luotuo_integrations.errors import StoreCorruptError, StoreMismatchError

FORMAT = "luotuo-faiss"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_LOCK = "save.lock"
_LOCK_SECONDS = 600.0
_NUMBERED = re.compile(
    r"(?:index-(\d{6,})\.faiss|documents-(\d{6,})\.sqlite|keywords-(\d{6,})\.safetensors|vectors-(\d{6,})\.npy)"
)
_BLOCK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """What a store's folder holds.

    Args:
        folder: The folder.
        number: Number of the save that wrote it; each save has a higher one.
        facts: What the store says of itself: metric, dimension, model and so on.
        files: Name of each part ("index.faiss", "vectors.npy", "documents.sqlite", "keywords.safetensors") ->
            {"name", "bytes", "sha256"}.
    """

    folder: Path
    number: int
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def path(self, part: str) -> Path | None:
        """File of a part, None if the store has no such part."""
        return self.folder / str(self.files[part]["name"]) if part in self.files else None


class StoreFolder:
    """Saves and opens the files of one store.

    Args:
        folder: The folder; any name, Chinese too. ``save`` creates it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)

    def save(self, facts: Mapping[str, Any], parts: Mapping[str, Callable[[Path], None]]) -> None:
        """Write a store; the one before stays readable until the new one is complete, and is then removed.

        Args:
            facts: JSON values for the manifest.
            parts: Name of each part -> function that writes it to a new file.

        Raises:
            OSError: If something cannot be written, for instance because the disk is full. What was there is untouched.
            StoreMismatchError: If the folder holds another program's manifest.json.
        """
        if self.path.is_file():
            raise NotADirectoryError(_is_a_file(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self.path / _LOCK):
            self._refuse_foreign()
            number = 1 + max((saved for _, saved in self._numbered()), default=0)
            written: list[Path] = []
            try:
                files = {}
                for part, write in parts.items():
                    stem, _, suffix = part.partition(".")
                    path = self.path / f"{stem}-{number:06d}.{suffix}"
                    written.append(path)
                    write(path)
                    _flush(path)
                    files[part] = {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
                self._replace_manifest({"number": number, "facts": dict(facts), "files": files})
            except BaseException as error:
                self._remove_unnamed(written)
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(self.path)  # a full disk alone does not tell whose files had no room
                raise
            _flush_folder(self.path)
            self._remove_unnamed([path for path, _ in self._numbered()])

    def load(self, build: Callable[[Manifest], T], *, verify: bool = False) -> T:
        """Open the store: check the manifest and the sizes of its files, then let ``build`` read them.

        Args:
            build: Makes the store from the manifest.
            verify: Compare the checksums too, which reads every byte.

        Raises:
            FileNotFoundError: If the folder holds no store.
            NotADirectoryError: If the path is a file.
            StoreCorruptError: If a file is missing, truncated or edited.
            StoreMismatchError: If the manifest is another program's, or of a newer version of this one.
        """
        while True:
            manifest = self.manifest()
            try:
                for entry in manifest.files.values():
                    _check_file(self.path / str(entry["name"]), entry, verify=verify)
                return build(manifest)
            except (StoreCorruptError, FileNotFoundError):
                # Another process may have saved meanwhile and removed these files: then read the newer ones.
                if self.manifest().number == manifest.number:
                    raise

    def manifest(self) -> Manifest:
        """Read and check the manifest; the errors are those of ``load``."""
        path = self.path / MANIFEST
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise self._no_manifest() from None
        except ValueError as error:
            msg = f"{path} is not JSON: {error}. Restore the folder, or build the store again"
            raise StoreCorruptError(msg) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            msg = f"{path} is not a manifest of this package (its format is not {FORMAT!r}); give another folder"
            raise StoreMismatchError(msg)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            msg = (
                f"{self.path} is in format version {version}, this release reads {FORMAT_VERSION}. "
                "Type: pip install --upgrade luotuo-integrations"
            )
            raise StoreMismatchError(msg)
        if content.get("sha256") != _manifest_sha256(content):
            msg = f"{path} has been edited or damaged. Restore the folder, or build the store again"
            raise StoreCorruptError(msg)
        return Manifest(self.path, content["number"], content["facts"], content["files"])

    def _no_manifest(self) -> Exception:
        if self.path.is_file():
            return NotADirectoryError(_is_a_file(self.path))
        if not self.path.exists():
            return FileNotFoundError(f"The folder {self.path} does not exist")
        if any(self._numbered()):
            return StoreCorruptError(f"{self.path} has lost its {MANIFEST}. Restore it, or build the store again")
        if (self.path / "index.pkl").exists():
            msg = f"{self.path} holds a store of LangChain's own FAISS. Type: import_langchain_faiss(folder, embedding)"
            return FileNotFoundError(msg)
        return FileNotFoundError(f"{self.path} holds no store: there is no {MANIFEST} in it")

    def _refuse_foreign(self) -> None:
        try:
            self.manifest()
        except (StoreCorruptError, FileNotFoundError):
            return  # a damaged or missing store is replaced

    def _numbered(self) -> Iterator[tuple[Path, int]]:
        for path in self.path.iterdir():
            match = _NUMBERED.fullmatch(path.name)
            if match:
                yield path, int(match[match.lastindex or 1])

    def _replace_manifest(self, content: dict[str, Any]) -> None:
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
        content["sha256"] = _manifest_sha256(content)
        temporary = self.path / f"{MANIFEST}.tmp"
        try:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            _flush(temporary)
            os.replace(temporary, self.path / MANIFEST)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _remove_unnamed(self, paths: Iterable[Path]) -> None:
        """Remove data files, except those that the manifest on the disk names."""
        try:
            named = {str(entry["name"]) for entry in self.manifest().files.values()}
        except (StoreCorruptError, FileNotFoundError):
            named = set()
        for path in paths:
            if path.name not in named:
                with suppress(OSError):  # on Windows a file that somebody reads cannot go; a later save removes it
                    path.unlink(missing_ok=True)


def _is_a_file(path: Path) -> str:
    return f"{path} is a file; a store is a folder: give the folder, for instance {str(path.parent / 'index')!r}"


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock on a file, between threads and processes; the system frees it even if this process is killed.

    SQLite's own file lock is used, because it works the same on every system.
    """
    try:
        connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        msg = f"{path} cannot be locked for saving: {error}. Is the disk full, or read-only, or another save stuck?"
        raise OSError(msg) from error
    with closing(connection):
        yield


def _check_file(path: Path, entry: Mapping[str, Any], *, verify: bool) -> None:
    if not path.exists():
        problem = "is missing"
    elif path.stat().st_size != entry["bytes"]:
        problem = f"has {path.stat().st_size} bytes instead of {entry['bytes']}"
    elif verify and _sha256(path) != entry["sha256"]:
        problem = "has been edited or damaged: its checksum differs"
    else:
        return
    msg = f"{path} {problem}. Restore the folder, or build the store again"
    raise StoreCorruptError(msg)


def _manifest_sha256(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file is on the disk, not only in the system's memory."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until a rename in a folder is on the disk, where the system can do so."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
