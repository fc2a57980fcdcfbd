"""The `luotuo` command: what it prints, where, and with which exit code."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from luotuo_integrations import CARDS, Encoder, KnowledgeBase, LuotuoEmbeddings, cli
from luotuo_integrations.cli_output import marked_snippet
from luotuo_integrations.mapper import LinearQueryMapper
from tests.openai_stub import OpenAIStubServer

COMMANDS = ("index", "search", "ask", "embed", "evaluate", "questions", "distill", "finetune", "models", "doctor")
LEAVE = "# 休假制度\n\n## 年休假\n\n正式员工每年有十五天年休假。\n\n## 试用期\n\n试用期员工暂不享受年休假。\n"
QUESTION = "试用期员工可以请年休假吗？"


def run(*arguments: object, **options: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed folder, only to be read."""
    folder = tmp_path_factory.mktemp("员工 手册")
    (folder / "休假制度.md").write_text(LEAVE, encoding="utf-8")
    (folder / "住宿.txt").write_text("出差住宿标准每晚不超过[四百五十]元 :100: [bold]。\n", encoding="utf-8")
    (folder / "坏.txt").write_bytes(b"")
    assert run("index", folder).exit_code == 0
    return folder


@pytest.fixture
def tiny_documents(tmp_path: Path, tiny_folder: Path) -> list[str]:
    """Arguments: a small folder, and the tiny model."""
    (tmp_path / "文档").mkdir()
    (tmp_path / "文档" / "请假.txt").write_text("试用期员工可以请假。\n", encoding="utf-8")
    return [str(tmp_path / "文档"), "--model", str(tiny_folder)]


# -- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help", env={"COLUMNS": "100"})
    assert result.exit_code == 0
    assert f"luotuo {command}" in result.stdout.replace("root", "luotuo").replace("main", "luotuo")
    assert run(command, "-h").exit_code == 0


def test_help_lists_the_commands_and_the_defaults() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert ".luotuo inside DOCUMENTS" in run("ask", "--help", env={"COLUMNS": "140"}).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command"),
        (["search", "."], "Missing argument"),
        (["index", "没有这个文件夹"], "does not exist"),
        (["index", __file__], "is a file"),
        (["search", ".", "年假", "-k", "0"], "Invalid value"),
        (["search", ".", "年假", "--mode", "fuzzy"], "Invalid value"),
        (["ask", ".", "年假", "-k", "9"], "Invalid value"),
        (["ask", ".", "年假", "--threshold", "1.5"], "Invalid value"),
        (["ask", ".", "年假", "--llm", "http://127.0.0.1:1/v1"], "--llm needs --llm-model"),
        (["ask", ".", "年假", "--llm", "http://127.0.0.1:1/v1", "--local-llm", "x"], "both given"),
        (["embed"], "Give texts, or --input"),
        (["embed", "年假", "--input", "-"], "Give texts, or --input"),
        (["embed", "年假", "--kind", "document"], "Invalid value"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    result = run(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_help_and_models_are_quick() -> None:
    program = """
import sys
from typer.testing import CliRunner
from luotuo_integrations.cli import app
for arguments in (["--help"], ["models"], ["models", "--json"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
heavy = {"torch", "transformers", "numpy", "langchain_core", "llama_index", "faiss", "openai"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_threads_wait_quietly_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run("models").exit_code == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert run("models").exit_code == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


# -- index and search -------------------------------------------------------------------------------------------------


def test_index_says_what_it_did(tiny_documents: list[str]) -> None:
    documents = Path(tiny_documents[0])
    (documents / "空.md").write_bytes(b"")
    result = run("index", *tiny_documents)
    assert result.exit_code == 0
    assert result.stdout == "1 files added, 0 updated, 0 removed, 0 unchanged; 1 passages\n"
    assert result.stderr == "Warning: Skipped: Cannot read 空.md: it is empty (0 bytes)\n"
    assert run("index", *tiny_documents).stdout.startswith("0 files added, 0 updated, 0 removed, 1 unchanged")


def test_index_in_json(tiny_documents: list[str]) -> None:
    (Path(tiny_documents[0]) / "空.md").write_bytes(b"")
    report = json.loads(run("index", *tiny_documents, "--json").stdout)
    assert report["added"] == ["请假.txt"]
    assert (report["updated"], report["removed"], report["unchanged"], report["chunks"]) == ([], [], 0, 1)
    assert report["problems"] == [
        {"source": "空.md", "reason": "Cannot read 空.md: it is empty (0 bytes)", "page": None}
    ]


def test_the_index_remembers_its_model(tiny_documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    documents, _, model = tiny_documents
    monkeypatch.chdir(Path(model).parent)
    assert run("index", documents, "--model", Path(model).name).exit_code == 0
    monkeypatch.chdir("/")
    assert json.loads(run("search", documents, "请假", "--json").stdout)[0]["text"] == "试用期员工可以请假。"
    refused = run("search", documents, "请假", "--model", "luotuo-mini")
    assert refused.exit_code == 1
    assert "was built with the model" in refused.stderr


def test_store_and_encoding(tiny_documents: list[str], tmp_path: Path) -> None:
    documents = Path(tiny_documents[0])
    (documents / "请假.txt").write_bytes("試用期員工".encode("big5"))
    options = [*tiny_documents, "--store", str(tmp_path / "索引")]
    assert run("index", *options, "--encoding", "big5").exit_code == 0
    assert not (documents / ".luotuo").exists()
    assert "【試用】期員工" in run("search", *tiny_documents[:1], "試用", "--store", str(tmp_path / "索引")).stdout
    refused = run("index", *tiny_documents, "--store", str(documents / "请假.txt"))
    assert refused.exit_code == 1
    assert "give another store" in refused.stderr


def test_search_prints_passages_with_their_places(folder: Path) -> None:
    result = run("search", folder, "试用期年休假", "-k", "1")
    assert result.exit_code == 0
    assert re.match(r"1\. 休假制度\.md · 休假制度 > 试用期  cosine 0\.\d{3}\n", result.stdout)
    assert "   【试用期】员工暂不享受【年休假】。\n" in result.stdout
    assert result.stderr == ""  # neither progress nor the bad file again


def test_text_is_printed_as_it_is(folder: Path) -> None:
    for options in ((), ("--full",)):
        assert "不超过[四百五十]元 :100: [bold]。" in run("search", folder, "住宿标准", "-k", "1", *options).stdout
    assert "不超过[四百五十]元 :100: [bold]。" in run("ask", folder, "住宿标准", "--threshold", "0").stdout


def test_search_shows_whole_passages_on_demand(folder: Path) -> None:
    result = run("search", folder, "试用期年休假", "-k", "1", "--full")
    assert "\n   ## 试用期\n\n   试用期员工暂不享受年休假。\n" in result.stdout


def test_a_long_passage_is_cut_to_where_the_words_are(tmp_path: Path) -> None:
    (tmp_path / "长.txt").write_text("天气很好。" * 25 + "出差住宿\n标准" + "天气很好。" * 25, encoding="utf-8")
    shown = run("search", tmp_path, "住宿标准", "-k", "1").stdout.splitlines()[1]
    assert "出差【住宿】 【标准】天气" in shown  # the line break is a space
    assert shown.startswith("   …")
    assert shown.endswith("…")
    assert len(shown.strip("… ").replace("【", "").replace("】", "")) == 120


def test_on_a_terminal_words_are_marked_by_colour() -> None:
    text = marked_snippet("# 年假\n\n可以请[bold]年假\\", "年假", in_colour=True)
    assert text.plain == "可以请[bold]年假\\"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [("年假", "bold yellow")]
    assert marked_snippet("\ue000年假\ue001", "年假", in_colour=False).plain == "【年假】"


def test_search_by_words_and_by_both(folder: Path) -> None:
    result = run("search", folder, "四百五十元", "--mode", "keyword")
    assert re.match(r"1\. 住宿\.txt  BM25 \d\.\d{3}\n", result.stdout)
    assert "\n2. " not in result.stdout
    both = run("search", folder, "四百五十元", "--mode", "hybrid", "-k", "2")
    assert re.match(r"1\. 住宿\.txt  fused score [01]\.\d{3}\n", both.stdout)
    (found,) = json.loads(run("search", folder, "四百五十元", "--mode", "keyword", "--json").stdout)
    assert (found["score_name"], found["relevance"]) == ("BM25", None)


def test_words_that_no_passage_has_exit_with_3(folder: Path) -> None:
    nothing = run("search", folder, "XK-2093 [b]", "--mode", "keyword")
    assert (nothing.exit_code, nothing.stdout) == (3, "")
    assert nothing.stderr == "No passage has a word of 'XK-2093 [b]'; try --mode vector or hybrid.\n"
    in_json = run("search", folder, "XK-2093", "--mode", "keyword", "--json")
    assert (in_json.exit_code, json.loads(in_json.stdout)) == (3, [])


def test_search_in_json(folder: Path) -> None:
    results = json.loads(run("search", folder, "试用期年休假", "-k", "2", "--json").stdout)
    assert [set(result) for result in results] == [{"score", "score_name", "relevance", "text", "metadata"}] * 2
    assert results[0]["score_name"] == "cosine"
    assert results[0]["metadata"]["headings"] == "休假制度 > 试用期"
    assert "file_state" not in results[0]["metadata"]
    assert results[0]["score"] >= results[1]["score"]
    assert 0 <= results[0]["relevance"] <= 1


def test_search_indexes_a_new_folder_first(tiny_documents: list[str]) -> None:
    result = run("search", tiny_documents[0], "请假", *tiny_documents[1:])
    assert "试用期员工可以【请假】。" in result.stdout
    assert "Indexed" in result.stderr


# -- ask --------------------------------------------------------------------------------------------------------------


def test_ask_quotes_with_sources(folder: Path) -> None:
    result = run("ask", folder, QUESTION)
    assert result.exit_code == 0
    assert "试用期员工暂不享受年休假。[1]" in result.stdout
    assert "[1] 休假制度.md · 休假制度 > 试用期\n    试用期员工暂不享受年休假。" in result.stdout


def test_ask_finds_nothing(folder: Path) -> None:
    result = run("ask", folder, "你好")
    assert result.exit_code == 3
    assert result.stdout.strip() == "文档中没有找到与这个问题相关的内容。"
    answer = json.loads(run("ask", folder, "你好", "--json").stdout)
    assert (answer["found"], answer["sources"]) == (False, [])
    assert answer["relevance"] < 0.5


def test_ask_in_json(folder: Path) -> None:
    result = run("ask", folder, QUESTION, "--json", "-k", "1")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert set(answer) == {"question", "text", "sources", "found", "relevance"}
    (source,) = answer["sources"]
    assert set(source) == {"number", "score", "quote", "text", "metadata"}
    assert source["quote"] in source["text"]
    assert source["metadata"]["source"] == "休假制度.md"


def test_ask_through_a_server_streams_and_cites(folder: Path) -> None:
    with OpenAIStubServer("不享受年休假[1]，不要相信[9]。") as stub:
        options = ("--llm", stub.base_url, "--llm-model", "stub-model")
        result = run("ask", folder, QUESTION, *options)
        answer = json.loads(run("ask", folder, QUESTION, *options, "--json").stdout)
    assert result.exit_code == 0
    assert result.stdout.startswith("不享受年休假[1]")
    assert re.findall(r"^\[\d+\]", result.stdout, re.MULTILINE) == ["[1]"]
    assert answer["text"] == "不享受年休假[1]，不要相信。"
    assert [source["number"] for source in answer["sources"]] == [1]
    assert [bool(request.get("stream")) for request in stub.requests] == [True, False]
    system, user = stub.requests[0]["messages"]
    assert system["role"] == "system"
    assert "[1] （休假制度 > 试用期）" in user["content"]
    assert QUESTION in user["content"]


def test_a_server_that_finds_nothing_or_is_not_asked(folder: Path) -> None:
    with OpenAIStubServer("资料中没有答案") as stub:
        options = ("--llm", stub.base_url, "--llm-model", "stub-model")
        assert run("ask", folder, QUESTION, *options).exit_code == 3
        assert len(stub.requests) == 1
        assert run("ask", folder, "你好", *options).exit_code == 3
        assert len(stub.requests) == 1


def test_unreachable_server_gives_a_clear_error(folder: Path) -> None:
    with OpenAIStubServer() as stub:
        address = stub.base_url
    result = run("ask", folder, QUESTION, "--llm", address, "--llm-model", "stub-model")
    assert result.exit_code == 1
    assert f"{address} cannot be reached" in result.stderr
    assert "Check that the server runs" in result.stderr


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_errors_of_a_server_are_shown_without_traceback(folder: Path, json_flag: list[str]) -> None:
    with OpenAIStubServer(error=400) as stub:
        result = run("ask", folder, QUESTION, "--llm", stub.base_url, "--llm-model", "stub-model", *json_flag)
    assert result.exit_code == 1
    assert "the stub was told to answer 400" in result.stderr
    with OpenAIStubServer() as stub:
        result = run("ask", folder, QUESTION, "--llm", stub.base_url, "--llm-model", "glm-9", *json_flag)
    assert result.exit_code == 1
    assert "no model 'glm-9'" in result.stderr
    assert "stub-model" in result.stderr


def test_blank_question_and_bad_local_model_are_errors(folder: Path) -> None:
    blank = run("ask", folder, "  ")
    assert (blank.exit_code, blank.stdout) == (1, "")
    assert "Error: question='  ' holds no text" in blank.stderr
    missing = run("ask", folder, QUESTION, "--local-llm", str(folder / "没有"))
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "Error:" in missing.stderr


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_go_to_standard_error(tmp_path: Path) -> None:
    result = run("index", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: There is nothing to index in")
    assert "Put txt, md, html, pdf or docx files there" in result.stderr
    unknown = run("embed", "年假", "--model", "没有这个模型")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "Error: No model '没有这个模型'" in unknown.stderr


def test_verbose_shows_where_an_error_happened(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["--verbose", "index", str(tmp_path)])
    assert "Error: There is nothing to index" in result.stderr
    assert result.exit_code == 1
    assert "Where it happened" in result.stderr
    assert "Traceback" in result.stderr


def test_interruption_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KnowledgeBase, "sync", interrupt)
    result = run("index", folder)
    assert result.exit_code == 130
    assert "Interrupted. What was indexed so far is kept" in result.stderr


def test_a_pipe_that_is_closed_ends_quietly() -> None:
    luotuo = [sys.executable, "-c", "from luotuo_integrations.cli import app; app()", "models"]
    with subprocess.Popen(luotuo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        process.stdout.close()
        assert process.stderr.read().decode() == ""


# -- embed ------------------------------------------------------------------------------------------------------------


def test_embed_prints_vectors(tiny_folder: Path) -> None:
    result = run("embed", "请假", "出差", "--model", tiny_folder)
    vectors = np.array(json.loads(result.stdout), dtype=np.float32)
    np.testing.assert_array_equal(vectors, Encoder(tiny_folder).encode(["请假", "出差"]))
    assert len(result.stdout.splitlines()) == 2
    query = np.array(json.loads(run("embed", "请假", "--kind", "query", "--model", tiny_folder).stdout))
    np.testing.assert_allclose(query, Encoder(tiny_folder).encode(["请假"], "query"), atol=1e-6)
    short = json.loads(run("embed", "请假", "--dimensions", "8", "--model", tiny_folder).stdout)
    assert len(short[0]) == 8


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_embed_reads_a_line_a_text_and_writes_an_array(tiny_folder: Path, tmp_path: Path, encoding: str) -> None:
    texts = ["试用期员工可以请年假吗", "", "出差住宿标准每晚不超过四百五十元"]
    source, output = tmp_path / "文本.txt", tmp_path / "向量.npy"
    source.write_bytes("\r\n".join([*texts, ""]).encode(encoding))
    result = run("embed", "--input", source, "--output", output, "--model", tiny_folder)
    assert result.exit_code == 0
    assert result.stdout == f"3 vectors of 24 numbers in {output}\n"
    np.testing.assert_array_equal(np.load(output), Encoder(tiny_folder).encode(texts))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, output.name])


def test_embed_reads_standard_input(tiny_folder: Path) -> None:
    result = run("embed", "--input", "-", "--model", tiny_folder, input="请假\n出差\n".encode())
    assert len(json.loads(result.stdout)) == 2
    assert json.loads(run("embed", "--input", "-", "--model", tiny_folder, input=b"").stdout) == []


def test_embed_leaves_nothing_half_written(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "没有" / "向量.npy"
    missing = run("embed", "请假", "--output", output, "--model", "没有这个模型")
    assert missing.exit_code == 1
    assert "for --output does not exist" in missing.stderr  # before the model is looked for
    assert run("embed", "--input", tmp_path / "没有.txt", "--model", tiny_folder).exit_code == 1

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    full = run("embed", "请假", "--output", tmp_path / "向量.npy", "--model", tiny_folder)
    assert full.exit_code == 1
    assert "No space left" in full.stderr
    assert list(tmp_path.iterdir()) == []


# -- mapper ------------------------------------------------------------------------------------------------------------


def test_a_mapper_is_fitted_and_used(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "faq.jsonl"
    rows = [{"query": f"第{number}条请假", "positive": f"请假规定{number}"} for number in range(12)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    target = tmp_path / "faq.mapper"
    fitted = run("mapper", "fit", "--pairs", pairs, "--out", target, "--model", tiny_folder)
    assert fitted.exit_code == 0, fitted.output
    assert re.search(r"Held-back questions: recall@1 [\d.]+ -> [\d.]+, MRR", fitted.stdout)
    assert "12 pairs" in fitted.stdout
    assert LinearQueryMapper.load(target).dimension == 24
    refused = run("search", folder, "请假", "--mapper", target)  # the index was made by another model
    assert refused.exit_code == 1
    assert "luotuo mapper fit" in refused.stderr


def test_a_mapper_changes_what_is_found(folder: Path, tmp_path: Path) -> None:
    embeddings = LuotuoEmbeddings()
    plain = json.loads(run("search", folder, "请假", "-k", 1, "--json").stdout)[0]
    away = LinearQueryMapper(
        -2 * np.eye(384, dtype=np.float32), np.zeros(384, np.float32), embeddings.model, embeddings.fingerprint
    )
    path = away.save(tmp_path / "away.mapper")
    mapped = json.loads(run("search", folder, "请假", "-k", 1, "--json", "--mapper", path).stdout)[0]
    assert plain["score"] > 0
    assert mapped["score"] < 0


def test_a_mapper_of_few_different_answers_changes_nothing_and_says_why(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "faq.jsonl"
    for different in (1, 2, 9):
        rows = [{"query": f"第{n}条请假", "positive": f"请假规定{n % different}"} for n in range(20)]
        pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        fitted = run("mapper", "fit", "--pairs", pairs, "--out", tmp_path / "faq.mapper", "--model", tiny_folder)
        assert (fitted.exit_code, fitted.stderr) == (0, "")
        assert "The mapper changes nothing: fewer than 10 pairs with different answers (20 pairs)" in fitted.stdout
        assert LinearQueryMapper.load(tmp_path / "faq.mapper").is_identity


def test_a_mapper_without_pairs_or_a_place_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "faq.jsonl"
    pairs.write_text("年假", encoding="utf-8")
    bad = run("mapper", "fit", "--pairs", pairs, "--out", tmp_path / "faq.mapper", "--model", tiny_folder)
    assert bad.exit_code == 1
    assert "line 1 is no JSON" in bad.stderr
    nowhere = run("mapper", "fit", "--pairs", pairs, "--out", tmp_path / "没有" / "faq.mapper")
    assert nowhere.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["faq.jsonl"]


# -- models and doctor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["30", "80", "200"])
def test_models_are_named_in_full_at_any_width(columns: str) -> None:
    result = run("models", env={"COLUMNS": columns})
    table, _, notes = result.stdout.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(CARDS)
    assert "luotuo-mini" in table
    assert re.search(r"luotuo-mini +384 +512 +mean +MIT +\(default\)", table)
    assert notes.count("convert_luotuo_bert") == 1


def test_models_in_json() -> None:
    cards = json.loads(run("models", "--json").stdout)
    assert [card["name"] for card in cards] == list(CARDS)
    assert cards[0]["prompts"] == {"query": "query: ", "passage": "passage: "}


def test_doctor_finds_this_installation_in_order() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert re.search(r"^torch +\d", result.stdout, re.MULTILINE)
    assert "cpu (" in result.stdout
    assert re.search(r"^engine  (torch float32|onednn (float32|bfloat16)) \(on the CPU\)$", result.stdout, re.MULTILINE)
    assert "No problems found." in result.stdout
    diagnosis = json.loads(run("doctor", "--json").stdout)
    assert diagnosis["versions"]["transformers"] == importlib.metadata.version("transformers")
    assert diagnosis["problems"] == []


def test_doctor_finds_two_faiss_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"faiss": ["faiss-cpu", "faiss-gpu", "faiss-cpu"]}
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: installed)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.15.1" if "faiss" in name else version(name))
    result = run("doctor")
    assert result.exit_code == 1
    assert "2 packages bring the module faiss" in result.stdout
    assert "pip uninstall -y faiss-cpu faiss-gpu && pip install 'luotuo-integrations[faiss]'" in result.stdout


def test_doctor_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_wrapper(name: str) -> str:
        if name == "llama-index-embeddings-langchain":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_wrapper)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("luotuo_integrations.doctor.DEFAULT_MODEL", "没有这个模型")
    diagnosis = json.loads(run("doctor", "--json").stdout)
    problems = " | ".join(diagnosis["problems"])
    assert len(diagnosis["problems"]) == 3
    assert "pip install llama-index-embeddings-langchain" in problems
    assert "There is no FAISS store" in problems
    assert "'没有这个模型' does not work" in problems
    assert diagnosis["cpu_engine"] == ""


# -- the real thing ---------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


def test_a_real_process_indexes_and_answers(tmp_path: Path) -> None:
    folder = tmp_path / "员工手册"
    folder.mkdir()
    (folder / "休假制度.md").write_text(LEAVE, encoding="utf-8")
    luotuo = [sys.executable, "-c", "from luotuo_integrations.cli import app; app()"]
    answered = subprocess.run(
        [*luotuo, "ask", str(folder), QUESTION], capture_output=True, timeout=240, env=environment(), check=False
    )
    assert answered.returncode == 0, answered.stderr.decode()
    assert "试用期员工暂不享受年休假。[1]" in answered.stdout.decode()
    assert "Indexed" in answered.stderr.decode()
    assert (folder / ".luotuo" / "manifest.json").is_file()
