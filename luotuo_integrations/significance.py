"""Whether two systems, measured on the same queries, really differ."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luotuo_integrations.evaluation import bootstrap_interval


def paired_significance(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Compare two systems on the same queries: by how much their means differ, and how easily chance does that.

    The p-value is that of Fisher's randomization test, which Smucker, Allan and Carterette (2007) recommend for
    retrieval: if the systems were alike, which of two numbers belongs to which system would be a matter of chance, so
    that each query's difference could as well have the other sign. The share of random signs whose mean difference is
    at least as far from 0 as the observed one is p, two-sided. The observed signs count as one of the draws (Davison
    and Hinkley, 1997), so that p is never 0.

    Args:
        first: (Q,) one finite number a query, as ``evaluation.ranking_values`` gives them; NaN (no relevant id) leaves
            out the query.
        second: (Q,) the other system's numbers for the same queries in the same order.
        confidence: Of the interval, between 0 and 1.
        resamples: How many times to draw signs, and how many times to draw queries for the interval.
        seed: The same seed gives the same numbers.

    Returns:
        ``{"difference": ..., "low": ..., "high": ..., "p": ...}``: mean(first) - mean(second) over the queries that
        both have, its bootstrap interval (``evaluation.bootstrap_interval``), and p from 1 / (1 + resamples) to 1.

    Raises:
        ValueError: If the shapes differ, no query is left, a number is infinite, or ``confidence`` or ``resamples`` is
            out of range.
    """
    differences = _differences(first, second)
    interval = bootstrap_interval(differences, confidence=confidence, resamples=resamples, seed=seed)
    # Sums of the same numbers in another order differ in their last bits: such a draw is as far from 0, too.
    observed = abs(float(differences.sum())) - 1e-12 * float(np.abs(differences).sum())
    generator = np.random.default_rng(seed)
    as_far = 0
    for _ in range(resamples):
        signs = 2 * generator.integers(2, size=differences.size) - 1
        as_far += abs(float(signs @ differences)) >= observed
    return {
        "difference": interval["mean"],
        "low": interval["low"],
        "high": interval["high"],
        "p": (1 + as_far) / (1 + resamples),
    }


def _differences(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """The differences first - second of the queries where neither is NaN, float64 (Q',)."""
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or np.isinf(left).any() or np.isinf(right).any():
        msg = f"two lists (Q,) are needed, a number a query, none infinite; the shapes are {left.shape}, {right.shape}"
        raise ValueError(msg)
    differences = left - right
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        msg = f"none of the {len(left)} queries has a number of both systems: there is nothing to compare"
        raise ValueError(msg)
    return differences
