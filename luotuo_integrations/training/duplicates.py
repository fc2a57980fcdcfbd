"""Texts seen before, exactly or nearly: a text is compared with all that were kept, in constant time."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from luotuo_integrations._optional import require

_SHINGLE = 5  # characters
_HASHES = 128
_SEED = 42
_BAND_COUNTS = (8, 16, 32, 64)
_FOUND = 0.9  # chance that two texts at the threshold are compared at all


class SeenTexts:
    """Remembers texts: their hashes, and signatures of their 5-character shingles; about 5 KB a text.

    The Jaccard similarity of shingles is estimated with MinHash (Broder 1997): within 0.035 of the truth in two of
    three cases, so that texts near the threshold may fall on either side of it.

    Args:
        threshold: Similarity from which two texts count as the same, above 0; 1 only finds equal ones.

    Raises:
        ImportError: If the threshold is below 1 and the ``train`` extra is not installed.
    """

    def __init__(self, threshold: float) -> None:
        self._digests: set[bytes] = set()
        self._index = None
        if threshold < 1:
            rensa = require("rensa", extra="train")
            self._index = rensa.RMinHashDeduplicator(threshold, _HASHES, True, num_bands=_bands(threshold), seed=_SEED)
            self._signatures = rensa.RMinHash.from_token_sets

    def add(self, texts: Sequence[str]) -> Literal["new", "exact", "near"]:
        """Remember the texts of one pair if all are new; else leave all alone.

        Args:
            texts: They are not compared with each other, but for equality.

        Returns:
            "new", or how a text has been seen before.
        """
        digests = {hashlib.blake2b(text.encode(), digest_size=12).digest() for text in texts}
        if len(digests) < len(texts) or digests & self._digests:
            return "exact"
        if self._index is not None:
            signatures = self._signatures([_shingles(text) for text in texts], _HASHES, _SEED)
            # Keys only have to be new.
            entries = [(str(key), signature) for key, signature in enumerate(signatures, len(self._digests))]
            if any(self._index.is_duplicate(*entry) for entry in entries):
                return "near"
            for entry in entries:
                self._index.add(*entry)
        self._digests |= digests
        return "new"


def _bands(threshold: float) -> int:
    """Fewest bands b of r hashes that compare texts of similarity s often enough: in 1 - (1 - s^r)^b of all cases."""
    enough = (b for b in _BAND_COUNTS if 1 - (1 - threshold ** (_HASHES / b)) ** b >= _FOUND)
    return next(enough, _BAND_COUNTS[-1])


def _shingles(text: str) -> list[str]:
    return [text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))]
