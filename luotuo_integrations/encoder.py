"""Encoder: texts to vectors, fast, in any order, from any thread. No framework is imported here."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luotuo_integrations.batching import token_budget_batches, windows
from luotuo_integrations.cpu_engine import check_backend, fastest_on_cpu
from luotuo_integrations.devices import choose_device, choose_dtype
from luotuo_integrations.fingerprint import document_fingerprint
from luotuo_integrations.halving import HalvingRunner
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.registry import DEFAULT_MODEL, ModelCard, find_card, resolve
from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.vector_rows import VectorRows

logger = logging.getLogger(__name__)

WINDOW = 32_768  # texts held at once: the memory of an endless input
WINDOW_CHARACTERS = 64_000_000
CHUNK = 1_024  # texts tokenized at once, while the device works on the chunk before
CHUNK_CHARACTERS = 1_000_000  # a tokenizer needs about a hundred bytes a token
MOST_PADDING = 0.04  # padded tokens for each real one


class Encoder(HalvingRunner):
    """A loaded model that turns texts into vectors.

    Args:
        model: A name in the registry, a repository name on the hub, or a folder.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"`` is bfloat16 on CUDA (float16 on cards without
            it), bfloat16 on processors that are faster in it, if the vectors agree, and float32 elsewhere.
        backend: ``"auto"`` or ``"torch"``. On the CPU, auto runs the matrix products by oneDNN, which is in torch too,
            where it is faster and gives the same vectors; torch leaves the model as transformers makes it.
        dimensions: Keep the first so many numbers of a vector (Matryoshka), then normalise again.
        max_length: Longest text in tokens, special tokens and prompt included; at most what the model allows.
        normalize: Scale vectors to length 1; None as the model says.
        query_prompt: Text put before queries; None as the model says.
        passage_prompt: Text put before passages; None as the model says.
        max_tokens_per_batch: Padded tokens in one forward pass; None is 2,048 on the CPU, 16,384 elsewhere.
        cache_folder: Where downloads from the hub are kept.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that lies in the model's folder.

    Raises:
        ModelNotFoundError: If there is no such model.
        ModelFormatError: If its folder is damaged or of a kind that cannot be loaded.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str = "auto",
        backend: str = "auto",
        dimensions: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        max_tokens_per_batch: int | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_backend(backend)
        super().__init__(choose_device(device), max_tokens_per_batch)
        self.dtype = choose_dtype(dtype, self.device)
        self.card: ModelCard | None = find_card(model)
        self.folder = resolve(model, cache_folder=cache_folder, revision=revision)
        self.model = EmbeddingModel.load(
            self.folder, card=self.card, dtype=self.dtype, trust_remote_code=trust_remote_code
        )
        settings = self.model.settings
        self.tokenizer = TextTokenizer(
            self.folder / settings.transformer, lowercase=settings.lowercase, trust_remote_code=trust_remote_code
        )
        self.normalize = settings.normalize if normalize is None else normalize
        self.prompts: Mapping[str, str] = {
            "query": settings.prompts.get("query", "") if query_prompt is None else query_prompt,
            "passage": settings.prompts.get("passage", "") if passage_prompt is None else passage_prompt,
        }
        self.dimension = _checked_dimension(dimensions, self.model.dimension)
        self.max_length = self._checked_max_length(max_length)
        self.model.to(self.device)
        self.engine = "torch"  # what runs the matrix products
        if backend == "auto" and self.device.type == "cpu":
            self.model, self.engine = fastest_on_cpu(self.model, allow_bfloat16=dtype == "auto")
            self.dtype = next(self.model.parameters()).dtype
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """What decides the vectors of passages, as a hash; equal fingerprints may share a store.

        Weights, tokenizer, pooling, passage prompt, normalisation, dimensions and length count; dtype, device and
        whatever touches queries alone do not.
        """
        if self._fingerprint is None:
            settings = self.model.settings
            decisive = {
                "pooling": settings.pooling,
                "activations": [head.activation for head in settings.heads],
                "passage_prompt": self.prompts["passage"],
                "normalize": self.normalize,
                "dimension": self.dimension,
                "max_length": self.max_length,
            }
            parts = [settings.transformer, *(head.folder for head in settings.heads)]
            self._fingerprint = document_fingerprint(self.folder, decisive, parts)
        return self._fingerprint

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count tokens, without prompt and special tokens.

        Args:
            texts: Any strings.

        Returns:
            One count a text.

        Raises:
            TypeError: If ``texts`` is a bare string, or a text is none; the message names its index.
        """
        check_texts(texts)
        chunks = windows(texts, CHUNK, weigh=len, max_weight=CHUNK_CHARACTERS)
        return [len(ids) for chunk in chunks for ids in self.tokenizer.encode(chunk)]

    def encode(
        self,
        texts: Iterable[str],
        kind: Kind = "passage",
        out: Vectors | None = None,
        show_progress: bool = False,
    ) -> Vectors:
        """Embed texts.

        Args:
            texts: Texts in any order and of any length; an iterator is read in windows, never listed whole. A text is
                kept as it is, newlines too; ``""`` is allowed; lone surrogates become U+FFFD; what is over
                ``max_length`` tokens is cut, with one warning that counts the cut texts.
            kind: ``"query"`` or ``"passage"``: which prompt is put in front.
            out: float32 array (N, D) to write into, a memory map for instance; then N texts must come.
            show_progress: Show a progress bar.

        Returns:
            float32 (N, D) in the order of the texts; N = 0 gives (0, D). ``out`` itself where it was given.

        Raises:
            TypeError: If ``texts`` is a bare string, or a text is none; the message names its index.
            ValueError: If ``kind`` is unknown, ``out`` does not fit, or the model gives numbers that are not finite.
        """
        if kind not in self.prompts:
            msg = f"kind={kind!r} is unknown; use 'query' or 'passage'"
            raise ValueError(msg)
        check_texts(texts)
        count = len(texts) if isinstance(texts, Sized) else None
        rows = VectorRows(out, count, self.dimension)
        start = 0
        cut = 0
        with progress_bar("Embedding", count, enabled=show_progress) as advance:
            for window in windows(texts, WINDOW, weigh=_length, max_weight=WINDOW_CHARACTERS):
                check_texts(window, first_index=start)
                cut += self._encode_window(window, self.prompts[kind], rows.take(len(window)), start, advance)
                start += len(window)
        if cut:
            logger.warning(
                "%d of %d texts are longer than max_length=%d tokens and were cut", cut, start, self.max_length
            )
        return rows.whole()

    def _encode_window(
        self, texts: list[str], prompt: str, target: Vectors, start: int, advance: Callable[[int], None]
    ) -> int:
        """Fill ``target`` (n, D) with the vectors of one window; return how many texts were cut."""
        cut = 0
        held: list[tuple[int, list[int]]] = []  # a chunk's last batch may be small: it waits for the next chunk
        for texts_of_chunk, cut_here, is_last in self._tokenized_chunks(texts, prompt):
            cut += cut_here
            rows = held + texts_of_chunk
            # The budget is smaller than before, if memory ran out.
            batches = list(token_budget_batches([len(ids) for _, ids in rows], self.max_tokens_per_batch, MOST_PADDING))
            held = [] if is_last else [rows[i] for i in batches.pop()]
            finished: list[tuple[list[int], list[Tensor]]] = []
            try:
                for batch in batches:
                    vectors = self._forward([rows[i][1] for i in batch])
                    finished.append(([rows[i][0] for i in batch], vectors))
                    advance(len(batch))
            finally:  # what is finished is kept, whatever interrupts
                self._write(finished, target, start)
        return cut

    def _write(self, finished: list[tuple[list[int], list[Tensor]]], target: Vectors, start: int) -> None:
        """Write a chunk's vectors; only here the host waits for the device, which had the next batch all the time."""
        if finished:
            rows = [row for batch, _ in finished for row in batch]
            vectors: Vectors = torch.cat([part for _, parts in finished for part in parts]).cpu().numpy()
            self._check_finite(vectors, [start + row for row in rows])
            target[rows] = vectors

    def _tokenized_chunks(
        self, texts: list[str], prompt: str
    ) -> Iterator[tuple[list[tuple[int, list[int]]], int, bool]]:
        """Tokenize chunks of similar length, longest first, one chunk ahead of the device.

        Yields:
            Position and ids of each text, how many were cut, and whether this is the last chunk.
        """
        # Characters are a good enough guess of tokens to keep neighbours alike; batches sort by tokens.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        chunks = list(windows(order, CHUNK, weigh=lambda i: len(texts[i]), max_weight=CHUNK_CHARACTERS))

        def tokenize(positions: list[int]) -> tuple[list[tuple[int, list[int]]], int]:
            bare = self.tokenizer.encode([prompt + texts[i] for i in positions])
            room = self.max_length - self.tokenizer.special_count
            ids = [self.tokenizer.add_special(row, self.max_length) for row in bare]
            return list(zip(positions, ids, strict=True)), sum(len(row) > room for row in bare)

        if len(chunks) == 1:  # a thread costs more than it hides
            yield *tokenize(chunks[0]), True
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="luotuo-tokenize") as ahead:
            pending = ahead.submit(tokenize, chunks[0])
            for following in [*chunks[1:], None]:
                ready = pending.result()
                if following is not None:
                    pending = ahead.submit(tokenize, following)
                yield *ready, following is None

    def _forward(self, ids: list[list[int]]) -> list[Tensor]:
        """Embed one batch of token ids -> float32 (n, D) on the device; where memory runs out, in halves."""
        return self._in_halves(self._run, ids, len, "text")

    def _run(self, ids: Sequence[list[int]]) -> Tensor:
        lengths = np.array([len(row) for row in ids])
        attention_mask = np.arange(lengths.max()) < lengths[:, None]  # (n, T)
        input_ids = np.full(attention_mask.shape, self.tokenizer.pad_id)
        input_ids[attention_mask] = np.concatenate(ids)
        with torch.inference_mode():
            vectors: Tensor = self.model(self._to_device(input_ids), self._to_device(attention_mask))
            vectors = vectors[:, : self.dimension].float()
            return torch.nn.functional.normalize(vectors, dim=1) if self.normalize else vectors  # (n, D)

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(torch.long)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _checked_max_length(self, asked: int | None) -> int:
        config: Any = self.model.backbone.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions and getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert"}:
            positions -= config.pad_token_id + 1  # these count positions from the padding id on
        known = [length for length in (self.model.settings.max_tokens, positions) if length]
        limit = min([*known, self.tokenizer.tokenizer.model_max_length])
        least = self.tokenizer.special_count + 1
        if asked is not None and not least <= asked <= limit:
            msg = f"max_length={asked} is out of range: this model takes {least} to {limit} tokens"
            raise ValueError(msg)
        return int(asked or limit)

    def _check_finite(self, vectors: Vectors, indexes: Sequence[int]) -> None:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            advice = "its weights are damaged" if self.dtype == torch.float32 else "try dtype='float32'"
            msg = f"The model in {self.dtype} gave no finite vector for texts[{indexes[bad[0]]}]: {advice}"
            raise ValueError(msg)


def _length(text: object) -> int:
    return len(text) if isinstance(text, str) else 0  # what is no text is refused when its window is checked


def _checked_dimension(asked: int | None, full: int) -> int:
    if asked is not None and not 1 <= asked <= full:
        msg = f"dimensions={asked} is out of range: this model gives {full} numbers, ask for 1 to {full}"
        raise ValueError(msg)
    return asked or full
