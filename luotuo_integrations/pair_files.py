"""Files of questions and their answers: one JSON object a line."""

import json
from pathlib import Path

from luotuo_integrations.errors import LuotuoError

# Names in use out there, the question's first.
FIELDS = (("query", "positive"), ("question", "answer"), ("query", "passage"), ("question", "positive"))


class PairFileError(LuotuoError, ValueError):
    """A line of a file of pairs cannot be used."""


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read (question, answer text) from a .jsonl file; blank lines are passed over.

    Raises:
        PairFileError: If a line is no JSON object with two such fields, or one is blank; the message names the line.
        OSError: If the file cannot be read.
    """
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            msg = f'{path}, line {number} is no JSON ({error}); a line is {{"query": ..., "positive": ...}}'
            raise PairFileError(msg) from error
        names = next((pair for pair in FIELDS if isinstance(row, dict) and all(name in row for name in pair)), None)
        values = [] if names is None else [row[name] for name in names]
        if not values or not all(isinstance(one, str) and one.strip() for one in values):
            known = "; ".join(" and ".join(pair) for pair in FIELDS)
            msg = f"{path}, line {number} is {line[:80]!r}; it needs two texts that are not blank, named {known}"
            raise PairFileError(msg)
        pairs.append((values[0], values[1]))
    if not pairs:
        msg = f'{path} holds no pairs; give lines of {{"query": ..., "positive": ...}}'
        raise PairFileError(msg)
    return pairs
