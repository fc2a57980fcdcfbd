"""Questions with the passages that answer them, made out of the passages themselves, without a language model.

From headings: the heading above a passage is the question, the text below it the answer. From first sentences: the
first sentence of a passage is the question, the rest the answer. Such questions share words with their passages, as
users' questions often do not: what is measured with them is too high, keywords most of all. They serve to compare
settings of one kind, and as a beginning.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.judgements import source_of
from luotuo_integrations.passages import body_of, sentences_of, squeezed
from luotuo_integrations.store.table import StoredDocument

_SHORTEST_ANSWER = 12  # characters, without white space
_QUERY_CHARACTERS = range(4, 101)
_TABLE_OR_CODE = ("|", "```", "~~~")
_HEADING_SEPARATOR = " > "  # of ``ChineseTextSplitter``


class QuestionMakingError(LuotuoError, ValueError):
    """No questions can be made."""


@dataclass(frozen=True)
class MadeQuestion:
    """A question and its answer, as ``luotuo evaluate``, ``mapper fit`` and ``finetune`` read them.

    Attributes:
        query: The question.
        positive: The passage that answers it, without the headings it begins with.
        source: Its file; "" where the passage names none.
        section: The headings above it; "" where there are none.
        made_from: ``"heading"``, ``"first sentence"``, or ``"language model"``.
    """

    query: str
    positive: str
    source: str
    section: str
    made_from: str


@dataclass
class MadeQuestions:
    """What was made.

    Attributes:
        rows: The questions.
        passages: How many passages there were to make them from.
        skipped: Why others were not made, and how often.
    """

    rows: list[MadeQuestion] = field(default_factory=list)
    passages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, row: MadeQuestion, seen: set[str]) -> bool:
        """Add a question unless it was asked before; ``seen`` remembers it."""
        if asked(row.query) in seen:
            self.skipped["asked before"] += 1
            return False
        seen.add(asked(row.query))
        self.rows.append(row)
        return True


@dataclass(frozen=True)
class Material:
    """A passage to ask about: its text below the headings, its file, its headings."""

    body: str
    source: str
    section: str

    @property
    def headings(self) -> list[str]:
        """Outermost first."""
        return [part for part in self.section.split(_HEADING_SEPARATOR) if part]

    def question(self, query: str, positive: str, made_from: str) -> MadeQuestion:
        """A question that this passage answers."""
        return MadeQuestion(query, positive, self.source, self.section, made_from)


def usable_passages(
    passages: Iterable[StoredDocument], skipped: Counter[str], *, limit: int | None, per_passage: int, seed: int
) -> list[Material]:
    """Passages with text enough to ask about, each text once; in their order, or in a random one where few are needed.

    Args:
        passages: Those of a store.
        skipped: Counts those that are left out.
        limit: How many questions are wanted.
        per_passage: The most questions of one passage.
        seed: Of the random order.

    Raises:
        QuestionMakingError: If nothing is left.
        ValueError: If a number is out of range.
    """
    if per_passage < 1 or (limit is not None and limit < 1):
        msg = f"per_passage={per_passage} and limit={limit} must be whole numbers from 1 on"
        raise ValueError(msg)
    found: dict[str, Material] = {}
    for passage in passages:
        body = body_of(passage.content)
        if len(squeezed(body)) < _SHORTEST_ANSWER:
            skipped["passage too short"] += 1
        elif squeezed(body) in found:
            skipped["passage is there twice"] += 1
        else:
            section = str(passage.metadata.get("headings") or "")
            found[squeezed(body)] = Material(body, source_of(passage), section)
    if not found:
        msg = f"No passage has the {_SHORTEST_ANSWER} characters that a question can be made of; index more documents"
        raise QuestionMakingError(msg)
    materials = list(found.values())
    return materials if limit is None else random.Random(seed).sample(materials, len(materials))


def questions_from_text(
    passages: Sequence[StoredDocument], *, per_passage: int = 1, limit: int | None = None, seed: int = 0
) -> MadeQuestions:
    """Make questions of headings and first sentences.

    A heading is a question where it stands above one passage alone; else as many of the headings above it are put
    before it as make it so, and if none do, it is left out. A first sentence is one where no other passage has it.

    Args:
        passages: Those of a store.
        per_passage: 1 takes one of the two kinds at random where both are there; 2 takes both.
        limit: The most questions; passages are then drawn at random.
        seed: Of what is random: the same seed makes the same questions.

    Returns:
        The questions, no two of them alike.

    Raises:
        QuestionMakingError: If none can be made.
        ValueError: If a number is out of range.
    """
    made = MadeQuestions(passages=len(passages))
    materials = usable_passages(passages, made.skipped, limit=limit, per_passage=per_passage, seed=seed)
    tails = Counter(tail for material in materials for tail in _tails(material))
    sentences = Counter(one for material in materials for one in {squeezed(one) for one in sentences_of(material.body)})
    seen: set[str] = set()
    generator = random.Random(seed)
    for material in materials:
        rows = [_of_heading(material, tails, made.skipped), _of_first_sentence(material, sentences, made.skipped)]
        candidates = [row for row in rows if row is not None]
        generator.shuffle(candidates)
        for row in candidates[:per_passage]:
            if limit is None or len(made.rows) < limit:
                made.add(row, seen)
    if not made.rows:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in made.skipped.items())
        msg = f"No question can be made of {len(passages)} passages without a language model ({reasons}); give --llm"
        raise QuestionMakingError(msg)
    return made


def asked(query: str) -> str:
    """A question as it is compared with others: letters and digits alone, in lower case."""
    return "".join(one for one in query.casefold() if one.isalnum())


def _tails(material: Material) -> list[str]:
    """The heading, then with more and more of those above it."""
    headings = material.headings
    return [" ".join(headings[start:]) for start in range(len(headings) - 1, -1, -1)]


def _of_heading(material: Material, tails: Counter[str], skipped: Counter[str]) -> MadeQuestion | None:
    choices = _tails(material)
    if not choices:
        skipped["no heading"] += 1
        return None
    query = next((tail for tail in choices if tails[tail] == 1 and len(squeezed(tail)) in _QUERY_CHARACTERS), None)
    if query is None:
        skipped["heading of several passages"] += 1
        return None
    return material.question(query, material.body, "heading")


def _of_first_sentence(material: Material, sentences: Counter[str], skipped: Counter[str]) -> MadeQuestion | None:
    first = next(iter(sentences_of(material.body)), "")
    rest = material.body[len(first) :].strip()
    if (
        len(squeezed(first)) not in _QUERY_CHARACTERS
        or len(squeezed(rest)) < _SHORTEST_ANSWER
        or first.startswith(_TABLE_OR_CODE)
    ):
        skipped["no first sentence with text behind it"] += 1
        return None
    if sentences[squeezed(first)] > 1:
        skipped["first sentence of several passages"] += 1
        return None
    return material.question(first, rest, "first sentence")
