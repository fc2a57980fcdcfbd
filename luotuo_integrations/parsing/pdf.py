"""Reader of PDF files: pages into one text with its lines joined again, and a report of pages that cannot be read."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

from luotuo_integrations._optional import require
from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.formats import PlainDocument, no_heading
from luotuo_integrations.parsing.outline import MARKER

logger = logging.getLogger(__name__)

_GARBLED_SHARE = 0.1  # of the characters of a page
_LATIN_SHARE = 0.3  # of accented Latin letters: text in a Chinese encoding that was taken for Latin-1
_ALMOST_NO_TEXT = 10  # characters on a page that has an image
_HEADER_SHARE = 0.3  # of the pages: a first or last line that recurs on so many is no text
_NUMBERED_HEADERS = 10  # pages: enough where the line has a number, as chapters have running titles of their own
_FULL_LINE = 0.7  # of the usual line width: a shorter line ends its paragraph
_USUAL_WIDTH = 0.9  # quantile of all line widths
_LARGER = 1.1  # times the size of most letters: a heading
_LONGEST_HEADING = 40  # characters; a longer line in large letters is ordinary text
_SHORTEST_FULL_LINE = 11  # columns
_TEXT_OPERATORS = 5  # on a page without text: so many cannot all show spaces
_MEANINGLESS = {"Co", "Cn", "Cs", "Cc"}  # Unicode categories: private, unassigned, surrogate, control
_HYPHEN = "-"

# List marks of the fonts Symbol and Wingdings; radicals to which some fonts map the characters that look alike.
_SYMBOL_BULLET = re.compile(r"^[ \t]*[\uf020-\uf0ff][ \t]*(?=[^\s\ue000-\uf8ff])", re.MULTILINE)
_RADICALS = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)} | dict(
    zip(
        map(ord, "⻄⻅⻆⻉⻋⻓⻔⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻧⻨⻩⻬⻮⻰"),
        "西见角贝车长门青韦页风飞食马骨鬼鱼鸟卤麦黄齐齿龙",
        strict=True,
    )
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNMAPPED = re.compile(r"\(cid:\d+\)")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_ENDS_PARAGRAPH = re.compile(r"[。！？!?…；;：:.][”’」』）)\]】]*$")
_LEADER = re.compile(r"[.．·…]{5}$")  # in a table of contents: dots before the page number
_ENDS_SENTENCE = re.compile(r"[。；;，,、：:.!！]$")
_NUMBERING = re.compile(r"[第附录\d.一二三四五六七八九十百零〇编篇章节、()（）]*")
_OCR_ADVICE = "recognise its text first, for instance with: ocrmypdf -l chi_sim in.pdf out.pdf"


class _Line(NamedTuple):
    text: str
    size: float  # of its smallest letters, in points; 0 where it is not known
    level: int = 0  # of a heading


def read_pdf(data: bytes) -> PlainDocument:
    """Turn a PDF file into one text.

    Lines that only the page width broke are joined: without a space between Chinese characters, without the hyphen in
    a Latin word, also across pages. Lines that recur at the head or foot of pages (running titles, page numbers) and
    tables of contents are left out. Titles of the file's bookmarks become headings; where it has no bookmarks, short
    lines in larger letters do. Radicals that stand for characters are replaced by them.

    Args:
        data: The file.

    Returns:
        Text, title, page starts, and the pages that cannot be read.

    Raises:
        ImportError: If pypdf is not installed.
        DocumentError: If the file is damaged, needs a password, or has no page with readable text.
    """
    pypdf = require("pypdf", extra="docs")
    failures = (pypdf.errors.PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError)
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        _unlock(reader, pypdf.errors.DependencyError)
        page_count = len(reader.pages)
    except DocumentError:
        raise
    except (*failures, RecursionError) as error:
        msg = f"it is not a readable PDF file ({error}): open it in a PDF reader and print it to PDF again"
        raise DocumentError(msg) from error
    pages: list[list[_Line]] = []
    bad_pages: list[tuple[int, str]] = []
    for number in range(1, page_count + 1):
        try:
            lines, reason = _page_lines(reader.pages[number - 1])
        except (*failures, RecursionError) as error:
            lines, reason = [], f"its content is damaged: {type(error).__name__}, {error}"
        pages.append([line for line in lines if not _is_contents_line(line.text)])
        if reason:
            bad_pages.append((number, reason))
    pages = _without_running_lines(pages)
    if not any(line.text for page in pages for line in page):
        found = f"page {bad_pages[0][0]}: {bad_pages[0][1]}" if bad_pages else "all pages are blank"
        msg = f"it has no readable text ({found}): {_OCR_ADVICE}"
        raise DocumentError(msg)
    try:
        titles = _bookmarks(reader)
    except (*failures, RecursionError) as error:
        logger.info("The bookmarks are damaged, so headings are told by the size of the letters: %s", error)
        titles = {}
    text, page_starts = _joined(_with_levels(pages, titles))
    return PlainDocument(text, _title(reader), page_starts, tuple(bad_pages))


def _unlock(reader: Any, no_decryption: type[Exception]) -> None:
    """Open a file that is encrypted but needs no password to be read, as many are."""
    advice = "save a copy without it, for instance with: qpdf --decrypt --password=... in.pdf out.pdf"
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            msg = f"it needs a password: {advice}"
            raise DocumentError(msg)
    except no_decryption as error:
        msg = f"it is encrypted with AES: pip install 'pypdf[crypto]', or {advice.replace('it', 'encryption', 1)}"
        raise DocumentError(msg) from error


# -- one page ------------------------------------------------------------------------------------------------------


def _page_lines(page: Any) -> tuple[list[_Line], str]:
    """Lines of a page, and why it is bad, or ""."""
    parts: list[tuple[str, float]] = []

    def note_size(text: str, page_matrix: list[float], matrix: list[float], _font: Any, size: float) -> None:
        # Where the text is turned by 90 degrees, its height is in the first numbers of a matrix.
        scale = abs((matrix[3] or matrix[1]) * (page_matrix[3] or page_matrix[1]))
        parts.append((text, round(size * scale, 1)))

    raw = page.extract_text(visitor_text=note_size)
    text = _SYMBOL_BULLET.sub("• ", raw)
    reason = _garbled(text)
    if reason:
        return [], reason
    characters = len("".join(text.split()))
    if characters < _ALMOST_NO_TEXT and _has_image(page.get("/Resources"), depth=2):
        reason = "it is an image without text"
    elif characters == 0 and _shown_texts(page) >= _TEXT_OPERATORS:
        reason = "its fonts do not say which characters they show"
    lines = _UNPRINTABLE.sub("", text).translate(_RADICALS).split("\n")
    return [_Line(*line) for line in zip(map(str.strip, lines), _line_sizes(parts, raw), strict=True)], reason


def _is_contents_line(line: str) -> bool:
    # Not one regular expression for the whole line: its time would grow with the square of the dots.
    before_number = line.rstrip("0123456789ivxlc")
    return before_number != line and _LEADER.search("".join(before_number.split())[-5:]) is not None


def _line_sizes(parts: list[tuple[str, float]], text: str) -> list[float]:
    """Size of the smallest letters of each line, in points; 0 where it is not known."""
    sizes = [0.0] * (text.count("\n") + 1)
    if "".join(part for part, _ in parts) != text:
        return sizes
    number = 0
    for part, size in parts:
        for index, piece in enumerate(part.split("\n")):
            number += index > 0
            if piece.strip():
                sizes[number] = min(size, sizes[number] or size)
    return sizes


def _garbled(text: str) -> str:
    """Why the characters of a page mean nothing, or ""."""
    visible = [character for character in text if not character.isspace()]
    if not visible:
        return ""
    bad = sum(character == "\ufffd" or unicodedata.category(character) in _MEANINGLESS for character in visible)
    bad += sum(len(match.group()) for match in _UNMAPPED.finditer(text))
    if bad > _GARBLED_SHARE * len(visible):
        return f"its text is garbled: {bad} of {len(visible)} characters mean nothing in Unicode"
    latin = sum("\xa1" <= character <= "\xff" for character in visible)
    if latin > _LATIN_SHARE * len(visible) and not _HAN.search(text):
        return f"its text is garbled: {latin} of {len(visible)} characters are accented Latin letters and signs"
    return ""


def _shown_texts(page: Any) -> int:
    contents = page.get_contents()
    return 0 if contents is None else len(re.findall(rb"\bT[jJ]\b", contents.get_data()))


def _has_image(resources: Any, depth: int) -> bool:
    objects = resources.get_object().get("/XObject") if resources is not None else None
    for reference in (objects.get_object() if objects is not None else {}).values():
        item = reference.get_object()
        if item.get("/Subtype") == "/Image":
            return True
        if depth and item.get("/Subtype") == "/Form" and _has_image(item.get("/Resources"), depth - 1):
            return True
    return False


# -- all pages -----------------------------------------------------------------------------------------------------


def _without_running_lines(pages: list[list[_Line]]) -> list[list[_Line]]:
    """Drop the lines at the head and foot of pages that differ only in numbers from page to page."""

    def edges(page: list[_Line]) -> dict[int, str]:
        filled = [index for index, line in enumerate(page) if line.text]
        return {index: re.sub(r"\d+|\b[ivxlc]+\b", "#", page[index].text) for index in (*filled[:2], *filled[-2:])}

    edges_of_pages = [edges(page) for page in pages]
    counts = Counter(key for keys in edges_of_pages for key in set(keys.values()))
    enough = max(3, _HEADER_SHARE * len(pages))
    numbered_enough = min(enough, _NUMBERED_HEADERS)
    running = {key for key, count in counts.items() if count >= (numbered_enough if "#" in key else enough)}
    running = {key for key in running if not _ENDS_PARAGRAPH.search(key[-8:])}
    return [
        [line for index, line in enumerate(page) if keys.get(index) not in running]
        for page, keys in zip(pages, edges_of_pages, strict=True)
    ]


def _bookmarks(reader: Any) -> dict[int, list[tuple[int, str]]]:
    """Levels and titles of the bookmarks of each page (from 0)."""
    found: dict[int, list[tuple[int, str]]] = {}

    def walk(items: list[Any], level: int) -> None:
        for item in items:
            if isinstance(item, list):
                walk(item, level + 1)
            elif (page := reader.get_destination_page_number(item)) is not None:
                found.setdefault(page, []).append((min(level, 6), "".join(str(item.title).split())))

    walk(reader.outline, 1)
    return found


def _with_levels(pages: list[list[_Line]], titles: dict[int, list[tuple[int, str]]]) -> list[list[_Line]]:
    """Mark the headings: lines that are bookmarks' titles, or, where none is, short lines in larger letters."""
    marked = [
        [line._replace(level=_bookmark_level(line.text, unused)) for line in page]
        for page, unused in ((page, list(titles.get(number, ()))) for number, page in enumerate(pages))
    ]
    if any(line.level for page in marked for line in page):
        return marked
    weights: Counter[float] = Counter()
    for page in pages:
        for line in page:
            weights[line.size] += len(line.text)
    body = weights.most_common(1)[0][0]

    def is_heading(line: _Line) -> bool:
        larger = body > 0 and line.size >= _LARGER * body
        is_title = len(line.text) <= _LONGEST_HEADING and any(map(str.isalpha, line.text))
        return larger and is_title and not _ENDS_SENTENCE.search(line.text)

    sizes = sorted({line.size for page in pages for line in page if is_heading(line)}, reverse=True)
    levels = {size: min(number, 6) for number, size in enumerate(sizes, start=1)}
    return [[line._replace(level=levels[line.size] if is_heading(line) else 0) for line in page] for page in pages]


def _bookmark_level(line: str, titles: list[tuple[int, str]]) -> int:
    """Level of the bookmark whose title is the line, with or without a number before it, or 0; it is used up."""
    flat = "".join(line.split())
    for level, title in titles:
        if title and flat.endswith(title) and _NUMBERING.fullmatch(flat[: -len(title)]):
            titles.remove((level, title))
            return level
    return 0


def _joined(pages: list[list[_Line]]) -> tuple[str, list[int]]:
    """The text of all pages, and where in it each page begins."""
    widths = sorted(_width(line.text) for page in pages for line in page if line.text)
    full = max(_SHORTEST_FULL_LINE, _FULL_LINE * widths[int(_USUAL_WIDTH * (len(widths) - 1))])
    parts: list[str] = []
    page_starts: list[int] = []
    length, previous = 0, ""  # characters so far; the line before, "" where its paragraph has ended
    for number, page in enumerate(pages):
        for line in _without_blank_ends(page):
            if not line.text:
                previous = ""
                continue
            joint = "\n" if line.level or not previous else _joint(previous, line.text, full)
            if joint == _HYPHEN:
                parts[-1], joint, length = parts[-1][:-1], "", length - 1
            if len(page_starts) == number:
                page_starts.append(length + len(joint) if parts else 0)
            text = "#" * line.level + " " + line.text if line.level else no_heading(line.text)
            parts += [joint if parts else "", text]
            length += len(parts[-2]) + len(parts[-1])
            previous = "" if line.level else line.text
        if len(page_starts) == number:  # a page without lines
            page_starts.append(length)
    return "".join(parts), page_starts


def _without_blank_ends(page: list[_Line]) -> Iterator[_Line]:
    filled = [index for index, line in enumerate(page) if line.text]
    yield from page[filled[0] : filled[-1] + 1] if filled else ()


def _joint(previous: str, line: str, full: float) -> str:
    """What stands between two lines of a page once they are joined: a line break, a space, nothing, or _HYPHEN."""
    if MARKER.match(line) or _ENDS_PARAGRAPH.search(previous[-8:]) or _width(previous) < full:
        return "\n"
    before, after = previous[-1], line[0]
    hyphenated = before == "-" and previous[-2:-1].isalpha() and after.isascii() and after.islower()
    if before == "\xad" or hyphenated:
        return _HYPHEN
    return " " if before.isascii() and after.isascii() else ""


def _width(line: str) -> int:
    """Columns that a line takes: a Chinese character is as wide as two Latin ones."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def _title(reader: Any) -> str:
    """The title in the file's properties, unless a program wrote a file name there."""
    title = " ".join(str((reader.metadata or {}).get("/Title") or "").split())
    is_file_name = re.search(r"\.(docx?|wps|pdf|xlsx?|pptx?|tex|indd)$|^(Microsoft|untitled)", title, re.IGNORECASE)
    return "" if is_file_name or _garbled(title) else title
