"""What the `luotuo` commands read and print: JSON, a table, lines of text."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from luotuo_integrations.registry import CARDS, DEFAULT_MODEL

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from rich.text import Text

    from luotuo_integrations.folder_sync import SyncReport
    from luotuo_integrations.knowledge_base import SearchResult
    from luotuo_integrations.qa import Answer

_INTERNAL = "file_state"  # metadata of use to the next sync alone
_SNIPPET_CHARACTERS = 120
_MARKS = ("\ue000", "\ue001")  # of Unicode's private use: no text that is printed has them


def print_json(content: object) -> None:
    """Print a value as JSON, Chinese as it is."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def report_json(report: "SyncReport") -> dict[str, Any]:
    """What a sync did."""
    return {**vars(report), "problems": [problem._asdict() for problem in report.problems]}


def result_json(result: "SearchResult") -> dict[str, Any]:
    """One passage found; its relevance is null where its score is no cosine."""
    return {
        "score": result.score,
        "score_name": result.score_name,
        "relevance": result.relevance,
        **_passage_json(result.document),
    }


def marked_snippet(text: str, query: str, *, in_colour: bool) -> "Text":
    """The stretch of a passage that holds most of a query's words, with these marked, on one line.

    Args:
        text: The passage; the headings it begins with are left out, as its title has them.
        query: The query.
        in_colour: Mark by bold and colour; otherwise by 【】.
    """
    from rich.text import Text

    from luotuo_integrations.chinese_tokens import KeywordTokenizer
    from luotuo_integrations.passages import body_of
    from luotuo_integrations.snippets import snippet

    line = " ".join("".join(one for one in body_of(text) if one not in _MARKS).split())
    cut = snippet(line, query, KeywordTokenizer("bigrams"), _SNIPPET_CHARACTERS, _MARKS)
    if not in_colour:
        return Text(cut.replace(_MARKS[0], "【").replace(_MARKS[1], "】"))
    shown = Text()
    for number, piece in enumerate(cut.replace(_MARKS[1], _MARKS[0]).split(_MARKS[0])):
        shown.append(piece, "bold yellow" if number % 2 else None)
    return shown


def answer_json(answer: "Answer") -> dict[str, Any]:
    """An answer and its sources."""
    sources = [
        {"number": source.number, "score": source.score, "quote": source.quote, **_passage_json(source.document)}
        for source in answer.sources
    ]
    return {**vars(answer), "sources": sources}


def vectors_json(vectors: Iterable[Iterable[Any]]) -> str:
    """float32 vectors (N, D) as JSON, one a line, with no more digits than float32 has."""
    return "[" + ",\n".join("[" + ", ".join(map(str, vector)) + "]" for vector in vectors) + "]"


def models_table() -> list[str]:
    """The models that are known by name, a line each, then what must be known of some."""
    rows = [("model", "dimension", "tokens", "pooling", "licence", "")]
    notes: dict[str, list[str]] = {}
    for card in CARDS.values():
        mark = "(default)" if card.name == DEFAULT_MODEL else "(needs conversion)" if card.remote_code else ""
        rows.append((card.name, str(card.dimension), str(card.max_tokens), card.pooling, card.licence, mark))
        if card.note:
            notes.setdefault(card.note, []).append(card.name)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, "", *(f"{', '.join(names)}: {note}" for note, names in notes.items())]


def lines_of(data: bytes) -> list[str]:
    """Texts, one a line; an empty line is an empty text, so that row numbers are line numbers.

    Raises:
        DocumentError: If the bytes are no text.
    """
    from luotuo_integrations.parsing.decoding import decode

    return decode(data).removesuffix("\n").split("\n") if data else []


def _passage_json(document: "Document") -> dict[str, Any]:
    metadata = {key: value for key, value in document.metadata.items() if key != _INTERNAL}
    return {"text": document.page_content, "metadata": metadata}
