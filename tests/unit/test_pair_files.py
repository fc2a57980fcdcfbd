"""Files of questions and answers: names of the fields, and lines that are no pair."""

from pathlib import Path

import pytest

from luotuo_integrations.atomic_file import replaced_file
from luotuo_integrations.pair_files import PairFileError, Question, read_pairs, read_questions, write_rows


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
    with pytest.raises(PairFileError, match=r"holds no questions.*luotuo questions"):
        read_questions(path)


def test_questions_have_an_answer_or_ids(tmp_path: Path) -> None:
    path = tmp_path / "问题.jsonl"
    rows = [
        {"query": "年假", "positive": "五天。", "source": "制度.md", "section": "年假"},
        {"question": "几点", "answer": "九点。", "id": 17},  # its own number
        {"query": "谁批", "id": "制度.md#3"},
        {"question": "谁批", "ids": ["a", "b"], "id": "c", "source": None},
        {"query": "都有", "positive": "五天。\u2028九点。", "ids": ["a"]},
    ]
    write_rows(path, rows)
    assert read_questions(path) == [
        Question("年假", "五天。", "制度.md"),
        Question("几点", "九点。"),
        Question("谁批", ids=("制度.md#3",)),
        Question("谁批", ids=("a", "b", "c")),
        Question("都有", "五天。\u2028九点。", ids=("a",)),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"query": "年假"}',
        '{"query": "年假", "ids": []}',
        '{"query": "年假", "ids": "a"}',
        '{"query": "年假", "ids": [1]}',
        '{"query": "年假", "id": 1}',
        '{"query": " ", "id": "a"}',
        '{"query": "年假", "positive": "五天", "source": 5}',
        '{"frage": "年假", "antwort": "五天"}',
        '["年假", "五天"]',
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "问题.jsonl"
    path.write_text('{"query": "几点", "positive": "九点"}\n\n' + line, encoding="utf-8")
    with pytest.raises(PairFileError, match=r'line 3 is .*query and positive; question and answer.*"ids"'):
        read_questions(path)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "问题.jsonl"
    path.write_bytes("年假".encode("gb18030"))
    with pytest.raises(PairFileError, match="no text in UTF-8"):
        read_questions(path)
    path.write_text("年假", encoding="utf-8")
    with pytest.raises(PairFileError, match="line 1 is no JSON"):
        read_questions(path)


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "问题.jsonl"
    write_rows(path, [{"query": "年假"}])
    with pytest.raises(TypeError):
        write_rows(path, [{"query": "几点"}, {"query": {1}}])
    assert path.read_text(encoding="utf-8") == '{"query": "年假"}\n'

    def write_half() -> None:
        with replaced_file(path) as temporary:
            temporary.write_text("半", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert path.read_text(encoding="utf-8") == '{"query": "年假"}\n'
    assert [one.name for one in tmp_path.iterdir()] == ["问题.jsonl"]
    with pytest.raises(FileNotFoundError):
        write_rows(tmp_path / "没有" / "问题.jsonl", [])
