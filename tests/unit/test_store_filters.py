"""Metadata filters: SQL against a plain Python reading of the same grammar, and bad filters."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from luotuo_integrations.store.filters import OPERATORS, compile_filter
from luotuo_integrations.store.table import DocumentTable

MISSING = object()

STAFF: list[dict[str, Any]] = [
    {"部门": "财务", "页": 3, "标签": ["报销", "差旅"], "出处": {"文件": "手册.md", "节": {"号": 2}}},
    {"部门": "人事", "页": 12, "标签": [], "作废": True, "出处": {"文件": "制度.pdf"}},
    {"部门": "财务部", "页": 7.5, "级别": "总监", "标签": "报销"},
    {"部门": None, "页": "3", "作废": False, "出处": "手册.md"},
    {"a.b": 1, 'x"y': 2, "反\\斜": 3, "换\n行": 4, "": 5, "$钱": 6},
    {"标签": [1, 2.5, True, None, ["嵌套"]], "页": -4, "级别": "ZongJian"},
    {},
]


def table_of(documents: list[dict[str, Any]]) -> DocumentTable:
    table = DocumentTable()
    ids = [f"d{i}" for i in range(len(documents))]
    texts = [json.dumps(d, ensure_ascii=False, separators=(",", ":")) for d in documents]
    table.insert(np.arange(len(documents)), ids, ["文"] * len(documents), texts)
    return table


def matching(where: dict[str, Any], documents: list[dict[str, Any]] = STAFF) -> list[int]:
    rows: list[int] = table_of(documents).rows(compile_filter(where)).tolist()
    return rows


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"部门": "财务"}, [0]),
        ({"部门": "财务", "页": {"$gte": 3, "$lt": 10}}, [0]),
        ({"出处": {"文件": "手册.md"}}, [0]),
        ({"出处": {"节": {"号": {"$in": [1, 2]}}}}, [0]),
        ({"页": {"$gt": 3}}, [1, 2]),
        ({"页": {"$gt": "2"}}, [3]),
        ({"页": 3}, [0]),
        ({"页": "3"}, [3]),
        ({"作废": True}, [1]),
        ({"作废": False}, [3]),
        ({"部门": None}, [3, 4, 5, 6]),
        ({"部门": {"$ne": "财务"}}, [1, 2, 3, 4, 5, 6]),
        ({"部门": {"$in": ["人事", "财务", None]}}, [0, 1, 3, 4, 5, 6]),
        ({"部门": {"$nin": ["人事", "财务"]}}, [2, 3, 4, 5, 6]),
        ({"部门": {"$in": []}}, []),
        ({"部门": {"$nin": []}}, [0, 1, 2, 3, 4, 5, 6]),
        ({"部门": {"$exists": True}}, [0, 1, 2, 3]),
        ({"部门": {"$exists": False}}, [4, 5, 6]),
        ({"标签": {"$empty": True}}, [1, 3, 4, 6]),
        ({"标签": {"$empty": False}}, [0, 2, 5]),
        ({"标签": {"$contains": "报销"}}, [0, 2]),
        ({"部门": {"$contains": "财"}}, [0, 2]),
        ({"标签": {"$contains": 2.5}}, [5]),
        ({"标签": {"$contains": 1}}, [5]),
        ({"级别": {"$icontains": "zong"}}, [5]),
        ({"$or": [{"部门": "人事"}, {"级别": "总监"}]}, [1, 2]),
        ({"$and": [{"部门": "财务"}, {"页": 3}]}, [0]),
        ({"$not": {"页": {"$gt": 3}}}, [0, 3, 4, 5, 6]),
        ({"$not": {"$or": [{"部门": "财务"}, {"页": {"$lt": 100}}]}}, [3, 4, 6]),
        ({"a.b": 1}, [4]),
        ({"反\\斜": 3}, [4]),
        ({"换\n行": 4}, [4]),
    ],
)
def test_examples(where: dict[str, Any], expected: list[int]) -> None:
    assert matching(where) == expected


# -- an independent reading of the grammar ----------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def comparable(left: Any, right: Any) -> bool:
    return (is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str))


def equals(value: Any, operand: Any) -> bool:
    if operand is None:
        return value is MISSING or value is None
    return value is not MISSING and not isinstance(value, (list, dict)) and bool(value == operand)


TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": equals,
    "$ne": lambda value, operand: not equals(value, operand),
    "$in": lambda value, operand: any(equals(value, item) for item in operand),
    "$nin": lambda value, operand: not any(equals(value, item) for item in operand),
    "$gt": lambda value, operand: comparable(value, operand) and value > operand,
    "$gte": lambda value, operand: comparable(value, operand) and value >= operand,
    "$lt": lambda value, operand: comparable(value, operand) and value < operand,
    "$lte": lambda value, operand: comparable(value, operand) and value <= operand,
    "$exists": lambda value, operand: (value is not MISSING) == operand,
    "$empty": lambda value, operand: (value is MISSING or value in (None, "", [])) == operand,
    "$contains": lambda value, operand: (
        any(equals(item, operand) for item in value)
        if isinstance(value, list)
        else isinstance(value, str) and isinstance(operand, str) and operand in value
    ),
    "$icontains": lambda value, operand: isinstance(value, str) and operand.lower() in value.lower(),
}


def passes(document: Any, where: dict[str, Any]) -> bool:
    for key, operand in where.items():
        if key == "$and":
            held = all(passes(document, part) for part in operand)
        elif key == "$or":
            held = any(passes(document, part) for part in operand)
        elif key == "$not":
            held = not passes(document, operand)
        else:
            value = document.get(key, MISSING) if isinstance(document, dict) else MISSING
            if not isinstance(operand, dict):
                held = equals(value, operand)
            elif next(iter(operand)).startswith("$"):
                held = all(TESTS[name](value, wanted) for name, wanted in operand.items())
            else:
                held = passes(value, operand)
        if not held:
            return False
    return True


KEYS = ["部门", "页", "标签", "状态"]
VALUES: list[Any] = ["财务", "人事", "", "3", 3, 3.0, -1, 2.5, True, False, None]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    if depth < 2 and rng.random() < 0.25:
        return [random_value(rng, 2) for _ in range(rng.randrange(3))]
    if depth < 2 and rng.random() < 0.2:
        return {key: random_value(rng, depth + 1) for key in rng.sample(KEYS, 2)}
    return rng.choice(VALUES)


def random_test(rng: random.Random) -> Any:
    operator = rng.choice(sorted(OPERATORS))
    scalars = [value for value in VALUES if value is not None]
    operands: dict[str, Any] = {
        "$in": [rng.choice(VALUES) for _ in range(rng.randrange(4))],
        "$exists": rng.random() < 0.5,
        "$empty": rng.random() < 0.5,
        "$icontains": rng.choice(["财", "3", ""]),
        "$contains": rng.choice(scalars),
        "$eq": rng.choice(VALUES),
        "$gt": rng.choice(["财务", "3", 3, 2.5, -1]),
    }
    alike = {"$nin": "$in", "$ne": "$eq", "$gte": "$gt", "$lt": "$gt", "$lte": "$gt"}
    return {operator: operands[alike.get(operator, operator)]}


def random_filter(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    choice = rng.random()
    if depth < 3 and choice < 0.2:
        return {rng.choice(["$and", "$or"]): [random_filter(rng, depth + 1) for _ in range(rng.randrange(1, 4))]}
    if depth < 3 and choice < 0.35:
        return {"$not": random_filter(rng, depth + 1)}
    key = rng.choice(KEYS)
    if choice < 0.5:
        return {key: {rng.choice(KEYS): random_test(rng)}}
    return {key: random_test(rng) if choice < 0.9 else rng.choice(VALUES)}


def test_agrees_with_a_plain_reading_of_the_grammar() -> None:
    rng = random.Random(7)
    documents = [{key: random_value(rng) for key in KEYS if rng.random() < 0.7} for _ in range(150)]
    table = table_of(documents)
    answers = set()
    for _ in range(1500):
        where = random_filter(rng)
        expected = [row for row, document in enumerate(documents) if passes(document, where)]
        assert table.rows(compile_filter(where)).tolist() == expected, where
        answers.add(len(expected))
    assert len(answers) > 50  # the filters were not all trivial


# -- size and safety --------------------------------------------------------------------------------------------------


def test_values_and_keys_are_never_pasted_into_the_sql() -> None:
    for evil in ["'); DROP TABLE documents; --", "' OR '1'='1", "? OR 1=1", "]$.部门", "%"]:
        documents = [{evil: "甲", "部门": evil}, {"部门": "乙"}]
        table = table_of(documents)
        assert table.rows(compile_filter({evil: "甲"})).tolist() == [0]
        assert table.rows(compile_filter({"部门": evil})).tolist() == [0]
        assert evil not in compile_filter({"部门": evil}).sql
        assert len(table) == 2


def test_a_list_of_many_values_and_many_alternatives_are_possible() -> None:
    documents = [{"号": i} for i in range(3000)]
    assert len(matching({"号": {"$in": list(range(0, 100_000, 2))}}, documents)) == 1500
    assert len(matching({"$or": [{"号": i} for i in range(2500)]}, documents)) == 2500


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ({"部门": {"$eqq": 1}}, ValueError, r"'\$eqq'.*\$eq, \$ne.*\$and, \$or, \$not"),
        ({"$foo": 1}, ValueError, r"'\$foo'"),
        ({"部门": {"$and": [{"页": 1}]}}, ValueError, r"\$and"),
        ({"部门": {"$eq": 1, "页": 2}}, ValueError, "not both"),
        ({"部门": {}}, ValueError, "not both"),
        ({"部门": ["财务"]}, TypeError, "needs a string"),
        ({"部门": {"$eq": {"a": 1}}}, TypeError, "needs a string"),
        ({"部门": {"$in": "财务"}}, TypeError, "a list"),
        ({"部门": {"$gt": None}}, TypeError, "number or a string"),
        ({"部门": {"$gt": True}}, TypeError, "number or a string"),
        ({"部门": {"$exists": 1}}, TypeError, "True or False"),
        ({"部门": {"$icontains": 3}}, TypeError, "a string"),
        ({"部门": {"$contains": None}}, TypeError, "a string"),
        ({"页": float("nan")}, TypeError, "finite"),
        ({"页": 2**64}, TypeError, "64 bits"),
        ({"页": np.int64(3)}, TypeError, "needs a string"),
        ({"部门": "\ud800"}, ValueError, "surrogate"),
        ({'x"y': 2}, ValueError, "double quote"),
        ({1: "a"}, TypeError, "strings"),
        ({"$or": []}, TypeError, "not empty"),
        ({"$or": {"部门": 1}}, TypeError, "list of filters"),
        ({"$not": [{"部门": 1}]}, TypeError, "dict"),
        ("部门", TypeError, "dict"),
        ({"$or": [{"号": i} for i in range(20_000)]}, ValueError, "at most"),
    ],
)
def test_bad_filters_say_what_is_wrong(where: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compile_filter(where)


def test_a_filter_nested_too_deep_is_refused() -> None:
    where: dict[str, Any] = {"部门": "财务"}
    for _ in range(200):
        where = {"$not": where}
    with pytest.raises(ValueError, match="deeper"):
        compile_filter(where)
