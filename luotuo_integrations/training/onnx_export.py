"""An embedding model as an ONNX file, checked against the model."""

import copy
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from luotuo_integrations._optional import require
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.pooling import NEEDS_HIDDEN_STATES, pool

_TOLERANCE = 1e-4  # of a number of a vector of length 1
_OPSET = 18
_FATAL_ONLY = 4


def export_onnx(model: EmbeddingModel, path: Path) -> Path:
    """Write a model as ONNX, and run it once to see that it gives the same vectors at another shape.

    Inputs ``input_ids`` and ``attention_mask``, int64 (batch, sequence), padded on the right; output
    ``sentence_embedding``, float32 (batch, D), of length 1 where the model says so. Prompts and special tokens are the
    caller's affair. Needs torch 2.5 or newer.

    Args:
        model: The model; it is left as it is.
        path: The file to write; its folder must exist. It appears whole or not at all.

    Returns:
        ``path``.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If the file does not run, or gives other vectors than the model.
    """
    require("onnx", extra="onnx")
    require("onnxruntime", extra="onnx")
    network = _SentenceEmbedding(copy.deepcopy(model)).cpu().float().eval()
    axes = {0: "batch", 1: "sequence"}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # The older of torch's two exporters: the newer takes 40 times as long, for the same numbers.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of branches on shapes; that they do no harm is checked below
            torch.onnx.export(
                network,
                _sample(model, (4, 2)),
                temporary,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_axes={"input_ids": axes, "attention_mask": axes, "sentence_embedding": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        _check_vectors(temporary, network, *_sample(model, (7, 3, 1)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _SentenceEmbedding(nn.Module):
    """EmbeddingModel for batches padded on the right: torch's exporter lacks the sort that moves padding there."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        settings = self.model.settings
        all_layers = settings.pooling in NEEDS_HIDDEN_STATES
        output = self.model.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=all_layers, return_dict=True
        )
        layers = output.hidden_states if all_layers else (output.last_hidden_state,)  # each (B, T, H)
        vectors = _pool(layers, attention_mask, settings.pooling)  # (B, H)
        for head in self.model.heads:
            vectors = head(vectors)
        return torch.nn.functional.normalize(vectors, dim=1) if settings.normalize else vectors  # (B, D)


def _pool(layers: Sequence[Tensor], attention_mask: Tensor, pooling: str) -> Tensor:
    """`pool` for right padding, without the count of rows, which a trace would make a constant."""
    tokens = layers[-1]
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        last = (attention_mask.sum(dim=1) - 1).view(-1, 1, 1).expand(-1, 1, tokens.shape[2])  # (B, 1, H)
        return tokens.gather(1, last).squeeze(1)
    return pool(layers, attention_mask, pooling)


def _sample(model: EmbeddingModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Random token ids (B, T) of texts of these lengths, and their mask."""
    tokens: int = model.backbone.get_input_embeddings().num_embeddings  # type: ignore[operator]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(tokens, mask.shape, generator=torch.Generator().manual_seed(0)), mask


def _check_vectors(path: Path, network: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Refuse a file whose vectors are not the network's."""
    runtime = require("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
    with torch.no_grad():
        expected = network(input_ids, attention_mask).numpy()
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = session.run(None, inputs)[0]
    except Exception as error:  # the runtime's exceptions have no common class of their own
        msg = f"This model cannot be written as ONNX: the file does not run ({error}). Use onnx=False"
        raise ValueError(msg) from error
    deviation = float(np.abs(found - expected).max())
    if not deviation <= _TOLERANCE:
        msg = f"This model cannot be written as ONNX: its vectors would differ by {deviation:.2g}. Use onnx=False"
        raise ValueError(msg)
