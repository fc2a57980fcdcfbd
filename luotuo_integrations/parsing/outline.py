"""The layout of a Chinese text: headings, paragraphs, lists, tables and code, as blocks that cover it. No framework."""

import re
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from typing import NamedTuple

# Closing marks: what stands before one belongs to it, so nothing may begin with one.
CLOSING_WIDE = "。！？…⋯，、；：”’」』）】》〉〕｝％‰"
CLOSING = CLOSING_WIDE + "!?,;:.)]}%"
_CLOSERS = r"[”’」』）)\]】〕｝}]*"  # without 》: in 《你好吗？》一书 no sentence ends


class Boundary(IntEnum):
    """How good a place to cut is, worst first. It is a property of the piece that begins there."""

    GLUE = 0  # between a heading and its text
    CHARACTER = 1
    SPACE = 2
    COMMA = 3  # ，、： and between "as follows:" and what follows
    SEMICOLON = 4
    LINE = 5  # a line break in an unfinished sentence, or after a label
    SENTENCE = 6
    NEWLINE = 7  # a line break after a finished sentence
    PARAGRAPH = 8  # an empty line, or a numbered unit such as 第一条
    HEADING = 9


class Block(NamedTuple):
    """A stretch of whole lines, with the empty lines that follow it.

    Attributes:
        kind: ``"heading"``, ``"text"``, ``"list"`` or ``"rows"`` (a table or a code fence).
        start: Offset of its first character.
        end: Offset after its last character; the next block starts there.
        boundary: How good a cut before the block is.
        line_count: Its lines, without the empty ones that follow.
        level: Depth of a heading, from 1; 0 for other kinds.
        title: Text of a heading; "" for other kinds.
    """

    kind: str
    start: int
    end: int
    boundary: Boundary
    line_count: int
    level: int = 0
    title: str = ""


class _Line(NamedTuple):
    start: int
    end: int
    kind: str


_HAN_NUMBER = "[一二三四五六七八九十百千零〇两]"
_NUMBER = rf"(?:{_HAN_NUMBER}|\d){{1,6}}"
_BLANK = r"[^\S\n]"  # any white space in a line: \u3000 and \xa0 too
_INDENT = rf"{_BLANK}*"
# "- x", "•x", "1. x", "1、x", "（1）x", "①x"; not "1.5" and not "2024."
_ITEM = rf"{_INDENT}(?:[-*+·–]{_BLANK}+|[•●○■◆▪‣]|\d{{1,3}}[.．)）、](?!\d){_INDENT}(?=\S)|[（(]\d{{1,3}}[)）]|[①-⑳])"
# "第一条 x" but not "第一条的规定"; "一、x"; "（一）x"; "1.1 x" but not "3.5 亿元"
_UNIT = (
    rf"{_INDENT}(?:第\s?{_NUMBER}\s?条(?![的之第、，。和或至到及所规中款项])|{_HAN_NUMBER}{{1,3}}、"
    rf"|[（(]{_HAN_NUMBER}{{1,3}}[)）]"
    rf"|\d{{1,2}}(?:\.\d{{1,2}}){{1,4}}{_BLANK}+(?![\d亿万千百元个人年月日米吨度倍次%％]))"
)
MARKER = re.compile(rf"{_ITEM}|{_UNIT}|{_INDENT}第\s?{_NUMBER}\s?[编篇章节](?:{_BLANK}|[：:])")
# "第一章 总则" and "第一章" alone on a line; not a sentence that begins with "第一章"
_CHAPTER = re.compile(
    rf"{_INDENT}第\s?{_NUMBER}\s?(?P<rank>[编篇章节])(?:(?:{_BLANK}|[：:])+[^\n。；！？|]{{1,40}}(?<![，：、,:.…]))?\s*$"
)
_DOT_LEADER = re.compile(r"[.…·]{3,}[ \t]*\d+\s*$")
_ATX = re.compile(rf" {{0,3}}(#{{1,6}}){_BLANK}+(\S.*)")
_RULE = re.compile(r"(={3,}|-{3,})$")
_LONGEST_TITLE = 60
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_LINE_KINDS = (
    ("blank", re.compile(r"\s*$")),
    ("fence", _FENCE),
    ("heading", _ATX),
    ("chapter", _CHAPTER),
    ("item", re.compile(_ITEM)),
    ("unit", re.compile(_UNIT)),
)
# One test for the first character decides that most lines, plain prose, are none of the kinds above.
_MAYBE_SPECIAL = re.compile(r"[\s`~#第\-*+•·●○■◆▪–‣\d（(①-⑳一二三四五六七八九十百千零〇两]|$")
_CHAPTER_LEVELS = {"编": 7, "篇": 7, "章": 8, "节": 9}  # below the six levels of "#"
# "一、账号与终端" and "（一）账号与密码", if they stand alone between empty lines
_NUMBERED_TITLE = re.compile(
    rf"{_INDENT}(?:(?P<comma>{_HAN_NUMBER}{{1,3}}、)|[（(]{_HAN_NUMBER}{{1,3}}[)）])[^\n，。；：！？,;:!?|]{{1,30}}\s*$"
)
_NUMBERED_LEVELS = {True: 10, False: 11}  # 一、 above （一）, both below 第一节
_FINISHED = re.compile(rf"[。！？…⋯!?；;.]{_CLOSERS}[\"']?\s*$")


def blocks(text: str) -> list[Block]:
    """Divide a text into blocks.

    Headings are Markdown's (``# x``, or underlined); on a line of their own 第一编, 第一章, 第一节; and short lines
    such as 一、总则 and （一）范围 between empty lines, if text follows and not the next number. Nothing inside a
    code fence is a heading.

    Args:
        text: Any text.

    Returns:
        Blocks in order. They cover the text from its first line that is not empty to its end.
    """
    lines = _lines(text)
    found: list[Block] = []
    last_line, blank = "", False
    index = next((i for i, line in enumerate(lines) if line.kind != "blank"), len(lines))
    while index < len(lines):
        kind, stop = _extent(text, lines, index)
        after = _skip_blank(lines, stop)
        first = lines[index]
        boundary = _boundary(kind, first.kind, found[-1] if found else None, last_line, blank)
        level, title = _heading(text[first.start : lines[stop - 1].end], first.kind) if kind == "heading" else (0, "")
        found.append(Block(kind, first.start, lines[after - 1].end, boundary, stop - index, level, title))
        last_line = text[lines[stop - 1].start : lines[stop - 1].end].rstrip()
        blank, index = after > stop, after
    return found


def _lines(text: str) -> list[_Line]:
    lines = []
    start = 0
    for line in text.split("\n"):
        end = min(start + len(line) + 1, len(text))
        if end > start:
            lines.append(_Line(start, end, _line_kind(line)))
        start = end
    return lines


def _line_kind(line: str) -> str:
    if _MAYBE_SPECIAL.match(line):
        for kind, pattern in _LINE_KINDS:
            if pattern.match(line):
                return "prose" if kind == "chapter" and _DOT_LEADER.search(line) else kind
    return "row" if " | " in line or line.lstrip().startswith("|") else "prose"


def _extent(text: str, lines: list[_Line], index: int) -> tuple[str, int]:
    """Kind of the block that begins at a line, and the index of the line after it (empty lines not counted)."""
    kind = lines[index].kind
    if kind in ("heading", "chapter") or (kind == "unit" and _is_numbered_title(text, lines, index)):
        return "heading", index + 1
    if kind == "fence":
        return "rows", _end_of_fence(text, lines, index)
    if kind == "item":
        return "list", _end_of_list(text, lines, index)
    if kind == "row" and index + 1 < len(lines) and lines[index + 1].kind == "row":
        stop = next((i for i in range(index, len(lines)) if lines[i].kind != "row"), len(lines))
        return "rows", stop
    if kind in ("prose", "row") and _is_underlined(text, lines, index):
        return "heading", index + 2
    stop = index + 1
    while stop < len(lines) and lines[stop].kind in ("prose", "row"):
        if lines[stop].kind == "row" and stop + 1 < len(lines) and lines[stop + 1].kind == "row":
            break
        stop += 1
    return "text", stop


def _is_underlined(text: str, lines: list[_Line], index: int) -> bool:
    """Whether a short line stands alone above a rule of === or ---; front matter and tables do not."""
    if index + 1 >= len(lines) or (index > 0 and lines[index - 1].kind != "blank"):
        return False
    title, rule = (text[line.start : line.end].rstrip() for line in lines[index : index + 2])
    is_title = len(title) <= _LONGEST_TITLE and not _FINISHED.search(title) and not _RULE.match(title)
    return is_title and _RULE.match(rule) is not None


def _is_numbered_title(text: str, lines: list[_Line], index: int) -> bool:
    """Whether a numbered line is the title of what follows, and not one of several short items."""
    title = _NUMBERED_TITLE.match(text[lines[index].start : lines[index].end])
    following = _skip_blank(lines, index + 1)
    if not title or following in (index + 1, len(lines)) or (index > 0 and lines[index - 1].kind != "blank"):
        return False
    next_title = _NUMBERED_TITLE.match(text[lines[following].start : lines[following].end])
    return next_title is None or (bool(title["comma"]) and not next_title["comma"])


def _end_of_fence(text: str, lines: list[_Line], index: int) -> int:
    opening = _FENCE.match(text, lines[index].start)
    assert opening is not None
    for stop in range(index + 1, len(lines)):
        if lines[stop].kind == "fence":
            closing = text[lines[stop].start : lines[stop].end].strip()
            if closing.startswith(opening[1]) and not closing.strip(opening[1][0]):
                return stop + 1
    return len(lines)  # an open fence reaches to the end, as in CommonMark


def _end_of_list(text: str, lines: list[_Line], index: int) -> int:
    stop = index + 1
    while stop < len(lines):
        upcoming = _skip_blank(lines, stop)
        if upcoming == len(lines):
            break
        line = lines[upcoming]
        indented = text.startswith(("  ", "\t"), line.start)
        if line.kind == "fence" and indented:
            stop = _end_of_fence(text, lines, upcoming)
        elif line.kind == "item" or (indented and line.kind in ("prose", "row", "unit")):
            stop = upcoming + 1
        else:
            break
    return stop


def _skip_blank(lines: list[_Line], index: int) -> int:
    while index < len(lines) and lines[index].kind == "blank":
        index += 1
    return index


def _boundary(kind: str, line_kind: str, previous: Block | None, last_line: str, blank: bool) -> Boundary:
    if kind == "heading" or previous is None:
        return Boundary.HEADING
    if last_line.endswith(("：", ":")):
        return Boundary.COMMA
    if blank:
        return Boundary.PARAGRAPH
    several_lines = previous.kind in ("list", "rows") and previous.line_count > 1
    if not several_lines and not _FINISHED.search(last_line[-20:]):
        return Boundary.PARAGRAPH if line_kind == "unit" else Boundary.LINE
    return Boundary.PARAGRAPH if line_kind in ("unit", "item") else Boundary.NEWLINE


def _heading(lines: str, line_kind: str) -> tuple[int, str]:
    """Level and title of a heading of one line, or of two where it is underlined."""
    if line_kind == "chapter":
        chapter = _CHAPTER.match(lines)
        assert chapter is not None
        return _CHAPTER_LEVELS[chapter["rank"]], " ".join(lines.split())
    if line_kind == "heading":
        atx = _ATX.match(lines)
        assert atx is not None
        title = atx[2].rstrip()
        unclosed = title.rstrip("#")  # "# x ##" is closed, "# C#" is not
        return len(atx[1]), (unclosed if unclosed.endswith((" ", "\t")) else title).strip(" \t*`")
    if line_kind == "unit":
        numbered = _NUMBERED_TITLE.match(lines)
        assert numbered is not None
        return _NUMBERED_LEVELS[bool(numbered["comma"])], lines.strip()
    title, rule = lines.split("\n")[:2]
    return 1 if rule.startswith("=") else 2, title.strip()


# -- cuts inside a block ---------------------------------------------------------------------------------------------

Finder = Callable[[str, int, int], Iterator[tuple[int, Boundary]]]
"""Cuts of ``text[start:end]`` of one sort, in order: the offset where the next part begins, and how good the cut is."""

# 。！？… with what follows them; ! and ? but not in "a!=b" or "/x?y=1"; the full stop of a Latin sentence.
_SENTENCE_END = re.compile(
    r"(?:[。！？…⋯][。！？…⋯!?]*|[!?]+(?![A-Za-z0-9_=&/\-\[])"
    r"|(?<=[A-Za-z0-9)][A-Za-z)\]])\.(?=[”\"’)\]]*\s+[“\"(]?[A-Z\u4e00-\u9fff]))" + _CLOSERS
)
_NEXT_IS_TEXT = r"(?=[\s\u3000-\u303f\u3400-\u9fff\uff00-\uffef])"
_WHITE = re.compile(r"\s*")


def _cuts(
    pattern: re.Pattern[str], boundary: Boundary, text: str, start: int, end: int
) -> Iterator[tuple[int, Boundary]]:
    for match in pattern.finditer(text, start, end):
        if start < match.end() < end and text[match.end()] not in CLOSING_WIDE:
            yield match.end(), boundary


def sentence_cuts(text: str, start: int, end: int) -> Iterator[tuple[int, Boundary]]:
    """Find where sentences end. Closing quotes and brackets, and white space, stay with the sentence before.

    Args:
        text: Any text.
        start: Offset where to begin.
        end: Offset where to stop.

    Yields:
        The offset of the next sentence, and whether a line ends before it.
    """
    quotes, counted = 0, start
    for match in _SENTENCE_END.finditer(text, start, end):
        cut = match.end()
        quotes += text.count('"', counted, cut)
        if quotes % 2 and text.startswith('"', cut):  # a straight quote closes only what was opened
            cut += 1
            quotes += 1
        counted = cut
        after = _after_white(text, cut, end)
        if after == end:
            return
        new_line = "\n" in text[cut:after]
        if text[after] not in (CLOSING_WIDE if new_line else CLOSING):
            yield after, Boundary.NEWLINE if new_line else Boundary.SENTENCE


def _after_white(text: str, start: int, end: int) -> int:
    match = _WHITE.match(text, start, end)
    return match.end() if match else start


_TEXT_FINDERS: tuple[Finder, ...] = tuple(
    partial(_cuts, re.compile(pattern), boundary)
    for pattern, boundary in (
        (r"\n\s*", Boundary.LINE),
        (rf"(?:；|;{_NEXT_IS_TEXT}){_CLOSERS}\s*", Boundary.SEMICOLON),
        (rf"(?:、|[，：](?!\d)|(?<!\d)[，：]|[,:]{_NEXT_IS_TEXT}){_CLOSERS}\s*", Boundary.COMMA),
        (r"\s+", Boundary.SPACE),
    )
)
FINDERS: dict[str, tuple[Finder, ...]] = {
    "heading": _TEXT_FINDERS,
    "text": _TEXT_FINDERS,
    "list": (
        partial(_cuts, re.compile(rf"^(?={_ITEM})", re.MULTILINE), Boundary.NEWLINE),
        sentence_cuts,
        *_TEXT_FINDERS,
    ),
    "rows": (partial(_cuts, re.compile(r"\n"), Boundary.NEWLINE), sentence_cuts, *_TEXT_FINDERS),
}
