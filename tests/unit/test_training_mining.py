"""Exact search and hard negatives against loops."""

import numpy as np
import numpy.typing as npt
import pytest

from luotuo_integrations.training import mining
from luotuo_integrations.training.mining import Mined, hard_negatives, nearest, remine, too_easy

Matrix = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found must be found across the seams of blocks."""
    monkeypatch.setattr(mining, "ITEM_BLOCK", 7)
    monkeypatch.setattr(mining, "QUERY_BLOCK", 5)


def vectors(count: int, seed: int, width: int = 8) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def cosine(first: Matrix, second: Matrix) -> float:
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def naive_nearest(query: Matrix, items: Matrix, excluded: set[int]) -> list[int]:
    others = [item for item in range(len(items)) if item not in excluded]
    return sorted(others, key=lambda item: -cosine(query, items[item]))


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_nearest_is_the_full_sort(block: int, k: int) -> None:
    queries, items = vectors(9, 0), vectors(30, 1)
    indices, cosines = nearest(queries, items, k, block=block)
    assert indices.dtype == np.int64
    assert cosines.dtype == np.float32
    for row, query in enumerate(queries):
        expected = naive_nearest(query, items, set())[:k]
        assert indices[row].tolist() == expected
        np.testing.assert_allclose(cosines[row], [cosine(query, items[item]) for item in expected], atol=1e-5)


def test_excluded_items_never_come() -> None:
    queries, items = vectors(6, 0), vectors(20, 1)
    one = np.arange(6) * 3
    several = np.stack([one, np.full(6, -1), one + 1], axis=1)
    first, _ = nearest(queries, items, 10, exclude=one)
    second, _ = nearest(queries, items, 10, exclude=several)
    for row, query in enumerate(queries):
        assert first[row].tolist() == naive_nearest(query, items, {row * 3})[:10]
        assert second[row].tolist() == naive_nearest(query, items, {row * 3, row * 3 + 1})[:10]


def test_where_items_run_out_minus_one_is_given() -> None:
    queries, items = vectors(2, 0), vectors(3, 1)
    indices, cosines = nearest(queries, items, 5, exclude=np.array([1, -1]))
    assert (indices[0, 2:] == -1).all()
    assert 1 not in indices[0]
    assert (indices[1, 3:] == -1).all()
    assert sorted(indices[1, :3].tolist()) == [0, 1, 2]
    assert np.isneginf(cosines[indices == -1]).all()
    assert np.isfinite(cosines[indices != -1]).all()
    empty, _ = nearest(queries, items[:0], 2)
    assert (empty == -1).all()


def test_arrays_that_cannot_be_written_to_are_read() -> None:
    queries, items = vectors(3, 0), vectors(9, 1)
    expected, _ = nearest(queries, items, 2)
    queries.flags.writeable = items.flags.writeable = False
    assert (nearest(queries, items, 2)[0] == expected).all()


def test_nearest_refuses_what_does_not_fit() -> None:
    queries, items = vectors(3, 0), vectors(9, 1)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(queries, items, 0)
    with pytest.raises(ValueError, match="must be"):
        nearest(queries, items[:, :4], 1)
    with pytest.raises(ValueError, match="3 queries"):
        nearest(queries, items, 1, exclude=np.array([1, 2]))


def tight(count: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Queries and passages, the first ``count`` passages being the positives, with much that is near."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((4, 8))
    queries = centres[np.arange(count) % 4] + 0.4 * generator.standard_normal((count, 8))
    passages = centres[np.arange(count * 4) % 4] + 0.6 * generator.standard_normal((count * 4, 8))
    return queries.astype(np.float32), passages.astype(np.float32)


@pytest.mark.parametrize(("margin", "relative_margin"), [(0.05, 0.0), (0.0, 0.1), (0.02, 0.05)])
@pytest.mark.parametrize("skip_first", [0, 3])
def test_hard_negatives_are_the_nearest_below_the_limit(margin: float, relative_margin: float, skip_first: int) -> None:
    queries, passages = tight(12)
    positives = np.arange(12)
    mined = hard_negatives(
        queries,
        passages,
        positives,
        3,
        margin=margin,
        relative_margin=relative_margin,
        depth=40,
        skip_first=skip_first,
        block=4,
    )
    some_skipped = False
    for row, query in enumerate(queries):
        own = cosine(query, passages[row])
        near = naive_nearest(query, passages, {row})[skip_first:40]
        allowed = [
            item for item in near if cosine(query, passages[item]) <= own - max(margin, relative_margin * abs(own))
        ]
        assert len(allowed) >= 3
        assert mined.indices[row].tolist() == allowed[:3]
        np.testing.assert_allclose(
            mined.cosines[row], [cosine(query, passages[item]) for item in allowed[:3]], atol=1e-5
        )
        some_skipped |= allowed[0] != near[0]
    assert some_skipped


def test_passages_of_the_own_document_and_other_positives_are_left_out() -> None:
    queries, passages = tight(12)
    positives = np.stack([np.arange(12), np.arange(12) + 12, np.full(12, -1)], axis=1)
    of_passages = np.arange(48) // 2
    of_queries = np.arange(12) // 2
    mined = hard_negatives(queries, passages, positives, 20, depth=30, documents=(of_queries, of_passages))
    for row in range(12):
        assert not {row, row + 12} & set(mined.indices[row].tolist())
        assert of_queries[row] not in of_passages[mined.indices[row]]
        assert len(set(mined.indices[row].tolist())) == 20


def test_what_is_missing_is_drawn_at_random_below_the_limit_first() -> None:
    queries, passages = tight(12)
    positives = np.arange(12)
    mined = hard_negatives(queries, passages, positives, 4, depth=5, skip_first=4)  # one candidate at most
    limits = np.array([cosine(queries[row], passages[row]) - 0.05 for row in range(12)])
    for row in range(12):
        near = naive_nearest(queries[row], passages, {row})[4]
        if cosine(queries[row], passages[near]) < limits[row]:
            assert mined.indices[row, 0] == near
        assert row not in mined.indices[row]
        assert len(set(mined.indices[row].tolist())) == 4
        below = sum(cosine(queries[row], passage) < limits[row] for passage in np.delete(passages, row, axis=0))
        assert (mined.cosines[row] < limits[row] + 1e-6).sum() == min(4, below)
    again = hard_negatives(queries, passages, positives, 4, depth=5, skip_first=4)
    other = hard_negatives(queries, passages, positives, 4, depth=5, skip_first=4, seed=1)
    assert (again.indices == mined.indices).all()
    assert (other.indices != mined.indices).any()


def test_above_the_limit_is_drawn_only_where_nothing_else_is_left() -> None:
    passages = np.eye(4, dtype=np.float32)[[0, 0, 0, 1]]
    queries = passages[:1]
    mined = hard_negatives(queries, passages, np.array([0]), 2, margin=0.5, depth=1)
    assert mined.indices[0, 0] == 3  # the only passage below the limit
    assert mined.indices[0, 1] in {1, 2}
    everything = hard_negatives(queries, passages, np.array([0]), 3)
    assert sorted(everything.indices[0].tolist()) == [1, 2, 3]


def test_all_equal_vectors_still_give_negatives() -> None:
    passages = np.ones((6, 4), dtype=np.float32)
    mined = hard_negatives(passages, passages, np.arange(6), 2)
    assert (mined.indices != np.arange(6)[:, None]).all()
    np.testing.assert_allclose(mined.cosines, 1, atol=1e-6)


def test_more_negatives_than_there_are_passages_are_refused() -> None:
    queries, passages = vectors(2, 0), vectors(4, 1)
    with pytest.raises(ValueError, match="lacks 4 negatives, but only 3 of 4"):
        hard_negatives(queries, passages, np.array([0, 1]), 4)
    with pytest.raises(ValueError, match="not of its document"):
        hard_negatives(queries, passages, np.array([0, 1]), 1, documents=(np.zeros(2, int), np.zeros(4, int)))


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"depth": 3, "skip_first": 3}, {"margin": -0.1}, {"relative_margin": -0.1}]
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        hard_negatives(vectors(2, 0), vectors(9, 1), np.array([0, 1]), **{"count": 1, **options})  # type: ignore[arg-type]


def test_a_query_without_a_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no positive"):
        hard_negatives(vectors(2, 0), vectors(9, 1), np.array([0, -1]), 1)


def test_too_easy_is_the_rule_number_by_number() -> None:
    generator = np.random.default_rng(0)
    now = generator.uniform(-1, 1, (20, 5)).astype(np.float32)
    then = generator.uniform(-1, 1, (20, 5)).astype(np.float32)
    got = too_easy(now, then)
    assert got.dtype == np.bool_
    for place in np.ndindex(20, 5):
        assert got[place] == (now[place] * 1.15 < then[place] and abs(now[place]) < 0.8)
    assert too_easy(np.float32([0.5]), np.float32([0.58])).tolist() == [True]
    assert too_easy(np.float32([0.5]), np.float32([0.57])).tolist() == [False]
    assert too_easy(np.float32([0.5]), np.float32([0.57]), factor=1.1).tolist() == [True]
    assert too_easy(np.float32([0.85]), np.float32([0.99])).tolist() == [False]
    assert too_easy(np.float32([0.85]), np.float32([0.99]), ceiling=0.9).tolist() == [True]


def test_remining_replaces_the_easy_ones_alone() -> None:
    queries, passages = tight(12)
    positives = np.arange(12)
    before = hard_negatives(queries, passages, positives, 3)
    generator = np.random.default_rng(5)
    moved = (passages + 0.5 * generator.standard_normal(passages.shape)).astype(np.float32)
    after, replaced = remine(before, queries, moved, positives)
    changed = 0
    for row in range(12):
        assert len(set(after.indices[row].tolist())) == 3
        assert positives[row] not in after.indices[row]
        for slot in range(3):
            now = cosine(queries[row], moved[before.indices[row, slot]])
            easy = now * 1.15 < before.cosines[row, slot] and abs(now) < 0.8
            if after.indices[row, slot] == before.indices[row, slot]:
                assert after.cosines[row, slot] == before.cosines[row, slot]
                continue
            changed += 1
            assert easy
            assert after.indices[row, slot] not in before.indices[row]
            fresh = cosine(queries[row], moved[after.indices[row, slot]])
            assert after.cosines[row, slot] == pytest.approx(fresh, abs=1e-5)
            assert fresh > now
    assert 0 < replaced == changed < 36


def test_remining_leaves_what_is_as_hard_as_it_was() -> None:
    queries, passages = tight(12)
    before = hard_negatives(queries, passages, np.arange(12), 3)
    after, replaced = remine(before, queries, passages, np.arange(12))
    assert replaced == 0
    assert after is before


def test_the_easiest_gives_way_to_the_hardest_first() -> None:
    angles = np.deg2rad([0, 30, 50, 70, 90, 100])
    passages = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries = passages[:1]
    before = Mined(np.array([[5, 4, 1]]), np.array([[0.9, 0.9, 0.9]], dtype=np.float32))
    after, replaced = remine(before, queries, passages, np.array([0]), depth=3)
    assert after.indices.tolist() == [[2, 3, 1]]
    assert replaced == 2
    unchanged = Mined(np.array([[3, 2, 1]]), np.array([[0.9, 0.9, 0.9]], dtype=np.float32))
    kept, none = remine(unchanged, queries, passages, np.array([0]))
    assert none == 0
    assert kept.indices.tolist() == [[3, 2, 1]]
