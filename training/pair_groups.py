"""Groups of pairs by domain: in-batch negatives come from the same domain, where they are hard."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luotuo_integrations.texts import Vectors
from luotuo_integrations.training.table import Ids, TextTable
from training.devsets import cut_in_half

LONGEST = 420  # characters of a text; cut, a longer one might lose what answers the question, so it is left out

Line = dict[str, Any]

# Share of the pairs of a run, by domain, and the sources (a pattern) that belong to it. Weak or machine-made sources
# (counselling, keywords, two-part sayings) and pre-modern Chinese are kept small.
PAIR_SHARES: Mapping[str, tuple[str, float]] = {
    "law": ("lawyer-llama|LegalQA|Laws", 0.15),
    "medicine": ("Huatuo|Med-ChatGLM|COVID", 0.14),
    "encyclopaedia": ("cmrc2018|DRCD|DuReader|FinCUGE/finqa", 0.22),
    "technology": ("LCTT", 0.15),
    "finance": ("FinCUGE/finna", 0.06),
    "web": ("SimCLUE|QBQTC", 0.14),
    "classical": ("NiuTrans|gushiwen", 0.08),
    "counselling": ("smile", 0.02),
    "keywords": ("FewCLUE/csl", 0.02),
    "sayings": ("xiehouyu", 0.02),
}
HALVES_SHARE = 0.15  # halves of running text, as many as this share of the pairs
# Every fourth pair of a modern domain is turned Traditional; of every second of these the passage alone.
TRADITIONAL_EVERY = 4
PRE_MODERN = ("classical", "sayings")


@dataclass(slots=True)
class Group:
    """Rows of one domain: (query number, positive number), and the scores of scored pairs."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)

    def numbers(self) -> Ids:
        """Text numbers: int64 (N, 2)."""
        return np.array(self.rows, np.int64)

    def scores(self) -> Vectors | None:
        """Scores: float32 (N,), or None."""
        return np.array(self.labels, np.float32) if self.labels else None


def pair_groups(
    lines: Iterable[Line], table: TextTable, count: int, convert: Callable[[str], str] | None = None
) -> dict[str, Group]:
    """Fill the groups with the first lines of each domain.

    Args:
        lines: Lines of the pack of kind ``"pair"`` and ``"text"``, shuffled.
        table: Where their texts get their numbers.
        count: Pairs in all; halves come on top.
        convert: Simplified to Traditional; None leaves the characters as they are.
    """
    limits = {name: round(share * count) for name, (_, share) in PAIR_SHARES.items()}
    limits["halves"] = round(HALVES_SHARE * count)
    groups = {name: Group() for name in limits}
    for line in lines:
        name = "halves" if line["kind"] == "text" else _domain(line["source"])
        if name is None or len(groups[name].rows) >= limits[name]:
            continue
        if line["kind"] == "pair":
            pair: tuple[str, str] | None = (line["query"], line["positive"])
        else:
            pair = cut_in_half(line["text"]) if len(line["text"]) >= 60 else None
        if pair is not None and max(map(len, pair)) <= LONGEST:
            if convert is not None and name not in PRE_MODERN:
                pair = _turned(pair, len(groups[name].rows), convert)
            groups[name].rows.append((table.add(pair[0], "query"), table.add(pair[1], "passage")))
    return groups


def scored_groups(lines: Iterable[Line], table: TextTable, count: int) -> dict[str, Group]:
    """The first scored pairs of each source, by its scale: labels of 0 or 1, and grades."""
    groups = {"matches": Group(), "grades": Group()}
    limits = {"matches": round(0.7 * count), "grades": round(0.3 * count)}
    for line in lines:
        group_name = "grades" if re.search("stsb|chinese_sts", line["source"]) else "matches"
        group = groups[group_name]
        if len(group.rows) < limits[group_name]:
            first, second = (table.add(line[key], "query") for key in ("sentence1", "sentence2"))
            group.rows.append((first, second))
            group.labels.append(line["label"])
    return groups


def _turned(pair: tuple[str, str], number: int, convert: Callable[[str], str]) -> tuple[str, str]:
    """A pair, or one in Traditional characters, or its passage alone: texts are searched by questions in either."""
    if number % TRADITIONAL_EVERY:
        return pair
    return (pair[0] if number % (2 * TRADITIONAL_EVERY) else convert(pair[0]), convert(pair[1]))


def _domain(source: str) -> str | None:
    return next((name for name, (pattern, _) in PAIR_SHARES.items() if re.search(pattern, source)), None)
