"""Documents are checked before anything is touched."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luotuo_integrations.store.batch import check_documents, check_ids


def test_new_ids_are_made_and_given_ones_kept() -> None:
    batch = check_documents(["甲", "", "丙"], [{"页": 1}, None, {}], ["一", None, "三"])
    assert batch.ids[0] == "一"
    assert batch.ids[2] == "三"
    assert len(set(batch.ids)) == 3
    assert len(batch.ids[1]) == 32
    assert batch.kept == [0, 1, 2]
    assert batch.contents == ["甲", "", "丙"]
    assert batch.metadatas == ['{"页":1}', "{}", "{}"]
    assert check_documents([]) == ([], [], [], [])
    assert check_documents(iter(["甲", "乙"]), ids=iter(["1", "2"])).ids == ["1", "2"]


def test_of_an_id_given_twice_the_last_document_counts() -> None:
    batch = check_documents(["旧", "另", "新"], [{"版": 1}, {}, {"版": 2}], ["甲", "乙", "甲"])
    assert batch.ids == ["甲", "乙", "甲"]
    assert batch.kept == [1, 2]
    assert batch.kept_ids == ["乙", "甲"]
    assert batch.contents == ["另", "新"]
    assert batch.metadatas == ["{}", '{"版":2}']


def test_what_was_given_is_not_changed_and_values_come_back_as_they_were() -> None:
    metadata: dict[str, Any] = {
        "文": '引号" 反斜\\ 换\n行 \x00 😀',
        "数": 0.1,
        "大": 2**70,
        "是": True,
        "无": None,
        "表": [1, {"深": []}],
    }
    copy = json.loads(json.dumps(metadata))
    batch = check_documents(["甲"], [metadata])
    assert metadata == copy
    assert json.loads(batch.metadatas[0]) == metadata
    assert json.loads(check_documents(["甲"], [{"框": (1, 2)}]).metadatas[0]) == {"框": [1, 2]}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("一段文字",), TypeError, "texts is str.*give a list"),
        ((None,), TypeError, "texts is NoneType"),
        ((["甲", None],), TypeError, r"texts\[1\] is NoneType.*must be a string"),
        ((["甲", 3.5],), TypeError, r"texts\[1\] is float"),
        ((["甲\ud800"],), ValueError, r"texts\[0\] holds a lone surrogate at 1"),
        ((["甲"], {"页": 1}), TypeError, "metadatas is dict"),
        ((["甲"], [{}, {}]), ValueError, "2 metadatas were given for 1 texts"),
        ((["甲"], ["页"]), TypeError, r"metadatas\[0\] is str"),
        (
            (["甲"], [{"日期": datetime.date(2026, 1, 1)}]),
            TypeError,
            r"metadatas\[0\]\['日期'\] is datetime.date.*isoformat",
        ),
        ((["甲"], [{"表": [1, {2}]}]), TypeError, r"metadatas\[0\]\['表'\]\[1\] is builtins.set"),
        ((["甲"], [{"页": np.int64(3)}]), TypeError, r"numpy.int64.*int\("),
        ((["甲"], [{"径": Path("a")}]), TypeError, "Path"),
        ((["甲"], [{"数": float("nan")}]), ValueError, r"\['数'\] is nan"),
        ((["甲"], [{1: "a"}]), TypeError, "the key 1"),
        ((["甲"], [{"深": {2: "a"}}]), TypeError, "the key 2"),
        ((["甲"], [{"文": "\udfff"}]), ValueError, r"metadatas\[0\] holds a lone surrogate"),
        ((["甲", "乙"], None, ["一"]), ValueError, "1 ids were given for 2 texts"),
        ((["甲"], None, "一"), TypeError, "ids is str"),
        ((["甲"], None, [7]), TypeError, r"ids\[0\] is int"),
        ((["甲"], None, [""]), ValueError, "must not be empty"),
        ((["甲"], None, ["a\0b"]), ValueError, "NUL"),
    ],
)
def test_what_cannot_be_stored_is_named(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_documents(*arguments)


def test_ids_that_are_asked_for_are_checked() -> None:
    assert check_ids(("甲", "乙")) == ["甲", "乙"]
    with pytest.raises(TypeError, match="give a list"):
        check_ids("甲")
    with pytest.raises(TypeError, match=r"ids\[1\] is NoneType"):
        check_ids(["甲", None])  # type: ignore[list-item]
