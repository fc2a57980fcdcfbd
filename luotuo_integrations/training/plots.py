"""The pictures of a report, as PNG: curves of the training, and the student's cosines beside the teacher's."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luotuo_integrations._optional import require

Event = Mapping[str, Any]
Numbers = NDArray[np.float64]

# Okabe and Ito's colours, which colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B")
_TOTAL = "#222222"
_DOTS_PER_INCH = 130
_LOG_FROM = 20  # a log axis, where the largest value is this many times the smallest
_MOST_ROWS = 96  # of a matrix that is drawn: with more, the diagonal is too thin to be seen


def curves_png(
    log: Sequence[Event], curves: Sequence[str], *, teacher: Mapping[str, float] | None = None, best_step: int = -1
) -> bytes:
    """Draw the loss and its parts, the learning rate, and metrics on the evaluation sets, over the steps.

    Args:
        log: Events of kind ``"step"`` (loss, parts, learning_rate, epoch) and ``"evaluation"`` (metrics), by step.
        curves: The metrics to draw, eight at most.
        teacher: The teacher's metrics, drawn as dotted lines.
        best_step: Where the best weights were; -1 draws no mark.

    Returns:
        A PNG file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    steps = [event for event in log if event["event"] == "step"]
    evaluations = [event for event in log if event["event"] == "evaluation"]
    figure = _new_figure(10.5, 9.0)
    loss, rate, metrics = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1.4, 3]})
    _draw_losses(loss, steps)
    rate.plot(*_series(steps, "learning_rate"), color=_TOTAL, linewidth=1.7)
    rate.set_ylabel("learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    _draw_metrics(metrics, evaluations, curves[: len(_COLOURS)], teacher or {})
    metrics.set_xlabel("optimizer step")
    for axes in (loss, rate, metrics):
        _mark_steps(axes, steps, best_step)
    _legend(loss)
    _legend(metrics)
    return _png(figure)


def similarity_png(student: NDArray[np.float32], teacher: NDArray[np.float32] | None = None) -> bytes:
    """Draw the cosines R of the student beside S of the teacher, on one scale of colours.

    Args:
        student: (N, N), row i the left half of text i, column i its right half; the first 96 of each are drawn.
        teacher: (N, N), or None where there is none.

    Returns:
        A PNG file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    named = [("Student: R", student)] + ([("Teacher: S", teacher)] if teacher is not None else [])
    drawn = [(name, matrix[:_MOST_ROWS, :_MOST_ROWS]) for name, matrix in named]
    values = np.concatenate([matrix.ravel() for _, matrix in drawn])
    low, high = float(np.quantile(values, 0.005)), float(values.max())  # an outlier below would eat up the colours
    figure = _new_figure(5.2 * len(drawn) + 0.8, 5.6)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (name, matrix), (_, whole) in zip(panels, drawn, named, strict=True):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        off_diagonal = whole[~np.eye(len(whole), dtype=np.bool_)]
        numbers = f"diagonal {np.diagonal(whole).mean():.3f}, off-diagonal {off_diagonal.mean():.3f} (means)"
        axes.set_title(f"{name}\n{numbers}", fontsize=11)
        axes.set_xlabel("right half")
        axes.set_ylabel("left half")
    figure.colorbar(image, ax=list(panels), label="cosine", shrink=0.85)
    return _png(figure)


def _draw_losses(axes: Any, steps: Sequence[Event]) -> None:
    names = list(dict.fromkeys(name for event in steps for name in event.get("parts", {})))
    parts = {
        name: _finite([(event["step"], event["parts"].get(name, math.nan)) for event in steps if "parts" in event])
        for name in names
    }
    drawn = {"loss": (_series(steps, "loss"), _TOTAL)}
    if len(parts) > 1:  # a single part is the loss itself
        drawn |= {name: (part, colour) for (name, part), colour in zip(parts.items(), _COLOURS, strict=False)}
    values = np.concatenate([series[1] for series, _ in drawn.values()])
    positive = values[values > 0]
    as_log = len(positive) > 0 and (values >= 0).all() and positive.max() > _LOG_FROM * positive.min()
    starts = _epoch_starts(steps)
    for name, ((at, value), colour) in drawn.items():
        counts = value != 0  # a part is 0 in epochs in which it has no weight
        if counts.any():
            _draw_loss(axes, (at[counts], value[counts]), name, colour, starts)
    if as_log:
        axes.set_yscale("log")
    axes.set_ylabel("loss (log scale)" if as_log else "loss")


def _draw_loss(axes: Any, series: tuple[Numbers, Numbers], name: str, colour: str, starts: Sequence[float]) -> None:
    """The values in a pale line; their moving mean, of each epoch by itself, in a strong one."""
    at, values = series
    weights = np.ones(max(1, len(values) // 40))
    if len(weights) > 1:
        axes.plot(at, values, color=colour, alpha=0.22, linewidth=0.8)
    means = [
        np.convolve(part, weights, "same") / np.convolve(np.ones(len(part)), weights, "same")
        for part in np.split(values, np.searchsorted(at, starts))
        if len(part) >= len(weights)
    ]
    if sum(map(len, means)) < len(values):  # epochs shorter than the window
        means = [values]
    width = 2.6 if name == "loss" else 1.7  # the total shows beneath a part that is all of it
    marker = "." if len(values) < 3 else None
    axes.plot(at, np.concatenate(means), color=colour, linewidth=width, label=_label(name), marker=marker)


def _draw_metrics(axes: Any, evaluations: Sequence[Event], curves: Sequence[str], teacher: Mapping[str, float]) -> None:
    for name, colour in zip(curves, _COLOURS, strict=False):
        points = [(event["step"], event["metrics"].get(name, math.nan)) for event in evaluations]
        axes.plot(*_finite(points), color=colour, marker="o", markersize=4, linewidth=1.6, label=_label(name))
        if name in teacher:
            label = f"{_label(name)}, teacher"
            axes.axhline(teacher[name], color=colour, linestyle=":", linewidth=1.4, label=label)
    if not curves:
        axes.text(0.5, 0.5, "no evaluation was made", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylabel("evaluation")


def _mark_steps(axes: Any, steps: Sequence[Event], best_step: int) -> None:
    axes.grid(visible=True, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    starts = _epoch_starts(steps)
    for start in starts if len(starts) <= 20 else []:
        axes.axvline(start - 0.5, color="#999999", linewidth=0.9, linestyle=(0, (4, 4)))
    if best_step >= 0:
        axes.axvline(best_step, color="#009E73", linewidth=4, alpha=0.25)
    if axes.get_subplotspec().is_first_row():
        notes = (["dashed: a new epoch"] if 0 < len(starts) <= 20 else []) + ["green: best weights"] * (best_step >= 0)
        axes.set_title("   ".join(notes), fontsize=9, loc="right", color="#555555")


def _epoch_starts(steps: Sequence[Event]) -> list[float]:
    """The first step of each epoch but the first."""
    return [after["step"] for before, after in pairwise(steps) if before.get("epoch") != after.get("epoch")]


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False)


def _series(events: Sequence[Event], name: str) -> tuple[Numbers, Numbers]:
    return _finite([(event["step"], event[name]) for event in events if name in event])


def _finite(points: Sequence[tuple[float, float]]) -> tuple[Numbers, Numbers]:
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def _label(name: str) -> str:
    """A name that matplotlib's own font can write and that is not taken for a formula."""
    return name.encode("ascii", "replace").decode().replace("$", r"\$")


def _new_figure(width: float, height: float) -> Any:
    # The object-oriented interface: pyplot would keep figures and choose a backend for the whole process.
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", extra="train").FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()
