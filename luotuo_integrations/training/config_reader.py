"""Nested tables of plain values into frozen dataclasses, with every key and type checked."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Read = TypeVar("Read")


def read_dataclass(wanted: type[Read], values: object, where: str = "") -> Read:
    """Make a dataclass of a table.

    Fields may be str, int, float, bool, a Literal, ``tuple[T, ...]``, ``dict[str, T]``, another dataclass, or a union
    of these with None. An int will do for a float; nothing else is converted.

    Args:
        wanted: The dataclass.
        values: The table.
        where: Name of the table in messages.

    Raises:
        ValueError: If a key is unknown; the message lists those that are known.
        TypeError: If a value has another type.
    """
    if not isinstance(values, Mapping):
        msg = f"{where or 'the configuration'} is {values!r}; a table of settings is needed"
        raise TypeError(msg)
    hints = get_type_hints(wanted)
    known = [one.name for one in fields(wanted)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        place = f"in [{where}]" if where else "at the top"
        msg = f"{', '.join(map(repr, unknown))} {place} is unknown; known are {', '.join(known)}"
        raise ValueError(msg)
    return wanted(**{key: _read(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in values.items()})


def _read(hint: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(one for one in arguments if one is not type(None)), value, where)
    if is_dataclass(hint):
        return read_dataclass(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_read(arguments[0], item, where) for item in value)
    if origin is tuple:
        return (_read(arguments[0], value, where),)  # one value for a list of one
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    msg = f"{where} = {value!r}; {_described(hint)} is needed"
    raise TypeError(msg)


def _described(hint: Any) -> str:
    names = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return names.get(hint, "a table")
