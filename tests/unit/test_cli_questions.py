"""`luotuo questions`: questions out of real documents, usable by evaluate, mapper fit and finetune as they are."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from luotuo_integrations import FAISS, LuotuoEmbeddings, cli
from luotuo_integrations.pair_files import read_pairs, read_questions
from luotuo_integrations.question_asking import ask_questions
from luotuo_integrations.store.table import StoredDocument
from luotuo_integrations.training.records import read_records
from tests.openai_stub import OpenAIStubServer

TOPICS = ("年假", "病假", "婚假", "产假", "事假", "丧假", "调休", "加班", "打卡", "外勤", "迟到", "早退")
TEXT = "# 考勤\n\n" + "".join(
    f"## {topic}规定\n\n{topic}的办法写在第{n}页。要请{topic}的员工须提前{n + 2}天向直属上级提出。\n\n"
    for n, topic in enumerate(TOPICS)
)


def run(*arguments: object, **options: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)
    assert "Traceback" not in result.output
    return result


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question(request: dict[str, Any]) -> str:
    """One that belongs to the passage asked about."""
    topic = request["messages"][-1]["content"].rpartition("资料：\n")[2].partition("的办法")[0]
    return f"1. 想请{topic}要先做什么？"


@pytest.fixture
def documents(tmp_path: Path, tiny_folder: Path) -> list[object]:
    """Arguments: a folder of twelve passages, and the tiny model."""
    (tmp_path / "文档").mkdir()
    (tmp_path / "文档" / "考勤.md").write_text(TEXT, encoding="utf-8")
    return [tmp_path / "文档", "--model", tiny_folder, "--out", tmp_path / "问题.jsonl"]


def test_questions_of_documents_are_usable_as_they_are(documents: list[object], tmp_path: Path) -> None:
    result = run("questions", *documents)
    assert result.exit_code == 0, result.output
    target = tmp_path / "问题.jsonl"
    assert result.stdout.splitlines()[0] == f"12 questions about 12 passages: {target}"
    rows = rows_of(target)
    assert [set(row) for row in rows] == [{"query", "positive", "source", "section", "made_from"}] * 12
    assert {row["made_from"] for row in rows} == {"heading", "first sentence"}
    assert {row["source"] for row in rows} == {"考勤.md"}
    assert len(read_pairs(target)) == len(read_questions(target)) == len(list(read_records(target))) == 12
    report = json.loads(run("evaluate", "--store", documents[0], "--questions", target, "--json").stdout)
    assert (report["questions"], report["unanswered"], report["cut"]) == (12, [], 0)
    assert report["searches"]["keyword"]["recall@1"]["mean"] > 0.9
    fitted = run("mapper", "fit", "--pairs", target, "--out", tmp_path / "m.mapper", "--model", documents[2])
    assert fitted.exit_code == 0


def test_of_an_index_and_in_json(tmp_path: Path, tiny_folder: Path) -> None:
    texts = ["年假有十五天。须提前三天申请，由上级批准。", "出差住宿五百元。须凭发票在一周之内报销。"]
    FAISS.from_texts(texts, LuotuoEmbeddings(str(tiny_folder))).save_local(tmp_path / "库")
    before = {path.name: path.read_bytes() for path in (tmp_path / "库").iterdir()}
    options = (tmp_path / "库", "--out", tmp_path / "问题.jsonl", "--seed", "3", "--json")
    summary = json.loads(run("questions", *options).stdout)
    assert (summary["questions"], summary["passages"], summary["skipped"]) == (2, 2, {"no heading": 2})
    assert rows_of(tmp_path / "问题.jsonl")[0] == {
        "query": "年假有十五天。",
        "positive": "须提前三天申请，由上级批准。",
        "source": "",
        "section": "",
        "made_from": "first sentence",
    }
    assert {path.name: path.read_bytes() for path in (tmp_path / "库").iterdir()} == before


def test_of_a_language_model(documents: list[object], tmp_path: Path) -> None:
    with OpenAIStubServer(question) as stub:
        options = ("--llm", stub.base_url, "--llm-model", "stub-model", "--limit", 5)
        result = run("questions", *documents, *options)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "问题.jsonl")
    assert len(rows) == len(stub.requests) == 5
    assert all(row["query"] == f"想请{row['positive'][:2]}要先做什么？" for row in rows)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["文档", "问题.jsonl"])


def test_after_an_error_the_same_command_goes_on(documents: list[object], tmp_path: Path) -> None:
    failing = {"from": 5}

    def answer(request: dict[str, Any]) -> str:
        stub.error = 400 if len(stub.requests) >= failing["from"] else None  # from the next request on
        return question(request)

    with OpenAIStubServer(answer) as stub:
        options = ("--llm", stub.base_url, "--llm-model", "stub-model", "--concurrency", 1)
        broken = run("questions", *documents, *options)
        assert (broken.exit_code, broken.stdout) == (1, "")
        assert "the stub was told to answer 400" in broken.stderr
        assert f"kept in {tmp_path / '问题.jsonl.partial'}; the same command goes on" in broken.stderr
        assert not (tmp_path / "问题.jsonl").exists()
        stub.error, failing["from"] = None, 99
        asked_before = len(stub.requests)
        kept = (tmp_path / "问题.jsonl.partial").read_bytes()
        for changed, begun in ((("--per-passage", 2), "per_passage 1"), (("--llm-model", "x"), "model 'stub-model'")):
            other = run("questions", *documents, *options, *changed)
            assert other.exit_code == 1
            assert f"was begun with {begun}" in other.stderr
            assert "goes on" not in other.stderr  # it does not
        assert (tmp_path / "问题.jsonl.partial").read_bytes() == kept
        assert len(stub.requests) == asked_before
        assert run("questions", *documents, *options).exit_code == 0
    assert asked_before >= 6
    assert len(stub.requests) == asked_before + 7
    assert len(rows_of(tmp_path / "问题.jsonl")) == 12
    assert not (tmp_path / "问题.jsonl.partial").exists()


def test_without_a_language_model_what_one_has_written_is_not_deleted(documents: list[object], tmp_path: Path) -> None:
    partial = tmp_path / "问题.jsonl.partial"
    passages = [StoredDocument("1", "年假有十五天，须提前三天申请。", {})]
    ask_questions(passages, lambda _: "年假怎么请？", partial, model_name="stub-model")
    kept = partial.read_bytes()
    refused = run("questions", *documents)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "give its --llm and --llm-model (or --local-llm) to go on" in refused.stderr
    assert partial.read_bytes() == kept
    assert not (tmp_path / "问题.jsonl").exists()
    assert not (tmp_path / "文档" / ".luotuo").exists()  # told before any work
    partial.unlink()
    assert run("questions", *documents).exit_code == 0


@pytest.mark.parametrize("begun", [None, "", '{"settings": {'])
def test_where_nothing_is_finished_nothing_is_said_to_be_kept(
    documents: list[object], tmp_path: Path, begun: str | None
) -> None:
    if begun is not None:
        (tmp_path / "问题.jsonl.partial").write_text(begun, encoding="utf-8")
    with OpenAIStubServer(question) as stub:
        stub.error = 400
        result = run("questions", *documents, "--llm", stub.base_url, "--llm-model", "stub-model")
    assert result.exit_code == 1
    assert "the stub was told to answer 400" in result.stderr
    assert "kept" not in result.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["文档"]


def test_garbage_of_a_server_is_told(documents: list[object], tmp_path: Path) -> None:
    with OpenAIStubServer("我是一个语言模型。") as stub:
        result = run("questions", *documents, "--llm", stub.base_url, "--llm-model", "stub-model")
    assert result.exit_code == 1
    assert "no usable question for 12 passages (reply without a question: 12)" in result.stderr
    assert "goes on" not in result.stderr
    assert not (tmp_path / "问题.jsonl").exists()


def test_ctrl_c_keeps_what_is_finished(documents: list[object], tmp_path: Path) -> None:
    """The real thing: a process, a signal, and the same command again."""
    run("index", *documents[:3])

    def slow(request: dict[str, Any]) -> str:
        time.sleep(0.2)
        return question(request)

    with OpenAIStubServer(slow) as stub:
        options = [*documents, "--llm", stub.base_url, "--llm-model", "stub-model", "--concurrency", 1]
        program = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from luotuo_integrations.cli import app\napp()"
        )
        command = [sys.executable, "-c", program, "questions", *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            while len(stub.requests) < 4:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "the same command goes on from there" in " ".join(errors.decode().split())
        kept = len((tmp_path / "问题.jsonl.partial").read_text(encoding="utf-8").splitlines()) - 1
        assert 2 <= kept < 12
        asked_before = len(stub.requests)
        stub.answer = question
        assert run("questions", *options).exit_code == 0
    assert len(stub.requests) - asked_before == 12 - kept
    assert len(rows_of(tmp_path / "问题.jsonl")) == 12


def test_what_is_wrong_is_told_before_any_work(documents: list[object], tmp_path: Path) -> None:
    folder, *options = documents
    target = tmp_path / "问题.jsonl"
    target.write_text("我的改动\n", encoding="utf-8")
    there = run("questions", *documents)
    assert there.exit_code == 1
    assert "is there already" in there.stderr
    assert target.read_text(encoding="utf-8") == "我的改动\n"
    nowhere = run("questions", folder, "--out", tmp_path / "没有" / "问题.jsonl", env={"COLUMNS": "200"})
    assert nowhere.exit_code == 2
    assert "must be a file in a folder that exists" in nowhere.stderr
    target.unlink()
    both = run("questions", *documents, "--llm", "http://127.0.0.1:1/v1", "--local-llm", "x", env={"COLUMNS": "200"})
    assert both.exit_code == 2
    assert not (tmp_path / "文档" / ".luotuo").exists()
    (tmp_path / "空").mkdir()
    empty = run("questions", tmp_path / "空", *options)
    assert empty.exit_code == 1
    assert "nothing to index" in empty.stderr


def test_the_help_says_what_questions_without_a_language_model_are_worth() -> None:
    shown = " ".join(run("questions", "--help", env={"COLUMNS": "200"}).stdout.split())
    assert "Take them to compare settings of one kind, not as a measure of quality" in shown
