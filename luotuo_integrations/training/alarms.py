"""Alarms: what in the numbers of a run says that something went wrong."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luotuo_integrations.training.evaluate import MAIN_METRICS

Event = Mapping[str, Any]

COLLAPSE_RULE = (
    "the alarm sounds when the mean off-diagonal of R is above that of S by more than 0.2, or by more than half of the "
    "way from S to 1; without a teacher, when it is above 0.95"
)
_FELL_BY = 0.005  # a smaller loss of an evaluation metric is noise
_ROSE_BY = 0.1  # share of the loss


def alarms(metrics: Mapping[str, Any], log: Sequence[Event]) -> list[str]:
    """Say what looks wrong: collapsed embeddings, a loss that rose at the end, an evaluation below the start.

    Args:
        metrics: ``"before"``, ``"after"`` and ``"teacher"``, each ``{"set/metric": value}``; any may be missing.
        log: Events, of which ``"step"`` with ``"loss"`` and ``"epoch"`` count.

    Returns:
        One sentence each; empty if all is well.
    """
    before, after, teacher = (metrics.get(name) or {} for name in ("before", "after", "teacher"))
    return [*_collapses(after, teacher), *_loss_alarms(log), *_falls(before, after)]


def collapse_limit(teacher: float | None) -> float:
    """The mean off-diagonal cosine from which a student counts as collapsed, given that of its teacher."""
    return 0.95 if teacher is None else teacher + min(0.2, (1 - teacher) / 2)


def _collapses(after: Mapping[str, float], teacher: Mapping[str, float]) -> list[str]:
    found = []
    for key, value in after.items():
        own = teacher.get(key)
        if key.endswith("/off_diagonal_mean") and value > collapse_limit(own):
            beside = "" if own is None else f", the teacher's is {own:.3f}"
            found.append(
                f"The embeddings have collapsed: the mean off-diagonal cosine of {key.rpartition('/')[0]!r} is "
                f"{value:.3f}{beside}, so different texts look alike. Begin with the feature loss alone for longer, "
                "give it more weight, or raise the temperature."
            )
    return found


def _loss_alarms(log: Sequence[Event]) -> list[str]:
    """Within the last epoch: between epochs the weights of the loss may change, and so its size."""
    steps = [event for event in log if event["event"] == "step" and "loss" in event]
    losses = np.array([event["loss"] for event in steps if event.get("epoch") == steps[-1].get("epoch")])
    window = max(3, len(losses) // 10)
    if len(losses) < 3 * window:
        return []
    parts = [losses[end - window : end] for end in range(len(losses), window - 1, -window)]
    last, lowest = parts[0], min(parts, key=np.mean)
    rise = last.mean() - lowest.mean()
    noise = math.sqrt((last.var(ddof=1) + lowest.var(ddof=1)) / window)
    if rise <= max(_ROSE_BY * abs(lowest.mean()), 3 * noise):
        return []
    return [
        f"The loss rose at the end: {last.mean():.4g} over the last {window} logged steps, {lowest.mean():.4g} at its "
        "lowest in the same epoch. Lower the learning rate, or train shorter."
    ]


def _falls(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    return [
        f"{key!r} fell below its start: from {before[key]:.4f} to {value:.4f}. The model got worse at this; the "
        "untrained one may serve better, or the data do not fit."
        for key, value in after.items()
        if key.rpartition("/")[2] in MAIN_METRICS and key in before and value < before[key] - _FELL_BY
    ]
