"""Lossless splitting of Chinese text into spans of at most a given size. No framework."""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

from luotuo_integrations.parsing.outline import CLOSING, FINDERS, Boundary, Finder, blocks, sentence_cuts

DEFAULT_CHUNK_SIZE = 400
_OVERLAP_SHARE = 0.15  # of chunk_size: 60 of 400

LengthFunction = Callable[[list[str]], list[int]]
"""Sizes of texts, all in one call: characters, or the tokens of a model."""


class Span(NamedTuple):
    """A chunk of a text, ``text[start:end]``.

    Attributes:
        start: Offset of its first character.
        end: Offset after its last character.
        headings: Titles of the headings above it, outermost first.
    """

    start: int
    end: int
    headings: tuple[str, ...] = ()


def count_characters(texts: list[str]) -> list[int]:
    """Sizes of texts in characters."""
    return [len(text) for text in texts]


def split_spans(
    text: str,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chunk_overlap: int | None = None,
    length: LengthFunction = count_characters,
) -> list[Span]:
    """Split a text into chunks of whole sentences.

    Nothing is lost or changed: outside the chunks there is only white space. A heading begins a chunk and stays with
    the text below it. Below that, a chunk ends at the best cut in its second half: an empty line or a numbered unit
    (第一条, 一、, （一）, 1.1), else a line end, else a sentence end. A sentence, list, table or code fence that fits
    in a chunk (below its heading, if it has one) is never cut; one that does not fit is cut at items or rows, at
    sentences, then at ；, at ，, at spaces, and in the last resort between any two characters. No chunk begins with
    a closing mark where that can be avoided.

    Args:
        text: Any text; blank text has no chunks.
        chunk_size: Largest size of a chunk, at least 1. Only a single character that is larger by itself exceeds it.
        chunk_overlap: Largest size of what a chunk repeats of the chunk before it, whole sentences under the same
            heading: 0 to chunk_size - 1. None means 15 % of chunk_size.
        length: Sizes of texts, one call for many. Sizes need not add up exactly: every chunk is measured.

    Returns:
        Spans in order.

    Raises:
        TypeError: If the text is not a string.
        ValueError: If chunk_size or chunk_overlap is out of range, or length returns a wrong number of sizes.
    """
    _check_text(text)
    overlap = checked_overlap(chunk_size, chunk_overlap)
    pieces, paths = _pieces(text)
    pieces = _fitted(text, pieces, chunk_size, length)
    groups = list(_packed(pieces, _gaps(text, pieces, length), chunk_size, overlap))
    spans = []
    for group in _verified(text, pieces, groups, chunk_size, length):
        start, end = _bounds(text, pieces, group)
        if start < end:
            spans.append(Span(start, end, paths[pieces[group.first].section]))
    return spans


def checked_overlap(chunk_size: int, chunk_overlap: int | None) -> int:
    """Check the two sizes of a splitter.

    Args:
        chunk_size: At least 1.
        chunk_overlap: 0 to chunk_size - 1, or None for 15 % of chunk_size.

    Returns:
        The overlap to use.

    Raises:
        ValueError: If one of them is out of range.
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        msg = f"chunk_size={chunk_size!r} is not allowed: give an integer from 1 up, for instance {DEFAULT_CHUNK_SIZE}"
        raise ValueError(msg)
    if chunk_overlap is None:
        return int(chunk_size * _OVERLAP_SHARE)
    if isinstance(chunk_overlap, bool) or not isinstance(chunk_overlap, int) or not 0 <= chunk_overlap < chunk_size:
        msg = f"chunk_overlap={chunk_overlap!r} is not allowed: give 0 to chunk_size - 1, here {chunk_size - 1}"
        raise ValueError(msg)
    return chunk_overlap


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        msg = f"text must be a string, got {type(text).__name__}: give one text, or use split_documents() for Documents"
        raise TypeError(msg)


# -- pieces: what is not cut unless it is too large ---------------------------------------------------------------


class _Piece(NamedTuple):
    start: int
    end: int
    boundary: Boundary
    section: int
    finders: tuple[Finder, ...]  # ways to cut it when it is too large, best first
    limit: int = 0
    size: int = -1  # not measured


_OPENING = "“‘「『（(【《〈［[{"


def _pieces(text: str) -> tuple[list[_Piece], list[tuple[str, ...]]]:
    """Sentences and whole blocks, which cover the text, and the heading path of each section."""
    pieces: list[_Piece] = []
    paths: list[tuple[str, ...]] = [()]
    path: list[tuple[int, str]] = []
    after_heading = False
    for block in blocks(text):
        finders = FINDERS[block.kind]
        if block.kind == "heading":
            path = [above for above in path if above[0] < block.level] + [(block.level, block.title)]
            titles = tuple(title for _, title in path if title)
            if after_heading:  # headings without text between them are one piece
                pieces[-1] = pieces[-1]._replace(end=block.end)
                paths[-1] = titles
            else:
                paths.append(titles)
                pieces.append(_Piece(block.start, block.end, Boundary.HEADING, len(paths) - 1, finders))
            after_heading = True
            continue
        boundary = Boundary.GLUE if after_heading else block.boundary
        whole = _Piece(block.start, block.end, boundary, len(paths) - 1, finders)
        pieces.extend(
            _cut_at(text, whole, sentence_cuts(text, block.start, block.end), finders)
            if block.kind == "text"
            else [whole]
        )
        after_heading = False
    return pieces, paths


def _cut_at(
    text: str, piece: _Piece, cuts: Iterator[tuple[int, Boundary]], finders: tuple[Finder, ...]
) -> list[_Piece]:
    """Parts of a piece, not yet measured. White space never makes a part of its own."""
    parts: list[_Piece] = []
    start, boundary = piece.start, piece.boundary
    for cut, next_boundary in (*cuts, (piece.end, piece.boundary)):
        if not text[start:cut].isspace():
            parts.append(piece._replace(start=start, end=cut, boundary=boundary, finders=finders, size=-1))
        elif parts:
            parts[-1] = parts[-1]._replace(end=cut)
        else:
            continue
        start, boundary = cut, next_boundary
    return parts


# -- sizes ---------------------------------------------------------------------------------------------------------


def _measured(texts: list[str], length: LengthFunction) -> list[int]:
    sizes = length(texts) if texts else []
    if len(sizes) != len(texts):
        msg = f"length() returned {len(sizes)} sizes for {len(texts)} texts: it must return one for each"
        raise ValueError(msg)
    return sizes


def _fitted(text: str, pieces: list[_Piece], chunk_size: int, length: LengthFunction) -> list[_Piece]:
    """Measure all pieces, and cut those that are too large until they fit. One call of length() a round."""
    while any(piece.size < 0 for piece in pieces):
        new = [index for index, piece in enumerate(pieces) if piece.size < 0]
        sizes = _measured([text[pieces[index].start : pieces[index].end].rstrip() for index in new], length)
        for index, size in zip(new, sizes, strict=True):
            pieces[index] = pieces[index]._replace(size=size)
        if pieces[0].limit == 0:  # the first round
            pieces = _with_limits(text, pieces, chunk_size)
        pieces = [part for piece in pieces for part in _broken(text, piece)]
    return pieces


def _with_limits(text: str, pieces: list[_Piece], chunk_size: int) -> list[_Piece]:
    """What follows a heading must fit in a chunk with it; a heading of more than half a chunk is ordinary text."""
    limited = []
    for index, piece in enumerate(pieces):
        limit, boundary = chunk_size, piece.boundary
        if boundary is Boundary.GLUE:
            heading = pieces[index - 1]
            room = chunk_size - heading.size - len(_white_after(text, heading))
            limit, boundary = (room, boundary) if 2 * room >= chunk_size else (chunk_size, Boundary.LINE)
        limited.append(piece._replace(limit=limit, boundary=boundary))
    return limited


def _broken(text: str, piece: _Piece) -> list[_Piece]:
    """The piece itself where it fits, else its parts, not yet measured."""
    if piece.size <= piece.limit:
        return [piece]
    for level, finder in enumerate(piece.finders):
        parts = _cut_at(text, piece, finder(text, piece.start, piece.end), piece.finders[level + 1 :])
        if len(parts) > 1:
            return parts
    end = piece.end - len(_white_after(text, piece))
    if end - piece.start <= 1:
        return [piece]
    return _cut_at(text, piece, _character_cuts(text, piece, end), ())


def _character_cuts(text: str, piece: _Piece, end: int) -> Iterator[tuple[int, Boundary]]:
    step = max(1, (end - piece.start) * piece.limit // piece.size)
    start = piece.start
    while start + step < end:
        latest = range(start + step, start, -1)
        good = (at for at in latest if _may_begin(text, at) and not _in_word(text, at))
        fair = (at for at in latest if _may_begin(text, at))
        start = next(good, None) or next(fair, start + step)
        yield start, Boundary.CHARACTER


def _may_begin(text: str, at: int) -> bool:
    """Not with a closing or combining mark, nor after an opening mark."""
    before, after = text[at - 1], text[at]
    combining = unicodedata.category(after).startswith("M") or "\u200d" in (before, after)
    return not (combining or after in CLOSING or before in _OPENING)


def _in_word(text: str, at: int) -> bool:
    """Inside a Latin word, a number, an address."""
    return all(character.isascii() and not character.isspace() for character in text[at - 1 : at + 1])


def _white_after(text: str, piece: _Piece) -> str:
    own = text[piece.start : piece.end]
    return own[len(own.rstrip()) :]


def _gaps(text: str, pieces: list[_Piece], length: LengthFunction) -> list[int]:
    """Size of the white space that ends each piece."""
    gaps = [_white_after(text, piece) for piece in pieces]
    kinds = sorted(set(gaps) - {""})
    sizes = dict(zip(kinds, _measured(kinds, length), strict=True))
    return [sizes.get(gap, 0) for gap in gaps]


# -- groups of pieces: the chunks ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    lead: int  # pieces[lead:first] repeat the end of the group before
    first: int
    stop: int


def _packed(pieces: list[_Piece], gaps: list[int], chunk_size: int, overlap: int) -> Iterator[_Group]:
    """Pack the pieces of each section, as many into a chunk as fit by the sum of their sizes."""
    before = [0]  # size of all pieces before each piece
    for piece, gap in zip(pieces, gaps, strict=True):
        before.append(before[-1] + piece.size + gap)
    through = [start + piece.size for start, piece in zip(before, pieces, strict=False)]  # the gap after it left out
    for _, members in groupby(range(len(pieces)), key=lambda index: pieces[index].section):
        indices = list(members)
        lead = first = indices[0]
        last = indices[-1] + 1
        while first < last:
            stop = bisect_right(through, before[lead] + chunk_size, first + 1, last)
            if stop < last:
                half = (before[lead] + through[stop - 1]) / 2
                stop = _best_stop(pieces, before, first, stop, half)
            yield _Group(lead, first, stop)
            if stop < last:
                lead = _overlap_start(
                    pieces, before, first, stop, max(before[stop] - overlap, through[stop] - chunk_size)
                )
            first = stop


def _best_stop(pieces: list[_Piece], before: list[int], first: int, stop: int, half: float) -> int:
    """The best place to end a chunk between half of it and stop; of equal ones the last."""
    best = stop
    for index in range(stop - 1, first, -1):
        if before[index] < half:
            break
        if pieces[index].boundary > pieces[best].boundary:
            best = index
    return best


def _overlap_start(pieces: list[_Piece], before: list[int], first: int, stop: int, earliest: int) -> int:
    """Where the chunk that goes on at stop begins: at a whole sentence, and after what only the chunk before has."""
    lead = stop
    if pieces[stop].boundary < Boundary.SENTENCE:
        return lead
    for index in range(stop - 1, first, -1):
        if before[index] < earliest:
            break
        if pieces[index].boundary >= Boundary.SENTENCE:
            lead = index
    return lead


def _verified(
    text: str, pieces: list[_Piece], groups: list[_Group], chunk_size: int, length: LengthFunction
) -> list[_Group]:
    """Measure the chunks themselves, because tokens do not add up exactly; cut those that are too large."""
    sizes: dict[_Group, int] = {}
    while new := [group for group in groups if group not in sizes]:
        texts = [text[slice(*_bounds(text, pieces, group))] for group in new]
        sizes.update(zip(new, _measured(texts, length), strict=True))
        groups = [
            part for group in groups for part in (_halves(pieces, group) if sizes[group] > chunk_size else [group])
        ]
    return groups


def _halves(pieces: list[_Piece], group: _Group) -> list[_Group]:
    """The group without its overlap; where it has none, two groups; where it is one piece, itself."""
    lead, first, stop = group
    if lead < first:
        return [_Group(first, first, stop)]
    if stop - first == 1:
        return [group]
    middle = (first + stop) / 2
    cut = max(range(first + 1, stop), key=lambda index: (pieces[index].boundary, -abs(index - middle)))
    return [_Group(first, first, cut), _Group(cut, cut, stop)]


def _bounds(text: str, pieces: list[_Piece], group: _Group) -> tuple[int, int]:
    start, end = pieces[group.lead].start, pieces[group.stop - 1].end
    chunk = text[start:end]
    return start + len(chunk) - len(chunk.lstrip()), start + len(chunk.rstrip())
