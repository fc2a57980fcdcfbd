"""RunFolder: a folder belongs to one run, which goes on only with the configuration and texts that it began with."""

import json
from pathlib import Path
from typing import Any

import pytest

from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.run_folder import HARMLESS, RunError, RunFolder, read_json, write_json

TEXTS = ["试用期为三个月。", "年假为十五天。"]
COUNTS = {"train": 1, "dev": 1}
CONFIG = TrainConfig()


def begun(path: Path, config: TrainConfig = CONFIG, *, bound: bool = True) -> RunFolder:
    """A run that was begun, and has a checkpoint."""
    folder = RunFolder(path, config)
    folder.begin(TEXTS, COUNTS)
    folder.student.mkdir()
    if bound:
        (folder.path / "checkpoints").mkdir()
    return folder


def snapshot(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir() if one.is_file()}


def test_a_new_run_notes_its_configuration_environment_and_texts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "我的 运行")
    assert TrainConfig.from_file(folder.path / "config.json") == CONFIG
    environment = read_json(folder.path / "environment.json")
    assert environment is not None
    assert {"python", "system", "torch", "accelerate", "threads", "cores"} <= environment.keys()
    data = read_json(folder.path / "data.json")
    assert data is not None
    assert data["counts"] == COUNTS
    assert not list(folder.path.glob(".*"))


def test_nothing_is_written_before_the_texts_are_known(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_same_configuration_and_texts(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.add_metrics(before={"dev/pair@1": 0.25})
    before = snapshot(folder.path)
    again = RunFolder(folder.path, CONFIG, resume=True)
    again.begin(iter(TEXTS), COUNTS)
    assert snapshot(folder.path) == before
    again.add_metrics(after={"dev/pair@1": 0.5})
    assert again.metrics() == {"before": {"dev/pair@1": 0.25}, "after": {"dev/pair@1": 0.5}}


def test_one_process_of_several_writes(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG).begin(TEXTS, COUNTS, write=False)
    assert not (tmp_path / "run").exists()
    begun(tmp_path / "run")
    with pytest.raises(RunError, match="The texts have changed"):
        RunFolder(tmp_path / "run", CONFIG, resume=True).begin(TEXTS[:1], COUNTS, write=False)


def test_resuming_where_nothing_is_begins(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG, resume=True)
    folder.begin(TEXTS, COUNTS)
    assert folder.metrics() == {}
    assert (folder.path / "config.json").is_file()


def test_a_run_is_not_begun_again_by_accident(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(RunError, match=r"holds a run already\. Add --resume .*or give another folder with --out"):
        RunFolder(tmp_path / "run", CONFIG)
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("batch.size", 8, "batch.size: 96 then, 8 now"),
        ("seed", 1, "seed: 0 then, 1 now"),
        ("teacher.model", "openai:other", "teacher.model:  then, openai:other now"),
        ("loss.kl.weights", [1.0], "loss.kl.weights: unset then"),
        ("optimizer.epochs", 9, "optimizer.epochs: 4 then, 9 now"),
        ("data.corpus", ["新闻"], "data.corpus"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(
    tmp_path: Path, name: str, value: Any, told: str
) -> None:
    begun(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(RunError, match="another configuration") as caught:
        RunFolder(tmp_path / "run", CONFIG.with_values({name: value}), resume=True)
    assert told in str(caught.value)
    assert "--out" in str(caught.value)
    assert snapshot(tmp_path / "run") == before


HARMLESS_VALUES: dict[str, Any] = {
    "run.out": "elsewhere",
    "run.name": "骆驼",
    "run.checkpoint_minutes": 0.5,
    "run.keep_checkpoints": 7,
    "run.pack": "8bit",
    "run.onnx": True,
    "run.licence": "MIT",
    "teacher.device": "cpu",
    "teacher.requests_at_once": 9,
    "teacher.requests_per_minute": 60,
    "teacher.tokens_per_minute": 1000,
    "teacher.price_per_million_tokens": 0.02,
    "teacher.max_cost": 5.0,
    "teacher.cache": "缓存",
    "batch.tokens_per_pass": 512,
    "batch.tokens_in_memory": 4096,
}


def test_harmless_changes_are_allowed_and_noted(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    assert HARMLESS_VALUES.keys() == set(HARMLESS)
    for name, value in HARMLESS_VALUES.items():
        changed = CONFIG.with_values({name: value})
        assert changed != CONFIG
        RunFolder(tmp_path / "run", changed, resume=True).begin(TEXTS, COUNTS)
        assert TrainConfig.from_file(tmp_path / "run" / "config.json") == changed


@pytest.mark.parametrize("texts", [TEXTS[:1], [*TEXTS, "新的一条。"], TEXTS[::-1], ["".join(TEXTS)]])
def test_changed_texts_are_refused_and_the_counts_told(tmp_path: Path, texts: list[str]) -> None:
    begun(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    folder = RunFolder(tmp_path / "run", CONFIG.with_values({"run.name": "骆驼"}), resume=True)
    with pytest.raises(RunError, match=r"then: train 1 dev 1; now: train 5 dev 2.*Put the old texts back") as caught:
        folder.begin(texts, {"train": 5, "dev": 2})
    assert f"--set teacher.cache={tmp_path / 'run' / 'teacher'}" in str(caught.value)
    assert snapshot(tmp_path / "run") == before


def test_until_there_is_a_checkpoint_configuration_and_texts_may_be_corrected(tmp_path: Path) -> None:
    begun(tmp_path / "run", bound=False).add_metrics(before={"dev/pair@1": 0.25})
    corrected = CONFIG.with_values({"teacher.model": "openai:other", "batch.size": 8})
    folder = RunFolder(tmp_path / "run", corrected, resume=True)
    folder.begin(["别的一条。"], {"train": 1, "dev": 0})
    assert not folder.student.exists()  # it was made of what may have been wrong
    assert folder.metrics() == {}
    (folder.path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="another configuration"):
        RunFolder(tmp_path / "run", CONFIG, resume=True)
    with pytest.raises(RunError, match="The texts have changed"):
        RunFolder(tmp_path / "run", corrected, resume=True).begin(TEXTS, COUNTS)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "照片.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(FileExistsError, match="is not empty and holds no run; give another folder with --out"):
        RunFolder(tmp_path / "run", CONFIG, resume=resume)
    assert list(snapshot(tmp_path / "run")) == ["照片.jpg"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("文本", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is a file; give a folder for the run"):
        RunFolder(tmp_path / "run", CONFIG)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    RunFolder(tmp_path, CONFIG).begin(TEXTS, COUNTS)
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize("content", ["", '{"batch": {"size"', "\ufffd"])
@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.json"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, name: str, content: str) -> None:
    begun(tmp_path / "run").add_metrics(before={})
    (tmp_path / "run" / name).write_text(content, encoding="utf-8")
    before = snapshot(tmp_path / "run")

    def reopen() -> None:
        folder = RunFolder(tmp_path / "run", CONFIG, resume=True)
        folder.metrics()
        folder.begin(TEXTS, COUNTS)

    with pytest.raises(RunError, match=rf"{name} is damaged .*Restore it, or start a new run with another --out"):
        reopen()
    assert snapshot(tmp_path / "run") == before


def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"before": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"before": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text(encoding="utf-8")) == {"before": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.json"]
