"""Which passages of a store answer a question, judged by the text that answers it. No framework is imported.

A passage answers a question if it holds the answering text, white space aside, or if its id is named. Where a source is
named, only passages of that file count: "员工手册/休假.md" and "/data/员工手册/休假.md" are one file, and a passage
whose metadata have no ``source`` may be of any.

Passages that hold the same text (they overlap, or the text stands in two files) are one answer: finding one of them is
enough, and a second earns nothing more. So with one answering text recall@k is the share of questions for which one of
the first k passages holds it. Several answers of one question, from several lines or ids, each count.

A text that no passage holds whole was cut when the documents were split. Then its sentences decide, or, where none of
them is whole, its clauses: a passage answers if it holds at least half as many of the text's characters in whole
sentences as the passage that holds most of them. What holds neither 20 characters nor a fourth of the text holds
too little to answer.

Sentences count where at least 10 characters of them stand one after the other, marks at the end aside: shorter ones
stand in other places by chance ("可以", "由部门负责人批准"). So a text of fewer than 10 characters must stand in a
passage whole. What many passages hold tells nothing either: more than a tenth of them, or more than 10. Passages with
the same text are one here, and up to 3 are never too many.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from luotuo_integrations.pair_files import Question
from luotuo_integrations.passages import sentences_of, squeezed
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.store.table import StoredDocument

_CLAUSE_END = re.compile(r"(?<=[，；：、,;:])")
_MARKS = "。！？；，：、…!?;,:."  # at the end of a sentence or clause: they may differ
_ENOUGH = 20  # characters, without white space
_ENOUGH_SHARE = 0.25
_SHORTEST = 10  # of a run of sentences. In examples/data, 4 % of clauses of 7 characters stand in two passages
_MANY, _MANY_SHARE, _FEW = 10, 0.1, 3  # passages


@dataclass(frozen=True)
class Judgement:
    """A question and the passages that answer it.

    Attributes:
        query: The question.
        answers: Ids of passages, a set for each different answer; no passage is in two of them.
        cut: Whether an answering text stands in no passage whole.
    """

    query: str
    answers: tuple[frozenset[str], ...]
    cut: bool = False


@dataclass(frozen=True)
class Judgements:
    """What became of some questions.

    Attributes:
        judged: The questions that some passage answers, each text once, in their order.
        unanswered: Questions that no passage answers.
    """

    judged: tuple[Judgement, ...]
    unanswered: tuple[str, ...]


def judge(
    questions: Iterable[Question], passages: Iterable[StoredDocument], *, show_progress: bool = False
) -> Judgements:
    """Find the passages that answer each question; the rules stand at the top of this file.

    Args:
        questions: Lines with the same query are one question with several answers.
        passages: Those of the store.
        show_progress: Show a progress bar.

    Returns:
        The questions with the passages that answer them. An answer that no passage holds is left out.
    """
    lines: dict[str, list[Question]] = {}
    for question in questions:
        lines.setdefault(question.query, []).append(question)
    texts = _Texts(list(passages))
    judged, unanswered = [], []
    with progress_bar("Judging passages", len(lines), enabled=show_progress) as advance:
        for query, rows in lines.items():
            answers: list[set[str]] = []
            cut = False
            for row in rows:
                answers += [{one} for one in row.ids if one in texts.ids]
                holders, in_pieces = texts.answering(row.positive, row.source)
                answers += [holders] if holders else []
                cut = cut or in_pieces
            if answers:
                judged.append(Judgement(query, _disjoint(answers), cut))
            else:
                unanswered.append(query)
            advance(1)
    return Judgements(tuple(judged), tuple(unanswered))


class _Texts:
    """The passages' texts, by source."""

    def __init__(self, passages: Sequence[StoredDocument]) -> None:
        self.ids = {passage.id for passage in passages}
        self._sources: dict[str, list[int]] = {}
        for position, passage in enumerate(passages):
            self._sources.setdefault(source_of(passage), []).append(position)
        self._texts = [(passage.id, squeezed(passage.content)) for passage in passages]
        self._text_of = dict(self._texts)
        self._few = max(_FEW, min(_MANY, int(_MANY_SHARE * len(set(self._text_of.values())))))
        self._joined: dict[str, _JoinedTexts] = {}

    def answering(self, positive: str, source: str) -> tuple[set[str], bool]:
        """Ids of the passages that hold a text, and whether they hold parts of it only."""
        wanted = squeezed(positive)
        if not wanted:
            return set(), False
        texts = self._of_source(_path(source))
        if whole := texts.holders(wanted):
            return whole, False
        sentences = sentences_of(positive)
        clauses = [clause for sentence in sentences for clause in _CLAUSE_END.split(sentence)]
        for pieces in (sentences, clauses):
            held = self._held([squeezed(piece) for piece in pieces], texts)
            most = max(held.values(), default=0)
            if most >= min(_ENOUGH, _ENOUGH_SHARE * len(wanted)) and most:
                return {one for one, count in held.items() if 2 * count >= most}, True
        return set(), False

    def _held(self, pieces: Sequence[str], texts: "_JoinedTexts") -> dict[str, int]:
        """How many characters of a text's pieces some passages hold, by id."""
        held: dict[str, set[str]] = {}
        for run in _runs(pieces):
            text = "".join(run).rstrip(_MARKS)
            if (holders := texts.holders(text)) and not self._many_hold(text):
                for one in holders:
                    held.setdefault(one, set()).update(piece.rstrip(_MARKS) for piece in run)
        return {one: sum(map(len, parts)) for one, parts in held.items()}

    def _many_hold(self, text: str) -> bool:
        """Whether a text stands in so many passages, of any file, that it tells nothing."""
        return len({self._text_of[one] for one in self._of_source("").holders(text)}) > self._few

    def _of_source(self, source: str) -> "_JoinedTexts":
        if source not in self._joined:
            positions = [
                position
                for other, of_file in self._sources.items()
                if not source or not other or _same_file(source, other)
                for position in of_file
            ]
            self._joined[source] = _JoinedTexts([self._texts[position] for position in positions])
        return self._joined[source]


class _JoinedTexts:
    """Texts without white space, joined so that one search finds a piece in all of them."""

    def __init__(self, texts: Sequence[tuple[str, str]]) -> None:
        self._ids = [one for one, _ in texts]
        self._all = "\n".join(text for _, text in texts)  # no piece holds a line break, so none spans two texts
        self._starts = [0, *accumulate(len(text) + 1 for _, text in texts)]

    def holders(self, piece: str) -> set[str]:
        """Ids of the texts that hold a piece."""
        found = set()
        place = self._all.find(piece)
        while place >= 0:
            number = bisect_right(self._starts, place) - 1
            found.add(self._ids[number])
            place = self._all.find(piece, self._starts[number + 1])
        return found


def _runs(pieces: Sequence[str]) -> set[tuple[str, ...]]:
    """From each piece on, forwards and back, the shortest run of pieces that is long enough to tell something."""
    runs = set()
    for step in (1, -1):
        for first in range(len(pieces)):
            last = first
            while 0 <= last < len(pieces):
                run = tuple(pieces[min(first, last) : max(first, last) + 1])
                if len("".join(run).rstrip(_MARKS)) >= _SHORTEST:
                    runs.add(run)
                    break
                last += step
    return runs


def source_of(passage: StoredDocument) -> str:
    """The file that a passage is of, with "/" between folders; "" where it names none."""
    return _path(passage.metadata.get("source"))


def _path(source: object) -> str:
    return str(source or "").replace("\\", "/")


def _same_file(one: str, other: str) -> bool:
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


def _disjoint(answers: Iterable[set[str]]) -> tuple[frozenset[str], ...]:
    """Join answers that share a passage, so that one passage found is one answer found."""
    apart: list[set[str]] = []
    for answer in answers:
        sharing = [one for one in apart if one & answer]
        apart = [one for one in apart if not one & answer] + [answer.union(*sharing)]
    return tuple(frozenset(one) for one in apart)
