"""Corpora to documents, one at a time: folders and files of text and rows, iterables, Hugging Face datasets."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.decoding import decode
from luotuo_integrations.training.records import Document, check_iterable
from luotuo_integrations.training.rows import ROW_SUFFIXES, read_bytes, read_rows, suffix_of

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
"""Suffixes of files that are one document each, in lower case; .xz or .gz may follow."""

TEXT_FIELDS = ("text", "content", "body", "article", "passage", "正文", "内容", "文本")
"""Names of the field with the text, the surer ones first; case does not matter."""

_ID_FIELDS = ("id", "doc_id", "document_id", "url", "title", "标题")

Source: TypeAlias = str | os.PathLike[str] | Iterable[object]


class _File(NamedTuple):
    """A file to read; its ids are relative to root. One that the caller named must not be skipped."""

    path: Path
    root: Path
    named: bool


def read_documents(
    source: Source, *, text_field: str | None = None, limit: int | None = None, encoding: str | None = None
) -> Iterator[Document]:
    """Read the documents of a corpus, holding one at a time.

    Args:
        source: A file, a folder (with those below it; names that begin with "." are passed over), a list of them, or an
            iterable of texts, mappings or documents, as one split of a Hugging Face dataset, streaming or not. A list
            of strings is one of paths if the first of them exists or ends as such a file; Path objects always are.
            Files are .txt and .md, one document each, and .jsonl, .json, .csv, .tsv and .parquet, one document a row;
            all but .parquet may be packed by .xz or .gz.
        text_field: Field of a row that holds the text; None takes the first of :data:`TEXT_FIELDS` that is there.
        limit: Read no more than this many documents, at least 1; None reads all.
        encoding: Of text, CSV and TSV files; None detects UTF-8, UTF-16 with a mark, GB18030, in text files Big5 too.

    Returns:
        An iterator of documents; a blank text is a document too. An id is the file, below the folder that was given,
        with "#" and the row's id, title or line where it has rows; for iterables the id, the title or the index.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ImportError: If a .parquet file is read and the ``train`` extra is not installed.
        ValueError: If a folder has nothing to read or limit is below 1; while reading, if a file is no text, a row has
            no text, or nothing could be read. The message names file and line, or the index from 0.
    """
    if limit is not None and limit < 1:
        msg = f"limit={limit} must be at least 1, or None for all documents"
        raise ValueError(msg)
    check_iterable(source)
    if isinstance(source, str | os.PathLike):
        source = [source]
    elif not (isinstance(source, Sequence) and source and _is_path(source[0])):
        return islice(_item_documents(source, text_field), limit)
    paths = [_existing(path) for path in source]
    files = [file for path in paths for file in _files(path)]
    return islice(_file_documents(files, text_field, encoding), limit)


def _is_path(item: object) -> bool:
    """Whether the first item of a list is a path: the list may also be one of texts."""
    if not isinstance(item, str):
        return isinstance(item, os.PathLike)
    if "\n" in item or not item.strip():
        return False
    try:
        return _is_readable(item) or Path(item).exists()
    except (OSError, ValueError):  # too long for a name, or with characters that no name has
        return False


def _existing(item: object) -> Path:
    if not isinstance(item, str | os.PathLike) or not os.fspath(item):
        msg = f"{item!r} is no path: give files and folders, or texts, not both in one list"
        raise ValueError(msg)
    path = Path(item)
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        msg = f"There is no file or folder {str(path)[:200]!r}. To read a text itself, give a list: [text]"
        raise FileNotFoundError(msg)
    return path


def _files(path: Path) -> list[_File]:
    """The path itself if it is a file, or the files below it that can be read."""
    allowed = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
    if not path.is_dir():
        if not _is_readable(path):
            msg = f"{path}: the suffix tells how to read a file; allowed are {allowed}: rename it, or convert it"
            raise ValueError(msg)
        return [_File(path, path.parent, named=True)]
    found = [file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path)) and file.is_file()]
    readable = [_File(file, path, named=False) for file in found if _is_readable(file)]
    suffixes = Counter(file.suffix.lower() or "no suffix" for file in found if not _is_readable(file))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(10)) or "no files"
    if not readable:
        msg = f"The folder {str(path)!r} has no file that can be read: found {kinds}; allowed are {allowed}"
        raise ValueError(msg)
    if suffixes:
        logger.warning("Skipped %d files in %s: %s", suffixes.total(), path, kinds)
    return readable


def _is_readable(path: str | os.PathLike[str]) -> bool:
    return suffix_of(path) in TEXT_SUFFIXES + ROW_SUFFIXES


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_documents(files: Sequence[_File], text_field: str | None, encoding: str | None) -> Iterator[Document]:
    bad: list[str] = []
    read = 0
    for file, root, named in files:
        name = file.relative_to(root).as_posix()
        if suffix_of(file) not in TEXT_SUFFIXES:
            for row in read_rows(file, encoding):
                read += 1
                yield _document(row.fields, text_field, row.place, f"{name}#", str(row.number))
            continue
        try:
            document = Document(name, decode(read_bytes(file), encoding))
        except DocumentError as error:
            bad.append(f"Cannot read {file}: {error}")
            if named:
                raise ValueError(bad[-1]) from error
            continue
        read += 1
        yield document
    # A bad file in a folder must not stop the others; where there are no others, it is an error.
    if bad and not read:
        msg = f"None of the {len(bad)} text files is text. {bad[0]}"
        raise ValueError(msg)
    if bad:
        logger.warning("Skipped %d files that are no text. %s", len(bad), bad[0])


def _item_documents(items: Iterable[object], text_field: str | None) -> Iterator[Document]:
    for index, item in enumerate(items):
        if isinstance(item, Document):
            yield item
        elif isinstance(item, str):
            yield Document(str(index), item)
        elif isinstance(item, Mapping):
            yield _document(item, text_field, f"Index {index}", "", str(index))
        else:
            shown = f"{type(item).__name__}: {str(item)[:80]!r}"
            msg = f"Index {index} is {shown}; every item must be a text, or a mapping as {{'text': '...'}}"
            raise ValueError(msg)


def _document(row: Mapping[str, object], text_field: str | None, place: str, prefix: str, number: str) -> Document:
    """The document of a row; its id is the prefix and what the row says, or its number."""
    lowered = {str(name).strip().lower(): name for name in row}
    wanted = TEXT_FIELDS if text_field is None else (text_field.strip().lower(),)
    field = next((lowered[name] for name in wanted if name in lowered), None)
    if field is None:
        fields = ", ".join(map(str, row)) or "none"
        looked = "none of them is " + ", ".join(TEXT_FIELDS) if text_field is None else f"none is {text_field!r}"
        msg = f"{place}: the fields are {fields}; {looked}. Name the one with the text: text_field='...'"
        raise ValueError(msg)
    text = row[field]
    if not isinstance(text, str):
        shown = "missing or null" if text is None else f"{type(text).__name__}: {str(text)[:80]!r}"
        msg = f"{place}: {field!r} is {shown}; it must be a text, or the row left out"
        raise ValueError(msg)
    given = (row[lowered[name]] for name in _ID_FIELDS if name in lowered and lowered[name] != field)
    own = next((str(value) for value in given if value is not None and str(value).strip()), number)
    return Document(prefix + own, text)
