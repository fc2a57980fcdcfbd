"""Exact search among given rows: their vectors are read a chunk at a time and compared."""

from collections.abc import Callable

import numpy as np

from luotuo_integrations._optional import require
from luotuo_integrations.store.table import Rows
from luotuo_integrations.store.vector_math import Matrix, Metric

CHUNK = 65_536


def faiss_metric(metric: Metric) -> int:
    """Number that faiss gives the metric; cosine is the inner product of vectors of length 1."""
    faiss = require("faiss", extra="faiss")
    return int(faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT)


def nearest_rows(
    queries: Matrix, k: int, rows: Rows, vectors: Callable[[Rows], Matrix], metric: Metric
) -> tuple[Matrix, Rows]:
    """Compare queries with each of the rows.

    Args:
        queries: float32 (Q, D), of length 1 for cosine.
        k: How many, at least 1 and at most the number of rows.
        rows: int64 (N,).
        vectors: Gives the vectors of rows, float32 (n, D).
        metric: Metric of the store.

    Returns:
        Scores as faiss gives them, float32 (Q, k), and rows int64 (Q, k), best first; see ``final_scores``.
    """
    faiss = require("faiss", extra="faiss")
    best, best_rows = np.zeros((len(queries), 0), dtype=np.float32), np.zeros((len(queries), 0), dtype=np.int64)
    sign = 1 if metric == "euclidean" else -1
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        scores, places = faiss.knn(queries, vectors(chunk), min(k, len(chunk)), metric=faiss_metric(metric))
        best, best_rows = np.hstack([best, scores]), np.hstack([best_rows, chunk[places]])
        order = np.argsort(sign * best, axis=1, kind="stable")[:, :k]
        best, best_rows = np.take_along_axis(best, order, 1), np.take_along_axis(best_rows, order, 1)
    return best, best_rows


def final_scores(scores: Matrix, metric: Metric) -> Matrix:
    """Scores as a store gives them, of those that faiss gives: cosines within [-1, 1], distances without a square."""
    if metric == "cosine":
        return np.clip(scores, -1.0, 1.0)
    if metric == "euclidean":
        return np.sqrt(np.maximum(scores, 0.0))
    return scores
