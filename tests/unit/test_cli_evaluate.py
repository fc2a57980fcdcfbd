"""`luotuo evaluate`: what it prints of real indexes, what it writes, and what it refuses before any work."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from luotuo_integrations import FAISS, LuotuoEmbeddings, cli
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.pair_files import write_rows
from tests.character_embeddings import CharacterEmbeddings
from tests.tiny_rerankers import save_bert

LEAVE = "# 休假制度\n\n## 年休假\n\n正式员工每年有十五天年休假。\n\n## 试用期\n\n试用期员工暂不享受年休假。\n"
ROWS = [
    {"query": "一年能休几天", "positive": "正式员工每年有十五天年休假。", "source": "休假制度.md"},
    {"query": "刚来的人能休年假吗", "positive": "试用期员工暂不享受年休假。"},
    {"query": "住宿四百五十元", "ids": ["住宿.txt#0"]},
    {"query": "董事长是谁", "positive": "董事长是一位不在文档里的人。"},
]


def run(*arguments: object, **options: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed folder with its questions, only to be read."""
    folder = tmp_path_factory.mktemp("手册")
    (folder / "休假制度.md").write_text(LEAVE, encoding="utf-8")
    (folder / "住宿.txt").write_text("出差住宿标准每晚不超过四百五十元。\n", encoding="utf-8")
    write_rows(folder / "问题.jsonl", ROWS)
    assert run("index", folder).exit_code == 0
    return folder


@pytest.fixture
def tiny_store(tmp_path: Path, tiny_folder: Path) -> list[object]:
    """Arguments: a store of plain texts, saved from LangChain, and questions about it."""
    store = FAISS.from_texts(["年假十五天", "住宿五百元", "加班可调休"], LuotuoEmbeddings(str(tiny_folder)))
    store.save_local(tmp_path / "库")
    rows = [{"question": "年假", "answer": "年假十五天"}, {"question": "住宿", "answer": "住宿五百元"}]
    write_rows(tmp_path / "问题.jsonl", rows)
    return ["--store", tmp_path / "库", "--questions", tmp_path / "问题.jsonl"]


def test_a_table_of_searches_and_what_differs(documents: Path) -> None:
    result = run("evaluate", "--store", documents, "--questions", documents / "问题.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 questions, ")
    assert lines[0].endswith(" passages, model luotuo-mini")
    assert lines[1:3] == ["1 more were left out, because no passage holds their answer:", "  董事长是谁"]
    assert lines[4].split() == ["recall@1", "recall@5", "recall@10", "MRR@10", "nDCG@10"]
    table = {line.split()[0]: line.split()[1:] for line in lines[5:11:2]}
    assert list(table) == ["vector", "keyword", "hybrid"]
    assert table["vector"][1:3] == ["1.000", "1.000"]
    assert all(re.fullmatch(r"( +\d\.\d\d-\d\.\d\d){5}", line) for line in lines[6:11:2])
    assert "nDCG@10 minus vector" in result.stdout
    assert "0.05 / 2 = 0.025" in result.stdout
    assert "Under 50 questions" in result.stdout


def test_the_index_may_be_named_itself_and_stays_as_it_was(documents: Path) -> None:
    before = {path.name: path.read_bytes() for path in (documents / ".luotuo").iterdir()}
    (documents / "neu.txt").write_text("还没有编入索引的文件。", encoding="utf-8")
    options = ("--questions", documents / "问题.jsonl", "--json")
    inside = json.loads(run("evaluate", "--store", documents / ".luotuo", *options).stdout)
    above = json.loads(run("evaluate", "--store", documents, *options).stdout)
    assert inside == above
    assert {path.name: path.read_bytes() for path in (documents / ".luotuo").iterdir()} == before
    (documents / "neu.txt").unlink()
    assert set(inside["searches"]) == {"vector", "keyword", "hybrid"}
    assert set(inside["searches"]["vector"]["recall@1"]) == {"mean", "low", "high"}
    assert set(inside["compared"]["differences"]["hybrid"]) == {"difference", "low", "high", "p"}
    assert inside["unanswered"] == ["董事长是谁"]
    assert inside["ranks"][2]["ranks"]["keyword"] == 1


def test_a_store_saved_from_langchain_with_everything_on(
    tiny_store: list[object], tiny_folder: Path, tmp_path: Path
) -> None:
    embeddings = LuotuoEmbeddings(str(tiny_folder))
    mapper = LinearQueryMapper(
        -2 * np.eye(24, dtype=np.float32), np.zeros(24, np.float32), embeddings.model, embeddings.fingerprint
    ).save(tmp_path / "faq.mapper")
    reranker = save_bert(tmp_path / "重排")
    result = run(
        *("evaluate", *tiny_store, "--mapper", mapper, "--rerank", reranker, "--rerank-k", 3, "--recall", "1,2"),
        *("--tokenizer", "words", "--limit", 1, "--out", tmp_path / "结果.json"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 questions, 3 passages, model ")
    content = json.loads((tmp_path / "结果.json").read_text(encoding="utf-8"))
    assert list(content["searches"]) == [
        *("vector", "keyword", "hybrid", "vector + mapper", "hybrid + mapper"),
        *("hybrid + rerank", "hybrid + mapper + rerank"),
    ]
    assert list(content["searches"]["vector"]) == ["recall@1", "recall@2", "mrr@10", "ndcg@10"]
    (ranks,) = (one["ranks"] for one in content["ranks"])
    assert ranks["vector"] + ranks["vector + mapper"] == 4  # -x turns the order around
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        ["库", "问题.jsonl", "重排", "结果.json", "faq.mapper"]
    )


def test_a_cut_answer_is_told(tiny_store: list[object], tiny_folder: Path, tmp_path: Path) -> None:
    texts = ["年假十五天，须提前三天书面申请，", "住宿五百元", "加班可调休"]
    FAISS.from_texts(texts, LuotuoEmbeddings(str(tiny_folder))).save_local(tmp_path / "库")
    rows = [
        {"query": "年假", "positive": "年假十五天，须提前三天书面申请，由上级批准。"},
        {"query": "能在家办公吗", "positive": "加班可调休，别的不行。"},
    ]
    write_rows(tmp_path / "问题.jsonl", rows)
    lines = run("evaluate", *tiny_store).stdout.splitlines()
    assert lines[0].startswith("1 questions, 3 passages")
    assert lines[1].startswith("1 of them have an answer that was cut")
    assert lines[2:4] == ["1 more were left out, because no passage holds their answer:", "  能在家办公吗"]


def test_a_mapper_may_be_a_folder_of_llama_index(tiny_store: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "适配器"
    folder.mkdir()
    (folder / "config.json").write_text('{"in_features": 24, "out_features": 24, "bias": false}', encoding="utf-8")
    damaged = run("evaluate", *tiny_store, "--mapper", folder)
    assert (damaged.exit_code, damaged.stdout) == (1, "")
    assert "Give a folder that LlamaIndex's LinearLayer.save(folder) wrote" in damaged.stderr
    torch.save({"linear.weight": -torch.eye(24)}, folder / "pytorch_model.bin")
    result = run("evaluate", *tiny_store, "--mapper", folder, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert list(content["searches"]) == ["vector", "keyword", "hybrid", "vector + mapper", "hybrid + mapper"]
    for one in content["ranks"]:  # -x turns the order of the three passages around
        assert one["ranks"]["vector"] + one["ranks"]["vector + mapper"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions"),
        ('{"query": "年假", "positive": "十五天"}\n年假', "line 2 is no JSON"),
        ('{"frage": "年假", "antwort": "十五天"}', "query and positive; question and answer"),
        ('{"query": "年假", "positive": "这句话不在任何一段里，也没有相近的。"}', "None of the 1 questions"),
    ],
)
def test_questions_that_cannot_be_used_are_an_error(
    tiny_store: list[object], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "问题.jsonl").write_text(content, encoding="utf-8")
    result = run("evaluate", *tiny_store, "--out", tmp_path / "结果.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert not (tmp_path / "结果.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "没有/结果.json"], "must be a file in a folder that exists"),
        (["--recall", "1,x"], "must be whole numbers from 1 on"),
        (["--recall", "0"], "must be whole numbers from 1 on"),
        (["--limit", "0"], "Invalid value"),
        (["--tokenizer", "jieba"], "Invalid value"),
        (["--mapper", "没有.mapper"], "does not exist"),
    ],
)
def test_wrong_usage_exits_with_2(tiny_store: list[object], options: list[str], message: str) -> None:
    result = run("evaluate", *tiny_store, *options, env={"COLUMNS": "200"})
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_no_index_is_an_error_that_says_what_to_type(tiny_store: list[object], tmp_path: Path) -> None:
    (tmp_path / "空").mkdir()
    result = run("evaluate", "--store", tmp_path / "空", *tiny_store[2:])
    assert result.exit_code == 1
    assert f"type: luotuo index {tmp_path / '空'}" in result.stderr


def test_another_model_or_its_mapper_is_refused(tiny_store: list[object], tmp_path: Path) -> None:
    other = run("evaluate", *tiny_store, "--model", "luotuo-mini")
    assert other.exit_code == 1
    assert "was built with the model" in other.stderr
    mapper = LinearQueryMapper.identity(24, model="另一个", fingerprint="0123").save(tmp_path / "faq.mapper")
    result = run("evaluate", *tiny_store, "--mapper", mapper)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "fitted for '另一个'" in result.stderr
    FAISS.from_texts(["年假"], CharacterEmbeddings()).save_local(tmp_path / "别家")
    foreign = run("evaluate", "--store", tmp_path / "别家", *tiny_store[2:])
    assert foreign.exit_code == 1
    assert "CharacterEmbeddings" in foreign.stderr


def test_ctrl_c_writes_nothing(tiny_store: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luotuo_integrations.retrieval_report.hybrid_search", interrupt)
    result = run("evaluate", *tiny_store, "--out", tmp_path / "结果.json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Nothing was written" in result.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["库", "问题.jsonl"])
