"""EncoderLoader: loads the Encoder once, at the first call, and asks the cache of vectors before it."""

import threading
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luotuo_integrations.batching import windows
from luotuo_integrations.coalescing import Coalescer
from luotuo_integrations.embedding_cache import EmbeddingCache
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.vector_rows import VectorRows

if TYPE_CHECKING:
    from luotuo_integrations.encoder import Encoder

# Texts looked up, embedded and kept at once: what a kill can cost, and enough for batches of like lengths.
CACHED_WINDOW = 2_048
CACHED_WINDOW_CHARACTERS = 16_000_000


class EncoderLoader:
    """Loads the Encoder once; copies of an embeddings object share one loader.

    Args:
        settings: Arguments of the Encoder.
        vector_cache: The folder of an ``EmbeddingCache``; None keeps no vectors.
    """

    def __init__(self, settings: Mapping[str, Any], vector_cache: str | Path | None = None) -> None:
        self._settings = settings
        self._cache = None if vector_cache is None else EmbeddingCache(vector_cache)
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self.coalescer: Coalescer[Kind, str, list[float]] = Coalescer(self._embed)

    def encoder(self) -> "Encoder":
        """The Encoder; the first call loads it."""
        if self._encoder is None:
            from luotuo_integrations.encoder import Encoder  # torch and transformers: seconds, and not before a call

            with self._lock:
                if self._encoder is None:
                    self._encoder = Encoder(**self._settings)
        return self._encoder

    def encode(
        self, texts: Iterable[str], kind: Kind, out: Vectors | None = None, show_progress: bool = False
    ) -> Vectors:
        """Embed texts as ``Encoder.encode`` does; with a cache only those that are not kept.

        Returns:
            float32 (N, D), which belong to the caller.

        Raises:
            EmbeddingCacheError: If the cache is damaged, or cannot be read or written.
        """
        encoder = self.encoder()
        if self._cache is None:
            return encoder.encode(texts, kind, out, show_progress)
        return _encode_with(self._cache, encoder, texts, kind, out, show_progress)

    def _embed(self, kind: Kind, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encode(texts, kind).tolist()
        return vectors


def _encode_with(
    cache: EmbeddingCache,
    encoder: "Encoder",
    texts: Iterable[str],
    kind: Kind,
    out: Vectors | None,
    show_progress: bool,
) -> Vectors:
    """Embed window by window through a cache; arguments, result and errors are those of ``Encoder.encode``."""
    encoder.encode((), kind)  # refuses a kind that it does not know
    count = len(texts) if isinstance(texts, Sized) else None
    rows = VectorRows(out, count, encoder.dimension)
    # The fingerprint covers all that decides a passage; what a query's vector depends on besides is its prompt.
    space = "\0".join((encoder.fingerprint, kind, encoder.prompts[kind]))
    start = 0
    with progress_bar("Embedding", count, enabled=show_progress) as advance:
        for window in windows(texts, CACHED_WINDOW, weigh=_length, max_weight=CACHED_WINDOW_CHARACTERS):
            check_texts(window, first_index=start)
            target = rows.take(len(window))
            target[:] = cache.vectors(space, window, encoder.dimension, lambda missing: encoder.encode(missing, kind))
            advance(len(window))
            start += len(window)
    return rows.whole()


def _length(text: object) -> int:
    return len(text) if isinstance(text, str) else 0  # what is no text is refused when its window is checked
