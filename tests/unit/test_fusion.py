import math
import random

import pytest

from luotuo_integrations.fusion import fuse

VECTORS = {"年假": 0.91, "病假": 0.88, "报销": 0.70}
KEYWORDS = {"报销": 7.5, "年假": 2.5}


def naive_reciprocal_rank(rankings: list[dict[str, float]], weights: list[float], constant: int) -> dict[str, float]:
    total: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for key, score in ranking.items():
            place = 1 + sum(other > score for other in ranking.values())
            total[key] = total.get(key, 0.0) + weight / sum(weights) / (constant + place)
    return total


def naive_weighted(rankings: list[dict[str, float]], weights: list[float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for key, score in ranking.items():
            low, high = min(ranking.values()), max(ranking.values())
            scaled = 1.0 if low == high else (score - low) / (high - low)
            total[key] = total.get(key, 0.0) + weight / sum(weights) * scaled
    return total


@pytest.mark.parametrize("seed", range(8))
def test_both_methods_equal_a_double_loop(seed: int) -> None:
    chance = random.Random(seed)
    keys = [f"第{number}条" for number in range(20)]
    # Few different scores, so that some are equal.
    rankings = [{key: chance.randint(0, 6) / 2 for key in chance.sample(keys, chance.randint(1, 20))} for _ in range(3)]
    weights = [chance.random() + 0.1 for _ in rankings]
    constant = chance.choice([0, 1, 60])
    by_rank = fuse(rankings, weights, rank_constant=constant)
    assert dict(by_rank) == pytest.approx(naive_reciprocal_rank(rankings, weights, constant))
    by_score = fuse(rankings, weights, method="weighted")
    assert dict(by_score) == pytest.approx(naive_weighted(rankings, weights))
    for fused in (by_rank, by_score):
        scores = [score for _, score in fused]
        assert scores == sorted(scores, reverse=True)


def test_numbers_by_hand() -> None:
    assert fuse([VECTORS, KEYWORDS], rank_constant=1) == [
        ("年假", pytest.approx(0.5 / 2 + 0.5 / 3)),
        ("报销", pytest.approx(0.5 / 4 + 0.5 / 2)),
        ("病假", pytest.approx(0.5 / 3)),
    ]
    weighted = dict(fuse([VECTORS, KEYWORDS], (3, 1), method="weighted"))
    assert weighted == pytest.approx({"年假": 0.75, "病假": 0.75 * 0.18 / 0.21, "报销": 0.25})


def test_a_weight_of_nothing_leaves_the_other_ranking_in_its_order() -> None:
    for method in ("reciprocal_rank", "weighted"):
        first = [key for key, _ in fuse([VECTORS, KEYWORDS], (1, 0), method=method)]  # type: ignore[arg-type]
        assert first == ["年假", "病假", "报销"]
        second = [key for key, _ in fuse([VECTORS, KEYWORDS], (0, 1), method=method)]  # type: ignore[arg-type]
        assert second[:1] == ["报销"]


def test_the_scale_of_scores_makes_no_difference() -> None:
    larger = {key: 1000 * score - 17 for key, score in KEYWORDS.items()}
    for method in ("reciprocal_rank", "weighted"):
        one, other = (fuse([VECTORS, ranking], method=method) for ranking in (KEYWORDS, larger))  # type: ignore[arg-type]
        assert [key for key, _ in one] == [key for key, _ in other]
        assert dict(one) == pytest.approx(dict(other))


def test_nothing_found_is_no_error() -> None:
    assert fuse([]) == []
    assert fuse([{}, {}]) == []
    assert [key for key, _ in fuse([VECTORS, {}])] == list(VECTORS)
    assert dict(fuse([{"年假": 0.3}], method="weighted")) == {"年假": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1,)}, "1 weights are given for 2 rankings"),
        ({"weights": (-1, 2)}, "numbers from 0 on"),
        ({"weights": (0, 0)}, "not all 0"),
        ({"weights": (math.nan, 1)}, "numbers from 0 on"),
        ({"method": "borda"}, "method='borda' is unknown"),
        ({"rank_constant": -1}, "rank_constant=-1"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse([VECTORS, KEYWORDS], **options)


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match=r"rankings\[1\] gives '年假' the score nan"):
        fuse([VECTORS, {"年假": math.nan}])
