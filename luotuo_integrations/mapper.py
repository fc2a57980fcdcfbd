"""LinearQueryMapper: moves a query's vector towards the passages that answer it; stored passages stay as they are."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.texts import Vectors

_FORMAT = "luotuo-query-mapper-1"


class MapperError(LuotuoError, ValueError):
    """A mapper's file is damaged, or the mapper belongs to another model."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearQueryMapper:
    """h(x) = x + A x + b, scaled to length 1. With A = 0 and b = 0 it changes nothing.

    Attributes:
        matrix: A, float32 (D, D).
        bias: b, float32 (D,).
        model: Name of the model whose queries it maps, for messages.
        fingerprint: Fingerprint of that model, ``LuotuoEmbeddings.fingerprint``; "" fits any model of D dimensions.
        report: How it was fitted: method, pairs, measures with and without it.
    """

    matrix: Vectors
    bias: Vectors
    model: str = ""
    fingerprint: str = ""
    report: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.bias)
        if self.matrix.shape != (size, size) or self.bias.shape != (size,):
            msg = f"matrix is {self.matrix.shape} and bias {self.bias.shape}; they must be (D, D) and (D,)"
            raise ValueError(msg)
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.bias).all()):
            msg = "matrix or bias holds numbers that are not finite; fit the mapper again"
            raise ValueError(msg)

    @classmethod
    def identity(
        cls,
        dimension: int,
        *,
        model: str = "",
        fingerprint: str = "",
        report: Mapping[str, str | int | float] | None = None,
    ) -> "LinearQueryMapper":
        """A mapper that changes nothing.

        Args:
            dimension: D.
            model: Name of its model.
            fingerprint: Fingerprint of its model.
            report: Why it changes nothing.
        """
        zeros = np.zeros((dimension, dimension), np.float32)
        return cls(zeros, zeros[0].copy(), model, fingerprint, report or {})

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.bias)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return not (self.matrix.any() or self.bias.any())

    def __call__(self, queries: npt.ArrayLike) -> Vectors:
        """Map queries.

        Args:
            queries: (N, D) or (D,), of length 1.

        Returns:
            float32 of the same shape, of length 1.

        Raises:
            MapperError: If the vectors are of another length D.
        """
        vectors = np.asarray(queries, np.float32)
        if vectors.shape[-1] != self.dimension:
            msg = f"the mapper is for vectors of {self.dimension} numbers, not {vectors.shape[-1]}; fit another one"
            raise MapperError(msg)
        if self.is_identity:
            return vectors
        moved = vectors + vectors @ self.matrix.T + self.bias
        unit: Vectors = moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-12)
        return unit

    def check_model(self, fingerprint: str, model: str) -> None:
        """See that it was fitted for a model.

        Raises:
            MapperError: If it was fitted for another.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            msg = (
                f"The mapper was fitted for {self.model!r} (fingerprint {self.fingerprint}), but the model is "
                f"{model!r} ({fingerprint}). Fit it again: luotuo mapper fit --pairs PAIRS.jsonl"
            )
            raise MapperError(msg)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        path = Path(path)
        facts = {"format": _FORMAT, "model": self.model, "fingerprint": self.fingerprint}
        content = save(
            {"matrix": self.matrix, "bias": self.bias},
            metadata={**facts, "report": json.dumps(dict(self.report), ensure_ascii=False)},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "LinearQueryMapper":
        """Read what `save` wrote.

        Raises:
            MapperError: If there is no such file, or it is something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if facts.get("format") != _FORMAT:
                msg = f"{path} holds no query mapper"
                raise MapperError(msg)
            return cls(
                tensors["matrix"].astype(np.float32),
                tensors["bias"].astype(np.float32),
                facts.get("model", ""),
                facts.get("fingerprint", ""),
                json.loads(facts.get("report", "{}")),
            )
        except MapperError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            msg = f"{path} cannot be read as a query mapper ({error}). Give a file of: luotuo mapper fit --pairs ..."
            raise MapperError(msg) from error

    @classmethod
    def from_linear_layer(
        cls, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, *, model: str = "", fingerprint: str = ""
    ) -> "LinearQueryMapper":
        """Take over a linear layer y = W x + b, such as LlamaIndex's linear adapter: A = W - I.

        Args:
            weight: W, (D, D).
            bias: b, (D,); None is zero.
            model: Name of its model.
            fingerprint: Fingerprint of its model, where it is known.

        Raises:
            ValueError: If the weights are not square.
        """
        matrix = np.asarray(weight, np.float32)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            msg = f"the layer's weight is {matrix.shape}; a query mapper needs (D, D): as many numbers out as in"
            raise ValueError(msg)
        shift = np.zeros(len(matrix), np.float32) if bias is None else np.asarray(bias, np.float32)
        return cls(matrix - np.eye(len(matrix), dtype=np.float32), shift, model, fingerprint)
