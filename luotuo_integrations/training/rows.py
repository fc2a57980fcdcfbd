"""Files of rows: JSON lines, JSON, CSV, TSV and Parquet, read one row at a time; the text formats .xz and .gz too."""

import codecs
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from luotuo_integrations._optional import require

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of the files that hold rows, in lower case; all but .parquet may be followed by .xz or .gz."""

_COMPRESSIONS = (".xz", ".gz")
_SAMPLE = 1 << 16  # bytes looked at to tell an encoding


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        number: Its line in the file, from 1; for JSON lists and Parquet files its place, from 1.
        place: File and number, for messages.
        fields: Names and values.
    """

    number: int
    place: str
    fields: Mapping[str, object]


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix that tells the format, in lower case: ".jsonl" for "a.jsonl.xz"; "" where there is none."""
    path = Path(path)
    inner = path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path
    suffix = inner.suffix.lower()
    # A Parquet file compresses itself.
    return path.suffix.lower() if suffix == ".parquet" else suffix


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, unpacked if its name ends with .xz or .gz.

    Raises:
        ValueError: If it is not what its name says.
    """
    with _unpacked(path) as file:
        return file.read()


def read_rows(path: Path, encoding: str | None = None) -> Iterator[Row]:
    """Read the rows of a file, holding one row at a time (of a .json list: all of them).

    JSON is UTF-8. A .json file is a list of objects, an object a line, or one object. The first line of CSV and TSV
    files names the fields; in TSV files quotation marks mean themselves, as published Chinese data sets have it.

    Args:
        path: A file whose suffix is one of :data:`ROW_SUFFIXES`.
        encoding: Of CSV and TSV files; None tells UTF-8, UTF-16 with a mark and GB18030 apart.

    Yields:
        The rows; blank lines are passed over.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is a .parquet file and the ``train`` extra is not installed.
        ValueError: If the suffix is another one, or a row cannot be read; the message names file and line.
    """
    suffix = suffix_of(path)
    if suffix not in ROW_SUFFIXES:
        allowed = ", ".join(ROW_SUFFIXES)
        msg = f"{path}: files that end with {path.suffix!r} have no rows that can be read; allowed are {allowed}"
        raise ValueError(msg)
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with _unpacked(path) as file:
        if suffix in (".csv", ".tsv"):
            yield from _cell_rows(path, file, encoding, suffix)
        elif suffix == ".json" and not _is_json_lines(file):
            yield from _json_rows(path, file)
        else:
            yield from _json_lines(path, file)


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked while it is read; an error that shows it to be damaged names it."""
    if not path.is_file():
        kind = ": it is a folder, name its files" if path.is_dir() else ""
        msg = f"There is no file {str(path)!r}{kind}"
        raise FileNotFoundError(msg)
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    try:
        with openers.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        msg = f"{path} is damaged, or not {path.suffix}: {error}. Fetch it anew"
        raise ValueError(msg) from error


def _json_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not (stripped := line.removeprefix(codecs.BOM_UTF8).strip()):
            continue
        place = f"{path}, line {number}"
        yield Row(number, place, _fields(_parsed(stripped, place), place))


def _is_json_lines(file: IO[bytes]) -> bool:
    """Whether the first line that is not blank is an object of its own."""
    first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
    file.seek(0)
    try:
        return isinstance(json.loads(first.removeprefix(codecs.BOM_UTF8)), dict)
    except ValueError:
        return False


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    whole = _parsed(file.read().removeprefix(codecs.BOM_UTF8), str(path))
    for number, item in enumerate(whole if isinstance(whole, list) else [whole], 1):
        place = f"{path}, item {number}"
        yield Row(number, place, _fields(item, place))


def _parsed(data: bytes, place: str) -> object:
    try:
        parsed: object = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        msg = f"{place}: byte {error.start} is not UTF-8, as JSON must be: convert the file to UTF-8"
        raise ValueError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{place} is not JSON ({error}): {_shown(data)}"
        raise ValueError(msg) from error
    return parsed


def _fields(item: object, place: str) -> Mapping[str, object]:
    if not isinstance(item, dict):
        msg = f'{place} is a JSON {type(item).__name__}; every row must be an object, as {{"text": "..."}}'
        raise ValueError(msg)
    return item


def _shown(data: bytes) -> str:
    return repr(data[:80].decode("utf-8", errors="replace")) + (" ..." if len(data) > 80 else "")


def _cell_rows(path: Path, file: IO[bytes], encoding: str | None, suffix: str) -> Iterator[Row]:
    encoding = encoding or _encoding_of(file)
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        msg = f"encoding={encoding!r} is unknown: give for instance 'utf-8', 'gb18030', 'big5' or 'utf-16'"
        raise ValueError(msg) from error
    lines = io.TextIOWrapper(file, encoding=encoding, newline="")
    # TSV files are rarely quoted: a lone quotation mark would swallow the lines after it.
    reader = (
        csv.DictReader(lines, strict=True)
        if suffix == ".csv"
        else csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    )
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if None in cells:
                msg = f"{place} has more cells than the first line has names ({', '.join(reader.fieldnames or ())})"
                raise ValueError(msg)
            yield Row(reader.line_num, place, cells)
    except UnicodeDecodeError as error:
        msg = f"{path}, after line {reader.line_num}: not {encoding}; pass its encoding, as encoding='big5'"
        raise ValueError(msg) from error
    except csv.Error as error:
        msg = f"{path}, line {reader.line_num}: {error}. Repair it, or write the rows as .jsonl"
        raise ValueError(msg) from error


def _encoding_of(file: IO[bytes]) -> str:
    sample = file.read(_SAMPLE)
    file.seek(0)
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        # The sample may end within a character: the decoder waits for the rest of it.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return "gb18030"
    return "utf-8-sig"


def _parquet_rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        msg = f"There is no file {str(path)!r}"
        raise FileNotFoundError(msg)
    parquet = require("pyarrow.parquet", extra="train")
    arrow = require("pyarrow", extra="train")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, f"{path}, row {number}", fields)
    except arrow.ArrowException as error:
        msg = f"{path} is no Parquet file, or damaged: {error}"
        raise ValueError(msg) from error
