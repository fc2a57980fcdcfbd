"""Every metric against its definition as a naive loop, on random rankings with ties, long cutoffs and empty queries."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from luotuo_integrations import evaluation
from luotuo_integrations.evaluation import (
    bootstrap_interval,
    rank_metrics,
    rank_values,
    ranking_metrics,
    ranking_values,
    ranks,
)

# Oracles: the definitions, written as loops and sharing nothing with the code under test.


def naive_recall(ranked: list, gains: dict, k: int) -> float:
    found = 0
    for item, gain in gains.items():
        if gain > 0 and item in ranked[:k]:
            found += 1
    return found / sum(gain > 0 for gain in gains.values())


def naive_reciprocal_rank(ranked: list, gains: dict, k: int) -> float:
    for place, item in enumerate(ranked, start=1):
        if place > k:
            return 0.0
        if gains.get(item, 0) > 0:
            return 1 / place
    return 0.0


def naive_average_precision(ranked: list, gains: dict, k: int) -> float:
    wanted = [item for item, gain in gains.items() if gain > 0]
    total = 0.0
    for item in wanted:
        if item in ranked[:k]:
            rank = ranked.index(item) + 1
            total += sum(other in ranked[:rank] for other in wanted) / rank
    return total / len(wanted)


def naive_ndcg(ranked: list, gains: dict, k: int) -> float:
    earned, paid = 0.0, []
    for place, item in enumerate(ranked[:k], start=1):
        if item not in paid:
            earned += gains.get(item, 0) / math.log2(1 + place)
            paid.append(item)
    best = 0.0
    for place, gain in enumerate(sorted(gains.values(), reverse=True)[:k], start=1):
        best += gain / math.log2(1 + place)
    return earned / best


NAIVE = {"recall": naive_recall, "mrr": naive_reciprocal_rank, "map": naive_average_precision, "ndcg": naive_ndcg}


TREC_EVAL = {"recall": "recall", "map": "map_cut", "ndcg": "ndcg_cut"}


def naive_rank(scores: list[float], positives: set[int], ties: str) -> float:
    if not positives:
        return math.inf
    best = max(scores[item] for item in positives)
    rank = 1.0
    for item, score in enumerate(scores):
        if item not in positives:
            if score > best:
                rank += 1
            elif score == best:
                rank += 1 if ties == "pessimistic" else 0.5
    return rank


def random_case(generator: np.random.Generator, *, graded: bool) -> tuple[list[int], dict[int, float]]:
    ranked = generator.integers(0, 12, size=generator.integers(0, 15)).tolist()  # repeats on purpose
    items = generator.choice(16, size=generator.integers(1, 6), replace=False).tolist()  # some are never ranked
    gains = {item: float(generator.integers(0, 4)) if graded else 1.0 for item in items}
    gains[items[0]] = max(gains[items[0]], 1.0)
    return ranked, gains


# Ranked lists


@pytest.mark.parametrize("graded", [False, True])
def test_ranked_lists_equal_the_naive_loops(graded: bool) -> None:
    generator = np.random.default_rng(7)
    cases = [random_case(generator, graded=graded) for _ in range(300)]
    ranked = [case[0] for case in cases]
    relevant = [case[1] if graded else set(case[1]) for case in cases]
    cutoffs = (1, 2, 3, 5, 10, 100)
    values = ranking_values(ranked, relevant, cutoffs=cutoffs)
    metrics = ranking_metrics(ranked, relevant, cutoffs=cutoffs)
    assert len(values) == 4 * len(cutoffs)
    for name, naive in NAIVE.items():
        for k in cutoffs:
            expected = [naive(items, gains, k) for items, gains in cases]
            np.testing.assert_allclose(values[f"{name}@{k}"], expected, rtol=1e-12)
            assert metrics[f"{name}@{k}"] == pytest.approx(np.mean(expected))
            assert isinstance(metrics[f"{name}@{k}"], float)


def test_a_case_by_hand() -> None:
    ranked = [["考勤", "年假", "报销"], ["出差", "年假", "考勤"]]
    metrics = ranking_metrics(ranked, [["年假"], {"出差": 3, "考勤": 1}], cutoffs=[1, 3])
    assert metrics["recall@1"] == pytest.approx((0 + 1 / 2) / 2)
    assert metrics["recall@3"] == 1.0
    assert metrics["mrr@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["map@1"] == pytest.approx((0 + 1 / 2) / 2)  # over both relevant ids, of which one has room
    assert metrics["map@3"] == pytest.approx((1 / 2 + (1 + 2 / 3) / 2) / 2)
    ideal, earned = 3 / math.log2(2) + 1 / math.log2(3), 3 / math.log2(2) + 1 / math.log2(4)
    assert metrics["ndcg@3"] == pytest.approx((1 / math.log2(3) + earned / ideal) / 2)


def test_the_best_order_scores_one_and_an_empty_list_zero() -> None:
    best = ranking_metrics([["甲", "乙", "丙"]], [{"甲": 3, "乙": 2, "丙": 1}], cutoffs=[3])
    assert best == {"recall@3": 1.0, "mrr@3": 1.0, "map@3": 1.0, "ndcg@3": 1.0}
    assert set(ranking_metrics([[]], [["甲"]]).values()) == {0.0}


def test_a_repeated_id_earns_once_and_keeps_its_place() -> None:
    metrics = ranking_metrics([["甲", "甲", "乙"]], [["甲", "乙"]], cutoffs=[2, 3])
    assert metrics["recall@2"] == 0.5
    assert metrics["map@3"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["ndcg@3"] == pytest.approx((1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3)))


def test_a_query_without_relevant_ids_is_left_out() -> None:
    ranked, relevant = [["甲"], ["甲"], ["甲"]], [["甲"], [], {"乙": 0}]
    values = ranking_values(ranked, relevant, cutoffs=[1])
    assert np.isnan(values["ndcg@1"]).tolist() == [False, True, True]
    assert ranking_metrics(ranked, relevant, cutoffs=[1]) == dict.fromkeys(
        ["recall@1", "mrr@1", "map@1", "ndcg@1"], 1.0
    )
    with pytest.raises(ValueError, match="none of the 2 queries has a relevant id"):
        ranking_metrics(ranked[1:], relevant[1:])
    with pytest.raises(ValueError, match="none of the 0 queries"):
        ranking_metrics([], [])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([["甲"]], []), ValueError, "1 ranked lists but 0 relevant sets"),
        ((["甲乙"], [["甲"]]), TypeError, "query 0: the string '甲乙'"),
        (([["甲"]], ["甲乙"]), TypeError, r"must be a list of ids: \['甲乙'\]"),
        (([["甲"]], [{"甲": -1}]), ValueError, "gain of '甲' is -1"),
        (([["甲"]], [{"甲": math.nan}]), ValueError, "gain of '甲' is nan"),
        (([["甲"]], [{"甲": math.inf}]), ValueError, "gain of '甲' is inf"),
    ],
)
def test_bad_rankings(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ranking_metrics(*arguments)


@pytest.mark.parametrize("cutoffs", [[], [0], [5, -1]])
def test_bad_cutoffs(cutoffs: list[int]) -> None:
    with pytest.raises(ValueError, match="cutoffs must be whole numbers from 1 on"):
        ranking_metrics([["甲"]], [["甲"]], cutoffs=cutoffs)
    with pytest.raises(ValueError, match="cutoffs must be whole numbers from 1 on"):
        rank_metrics([1], cutoffs=cutoffs)


def test_each_query_has_the_numbers_of_trec_eval() -> None:
    generator = np.random.default_rng(11)
    items = [f"文{number:02d}" for number in range(30)]
    judged: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, float]] = {}
    for query in range(200):
        grades = generator.integers(0, 4, size=generator.integers(1, 25))
        grades[0] = max(grades[0], 1)  # trec_eval gives 0 to a query without a relevant id, which we leave out
        chosen = generator.permutation(items)[: len(grades)]
        judged[f"q{query}"] = dict(zip(chosen.tolist(), grades.tolist(), strict=True))
        found = generator.permutation(items)[: generator.integers(1, 25)].tolist()
        runs[f"q{query}"] = {item: float(generator.integers(0, 8)) for item in found}  # few scores: many ties
    # trec_eval orders equal scores by id, the last one first.
    ranked = [sorted(run, key=lambda item: (run[item], item), reverse=True) for run in runs.values()]
    cutoffs = (1, 3, 5, 10, 100)
    measures = {f"{name}.{','.join(map(str, cutoffs))}" for name in TREC_EVAL.values()} | {"recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(runs)
    ours = ranking_values(ranked, list(judged.values()), cutoffs=cutoffs)
    names = {f"{our}@{k}": f"{their}_{k}" for our, their in TREC_EVAL.items() for k in cutoffs}
    for our_name, their_name in {**names, "mrr@100": "recip_rank"}.items():
        expected = [theirs[query][their_name] for query in judged]
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(ours[our_name], expected, atol=1e-6, err_msg=our_name)


# Score matrices


@pytest.mark.parametrize("ties", ["pessimistic", "average"])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_the_naive_loop(ties, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(-3, 3, size=(40, 17)).astype(np.float32) / 2  # few values: most items are tied
    scores[0, :5] = -np.inf
    mask = generator.random((40, 17)) < generator.choice([0.02, 0.3])
    one = generator.integers(0, 17, size=40)
    got = ranks(scores, mask, ties=ties)
    assert got.tolist() == [
        naive_rank(row.tolist(), set(np.flatnonzero(m)), ties) for row, m in zip(scores, mask, strict=True)
    ]
    got = ranks(scores, one, ties=ties)
    assert got.tolist() == [naive_rank(row.tolist(), {int(p)}, ties) for row, p in zip(scores, one, strict=True)]


def test_without_ties_the_rank_is_the_place_in_the_sorted_row() -> None:
    scores = np.random.default_rng(3).normal(size=(30, 50))
    positives = np.arange(30)
    places = [list(np.argsort(-row)).index(positive) + 1 for row, positive in zip(scores, positives, strict=True)]
    assert ranks(scores, positives).tolist() == ranks(scores, positives, ties="average").tolist() == places


def test_a_model_that_scores_everything_alike_gains_nothing_from_ties() -> None:
    scores = np.zeros((3, 9))
    assert ranks(scores, [0, 4, 8]).tolist() == [9, 9, 9]
    assert ranks(scores, [0, 4, 8], ties="average").tolist() == [5, 5, 5]


def test_rank_metrics_equal_ranked_list_metrics_where_each_query_has_one_relevant_item() -> None:
    scores = np.random.default_rng(5).normal(size=(60, 20))
    positives = np.random.default_rng(6).integers(0, 20, size=60)
    ranked = [np.argsort(-row).tolist() for row in scores]
    by_lists = ranking_metrics(ranked, [[positive] for positive in positives.tolist()], cutoffs=(1, 3, 10, 50))
    by_ranks = rank_metrics(ranks(scores, positives), cutoffs=(1, 3, 10, 50))
    assert by_ranks == pytest.approx(by_lists)


def test_rank_metrics_by_hand() -> None:
    metrics = rank_metrics([1, 3, math.inf, 1.5], cutoffs=[1, 2])
    assert metrics["recall@1"] == 0.25
    assert metrics["recall@2"] == 0.5
    assert metrics["mrr@2"] == pytest.approx((1 + 1 / 1.5) / 4)
    assert metrics["ndcg@2"] == pytest.approx((1 + 1 / math.log2(2.5)) / 4)
    assert metrics["map@2"] == metrics["mrr@2"]
    assert rank_values([2.0], cutoffs=[10])["mrr@10"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        (np.zeros(3), [0], r"scores must be an array \(Q, N\)"),
        ([[0.0, math.nan]], [0], "without NaN"),
        (np.zeros((2, 3)), [0, 3], "from 0 to 2, but run from 0 to 3"),
        (np.zeros((2, 3)), [-1, 0], "but run from -1 to 0"),
        (np.zeros((2, 3)), [0], r"integers \(2,\) or booleans \(2, 3\)"),
        (np.zeros((2, 3)), [0.0, 1.0], "but are float64"),
        (np.zeros((2, 3)), [True, False], "but are bool"),
    ],
)
def test_bad_scores_and_positives(scores, positives, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(scores, positives)


def test_bad_ties() -> None:
    with pytest.raises(ValueError, match="'pessimistic' or 'average'"):
        ranks([[0.0]], [0], ties="optimistic")


@pytest.mark.parametrize("given", [[], [0.5], [math.nan], [[1.0]], [-1]])
def test_bad_ranks(given: list) -> None:
    with pytest.raises(ValueError, match="at least one number from 1 on"):
        rank_metrics(given)


# Bootstrap


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(400)
    interval = bootstrap_interval(values, confidence=0.9, resamples=4000, seed=2)
    half = 1.6449 * values.std() / math.sqrt(400)
    assert interval["mean"] == pytest.approx(values.mean())
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_seeded_and_leaves_out_nan() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    first = bootstrap_interval(values, resamples=50, seed=3)
    assert first == bootstrap_interval([math.nan, *values], resamples=50, seed=3)
    assert first != bootstrap_interval(values, resamples=50, seed=4)
    assert 0 <= first["low"] <= first["mean"] == 0.6 <= first["high"] <= 1


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_interval([0.5] * 4, resamples=10) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_bad_bootstrap_arguments() -> None:
    for confidence, resamples in [(0, 10), (1, 10), (0.9, 0)]:
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            bootstrap_interval([1.0], confidence=confidence, resamples=resamples)
    for values in ([], [math.nan]):
        with pytest.raises(ValueError, match="at least one number that is not NaN"):
            bootstrap_interval(values)


def test_the_file_imports_numpy_alone() -> None:
    tree = ast.parse(Path(evaluation.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in modules} == {"math", "collections", "typing", "numpy"}
