"""LinearQueryMapper: moves a query's vector towards the passages that answer it; stored passages stay as they are."""

import json
import os
import tempfile
import zipfile
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
        """Read what `save` wrote, or a folder of LlamaIndex's linear adapter; see ``from_llama_index``.

        Raises:
            MapperError: If there is no such file or folder, or it is something else.
        """
        if Path(path).is_dir():
            return cls.from_llama_index(path)
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

    @classmethod
    def from_llama_index(cls, folder: str | Path, *, model: str = "", fingerprint: str = "") -> "LinearQueryMapper":
        """Take over a linear adapter that LlamaIndex has fitted (package llama-index-embeddings-adapter).

        ``LinearLayer.save``, also behind ``EmbeddingAdapterFinetuneEngine``, writes such a folder. Mapped queries point
        where ``LinearAdapterEmbeddingModel`` moves them, and are scaled to length 1 besides, which changes no cosine.
        No code in the files is run. Torch must be installed.

        Args:
            folder: With config.json and pytorch_model.bin.
            model: Name of the model that the adapter was fitted for.
            fingerprint: Fingerprint of that model, which then is checked; "" trusts the caller.

        Raises:
            MapperError: If a file is missing or damaged, the adapter is not a single linear layer, or not square.
        """
        weight, bias = _read_linear_layer(Path(folder))
        try:
            return cls.from_linear_layer(weight, bias, model=model, fingerprint=fingerprint)
        except ValueError as error:
            msg = f"{folder} cannot become a query mapper: {error}"
            raise MapperError(msg) from error


def _read_linear_layer(folder: Path) -> tuple[Vectors, Vectors | None]:
    """Read a folder of LlamaIndex's LinearLayer -> weight and bias, float32."""
    advice = "Give a folder that LlamaIndex's LinearLayer.save(folder) wrote, or a file of: luotuo mapper fit"
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "pytorch_model.bin"
        arrays = _read_state_dict(path)
    except ImportError:
        raise
    except Exception as error:  # torch's reader raises all sorts for a damaged file
        msg = f"{path} is missing or damaged ({str(error)[:300]}). {advice}"
        raise MapperError(msg) from error
    if isinstance(config, dict) and "hidden_features" in config:
        msg = (
            f"{folder} holds a TwoLayerNN: two layers with an activation between them, which no matrix replaces. "
            "Fit a LinearLayer instead, or type: luotuo mapper fit --pairs PAIRS.jsonl"
        )
        raise MapperError(msg)
    if not {"linear.weight"} <= set(arrays) <= {"linear.weight", "linear.bias"}:
        held = ", ".join(sorted(arrays))
        msg = f"{path} holds {held:.200}; a linear adapter holds linear.weight, and maybe linear.bias. {advice}"
        raise MapperError(msg)
    return arrays["linear.weight"], arrays.get("linear.bias")


def _read_state_dict(path: Path) -> dict[str, Vectors]:
    import torch  # only here: whoever fits and maps needs none

    if path.is_file() and not zipfile.is_zipfile(path):
        # In torch's reader of older formats, weights_only has been circumvented (CVE-2025-32434).
        msg = "it is no zip archive, which torch.save writes since torch 1.6"
        raise ValueError(msg)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}
