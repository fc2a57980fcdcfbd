"""Questions of a language model: what is read in its replies, and that what is finished survives what may happen."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from luotuo_integrations import openai_compatible
from luotuo_integrations.question_asking import PartialFileError, ask_questions, holds_replies, parse_questions
from luotuo_integrations.question_making import MadeQuestions, QuestionMakingError
from luotuo_integrations.store.table import StoredDocument
from tests.openai_stub import OpenAIStubServer

BODY = "正式员工每年有十五天年休假。年休假可以请几天？请看下表。"
PASSAGES = [
    StoredDocument(
        str(n), f"## 第{n}节\n\n第{n}号规定的内容写在这里，请遵守。", {"source": "规定.md", "headings": f"第{n}节"}
    )
    for n in range(12)
]


def ask_about(prompt: str) -> str:
    """A question that belongs to the passage in the prompt."""
    number = prompt.rpartition("资料：\n第")[2].partition("号")[0]
    return f"第{number}号要注意什么？"


def asked(llm: Callable[[str], str], folder: Path, **options: object) -> MadeQuestions:
    return ask_questions(PASSAGES, llm, folder / "问题.jsonl.partial", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "questions", "refused"),
    [
        ("一年能休多少天？", ["一年能休多少天？"], 0),
        ("1. 一年能休多少天？\n2、谁批准?\n（3）怎么申请？", ["一年能休多少天？", "谁批准?", "怎么申请？"], 0),
        ("问题1：一年能休多少天？\n答案：十五天。\n- **怎么申请？**", ["一年能休多少天？", "怎么申请？"], 0),
        ("<think>问什么好？想想？</think>\n\n“一年能休多少天？”", ["一年能休多少天？"], 0),
        ('```json\n["一年能休多少天？", "怎么申请？"]\n```', ["一年能休多少天？", "怎么申请？"], 0),
        ('[{"question": "一年能休多少天？"}]', ["一年能休多少天？"], 0),
        ("好的，以下是问题：\n一年能休多少天？\n希望对您有帮助。", ["一年能休多少天？"], 0),
        ("一年能休多少天？\n一年能休多少天?", ["一年能休多少天？"], 0),
        ("12 个月能休几天？", ["12 个月能休几天？"], 0),
        ("本文讲了什么？\n根据资料，能休几天？\n上述规定怎么申请？\n这段文字说了什么？", [], 4),
        ("年休假可以请几天？", [], 1),  # copied
        ("几？\n" + "很长" * 80 + "？", [], 2),
        ("无", [], 0),
        ("", [], 0),
        ("抱歉，我无法回答。", [], 0),
        ("[不是 JSON？", ["[不是 JSON？"], 0),
        ("[1, 2]", [], 0),
        (
            "1. 3.5万元以下的报销谁审批？\n12:30以后打卡算迟到吗？\n2) 10.1假期能连休吗？\n10：30开会能迟到吗？",
            ["3.5万元以下的报销谁审批？", "12:30以后打卡算迟到吗？", "10.1假期能连休吗？", "10：30开会能迟到吗？"],
            0,
        ),
        (
            "1.5倍工资怎么算？\n- 3、5年司龄有区别吗？\n3)10天年假能分开休吗？",
            ["1.5倍工资怎么算？", "3、5年司龄有区别吗？", "10天年假能分开休吗？"],
            0,
        ),
        ("1. 1. 2月的奖金哪天发？\n-1层车库能停车吗？", ["1. 2月的奖金哪天发？", "-1层车库能停车吗？"], 0),
        ("- **1. 怎么申请？**\n> Q2：3天的假谁批？\n**3.** 谁签字？", ["怎么申请？", "3天的假谁批？", "谁签字？"], 0),
        ("年假\ud83d能休几天？\n怎么申请\U0001f600？", ["怎么申请\U0001f600？"], 1),  # half of an emoji
        ('["年假\\ud83d能休几天？", "怎么申请\\ud83d\\ude00？"]', ["怎么申请\U0001f600？"], 1),
    ],
)
def test_what_is_read_in_a_reply(text: str, questions: list[str], refused: int) -> None:
    assert parse_questions(text, BODY, 5) == (questions, refused)


def test_no_more_than_were_asked_for_are_taken() -> None:
    assert parse_questions("一年能休多少天？\n怎么申请？", BODY, 1)[0] == ["一年能休多少天？"]


def test_a_server_is_asked_about_each_passage(tmp_path: Path) -> None:
    with OpenAIStubServer(lambda request: ask_about(request["messages"][-1]["content"])) as stub:
        made = asked(openai_compatible(stub.base_url, "stub-model"), tmp_path)
    assert [row.query for row in made.rows] == [f"第{n}号要注意什么？" for n in range(12)]
    assert made.rows[3].positive == "第3号规定的内容写在这里，请遵守。"
    assert (made.rows[3].source, made.rows[3].section, made.rows[3].made_from) == ("规定.md", "第3节", "language model")
    system, user = (message["content"] for message in stub.requests[0]["messages"])
    assert "请写出1个" in system
    assert "出处：规定.md，第" in user
    assert len(stub.requests) == 12


def test_garbage_is_skipped_and_counted_and_not_asked_again(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        calls.append(prompt)
        question = ask_about(prompt)
        return {"第1号": "无", "第2号": "本文讲了什么？", "第3号": "第4号要注意什么？"}.get(question[:3], question)

    calls: list[str] = []
    made = asked(answer, tmp_path)
    assert len(made.rows) == 9
    assert made.skipped == {"reply without a question": 1, "question not usable": 1, "asked before": 1}
    assert asked(answer, tmp_path) == made
    assert len(calls) == 12
    with pytest.raises(
        QuestionMakingError, match=r"no usable question for 12 passages \(reply without a question: 12\)"
    ):
        ask_questions(PASSAGES, lambda _: "不知道。", tmp_path / "另一个.partial")


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError("the server fell over")])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_is_finished_survives_and_the_same_call_goes_on(
    tmp_path: Path, problem: type[BaseException] | BaseException, concurrency: int
) -> None:
    calls: list[str] = []
    lock = threading.Lock()

    def answer(prompt: str) -> str:
        with lock:
            calls.append(prompt)
            if len(calls) == 8:
                raise problem
        return ask_about(prompt)

    with pytest.raises(KeyboardInterrupt if problem is KeyboardInterrupt else OSError):
        asked(answer, tmp_path, concurrency=concurrency)
    kept = len((tmp_path / "问题.jsonl.partial").read_text(encoding="utf-8").splitlines()) - 1
    assert 1 <= kept <= 11
    before = len(calls)
    whole = asked(answer, tmp_path, concurrency=concurrency)
    assert [row.query for row in whole.rows] == [f"第{n}号要注意什么？" for n in range(12)]
    assert len(calls) - before == 12 - kept


def test_a_limit_asks_no_more_than_it_needs_and_draws_by_the_seed(tmp_path: Path) -> None:
    calls: list[str] = []

    def answer(prompt: str) -> str:
        calls.append(prompt)
        return "无" if len(calls) <= 2 else ask_about(prompt)

    made = asked(answer, tmp_path, limit=4, concurrency=1)
    assert (len(made.rows), len(calls)) == (4, 6)
    assert [row.query for row in made.rows] != [f"第{n}号要注意什么？" for n in range(4)]
    again = asked(ask_about_twice := lambda prompt: ask_about(prompt), tmp_path, limit=4)
    assert again.rows == made.rows
    other = ask_questions(PASSAGES, ask_about_twice, tmp_path / "另一个.partial", limit=4, seed=5)
    assert other.rows != made.rows


def test_a_changed_passage_is_asked_about_anew(tmp_path: Path) -> None:
    asked(ask_about, tmp_path)
    changed = StoredDocument("0", "第99号规定的内容写在这里，请遵守。", {})
    made = ask_questions([*PASSAGES[1:], changed], ask_about, tmp_path / "问题.jsonl.partial")
    assert [row.query for row in made.rows][-1] == "第99号要注意什么？"
    assert len(made.rows) == 12


def test_a_partial_file_of_other_settings_or_of_something_else_is_refused(tmp_path: Path) -> None:
    asked(ask_about, tmp_path, model_name="glm-4", limit=2)
    with pytest.raises(PartialFileError, match=r"begun with model 'glm-4'; give the same, delete that file"):
        asked(ask_about, tmp_path, model_name="qwen3")
    with pytest.raises(PartialFileError, match="per_passage 1"):
        asked(ask_about, tmp_path, model_name="glm-4", per_passage=2)
    (tmp_path / "问题.jsonl.partial").write_text('{"query": "别的"}\n', encoding="utf-8")
    with pytest.raises(PartialFileError, match="is no file of finished questions"):
        asked(ask_about, tmp_path)
    assert (tmp_path / "问题.jsonl.partial").read_text(encoding="utf-8") == '{"query": "别的"}\n'


def test_a_line_that_was_cut_off_is_asked_about_again(tmp_path: Path) -> None:
    whole = asked(ask_about, tmp_path)
    partial = tmp_path / "问题.jsonl.partial"
    content = partial.read_bytes()
    partial.write_bytes(content[:-20])
    calls: list[str] = []

    def answer(prompt: str) -> str:
        calls.append(prompt)
        return ask_about(prompt)

    assert asked(answer, tmp_path) == whole
    assert len(calls) == 1
    assert all(json.loads(line) for line in partial.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("begun", ["", "{", '{"settings": {"mod', '{"settings": {"model": "glm-4", "per_passage": 1'])
def test_a_first_line_that_was_cut_off_is_no_line(tmp_path: Path, begun: str) -> None:
    partial = tmp_path / "问题.jsonl.partial"
    partial.write_text(begun, encoding="utf-8")
    assert not holds_replies(partial)
    made = asked(ask_about, tmp_path)
    assert len(made.rows) == 12
    assert [len(json.loads(line)) for line in partial.read_text(encoding="utf-8").splitlines()] == [1] + [3] * 12
    assert asked(lambda _: pytest.fail("was asked again"), tmp_path) == made
    assert holds_replies(partial)


@pytest.mark.parametrize("other", ["我的笔记", '{"settings": 3}\n', "[]\n", '{"settings": {}}\n[1]\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, other: str) -> None:
    partial = tmp_path / "问题.jsonl.partial"
    partial.write_text(other, encoding="utf-8")
    with pytest.raises(PartialFileError):
        asked(lambda _: pytest.fail("was called"), tmp_path)
    assert partial.read_text(encoding="utf-8") == other


def test_half_of_an_emoji_in_a_reply_costs_one_question(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return ask_about(prompt).replace("第3号", "\ud83d第3号")

    made = asked(answer, tmp_path, concurrency=1)
    assert len(made.rows) == 11
    assert made.skipped == {"question not usable": 1}
    assert asked(lambda _: pytest.fail("was asked again"), tmp_path) == made


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from luotuo_integrations.question_asking import ask_questions
from tests.unit.test_question_asking import PASSAGES, ask_about
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
ask_questions(PASSAGES, ask_about, Path(sys.argv[1]), concurrency=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the size of a file are Linux's")
@pytest.mark.parametrize("room", [0, 20, 100, 300])
def test_a_full_disk_leaves_whole_lines_and_the_same_call_goes_on(tmp_path: Path, room: int) -> None:
    """Real writes that end in the middle of a line, in a process whose files may have so many bytes."""
    partial = tmp_path / "问题.jsonl.partial"
    command = [sys.executable, "-c", FULL_DISK, str(partial), str(room)]
    ended = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], check=False)
    assert b"File too large" in ended.stderr
    kept = 0
    if partial.exists():
        content = partial.read_bytes()
        assert content.endswith(b"\n")
        kept = len(content.splitlines()) - 1
    assert (kept > 0) == (room == 300) == partial.exists()
    calls: list[str] = []

    def answer(prompt: str) -> str:
        calls.append(prompt)
        return ask_about(prompt)

    assert len(asked(answer, tmp_path).rows) == 12
    assert len(calls) == 12 - kept


def test_bad_arguments_are_refused_before_any_call(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="llm is int"):
        asked(5, tmp_path)  # type: ignore[arg-type]
    for options in ({"concurrency": 0}, {"per_passage": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="from 1 on"):
            asked(lambda _: pytest.fail("was called"), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
