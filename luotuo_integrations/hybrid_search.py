"""Hybrid search in a store: nearest vectors and matching keywords, fused into one ranking. No framework is imported."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luotuo_integrations.fusion import Method, fuse
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.filters import Filter, Predicate
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.vector_math import Matrix, choose_diverse, unit_rows


@dataclass(frozen=True)
class HybridSettings:
    """How two rankings become one.

    Args:
        weights: Of vectors and of keywords, from 0. The default was best on development sets of nine domains.
        method: ``"weighted"`` (scores, scaled to [0, 1] by query) or ``"reciprocal_rank"`` (places); see ``fusion``.
        fetch_k: How many of each ranking are fused, from 1; at least as many as are wanted.
        lambda_mult: 1 looks at the fused score alone, 0 at diversity alone; None does not look at diversity.

    Raises:
        ValueError: If something is out of range.
    """

    weights: tuple[float, float] = (0.6, 0.4)
    method: Method = "weighted"
    fetch_k: int = 100
    lambda_mult: float | None = None

    def __post_init__(self) -> None:
        fuse([{}, {}], self.weights, method=self.method)  # checks both
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
        Hits with fused scores from 0 to 1, best first; with ``lambda_mult`` in the order in which they were chosen.

    Raises:
        ValueError: If k is less than 1, or the vector has another dimension than the store.
    """
    how = settings or HybridSettings()
    limit = list(ids) if ids is not None else None
    most = max(k, how.fetch_k)
    query = np.asarray(vector, dtype=np.float32)
    near = core.search(query[None], most, where=where, ids=limit)[0]
    matching = core.keyword_search(text, most, where=where, ids=limit)
    sign = -1.0 if core.metric == "euclidean" else 1.0  # of distances, the lowest is best
    fused = fuse(
        [{hit.id: sign * hit.score for hit in near}, {hit.id: hit.score for hit in matching}],
        how.weights,
        method=how.method,
    )
    found = {hit.id: hit for hit in (*matching, *near)}
    hits = [replace(found[key], score=score) for key, score in fused]
    if how.lambda_mult is None or not hits:
        return hits[:k]
    return _diverse(core, query, hits[:most], k, how.lambda_mult)


def _diverse(core: FaissCore, query: Matrix, hits: list[Hit], k: int, lambda_mult: float) -> list[Hit]:
    """MMR after fusion: fused scores stand for nearness, on the scale of the cosines that they are weighed against."""
    units = unit_rows(core.vectors([hit.id for hit in hits]))  # (n, D)
    cosines = units @ unit_rows(query[None])[0]  # (n,)
    scores = np.array([hit.score for hit in hits], dtype=np.float32)
    spread = float(np.ptp(scores)) or 1.0
    nearness = cosines.min() + (scores - scores.min()) / spread * np.ptp(cosines)
    return [hits[position] for position in choose_diverse(nearness, units, k, lambda_mult)]
