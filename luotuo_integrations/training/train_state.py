"""TrainState: where a run stands."""

from dataclasses import dataclass


@dataclass(slots=True)
class TrainState:
    """Where a run stands: with the config, all that decides what comes next.

    Attributes:
        epoch: From 0.
        position: Optimizer steps done in this epoch.
        step: Optimizer steps done in all.
        texts: Texts trained on, repetitions counted.
        seconds: Spent training, over all starts.
        best_step: Step of the best evaluation; -1 before the first.
        best_value: Its main metric; None before the first.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    texts: int = 0
    seconds: float = 0.0
    best_step: int = -1
    best_value: float | None = None
