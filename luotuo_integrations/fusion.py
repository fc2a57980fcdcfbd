"""Fusion: one ranking out of several, of vectors and of keywords for instance; nothing is searched here.

Each ranking maps ids to scores, higher is better; an id that a ranking did not find is not in it. Scores of different
rankings need not be comparable: reciprocal rank fusion looks at places alone, weighted fusion scales the scores first.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

Id = TypeVar("Id", bound=Hashable)
Method = Literal["reciprocal_rank", "weighted"]

RANK_CONSTANT = 60  # of Cormack, Clarke and Buettcher (2009)


def fuse(
    rankings: Sequence[Mapping[Id, float]],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "reciprocal_rank",
    rank_constant: int = RANK_CONSTANT,
) -> list[tuple[Id, float]]:
    """Fuse rankings.

    - ``"reciprocal_rank"``: sum over rankings of weight / (rank_constant + place), places from 1, equal scores at one
      place (Cormack, Clarke and Buettcher, 2009).
    - ``"weighted"``: sum over rankings of weight * (score - lowest) / (highest - lowest), 0 where a ranking lacks the
      id; a ranking whose scores are all equal gives 1 to each.

    Args:
        rankings: One mapping a ranking, from id to score; it may be empty.
        weights: One number from 0 a ranking, not all 0; they are scaled to a sum of 1. None takes them alike.
        method: How.
        rank_constant: How little the first places stand out, from 0; of ``"reciprocal_rank"`` only.

    Returns:
        (id, fused score from 0 to 1), best first; equal scores in the order of the first ranking that has the id. What
        only rankings without a weight found, or ``"weighted"`` ones put lowest, stays in with score 0 at the end.

    Raises:
        ValueError: If a weight, a score or the constant is out of range, the numbers differ, or the method is unknown.
    """
    shares = _shares(weights, len(rankings))
    if method not in ("reciprocal_rank", "weighted"):
        msg = f"method={method!r} is unknown; use 'reciprocal_rank' or 'weighted'"
        raise ValueError(msg)
    if rank_constant < 0:
        msg = f"rank_constant={rank_constant} must be a number from 0 on"
        raise ValueError(msg)
    fused: dict[Id, float] = {}
    for number, (ranking, share) in enumerate(zip(rankings, shares, strict=True)):
        for key, score in ranking.items():
            if not math.isfinite(score):
                msg = f"rankings[{number}] gives {key!r} the score {score}; scores must be finite"
                raise ValueError(msg)
        scaled = _reciprocal_ranks(ranking, rank_constant) if method == "reciprocal_rank" else _scaled(ranking)
        for key in sorted(ranking, key=lambda one: -ranking[one]):
            fused[key] = fused.get(key, 0.0) + share * scaled[key]
    return sorted(fused.items(), key=lambda item: -item[1])


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        msg = f"{len(given)} weights are given for {count} rankings; one each is needed"
        raise ValueError(msg)
    if count and (not all(weight >= 0 and math.isfinite(weight) for weight in given) or sum(given) == 0):
        msg = f"weights={given} must be numbers from 0 on, and not all 0"
        raise ValueError(msg)
    return [weight / sum(given) for weight in given]


def _reciprocal_ranks(ranking: Mapping[Id, float], rank_constant: int) -> dict[Id, float]:
    found: dict[Id, float] = {}
    place, last = 0, math.inf
    for number, (key, score) in enumerate(sorted(ranking.items(), key=lambda item: -item[1]), start=1):
        if score != last:
            place, last = number, score
        found[key] = 1.0 / (rank_constant + place)
    return found


def _scaled(ranking: Mapping[Id, float]) -> dict[Id, float]:
    lowest, highest = min(ranking.values(), default=0.0), max(ranking.values(), default=0.0)
    if lowest == highest:
        return dict.fromkeys(ranking, 1.0)
    return {key: (score - lowest) / (highest - lowest) for key, score in ranking.items()}
