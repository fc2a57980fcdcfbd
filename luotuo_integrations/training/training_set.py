"""TrainingSet: rows of numbered texts with their objective, and how they become batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luotuo_integrations.texts import Vectors
from luotuo_integrations.training.batches import epoch_batches, neighbour_batches, same_text_mask
from luotuo_integrations.training.config import ConfigError
from luotuo_integrations.training.config_sections import BatchConfig, MiningConfig
from luotuo_integrations.training.mining import Mined, hard_negatives, remine
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.table import Ids

VectorsOf = Callable[[Ids], Vectors]


@dataclass(frozen=True, slots=True)
class TeacherTable:
    """The teacher's vectors of numbered texts.

    Attributes:
        vectors: float32 (M, E), a memory map for instance; only the rows of a batch are read.
        rows: int64 (texts,): row of each text.
    """

    vectors: Vectors
    rows: Ids

    def of(self, numbers: Ids) -> Vectors:
        """Vectors of some texts, of length 1: (..., E) for numbers (...)."""
        vectors = np.asarray(self.vectors[self.rows[numbers]], np.float32)
        unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return unit


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a set.

    Attributes:
        owner: The set.
        numbers: int64 (B, C): text numbers, one column a part of a row.
        teacher: float32 (B, C, E), or None.
        labels: float32 (B,), or None.
        ignore: bool (B, B + B * K): candidates that are no negatives.
    """

    owner: "TrainingSet"
    numbers: Ids
    teacher: Tensor | None
    labels: Tensor | None
    ignore: Tensor


class TrainingSet:
    """Rows that share an objective.

    Args:
        name: For messages and the log.
        numbers: int64 (N, C): text numbers; columns are query, positive, then hard negatives.
        objective: The loss of a batch.
        batch: How rows become batches.
        teacher: The teacher's vectors, for distillation.
        labels: float32 (N,), for scored pairs.
        mining: Hard negatives that are looked for among the positives of the other rows.

    Raises:
        ConfigError: If there are fewer than 2 rows, or batches of neighbours are wanted without a teacher.
    """

    def __init__(
        self,
        name: str,
        numbers: Ids,
        objective: Objective,
        batch: BatchConfig,
        *,
        teacher: TeacherTable | None = None,
        labels: Vectors | None = None,
        mining: MiningConfig | None = None,
    ) -> None:
        if len(numbers) < 2:
            msg = f"{name}: {len(numbers)} rows to train on, but at least 2 are needed. Give more data"
            raise ConfigError(msg)
        if batch.kind == "neighbours" and teacher is None:
            msg = f"{name}: batch.kind='neighbours' needs a teacher's vectors; use 'random' for fine-tuning"
            raise ConfigError(msg)
        self.name = name
        self.numbers = numbers
        self.objective = objective
        self.settings = batch
        self.teacher = teacher
        self.labels = labels
        self.mining = mining or MiningConfig()
        self.mined: Mined | None = None
        self._candidates: Ids = np.unique(numbers[:, 1])  # hard negatives are looked for among all positives
        self._positives = _all_positives(numbers[:, 0], np.searchsorted(self._candidates, numbers[:, 1]))

    def __len__(self) -> int:
        return len(self.numbers)

    def plan(self, lengths: Ids, *, seed: int, epoch: int, device: torch.device | str = "cpu") -> list[Ids]:
        """Rows of each batch of an epoch, the same for the same seed and epoch.

        Args:
            lengths: int64 (texts,): tokens of each text.
            seed: Of the run.
            epoch: From 0.
            device: Where neighbours are looked for.
        """
        size = min(self.settings.size, len(self))
        if self.settings.kind == "neighbours" and self.teacher is not None:
            rows = _Firsts(self.teacher, self.numbers[:, 0])
            return neighbour_batches(rows, size, seed=seed, epoch=epoch, pool=self.settings.pool, device=device)
        row_lengths = lengths[self.numbers].max(axis=1)
        return epoch_batches(len(self), size, seed=seed, epoch=epoch, lengths=row_lengths)

    def batch(self, rows: Ids) -> Batch:
        """Everything that is known of some rows, the student's vectors aside."""
        numbers = self.numbers[rows]
        if self.mined is not None:
            numbers = np.concatenate([numbers, self._candidates[self.mined.indices[rows]]], axis=1)
        teacher = None if self.teacher is None else torch.from_numpy(self.teacher.of(numbers))
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        negatives = numbers[:, 2:] if numbers.shape[1] > 2 else None
        ignore = same_text_mask(numbers[:, 1], negatives, query_ids=numbers[:, 0])
        return Batch(self, numbers, teacher, labels, torch.from_numpy(ignore))

    def mine(self, vectors_of: VectorsOf, *, seed: int, device: torch.device | str = "cpu") -> int:
        """Look for hard negatives, or replace those that became easy.

        Args:
            vectors_of: Text numbers to vectors; the teacher's at first, the student's later.
            seed: Of the negatives that are drawn where too few are found.
            device: Where neighbours are looked for.

        Returns:
            How many negatives are new.
        """
        queries, passages = vectors_of(self.numbers[:, 0]), vectors_of(self._candidates)
        options: dict[str, Any] = {"margin": self.mining.margin, "depth": self.mining.depth}
        options |= {"seed": seed, "device": device}
        if self.mined is None:
            self.mined = hard_negatives(queries, passages, self._positives, self.mining.negatives, **options)
            return int(self.mined.indices.size)
        self.mined, replaced = remine(self.mined, queries, passages, self._positives, **options)
        return replaced

    def remember_cosines(self, vectors_of: VectorsOf) -> None:
        """Take the cosines of the mined negatives as they are in another space: the rule compares in one alone."""
        if self.mined is not None:
            queries, candidates = vectors_of(self.numbers[:, 0]), vectors_of(self._candidates)
            cosines = [(candidates[near] @ query) for query, near in zip(queries, self.mined.indices, strict=True)]
            self.mined = Mined(self.mined.indices, np.stack(cosines).astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Firsts:
    """The teacher's vectors of the first column, read a pool at a time."""

    teacher: TeacherTable
    numbers: Ids

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Ids, /) -> Vectors:
        return self.teacher.of(self.numbers[rows])


def _all_positives(queries: Ids, positives: Ids) -> Ids:
    """Each row's positive, then those of the rows with the same query, -1 where there are no more: (N, P)."""
    of_query: dict[int, list[int]] = {}
    for query, positive in zip(queries.tolist(), positives.tolist(), strict=True):
        of_query.setdefault(query, []).append(positive)
    most = max(map(len, of_query.values()))
    rows = [
        [own, *(one for one in of_query[query] if one != own)]
        for query, own in zip(queries.tolist(), positives.tolist(), strict=True)
    ]
    return np.array([(row + [-1] * most)[:most] for row in rows], np.int64)


def plan_epoch(
    sets: Sequence[TrainingSet],
    lengths: Ids,
    *,
    seed: int,
    epoch: int,
    accumulation: int,
    device: torch.device | str = "cpu",
) -> list[list[tuple[TrainingSet, Ids]]]:
    """The optimizer steps of an epoch: the batches of all sets, shuffled, ``accumulation`` of them a step."""
    batches = [(one, rows) for one in sets for rows in one.plan(lengths, seed=seed, epoch=epoch, device=device)]
    if len(sets) > 1:
        order = np.random.default_rng([seed, epoch, len(batches)]).permutation(len(batches))
        batches = [batches[position] for position in order]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
