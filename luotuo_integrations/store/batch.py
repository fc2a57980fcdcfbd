"""Documents on their way into a store: checked and turned to plain strings before anything is touched."""

import json
import math
import uuid
from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple


class DocumentBatch(NamedTuple):
    """Checked documents.

    Args:
        ids: The id of each document given, in that order; new ones where none was given.
        kept: Positions of the documents to store, ascending: where an id was given twice, the last one counts.
        contents: Texts of those kept.
        metadatas: Metadata of those kept, as JSON text.
    """

    ids: list[str]
    kept: list[int]
    contents: list[str]
    metadatas: list[str]

    @property
    def kept_ids(self) -> list[str]:
        """Ids of those kept; each is there once."""
        return [self.ids[position] for position in self.kept]


_PLAIN = (str, bool, int, type(None))
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # json.dumps would make one for each document


def check_documents(
    contents: Iterable[str],
    metadatas: Iterable[dict[str, Any] | None] | None = None,
    ids: Iterable[str | None] | None = None,
) -> DocumentBatch:
    """Check documents.

    Args:
        contents: Texts; "" is allowed.
        metadatas: One dict a text, or None for a text without; None for none at all.
        ids: One id a text, or None for a new one; None for new ones throughout.

    Returns:
        The batch. Nothing that was given is changed or kept.

    Raises:
        TypeError: If a text, an id or a metadata value has a type that cannot be stored; the message names it.
        ValueError: If the numbers differ, an id is empty, or a string cannot be written as UTF-8.
    """
    texts = _listed(contents, "texts")
    given_metadatas = [None] * len(texts) if metadatas is None else _listed(metadatas, "metadatas")
    given_ids = [None] * len(texts) if ids is None else _listed(ids, "ids")
    for name, items in (("metadatas", given_metadatas), ("ids", given_ids)):
        if len(items) != len(texts):
            msg = f"{len(items)} {name} were given for {len(texts)} texts; give one each"
            raise ValueError(msg)
    all_ids = [
        uuid.uuid4().hex if id_ is None else check_id(id_, name=f"ids[{index}]") for index, id_ in enumerate(given_ids)
    ]
    kept = sorted({id_: index for index, id_ in enumerate(all_ids)}.values())
    checked = [check_unicode(text, name=f"texts[{index}]") for index, text in enumerate(texts)]
    words = [
        "{}" if metadata is None else metadata_json(metadata, name=f"metadatas[{index}]")
        for index, metadata in enumerate(given_metadatas)
    ]
    return DocumentBatch(all_ids, kept, [checked[index] for index in kept], [words[index] for index in kept])


def check_ids(ids: Iterable[str]) -> list[str]:
    """Check ids that are asked for, in any collection; see ``check_id``."""
    listed = list(ids) if isinstance(ids, Set) else _listed(ids, "ids")
    return [check_id(id_, name=f"ids[{index}]") for index, id_ in enumerate(listed)]


def check_id(id_: object, *, name: str) -> str:
    """Return the id if it is a string that can be stored, else raise TypeError or ValueError."""
    checked = check_unicode(id_, name=name)
    if not checked or "\0" in checked:
        msg = f"{name} is {checked!r}; an id must not be empty or hold a NUL character. None gives a new id"
        raise ValueError(msg)
    return checked


def check_unicode(text: object, *, name: str) -> str:
    """Return the text if it is a string that can be written as UTF-8, else raise TypeError or ValueError."""
    if not isinstance(text, str):
        msg = f"{name} is {type(text).__name__}: {text!r:.80}; it must be a string"
        raise TypeError(msg)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{name} holds a lone surrogate at {error.start}; type text.encode('utf-8', 'replace').decode() first"
        raise ValueError(msg) from error
    return text


def metadata_json(metadata: object, *, name: str) -> str:
    """Check metadata and give it as JSON text. Tuples become lists.

    Args:
        metadata: A dict of strings, finite numbers, booleans, None, and lists and dicts of these; keys are strings.
        name: What errors call it, for instance ``"metadatas[3]"``.

    Returns:
        Compact JSON with Chinese characters as they are.

    Raises:
        TypeError: If it is not a dict, or holds something that JSON has no word for; the message names the field.
        ValueError: If it holds NaN, infinity or a lone surrogate.
    """
    if not isinstance(metadata, dict):
        msg = f"{name} is {type(metadata).__name__}: {metadata!r:.80}; it must be a dict"
        raise TypeError(msg)
    _check_value(metadata, name)
    return check_unicode(_JSON.encode(metadata), name=name)


def _check_value(value: object, where: str) -> None:
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{where} is {value}; metadata holds finite numbers, or None"
            raise ValueError(msg)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                msg = f"{where} has the key {key!r}; keys must be strings"
                raise TypeError(msg)
            if not isinstance(item, _PLAIN):  # the name of a place is made only for what must be looked into
                _check_value(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_value(item, f"{where}[{index}]")
    else:
        msg = (
            f"{where} is {type(value).__module__}.{type(value).__qualname__}: {value!r:.80}; metadata holds strings, "
            "numbers, booleans, None, lists and dicts: type str(...), int(...), float(...) or .isoformat() first"
        )
        raise TypeError(msg)


def _listed(items: Iterable[Any], name: str) -> Sequence[Any]:
    """The items as a list. A bare string would be taken apart, and a set has no order to match other lists by."""
    if isinstance(items, (str, bytes, dict, Set)) or not isinstance(items, Iterable):
        msg = f"{name} is {type(items).__name__}: {items!r:.80}; give a list, for one: [{name.removesuffix('s')}]"
        raise TypeError(msg)
    return items if isinstance(items, list) else list(items)
