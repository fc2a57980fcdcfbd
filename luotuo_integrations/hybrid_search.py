"""Hybrid search in a store: nearest vectors and matching keywords, fused into one ranking. No framework is imported."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from luotuo_integrations.fusion import fuse
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.filters import Filter, Predicate
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.vector_math import Matrix, choose_diverse, unit_rows

HybridMethod = Literal["calibrated", "weighted", "reciprocal_rank"]

# What a coverage of 1 is worth at equal weights, in standard deviations of the vectors' scores; a text that holds each
# of a query's words once has a coverage of about 0.4. Chosen on development sets of fourteen domains, where 11 to 15
# are as good; see docs/retrieval.md.
COVERAGE_SCALE = 13.0


@dataclass(frozen=True)
class HybridSettings:
    """How two rankings become one.

    - ``"calibrated"``: weight * score of the vectors / spread + weight * 13 * coverage. The spread is the standard
      deviation of such scores between documents of the store, so that one setting suits every model; the coverage is
      the BM25 score divided by the highest that the query allows, from 0 to below 1, about 0.4 where each word of the
      query stands once. What only one search found has its other score computed. This measured best: a weak match of
      words adds little, however far it is ahead of weaker ones.
    - ``"weighted"`` and ``"reciprocal_rank"``: of scores scaled by query, or of places; see ``fusion.fuse``. What only
      one search found counts as the other's last.

    Args:
        weights: Of vectors and of keywords, from 0; a side without weight is not searched.
        method: How.
        fetch_k: How many of each ranking are fused, from 1; at least as many as are wanted.
        lambda_mult: 1 looks at the fused score alone, 0 at diversity alone; None does not look at diversity.

    Raises:
        ValueError: If something is out of range.
    """

    weights: tuple[float, float] = (0.5, 0.5)
    method: HybridMethod = "calibrated"
    fetch_k: int = 100
    lambda_mult: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(HybridMethod):
            msg = f"method={self.method!r} is unknown; use one of {', '.join(map(repr, get_args(HybridMethod)))}"
            raise ValueError(msg)
        fuse([{}, {}], self.weights)  # checks them
        if self.fetch_k < 1:
            msg = f"fetch_k={self.fetch_k} must be 1 or more"
            raise ValueError(msg)
        if self.lambda_mult is not None and not 0 <= self.lambda_mult <= 1:
            msg = f"lambda_mult={self.lambda_mult} must be None, or between 0 (diversity only) and 1 (score only)"
            raise ValueError(msg)


def hybrid_search(
    core: FaissCore,
    vector: Any,
    text: str,
    k: int = 4,
    *,
    settings: HybridSettings | None = None,
    where: Filter | Predicate | None = None,
    ids: Iterable[str] | None = None,
) -> list[Hit]:
    """Find documents by a query's vector and its words.

    Args:
        core: The store.
        vector: float32 (D,): the query's.
        text: The query.
        k: How many, 1 or more; fewer are given if the store, or the filter, has fewer.
        settings: How to fuse; None takes the defaults.
        where: Only documents whose metadata passes; both searches are limited by it.
        ids: Only these documents.

    Returns:
        Hits with fused scores, best first; with ``lambda_mult`` in the order in which they were chosen. The scores are
        from 0 to 1 by ``"weighted"`` and ``"reciprocal_rank"``; by ``"calibrated"`` they lie between the coverage and
        the vectors' scores (of distances, the negative ones), so that they are at most 1 for cosines.

    Raises:
        ValueError: If k is less than 1, or the vector has another dimension than the store.
    """
    how = settings or HybridSettings()
    if k < 1:
        msg = f"k={k} must be 1 or more"
        raise ValueError(msg)
    limit = list(ids) if ids is not None else None
    most = max(k, how.fetch_k)
    query = np.asarray(vector, dtype=np.float32)
    near = core.search(query[None], most, where=where, ids=limit)[0] if how.weights[0] else []
    matching = core.keyword_search(text, most, where=where, ids=limit) if how.weights[1] else []
    sign = -1.0 if core.metric == "euclidean" else 1.0  # of distances, the lowest is best
    scores = {hit.id: sign * hit.score for hit in near}, {hit.id: hit.score for hit in matching}
    if how.method == "calibrated":
        fused = _calibrated(core, query, text, scores, how.weights)
    else:
        fused = fuse(scores, how.weights, method=how.method)
    found = {hit.id: hit for hit in (*matching, *near)}
    hits = [replace(found[key], score=score) for key, score in fused]
    if how.lambda_mult is None or not hits:
        return hits[:k]
    return _diverse(core, query, hits[:most], k, how.lambda_mult)


def _calibrated(
    core: FaissCore,
    query: Matrix,
    text: str,
    scores: tuple[dict[str, float], dict[str, float]],
    weights: tuple[float, float],
) -> list[tuple[str, float]]:
    near, matching = scores
    share = weights[1] / sum(weights)
    if weights[0] and weights[1]:
        # Both weights in units of the vectors' scores, with a sum of 1.
        coverage = weights[1] * COVERAGE_SCALE * (core.spread() or 1.0 / COVERAGE_SCALE)
        share = coverage / (weights[0] + coverage)
        lacking = [key for key in matching if key not in near], [key for key in near if key not in matching]
        if lacking[0]:
            sign = -1.0 if core.metric == "euclidean" else 1.0
            hits = core.search(query[None], len(lacking[0]), ids=lacking[0])[0]
            near = near | {hit.id: sign * hit.score for hit in hits}
        if lacking[1]:
            hits = core.keyword_search(text, len(lacking[1]), ids=lacking[1])
            matching = matching | {hit.id: hit.score for hit in hits}
    ceiling = (core.keyword_ceiling(text) if matching else 0.0) or 1.0
    lowest = min(near.values(), default=0.0)  # of what was deleted meanwhile
    fused = {
        key: (1 - share) * near.get(key, lowest) + share * matching.get(key, 0.0) / ceiling for key in near | matching
    }
    return sorted(fused.items(), key=lambda item: -item[1])


def _diverse(core: FaissCore, query: Matrix, hits: list[Hit], k: int, lambda_mult: float) -> list[Hit]:
    """MMR after fusion: fused scores stand for nearness, on the scale of the cosines that they are weighed against."""
    present, vectors = core.present_vectors([hit.id for hit in hits])  # some may have been deleted meanwhile
    hits = [hits[place] for place in present]
    if not hits:
        return []
    units = unit_rows(vectors)  # (n, D)
    cosines = units @ unit_rows(query[None])[0]  # (n,)
    scores = np.array([hit.score for hit in hits], dtype=np.float32)
    spread = float(np.ptp(scores)) or 1.0
    nearness = cosines.min() + (scores - scores.min()) / spread * np.ptp(cosines)
    return [hits[position] for position in choose_diverse(nearness, units, k, lambda_mult)]
