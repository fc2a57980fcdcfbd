"""Texts to token ids: untruncated, unpadded, in any thread."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luotuo_integrations.errors import ModelFormatError

logger = logging.getLogger(__name__)

# Some tokenizers drop what they do not know, and a text without tokens would show nothing.
_PROBE = "你 a 1"


class TextTokenizer:
    """A model's tokenizer, with the special tokens it puts around a text known in advance.

    The special tokens are put around the ids here, after the cut to the longest length, so that it is known exactly
    which texts were cut; and the shared tokenizer's own truncation and padding, which are not safe across threads,
    stay untouched.

    Args:
        folder: A model folder.
        lowercase: Lowercase texts first, whatever the tokenizer does of itself.
        literal: Take what looks like a special token (``[SEP]``, ``<|im_end|>``) for the text that it is.
        trust_remote_code: Run Python code that lies in the folder.

    Raises:
        ModelFormatError: If the folder has no tokenizer that loads.
    """

    def __init__(
        self, folder: Path, *, lowercase: bool = False, literal: bool = False, trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
            msg = f"The tokenizer in {folder} cannot be loaded ({error!r}). Copy or download the folder again"
            raise ModelFormatError(msg) from error
        files = {"tokenizer.json", *self.tokenizer.vocab_files_names.values()}
        if not any((folder / name).is_file() for name in files):  # transformers makes an empty one, and goes on
            msg = f"{folder} holds no tokenizer ({' or '.join(sorted(files))}). Copy or download the folder again"
            raise ModelFormatError(msg)
        self._lowercase, self._literal = lowercase, literal
        self._backend: Any = copy.deepcopy(getattr(self.tokenizer, "backend_tokenizer", None))
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            if literal:
                self._backend.encode_special_tokens = True
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
        if self._lowercase:
            texts = [text.lower() for text in texts]
        if self._backend is None:  # a tokenizer without a Rust core, which takes a lone surrogate for a character
            texts = [_replace_lone_surrogates(text) for text in texts]
            encoded = self.tokenizer(
                texts, add_special_tokens=special, padding=False, truncation=False, split_special_tokens=self._literal
            )
            return [list(ids) for ids in encoded["input_ids"]]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def _find_special_tokens(self) -> tuple[list[int], list[int]]:
        bare = self._encode([_PROBE], special=False)[0]
        full = self._encode([_PROBE], special=True)[0]
        if not bare:
            msg = f"The tokenizer in {self.tokenizer.name_or_path} gives no token for {_PROBE!r}: it is damaged"
            raise ModelFormatError(msg)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        msg = f"The tokenizer in {self.tokenizer.name_or_path} changes a text's tokens when it adds special tokens"
        raise ModelFormatError(msg)


def _replace_lone_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
