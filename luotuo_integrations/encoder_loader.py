"""EncoderLoader: loads the Encoder once, at the first call, however many threads ask."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luotuo_integrations.coalescing import Coalescer
from luotuo_integrations.texts import Kind

if TYPE_CHECKING:
    from luotuo_integrations.encoder import Encoder


class EncoderLoader:
    """Loads the Encoder once; copies of an embeddings object share one loader.

    Args:
        settings: Arguments of the Encoder.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
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

    def _embed(self, kind: Kind, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder().encode(texts, kind).tolist()
        return vectors
