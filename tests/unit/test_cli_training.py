"""`luotuo distill` and `luotuo finetune`: what they print, what they leave, and with which exit code."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from luotuo_integrations import Encoder, cli, cli_training
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.trainer import Trainer
from tests.embedding_stub import EmbeddingStub
from tests.training_parts import losses
from tests.training_runs import articles, topics, without, words

TEXTS = 80


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without("matplotlib", "matplotlib.figure"):
        yield


@pytest.fixture
def server() -> Iterator[EmbeddingStub]:
    with EmbeddingStub(32, retry_after="0") as stub:
        yield stub


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("语料")
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in articles())
    (folder / "文章.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    generator = np.random.default_rng(0)
    known = topics(24, seed=3)
    rows = [{"query": words(generator, topic), "positive": words(generator, topic, 9, 14)} for topic in known]
    path = tmp_path_factory.mktemp("问答") / "问答.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def small(**values: object) -> list[str]:
    """Settings with which a run is quick."""
    settings = {
        "data.least_characters": 30,
        "data.most_characters": 120,
        "data.near_duplicates": 1.0,
        "data.dev_count": 8,
        "teacher.requests_at_once": 1,
        "batch.size": 16,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def distill(server: EmbeddingStub, corpus: Path, base: Path, out: Path, *more: object, **values: object) -> Result:
    return run(
        *("distill", "--corpus", corpus, "--teacher", "openai:stub", "--base-url", server.base_url),
        *("--base", base, "--out", out, "--device", "cpu", "--epochs", 2, *small(**values), *more),
    )


# What is printed and left


def test_distill_prints_before_and_after_and_how_to_use_the_model(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "我的 模型"
    result = distill(server, corpus, tiny_folder, out, "--student", "bert-pruned:1")
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    lines = result.stdout.splitlines()
    assert lines[:-3] == [
        f"{name}: {value:.4f} (before: {metrics['before'][name]:.4f})" for name, value in metrics["after"].items()
    ]
    assert lines[-3:] == [
        f"Model: {out / 'model'}",
        f"Report: {out / 'report.md'}",
        f"Use it: LuotuoEmbeddings(model={str(out / 'model')!r})",
    ]
    assert any(line.startswith("dev/spearman_to_teacher: ") for line in lines)
    assert (out / "report.md").is_file()
    model = Encoder(out / "model", device="cpu")
    assert model.dimension == 32
    config = TrainConfig.from_file(out / "config.json")
    assert (config.student.build, config.optimizer.epochs, config.batch.size) == ("bert-pruned:1", 2, 16)
    assert config.data.corpus == (str(corpus),)


def test_the_estimate_is_told_before_the_first_call(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    tell = cli_training._tell

    def told(estimate: Any) -> None:
        tell(estimate)
        events.append("estimate")

    monkeypatch.setattr(cli_training, "_tell", told)
    server.on_request = lambda number: events.append(f"request {number}")
    result = distill(server, corpus, tiny_folder, tmp_path / "run", teacher__price_per_million_tokens=20.0)
    assert events == ["estimate", *(f"request {number}" for number in range(1, 6))]
    assert result.stderr.startswith("Teacher: 80 texts, 5 requests, about ")
    assert " USD" in result.stderr.splitlines()[0]


def test_finetune_prints_before_and_after_and_how_to_use_the_model(
    pairs: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "faq"
    result = run("finetune", "--pairs", pairs, "--model", tiny_folder, "--out", out, "--device", "cpu", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Use it: LuotuoEmbeddings(model={str(out / 'model')!r})"
    assert "dev/ndcg@10: " in result.stdout
    assert "(before: " in result.stdout
    config = TrainConfig.from_file(out / "config.json")
    assert (config.optimizer.epochs, config.batch.size, set(config.loss)) == (1, 6, {"softmax"})
    assert config.optimizer.learning_rate == pytest.approx(2e-5 * 768 / 16)  # inferred
    assert Encoder(out / "model", device="cpu").dimension == 24


def test_settings_of_finetune_go_before_what_is_inferred(pairs: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "faq"
    result = run(
        *("finetune", "--pairs", pairs, "--model", tiny_folder, "--out", out, "--device", "cpu", "--epochs", 1),
        *("--student", "bert-pruned:1", "--set", "optimizer.learning_rate=0.01", "--set", "strategy.name=bias"),
        *("--set", "loss.softmax.temperature=0.1"),
    )
    assert result.exit_code == 0, result.output
    config = TrainConfig.from_file(out / "config.json")
    assert (config.optimizer.learning_rate, config.strategy.name, config.batch.size) == (0.01, "bias", 6)
    assert config.loss["softmax"].temperature == 0.1
    assert (out / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["distill", "finetune"])
def test_a_recipe_decides_and_the_command_line_goes_before_it(
    server: EmbeddingStub, corpus: Path, pairs: Path, tiny_folder: Path, tmp_path: Path, command: str
) -> None:
    recipe = tmp_path / "配方.toml"
    recipe.write_text(
        f"""
seed = 3
[data]
corpus = ["{corpus}"]
records = ["{pairs}"]
least_characters = 30
most_characters = 120
near_duplicates = 1.0
dev_count = 6
[teacher]
model = "openai:stub"
base_url = "{server.base_url}"
[student]
base = "{tiny_folder}"
[batch]
size = 8
[optimizer]
epochs = 9
[run]
out = "{tmp_path / "nowhere"}"
device = "cpu"
""",
        encoding="utf-8",
    )
    out = tmp_path / "run"
    result = run(command, recipe, "--out", out, "--epochs", 1, "--set", "batch.size=12")
    assert result.exit_code == 0, result.output
    config = TrainConfig.from_file(out / "config.json")
    assert (config.seed, config.optimizer.epochs, config.batch.size) == (3, 1, 12)
    assert not (tmp_path / "nowhere").exists()


# Going on


def test_resume_needs_nothing_but_the_folder(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    server.faults, server.always = ["", ""], "500"
    first = distill(server, corpus, tiny_folder, tmp_path / "run")
    assert first.exit_code == 1
    assert "answered 500" in first.stderr
    server.always = ""
    again = distill(server, corpus, tiny_folder, tmp_path / "run")
    assert again.exit_code == 1
    assert "Add --resume to go on with it" in again.stderr
    result = run("distill", "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output
    assert len(server.answered) == TEXTS
    assert set(server.answered.values()) == {1}


def test_finetune_resumes_what_was_cut_off(
    pairs: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["finetune", "--pairs", pairs, "--model", tiny_folder, "--epochs", 2, "--device", "cpu"]
    step = Trainer._step

    def cut(self: Trainer, *parts: Any) -> None:
        if self.state.step == 5:
            message = "power cut"
            raise OSError(message)
        step(self, *parts)

    monkeypatch.setattr(Trainer, "_step", cut)
    stopped = run(*arguments, "--out", tmp_path / "run")
    assert (stopped.exit_code, stopped.stderr.splitlines()[-1]) == (1, "Error: power cut")
    monkeypatch.setattr(Trainer, "_step", step)
    assert run("finetune", "--out", tmp_path / "run", "--resume").exit_code == 0
    assert run(*arguments, "--out", tmp_path / "whole").exit_code == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert run(*arguments, "--out", tmp_path / "run", "--resume").exit_code == 0


def test_resume_without_a_run_begins(server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert distill(server, corpus, tiny_folder, tmp_path / "run", "--resume").exit_code == 0


def test_ctrl_c_in_the_teacher_calls_says_how_to_go_on(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    server.on_request = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 3 else None
    result = distill(server, corpus, tiny_folder, tmp_path / "run")
    assert result.exit_code == 130
    told = "Interrupted. What was finished is kept; the same command with --resume goes on from there."
    assert result.stderr.splitlines()[-1] == told
    server.on_request = None
    assert distill(server, corpus, tiny_folder, tmp_path / "run", "--resume").exit_code == 0
    assert len(server.answered) == TEXTS


def test_ctrl_c_in_training_writes_a_checkpoint_and_says_how_to_go_on(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, *parts: Any) -> None:
        step(self, *parts)
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    result = distill(server, corpus, tiny_folder, tmp_path / "run")
    assert result.exit_code == 130
    assert "Stopping after this step; press Ctrl-C again to stop at once" in result.stderr
    assert "--resume goes on from there" in result.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    monkeypatch.setattr(Trainer, "_step", step)
    assert distill(server, corpus, tiny_folder, tmp_path / "run", "--resume").exit_code == 0
    assert [number for number, _ in losses(tmp_path / "run")] == [1, 2, 3, 4]


# Errors are messages


def test_a_cost_limit_of_zero_stops_before_the_first_call(
    server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    result = distill(
        *(server, corpus, tiny_folder, tmp_path / "run", "--max-cost", 0), teacher__price_per_million_tokens=0.02
    )
    assert result.exit_code == 1
    assert "Teacher: 80 texts, 5 requests" in result.stderr
    assert "above max_cost=0.0: raise it, or give fewer texts" in result.stderr
    assert server.requests == []


def test_a_known_price_is_told_without_a_key(
    corpus: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    arguments = ["distill", "--corpus", corpus, "--teacher", "openai:text-embedding-3-small", "--base", tiny_folder]
    result = run(*arguments, "--out", tmp_path / "run", "--max-cost", 0, *small())
    assert result.exit_code == 1
    assert "above max_cost=0.0" in result.stderr
    keyless = run(*arguments, "--out", tmp_path / "other", *small())
    assert keyless.exit_code == 1
    assert "set the environment variable OPENAI_API_KEY" in keyless.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["distill"], "no corpus is given; type --corpus FOLDER"),
        (["distill", "--corpus", "没有"], "no teacher is given; type --teacher openai:MODEL"),
        (["distill", "--corpus", "没有", "--teacher", "openai:stub"], "There is no file or folder '没有'"),
        (["distill", "--set", "batch.size"], "'batch.size' sets nothing; write SECTION.NAME=VALUE"),
        (["distill", "--set", "batch.sise=4"], "'sise' in [batch] is unknown; known are size"),
        (["distill", "--set", "batch.size=1"], "batch.size=1 is out of range; allowed: 2 or more"),
        (["distill", "没有.toml"], "没有.toml"),
        (["finetune"], "no records are given; type --pairs FILE"),
        (["finetune", "--pairs", "没有.jsonl"], "There is no file '没有.jsonl'"),
        (["finetune", "--pairs", __file__], "test_cli_training.py"),
    ],
)
def test_what_is_wrong_is_a_message_and_nothing_is_left(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert told in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["distill", "--max-cost", "-1"], "Invalid value"),
        (["distill", "--epochs", "0"], "Invalid value"),
        (["finetune", "--teacher", "openai:stub"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_missing_package_is_a_message(server: EmbeddingStub, corpus: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with without("accelerate"):
        result = distill(server, corpus, tiny_folder, tmp_path / "run")
    assert result.exit_code == 1
    told = "Error: 'accelerate' is not installed. Type: pip install 'luotuo-integrations[train]'"
    assert result.stderr.splitlines()[-1] == told


def test_the_help_of_both_commands_is_quick_and_names_every_option() -> None:
    program = """
import sys
from typer.testing import CliRunner
from luotuo_integrations.cli import app
wanted = {"distill": ("--corpus", "--teacher", "--base-url", "--student", "--out", "--max-cost", "--set", "--resume"),
          "finetune": ("--pairs", "--model", "--student", "--out", "--epochs", "--set", "--resume")}
for command, options in wanted.items():
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160"})
    assert result.exit_code == 0 and all(option in result.stdout for option in options), result.output
heavy = {"torch", "transformers", "numpy", "langchain_core", "openai"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
