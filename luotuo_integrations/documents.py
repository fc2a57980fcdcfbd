"""Files to LangChain Documents: text, Markdown, HTML, PDF and Word, one Document a file."""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from langchain_core.documents import Document

from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.decoding import decode
from luotuo_integrations.parsing.formats import PlainDocument, read_docx, read_html
from luotuo_integrations.parsing.pdf import read_pdf

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx")
"""Suffixes of the files that can be read, in lower case; in file names case does not matter."""

# Documents that users expect to be read: they are named when they are passed over, other files are not.
_UNSUPPORTED = (".doc", ".wps", ".rtf", ".odt", ".ppt", ".pptx", ".xls", ".xlsx", ".csv", ".epub", ".mobi", ".caj")
_MARKDOWN_TITLE = re.compile(r"^ {0,3}#{1,6}[ \t\u3000]+(\S.*)$", re.MULTILINE)
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad"


class Problem(NamedTuple):
    """A file, or a page of one, that could not be read.

    Attributes:
        source: The file, as in the metadata of Documents.
        reason: What is wrong and what to do.
        page: The page, from 1; None where it is the whole file.
    """

    source: str
    reason: str
    page: int | None = None


class LoadedDocuments(NamedTuple):
    """What :func:`load_documents` read, and what it could not read."""

    documents: list[Document]
    problems: list[Problem]


def load_documents(
    path: str | os.PathLike[str], *, encoding: str | None = None, suffixes: Sequence[str] = SUFFIXES
) -> LoadedDocuments:
    """Read a file, or all files below a folder. A bad file in a folder does not stop the others.

    Args:
        path: A file or a folder.
        encoding: Encoding of text and HTML files, for instance "big5"; None detects Unicode and GB18030.
        suffixes: Suffixes to read, some of :data:`SUFFIXES`.

    Returns:
        The documents in the order of their names, and the problems.

    Raises:
        DocumentError: If the path is a file that cannot be read, or a folder in which nothing can be read.
        ImportError: If the ``docs`` extra is needed and not installed.
        ValueError: If the path is "", or a suffix is not one that can be read.
    """
    if not os.fspath(path):
        msg = "path is '': give a file or a folder, '.' for the one that the program runs in"
        raise ValueError(msg)
    path = Path(path)
    documents: list[Document] = []
    problems: list[Problem] = []
    if path.is_file():
        return LoadedDocuments(load_file(path, encoding=encoding, on_problem=problems.append), problems)
    for file in iter_files(path, suffixes):
        try:
            documents += load_file(file, path, encoding, on_problem=problems.append)
        except DocumentError as error:  # noqa: PERF203  # one bad file must not stop the others
            logger.warning("Skipped: %s", error)
            problems.append(Problem(file.relative_to(path).as_posix(), str(error)))
    if not documents:
        raise DocumentError(_nothing_readable(path, suffixes, problems))
    return LoadedDocuments(documents, problems)


def iter_files(folder: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES) -> Iterator[Path]:
    """Find the files below a folder that can be read.

    Names that begin with ``.`` or ``~$`` are passed over, folders too. Links are followed, each folder once.

    Args:
        folder: The folder.
        suffixes: Suffixes to find, some of :data:`SUFFIXES`.

    Yields:
        Files, sorted by name within each folder; a folder's files before those of its folders.

    Raises:
        DocumentError: If the folder does not exist, is a file, or may not be read.
        ValueError: If a suffix is not one that can be read.
    """
    folder = Path(folder)
    unknown = [suffix for suffix in suffixes if suffix.lower() not in SUFFIXES]
    if unknown or isinstance(suffixes, str):
        msg = f"suffixes={suffixes!r} is not allowed: give a list with some of {', '.join(SUFFIXES)}"
        raise ValueError(msg)
    if not folder.is_dir():
        problem = "is a file: give its folder, or read it with load_file()" if folder.exists() else "does not exist"
        msg = f"The folder {str(folder)!r} {problem}"
        raise DocumentError(msg)
    wanted = {suffix.lower() for suffix in suffixes}
    passed_over = []
    for file in _walk(folder):
        suffix = file.suffix.lower()
        if suffix in wanted:
            yield file
        elif suffix in _UNSUPPORTED:
            passed_over.append(file.relative_to(folder).as_posix())
    if passed_over:
        logger.warning(
            "%d files are of kinds that cannot be read (convert them to .docx, .pdf or .md): %s",
            len(passed_over),
            ", ".join(passed_over[:20]) + (" ..." if len(passed_over) > 20 else ""),
        )


def load_file(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    encoding: str | None = None,
    *,
    on_problem: Callable[[Problem], None] | None = None,
) -> list[Document]:
    """Read one file.

    Text is kept as it is, except that lines end with a line feed. HTML and Word headings become lines that begin with
    ``#``, tables lines with `` | `` between the cells. Metadata: ``source``, ``title``, and for PDF files
    ``page_starts`` (offsets in the text at which pages begin), which ``ChineseTextSplitter`` turns into the ``page`` of
    each chunk.

    Args:
        path: The file; its suffix, one of :data:`SUFFIXES`, says what it is.
        root: The folder to which ``source`` is relative; None keeps the path as it is given.
        encoding: Encoding of a text or HTML file; None detects Unicode and GB18030. Not used for PDF and Word files.
        on_problem: Called for each page that cannot be read. They are logged in any case.

    Returns:
        One Document.

    Raises:
        DocumentError: If the file cannot be read or has no text.
        ImportError: If the ``docs`` extra is needed and not installed.
        ValueError: If the file is not below root.
    """
    path = Path(path)
    source = (path if root is None else path.relative_to(root)).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError as error:
        msg = f"Cannot read {source!r}: its name is not valid UTF-8. Rename it, for instance with convmv"
        raise DocumentError(msg) from error
    try:
        parsed = _parsed(path, encoding)
        if not parsed.text.strip().strip(_INVISIBLE):
            msg = "it is empty"
            raise DocumentError(msg)
    except DocumentError as error:
        msg = f"Cannot read {source}: {error}"
        raise DocumentError(msg) from error
    for page, reason in parsed.bad_pages:
        logger.warning("%s, page %d: %s", source, page, reason)
        if on_problem is not None:
            on_problem(Problem(source, reason, page))
    metadata: dict[str, object] = {"source": source, "title": parsed.title or path.stem}
    if parsed.page_starts is not None:
        metadata["page_starts"] = parsed.page_starts
    return [Document(page_content=parsed.text, metadata=metadata)]


def _parsed(path: Path, encoding: str | None) -> PlainDocument:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        msg = f"files that end with {suffix!r} cannot be read: convert it to one of {', '.join(SUFFIXES)}"
        raise DocumentError(msg)
    try:
        data = path.read_bytes()
    except OSError as error:
        advice = f": allow it with chmod u+r {path}" if isinstance(error, PermissionError) else ""
        msg = f"{error.strerror or error}{advice}"
        raise DocumentError(msg) from error
    if not data:
        msg = "it is empty (0 bytes)"
        raise DocumentError(msg)
    if suffix == ".pdf":
        return read_pdf(data)
    if suffix == ".docx":
        return read_docx(data)
    text = decode(data, encoding)
    if suffix in (".html", ".htm"):
        return read_html(text)
    title = _MARKDOWN_TITLE.search(text) if suffix != ".txt" else None
    return PlainDocument(text, title[1].strip(" \t#*`") if title else "")


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        real = current.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(current.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                msg = f"The folder {str(folder)!r} cannot be read: {error.strerror or error}"
                raise DocumentError(msg) from error
            logger.warning("Skipped the folder %s: %s", current, error.strerror or error)
            continue
        shown = [(entry, _mode(entry)) for entry in entries if not entry.name.startswith((".", "~$"))]
        # What cannot be looked at, as a broken link, is yielded: reading it says why.
        yield from (entry for entry, mode in shown if stat.S_ISREG(mode) or mode == 0)
        stack.extend(entry for entry, mode in reversed(shown) if stat.S_ISDIR(mode))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _nothing_readable(folder: Path, suffixes: Sequence[str], problems: list[Problem]) -> str:
    allowed = ", ".join(suffixes)
    if problems:
        first = problems[0].reason
        return f"None of the {len(problems)} files in {str(folder)!r} can be read; the first: {first}"
    found = Counter(file.suffix.lower() or "no suffix" for file in _walk(folder))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.most_common(10)) or "no files"
    return f"The folder {str(folder)!r} has no file that can be read: found {kinds}; allowed are {allowed}"
