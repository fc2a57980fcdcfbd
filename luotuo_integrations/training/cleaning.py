"""Documents to training pairs: cleaning, cutting in halves, duplicates, and the split into training and development."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from luotuo_integrations.progress import progress_bar
from luotuo_integrations.training.duplicates import SeenTexts
from luotuo_integrations.training.records import Document, Pair, Record, ScoredPair

_LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Controls but tab and line feed, halves of characters, soft hyphens, zero-width characters and marks of direction.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ud800-\udfff]"
)
_SPACES = re.compile("[^\\S\n]+")
_BLANK_LINES = re.compile(" ?\n[ \n]*")
# Chinese stops with the quotation marks and brackets that close after them, Latin ones where a word ended, line ends.
_SENTENCE_END = re.compile("[。！？][。！？]*[”’」』）》】\"']*|(?<=[a-z])[.!?](?=\\s)|\n")

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of halves, split by document.

    Attributes:
        train: To train on.
        dev: To evaluate on; none of its texts is in train, nor nearly.
        counts: ``documents`` that were read; of these ``too_short`` and ``no_boundary`` (no stretch could be cut in
            two); pairs left out as ``exact_duplicates`` and ``near_duplicates``; pairs in ``train`` and ``dev``.
    """

    train: list[Pair]
    dev: list[Pair]
    counts: dict[str, int]


def clean(text: str) -> str:
    """Tidy a text: line feeds end lines, without blank ones; runs of white space become one space; controls go.

    Punctuation and full-width characters stay as they are. Cleaning twice changes nothing.
    """
    text = _DROPPED.sub("", _LINE_END.sub("\n", text))
    return _BLANK_LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def stretches(text: str, least: int = 300, most: int = 800) -> list[str]:
    """Cut a text into consecutive stretches at ends of sentences.

    Args:
        text: Any text; it is cleaned.
        least: Fewest characters of a stretch; a shorter rest is left out.
        most: Most characters of a stretch; a longer sentence is left out.

    Returns:
        The stretches, without white space at their ends.
    """
    text = clean(text)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    found = []
    start = 0
    for end, following in pairwise([*ends, math.inf]):
        if following - start > most:
            stretch = text[start : int(end)].strip()
            if least <= len(stretch) <= most:
                found.append(stretch)
            start = int(end)
    return found


def halves(text: str, *, least: int = 300, most: int = 800) -> tuple[str, str] | None:
    """Cut an article in two at the end of a sentence, or of a line, that is nearest to its middle.

    Args:
        text: Any text; it is cleaned.
        least: Fewest characters of the article.
        most: Most characters of both halves together; what follows the last end of a sentence within them is cut off.

    Returns:
        The front and the back half, neither blank; None if the article is too short or has one sentence only.
    """
    text = clean(text)
    if len(text) > most:
        ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() <= most]
        text = text[: ends[-1]].strip() if ends else ""
    return _cut(text) if len(text) >= least else None


def make_pairs(
    documents: Iterable[Document],
    *,
    least: int = 300,
    most: int = 800,
    max_pairs: int | None = None,
    dev_share: float = 0.05,
    dev_count: int | None = None,
    near_duplicates: float = 0.8,
    seed: int = 0,
    show_progress: bool = False,
) -> PairSet:
    """Make pairs of documents: the front half of each stretch is the query, the back half its positive.

    A pair is left out if one of its halves has been seen before, exactly or nearly: by the Jaccard similarity of their
    5-character shingles, estimated with MinHash (Broder 1997). The first one stays. The hash of a document's id decides
    on which side it stands, so that it stays there when the corpus grows. About 7 KB of
    memory a pair.

    Args:
        documents: Read one at a time.
        least: Fewest characters of a stretch; shorter documents are left out.
        most: Most characters of a stretch; longer documents make several pairs.
        max_pairs: Stop reading after this many pairs, both sides together; None reads all.
        dev_share: Share of the documents for development, at least one; 0 for none.
        dev_count: Number of pairs for development instead; the last document may bring a few more.
        near_duplicates: Similarity from which texts count as the same, above 0; 1 only leaves out equal ones.
        seed: Another seed gives another split.
        show_progress: Show a progress bar.

    Returns:
        The pairs, in the order of the documents, and what was left out.

    Raises:
        ImportError: If near duplicates are looked for and the ``train`` extra is not installed.
        ValueError: If a number is out of range, or no pairs, or only those of one document, come out.
    """
    _check_lengths(least, most)
    _check_numbers(max_pairs, dev_share, dev_count, near_duplicates)
    texts = SeenTexts(near_duplicates)
    counts = Counter(dict.fromkeys(("documents", "too_short", "no_boundary", "exact_duplicates", "near_duplicates"), 0))
    pairs: list[Pair] = []
    with progress_bar("Documents", None, enabled=show_progress) as advance:
        for document in documents:
            counts["documents"] += 1
            advance(1)
            for pair in _pairs_of(document, least, most, counts):
                seen = texts.add((pair.query, pair.positive))
                if seen == "new":
                    pairs.append(pair)
                else:
                    counts[f"{seen}_duplicates"] += 1
            # Before the next document is asked for: a stream may be slow, or endless.
            if max_pairs is not None and len(pairs) >= max_pairs:
                del pairs[max_pairs:]
                break
    if not pairs:
        raise ValueError(_nothing(counts, least))
    dev = _dev_documents(pairs, dev_share, dev_count, seed)
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[pair.document in dev].append(pair)
    return PairSet(*sides, {**counts, "train": len(sides[0]), "dev": len(sides[1])})


def split_records(
    records: Sequence[AnyRecord], *, dev_share: float = 0.1, dev_count: int | None = None, seed: int = 0
) -> tuple[list[AnyRecord], list[AnyRecord]]:
    """Split records for training and development. Records that share a document or a text stay together.

    Negatives do not hold records together: one may serve everywhere. Equal records are left out but for the first.

    Args:
        records: Of any kind.
        dev_share: Share of the records for development, at least one; 0 for none.
        dev_count: Number of records for development instead.
        seed: Another seed gives another split.

    Returns:
        Records to train on, and for development: as many as were asked for, or fewer where the groups of connected
        records are too large to fit; the smallest group where none fits. Both in the order given.

    Raises:
        ValueError: If a number is out of range, or all records are connected.
    """
    _check_numbers(None, dev_share, dev_count, 1.0)
    firsts: dict[Record, AnyRecord] = {}
    for record in records:
        firsts.setdefault(replace(record, document=""), record)
    unique = list(firsts.values())
    wanted = max(1, min(round(dev_share * len(unique)), len(unique) - 1)) if dev_count is None else dev_count
    if not unique or (dev_count is None and dev_share == 0):
        return unique, []
    groups = sorted(_connected(unique), key=lambda group: _hash(_keys(unique[group[0]])[-1], seed))
    if len(groups) < 2:
        msg = (
            f"All {len(unique)} records share documents or texts with each other, so that none can be held out: give "
            "records of more documents, correct the field 'document', pass dev_share=0, or split them yourself"
        )
        raise ValueError(msg)
    if wanted >= len(unique):
        msg = f"dev_count={dev_count} leaves nothing of {len(unique)} records to train on; give less"
        raise ValueError(msg)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= wanted:
            chosen.update(group)
    smallest = min(groups, key=len)
    chosen = chosen or set(smallest)
    train = [record for index, record in enumerate(unique) if index not in chosen]
    return train, [unique[index] for index in sorted(chosen)]


def _cut(text: str) -> tuple[str, str] | None:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    for end in sorted(ends, key=lambda end: abs(2 * end - len(text))):
        front, back = text[:end].strip(), text[end:].strip()
        if front and back:
            return front, back
    return None


def _pairs_of(document: Document, least: int, most: int, counts: Counter[str]) -> Iterator[Pair]:
    if len(document.text) < least or len(clean(document.text)) < least:
        counts["too_short"] += 1
        return
    cuts = [cut for stretch in stretches(document.text, least, most) if (cut := _cut(stretch))]
    counts["no_boundary"] += not cuts
    for front, back in cuts:
        yield Pair(front, back, document.id)


def _dev_documents(pairs: list[Pair], share: float, count: int | None, seed: int) -> set[str]:
    """Documents whose pairs are held out: those with the lowest hashes."""
    if count is None and share == 0:
        return set()
    sizes = Counter(pair.document for pair in pairs)
    if len(sizes) < 2:
        msg = (
            f"All {len(pairs)} pairs come from one document, {pairs[0].document!r}, so that none can be held out: give "
            "more documents, as the chapters of a book in a file each, or pass dev_share=0"
        )
        raise ValueError(msg)
    hashes = {document: _hash(document, seed) for document in sizes}
    ordered = sorted(sizes, key=hashes.__getitem__)
    if count is None:
        return {document for document in ordered[:-1] if hashes[document] < share} or {ordered[0]}
    chosen: set[str] = set()
    held = 0
    for document in ordered:
        if held >= count:
            return chosen
        chosen.add(document)
        held += sizes[document]
    msg = f"dev_count={count} leaves nothing of {len(pairs)} pairs to train on; give less"
    raise ValueError(msg)


def _connected(records: Sequence[Record]) -> list[list[int]]:
    """Indices of records, grouped: those that share a key are in one group (union-find)."""
    parents = list(range(len(records)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    owners: dict[str, int] = {}
    for index, record in enumerate(records):
        for key in _keys(record):
            parents[root(index)] = root(owners.setdefault(key, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(records)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _keys(record: Record) -> list[str]:
    """What a record shares with others: its document and its texts, negatives aside."""
    texts = (record.first, record.second) if isinstance(record, ScoredPair) else (record.query, record.positive)
    keys = [f"text {text}" for text in texts]
    return [*keys, f"document {record.document}"] if record.document else keys


def _hash(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _check_lengths(least: int, most: int) -> None:
    if not 2 <= least <= most:
        msg = f"least={least}, most={most}: least must be at least 2, and most not below it"
        raise ValueError(msg)


def _check_numbers(max_pairs: int | None, dev_share: float, dev_count: int | None, near_duplicates: float) -> None:
    for name, value, good, allowed in (
        ("max_pairs", max_pairs, max_pairs is None or max_pairs >= 1, "at least 1, or None for all"),
        ("dev_share", dev_share, 0 <= dev_share < 1, "0 to below 1"),
        ("dev_count", dev_count, dev_count is None or dev_count >= 1, "at least 1, or None for dev_share"),
        ("near_duplicates", near_duplicates, 0 < near_duplicates <= 1, "above 0 to 1, which only drops equal texts"),
    ):
        if not good:
            msg = f"{name}={value}: it must be {allowed}"
            raise ValueError(msg)


def _nothing(counts: Counter[str], least: int) -> str:
    if not counts["documents"]:
        return "There are no documents: give a corpus with texts in it"
    return (
        f"No pair comes out of {counts['documents']} documents: {counts['too_short']} have fewer than least={least} "
        f"characters, {counts['no_boundary']} have no end of a sentence (。！？ or a line end) within them, "
        f"{counts['exact_duplicates']} only repeat a text. Give longer running text, or lower least, as "
        f"least={max(2, least // 2)}"
    )
