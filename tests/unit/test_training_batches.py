"""Batches: each row once, the same for the same seed and epoch, and as near or as even in length as promised."""

import numpy as np
import numpy.typing as npt
import pytest

from luotuo_integrations.training.batches import epoch_batches, neighbour_batches, same_text_mask

Batches = list[npt.NDArray[np.int64]]
SIZES = pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (2, 4), (3, 4), (12, 4), (13, 4), (14, 4), (9, 1)])


def vectors(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def made(kind: str, count: int, size: int, *, seed: int = 1, epoch: int = 0) -> Batches:
    if kind == "neighbours":
        return neighbour_batches(vectors(count), size, seed=seed, epoch=epoch, pool=2 * size + 1)
    lengths = np.random.default_rng(0).integers(1, 50, count) if kind == "lengths" else None
    return epoch_batches(count, size, seed=seed, epoch=epoch, lengths=lengths, bucket=2)


def same(first: Batches, second: Batches) -> bool:
    return [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


KINDS = pytest.mark.parametrize("kind", ["random", "lengths", "neighbours"])


@KINDS
@SIZES
def test_every_row_comes_once_and_no_batch_is_of_one_row_by_accident(kind: str, count: int, size: int) -> None:
    batches = made(kind, count, size)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(count))
    left_over = count % size
    if count < size:
        expected = [count] if count else []
    elif left_over == 0:
        expected = [size] * (count // size)
    elif left_over == 1:
        expected = [size] * (count // size - 1) + [size + 1]
    else:
        expected = [left_over] + [size] * (count // size)
    assert sorted(len(batch) for batch in batches) == sorted(expected)
    assert all(batch.dtype == np.int64 for batch in batches)


@KINDS
def test_seed_and_epoch_decide_everything(kind: str) -> None:
    first = made(kind, 40, 4)
    assert same(first, made(kind, 40, 4))
    assert not same(first, made(kind, 40, 4, seed=2))
    assert not same(first, made(kind, 40, 4, epoch=1))


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    made("neighbours", 40, 4)
    made("lengths", 40, 4)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]


def padding(batches: Batches, lengths: npt.NDArray[np.int64]) -> int:
    return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in batches)


def test_sorting_by_length_saves_padding_and_still_mixes_the_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 960)
    plain = epoch_batches(960, 8, seed=0, epoch=0)
    sorted_ones = epoch_batches(960, 8, seed=0, epoch=0, lengths=lengths, bucket=32)
    assert padding(sorted_ones, lengths) < 0.1 * padding(plain, lengths)
    unsorted = epoch_batches(960, 8, seed=0, epoch=0, lengths=lengths, bucket=1)
    assert padding(unsorted, lengths) == padding(plain, lengths)
    means = [lengths[batch].mean() for batch in sorted_ones]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_rows_of_a_bucket_are_cut_by_length() -> None:
    lengths = np.arange(24)[::-1].copy()
    batches = epoch_batches(24, 4, seed=0, epoch=0, lengths=lengths, bucket=6)  # one bucket: sorted through and through
    spans = sorted((int(lengths[batch].min()), int(lengths[batch].max())) for batch in batches)
    assert spans == [(0, 3), (4, 7), (8, 11), (12, 15), (16, 19), (20, 23)]


def clustered(count: int, clusters: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((clusters, 16))
    members = generator.integers(0, clusters, count)
    points = centres[members] + 0.1 * generator.standard_normal((count, 16))
    return points.astype(np.float32), members


def nearness(batches: Batches, points: npt.NDArray[np.float32]) -> float:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return float(np.mean([(unit[batch] @ unit[batch].T).mean() for batch in batches]))


def test_neighbours_are_nearer_than_chance() -> None:
    points, _ = clustered(600, 20)
    near = nearness(neighbour_batches(points, 8, seed=0, epoch=0), points)
    chance = nearness(epoch_batches(600, 8, seed=0, epoch=0), points)
    assert near > chance + 0.5


def test_a_batch_is_its_first_row_and_the_nearest_that_were_left() -> None:
    points = vectors(20)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    batches = neighbour_batches(points, 4, seed=3, epoch=0, pool=20)
    unused_by_order = []
    # The batches are shuffled: put them back, each one's first row having the nearest of what the later ones hold.
    left = set(range(20))
    waiting = [batch.tolist() for batch in batches]
    while waiting:
        for batch in waiting:
            others = sorted(left - {batch[0]}, key=lambda row: -float(unit[row] @ unit[batch[0]]))
            if others[: len(batch) - 1] == batch[1:]:
                break
        else:
            pytest.fail("no batch is made of its first row and the nearest left")
        unused_by_order.append(batch)
        waiting.remove(batch)
        left -= set(batch)
    assert len(unused_by_order) == 5


def test_neighbours_are_looked_for_in_the_pool_alone_and_pools_change_by_epoch() -> None:
    points, members = clustered(64, 8)
    small = neighbour_batches(points, 4, seed=0, epoch=0, pool=8)
    large = neighbour_batches(points, 4, seed=0, epoch=0, pool=64)
    assert nearness(small, points) < nearness(large, points)
    pairs = []
    for epoch in range(2):
        batches = neighbour_batches(points, 4, seed=0, epoch=epoch, pool=16)
        pairs.append({(min(a, b), max(a, b)) for batch in batches for a in batch.tolist() for b in batch.tolist()})
    assert pairs[0] != pairs[1]
    assert len(set(members.tolist())) == 8


def test_equal_vectors_and_rows_of_zeros_are_batched_all_the_same() -> None:
    for points in (np.ones((10, 3), np.float32), np.zeros((10, 3), np.float32)):
        batches = neighbour_batches(points, 4, seed=0, epoch=0)
        assert sorted(row for batch in batches for row in batch.tolist()) == list(range(10))


def naive_mask(positives: list[int], negatives: list[list[int]], queries: list[int] | None) -> list[list[bool]]:
    candidates = positives + [text for own in negatives for text in own]
    mask = []
    for i in range(len(positives)):
        known = {positives[i]}
        if queries is not None:
            known |= {positives[j] for j in range(len(positives)) if queries[j] == queries[i]} | {queries[i]}
        mask.append([c != i and candidates[c] in known for c in range(len(candidates))])
    return mask


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_negatives", [False, True])
@pytest.mark.parametrize("with_queries", [False, True])
def test_the_mask_marks_known_answers_but_the_own_positive(seed: int, with_negatives: bool, with_queries: bool) -> None:
    generator = np.random.default_rng(seed)
    positives, negatives = generator.integers(0, 6, 5), generator.integers(0, 6, (5, 2))
    queries = generator.integers(0, 6, 5)
    got = same_text_mask(positives, negatives if with_negatives else None, query_ids=queries if with_queries else None)
    assert got.dtype == np.bool_
    expected = naive_mask(
        positives.tolist(), negatives.tolist() if with_negatives else [], queries.tolist() if with_queries else None
    )
    assert got.tolist() == expected


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        epoch_batches(4, 0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="bucket is 0"):
        epoch_batches(4, 2, seed=0, epoch=0, bucket=0)
    with pytest.raises(ValueError, match="lengths are"):
        epoch_batches(4, 2, seed=0, epoch=0, lengths=np.arange(3))
    with pytest.raises(ValueError, match="size is 0"):
        neighbour_batches(vectors(4), 0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="pool is 2"):
        neighbour_batches(vectors(4), 3, seed=0, epoch=0, pool=2)
    with pytest.raises(ValueError, match="positive_ids, negative_ids and query_ids"):
        same_text_mask(np.arange(3), np.zeros((2, 1), np.int64))
    with pytest.raises(ValueError, match="positive_ids, negative_ids and query_ids"):
        same_text_mask(np.arange(3), query_ids=np.arange(2))
