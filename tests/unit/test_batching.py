import random
from collections.abc import Iterator

import pytest

from luotuo_integrations.batching import token_budget_batches, windows


@pytest.mark.parametrize("budget", [1, 7, 64, 1000, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_comes_once_and_no_batch_is_over_budget(seed: int, budget: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(0, 40) for _ in range(300)]
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(300))
    for batch in batches:
        longest = max(max(lengths[position] for position in batch), 1)
        assert len(batch) == 1 or len(batch) * longest <= budget
    heads = [max(lengths[position] for position in batch) for batch in batches]
    assert heads == sorted(heads, reverse=True)  # what needs most memory comes first


@pytest.mark.parametrize("seed", range(5))
def test_no_batch_could_have_taken_the_next_text(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 40) for _ in range(300)]
    batches = list(token_budget_batches(lengths, 200))
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > 200


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_is_cut_rather_than_padded(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 200) for _ in range(300)]
    batches = list(token_budget_batches(lengths, 1_000, 0.04))
    assert sorted(position for batch in batches for position in batch) == list(range(300))
    left = 300
    for batch in batches:
        longest = lengths[batch[0]]
        full = 1_000 // longest
        smallest = min(left, max(full // 4, 1))
        assert len(batch) in {min(full, left), 3 * full // 4, full // 2, full // 4}
        assert len(batch) == smallest or len(batch) * longest <= 1.04 * sum(lengths[position] for position in batch)
        left -= len(batch)
    assert len(batches) > len(list(token_budget_batches(lengths, 1_000)))


def test_texts_of_one_length_make_batches_of_four_sizes_at_most() -> None:
    chance = random.Random(0)
    sizes: dict[int, set[int]] = {}
    for _ in range(50):
        lengths = [chance.randint(8, 24) for _ in range(2_000)]
        for batch in list(token_budget_batches(lengths, 2_048, 0.04))[:-1]:
            sizes.setdefault(lengths[batch[0]], set()).add(len(batch))
    assert max(map(len, sizes.values())) <= 4


def test_batches_of_nothing_and_of_empty_texts() -> None:
    assert list(token_budget_batches([], 100)) == []
    assert list(token_budget_batches([0, 0, 0], 2)) == [[0, 1], [2]]


def test_windows_hold_all_items_in_order() -> None:
    for size in (1, 3, 10, 11):
        lists = list(windows(range(10), size))
        assert [item for part in lists for item in part] == list(range(10))
        assert all(len(part) == size for part in lists[:-1])
        assert 1 <= len(lists[-1]) <= size
    assert list(windows([], 3)) == []


def test_windows_do_not_read_ahead() -> None:
    read = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    lists = windows(endless(), 4)
    assert next(lists) == [0, 1, 2, 3]
    assert read == [0, 1, 2, 3]
    assert next(lists) == [4, 5, 6, 7]
    assert len(read) == 8


def test_windows_close_by_weight() -> None:
    texts = ["a" * 5, "b" * 5, "c" * 30, "d", "e", "f"]
    assert list(windows(texts, 3, weigh=len, max_weight=10)) == [texts[:2], texts[2:3], texts[3:]]
