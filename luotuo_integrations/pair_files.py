"""Files of questions and their answers: one JSON object a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luotuo_integrations.atomic_file import write_text_whole
from luotuo_integrations.errors import LuotuoError

# Names in use out there, the question's first.
FIELDS = (("query", "positive"), ("question", "answer"), ("query", "passage"), ("question", "positive"))


class PairFileError(LuotuoError, ValueError):
    """A line of a file of pairs cannot be used."""


@dataclass(frozen=True)
class Question:
    """A question, and how to tell which passages answer it.

    Attributes:
        query: The question.
        positive: The answering text; "" where only ids are known.
        source: The file that the answer stands in, as the passages' metadata have it; "" for any.
        ids: Ids of passages that answer it.
    """

    query: str
    positive: str = ""
    source: str = ""
    ids: tuple[str, ...] = ()


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read (question, answer text) from a .jsonl file; blank lines are passed over.

    Raises:
        PairFileError: If a line is no JSON object with two such fields, or one is blank; the message names the line.
        OSError: If the file cannot be read.
    """
    pairs = []
    for number, line, row in _rows(path):
        pair = _pair(row)
        if pair is None:
            msg = f"{path}, line {number} is {line[:80]!r}; it needs two texts that are not blank, named {_known()}"
            raise PairFileError(msg)
        pairs.append(pair)
    if not pairs:
        msg = f'{path} holds no pairs; give lines of {{"query": ..., "positive": ...}}'
        raise PairFileError(msg)
    return pairs


def read_questions(path: str | Path) -> list[Question]:
    """Read questions from a .jsonl file; blank lines are passed over.

    A line has the two texts of ``read_pairs``, or a question with ``id`` (a string) or ``ids`` (a list of them): the
    passages of a store that answer it. It may have both, and ``source``. Other fields are passed over.

    Raises:
        PairFileError: If a line is none of these; the message names it.
        OSError: If the file cannot be read.
    """
    questions = []
    for number, line, row in _rows(path):
        pair = _pair(row)
        ids = _ids(row, required=pair is None)
        source = row.get("source") if isinstance(row, dict) else None
        query = pair[0] if pair else _text(row, "query") or _text(row, "question")
        if not query or ids is None or not (pair or ids) or not isinstance(source, str | None):
            msg = (
                f"{path}, line {number} is {line[:80]!r}; it needs two texts that are not blank, named {_known()}; or "
                'a query with "id" (a string) or "ids" (a list of strings) of passages in the store. "source", where '
                "given, is a string"
            )
            raise PairFileError(msg)
        questions.append(Question(query, pair[1] if pair else "", source or "", ids))
    if not questions:
        msg = (
            f'{path} holds no questions; give lines of {{"query": ..., "positive": ...}} (luotuo questions makes some)'
        )
        raise PairFileError(msg)
    return questions


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, Chinese as it is; the file is whole or not there.

    Raises:
        OSError: If it cannot be written.
    """
    write_text_whole(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def _rows(path: str | Path) -> Iterator[tuple[int, str, Any]]:
    """(line number, line, what it holds) of each line that is not blank."""
    try:
        # By "\n" alone: splitlines() would cut at U+2028 too, which JSON allows inside a string.
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        msg = f"{path} is no text in UTF-8 ({error}); save it in UTF-8, a JSON object a line"
        raise PairFileError(msg) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            msg = f'{path}, line {number} is no JSON ({error}); a line is {{"query": ..., "positive": ...}}'
            raise PairFileError(msg) from error
        yield number, line, row


def _pair(row: object) -> tuple[str, str] | None:
    """The two texts of a row; None where they are not there, no texts, or blank."""
    names = next((pair for pair in FIELDS if isinstance(row, dict) and all(name in row for name in pair)), None)
    if names is None:
        return None
    first, second = (_text(row, name) for name in names)
    return (first, second) if first and second else None


def _ids(row: object, *, required: bool) -> tuple[str, ...] | None:
    """The ids that a row names; None where they are no strings.

    Beside an answering text ``id`` is often the question's own number, which is passed over.
    """
    if not isinstance(row, dict):
        return None
    given = row.get("ids", [])
    listed: list[Any] = list(given) if isinstance(given, list) else [None]
    if "id" in row and (required or isinstance(row["id"], str)):
        listed.append(row["id"])
    return tuple(listed) if all(isinstance(one, str) for one in listed) else None


def _text(row: object, name: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, str) and value.strip() else ""


def _known() -> str:
    return "; ".join(" and ".join(pair) for pair in FIELDS)
