"""TextTable: every text of a run once, by number. TokenTable: their tokens, cut once, padded in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luotuo_integrations.batching import token_budget_batches, windows
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.tokenization import TextTokenizer

Ids = npt.NDArray[np.int64]

CHUNK = 4_096  # texts tokenized at once


@dataclass(slots=True)
class TextTable:
    """Numbers texts: the same text of the same kind has one number, so that it is tokenized and embedded once."""

    texts: list[str] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    _numbers: dict[tuple[Kind, str], int] = field(default_factory=dict)

    def add(self, text: str, kind: Kind) -> int:
        """Give a text its number."""
        number = self._numbers.setdefault((kind, text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
            self.kinds.append(kind)
        return number

    def add_all(self, texts: Sequence[str], kind: Kind) -> Ids:
        """Give texts their numbers: int64 (N,)."""
        return np.fromiter((self.add(text, kind) for text in texts), np.int64, len(texts))

    def __len__(self) -> int:
        return len(self.texts)


class TokenTable:
    """The tokens of numbered texts, special tokens and prompt included; 4 bytes a token.

    Args:
        ids: int32 (all tokens,).
        offsets: int64 (N + 1,): where each text begins, and the end.
        pad_id: Id to pad with; it is masked.
    """

    def __init__(self, ids: npt.NDArray[np.int32], offsets: Ids, pad_id: int) -> None:
        self.ids = ids
        self.offsets = offsets
        self.pad_id = pad_id
        self.lengths: Ids = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(
        cls,
        table: TextTable,
        tokenizer: TextTokenizer,
        prompts: dict[str, str],
        max_tokens: int,
        *,
        show_progress: bool = False,
    ) -> "TokenTable":
        """Tokenize every text of a table, its kind's prompt before it, cut to ``max_tokens``."""
        parts: list[npt.NDArray[np.int32]] = []
        lengths: list[int] = []
        with progress_bar("Tokenizing", len(table), enabled=show_progress) as advance:
            for chunk in windows(range(len(table)), CHUNK):
                texts = [prompts.get(table.kinds[i], "") + table.texts[i] for i in chunk]
                rows = [tokenizer.add_special(row, max_tokens) for row in tokenizer.encode(texts)]
                lengths += map(len, rows)
                parts.append(np.fromiter(chain.from_iterable(rows), np.int32))
                advance(len(chunk))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(np.concatenate(parts) if parts else np.empty(0, np.int32), offsets, tokenizer.pad_id)

    def batch(self, numbers: Ids) -> tuple[Tensor, Tensor]:
        """Pad texts to the longest of them.

        Args:
            numbers: int64 (n,), n of at least 1.

        Returns:
            Token ids and attention mask, each int64 (n, T).
        """
        lengths = self.lengths[numbers]
        mask = np.arange(lengths.max()) < lengths[:, None]  # (n, T)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        positions = self.offsets[numbers][:, None] + np.arange(mask.shape[1])  # (n, T)
        ids[mask] = self.ids[positions[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def embed_numbers(
    model: EmbeddingModel,
    tokens: TokenTable,
    numbers: Ids,
    *,
    budget: int,
    device: torch.device,
    advance: Callable[[float], None] = lambda _: None,
) -> Vectors:
    """Embed texts of a table as the model serves them: float32 (N, D), normalised where the model's settings say so.

    The model is left in the mode, training or not, in which it was.
    """
    vectors = np.empty((len(numbers), model.dimension), np.float32)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in token_budget_batches(tokens.lengths[numbers].tolist(), budget):
                ids, mask = tokens.batch(numbers[batch])
                vectors[batch] = served(model, model(ids.to(device), mask.to(device))).float().cpu().numpy()
                advance(len(batch))
    finally:
        model.train(training)
    return vectors


def served(model: EmbeddingModel, vectors: Tensor) -> Tensor:
    """Vectors as the encoder will give them: (B, D) float32, of length 1 where the settings normalise."""
    vectors = vectors.float()
    return torch.nn.functional.normalize(vectors, dim=1) if model.settings.normalize else vectors
