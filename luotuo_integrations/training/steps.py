"""StepRunner: the gradient of one batch, whatever its size, on however many devices.

A batch is encoded in passes of a bounded number of tokens. Where the activations of all passes fit the memory, they are
kept and one backward pass goes through them. Where they do not, GradCache (Gao et al. 2021, arXiv:2101.06983) computes
the same gradient in two rounds: vectors without activations, the loss and its gradient for each vector, then pass by
pass again with activations.

On several devices each encodes its share of the rows; all vectors are gathered, every device computes the loss of the
whole batch with its own vectors carrying the gradient, and the gradients are summed: the sum is that of one device.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from luotuo_integrations.batching import default_budget, token_budget_batches
from luotuo_integrations.devices import is_out_of_memory
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.config_sections import BatchConfig
from luotuo_integrations.training.objective import StepVectors
from luotuo_integrations.training.table import TokenTable, served
from luotuo_integrations.training.training_set import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CPU_ACTIVATIONS = 5e9  # bytes of activations to keep where the memory's size is not asked
GPU_SHARE = 0.5  # of a GPU's memory
# Numbers that a transformer layer keeps for the backward pass, a token, in units of its width: about 17 with a
# feed-forward network four times as wide.
ACTIVATIONS_PER_WIDTH = 17


@dataclass(frozen=True, slots=True)
class Passes:
    """The texts of a batch that this device encodes, cut into forward passes.

    Attributes:
        batch: The batch.
        inputs: Token ids and mask of each pass, (n, T) each.
        order: int64 (C * b,): where the vector of each of this device's b rows stands in the passes laid end to end.
        share: int64 (devices,): rows of each device.
        tokens: Padded tokens of all passes.
    """

    batch: Batch
    inputs: list[tuple[Tensor, Tensor]]
    order: Tensor
    share: list[int]
    tokens: int


class StepRunner:
    """Computes gradients.

    Args:
        model: On its device already.
        tokens: The tokens of all texts.
        accelerator: Devices, processes and precision.
        settings: Tokens of a pass and in memory.
        dropout: Dropout of the model while it trains.
        seed: Of the dropout.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        tokens: TokenTable,
        accelerator: "Accelerator",
        settings: BatchConfig,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.accelerator = accelerator
        self.device = accelerator.device
        self.dropout = dropout
        self.seed = seed
        self.tokens_per_pass = settings.tokens_per_pass or default_budget(self.device.type)
        self.tokens_in_memory = settings.tokens_in_memory or tokens_in_memory(model, self.device)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        model.train(dropout > 0)

    def prepare(self, batch: Batch) -> Passes:
        """Cut this device's share of a batch into passes; touches no device, so that a thread may run ahead."""
        shares = np.array_split(np.arange(len(batch.numbers)), self.accelerator.num_processes)
        own = batch.numbers[shares[self.accelerator.process_index]]  # (b, C)
        numbers, where = np.unique(own, return_inverse=True)
        cuts = list(token_budget_batches(self.tokens.lengths[numbers].tolist(), self.tokens_per_pass))
        inputs = [self.tokens.batch(numbers[cut]) for cut in cuts]
        place = np.empty(len(numbers), np.int64)
        if cuts:
            place[np.concatenate(cuts)] = np.arange(len(numbers))
        order = torch.from_numpy(place[where.reshape(own.shape)].T.reshape(-1).copy())
        return Passes(batch, inputs, order, [len(one) for one in shares], sum(ids.numel() for ids, _ in inputs))

    def backward(self, passes: Passes, epoch: int, *, weight: float, draw: Sequence[int]) -> dict[str, Tensor]:
        """Add the gradient of a batch to the parameters' ``.grad``; where memory runs out, in smaller passes.

        Args:
            passes: Of `prepare`.
            epoch: Decides the weights of the loss.
            weight: The loss counts so much: 1 / accumulation.
            draw: Numbers that decide the dropout, for instance (step, index of the batch).

        Returns:
            ``"loss"`` and each part, detached scalars. Not finite values are for the caller to judge.

        Raises:
            MemoryError: If a single text does not fit.
        """
        before = [None if one.grad is None else one.grad.clone() for one in self.parameters] if weight < 1 else None
        while True:
            try:
                return self._backward(passes, epoch, weight, draw)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.accelerator.num_processes > 1:  # the others wait for this one, and know nothing of it
                    msg = (
                        "Out of memory on one of several devices; lower batch.tokens_in_memory or "
                        "batch.tokens_per_pass, and add --resume"
                    )
                    raise MemoryError(msg) from error
                self._shrink(passes, error)
            for position, parameter in enumerate(self.parameters):
                parameter.grad = None if before is None else before[position]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            passes = self.prepare(passes.batch)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def sum_gradients(self) -> None:
        """Sum the gradients of all devices."""
        if self.accelerator.num_processes == 1:
            return
        parameters = self.parameters
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat: Any = self.accelerator.reduce(torch.cat([one.reshape(-1) for one in gradients]), reduction="sum")
        for parameter, part in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def _backward(self, passes: Passes, epoch: int, weight: float, draw: Sequence[int]) -> dict[str, Tensor]:
        keep = passes.tokens <= self.tokens_in_memory
        with torch.set_grad_enabled(keep):
            parts = [self._encode(passes, number, draw) for number in range(len(passes.inputs))]
        vectors = torch.cat(parts) if parts else torch.zeros(0, self.model.dimension, device=self.device)
        if not keep:
            vectors = vectors.requires_grad_()
        total, values = passes.batch.owner.objective(self._step_vectors(passes, vectors), epoch)
        result = {"loss": total.detach(), **{name: value.detach() for name, value in values.items()}}
        if not torch.isfinite(total):
            return result
        if vectors.requires_grad:
            (total * weight).backward()  # type: ignore[no-untyped-call]
        if not keep and vectors.grad is not None:
            stop = 0
            for number, part in enumerate(parts):
                start, stop = stop, stop + len(part)
                gradient = vectors.grad[start:stop]
                self._encode(passes, number, draw).backward(gradient)  # type: ignore[no-untyped-call]
        return result

    def _encode(self, passes: Passes, number: int, draw: Sequence[int]) -> Tensor:
        ids, mask = passes.inputs[number]
        with self._drawn((*draw, number)), self.accelerator.autocast():
            vectors = self.model(
                ids.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)
            )  # (n, D)
        return served(self.model, vectors)

    @contextmanager
    def _drawn(self, numbers: Sequence[int]) -> Iterator[None]:
        """Dropout that depends on nothing but these numbers: the same in both rounds, and after a resume."""
        if not self.dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seeds = np.random.SeedSequence([self.seed, self.accelerator.process_index, *numbers])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            yield

    def _step_vectors(self, passes: Passes, vectors: Tensor) -> StepVectors:
        batch = passes.batch
        count = batch.numbers.shape[1]
        own = vectors[passes.order.to(self.device)].view(count, -1, vectors.shape[1]).transpose(0, 1)  # (b, C, D)
        columns = self._gather(own, passes.share)  # (B, C, D)
        teacher = None if batch.teacher is None else batch.teacher.to(self.device).unbind(1)
        labels = None if batch.labels is None else batch.labels.to(self.device)
        return StepVectors(columns.unbind(1), teacher, labels, batch.ignore.to(self.device))

    def _gather(self, own: Tensor, share: list[int]) -> Tensor:
        """The rows of all devices; those of this one carry the gradient."""
        if len(share) == 1:
            return own
        # Shares differ by a row at most, but devices exchange equal shapes only.
        padded = torch.zeros(max(share), *own.shape[1:], device=own.device, dtype=own.dtype)
        padded[: len(own)] = own.detach()
        everybody: Any = self.accelerator.gather(padded)
        parts = [part[:count] for part, count in zip(everybody.split(max(share)), share, strict=True)]
        parts[self.accelerator.process_index] = own
        return torch.cat(parts)

    def _shrink(self, passes: Passes, error: RuntimeError) -> None:
        longest = max(ids.shape[1] for ids, _ in passes.inputs)
        largest = max(ids.numel() for ids, _ in passes.inputs)
        if largest <= longest and passes.tokens > self.tokens_in_memory:
            msg = f"Out of memory on {self.device} for one text of {longest} tokens; lower student.max_tokens"
            raise MemoryError(msg) from error
        # First compute in two rounds, then in smaller passes.
        if passes.tokens <= self.tokens_in_memory:
            self.tokens_in_memory = passes.tokens // 2
        else:
            self.tokens_per_pass = max(min(self.tokens_per_pass, largest) // 2, longest)
        logger.warning(
            "Out of memory on %s: batch.tokens_per_pass is now %d, batch.tokens_in_memory %d",
            self.device,
            self.tokens_per_pass,
            self.tokens_in_memory,
        )


def tokens_in_memory(model: EmbeddingModel, device: torch.device) -> int:
    """Estimate for how many padded tokens the activations of a model may be kept."""
    config: Any = model.backbone.config
    layers, width = getattr(config, "num_hidden_layers", 12), model.hidden_size
    free = CPU_ACTIVATIONS
    if device.type == "cuda":
        free = GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return max(int(free / (4 * ACTIVATIONS_PER_WIDTH * layers * width)), 1)
