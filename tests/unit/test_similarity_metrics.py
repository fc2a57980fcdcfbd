"""Every measure against its definition as a naive double loop, and SciPy as a peer where it has the same one."""

import math

import numpy as np
import pytest
from scipy import stats

from luotuo_integrations.similarity_metrics import (
    off_diagonal,
    pair_accuracy,
    paired_cosines,
    pearson,
    retrieval_from_vectors,
    spearman,
    teacher_gap,
    triplet_accuracy,
)

# Oracles: loops that share nothing with the code under test.


def naive_cosine(a, b) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / lengths if lengths else 0.0


def naive_matrix(left, right) -> list[list[float]]:
    return [[naive_cosine(a, b) for b in right] for a in left]


def noisy_halves(count: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Left halves and, near them, right halves; lengths differ."""
    generator = np.random.default_rng(seed)
    left = generator.normal(size=(count, 8)).astype(np.float32)
    right = left + noise * generator.normal(size=(count, 8)).astype(np.float32)
    return left, 3 * right


# Correlations


@pytest.mark.parametrize("seed", range(4))
def test_correlations_equal_those_of_scipy_with_many_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = generator.integers(0, 5, size=60).astype(float)
    second = first + generator.integers(0, 4, size=60)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)


def test_spearman_sees_order_alone() -> None:
    values = np.array([0.1, 0.2, 0.9, 0.3])
    assert spearman(values, np.exp(9 * values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)
    assert pearson(values, np.exp(9 * values)) < 0.99


def test_a_constant_side_orders_nothing() -> None:
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0
    assert pearson([1, 2, 3], [0.5, 0.5, 0.5]) == 0.0


@pytest.mark.parametrize(("first", "second"), [([1], [1]), ([1, 2], [1, 2, 3]), ([1, math.nan], [1, 2]), ([], [])])
def test_bad_numbers_are_refused(first: list, second: list) -> None:
    for measure in (spearman, pearson):
        with pytest.raises(ValueError, match="as many finite numbers, 2 or more"):
            measure(first, second)


def test_paired_cosines_equal_the_loop_and_a_zero_vector_gives_zero() -> None:
    left, right = noisy_halves(9, seed=1)
    left[4] = 0
    expected = [naive_cosine(a, b) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(paired_cosines(left, right), expected, atol=1e-6)
    assert paired_cosines(left, right)[4] == 0


# Teacher and student


def test_the_gap_over_all_pairs_equals_the_naive_loop() -> None:
    student, teacher = noisy_halves(12, seed=2)
    gap = teacher_gap(student, teacher)
    by_student, by_teacher = naive_matrix(student, student), naive_matrix(teacher, teacher)
    places = [(i, j) for i in range(12) for j in range(i)]
    expected = stats.spearmanr([by_student[i][j] for i, j in places], [by_teacher[i][j] for i, j in places]).statistic
    cosine = np.mean([naive_cosine(f, g) for f, g in zip(student, teacher, strict=True)])
    assert gap == {
        "spearman_to_teacher": pytest.approx(expected, abs=1e-6),
        "cosine_to_teacher": pytest.approx(cosine, abs=1e-6),
    }


def test_partners_are_further_texts_and_give_the_correlation_over_pairs() -> None:
    student, student_partners = noisy_halves(8, seed=3)
    teacher, teacher_partners = noisy_halves(8, seed=4)
    gap = teacher_gap(student, teacher, partners=(student_partners, teacher_partners))
    diagonal = [
        [naive_cosine(a, b) for a, b in zip(*halves, strict=True)]
        for halves in ((student, student_partners), (teacher, teacher_partners))
    ]
    assert gap["pair_spearman_to_teacher"] == pytest.approx(stats.spearmanr(*diagonal).statistic)
    all_texts = np.concatenate([student, student_partners]), np.concatenate([teacher, teacher_partners])
    assert gap["spearman_to_teacher"] == pytest.approx(teacher_gap(*all_texts)["spearman_to_teacher"])
    assert gap["cosine_to_teacher"] == pytest.approx(teacher_gap(*all_texts)["cosine_to_teacher"])


def test_a_perfect_student_has_no_gap_even_in_another_space() -> None:
    teacher = np.random.default_rng(5).normal(size=(30, 6)).astype(np.float32)
    assert teacher_gap(2 * teacher, teacher) == {
        "spearman_to_teacher": pytest.approx(1),
        "cosine_to_teacher": pytest.approx(1),
    }
    rotated = np.concatenate([teacher[:, ::-1], np.zeros((30, 2), np.float32)], axis=1)  # same cosines, 8 dimensions
    assert teacher_gap(rotated, teacher) == {"spearman_to_teacher": pytest.approx(1, abs=1e-3)}


def test_random_pairs_are_seeded_and_estimate_all_pairs() -> None:
    student, teacher = noisy_halves(300, seed=6)
    sampled = teacher_gap(student, teacher, pairs=8000, seed=1)
    assert sampled == teacher_gap(student, teacher, pairs=8000, seed=1)
    assert sampled != teacher_gap(student, teacher, pairs=8000, seed=2)
    everything = teacher_gap(student, teacher, pairs=300 * 299 // 2)
    assert sampled["spearman_to_teacher"] == pytest.approx(everything["spearman_to_teacher"], abs=0.03)


def test_a_gap_of_different_texts_is_refused() -> None:
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="4 vectors of the student but 3 of the teacher"):
        teacher_gap(vectors, vectors[:3])
    with pytest.raises(ValueError, match="at least 3 texts and 2 pairs"):
        teacher_gap(vectors[:2], vectors[:2])


# Pair accuracy and the off-diagonal


def naive_accuracy(left, right) -> tuple[float, float]:
    cosines = naive_matrix(left, right)
    size = len(cosines)
    rows = [all(cosines[i][i] > cosines[i][j] for j in range(size) if j != i) for i in range(size)]
    columns = [all(cosines[i][i] > cosines[j][i] for j in range(size) if j != i) for i in range(size)]
    return sum(rows) / size, sum(columns) / size


def test_pair_accuracy_among_all_equals_the_naive_loop() -> None:
    left, right = noisy_halves(25, seed=17, noise=1.5)
    row, column = naive_accuracy(left, right)
    assert 0.2 < row < 0.9
    assert row != column
    assert pair_accuracy(left, right) == {
        "row@1": pytest.approx(row),
        "column@1": pytest.approx(column),
        "pair@1": pytest.approx((row + column) / 2),
        "candidates": 25.0,
    }


def test_pair_accuracy_in_blocks_is_the_mean_over_disjoint_random_blocks() -> None:
    left, right = noisy_halves(53, seed=8, noise=1.5)
    got = pair_accuracy(left, right, candidates=10, seed=3)
    order = np.random.default_rng(3).permutation(53)[:50].reshape(5, 10)
    expected = [naive_accuracy(left[block], right[block]) for block in order]
    assert got["candidates"] == 10
    assert got["row@1"] == pytest.approx(np.mean([row for row, _ in expected]))
    assert got["column@1"] == pytest.approx(np.mean([column for _, column in expected]))
    assert got["row@1"] > pair_accuracy(left, right)["row@1"]  # fewer candidates are easier


def test_vectors_that_are_all_alike_find_nothing() -> None:
    same = np.tile(np.array([[1, 0, 0]], np.float32), (12, 1))
    assert pair_accuracy(same, same)["pair@1"] == 0
    assert off_diagonal(same, same) == {
        "off_diagonal_mean": pytest.approx(1),
        "off_diagonal_std": pytest.approx(0),
        "diagonal_mean": pytest.approx(1),
    }


def test_off_diagonal_equals_the_naive_loop() -> None:
    left, right = noisy_halves(15, seed=9)
    cosines = naive_matrix(left, right)
    values = [cosines[i][j] for i in range(15) for j in range(15) if i != j]
    assert off_diagonal(left, right) == {
        "off_diagonal_mean": pytest.approx(np.mean(values), abs=1e-6),
        "off_diagonal_std": pytest.approx(np.std(values), abs=1e-6),
        "diagonal_mean": pytest.approx(np.mean([cosines[i][i] for i in range(15)]), abs=1e-6),
    }


@pytest.mark.parametrize("measure", [pair_accuracy, off_diagonal])
def test_halves_that_do_not_fit_are_refused(measure) -> None:
    vectors = np.eye(4, dtype=np.float32)
    for left, right in [(vectors, vectors[:3]), (vectors, vectors[:, :3]), (vectors[:1], vectors[:1])]:
        with pytest.raises(ValueError, match=r"two halves of one shape \(N, D\) with N >= 2"):
            measure(left, right)
    with pytest.raises(ValueError, match="right must be finite numbers"):
        measure(vectors, np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"left must be finite numbers of the shape \(N, D\)"):
        measure(vectors[0], vectors)


def test_one_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates is 1"):
        pair_accuracy(np.eye(4), np.eye(4), candidates=1)


# Triplets


def test_triplet_accuracy_equals_the_naive_loop_with_one_group_a_query() -> None:
    generator = np.random.default_rng(10)
    queries, positives = noisy_halves(10, seed=11)
    negatives = [generator.normal(size=(index % 4, 8)).astype(np.float32) + queries[index] for index in range(10)]
    won = [
        naive_cosine(queries[i], positives[i]) > naive_cosine(queries[i], negative)
        for i in range(10)
        for negative in negatives[i]
    ]
    assert 0 < sum(won) < len(won)
    assert triplet_accuracy(queries, positives, negatives) == pytest.approx(sum(won) / len(won))


def test_triplet_negatives_may_be_one_array_and_a_tie_is_a_miss() -> None:
    queries, positives = noisy_halves(6, seed=12)
    negatives = np.random.default_rng(13).normal(size=(6, 3, 8)).astype(np.float32)
    assert triplet_accuracy(queries, positives, negatives) == triplet_accuracy(queries, positives, list(negatives))
    assert triplet_accuracy(queries, positives, positives[:, None]) == 0


def test_triplets_that_do_not_fit_are_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="3 queries but 2 groups of negatives"):
        triplet_accuracy(vectors, vectors, [vectors, vectors])
    with pytest.raises(ValueError, match="none of the 3 queries has a negative"):
        triplet_accuracy(vectors, vectors, [vectors[:0]] * 3)


# Retrieval


def naive_retrieval(queries, passages, wanted: list[set[int]]) -> dict[str, float]:
    totals = dict.fromkeys(["recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10"], 0.0)
    for query, good in zip(queries, wanted, strict=True):
        scores = [naive_cosine(query, passage) for passage in passages]
        ranked = sorted(range(len(passages)), key=lambda at: (-round(scores[at], 5), at in good))
        for k in (1, 5, 10):
            totals[f"recall@{k}"] += len(good & set(ranked[:k])) / len(good)
        places = [place for place, at in enumerate(ranked[:10], start=1) if at in good]
        totals["mrr@10"] += 1 / places[0] if places else 0
        best = sum(1 / math.log2(1 + place) for place in range(1, min(len(good), 10) + 1))
        totals["ndcg@10"] += sum(1 / math.log2(1 + place) for place in places) / best
    return {name: total / len(wanted) for name, total in totals.items()}


def test_retrieval_equals_the_naive_loop_for_sets_and_for_single_positives(monkeypatch) -> None:
    passages, queries = noisy_halves(40, seed=14, noise=1.2)
    passages[20:25] = passages[5]  # texts that tie with a positive
    generator = np.random.default_rng(15)
    wanted = [{index, int(generator.integers(40))} for index in range(40)]
    monkeypatch.setattr("luotuo_integrations.similarity_metrics._BLOCK", 7 * 40)  # several blocks of 7 queries
    assert retrieval_from_vectors(queries, passages, wanted) == pytest.approx(
        naive_retrieval(queries, passages, wanted)
    )
    single = retrieval_from_vectors(queries, passages, np.arange(40))
    assert single == pytest.approx(naive_retrieval(queries, passages, [{index} for index in range(40)]))
    assert 0.1 < single["recall@1"] < single["recall@10"] <= 1


def test_retrieval_gives_nothing_to_a_model_that_scores_everything_alike() -> None:
    same = np.ones((30, 4), np.float32)
    assert set(retrieval_from_vectors(same, same, np.arange(30)).values()) == {0.0}


def test_retrieval_among_fewer_passages_than_the_cutoff_finds_them_all() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert retrieval_from_vectors(vectors, vectors, [{0}, {1}, {2}], cutoffs=[2, 7]) == {
        "recall@2": 1.0,
        "recall@7": 1.0,
        "mrr@7": 1.0,
        "ndcg@7": 1.0,
    }


@pytest.mark.parametrize(
    ("passages", "positives", "message"),
    [
        (np.eye(3), [{0}, {1}, {3}], "the positive 3 is no passage: positions run from 0 to 2"),
        (np.eye(3), np.array([0, -1, 2]), "the positive -1 is no passage"),
        (np.eye(3), [{0}], "1 sets of positives do not fit"),
        (np.eye(3)[:, :2], [{0}, {1}, {2}], r"passages \(3, 2\)"),
        (np.eye(3), [set(), set(), set()], "none of the 3 queries has a relevant id"),
    ],
)
def test_retrieval_that_does_not_fit_is_refused(passages, positives, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_from_vectors(np.eye(3), passages, positives)
