"""LlamaIndex's VectorStoreQuery in the store's own words: by vectors, by keywords, by both, or diverse."""

from dataclasses import replace
from typing import Any

import numpy as np
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from luotuo_integrations.hybrid_search import HybridSettings, hybrid_search
from luotuo_integrations.llama_filters import translate_filters
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.filters import Filter
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.store.vector_math import Matrix, relevance

MMR_ARGUMENTS = ("mmr_threshold", "mmr_prefetch_k", "mmr_prefetch_factor")


def answer(core: FaissCore, query: VectorStoreQuery, mmr: dict[str, Any]) -> list[Hit]:
    """Find what a query asks for; ``FaissVectorStore.query`` documents the modes.

    Args:
        core: The store.
        query: The query.
        mmr: Arguments of ``MMR_ARGUMENTS``, which are for mode ``mmr`` alone.

    Returns:
        Hits, best first, whose scores are higher for what fits better, whatever the metric.

    Raises:
        ValueError: If the query lacks the vector or the text that its mode needs, something is out of range, or the
            mode is not one of those.
    """
    where, ids = _limits(query)
    if query.mode in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE):
        k = _how_many(query, "sparse_top_k", "similarity_top_k")
        return core.keyword_search(_text(query), k, where=where, ids=ids)
    if query.mode == VectorStoreQueryMode.HYBRID:
        return _hybrid(core, query, where, ids)
    if query.mode == VectorStoreQueryMode.DEFAULT:
        hits = core.search(_vector(query)[None], query.similarity_top_k, where=where, ids=ids)[0]
    elif query.mode == VectorStoreQueryMode.MMR:
        thresholds = (mmr.get("mmr_threshold"), query.mmr_threshold, 0.5)
        hits = core.search_diverse(
            _vector(query),
            query.similarity_top_k,
            fetch_k=_prefetched(query.similarity_top_k, mmr),
            lambda_mult=next(value for value in thresholds if value is not None),
            where=where,
            ids=ids,
        )
    else:
        possible = "'default', 'mmr', 'text_search' (or 'sparse') or 'hybrid'"
        msg = f"The query mode {query.mode.value!r} is not possible here; type {possible}"
        raise ValueError(msg)
    if core.metric != "euclidean":
        return hits
    # LlamaIndex sorts and cuts by "higher is better".
    relevances = relevance("euclidean", [hit.score for hit in hits]).tolist()
    return [replace(hit, score=score) for hit, score in zip(hits, relevances, strict=True)]


def _hybrid(core: FaissCore, query: VectorStoreQuery, where: Filter | None, ids: list[str] | None) -> list[Hit]:
    alpha = query.alpha
    if alpha is not None and not 0 <= alpha <= 1:
        msg = f"alpha={alpha} must be between 0 (keywords alone) and 1 (vectors alone), or None for the default"
        raise ValueError(msg)
    k = _how_many(query, "hybrid_top_k", "similarity_top_k")
    fetch_k = HybridSettings.fetch_k if query.sparse_top_k is None else _how_many(query, "sparse_top_k")
    weights = HybridSettings.weights if alpha is None else (alpha, 1 - alpha)
    settings = HybridSettings(weights, fetch_k=fetch_k)
    # A side without weight is not searched, so that it may be missing.
    vector = np.zeros(core.dimension or 1, dtype=np.float32) if alpha == 0 else _vector(query)
    text = "" if alpha == 1 else _text(query)
    return hybrid_search(core, vector, text, k, settings=settings, where=where, ids=ids)


def _vector(query: VectorStoreQuery) -> Matrix:
    if query.query_embedding is None:
        mode = query.mode.value
        msg = f"The query has no query_embedding, and mode {mode!r} compares vectors. Give the index an embed_model"
        raise ValueError(msg)
    return np.asarray(query.query_embedding, dtype=np.float32)


def _text(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        msg = f"The query has no query_str, and mode {query.mode.value!r} looks for its words. Give query_str='...'"
        raise ValueError(msg)
    return query.query_str


def _limits(query: VectorStoreQuery) -> tuple[Filter | None, list[str] | None]:
    """Filter and ids that a query is limited to."""
    where = translate_filters(query.filters)
    if query.doc_ids:
        by_document = {"ref_doc_id": {"$in": query.doc_ids}}
        where = by_document if where is None else {"$and": [where, by_document]}
    return where, query.node_ids or None


def _prefetched(k: int, mmr: dict[str, Any]) -> int:
    if "mmr_prefetch_k" in mmr and "mmr_prefetch_factor" in mmr:
        msg = "mmr_prefetch_k and mmr_prefetch_factor were both given; give one of them"
        raise ValueError(msg)
    return int(mmr.get("mmr_prefetch_k", max(20, k * mmr.get("mmr_prefetch_factor", 4))))


def _how_many(query: VectorStoreQuery, *names: str) -> int:
    """The first of these numbers that is given."""
    name, given = next((name, getattr(query, name)) for name in names if getattr(query, name) is not None)
    if given < 1:
        msg = f"{name}={given} must be 1 or more"
        raise ValueError(msg)
    return int(given)
