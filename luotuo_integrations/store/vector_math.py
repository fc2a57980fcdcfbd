"""Vectors as float32 arrays: checks, length 1, relevance, diversity."""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Metric = Literal["cosine", "inner_product", "euclidean"]
Matrix = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

METRICS: tuple[Metric, ...] = get_args(Metric)

_CHUNK = 65_536
_LENGTH_ERROR = 1e-6  # what rounding to float32 leaves of a length of 1


def check_metric(metric: str) -> Metric:
    """Return the metric if it is one, else raise ValueError with the allowed names."""
    if metric not in METRICS:
        msg = f"metric={metric!r} is not known; type one of {', '.join(map(repr, METRICS))}"
        raise ValueError(msg)
    return metric


def as_matrix(vectors: Any, dimension: int | None = None, *, name: str = "vectors") -> Matrix:
    """Check vectors and give them as a contiguous float32 matrix; float32 input is not copied.

    Args:
        vectors: Numbers (N, D): an array, or a list of rows. Without rows, (0, D).
        dimension: Length D that each row must have; None takes any.
        name: What the error calls the argument.

    Returns:
        float32 (N, D), every number finite.

    Raises:
        TypeError: If these are not real numbers.
        ValueError: If rows differ in length, have another length than ``dimension``, or hold NaN or infinity.
    """
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        msg = f"{name} have rows of different lengths; each must have the same number of floats"
        raise ValueError(msg) from error
    if array.ndim and len(array) == 0:
        return np.zeros((0, dimension or 0), dtype=np.float32)
    if array.dtype.kind not in "fiu":
        msg = f"{name} are of type {array.dtype}; give floats, as a float32 array (N, D)"
        raise TypeError(msg)
    if array.ndim != 2 or array.shape[1] == 0 or (dimension is not None and array.shape[1] != dimension):
        msg = f"{name} have shape {array.shape}; it must be (N, {dimension or 'D'})"
        raise ValueError(msg)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(matrix), _CHUNK):
        finite = np.isfinite(matrix[start : start + _CHUNK]).all(axis=1)
        if not finite.all():
            msg = f"{name}[{start + int(np.argmin(finite))}] holds NaN or infinity; leave that row out"
            raise ValueError(msg)
    return matrix


def unit_rows(matrix: Matrix) -> Matrix:
    """Scale each row to length 1.

    Args:
        matrix: float32 (N, D), not changed. A row of zeros stays as it is: its cosine with everything is 0.

    Returns:
        float32 (N, D): a new array, or ``matrix`` itself if every row has length 1 already, as models give them.
    """
    # float64: squares of very large or small float32 numbers would overflow or vanish.
    norms = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))
    norms[norms == 0] = 1.0
    if (np.abs(norms - 1.0) <= _LENGTH_ERROR).all():
        return matrix
    # Into float32 at once: a quotient in float64 would take twice the memory of all vectors on the way.
    scaled: Matrix = np.empty_like(matrix)
    np.divide(matrix, norms[:, None], out=scaled, casting="same_kind")
    return scaled


def score_spread(metric: Metric, vectors: Matrix) -> float:
    """Standard deviation of the scores of all pairs of different rows of ``vectors`` (N, D); 0 if N < 3."""
    if len(vectors) < 3:
        return 0.0
    rows = (unit_rows(vectors) if metric == "cosine" else vectors).astype(np.float64)
    scores = rows @ rows.T
    if metric == "euclidean":
        squares = np.diag(scores)
        scores = np.sqrt(np.maximum(squares[:, None] + squares - 2 * scores, 0.0))
    return float(scores[np.triu_indices(len(rows), 1)].std())


def relevance(metric: Metric, scores: npt.ArrayLike) -> Scores:
    """Turn scores into relevances in [0, 1], always in the order of similarity.

    Args:
        metric: ``"cosine"``: (1 + score) / 2. ``"inner_product"``: the logistic of the score. ``"euclidean"``:
            1 / (1 + distance).
        scores: Any shape: cosines in [-1, 1], inner products, or distances >= 0.

    Returns:
        float64, same shape; 1 is most similar.
    """
    values = np.asarray(scores, dtype=np.float64)
    if metric == "cosine":
        return np.clip((1.0 + values) / 2.0, 0.0, 1.0)
    if metric == "inner_product":
        return 0.5 * (1.0 + np.tanh(values / 2.0))  # the logistic, without overflow
    return 1.0 / (1.0 + values)


def maximal_marginal_relevance(query: Matrix, candidates: Matrix, k: int, lambda_mult: float) -> list[int]:
    """Choose candidates that are near the query and not near each other.

    Each step takes the candidate with the highest ``lambda * cos(query, c) - (1 - lambda) * max cos(c, chosen)``
    (Carbonell and Goldstein, 1998, "The use of MMR").

    Args:
        query: float32 (D,).
        candidates: float32 (N, D).
        k: How many to choose; all of them if N is smaller.
        lambda_mult: 1 looks at the query only, 0 at diversity only.

    Returns:
        Positions in ``candidates``, in the order in which they were chosen.

    Raises:
        ValueError: If ``lambda_mult`` is not in [0, 1].
    """
    units = unit_rows(candidates)  # (N, D)
    # Of no candidates, an empty store for instance, even the dimension may not be known.
    nearness = units @ unit_rows(query[None, :])[0] if len(units) else np.zeros(0, dtype=np.float32)  # (N,)
    return choose_diverse(nearness, units, k, lambda_mult)


def choose_diverse(nearness: Matrix, units: Matrix, k: int, lambda_mult: float) -> list[int]:
    """The choice of ``maximal_marginal_relevance``, for any measure of nearness.

    Args:
        nearness: float32 (N,), on the scale of cosines.
        units: float32 (N, D), rows of length 1.
        k: How many to choose; all of them if N is smaller.
        lambda_mult: 1 looks at nearness only, 0 at diversity only.

    Returns:
        Positions, in the order in which they were chosen.

    Raises:
        ValueError: If ``lambda_mult`` is not in [0, 1].
    """
    if not 0.0 <= lambda_mult <= 1.0:
        msg = f"lambda_mult={lambda_mult!r} must lie between 0 (diversity only) and 1 (nearness only)"
        raise ValueError(msg)
    if len(units) == 0:
        return []
    redundancy = np.full(len(units), -np.inf, dtype=np.float32)  # nearness to the nearest one chosen
    chosen = [int(np.argmax(nearness))]
    while len(chosen) < min(k, len(units)):
        redundancy = np.maximum(redundancy, units @ units[chosen[-1]])
        gain = lambda_mult * nearness - (1.0 - lambda_mult) * redundancy
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    return chosen
