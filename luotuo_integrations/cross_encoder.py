"""CrossEncoder: how well passages answer a query, judged by a model that reads both together. No framework here."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luotuo_integrations.batching import token_budget_batches, windows
from luotuo_integrations.cpu_engine import check_backend, fastest_reranker_on_cpu
from luotuo_integrations.devices import choose_device, choose_dtype
from luotuo_integrations.encoder import MOST_PADDING
from luotuo_integrations.halving import HalvingRunner
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.registry import resolve
from luotuo_integrations.rerank_models import load_reranker
from luotuo_integrations.rerank_prompts import Row
from luotuo_integrations.texts import check_query, check_texts

logger = logging.getLogger(__name__)

Relevances = npt.NDArray[np.float64]

WINDOW = 4_096  # pairs tokenized at once: enough for batches of like lengths
WINDOW_CHARACTERS = 4_000_000  # a token held as a number takes about ten times the memory of its character
DEFAULT_LENGTH = 8_192  # of models that read more: what Qwen3-Reranker documents, and far beyond a passage


class CrossEncoder(HalvingRunner):
    """A loaded reranker.

    Two kinds are known, by the class that config.json names: sequence classifiers (BERT, XLM-R as in bge-reranker, gte
    and others) and Qwen3-Reranker, which answers yes or no.

    Args:
        model: A folder, or a repository name on the hub.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"`` is half precision on CUDA and float32 elsewhere.
        backend: ``"auto"`` or ``"torch"``. On the CPU, auto runs the matrix products by oneDNN, which is in torch too,
            where it is faster and gives the same relevances; torch leaves the model as transformers makes it.
        max_length: Longest pair in tokens, everything included; None is what the model allows, 8,192 at most. Passages
            are cut to fit. A query is cut only where it would leave its passage less than a fourth of the room.
        max_tokens_per_batch: Padded tokens in one forward pass; None is 2,048 on the CPU, 16,384 elsewhere.
        instruction: What a relevant passage does, for Qwen3-Reranker; None is the model's own words.
        cache_folder: Where downloads from the hub are kept.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that lies in the model's folder.

    Raises:
        ModelNotFoundError: If there is no such model.
        ModelFormatError: If its folder holds no reranker, or is damaged.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        backend: str = "auto",
        max_length: int | None = None,
        max_tokens_per_batch: int | None = None,
        instruction: str | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_backend(backend)
        super().__init__(choose_device(device), max_tokens_per_batch)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = resolve(model, cache_folder=cache_folder, revision=revision, kind="reranker")
        self.model, self.prompt, config = load_reranker(
            self.folder, instruction=instruction, dtype=self.dtype, trust_remote_code=trust_remote_code
        )
        self.max_length = self._checked_max_length(max_length, config)
        self.model.to(self.device)
        self.engine = "torch"  # what runs the matrix products
        if backend == "auto" and self.device.type == "cpu":
            self.model, self.engine = fastest_reranker_on_cpu(self.model)

    def score(self, query: str, passages: Sequence[str], show_progress: bool = False) -> Relevances:
        """Judge how well passages answer one query.

        Args:
            query: Any string.
            passages: Strings of any length in any order; ``""`` is allowed. What is over ``max_length`` tokens together
                with the query is cut, with one warning that counts the cut pairs.
            show_progress: Show a progress bar.

        Returns:
            float64 (N,) relevances in [0, 1], in the order of the passages; N = 0 gives (0,).

        Raises:
            TypeError: If the query is not a string, ``passages`` is a bare string, or a passage is none; the message
                names its index.
            ValueError: If the model gives numbers that are not finite.
        """
        check_query(query, many="scores(pairs)")
        check_texts(passages, name="passages")
        listed = list(passages)
        check_texts(listed, name="passages")  # an iterator's, only now
        return self._scores([(query, passage) for passage in listed], show_progress)

    def scores(self, pairs: Sequence[tuple[str, str]], show_progress: bool = False) -> Relevances:
        """Judge pairs of a query and a passage, all in one go.

        Args:
            pairs: (query, passage), in any order; queries may repeat.
            show_progress: Show a progress bar.

        Returns:
            float64 (N,) relevances in [0, 1], in the order of the pairs; N = 0 gives (0,).

        Raises:
            TypeError: If a pair is not two strings; the message names its index.
            ValueError: If the model gives numbers that are not finite.
        """
        return self._scores(_checked_pairs(pairs), show_progress)

    def _scores(self, pairs: list[tuple[str, str]], show_progress: bool) -> Relevances:
        margins = np.empty(len(pairs), np.float32)
        cut = 0
        with progress_bar("Reranking", len(pairs), enabled=show_progress) as advance:
            for window in windows(
                range(len(pairs)), WINDOW, weigh=lambda i: sum(map(len, pairs[i])), max_weight=WINDOW_CHARACTERS
            ):
                rows, cut_here = self.prompt.rows([pairs[i] for i in window], self.max_length)
                cut += cut_here
                lengths = [len(row.ids) for row in rows]
                order: list[int] = []
                finished: list[Tensor] = []
                for batch in token_budget_batches(lengths, self.max_tokens_per_batch, MOST_PADDING):
                    finished.extend(self._forward([rows[i] for i in batch]))
                    order.extend(window[i] for i in batch)
                    advance(len(batch))
                margins[order] = torch.cat(finished).cpu().numpy()  # only here the host waits for the device
        if cut:
            logger.warning(
                "%d of %d pairs are longer than max_length=%d tokens and were cut", cut, len(pairs), self.max_length
            )
        self._check_finite(margins)
        # float64, and no overflow at either end: float32 would make equal what is near 1.
        relevances: Relevances = np.exp(-np.logaddexp(0.0, -margins.astype(np.float64)))
        return relevances

    def _forward(self, rows: list[Row]) -> list[Tensor]:
        """Judge one batch -> float32 (n,) on the device; where memory runs out, in halves."""
        return self._in_halves(self._run, rows, lambda row: len(row.ids), "pair")

    def _run(self, rows: Sequence[Row]) -> Tensor:
        lengths = np.array([len(row.ids) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]  # (n, T), padding on the right
        inputs = {"input_ids": np.full(mask.shape, self.prompt.tokenizer.pad_id), "attention_mask": mask}
        inputs["input_ids"][mask] = np.concatenate([row.ids for row in rows])
        if self.prompt.types is not None:
            inputs["token_type_ids"] = np.zeros(mask.shape, np.int64)
            inputs["token_type_ids"][mask] = np.concatenate([row.types for row in rows])
        with torch.inference_mode():
            margins: Tensor = self.model(
                **{name: torch.from_numpy(array).to(self.device, torch.long) for name, array in inputs.items()}
            )
            return margins

    def _checked_max_length(self, asked: int | None, config: Any) -> int:
        positions = getattr(config, "max_position_embeddings", None)
        if positions and config.model_type in {"roberta", "xlm-roberta", "camembert"}:
            positions -= config.pad_token_id + 1  # these count positions from the padding id on
        limit = int(min(self.prompt.tokenizer.tokenizer.model_max_length, positions or DEFAULT_LENGTH))
        if asked is not None and not self.prompt.least <= asked <= limit:
            msg = f"max_length={asked} is out of range: this model takes {self.prompt.least} to {limit} tokens"
            raise ValueError(msg)
        return asked or min(limit, DEFAULT_LENGTH)

    def _check_finite(self, margins: npt.NDArray[np.float32]) -> None:
        bad = np.flatnonzero(~np.isfinite(margins))
        if len(bad):
            advice = "its weights are damaged" if self.dtype == torch.float32 else "try dtype='float32'"
            msg = f"The model in {self.dtype} gave no finite score for pair {bad[0]}: {advice}"
            raise ValueError(msg)


def _checked_pairs(pairs: object) -> list[tuple[str, str]]:
    """Refuse what are no pairs of strings before any work is done."""
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        msg = f"pairs is {type(pairs).__name__}: {pairs!r:.80}; give a list of (query, passage)"
        raise TypeError(msg)
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            msg = f"pairs[{index}] is {type(pair).__name__}: {pair!r:.80}; every pair must be (query, passage)"
            raise TypeError(msg)
        checked.append((pair[0], pair[1]))
    return checked
