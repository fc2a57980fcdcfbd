"""Hard negatives: passages that a model finds near a query although they do not answer it.

The search is exact and goes block by block: beside the vectors it needs some 100 MB, however many there are. On a
graphics card all passages are held once, as float32.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from luotuo_integrations.texts import Vectors

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]

ITEM_BLOCK = 8192  # items scored at a time: with 1,024 queries 32 MB of cosines
QUERY_BLOCK = 65_536  # queries whose candidates, ``depth`` of each, are held at a time
NOTHING = -1  # stands where there is no index


@dataclass(frozen=True, slots=True)
class Mined:
    """Hard negatives of N queries.

    Attributes:
        indices: int64 (N, count), rows of the passages; no passage twice for one query.
        cosines: float32 (N, count), of query and passage at the time when this passage was mined.
    """

    indices: Indices
    cosines: Vectors


def nearest(
    queries: Vectors,
    items: Vectors,
    k: int,
    *,
    exclude: Indices | None = None,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> tuple[Indices, Vectors]:
    """Find the exact nearest items of each query by cosine.

    Args:
        queries: float32 (N, D), of any length.
        items: float32 (M, D).
        k: How many, at least 1.
        exclude: int64 (N,) or (N, E), items that a query never gets; -1 excludes nothing.
        block: Queries scored at a time; the cosines in memory are ``block`` * 8,192.
        device: Where to compute.

    Returns:
        Indices int64 (N, k) and cosines float32 (N, k), the nearest first; equal cosines come in any order. Where
        fewer than k items are left, -1 with a cosine of minus infinity.

    Raises:
        ValueError: If k or block is below 1, or shapes do not fit.
    """
    if k < 1 or block < 1:
        msg = f"k is {k}, block is {block}; both must be at least 1"
        raise ValueError(msg)
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        msg = f"queries are {queries.shape}, items {items.shape}; they must be (N, D) and (M, D)"
        raise ValueError(msg)
    excluded = np.empty((len(queries), 0), dtype=np.int64) if exclude is None else _by_query(exclude, len(queries))
    held = _on_device(items, device)
    indices = np.full((len(queries), k), NOTHING, dtype=np.int64)
    cosines = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for rows in _blocks(len(queries), block):
        unit_queries = F.normalize(_on_device(queries[rows], device), dim=1)
        best, where = _nearest_of_block(unit_queries, held, k, torch.tensor(excluded[rows], device=device))
        cosines[rows, : best.shape[1]] = best.cpu().numpy()
        indices[rows, : best.shape[1]] = where.cpu().numpy()
    indices[np.isneginf(cosines)] = NOTHING
    return indices, cosines


def hard_negatives(
    queries: Vectors,
    passages: Vectors,
    positives: Indices,
    count: int,
    *,
    margin: float = 0.05,
    relative_margin: float = 0.0,
    depth: int = 100,
    skip_first: int = 0,
    documents: tuple[Indices, Indices] | None = None,
    seed: int = 0,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> Mined:
    """Mine hard negatives: for each query the nearest passages that are not so near as to be false negatives.

    Where fewer than ``count`` of the passages looked at may be negatives, the rest are drawn at random from all
    passages that are no positives of the query and not from its document; of those drawn, passages below the limit
    of false negatives go first, others are taken only if these do not suffice.

    Args:
        queries: float32 (N, D).
        passages: float32 (M, D).
        positives: int64 (N,), each query's positive among the passages; or (N, P): its own first, then other known
            positives, -1 for none. None of them is ever mined; the limit goes by the own one.
        count: Negatives of a query, at least 1.
        margin: A passage is taken for a false negative above the positive's cosine minus this; at least 0.
        relative_margin: The same as a share of the positive's cosine: 0.05 allows up to 95 % of it (NV-Retriever,
            arXiv:2407.15831). The stricter of the two holds.
        depth: How many of the nearest passages, positives left out, are looked at.
        skip_first: How many of these are passed over, the nearest first.
        documents: Ids of the queries' documents (N,) and of the passages' (M,): no passage of a query's own document
            is a negative.
        seed: Of the random draws.
        block: Queries at a time.
        device: Where to compute.

    Returns:
        The negatives: in each row the mined ones, the nearest first, then the random ones.

    Raises:
        ValueError: If a number is out of its range, a query has no positive, or fewer than ``count`` passages
            are left for its negatives.
    """
    if count < 1 or not 0 <= skip_first < depth or not (margin >= 0 and relative_margin >= 0):
        msg = f"count is {count}, skip_first {skip_first}, depth {depth}, margin {margin}, relative_margin "
        msg += f"{relative_margin}; count must be at least 1, 0 <= skip_first < depth, both margins at least 0"
        raise ValueError(msg)
    positives = _by_query(positives, len(queries))
    if (positives[:, :1] < 0).any():
        msg = f"query {int(positives[:, 0].argmin())} has no positive of its own; the limit of its negatives goes by it"
        raise ValueError(msg)
    own = _cosines_of(queries, passages, positives[:, :1], block, device)
    limits = own - np.maximum(np.float32(margin), np.float32(relative_margin) * np.abs(own))
    depth = min(depth, len(passages))
    indices = np.full((len(queries), count), NOTHING, dtype=np.int64)
    for rows in _blocks(len(queries), QUERY_BLOCK):
        near, cosines = nearest(queries[rows], passages, depth, exclude=positives[rows], block=block, device=device)
        allowed = (near != NOTHING) & (cosines <= limits[rows])
        allowed[:, :skip_first] = False
        if documents is not None:
            allowed &= documents[1][near] != documents[0][rows, None]
        indices[rows] = _first_allowed(near, allowed, count)
    short = np.flatnonzero((indices == NOTHING).any(axis=1))
    generator = np.random.default_rng(seed)
    for row in short:
        barred = np.concatenate([positives[row], indices[row]])
        other_than = None if documents is None else (documents[1], int(documents[0][row]))
        missing = indices[row] == NOTHING
        drawn = _draw(generator, len(passages), int(missing.sum()), barred, other_than)
        below = _cosines_of(queries[row : row + 1], passages, drawn[None], block, device)[0] <= limits[row]
        indices[row, missing] = drawn[np.argsort(~below, kind="stable")][: missing.sum()]
    if len(short):
        logger.info("%d of %d queries had too few hard negatives and were given random ones", len(short), len(queries))
    return Mined(indices, _cosines_of(queries, passages, indices, block, device))


def too_easy(
    cosine_now: Vectors, cosine_when_mined: Vectors, *, factor: float = 1.15, ceiling: float = 0.8
) -> npt.NDArray[np.bool_]:
    """Whether a negative has become so easy that another should take its place.

    Where cosine_now * factor < cosine_when_mined and |cosine_now| < ceiling (Conan-embedding, arXiv:2408.15710).

    Args:
        cosine_now: float32, of any shape.
        cosine_when_mined: float32, of the same shape.
        factor: Above 1.
        ceiling: In 0 .. 1; a negative that is still that near stays.

    Returns:
        bool, of the same shape.
    """
    easy: npt.NDArray[np.bool_] = (cosine_now * factor < cosine_when_mined) & (np.abs(cosine_now) < ceiling)
    return easy


def remine(
    mined: Mined,
    queries: Vectors,
    passages: Vectors,
    positives: Indices,
    *,
    factor: float = 1.15,
    ceiling: float = 0.8,
    margin: float = 0.05,
    relative_margin: float = 0.0,
    depth: int = 100,
    skip_first: int = 0,
    documents: tuple[Indices, Indices] | None = None,
    seed: int = 0,
    block: int = 1024,
    device: str | torch.device = "cpu",
) -> tuple[Mined, int]:
    """Replace the negatives that have become too easy, and only those.

    The easiest gives way first, to the hardest passage that its query does not have yet; where nothing harder than
    itself is found, it stays. What stays keeps the cosine of the time when it was mined.

    Args:
        mined: What ``hard_negatives`` or this found before.
        queries: float32 (N, D), as the model embeds them now.
        passages: float32 (M, D), as the model embeds them now.
        positives: As in ``hard_negatives``.
        factor: As in ``too_easy``.
        ceiling: As in ``too_easy``.
        margin: As in ``hard_negatives``, as all that follow.
        relative_margin: See there.
        depth: See there.
        skip_first: See there.
        documents: See there.
        seed: See there.
        block: See there.
        device: See there.

    Returns:
        The negatives from now on, and how many of them were replaced.

    Raises:
        ValueError: As ``hard_negatives``.
    """
    now = _cosines_of(queries, passages, mined.indices, block, device)
    easy = too_easy(now, mined.cosines, factor=factor, ceiling=ceiling)
    rows = np.flatnonzero(easy.any(axis=1))
    if not len(rows):
        return mined, 0
    fresh = hard_negatives(
        queries[rows],
        passages,
        positives[rows],
        mined.indices.shape[1],
        margin=margin,
        relative_margin=relative_margin,
        depth=depth,
        skip_first=skip_first,
        documents=None if documents is None else (documents[0][rows], documents[1]),
        seed=seed,
        block=block,
        device=device,
    )
    indices, cosines, replaced = mined.indices.copy(), mined.cosines.copy(), 0
    for row, found, found_cosines in zip(rows, fresh.indices, fresh.cosines, strict=True):
        slots = np.flatnonzero(easy[row])
        unknown = np.flatnonzero(~np.isin(found, mined.indices[row]))
        slots, unknown = slots[np.argsort(now[row, slots])], unknown[np.argsort(-found_cosines[unknown])]
        for slot, place in zip(slots, unknown, strict=False):
            if found_cosines[place] > now[row, slot]:
                indices[row, slot], cosines[row, slot] = found[place], found_cosines[place]
                replaced += 1
    return Mined(indices, cosines), replaced


def _nearest_of_block(unit_queries: Tensor, items: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and indices (n, at most k) of the nearest items, found block after block of items."""
    best = unit_queries.new_empty((len(unit_queries), 0))
    where = torch.empty((len(unit_queries), 0), dtype=torch.int64, device=best.device)
    for columns in _blocks(len(items), ITEM_BLOCK):
        cosines = unit_queries @ F.normalize(items[columns], dim=1).T
        place = excluded - columns.start
        row, slot = ((place >= 0) & (place < cosines.shape[1])).nonzero(as_tuple=True)
        cosines[row, place[row, slot]] = -torch.inf
        top, at = cosines.topk(min(k, cosines.shape[1]), dim=1)
        best, where = torch.cat([best, top], dim=1), torch.cat([where, at + columns.start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def _first_allowed(near: Indices, allowed: npt.NDArray[np.bool_], count: int) -> Indices:
    """The first ``count`` allowed of each row, in their order, and -1 where there are fewer."""
    indices = np.full((len(near), count), NOTHING, dtype=np.int64)
    # A stable sort moves what is allowed to the front and leaves its order alone.
    front = np.argsort(~allowed, axis=1, kind="stable")[:, :count]
    chosen = np.where(np.take_along_axis(allowed, front, 1), np.take_along_axis(near, front, 1), NOTHING)
    indices[:, : chosen.shape[1]] = chosen
    return indices


def _draw(
    generator: np.random.Generator,
    total: int,
    count: int,
    barred: Indices,
    other_than: tuple[Indices, int] | None,
) -> Indices:
    """``count`` different rows of ``total`` or some more, in random order, none barred, none of the document given.

    ``other_than`` holds the document of each row, and the one to leave out.
    """
    drawn = np.empty(0, dtype=np.int64)
    # A small sample suffices but for small or much excluded collections, which are then drawn from as a whole.
    sample = min(8 * count + 64, total)
    for size in (sample, total):
        drawn = generator.choice(total, size, replace=False)
        drawn = drawn[~np.isin(drawn, barred)]
        if other_than is not None:
            drawn = drawn[other_than[0][drawn] != other_than[1]]
        if len(drawn) >= count:
            return drawn[:sample]
    msg = f"a query lacks {count} negatives, but only {len(drawn)} of {total} passages are left for it: not its "
    msg += "positives, not of its document, not taken yet; ask for fewer negatives or give more passages"
    raise ValueError(msg)


def _cosines_of(
    queries: Vectors, passages: Vectors, indices: Indices, block: int, device: str | torch.device
) -> Vectors:
    """Cosines float32 (N, C) of each query and its own passages."""
    cosines = np.empty(indices.shape, dtype=np.float32)
    for rows in _blocks(len(queries), block):
        unit_queries = F.normalize(_on_device(queries[rows], device), dim=1)
        unit_passages = F.normalize(_on_device(passages[indices[rows]], device), dim=2)
        cosines[rows] = (unit_passages @ unit_queries.unsqueeze(2)).squeeze(2).cpu().numpy()
    return cosines


def _by_query(indices: Indices, count: int) -> Indices:
    """Indices as a matrix, a row for each query."""
    if len(indices) != count or indices.ndim > 2:
        msg = f"there are {count} queries, but the indices are {indices.shape}; they must be (N,) or (N, E)"
        raise ValueError(msg)
    return indices if indices.ndim == 2 else indices[:, None]


def _on_device(vectors: Vectors, device: str | torch.device) -> Tensor:
    # torch refuses memory that it could not write to; only such an array is copied.
    return torch.from_numpy(np.require(vectors, np.float32, "W")).to(device)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
