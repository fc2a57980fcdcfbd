"""The learning rate over a run: linear warm-up, then cosine."""

import math


def warm_then_cosine(step: int, steps: int, warmup_share: float, final_share: float) -> float:
    """Share of the peak learning rate at a step.

    Args:
        step: From 0.
        steps: Of the whole run.
        warmup_share: Share of the steps that warm up, 0 to below 1.
        final_share: Share of the peak that the cosine ends at.

    Returns:
        Above 0, at most 1.
    """
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
