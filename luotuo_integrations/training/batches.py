"""Which rows make a batch, epoch by epoch: at random, of like length, or neighbours in a vector space.

Everything is decided by (seed, epoch): the same two give the same batches. Every row comes exactly once an epoch. The
last batch holds what is left, 2 rows or more; a single row left over, of no use to a loss that contrasts the rows of a
batch, joins the batch before it, which then has one more than ``size``. Fewer rows than ``size`` are one batch.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from luotuo_integrations.texts import Vectors

Indices = npt.NDArray[np.int64]


def epoch_batches(
    count: int, size: int, *, seed: int, epoch: int, lengths: Indices | None = None, bucket: int = 32
) -> list[Indices]:
    """Make random batches; with lengths, such that a batch pads little.

    With lengths, the shuffled rows are cut into buckets of ``bucket`` batches, each sorted by length and cut into
    batches, and the batches are shuffled: the mix of an epoch stays random, the rows of a batch are of like length.

    Args:
        count: Rows, at least 0.
        size: Rows of a batch, at least 1.
        seed: At least 0.
        epoch: At least 0.
        lengths: int64 (count,), tokens of each row; None leaves the order to chance.
        bucket: Batches sorted together, at least 1.

    Returns:
        int64 row numbers of each batch.

    Raises:
        ValueError: If a number is out of its range, or there are not ``count`` lengths.
    """
    _check_at_least_one("size", size)
    _check_at_least_one("bucket", bucket)
    if lengths is not None and lengths.shape != (count,):
        msg = f"lengths are {lengths.shape}; give one of each row: ({count},)"
        raise ValueError(msg)
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(count).astype(np.int64)
    if lengths is None:
        return _cut(rows, size)
    buckets = _cut(rows, bucket * size)
    batches = [
        batch for members in buckets for batch in _cut(members[np.argsort(lengths[members], kind="stable")], size)
    ]
    return [batches[place] for place in generator.permutation(len(batches))]


class VectorRows(Protocol):
    """N vectors that need not lie in memory."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Indices, /) -> Vectors:
        """Float32 (n, D) for n row numbers."""


def neighbour_batches(
    vectors: Vectors | VectorRows,
    size: int,
    *,
    seed: int,
    epoch: int,
    pool: int = 8192,
    device: str | torch.device = "cpu",
) -> list[Indices]:
    """Make batches of rows that lie near each other: their in-batch negatives are hard.

    The shuffled rows are cut into pools. In a pool, a random row and the nearest rows not yet used, by cosine, make a
    batch, until the pool is used up; the batches of all pools are shuffled. An epoch computes at most
    ``len(vectors) * pool / size`` cosines; what lies near in another pool is met in another epoch.

    Args:
        vectors: float32 (N, D), the teacher's for instance; or what gives some of them, a pool at a time.
        size: Rows of a batch, at least 1.
        seed: At least 0.
        epoch: At least 0.
        pool: Rows looked at, at least ``size``; rounded down to whole batches.
        device: Where to compute.

    Returns:
        int64 row numbers of each batch, the row that the others are near to first.

    Raises:
        ValueError: If size is below 1 or pool below size.
    """
    _check_at_least_one("size", size)
    if pool < size:
        msg = f"pool is {pool}; it must be at least the batch size, {size}"
        raise ValueError(msg)
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(vectors)).astype(np.int64)
    batches = []
    for members in _cut(rows, pool - pool % size):
        unit = F.normalize(torch.from_numpy(vectors[members]).float().to(device), dim=1)
        batches += [members[places] for places in _cut(_chained(unit, size), size)]
    return [batches[place] for place in generator.permutation(len(batches))]


def same_text_mask(
    positive_ids: Indices, negative_ids: Indices | None = None, *, query_ids: Indices | None = None
) -> npt.NDArray[np.bool_]:
    """Candidates of a batch that are no negatives of a query, because they are known to answer it.

    A candidate is marked where it is the same text as the query's positive. Columns are the candidates as ``contrast``
    orders them: the B positives, then the negatives, row by row.

    Args:
        positive_ids: int64 (B,), one number for one text.
        negative_ids: int64 (B, K), of the same numbering; None without hard negatives.
        query_ids: int64 (B,), of the same numbering; given, a query is also spared itself, where it stands among the
            candidates, and the positives of every other row with the same query.

    Returns:
        bool (B, B + B * K), for ``ignore``; False at the own positive.

    Raises:
        ValueError: If shapes do not fit.
    """
    count = len(positive_ids)
    fits = negative_ids is None or (negative_ids.ndim == 2 and len(negative_ids) == count)
    if positive_ids.ndim != 1 or not fits or (query_ids is not None and query_ids.shape != positive_ids.shape):
        shapes = [None if ids is None else ids.shape for ids in (positive_ids, negative_ids, query_ids)]
        msg = f"positive_ids, negative_ids and query_ids are {shapes}; they must be (B,), (B, K) or None, (B,) or None"
        raise ValueError(msg)
    candidates = positive_ids if negative_ids is None else np.concatenate([positive_ids, negative_ids.ravel()])
    same: npt.NDArray[np.bool_] = positive_ids[:, None] == candidates
    if query_ids is not None:
        if len(np.unique(query_ids)) < count:
            same_query = (query_ids[:, None] == query_ids).astype(np.float32)
            same = same_query @ same.astype(np.float32) > 0  # floats, for which there is a fast road
        same |= query_ids[:, None] == candidates
    np.fill_diagonal(same[:, :count], False)
    return same


def _chained(unit: torch.Tensor, size: int) -> Indices:
    """Places of a pool's rows in such an order that cutting it makes batches of neighbours.

    The rows are in random order already, so the first one not yet used is a random one.
    """
    left = torch.arange(len(unit), device=unit.device)
    chosen = []
    while len(left):
        cosines = unit[left] @ unit[left[0]]
        cosines[0] = torch.inf  # the row itself first, whatever rounding says
        order = cosines.topk(min(size, len(left))).indices
        chosen.append(left[order])
        kept = torch.ones(len(left), dtype=torch.bool, device=unit.device)
        kept[order] = False
        left = left[kept]
    places: Indices = torch.cat(chosen).cpu().numpy()
    return places


def _cut(rows: Indices, size: int) -> list[Indices]:
    """Rows in pieces of ``size``; one row left over joins the piece before it."""
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    if len(pieces) > 1 and len(pieces[-1]) == 1 < size:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    return pieces


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        msg = f"{name} is {value}; it must be at least 1"
        raise ValueError(msg)
