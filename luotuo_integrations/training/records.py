"""Records to train on: pairs, triplets and scored pairs, from files, mappings and Hugging Face datasets."""

import hashlib
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from luotuo_integrations.training.rows import read_rows


@dataclass(frozen=True, slots=True)
class Document:
    """A text to make pairs of.

    Attributes:
        id: Stays the same when the corpus grows: it decides on which side of a split the document stands.
        text: Any text.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage that answers it; in distillation the front and the back half of an article.

    Attributes:
        query: Not blank.
        positive: Not blank.
        document: Records of one document stand on the same side of a split; "" for none.
    """

    query: str
    positive: str
    document: str = ""


@dataclass(frozen=True, slots=True)
class Triplet:
    """A query, a passage that answers it, and passages that do not.

    Attributes:
        query: Not blank.
        positive: Not blank.
        negatives: At least one, none blank.
        document: As in :class:`Pair`.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    document: str = ""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how similar they are.

    Attributes:
        first: Not blank.
        second: Not blank.
        score: Finite; higher is more similar, on any scale.
        document: As in :class:`Pair`.
    """

    first: str
    second: str
    score: float
    document: str = ""


Record: TypeAlias = Pair | Triplet | ScoredPair

# The names in use, the surer ones first: a row with a query and a title is a query's.
_PAIRS = (
    ("text", "text_pos"),
    ("query", "positive"),
    ("query", "positives"),
    ("query", "pos"),
    ("anchor", "positive"),
)
# With a label they are scored: it says whether the passage answers the question. Other scores are votes or ranks.
_JUDGED = (
    ("query", "passage"),
    ("query", "answer"),
    ("query", "title"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "answer"),
)
# Here a label is a topic or a grade of the text.
_LAST_PAIRS = (("title", "body"), ("title", "content"), ("title", "text"), ("instruction", "output"))
_SCORED = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("text_a", "text_b"),
    ("first", "second"),
    ("query1", "query2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
_LABELS = ("label", "score", "similarity", "similarity_score")
_NEGATIVES = re.compile(r"(text_neg|hard_negatives?|negatives?|negs?)(_?\d+)?")
_DOCUMENTS = ("document", "source_document", "document_id", "doc_id")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Names(NamedTuple):
    """Which fields of a row hold what, in the spelling of the row."""

    kind: type[Record]
    first: str
    second: str
    negatives: tuple[str, ...]
    label: str
    document: str
    addition: str  # Alpaca's "input", which completes its "instruction"


def record_type(fields: Collection[str]) -> type[Record]:
    """Tell from the names of a row's fields what record the row is. Case does not matter.

    Args:
        fields: The names.

    Returns:
        :class:`Pair`, :class:`Triplet` (if there is a field for negatives) or :class:`ScoredPair`.

    Raises:
        ValueError: If the names are unknown; the message lists those that are known.
    """
    return _names(tuple(fields)).kind


def records_of(row: Mapping[str, object], *, place: str = "The row") -> list[Record]:
    """Turn a row into records: one for each of its positives, which may be a text or a list of texts.

    Args:
        row: Names and values. Other fields than those needed are passed over. Without a field ``document``,
            ``source_document``, ``document_id`` or ``doc_id`` the document is a hash of the positive (or second)
            text, so that equal passages stand on the same side of a split.
        place: Where the row stands, for messages.

    Returns:
        Pairs, triplets (if the row has negatives that are not null or empty) or scored pairs.

    Raises:
        ValueError: If names are unknown, a field is missing or null, a text is blank or no string, a label no number.
    """
    try:
        names = _names(tuple(row))
    except ValueError as error:
        msg = f"{place}: {error}"
        raise ValueError(msg) from error
    firsts = _texts(row, names.first, place)
    if len(firsts) != 1:
        msg = f"{place}: {names.first!r} is a list of {len(firsts)} texts; give one"
        raise ValueError(msg)
    first = firsts[0]
    if names.addition and isinstance(addition := row[names.addition], str) and addition.strip():
        first = f"{first}\n{addition}"
    seconds = _texts(row, names.second, place)
    if not seconds:
        msg = f"{place}: {names.second!r} is an empty list; give at least one text, or leave the row out"
        raise ValueError(msg)
    given = row[names.document] if names.document else None
    documents = [_digest(second) if given is None else str(given) for second in seconds]
    if names.label:
        score = _score(row, names.label, place)
        return [ScoredPair(first, second, score, own) for second, own in zip(seconds, documents, strict=True)]
    # Null, and an empty cell in CSV files, is how tables write that a row has none.
    filled = [name for name in names.negatives if row[name] is not None and row[name] != ""]
    if negatives := tuple(text for name in filled for text in _texts(row, name, place)):
        return [Triplet(first, second, negatives, own) for second, own in zip(seconds, documents, strict=True)]
    return [Pair(first, second, own) for second, own in zip(seconds, documents, strict=True)]


def read_records(
    source: str | os.PathLike[str] | Iterable[object], *, limit: int | None = None, encoding: str | None = None
) -> list[Record]:
    """Read the records of one source.

    Args:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet; the text formats also with .xz or .gz), or an iterable of
            mappings or of records, as a list, a generator or one split of a Hugging Face dataset, streaming or not.
        limit: Read no more than this many records, at least 1; None reads all.
        encoding: Of CSV and TSV files; None detects UTF-8, UTF-16 and GB18030.

    Returns:
        At least one record, all of the same kind.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is a .parquet file and the ``train`` extra is not installed.
        ValueError: If a row cannot be read (see :func:`records_of`), rows are of different kinds, or there is none. The
            message names file and line, or the index from 0.
    """
    if limit is not None and limit < 1:
        msg = f"limit={limit} must be at least 1, or None for all records"
        raise ValueError(msg)
    if isinstance(source, str | os.PathLike):
        groups = (records_of(row.fields, place=row.place) for row in read_rows(Path(source), encoding))
    else:
        check_iterable(source)
        groups = (_item_records(item, f"Index {index}") for index, item in enumerate(source))
    records: list[Record] = []
    for group in groups:
        if records and type(group[0]) is not type(records[0]):
            raise ValueError(_mixed(len(records), records[0], group[0]))
        records += group
        # Stop before the next row is asked for: a stream may be slow, or endless.
        if limit is not None and len(records) >= limit:
            break
    if not records:
        shown = repr(str(source)) if isinstance(source, str | os.PathLike) else f"The {type(source).__name__}"
        msg = f"{shown} has no records: give rows such as {{'query': '...', 'positive': '...'}}"
        raise ValueError(msg)
    return records[:limit]


def texts_of(record: Record) -> Iterator[str]:
    """All texts of a record: query, positive and negatives, or first and second."""
    if isinstance(record, ScoredPair):
        yield from (record.first, record.second)
        return
    yield from (record.query, record.positive)
    if isinstance(record, Triplet):
        yield from record.negatives


def check_iterable(source: object) -> None:
    """Refuse what has no rows in order: a mapping, as a Hugging Face dataset with several splits, or a number.

    Raises:
        ValueError: If source is a mapping or not iterable.
    """
    if isinstance(source, Mapping):
        names = ", ".join(map(repr, list(source)[:10]))
        msg = f"A {type(source).__name__} with {names} has no rows: give one split, as dataset['train'], or a list"
        raise ValueError(msg)
    if not isinstance(source, Iterable | os.PathLike) or isinstance(source, bytes):
        msg = f"A {type(source).__name__} cannot be read: give a file, a list or an iterable"
        raise ValueError(msg)


@lru_cache(maxsize=256)
def _names(fields: tuple[str, ...]) -> _Names:
    spelled = {str(field).strip().lower(): field for field in fields}
    label = next((spelled[name] for name in _LABELS if name in spelled), "")
    document = next((spelled[name] for name in _DOCUMENTS if name in spelled), "")
    negatives = tuple(field for name, field in spelled.items() if _NEGATIVES.fullmatch(name))
    for sets, scored in ((_PAIRS, ""), (_SCORED, label), (_JUDGED, spelled.get("label", "")), (_LAST_PAIRS, "")):
        for first, second in sets:
            if first not in spelled or second not in spelled or (sets is _SCORED and not scored):
                continue
            kind = ScoredPair if scored else Triplet if negatives else Pair
            addition = spelled.get("input", "") if first == "instruction" else ""
            return _Names(kind, spelled[first], spelled[second], negatives, scored, document, addition)
    raise ValueError(_unknown(fields))


def _unknown(fields: Collection[str]) -> str:
    def listed(sets: tuple[tuple[str, str], ...]) -> str:
        return ", ".join(f"{first}+{second}" for first, second in sets)

    given = ", ".join(map(str, fields)) or "none"
    return (
        f"the fields are {given}; allowed are, for pairs, {listed(_PAIRS + _JUDGED + _LAST_PAIRS)}, for triplets the "
        f"same with negative or negatives, for scored pairs {listed(_SCORED)} with label or score. "
        "Rename yours: in a CSV or TSV file in the first line, in a Hugging Face dataset by "
        f"dataset.rename_columns({{{next(iter(fields), 'name')!r}: 'query', ...}})"
    )


def _texts(row: Mapping[str, object], name: str, place: str) -> list[str]:
    """The texts of a field: its string, or the strings of its list."""
    value = row[name]
    texts: list[str] = []
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            shown = "missing or null" if text is None else f"{type(text).__name__}: {str(text)[:80]!r}"
            msg = f"{place}: {name!r} is {shown}; it must be a text"
            raise ValueError(msg)
        _check_text(text, name, place)
        texts.append(text)
    return texts


def _check_text(text: str, name: str, place: str) -> None:
    if not text.strip():
        msg = f"{place}: {name!r} is blank: fill it in, or leave the row out"
        raise ValueError(msg)
    if _SURROGATE.search(text):
        msg = f"{place}: {name!r} holds half a character (a lone surrogate), which no file can store: repair it"
        raise ValueError(msg)


def _score(row: Mapping[str, object], name: str, place: str) -> float:
    value = row[name]
    try:
        # NumPy's numbers and the cells of CSV files too.
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        msg = f"{place}: {name!r} is {value!r}; it must be a finite number, higher for more similar texts"
        raise ValueError(msg)
    return score


def _item_records(item: object, place: str) -> list[Record]:
    if isinstance(item, Pair | Triplet | ScoredPair):
        for text in texts_of(item):
            _check_text(text, type(item).__name__, place)
        return [item]
    if isinstance(item, Mapping):
        return records_of(item, place=place)
    msg = f"{place} is {type(item).__name__}: {str(item)[:80]!r}; a row must be a mapping, as {{'query': '...', ...}}"
    raise ValueError(msg)


def _mixed(count: int, before: Record, after: Record) -> str:
    kinds = f"record {count} (from 0) is a {type(after).__name__}, those before are {type(before).__name__}s"
    advice = "give every row negatives, or none" if not isinstance(after, ScoredPair) else "read them one by one"
    return f"All rows of one source must be of one kind, but {kinds}: {advice}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
