"""Aligner: a student of fewer layers learns the token states of the model whose layers it was made of.

A teacher that is at hand as a model tells more than one vector a text: the state of every token, after every layer.
Where the student reads the same tokens and is as wide, each of its layers can learn to stand for several of the
teacher's (as in TinyBERT, Jiao et al. 2020, arXiv:1909.10351). It is what a pruned student needs first: it costs no
calls and no stored vectors, and every text is met once.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luotuo_integrations.batching import default_budget, token_budget_batches
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.pooling import pool
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    load_optimizer,
    load_trained,
    optimizer_tensors,
    trained_tensors,
)
from luotuo_integrations.training.config_sections import AlignmentConfig
from luotuo_integrations.training.interruptions import interruptions
from luotuo_integrations.training.losses import neighbourhood_kl, token_state_loss
from luotuo_integrations.training.run_log import RunLog
from luotuo_integrations.training.schedule import warm_then_cosine
from luotuo_integrations.training.table import Ids, TokenTable

logger = logging.getLogger(__name__)

FINAL_SHARE = 0.02  # of the peak learning rate, at the end


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Layers whose outputs are compared; 0 are the embeddings, 1 is the first layer."""

    student: int
    teacher: int


def layer_pairs(student_layers: int, teacher_layers: int) -> list[LayerPair]:
    """Pair each student layer with the teacher layer at the same share of the depth.

    Raises:
        ValueError: If the student has more layers than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        msg = f"a student of {student_layers} layers cannot be aligned with a teacher of {teacher_layers}"
        raise ValueError(msg)
    return [LayerPair(one, one * teacher_layers // student_layers) for one in range(1, student_layers + 1)]


class Aligner:
    """Trains a student on a teacher's token states and vectors.

    The loss of a step is the sum of `token_state_loss`, mean over the pairs of layers; ``vector_weight`` times
    1 - cosine of the vectors; and `neighbourhood_kl` among the texts of the step.

    Args:
        student: Only parameters that require a gradient learn. It is trained in place.
        teacher: Of the same width and, for the same text, the same tokens.
        tokens: The texts, tokenized.
        config: How much and how fast.
        folder: For checkpoints and the log.
        device: Where to compute.
        bfloat16: Whether the layers compute in bfloat16; None does so on a GPU. Processors with AVX-512 BF16 gain
            from it, too: the trainer's steps took 0.57 times as long (training/runs/luotuo-mini).
        seed: Of the order of the texts.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If widths or vocabularies differ, or the student has more layers.
    """

    def __init__(
        self,
        student: EmbeddingModel,
        teacher: EmbeddingModel,
        tokens: TokenTable,
        *,
        config: AlignmentConfig,
        folder: Path,
        device: torch.device | str = "cpu",
        bfloat16: bool | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> None:
        if student.hidden_size != teacher.hidden_size:
            msg = (
                f"the student is {student.hidden_size} wide and the teacher {teacher.hidden_size}: token states can "
                "only be aligned between models of one width. Choose another teacher or student"
            )
            raise ValueError(msg)
        words = [int(one.backbone.config.vocab_size) for one in (student, teacher)]  # type: ignore[union-attr, arg-type]
        if words[0] != words[1]:
            msg = f"the student knows {words[0]} words and the teacher {words[1]}: they must read the same tokens"
            raise ValueError(msg)
        self.pairs = layer_pairs(_layer_count(student), _layer_count(teacher))
        self.device = torch.device(device)
        self.bfloat16 = self.device.type == "cuda" if bfloat16 is None else bfloat16
        self.student = student.to(self.device)
        self.teacher = teacher.to(self.device).eval()
        self.tokens = tokens
        self.config = config
        self.folder = folder
        self.show_progress = show_progress
        self.parameters = [one for one in student.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.steps = plan_steps(tokens.lengths, config.tokens, config.tokens_per_step, seed, passes=config.passes)
        self.budget = default_budget(self.device.type)
        self._scale = self._spread() if self.steps else []
        self._fingerprint = self._plan_fingerprint()

    def run(self) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            FloatingPointError: If the loss is not finite.
        CheckpointError: If the checkpoints in the folder are of another alignment.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, when a checkpoint was written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._resume()
        self.student.train(False)  # no dropout: what is learnt is a function, and every text comes once
        with (
            RunLog(self.folder) as log,
            progress_bar("Aligning", len(self.steps), enabled=self.show_progress) as advance,
            interruptions() as interrupted,
        ):
            advance(done)
            saved = clock = time.monotonic()
            for step in range(done, len(self.steps)):
                rate = self.config.learning_rate * warm_then_cosine(
                    step, len(self.steps), self.config.warmup_share, FINAL_SHARE
                )
                parts = self._step(self.steps[step], rate)
                count = int(self.tokens.lengths[self.steps[step]].sum())
                now = time.monotonic()
                log.write("step", step + 1, parts=parts, learning_rate=rate, tokens_per_second=count / (now - clock))
                advance(1, "  ".join(f"{name} {value:.4f}" for name, value in parts.items()))
                clock = now
                if interrupted.is_set() or now - saved > 60 * self.config.checkpoint_minutes:
                    self._checkpoint(step + 1)
                    saved = clock = time.monotonic()
                if interrupted.is_set():
                    msg = f"Interrupted at step {step + 1} of {len(self.steps)} of the alignment; there is a checkpoint"
                    raise KeyboardInterrupt(msg)
        self._checkpoint(len(self.steps))

    def _step(self, numbers: Ids, rate: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total_tokens = int(self.tokens.lengths[numbers].sum())
        states: list[Tensor] = []
        vectors: list[tuple[Tensor, Tensor]] = []
        for cut in token_budget_batches(self.tokens.lengths[numbers].tolist(), self.budget):
            ids, mask = (one.to(self.device) for one in self.tokens.batch(numbers[cut]))
            with torch.no_grad():
                wanted, target = self._run(self.teacher, ids, mask)
            found, vector = self._run(self.student, ids, mask)
            losses = [
                token_state_loss(found[pair.student], wanted[pair.teacher], scale, mask)
                for pair, scale in zip(self.pairs, self._scale, strict=True)
            ]
            states.append(torch.stack(losses).mean() * (float(mask.sum()) / total_tokens))
            vectors.append((vector, target))
        student, teacher = (torch.cat(column) for column in zip(*vectors, strict=True))
        parts = {
            "states": torch.stack(states).sum(),
            "vectors": (1 - torch.nn.functional.cosine_similarity(student, teacher)).mean(),
            "kl": neighbourhood_kl(student, teacher, self.config.temperature),
        }
        loss = parts["states"] + self.config.vector_weight * parts["vectors"] + parts["kl"]
        if not torch.isfinite(loss):
            msg = f"the loss of the alignment is {float(loss.detach())}; lower alignment.learning_rate and start again"
            raise FloatingPointError(msg)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in parts.items()}

    def _run(self, model: EmbeddingModel, ids: Tensor, mask: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """States after each layer, (n, T, H) each, and the vectors (n, D)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output: Any = model.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = output.hidden_states
        vectors = pool((states[-1].float(),), mask, model.settings.pooling)
        for head in model.heads:
            vectors = head(vectors)
        return states, vectors

    def _spread(self) -> list[Tensor]:
        """Standard deviation of each dimension of the teacher's states, in the first step's texts: (H,) a pair."""
        numbers = self.steps[0][:256]
        sums: list[list[Tensor]] = [[] for _ in self.pairs]
        with torch.no_grad():
            for cut in token_budget_batches(self.tokens.lengths[numbers].tolist(), self.budget):
                ids, mask = (one.to(self.device) for one in self.tokens.batch(numbers[cut]))
                states, _ = self._run(self.teacher, ids, mask)
                for place, pair in enumerate(self.pairs):
                    sums[place].append(states[pair.teacher][mask.bool()].float())
        return [torch.cat(one).std(0).clamp_min(1e-4) for one in sums]

    def _plan_fingerprint(self) -> str:
        """Hash of what decides every step: settings, texts and their order."""
        digest = hashlib.sha256(json.dumps(asdict(replace(self.config, checkpoint_minutes=0.0))).encode())
        digest.update(self.tokens.ids.tobytes())
        for step in self.steps:
            digest.update(step.tobytes() + b"|")
        return digest.hexdigest()[:32]

    def _checkpoint(self, step: int) -> None:
        tensors = {f"model/{name}": one for name, one in trained_tensors(self.student).items()}
        tensors |= {f"optimizer/{name}": one for name, one in optimizer_tensors(self.student, self.optimizer).items()}
        self.checkpoints.write(step, tensors, {"step": step, "fingerprint": self._fingerprint})

    def _resume(self) -> int:
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            return 0
        if checkpoint.state["fingerprint"] != self._fingerprint:
            msg = (
                f"The checkpoint in {self.checkpoints.folder} is of an alignment with other settings, texts or seed. "
                "Put them back, or take another folder"
            )
            raise CheckpointError(msg)
        kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = tensor
        load_trained(self.student, kinds["model"])
        load_optimizer(self.student, self.optimizer, kinds["optimizer"])
        logger.info("Going on from step %d of %d of the alignment", checkpoint.state["step"], len(self.steps))
        return int(checkpoint.state["step"])


def plan_steps(lengths: Ids, tokens: int, tokens_per_step: int, seed: int, *, passes: int = 1) -> list[Ids]:
    """Cut shuffled texts into steps of about so many tokens, until ``tokens`` are used or all passes are.

    Args:
        lengths: int64 (N,): tokens of each text.
        tokens: Of all steps, at most.
        tokens_per_step: Of a step, about.
        seed: Of the order.
        passes: How often each text comes at most.

    Returns:
        int64 text numbers of each step, 2 or more.
    """
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(lengths)) for _ in range(passes)])
    ends = np.cumsum(lengths[order])
    order = order[: int(np.searchsorted(ends, tokens, side="right"))]
    step_of = ends[: len(order)] // tokens_per_step
    cuts = np.flatnonzero(np.diff(step_of)) + 1
    return [one for one in np.split(order, cuts) if len(one) > 1]


def _layer_count(model: EmbeddingModel) -> int:
    config: Any = model.backbone.config
    return int(config.num_hidden_layers)
