"""What counts as text, checked before any model is loaded or run; what turns texts into arrays."""

from collections.abc import Collection, Iterable, Mapping, Set
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Kind = Literal["query", "passage"]
Vectors = npt.NDArray[np.float32]


class ArrayEncoder(Protocol):
    """What is needed of an embedding model; ``LuotuoEmbeddings`` has it."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def fingerprint(self) -> str:
        """Hash of what decides passage vectors."""

    def encode(self, texts: list[str], kind: Kind = "passage") -> Vectors:
        """Texts to float32 (N, D)."""


def check_texts(texts: object, *, first_index: int = 0, name: str = "texts") -> None:
    """Refuse what is not text before any work is done.

    Args:
        texts: What the caller gave; the items of an iterator are left to be checked window by window.
        first_index: Index of the first text, for the message.
        name: What the caller calls them, for the message.

    Raises:
        TypeError: If ``texts`` is a bare string, a mapping, a set or not iterable, or an item is not a string; the
            message names its index.
    """
    if isinstance(texts, str | bytes | bytearray) or not isinstance(texts, Iterable):
        msg = f"{name} is {_shown(texts)}; give a list of strings, for one text: [text]"
        raise TypeError(msg)
    if isinstance(texts, Mapping | Set):
        msg = f"{name} is a {type(texts).__name__}, which has no rows in order; give a list of strings"
        raise TypeError(msg)
    if not isinstance(texts, Collection):
        return
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"{name}[{first_index + index}] is {_shown(text)}; every text must be a string"
            raise TypeError(msg)


def check_query(text: object, *, many: str = "encode(texts, 'query')") -> str:
    """Return a query, or refuse what is not one string.

    Args:
        text: What the caller gave.
        many: What to call for several, for the message.

    Raises:
        TypeError: If ``text`` is not a string.
    """
    if not isinstance(text, str):
        msg = f"The query is {_shown(text)}; it must be one string. For many: {many}"
        raise TypeError(msg)
    return text


def _shown(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__}: {str(value)[:80]!r}"
