"""HalvingRunner and VectorRows: what Encoder and CrossEncoder, Encoder and its cache have in common."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from luotuo_integrations.halving import HalvingRunner
from luotuo_integrations.vector_rows import VectorRows

CPU = torch.device("cpu")


def run_on(runner: HalvingRunner, rows: list[list[int]], most: int) -> tuple[list[int], list[int]]:
    """First numbers and sizes of what was run, where more than so many padded numbers do not fit."""
    sizes: list[int] = []

    def run(part: Sequence[list[int]]) -> Tensor:
        if len(part) * len(part[0]) > most:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(part))
        return torch.tensor([row[0] for row in part])

    return torch.cat(runner._in_halves(run, rows, len, "text")).tolist(), sizes


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("most", [4, 9, 30, 1000])
def test_halves_keep_the_order_and_fit(count: int, most: int) -> None:
    rows = [[number] * (4 if number < 5 else 2) for number in range(count)]  # longest first
    runner = HalvingRunner(CPU, 1000)
    numbers, sizes = run_on(runner, rows, most)
    assert numbers == list(range(count))
    if len(sizes) == 1:
        assert runner.max_tokens_per_batch == 1000
    else:
        assert 4 <= runner.max_tokens_per_batch <= count * 4 // 2  # half of what did not fit, and a row at least
    assert not runner._lock.locked()


def test_a_row_that_does_not_fit_and_other_errors() -> None:
    runner = HalvingRunner(CPU, 1000)
    with pytest.raises(MemoryError, match="Out of memory on cpu for one text of 4 tokens; lower max_length"):
        run_on(runner, [[1] * 4, [2] * 4], 3)

    def broken(_: Sequence[list[int]]) -> Tensor:
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        runner._in_halves(broken, [[1], [2]], len, "text")
    with pytest.raises(ValueError, match="max_tokens_per_batch=0 must be at least 1, or None"):
        HalvingRunner(CPU, 0)


@pytest.mark.parametrize("counts", [[], [3], [2, 0, 3]])
@pytest.mark.parametrize("given", [True, False])
def test_windows_fill_one_array(counts: list[int], given: bool) -> None:
    expected = np.arange(sum(counts) * 2, dtype=np.float32).reshape(-1, 2)
    out = np.full_like(expected, -1) if given else None
    rows = VectorRows(out, None, 2)
    start = 0
    for count in counts:
        rows.take(count)[:] = expected[start : start + count]
        start += count
    whole = rows.whole()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, expected)
    assert (whole is out) == given


def test_an_array_that_does_not_fit_is_refused() -> None:
    for out, count, error, match in (
        ([0.0], None, TypeError, r"out is list; it must be a writeable float32 array \(N, 2\)"),
        (np.zeros((3, 2)), 3, ValueError, r"out is float64 \(3, 2\)"),
        (np.zeros((3, 5), np.float32), 3, ValueError, r"\(3, 5\); it must be .* \(3, 2\)"),
        (np.broadcast_to(np.float32(0), (3, 2)), 3, ValueError, "read-only"),
        (np.zeros((3, 2), np.float32), 4, ValueError, "out has 3 rows for 4 texts"),
    ):
        with pytest.raises(error, match=match):
            VectorRows(out, count, 2)
    rows = VectorRows(np.zeros((3, 2), np.float32), None, 2)
    rows.take(2)
    with pytest.raises(ValueError, match="out has 3 rows, but 2 texts came; the first 2 rows are filled"):
        rows.whole()
    with pytest.raises(ValueError, match="out has 3 rows, but more texts than that came"):
        rows.take(2)
