"""Checks of vectors, normalisation, relevance and MMR, against plain loops."""

from typing import Any

import numpy as np
import pytest

from luotuo_integrations.store.vector_math import METRICS, as_matrix, maximal_marginal_relevance, relevance, unit_rows


def test_float32_input_is_not_copied_and_other_numbers_become_float32() -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    assert as_matrix(vectors) is vectors
    for given in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=np.float64), np.asfortranarray([[1, 2], [3, 4]])):
        matrix = as_matrix(given, 2)
        assert matrix.dtype == np.float32
        assert matrix.flags.c_contiguous
        assert matrix.tolist() == [[1, 2], [3, 4]]
    assert as_matrix([], 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("vectors", "error", "words"),
    [
        ([[1.0, 2.0], [3.0]], ValueError, "different lengths"),
        ([1.0, 2.0], ValueError, r"shape \(2,\)"),
        ([[1.0, 2.0, 3.0]], ValueError, r"shape \(1, 3\); it must be \(N, 2\)"),
        (np.zeros((2, 0)), ValueError, "shape"),
        ([["1", "2"]], TypeError, "floats"),
        ([[None, 1.0]], TypeError, "floats"),
        ([[1j, 1.0]], TypeError, "floats"),
        ([[True, False]], TypeError, "floats"),
        ([[1.0, 2.0], [float("nan"), 1.0]], ValueError, r"vectors\[1\] holds NaN"),
        ([[float("inf"), 1.0]], ValueError, r"vectors\[0\]"),
        (np.array([[1e300, 1.0]]), ValueError, r"vectors\[0\]"),
    ],
)
def test_what_is_no_matrix_is_refused(vectors: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_matrix(vectors, 2)


def test_unit_rows_of_any_size() -> None:
    matrix = np.array([[3, 4], [0, 0], [3e30, 4e30], [3e-30, 4e-30]], dtype=np.float32)
    before = matrix.copy()
    assert np.allclose(unit_rows(matrix), [[0.6, 0.8], [0, 0], [0.6, 0.8], [0.6, 0.8]])
    assert (matrix == before).all()


@pytest.mark.parametrize("metric", METRICS)
def test_relevance_lies_in_0_1_and_keeps_the_order(metric: Any) -> None:
    rng = np.random.default_rng(3)
    ranges = {"cosine": (-1, 1), "inner_product": (-30, 30), "euclidean": (0, 50)}
    scores = np.sort(rng.uniform(*ranges[metric], size=500))
    values = relevance(metric, scores)
    assert ((values >= 0) & (values <= 1)).all()
    steps = np.diff(values if metric != "euclidean" else values[::-1])
    assert (steps > 0).all()


def test_relevance_values() -> None:
    assert relevance("cosine", [1.0, 0.0, -1.0]).tolist() == [1.0, 0.5, 0.0]
    assert relevance("euclidean", [0.0, 1.0]).tolist() == [1.0, 0.5]
    assert np.allclose(relevance("inner_product", [0.0, 2.0, -1e4, 1e4]), [0.5, 1 / (1 + np.exp(-2.0)), 0.0, 1.0])


def plain_mmr(query: Any, candidates: Any, k: int, weight: float) -> list[int]:
    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    chosen: list[int] = []
    while len(chosen) < min(k, len(candidates)):
        gains = {
            i: weight * cosine(query, candidates[i])
            - (1 - weight) * max((cosine(candidates[i], candidates[j]) for j in chosen), default=0.0)
            for i in range(len(candidates))
            if i not in chosen
        }
        if not chosen:
            gains = {i: cosine(query, candidates[i]) for i in gains}
        chosen.append(max(gains, key=lambda i: gains[i]))
    return chosen


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_mmr_equals_a_plain_loop(weight: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        query, candidates = rng.normal(size=6).astype("f4"), rng.normal(size=(15, 6)).astype("f4")
        assert maximal_marginal_relevance(query, candidates, 8, weight) == plain_mmr(query, candidates, 8, weight)


def test_mmr_avoids_a_repeated_candidate_and_refuses_a_bad_weight() -> None:
    candidates = np.array([[1, 0], [1, 0], [0.8, 0.6]], dtype=np.float32)
    query = np.array([1, 0.1], dtype=np.float32)
    assert maximal_marginal_relevance(query, candidates, 2, 0.3) == [0, 2]
    assert maximal_marginal_relevance(query, candidates, 2, 1.0) == [0, 1]
    assert maximal_marginal_relevance(query, candidates[:0], 2, 0.5) == []
    assert len(maximal_marginal_relevance(query, candidates, 9, 0.5)) == 3
    with pytest.raises(ValueError, match="between 0"):
        maximal_marginal_relevance(query, candidates, 2, 1.5)
