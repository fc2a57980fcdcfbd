"""RerankSettings: what the rerankers of both frameworks share: their fields, and the model, loaded at the first use."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

if TYPE_CHECKING:
    from luotuo_integrations.cross_encoder import CrossEncoder

_MODEL_FIELDS = (
    "model", "device", "dtype", "backend", "max_length", "max_tokens_per_batch", "instruction", "cache_folder",
    "revision", "trust_remote_code",
)  # fmt: skip


class CrossEncoderLoader:
    """Loads the CrossEncoder once; copies share it, and a pickle holds its settings alone.

    Args:
        settings: Arguments of the CrossEncoder.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._cross_encoder: CrossEncoder | None = None

    def cross_encoder(self) -> "CrossEncoder":
        """The CrossEncoder; the first call loads it."""
        with self._lock:
            if self._cross_encoder is None:
                from luotuo_integrations.cross_encoder import CrossEncoder  # torch and transformers: seconds

                self._cross_encoder = CrossEncoder(**self.settings)
            return self._cross_encoder

    def __deepcopy__(self, memo: dict[int, Any]) -> "CrossEncoderLoader":
        return self

    def __reduce__(self) -> tuple[type["CrossEncoderLoader"], tuple[Mapping[str, Any]]]:
        return (CrossEncoderLoader, (self.settings,))


class RerankSettings(BaseModel):
    """Fields of a reranker; ``LuotuoReranker`` and ``LuotuoRerank`` document them."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1)
    min_score: float | None = Field(default=None, ge=0, le=1)
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: Literal["auto", "torch"] = "auto"
    max_length: int | None = Field(default=None, ge=1)
    max_tokens_per_batch: int | None = Field(default=None, ge=1)
    instruction: str | None = None
    cache_folder: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    show_progress: bool = False
    _loader: CrossEncoderLoader = PrivateAttr()

    @field_validator("model", "cache_folder", mode="before")
    @classmethod
    def _folder_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    def model_post_init(self, context: Any, /) -> None:
        """Make the loader, which loads nothing yet: copies made before the first use share it too."""
        super().model_post_init(context)
        self._loader = CrossEncoderLoader(self._model_settings())

    @property
    def cross_encoder(self) -> "CrossEncoder":
        """The loaded CrossEncoder; the first use loads it."""
        settings = self._model_settings()
        if self._loader.settings != settings:  # a field was set, or this is a copy with another one
            self._loader = CrossEncoderLoader(settings)
        return self._loader.cross_encoder()

    def _model_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _MODEL_FIELDS}

    def _ranked(self, query: str, passages: list[str]) -> list[tuple[int, float]]:
        """Return (position, relevance) of the passages to keep, best first; of equal ones the earlier first."""
        if not passages:
            return []
        relevances: list[float] = self.cross_encoder.score(query, passages, self.show_progress).tolist()
        order = sorted(range(len(passages)), key=lambda i: -relevances[i])
        least = 0.0 if self.min_score is None else self.min_score
        return [(i, relevances[i]) for i in order if relevances[i] >= least][: self.top_n]
