"""The report of a run: report.md, curves.png and similarity.png, from what the run left in its folder."""

import json
import logging
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from luotuo_integrations.training.alarms import COLLAPSE_RULE, alarms
from luotuo_integrations.training.evaluate import MAIN_METRICS
from luotuo_integrations.training.plots import curves_png, similarity_png
from luotuo_integrations.training.run_folder import read_json

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]
Metrics = Mapping[str, float]

# What each metric says, in the order of the table; those of SHARES are printed in per cent.
MEANINGS = {
    "pair@1": "half finds its other half first, mean of both ways",
    "row@1": "left half finds its right half first",
    "column@1": "right half finds its left half first",
    "recall@1": "right passage comes first",
    "recall@5": "right passages among the first 5",
    "recall@10": "right passages among the first 10",
    "mrr@10": "mean of 1 / rank of the first right passage",
    "ndcg@10": "ranking as a whole, 1 is perfect",
    "accuracy": "query nearer to its positive than to a negative",
    "spearman": "order of the cosines against people's scores",
    "pearson": "the same, as a straight line",
    "spearman_to_teacher": "order of the cosines of random texts against the teacher's",
    "pair_spearman_to_teacher": "the same, of the pairs of halves",
    "cosine_to_teacher": "mean cosine of the student's vector with the teacher's",
    "diagonal_mean": "mean cosine of halves that belong together",
    "off_diagonal_mean": "mean cosine of halves that do not",
    "off_diagonal_std": "spread of these cosines",
}
SHARES = {"pair@1", "row@1", "column@1", "recall@1", "recall@5", "recall@10", "accuracy"}
_CURVES = (*MAIN_METRICS, "spearman_to_teacher", "off_diagonal_mean")


def write_report(run: Path) -> Path:
    """Write report.md with its pictures, curves.png and similarity.png.

    Args:
        run: Folder with config.json, environment.json, log.jsonl, metrics.json, data.json and similarity.safetensors,
            of which any may be missing. Without metrics.json the numbers come from the log.

    Returns:
        The path of report.md.

    Raises:
        RunError: If a .json file is damaged.
        OSError: If nothing can be written to the folder.
    """
    run = Path(run)
    log = read_log(run / "log.jsonl")
    metrics = _completed(read_json(run / "metrics.json") or {}, log, read_json(run / "data.json") or {})
    pictures = _write_pictures(run, metrics, log)
    warnings = alarms(metrics, log)
    sections = [
        f"# {_name(run)}",
        _chinese_summary(metrics, warnings),
        "## In short\n\n" + "\n".join(f"- {line}" for line in _verdicts(metrics)),
        "## Alarms\n\n" + ("\n".join(f"- **{line}**" for line in warnings) or "None."),
        "## Start, end and teacher\n\n" + _metric_table(metrics),
        _collapse_section(metrics, "similarity.png" in pictures),
        "## Curves\n\n![Loss, learning rate and evaluation](curves.png)" if "curves.png" in pictures else "",
        "## Time and data\n\n" + _table(("", ""), _time_and_data(metrics)),
        "## Use\n\n" + _usage(run),
        "## Configuration\n\n" + _table(("setting", "value"), _flat(read_json(run / "config.json") or {})),
        "## Environment\n\n" + _table(("", ""), _flat(read_json(run / "environment.json") or {})),
    ]
    path = run / "report.md"
    _write(path, ("\n\n".join(section for section in sections if section) + "\n").encode())
    return path


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a run's log.jsonl as the run went in the end.

    A run that was resumed repeats steps: where a step comes again, what was written for it and after it is dropped. A
    half-written line is passed over.

    Args:
        path: The file; one that is missing is an empty log.

    Returns:
        Events, each with ``"event"`` and ``"step"``, by step.
    """
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
            kind, step = event["event"], int(event["step"])
        except (ValueError, TypeError, KeyError):
            logger.debug("A line of %s cannot be read: %r", path, line)
            continue
        while events and events[-1]["step"] >= (step if kind == "step" else step + 1):
            events.pop()
        if kind != "step":
            events = [one for one in events if (one["event"], one["step"]) != (kind, step)]
        events.append(event)
    return events


def _completed(metrics: Mapping[str, Any], log: Sequence[Event], data: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a run that did not end, from its log."""
    evaluations = [event for event in log if event["event"] == "evaluation"]
    steps = [event for event in log if event["event"] == "step"]
    known: dict[str, Any] = {"before": {}, "after": {}, "teacher": {}, "counts": data.get("counts", {})}
    if evaluations:
        known["after"] = evaluations[-1]["metrics"]
    if steps:
        known |= {"steps": steps[-1]["step"], "seconds": steps[-1].get("seconds")}
    return known | {name: value for name, value in metrics.items() if value not in (None, {})}


def _write_pictures(run: Path, metrics: Mapping[str, Any], log: Sequence[Event]) -> list[str]:
    """Write what can be drawn, and say what there is."""
    events = (
        [{"event": "evaluation", "step": 0, "metrics": metrics["before"]}, *log] if metrics["before"] else list(log)
    )
    curves = sorted(
        {key for key in metrics["after"] if _metric(key) in _CURVES}, key=lambda key: (_CURVES.index(_metric(key)), key)
    )
    matrices = _matrices(run / "similarity.safetensors")
    drawn: list[str] = []
    try:
        if log:
            picture = curves_png(
                events, curves, teacher=metrics["teacher"], best_step=int(metrics.get("best_step", -1))
            )
            _write(run / "curves.png", picture)
            drawn.append("curves.png")
        if "student" in matrices:
            _write(run / "similarity.png", similarity_png(matrices["student"], matrices.get("teacher")))
            drawn.append("similarity.png")
    except ImportError as error:
        logger.warning("The report has no pictures: %s", error)
    return drawn


def _matrices(path: Path) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = load_file(path) if path.is_file() else {}
    return found


def _verdicts(metrics: Mapping[str, Any]) -> list[str]:
    """The main metric of each set, in words; then how near the teacher is, and the time."""
    before, after, teacher = metrics["before"], metrics["after"], metrics["teacher"]
    said = []
    for key, value in after.items():
        if _metric(key) in MAIN_METRICS:
            compared = _compared(key, value, before.get(key), teacher.get(key))
            said.append(f"On `{_set(key)}`, {_in_words(key, after)} ({compared}).")
    for key, value in after.items():
        if _metric(key) == "spearman_to_teacher":
            said.append(f"On `{_set(key)}`, it orders pairs of texts {_nearness(value)} (Spearman {value:.3f}).")
    if not said:
        said.append("Nothing was evaluated yet, so nobody knows how good the model is.")
    if metrics.get("seconds"):
        said.append(f"The training took {_duration(metrics['seconds'])}.")
    return said


def _in_words(key: str, values: Metrics) -> str:
    metric, shown = _metric(key), _shown(key, values[key])
    beside = {_metric(one): _shown(one, value) for one, value in values.items() if _set(one) == _set(key)}
    if metric == "pair@1":
        among = f"{values.get(f'{_set(key)}/candidates', math.nan):.0f}"
        return f"a half of a text finds its other half first among {among} in {shown} of the cases"
    if metric == "ndcg@10":
        return (
            f"the right passage comes first for {beside.get('recall@1', '?')} of the queries, and "
            f"{beside.get('recall@10', '?')} of the right passages are among the first 10: nDCG@10 {shown}"
        )
    if metric == "spearman":
        return f"the cosines follow people's scores with a rank correlation of {shown}"
    return f"the query is nearer to its positive than to the negative in {shown} of the comparisons"


def _compared(key: str, value: float, before: float | None, teacher: float | None) -> str:
    words = []
    if before is not None:
        words.append(f"at the start {_shown(key, before)}")
    if teacher is not None:
        words.append(f"the teacher {_shown(key, teacher)}")
    if before is not None and teacher is not None and teacher > before and value > before:
        share = min((value - before) / (teacher - before), 1.0)
        words.append(f"{share:.0%} of the way from its start to its teacher")
    return ", ".join(words) or "nothing to compare with"


def _nearness(correlation: float) -> str:
    steps = (
        (0.9, "almost as its teacher does"),
        (0.8, "much as its teacher does"),
        (0.6, "roughly as its teacher does"),
    )
    return next((words for least, words in steps if correlation >= least), "unlike its teacher")


def _chinese_summary(metrics: Mapping[str, Any], warnings: Sequence[str]) -> str:
    before, after, teacher = metrics["before"], metrics["after"], metrics["teacher"]
    said = []
    words = {
        "pair@1": "配对准确率",
        "ndcg@10": "检索 nDCG@10",
        "spearman": "相似度 Spearman",
        "accuracy": "三元组准确率",
    }
    for key in (one for one in after if _metric(one) in words):
        known = [
            f"{name} {_shown(key, source[key])}"
            for name, source in (("训练前", before), ("训练后", after), ("教师模型", teacher))
            if key in source
        ]
        among = f"（{after[f'{_set(key)}/candidates']:.0f} 选 1）" if f"{_set(key)}/candidates" in after else ""
        said.append(f"`{_set(key)}` 的{words[_metric(key)]}{among}：{'，'.join(known)}。")
    said.append(f"有 {len(warnings)} 条警报，请先看下文 Alarms 一节。" if warnings else "没有发现异常。")
    return "> **摘要**　" + "".join(said)


def _metric_table(metrics: Mapping[str, Any]) -> str:
    sources = [metrics[name] for name in ("before", "after", "teacher")]
    order = list(MEANINGS)
    sets = list(dict.fromkeys(_set(key) for source in sources[1::-1] for key in source))
    rows = [
        (
            f"`{name}/{metric}`",
            MEANINGS[metric],
            *(_shown(metric, source.get(f"{name}/{metric}")) for source in sources),
        )
        for name in sets
        for metric in order
        if any(f"{name}/{metric}" in source for source in sources[:2])
    ]
    if not rows:
        return "Nothing was evaluated."
    return _table(("metric", "what it says", "start", "end", "teacher"), rows)


def _collapse_section(metrics: Mapping[str, Any], picture: bool) -> str:
    """R's mean off-diagonal beside S's."""
    lines = []
    for key, value in metrics["after"].items():
        if _metric(key) == "off_diagonal_mean":
            own = metrics["teacher"].get(key)
            beside = "there is no teacher to compare with" if own is None else f"that of S (teacher) {own:.3f}"
            lines.append(f"On `{_set(key)}` the mean off-diagonal of R (student) is {value:.3f}, {beside}.")
    if not lines and not picture:
        return ""
    rule = f"If the student's cosines all drift towards 1, it has collapsed: {COLLAPSE_RULE}."
    shown = "![Cosines of the student beside the teacher's](similarity.png)" if picture else ""
    return "\n\n".join(["## Similarity of halves: R beside S", *lines, rule, shown]).strip()


def _time_and_data(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds, texts = metrics.get("seconds"), metrics.get("texts")
    rows = [("training time", _duration(seconds))] if seconds else []
    if texts:
        rows.append(("texts seen", f"{texts:,}"))
    if seconds and texts:
        rows.append(("texts a second", f"{texts / seconds:,.1f}"))
    for name, title in (("steps", "optimizer steps"), ("best_step", "best weights at step")):
        if metrics.get(name) is not None and metrics[name] >= 0:
            rows.append((title, f"{metrics[name]:,}"))
    return rows + [(f"data: {name}", value) for name, value in _flat(metrics.get("counts", {}))]


def _usage(run: Path) -> str:
    model = (run / "model").as_posix()
    code = f"from luotuo_integrations import LuotuoEmbeddings\n\nembeddings = LuotuoEmbeddings({model!r})"
    shell = f"luotuo embed --model {shlex.quote(model)} 骆驼在沙漠里走得很远"
    return f"```python\n{code}\n```\n\n```sh\n{shell}\n```"


def _name(run: Path) -> str:
    return str((read_json(run / "config.json") or {}).get("run", {}).get("name") or run.resolve().name)


def _metric(key: str) -> str:
    return key.rpartition("/")[2]


def _set(key: str) -> str:
    return key.rpartition("/")[0]


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if _metric(key) in SHARES else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    if len(lines) == 2:
        return "Not known."
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            if value is None or value == []:
                continue  # nothing was set
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{prefix}{name}", " ".join(shown.split())))
    return rows


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)
