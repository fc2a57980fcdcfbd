"""Texts to token ids: untruncated, unpadded, in any thread."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luotuo_integrations.errors import ModelFormatError

logger = logging.getLogger(__name__)

_PROBE = "你"


class TextTokenizer:
    """A model's tokenizer, with the special tokens it puts around a text known in advance.

    The special tokens are put around the ids here, after the cut to the longest length, so that it is known exactly
    which texts were cut; and the shared tokenizer's own truncation and padding, which are not safe across threads,
    stay untouched.

    Args:
        folder: A model folder.
        trust_remote_code: Run Python code that lies in the folder.

    Raises:
        ModelFormatError: If the folder has no tokenizer that loads.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            msg = f"The tokenizer in {folder} cannot be loaded ({error}). Copy or download the folder again"
            raise ModelFormatError(msg) from error
        self._backend: Any = copy.deepcopy(getattr(self.tokenizer, "backend_tokenizer", None))
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self.prefix, self.suffix = self._find_special_tokens()
        # Padding is masked wherever it stands, so that any id will do where the tokenizer names none.
        self.pad_id: int = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @property
    def special_count(self) -> int:
        """How many special tokens are put around a text."""
        return len(self.prefix) + len(self.suffix)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts without special tokens, truncation or padding.

        Args:
            texts: Any strings. Lone surrogates, which no UTF-8 text can hold, become U+FFFD.

        Returns:
            One list of ids a text.
        """
        try:
            return self._encode(texts, special=False)
        except (UnicodeEncodeError, TypeError):
            return self._encode([_replace_lone_surrogates(text) for text in texts], special=False)

    def add_special(self, ids: list[int], max_tokens: int) -> list[int]:
        """Cut ids to ``max_tokens``, special tokens included, and put those around them.

        A text without any token, for a model without special tokens, becomes one padding token that is attended to.
        """
        return self.prefix + ids[: max_tokens - self.special_count] + self.suffix or [self.pad_id]

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if self._backend is None:  # a tokenizer without a Rust core
            encoded = self.tokenizer(list(texts), add_special_tokens=special, padding=False, truncation=False)
            return [list(ids) for ids in encoded["input_ids"]]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def _find_special_tokens(self) -> tuple[list[int], list[int]]:
        bare = self._encode([_PROBE], special=False)[0]
        full = self._encode([_PROBE], special=True)[0]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        msg = "The tokenizer changes a text's own tokens when it adds special tokens, which is not supported"
        raise ModelFormatError(msg)


def _replace_lone_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
