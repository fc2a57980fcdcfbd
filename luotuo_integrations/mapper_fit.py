"""Fitting a query mapper: the methods of ``mapper_methods``, chosen by cross-validation, or identity."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.evaluation import rank_values, ranks
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.mapper_methods import Moves, contrastive, discriminant, procrustes, ridge
from luotuo_integrations.texts import ArrayEncoder, Vectors

logger = logging.getLogger(__name__)

LEAST_PAIRS = 10  # whose answers differ
FOLDS = 5
CONFIDENCE = 2.0  # standard errors that an improvement must exceed; chosen on fifteen domains, see docs/retrieval.md

Report = dict[str, str | int | float]
Fit = Callable[[Vectors, Vectors, NDArray[np.int64]], Moves]


class MapperDataError(LuotuoError, ValueError):
    """The pairs cannot be used to fit a mapper."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method with its settings.

    Attributes:
        name: For the report.
        fit: (queries (N, D), passages (P, D), positives (N,)) to A and b.
        strengths: What A and b are multiplied with, from 0 (identity) to 1.
    """

    name: str
    fit: Fit
    strengths: tuple[float, ...]


CANDIDATES = (
    *(
        Candidate(f"discriminant, shrinkage {one}", partial(discriminant, shrinkage=one), (0.5, 0.7))
        for one in (0.3, 1.0)
    ),
    Candidate("contrastive, rank 64", partial(contrastive, rank=64), (0.25, 0.5)),
    Candidate("ridge, penalty 0.3", partial(ridge, penalty=0.3), (0.25, 0.5, 1.0)),
    Candidate("procrustes", procrustes, (0.25, 0.5)),
)


def fit_mapper(
    queries: Vectors,
    passages: Vectors,
    positives: Sequence[int] | NDArray[np.int64],
    *,
    model: str = "",
    fingerprint: str = "",
    seed: int = 0,
) -> LinearQueryMapper:
    """Fit a mapper, or the identity where nothing is surely better.

    Every method and strength is fitted on four fifths of the passages' queries and judged on the queries of the last
    fifth, among all passages, by the mean reciprocal rank. The best is taken where it is better than no mapper by more
    than two standard errors of the paired difference; then it is fitted on everything.

    Args:
        queries: float32 (N, D), of length 1, as the model embeds queries.
        passages: float32 (P, D), of length 1: the answers, and any others.
        positives: For each query the row of the passage that answers it.
        model: Name of the model, for messages.
        fingerprint: Of the model.
        seed: Of the folds and of the contrastive fit.

    Returns:
        The mapper; its report tells the method, the strength, and recall@1 and MRR with and without, held back.

    Raises:
        MapperDataError: If a number is not finite, or shapes do not fit.
    """
    queries, passages = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(passages, np.float32)
    places = np.asarray(positives, np.int64)
    _check(queries, passages, places)
    facts = {"model": model, "fingerprint": fingerprint}
    size = queries.shape[1]
    folds = list(_folds(places, seed))
    report: Report
    if len(np.unique(places)) < LEAST_PAIRS:
        reason = f"fewer than {LEAST_PAIRS} pairs with different answers"
        report = {"method": "identity", "pairs": len(queries), "reason": reason}
        return _told(LinearQueryMapper.identity(size, report=report, **facts))
    plain = _reciprocal_ranks(queries, passages, places)
    held_back = _held_back(queries, passages, places, folds)
    (name, strength), values = max(held_back.items(), key=lambda one: float(one[1].mean()))
    difference = values - plain
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5
    report = {
        "pairs": len(queries),
        "passages": len(passages),
        "mrr_without": round(float(plain.mean()), 4),
        "mrr": round(float(values.mean()), 4),
        "recall@1_without": round(float((plain == 1).mean()), 4),
        "recall@1": round(float((values == 1).mean()), 4),
    }
    if float(difference.mean()) <= CONFIDENCE * error:
        report |= {"method": "identity", "reason": "no method is surely better on held-back pairs", "best": name}
        return _told(LinearQueryMapper.identity(size, report=report, **facts))
    fit = next(one.fit for one in CANDIDATES if one.name == name)
    matrix, bias = fit(queries, passages, places)
    report |= {"method": name, "strength": strength}
    return _told(LinearQueryMapper(strength * matrix, strength * bias, report=report, **facts))


def fit_mapper_of_texts(
    embeddings: ArrayEncoder, pairs: Iterable[tuple[str, str]], passages: Sequence[str] = ()
) -> LinearQueryMapper:
    """Embed questions and answers, then `fit_mapper`.

    Args:
        embeddings: The model, without a mapper.
        pairs: (question, answer text).
        passages: Further texts of the collection.

    Raises:
        TypeError: If a pair is not two strings.
    """
    places: dict[str, int] = {}
    questions: list[str] = []
    positives: list[int] = []
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            msg = f"pair {number} is {pair!r:.80}; give (question, answer text), two strings"
            raise TypeError(msg)
        questions.append(pair[0])
        positives.append(places.setdefault(pair[1], len(places)))
    for text in passages:
        places.setdefault(text, len(places))
    return fit_mapper(
        embeddings.encode(questions, "query"),
        embeddings.encode(list(places), "passage"),
        positives,
        model=embeddings.model,
        fingerprint=embeddings.fingerprint,
    )


def _held_back(
    queries: Vectors, passages: Vectors, places: NDArray[np.int64], folds: list[NDArray[np.bool_]]
) -> dict[tuple[str, float], NDArray[np.float64]]:
    """Reciprocal rank of each query under each method and strength, fitted without it."""
    values = {(one.name, strength): np.zeros(len(queries)) for one in CANDIDATES for strength in one.strengths}
    for held in folds:
        kept = ~held
        known = np.setdiff1d(np.arange(len(passages)), places[held])  # a held-back answer is no negative to learn from
        own = np.searchsorted(known, places[kept])
        for one in CANDIDATES:
            matrix, bias = one.fit(queries[kept], passages[known], own)
            for strength in one.strengths:
                mapped = LinearQueryMapper(strength * matrix, strength * bias)(queries[held])
                values[one.name, strength][held] = _reciprocal_ranks(mapped, passages, places[held])
    return values


def _folds(places: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which queries are held back, fold by fold; queries of one passage are never on both sides."""
    known = np.random.default_rng(seed).permutation(np.unique(places))
    for part in np.array_split(known, min(FOLDS, len(known))):
        yield np.isin(places, part)


def _reciprocal_ranks(queries: Vectors, passages: Vectors, places: NDArray[np.int64]) -> NDArray[np.float64]:
    return rank_values(ranks(queries @ passages.T, places), cutoffs=[len(passages)])[f"mrr@{len(passages)}"]


def _check(queries: Vectors, passages: Vectors, places: NDArray[np.int64]) -> None:
    shapes = queries.shape, passages.shape, places.shape
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1] or len(places) != len(queries):
        msg = f"queries, passages and positives are {shapes}; they must be (N, D), (P, D) and (N,)"
        raise MapperDataError(msg)
    if len(places) and not (places.min() >= 0 and places.max() < len(passages)):
        msg = f"positives hold rows from {places.min()} to {places.max()}, but there are {len(passages)} passages"
        raise MapperDataError(msg)
    if not (np.isfinite(queries).all() and np.isfinite(passages).all()):
        msg = "a vector holds a number that is not finite; embed the texts again"
        raise MapperDataError(msg)


def _told(mapper: LinearQueryMapper) -> LinearQueryMapper:
    logger.info("Query mapper: %s", ", ".join(f"{name} {value}" for name, value in mapper.report.items()))
    return mapper
