"""Files of questions and answers: names of the fields, and lines that are no pair."""

from pathlib import Path

import pytest

from luotuo_integrations.pair_files import PairFileError, read_pairs


def test_pairs_under_any_known_names(tmp_path: Path) -> None:
    path = tmp_path / "问答.jsonl"
    lines = [
        '{"query": "年假有几天", "positive": "五天。", "source": "制度"}',
        "",
        '{"question": "几点上班", "answer": "九点。"}',
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert read_pairs(path) == [("年假有几天", "五天。"), ("几点上班", "九点。")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("年假", "line 2 is no JSON"),
        ('{"query": "年假"}', "line 2 is .*query and positive; question and answer"),
        ('{"query": "年假", "positive": " "}', "not blank"),
        ('{"query": "年假", "positive": 5}', "two texts"),
        ('["年假", "五天"]', "two texts"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "几点", "positive": "九点"}\n' + line, encoding="utf-8")
    with pytest.raises(PairFileError, match=message):
        read_pairs(path)


def test_a_file_without_pairs_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(PairFileError, match="holds no pairs"):
        read_pairs(path)
