"""The report of a run, its alarms and its pictures, from folders as training leaves them."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from luotuo_integrations.training import plots
from luotuo_integrations.training.alarms import alarms, collapse_limit
from luotuo_integrations.training.report import read_log, write_report
from luotuo_integrations.training.run_folder import RunError

BEFORE = {
    "dev/pair@1": 0.4,
    "dev/candidates": 100.0,
    "dev/off_diagonal_mean": 0.9,
    "dev/spearman_to_teacher": 0.3,
    "faq/recall@1": 0.5,
    "faq/recall@10": 0.8,
    "faq/ndcg@10": 0.6,
}
AFTER = {
    "dev/pair@1": 0.8,
    "dev/candidates": 100.0,
    "dev/off_diagonal_mean": 0.72,
    "dev/spearman_to_teacher": 0.92,
    "faq/recall@1": 0.625,
    "faq/recall@10": 0.9,
    "faq/ndcg@10": 0.7,
}
TEACHER = {"dev/pair@1": 0.9, "dev/candidates": 100.0, "dev/off_diagonal_mean": 0.7}


def steps(count: int, *, per_epoch: int = 20) -> list[dict[str, Any]]:
    """A loss that falls, with a part that counts from the second epoch on only."""
    events = []
    for step in range(1, count + 1):
        epoch = (step - 1) // per_epoch
        parts = {"feature": math.exp(-step / 10), "kl": 0.5 * math.exp(-step / 40) if epoch else 0.0}
        loss = sum(parts.values())
        events.append(
            {"event": "step", "step": step, "epoch": epoch, "loss": loss, "parts": parts, "learning_rate": 1e-4 / step}
        )
    return events


def make_run(folder: Path, *, log: list[dict[str, Any]], metrics: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    config = {"run": {"name": None, "out": str(folder)}, "batch": {"size": 64}, "data": {"corpus": ["文章|旧.txt"]}}
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"torch": "2.8.0", "cuda:0": "H100"}), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log), encoding="utf-8")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    matrix = np.full((5, 5), 0.5, np.float32) + 0.4 * np.eye(5, dtype=np.float32)
    save_file({"student": matrix, "teacher": matrix - 0.1}, folder / "similarity.safetensors")
    return folder


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same drawing in fewer pixels, which takes a quarter of the time."""
    monkeypatch.setattr(plots, "_DOTS_PER_INCH", 30)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    drawn: list[Any] = []
    to_png = plots._png

    def keep(figure: Any) -> bytes:
        drawn.append(figure)
        return to_png(figure)

    monkeypatch.setattr(plots, "_png", keep)
    return drawn


def section(report: str, heading: str) -> str:
    return report.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


# The report


def test_a_report_says_how_good_the_model_is(tmp_path: Path) -> None:
    metrics = {
        "before": BEFORE,
        "after": AFTER,
        "teacher": TEACHER,
        "best_step": 40,
        "steps": 60,
        "seconds": 7500.0,
        "texts": 30000,
        "counts": {"train": 3840, "near": {"dropped": 7}},
    }
    run = make_run(tmp_path / "小骆驼", log=steps(60), metrics=metrics)
    path = write_report(run)
    report = path.read_text(encoding="utf-8")
    assert path == run / "report.md"
    assert report.startswith(
        "# 小骆驼\n\n> **摘要**　`dev` 的配对准确率（100 选 1）：训练前 40.0%，训练后 80.0%，教师模型 90.0%。"
    )
    short = section(report, "In short")
    assert "finds its other half first among 100 in 80.0% of the cases" in short
    assert "at the start 40.0%, the teacher 90.0%, 80% of the way from its start to its teacher" in short
    assert "comes first for 62.5% of the queries, and 90.0% of the right passages are among the first 10" in short
    assert "almost as its teacher does (Spearman 0.920)" in short
    assert "took 2 h 05 min" in short
    assert section(report, "Alarms").strip() == "None."
    rows = [
        [cell.strip() for cell in line.split("|")] for line in section(report, "Start, end and teacher").split("\n")
    ]
    numbers = {row[1]: row[3:6] for row in rows if len(row) == 7}
    assert numbers["`dev/pair@1`"] == ["40.0%", "80.0%", "90.0%"]
    assert numbers["`dev/off_diagonal_mean`"] == ["0.900", "0.720", "0.700"]
    assert numbers["`faq/ndcg@10`"] == ["0.600", "0.700", ""]
    similarity = section(report, "Similarity of halves: R beside S")
    assert "the mean off-diagonal of R (student) is 0.720, that of S (teacher) 0.700" in similarity
    assert "above that of S by more than 0.2" in similarity
    told = section(report, "Time and data")
    for row in ("| texts a second | 4.0 |", "| best weights at step | 40 |", "| data: near.dropped | 7 |"):
        assert row in told
    assert f"LuotuoEmbeddings({(run / 'model').as_posix()!r})" in section(report, "Use")
    assert '| data.corpus | ["文章\\|旧.txt"] |' in section(report, "Configuration")
    assert "| cuda:0 | H100 |" in section(report, "Environment")


def test_the_pictures_are_there_and_named_in_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", log=steps(30), metrics={"after": AFTER, "teacher": TEACHER})
    report = write_report(run).read_text(encoding="utf-8")
    for name in ("curves.png", "similarity.png"):
        assert f"]({name})" in report
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_did_not_end_is_reported_from_its_log(tmp_path: Path) -> None:
    log = [*steps(20), {"event": "evaluation", "step": 20, "metrics": AFTER}]
    log[-2]["seconds"] = 9.0
    run = make_run(tmp_path / "run", log=log, metrics={"before": BEFORE})
    (run / "data.json").write_text(json.dumps({"fingerprint": "0", "counts": {"dev": 40}}), encoding="utf-8")
    report = write_report(run).read_text(encoding="utf-8")
    assert "finds its other half first among 100 in 80.0% of the cases (at the start 40.0%)" in report
    assert "| optimizer steps | 20 |" in report
    assert "| data: dev | 40 |" in report
    assert "took 9.0 s" in report


def test_an_empty_run_has_a_report_too(tmp_path: Path) -> None:
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Nothing was evaluated yet" in report
    assert "![" not in report
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_alarms_stand_in_the_report_and_its_summary(tmp_path: Path) -> None:
    collapsed = AFTER | {"dev/off_diagonal_mean": 0.97}
    run = make_run(tmp_path / "run", log=steps(30), metrics={"after": collapsed, "teacher": TEACHER})
    report = write_report(run).read_text(encoding="utf-8")
    assert "- **The embeddings have collapsed" in section(report, "Alarms")
    assert "有 1 条警报" in report


def test_without_matplotlib_the_report_has_no_pictures_and_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise ImportError(f"{module!r} is not installed. Type: pip install 'luotuo-integrations[{extra}]'")

    monkeypatch.setattr(plots, "require", missing)
    run = make_run(tmp_path / "run", log=steps(30), metrics={"before": BEFORE, "after": AFTER, "teacher": TEACHER})
    with caplog.at_level(logging.WARNING):
        report = write_report(run).read_text(encoding="utf-8")
    assert "luotuo-integrations[train]" in caplog.text
    assert "![" not in report
    assert "80.0%" in report
    assert not list(run.glob("*.png"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", log=[])
    (run / "metrics.json").write_text('{"before": {', encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json is damaged"):
        write_report(run)
    assert not (run / "report.md").exists()


# The log


def test_a_resumed_log_tells_how_the_run_went_in_the_end(tmp_path: Path) -> None:
    def step(number: int, loss: float) -> dict[str, Any]:
        return {"event": "step", "step": number, "loss": loss}

    def evaluation(number: int, value: float) -> dict[str, Any]:
        return {"event": "evaluation", "step": number, "metrics": {"dev/pair@1": value}}

    first = [step(1, 9), step(2, 8), evaluation(2, 0.2), step(3, 7), step(4, 6), evaluation(4, 0.4), step(5, 5)]
    resumed = [step(3, 70), step(4, 60)]  # from the checkpoint after step 2; what came after step 4 is gone
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(event) for event in first] + ['{"event": "st', ""] + [json.dumps(event) for event in resumed]
    path.write_text("\n".join(lines) + '\n{"event": "step", "ste', encoding="utf-8")
    assert read_log(path) == [step(1, 9), step(2, 8), evaluation(2, 0.2), step(3, 70), step(4, 60)]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(evaluation(4, 0.5)) + "\n" + json.dumps(evaluation(4, 0.6)))
    assert read_log(path)[-2:] == [step(4, 60), evaluation(4, 0.6)]
    assert read_log(tmp_path / "none.jsonl") == []


# Alarms


def test_a_good_run_has_no_alarm() -> None:
    assert alarms({"before": BEFORE, "after": AFTER, "teacher": TEACHER}, steps(100)) == []
    assert alarms({}, []) == []


@pytest.mark.parametrize(
    ("teacher", "limit"), [(0.1, 0.3), (0.6, 0.8), (0.8, 0.9), (0.9, 0.95), (-0.1, 0.1), (None, 0.95)]
)
def test_collapse_is_measured_against_the_teacher(teacher: float | None, limit: float) -> None:
    assert collapse_limit(teacher) == pytest.approx(limit)
    metrics = {"teacher": {} if teacher is None else {"dev/off_diagonal_mean": teacher}}
    below, above = ({"after": {"dev/off_diagonal_mean": limit + change}} for change in (-0.001, 0.001))
    assert alarms(metrics | below, []) == []
    assert [text[:28] for text in alarms(metrics | above, [])] == ["The embeddings have collapse"]


def test_a_metric_below_its_start_is_an_alarm_but_noise_is_not() -> None:
    metrics = {"before": BEFORE, "after": BEFORE | {"faq/ndcg@10": 0.58, "dev/pair@1": 0.398, "faq/recall@1": 0.1}}
    found = alarms(metrics, [])
    assert len(found) == 1
    assert "'faq/ndcg@10' fell below its start: from 0.6000 to 0.5800" in found[0]


def losses(values: list[float], *, epoch: int = 0) -> list[dict[str, Any]]:
    return [{"event": "step", "step": step, "epoch": epoch, "loss": value} for step, value in enumerate(values, 1)]


def test_a_loss_that_rises_in_the_last_epoch_is_an_alarm() -> None:
    noise = 0.02 * np.random.default_rng(0).normal(size=100)
    falling = (np.linspace(2, 1, 100) + noise).tolist()
    rising = (np.abs(np.linspace(-1, 1, 100)) + 1 + noise).tolist()
    assert alarms({}, losses(falling)) == []
    assert "rose at the end" in alarms({}, losses(rising))[0]
    flat = (1 + 20 * noise).tolist()  # wide, but going nowhere
    assert alarms({}, losses(flat)) == []


def test_a_loss_that_is_larger_because_an_epoch_has_more_parts_is_no_alarm() -> None:
    log = losses([0.1] * 50) + losses(np.linspace(3, 2, 50).tolist(), epoch=1)
    assert alarms({}, log) == []


# Pictures


def test_parts_that_differ_by_far_are_drawn_on_a_log_axis(tmp_path: Path, figures: list[Any]) -> None:
    log = [*steps(60), {"event": "evaluation", "step": 60, "metrics": AFTER}]
    run = make_run(tmp_path / "run", log=log, metrics={"before": BEFORE, "teacher": TEACHER, "best_step": 60})
    write_report(run)
    loss, rate, metrics = figures[0].axes
    assert loss.get_yscale() == "log"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["loss", "feature", "kl"]
    assert rate.get_lines()[0].get_ydata().tolist() == [1e-4 / step for step in range(1, 61)]
    drawn = {line.get_label(): line for line in metrics.get_lines()}
    assert drawn["dev/pair@1"].get_xydata().tolist() == [[0, 0.4], [60, 0.8]]
    assert set(drawn["dev/pair@1, teacher"].get_ydata()) == {0.9}
    assert "faq/recall@1" not in drawn
    part = next(line for line in loss.get_lines() if line.get_label() == "kl")
    assert min(part.get_xdata()) == 21  # without weight in the first epoch


def test_a_short_plain_log_has_a_linear_axis_and_names_of_any_script(figures: list[Any], recwarn) -> None:
    log = [*losses([1.0, 0.9]), {"event": "evaluation", "step": 2, "metrics": {"检索$/spearman": 0.5}}]
    assert plots.curves_png(log, ["检索$/spearman"]).startswith(b"\x89PNG")
    assert figures[0].axes[0].get_yscale() == "linear"
    assert figures[0].axes[2].get_legend().get_texts()[0].get_text() == r"??\$/spearman"
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []


def test_both_matrices_have_one_scale_and_their_means_above_them(figures: list[Any]) -> None:
    student = np.full((150, 150), 0.6, np.float32)
    np.fill_diagonal(student, 0.9)
    plots.similarity_png(student, student - 0.2)
    left, right, _ = figures[0].axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (pytest.approx(0.4), pytest.approx(0.9))
    assert left.images[0].get_array().shape == (96, 96)  # so that the diagonal is wide enough to be seen
    assert left.get_title() == "Student: R\ndiagonal 0.900, off-diagonal 0.600 (means)"
    assert right.get_title() == "Teacher: S\ndiagonal 0.700, off-diagonal 0.400 (means)"


def test_a_student_without_a_teacher_is_drawn_alone(figures: list[Any]) -> None:
    assert plots.similarity_png(np.eye(4, dtype=np.float32)).startswith(b"\x89PNG")
    assert [axes.get_title()[:7] for axes in figures[0].axes] == ["Student", ""]


def test_drawing_leaves_no_global_state() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.similarity_png(np.eye(4, dtype=np.float32))
    assert dict(matplotlib.rcParams) == before
