"""Metadata filters: one small grammar, compiled to SQL over a JSON column.

A filter is a dict. A key names a metadata field, a plain value means "equal to"; several keys must all match::

    {"部门": "财务"}                                   the field is 财务
    {"部门": "财务", "页": {"$gte": 3, "$lt": 10}}     and the page is 3 to 9
    {"出处": {"文件": "员工手册.md"}}                   a nested field
    {"$or": [{"部门": "财务"}, {"级别": {"$in": ["总监", "经理"]}}]}
    {"$not": {"标签": {"$contains": "作废"}}}

Each condition is true or false, never unknown: a field that is missing (or null) equals None, is unlike every other
value (``$ne`` and ``$nin`` hold) and is neither greater nor less than anything. Numbers compare with numbers and
strings with strings, by code point. As in Python, true equals 1.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

OPERATORS = {
    "$eq": "equal to a string, number, boolean or None",
    "$ne": "not equal",
    "$in": "equal to one of a list",
    "$nin": "equal to none of a list",
    "$gt": "greater than a number or string",
    "$gte": "greater than or equal",
    "$lt": "less than",
    "$lte": "less than or equal",
    "$exists": "True: the field is there; False: it is not",
    "$empty": "True: missing, null, an empty string or an empty list; False: anything else",
    "$contains": "a list holds the value, or a text holds the string",
    "$icontains": "a text holds the string, whatever the case of its ASCII letters",
}
COMBINERS = ("$and", "$or", "$not")

Filter = Mapping[str, Any]
Predicate = Callable[[dict[str, Any]], bool]

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NUMBER_TYPES = "('integer', 'real', 'true', 'false')"
_VALUE, _TYPE = "json_extract(metadata, ?)", "json_type(metadata, ?)"
# SQLite refuses more (depth 1000, 32,766 values); filters written by hand stay far below.
_MAX_DEPTH, _MAX_VALUES = 100, 30_000


class Condition(NamedTuple):
    """An SQL expression over the column ``metadata`` and the values of its question marks.

    Paths and operands are always bound, never pasted into the SQL.
    """

    sql: str
    values: tuple[str | int | float | None, ...] = ()


def compile_filter(where: Filter) -> Condition:
    """Compile a filter to an SQL condition.

    Args:
        where: A filter in the grammar of this module; ``{}`` matches everything.

    Returns:
        The condition; it is 1 or 0 for every row, never NULL.

    Raises:
        TypeError: If the filter is not a dict, or a value has a type that cannot be compared.
        ValueError: If an operator is unknown, operators and field names are mixed, or the filter is too large.
    """
    condition = _fields(where, (), 0)
    if len(condition.values) > _MAX_VALUES:
        msg = f"The filter holds {len(condition.values)} values, at most {_MAX_VALUES} are possible; use $in for a list"
        raise ValueError(msg)
    return condition


def _fields(where: object, path: tuple[str, ...], depth: int) -> Condition:
    """A dict of fields, with combiners at the top level: all must match."""
    if not isinstance(where, Mapping):
        msg = f'A filter is a dict such as {{"部门": "财务"}}, or a function of the metadata; given: {where!r:.200}'
        raise TypeError(msg)
    if depth > _MAX_DEPTH:
        msg = f"The filter is nested deeper than {_MAX_DEPTH} levels; use a function of the metadata"
        raise ValueError(msg)
    return _joined([_field(key, operand, path, depth) for key, operand in where.items()], "AND")


def _field(key: object, operand: object, path: tuple[str, ...], depth: int) -> Condition:
    if not isinstance(key, str):
        msg = f"A filter's keys are strings; given: {key!r}"
        raise TypeError(msg)
    if key in COMBINERS and not path:
        if key == "$not":
            return _negated(_fields(operand, (), depth + 1))
        if isinstance(operand, (str, bytes)) or not isinstance(operand, Sequence) or not operand:
            msg = f"{key} needs a list of filters that is not empty; given: {operand!r:.200}"
            raise TypeError(msg)
        return _joined([_fields(part, (), depth + 1) for part in operand], key[1:].upper())
    if key.startswith("$"):
        raise ValueError(_unknown_operator(key))
    deeper = (*path, key)
    if not isinstance(operand, Mapping):
        return _equal(deeper, operand)
    operators = [name for name in operand if isinstance(name, str) and name.startswith("$")]
    if not operand or 0 < len(operators) < len(operand):
        msg = f"{key!r} needs operators ({', '.join(OPERATORS)}) or field names, not both; given: {operand!r:.200}"
        raise ValueError(msg)
    if not operators:
        return _fields(operand, deeper, depth + 1)
    return _joined([_test(name, operand[name], deeper) for name in operators], "AND")


def _test(operator: str, operand: Any, path: tuple[str, ...]) -> Condition:
    """One operator on one field."""
    if operator == "$eq":
        return _equal(path, operand)
    if operator == "$ne":
        return _negated(_equal(path, operand))
    if operator == "$in":
        return _one_of(path, operand, operator)
    if operator == "$nin":
        return _negated(_one_of(path, operand, operator))
    if operator in _COMPARISONS:
        return _compared(path, operand, operator)
    if operator in ("$exists", "$empty"):
        if not isinstance(operand, bool):
            raise TypeError(_bad_operand(operator, path, operand, "True or False"))
        held = _exists(path) if operator == "$exists" else _empty(path)
        return held if operand else _negated(held)
    if operator in ("$contains", "$icontains"):
        return _contains(path, operand, operator)
    raise ValueError(_unknown_operator(operator))


def _equal(path: tuple[str, ...], operand: Any) -> Condition:
    at = _json_path(path)
    value = _scalar(path, operand, "$eq")
    if isinstance(value, str):  # the type is asked because json_extract shows a list as text
        return Condition(f"ifnull({_TYPE} = 'text' AND {_VALUE} = ?, 0)", (at, at, value))
    return Condition(f"({_VALUE} IS ?)", (at, value))


def _one_of(path: tuple[str, ...], operand: Any, operator: str) -> Condition:
    if isinstance(operand, (str, bytes)) or not isinstance(operand, (Sequence, set, frozenset)):
        raise TypeError(_bad_operand(operator, path, operand, "a list of values"))
    at = _json_path(path)
    values = [_scalar(path, item, operator) for item in operand]
    parts = [Condition(f"({_VALUE} IS NULL)", (at,))] if None in values else []
    for types, chosen in (
        ("('text')", [value for value in values if isinstance(value, str)]),
        (_NUMBER_TYPES, [value for value in values if isinstance(value, (int, float))]),
    ):
        if chosen:  # one bound value, however long the list is
            sql = f"ifnull({_TYPE} IN {types} AND {_VALUE} IN (SELECT value FROM json_each(?)), 0)"
            parts.append(Condition(sql, (at, at, json.dumps(chosen))))
    return _joined(parts, "OR")


def _compared(path: tuple[str, ...], operand: Any, operator: str) -> Condition:
    if isinstance(operand, bool) or not isinstance(operand, (str, int, float)):
        raise TypeError(_bad_operand(operator, path, operand, "a number or a string"))
    at = _json_path(path)
    types = "('text')" if isinstance(operand, str) else "('integer', 'real')"
    sql = f"ifnull({_TYPE} IN {types} AND {_VALUE} {_COMPARISONS[operator]} ?, 0)"
    return Condition(sql, (at, at, _scalar(path, operand, operator)))


def _exists(path: tuple[str, ...]) -> Condition:
    return Condition(f"({_TYPE} IS NOT NULL)", (_json_path(path),))


def _empty(path: tuple[str, ...]) -> Condition:
    at = _json_path(path)
    sql = f"({_VALUE} IS NULL OR {_VALUE} = '' OR ({_TYPE} = 'array' AND json_array_length(metadata, ?) = 0))"
    return Condition(sql, (at, at, at, at))


def _contains(path: tuple[str, ...], operand: Any, operator: str) -> Condition:
    at = _json_path(path)
    value = _scalar(path, operand, operator)
    if operator == "$icontains":
        if not isinstance(value, str):
            raise TypeError(_bad_operand(operator, path, operand, "a string"))
        return Condition(f"ifnull({_TYPE} = 'text' AND instr(lower({_VALUE}), lower(?)) > 0, 0)", (at, at, value))
    if value is None:
        raise TypeError(_bad_operand(operator, path, operand, "a string, number or boolean"))
    types = "('text')" if isinstance(value, str) else _NUMBER_TYPES
    member = f"EXISTS (SELECT 1 FROM json_each(metadata, ?) AS item WHERE item.type IN {types} AND item.value = ?)"
    if isinstance(value, str):
        part = f"WHEN 'text' THEN instr({_VALUE}, ?) > 0"
        return Condition(f"(CASE {_TYPE} WHEN 'array' THEN {member} {part} ELSE 0 END)", (at, at, value, at, value))
    return Condition(f"(CASE {_TYPE} WHEN 'array' THEN {member} ELSE 0 END)", (at, at, value))


def _joined(parts: list[Condition], word: str) -> Condition:
    """Join conditions by AND or OR as a balanced tree, because SQLite limits how deep expressions may be."""
    if len(parts) < 2:
        return parts[0] if parts else Condition("1" if word == "AND" else "0")
    middle = len(parts) // 2
    left, right = _joined(parts[:middle], word), _joined(parts[middle:], word)
    return Condition(f"({left.sql} {word} {right.sql})", left.values + right.values)


def _negated(part: Condition) -> Condition:
    return Condition(f"(NOT {part.sql})", part.values)


def _json_path(path: tuple[str, ...]) -> str:
    """An SQLite JSON path: each key as it is written in JSON text, between double quotes."""
    for key in path:
        if '"' in key:
            msg = f"A filter cannot name a field with a double quote: {key!r}; use a function of the metadata"
            raise ValueError(msg)
    return "".join(["$", *(f".{json.dumps(key, ensure_ascii=False)}" for key in path)])


def _scalar(path: tuple[str, ...], value: Any, operator: str) -> str | int | float | None:
    """The value as SQLite takes it; booleans become 1 and 0."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(_bad_operand(operator, path, value, "valid Unicode without lone surrogates")) from error
        return str(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise TypeError(
        _bad_operand(operator, path, value, "a string, a finite number (integers of 64 bits), True or None")
    )


def _bad_operand(operator: str, path: tuple[str, ...], given: object, allowed: str) -> str:
    return f"{operator} of {'.'.join(path)!r} needs {allowed}; given: {given!r:.200}"


def _unknown_operator(operator: str) -> str:
    around, fields = ", ".join(COMBINERS), ", ".join(OPERATORS)
    return f"{operator!r} is not known here; allowed on a field: {fields}; around filters: {around}"
