"""Measures of retrieval: arrays and lists in, ``dict[str, float]`` out.

Two doors lead to the same measures. :func:`ranking_metrics` takes ranked lists of ids, any number of relevant ids a
query, and graded relevance. :func:`rank_metrics` takes the rank of the one relevant item of each query, which
:func:`ranks` counts in a matrix of scores. :func:`ranking_values` and :func:`rank_values` give the numbers of each
query, which :func:`bootstrap_interval` and ``significance.paired_significance`` need. Ranks begin at 1.

For a query with the relevant set R, of gains g > 0, and the ranked list r_1, r_2, ...:

- ``recall@k``: |{r_1 ... r_k} ∩ R| / |R|.
- ``mrr@k``: 1 / (rank of the first relevant item), 0 if that rank is above k; the mean over the queries is the mean
  reciprocal rank (Voorhees, 1999).
- ``map@k``: average precision, (sum of the precision |{r_1 ... r_i} ∩ R| / i over each i <= k with r_i in R) / |R|; the
  mean over the queries is the mean average precision. This is trec_eval's map_cut_k: with more than k relevant ids no
  list reaches 1. Others divide by min(|R|, k).
- ``ndcg@k``: DCG / DCG of the best possible order, where DCG = sum over i <= k of g(r_i) / log2(1 + i) (Järvelin and
  Kekäläinen, 2002, in the form that trec_eval computes). For the exponential variant pass 2**grade - 1 as the gain.

The metrics are means over the queries.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Relevant = Collection[Hashable] | Mapping[Any, float]

DEFAULT_CUTOFFS = (1, 5, 10)


def ranking_metrics(
    ranked: Sequence[Sequence[Hashable]], relevant: Sequence[Relevant], *, cutoffs: Iterable[int] = DEFAULT_CUTOFFS
) -> dict[str, float]:
    """Average recall@k, mrr@k, map@k and ndcg@k over the queries.

    Args:
        ranked: One list of ids a query, best first. It may be shorter than k or empty. An id that comes again keeps its
            place but earns nothing: several pieces of one section may be retrieved, one counts.
        relevant: For each query a collection of relevant ids, or a mapping from id to gain: 0 is not relevant.
        cutoffs: The values of k.

    Returns:
        ``{"recall@1": ..., "mrr@1": ..., "map@1": ..., "ndcg@1": ..., ...}``, each from 0 to 1. Queries without any
        relevant id have no recall and are left out of the means.

    Raises:
        TypeError: If a query's ids are given as one string.
        ValueError: If the lists differ in length, a gain is negative or not finite, a cutoff is below 1, or no query
            has a relevant id.
    """
    values = ranking_values(ranked, relevant, cutoffs=cutoffs)
    if all(np.isnan(column).all() for column in values.values()):
        msg = f"none of the {len(ranked)} queries has a relevant id: there is nothing to average"
        raise ValueError(msg)
    return {name: float(np.nanmean(column)) for name, column in values.items()}


def ranking_values(
    ranked: Sequence[Sequence[Hashable]], relevant: Sequence[Relevant], *, cutoffs: Iterable[int] = DEFAULT_CUTOFFS
) -> dict[str, NDArray[np.float64]]:
    """Compute recall@k, the reciprocal rank, the average precision and ndcg@k of each query.

    Args:
        ranked: As in :func:`ranking_metrics`.
        relevant: As in :func:`ranking_metrics`.
        cutoffs: The values of k.

    Returns:
        For each metric a float64 array (Q,), from 0 to 1; NaN for a query without a relevant id.

    Raises:
        TypeError: As in :func:`ranking_metrics`.
        ValueError: As in :func:`ranking_metrics`, except that every query may lack relevant ids.
    """
    if len(ranked) != len(relevant):
        msg = f"{len(ranked)} ranked lists but {len(relevant)} relevant sets: one of each a query is needed"
        raise ValueError(msg)
    cutoffs = _check_cutoffs(cutoffs)
    columns: dict[str, list[float]] = {f"{name}@{k}": [] for k in cutoffs for name in ("recall", "mrr", "map", "ndcg")}
    for query, (ids, wanted) in enumerate(zip(ranked, relevant, strict=True)):
        for given in (ids, wanted):
            if isinstance(given, str):
                msg = f"query {query}: the string {given!r} was given, but must be a list of ids: [{given!r}]"
                raise TypeError(msg)
        gains = _gains(wanted, query)
        earned = _earned_gains(ids[: max(cutoffs)], gains)
        best = np.sort(np.fromiter(gains.values(), dtype=np.float64))[::-1]
        for k in cutoffs:
            columns[f"recall@{k}"].append(np.count_nonzero(earned[:k]) / len(gains) if gains else math.nan)
            columns[f"mrr@{k}"].append(_reciprocal_rank(earned[:k]) if gains else math.nan)
            columns[f"map@{k}"].append(_precisions(earned[:k]).sum() / len(gains) if gains else math.nan)
            columns[f"ndcg@{k}"].append(_discounted(earned[:k]) / _discounted(best[:k]) if gains else math.nan)
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def ranks(
    scores: ArrayLike, positives: ArrayLike, *, ties: Literal["pessimistic", "average"] = "pessimistic"
) -> NDArray[np.float64]:
    """Count the rank of each query's positive item among all scored items.

    Args:
        scores: (Q, N), higher is better: row q scores all N items for query q.
        positives: The positive item of each query: integers (Q,) from 0 to N - 1, or booleans (Q, N), True at every
            positive item; then the rank of the best-scored one counts.
        ties: What a negative item with exactly the positive's score does. ``"pessimistic"``: it ranks before the
            positive, so that a model that scores everything alike gets the worst rank. ``"average"``: the mean over all
            orders, half a rank for each such item; ranks may end in .5.

    Returns:
        float64 (Q,): 1 + (items that rank before the positive), from 1 to N; infinity where a query has no positive.

    Raises:
        ValueError: If the shapes do not fit, a score is NaN, a position is out of range, or ``ties`` is unknown.
    """
    scores = np.asarray(scores)
    if ties not in ("pessimistic", "average"):
        msg = f"ties is {ties!r}, but must be 'pessimistic' or 'average'"
        raise ValueError(msg)
    if scores.ndim != 2 or np.isnan(scores).any():
        msg = f"scores must be an array (Q, N) without NaN, but have the shape {scores.shape}"
        raise ValueError(msg)
    mask = _positive_mask(np.asarray(positives), scores.shape)
    best_positive = np.where(mask, scores, -np.inf).max(axis=1, initial=-np.inf)  # (Q,)
    above = (~mask & (scores > best_positive[:, None])).sum(axis=1)
    level = (~mask & (scores == best_positive[:, None])).sum(axis=1)
    rank = 1.0 + above + (level if ties == "pessimistic" else level / 2)
    return np.where(mask.any(axis=1), rank, np.inf)


def rank_metrics(ranks: ArrayLike, *, cutoffs: Iterable[int] = DEFAULT_CUTOFFS) -> dict[str, float]:
    """Average recall@k, mrr@k, map@k and ndcg@k over queries that have one relevant item each.

    Args:
        ranks: (Q,), from 1; infinity where the item was not found. Ranks of half steps (tied scores) are allowed.
        cutoffs: The values of k.

    Returns:
        ``{"recall@1": ..., "mrr@1": ..., "map@1": ..., "ndcg@1": ..., ...}``, each from 0 to 1.

    Raises:
        ValueError: If there is no rank, a rank is below 1 or NaN, or a cutoff is below 1.
    """
    return {name: float(column.mean()) for name, column in rank_values(ranks, cutoffs=cutoffs).items()}


def rank_values(ranks: ArrayLike, *, cutoffs: Iterable[int] = DEFAULT_CUTOFFS) -> dict[str, NDArray[np.float64]]:
    """Compute recall@k (1 or 0), the reciprocal rank and ndcg@k = 1 / log2(1 + rank) of each query.

    With one relevant item the average precision map@k is the reciprocal rank.

    Args:
        ranks: As in :func:`rank_metrics`.
        cutoffs: The values of k.

    Returns:
        For each metric a float64 array (Q,), from 0 to 1.

    Raises:
        ValueError: As in :func:`rank_metrics`.
    """
    rank = np.asarray(ranks, dtype=np.float64)
    if rank.ndim != 1 or rank.size == 0 or not (rank >= 1).all():
        msg = f"ranks must be an array (Q,) of at least one number from 1 on, but are {rank!r}"
        raise ValueError(msg)
    values: dict[str, NDArray[np.float64]] = {}
    for k in _check_cutoffs(cutoffs):
        found = rank <= k
        values[f"recall@{k}"] = found.astype(np.float64)
        values[f"mrr@{k}"] = np.where(found, 1 / rank, 0.0)
        values[f"map@{k}"] = values[f"mrr@{k}"].copy()
        values[f"ndcg@{k}"] = np.where(found, 1 / np.log2(1 + rank), 0.0)
    return values


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Estimate how far a mean over queries could be off: a percentile bootstrap interval (Efron, 1979).

    The queries are drawn anew with replacement ``resamples`` times; the interval holds the middle ``confidence`` of
    the means. To compare two systems on the same queries, see ``significance.paired_significance``.

    Args:
        values: (Q,) one number a query, as :func:`ranking_values` and :func:`rank_values` give them; NaN (no relevant
            id) is left out.
        confidence: Between 0 and 1.
        resamples: How many times to draw.
        seed: The same seed gives the same interval.

    Returns:
        ``{"mean": ..., "low": ..., "high": ...}``.

    Raises:
        ValueError: If no value is left, or ``confidence`` or ``resamples`` is out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        msg = f"confidence must be between 0 and 1 and resamples at least 1, but are {confidence} and {resamples}"
        raise ValueError(msg)
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if sample.ndim != 1 or sample.size == 0:
        msg = "values must be an array (Q,) with at least one number that is not NaN"
        raise ValueError(msg)
    generator = np.random.default_rng(seed)
    # One draw at a time: (resamples, Q) indices at once would take gigabytes for a million queries.
    means = [sample[generator.integers(sample.size, size=sample.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": float(sample.mean()), "low": float(low), "high": float(high)}


def _check_cutoffs(cutoffs: Iterable[int]) -> tuple[int, ...]:
    checked = tuple(cutoffs)
    if not checked or any(k < 1 for k in checked):
        msg = f"cutoffs must be whole numbers from 1 on, but are {checked}"
        raise ValueError(msg)
    return checked


def _gains(wanted: Relevant, query: int) -> dict[Hashable, float]:
    gains = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    for key, gain in gains.items():
        if not (gain >= 0 and math.isfinite(gain)):
            msg = f"query {query}: the gain of {key!r} is {gain}, but must be a number from 0 on"
            raise ValueError(msg)
    return {key: float(gain) for key, gain in gains.items() if gain > 0}


def _earned_gains(ids: Sequence[Hashable], gains: Mapping[Hashable, float]) -> NDArray[np.float64]:
    """The gain at each place of the ranked list: (len(ids),)."""
    seen: set[Hashable] = set()
    earned = np.zeros(len(ids))
    for place, key in enumerate(ids):
        if key not in seen:
            seen.add(key)
            earned[place] = gains.get(key, 0.0)
    return earned


def _reciprocal_rank(earned: NDArray[np.float64]) -> float:
    places = np.flatnonzero(earned)
    return 1.0 / (1 + int(places[0])) if len(places) else 0.0


def _precisions(earned: NDArray[np.float64]) -> NDArray[np.float64]:
    """The precision down to each place that holds a relevant item, 0 at the others: (len(earned),)."""
    found = earned > 0
    precisions: NDArray[np.float64] = found * np.cumsum(found) / np.arange(1, len(found) + 1)
    return precisions


def _discounted(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def _positive_mask(positives: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    queries, items = shape
    if positives.dtype == np.bool_ and positives.shape == shape:
        return positives
    if positives.shape != (queries,) or (queries and not np.issubdtype(positives.dtype, np.integer)):
        msg = (
            f"positives must be integers ({queries},) or booleans {shape} for scores of the shape {shape}, "
            f"but are {positives.dtype} {positives.shape}"
        )
        raise ValueError(msg)
    if queries and (positives.min() < 0 or positives.max() >= items):
        msg = f"positives must be from 0 to {items - 1}, but run from {positives.min()} to {positives.max()}"
        raise ValueError(msg)
    mask = np.zeros(shape, dtype=np.bool_)
    mask[np.arange(queries), positives.astype(np.int64)] = True
    return mask
