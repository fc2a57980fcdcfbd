"""The short description of a student, such as ``bert-pruned:6+vocab:12000``, read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luotuo_integrations.registry import CARDS

GRAMMAR = """A student is described by parts joined by '+': at most one architecture, then at most one vocabulary.
  bert                  the base as it is
  bert-pruned:6         6 of the base's layers, evenly spread, the last one among them
  bert-pruned:1,3,5     these layers of the base, counted from 0
  random:6x384          a random BERT of 6 layers, 384 wide, with the base's tokenizer
  glm:/models/glm-edge  a random encoder of 4 layers, 384 wide, that reads a frozen GLM; glm:/models/glm-edge:6x512
                        says another size
  FOLDER or NAME        that model as it is, instead of the base
  vocab:24000           the 24000 tokens of the vocabulary that the texts need most
Examples: bert, bert-pruned:6+vocab:12000, random:4x256, BAAI/bge-small-zh-v1.5+vocab:8000"""
GLM_SIZE = (4, 384)  # layers and width of the encoder behind a GLM, where nothing else is said

_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """What a description says.

    Attributes:
        base: Folder or name of the model to start from; None for the base that is given beside the description.
        layers: One number: how many layers of the base. Several: which of them. None: all.
        random: (layers, width) of a random BERT.
        glm: Folder of a GLM, and (layers, width) of the encoder that reads it.
        vocabulary: How many tokens are kept; None for all.
    """

    base: str | None = None
    layers: tuple[int, ...] | None = None
    random: tuple[int, int] | None = None
    glm: tuple[str, tuple[int, int]] | None = None
    vocabulary: int | None = None

    @classmethod
    def parse(cls, text: str) -> "StudentSpec":
        """Read a description. Nothing is loaded.

        Raises:
            ValueError: If it does not follow ``GRAMMAR``, which the message shows.
        """
        if _is_model(text) or text.startswith("glm:"):  # a folder's name may hold a plus sign
            return cls(**_parse_part(text, text))
        facts: dict[str, Any] = {}
        architectures = 0
        for part in text.split("+"):
            found = _parse_part(part.strip(), text)
            architectures += "vocabulary" not in found
            if architectures > 1 or not facts.keys().isdisjoint(found):
                raise _bad_spec(text, "it names two architectures or two vocabularies")
            facts |= found
        return cls(**facts)


def _bad_spec(text: str, reason: str) -> ValueError:
    return ValueError(f"student {text!r}: {reason}.\n{GRAMMAR}")


def _is_model(text: str) -> bool:
    """Whether a text is the name of a model or a path, rather than a part of the grammar."""
    name, _, _ = text.partition(":")
    if name in {"bert", "bert-pruned", "random", "glm", "vocab"} or not text:
        return False
    return text in CARDS or Path(text).is_dir() or (text.startswith((".", "~", "/")) and "+" not in text)


def _parse_part(part: str, whole: str) -> dict[str, Any]:
    """One part of a description, as attributes of `StudentSpec`."""
    name, _, rest = part.partition(":")
    if part == "bert":
        return {}
    if name == "bert-pruned" and re.fullmatch(r"\d+(,\d+)*", rest):
        return {"layers": tuple(map(int, rest.split(",")))}
    if name == "vocab" and re.fullmatch(r"[1-9]\d*", rest):
        return {"vocabulary": int(rest)}
    if name == "random" and (size := _SIZE.fullmatch(rest)):
        if int(size[2]) % 32:
            raise _bad_spec(whole, f"the width {size[2]} is no multiple of 32")
        return {"random": (int(size[1]), int(size[2]))}
    if name == "glm" and rest:
        source, _, last = rest.rpartition(":")
        if source and (size := _SIZE.fullmatch(last)):
            return {"glm": (source, (int(size[1]), int(size[2])))}
        return {"glm": (rest, GLM_SIZE)}
    if _is_model(part) or re.fullmatch(r"[\w.-]+/[\w.-]+", part):
        return {"base": part}
    raise _bad_spec(whole, f"{part!r} is no part of the grammar, and no folder or name of a model")
