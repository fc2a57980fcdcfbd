"""EmbeddingModel: backbone -> pooling -> Linear heads. The class that is trained is the class that serves."""

import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import (
    DenseSettings,
    ModelSettings,
    read_settings,
    write_json,
    write_settings,
)
from luotuo_integrations.pooling import NEEDS_HIDDEN_STATES, POOLINGS, pool
from luotuo_integrations.pretrained import load_weights, quiet, read_config
from luotuo_integrations.registry import ModelCard

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
}


class EmbeddingModel(nn.Module):
    """Token ids in, one vector a text out; not yet cut, normalised or moved.

    Args:
        backbone: A transformers model that gives ``last_hidden_state``.
        settings: Pooling, prompts, length and heads, as the folder says.
        heads: One module a head, each (B, H) -> (B, D).

    Raises:
        ValueError: If the pooling is unknown, or heads and settings differ in number.
    """

    def __init__(self, backbone: nn.Module, settings: ModelSettings, heads: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        if settings.pooling not in POOLINGS:
            msg = f"pooling={settings.pooling!r} is unknown; choose one of {', '.join(POOLINGS)}"
            raise ValueError(msg)
        if len(heads) != len(settings.heads):
            msg = f"{len(heads)} heads given, but the settings name {len(settings.heads)}"
            raise ValueError(msg)
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.settings = settings

    @property
    def dimension(self) -> int:
        """Length D of a vector before any Matryoshka cut."""
        for head in reversed(self.heads):
            for module in head.modules():
                if isinstance(module, nn.Linear):
                    return module.out_features
        return self.hidden_size

    @property
    def hidden_size(self) -> int:
        """Width H of a token vector."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a padded batch.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 1 for tokens, 0 for padding on either side. Every row must hold a token.

        Returns:
            (B, D), not normalised.
        """
        # Models that count positions from the first column need their tokens there: padding goes to the right.
        order = attention_mask.argsort(dim=1, descending=True, stable=True)  # (B, T)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        all_layers = self.settings.pooling in NEEDS_HIDDEN_STATES
        output = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=all_layers, return_dict=True
        )
        layers = output.hidden_states if all_layers else (output.last_hidden_state,)  # each (B, T, H)
        vectors = pool(layers, attention_mask, self.settings.pooling)  # (B, H)
        for head in self.heads:
            vectors = head(vectors)
        return vectors  # (B, D)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        card: ModelCard | None = None,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> "EmbeddingModel":
        """Load a folder: ours, sentence-transformers' or plain transformers'.

        Args:
            folder: The model folder.
            card: What is known of this model beside its folder.
            dtype: Floating-point type of the weights in memory.
            trust_remote_code: Run Python code that lies in the folder. Only for folders whose code you have read.

        Raises:
            ModelFormatError: If the folder is incomplete, damaged, or needs code of its own.
        """
        settings = read_settings(folder, card)
        with quiet():
            backbone = _load_backbone(folder / settings.transformer, trust_remote_code)
            heads = [_load_head(folder, head) for head in settings.heads]
        model = cls(backbone, settings, heads).eval()
        # Parameters only: rotary frequencies are buffers, and in bfloat16 they misplace every far token.
        for name, parameter in model.named_parameters():
            if name.startswith("backbone.glm.") and dtype == torch.float32:
                continue  # frozen and large: it stays in the type it is stored in
            parameter.data = parameter.data.to(dtype)
        return model

    def save(self, folder: str | Path, tokenizer: Any = None, *, overwrite: bool = False) -> Path:
        """Write a folder that this class and sentence-transformers both load. Nothing half-written is left behind.

        Args:
            folder: Where to write.
            tokenizer: A transformers tokenizer to save beside the weights.
            overwrite: Replace an existing folder.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder exists and holds anything, and ``overwrite`` is false.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not overwrite:
            msg = f"{folder} is not empty. Choose another folder, or pass overwrite=True"
            raise FileExistsError(msg)
        folder.parent.mkdir(parents=True, exist_ok=True)
        settings = replace(self.settings, transformer="", heads=[])
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            target = Path(temporary) / "model"
            with quiet():
                self.backbone.save_pretrained(target)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(target)
            heads = [
                _save_head(target, index, head, old.activation)
                for index, (head, old) in enumerate(zip(self.heads, self.settings.heads, strict=True), start=2)
            ]
            write_settings(target, replace(settings, heads=heads), self.hidden_size)
            put_in_place(target, folder)
        return folder


def put_in_place(written: Path, folder: Path) -> None:
    """Rename a finished folder; the one that it replaces comes back if that fails."""
    replaced = written.with_name(f"{written.name}-replaced")
    existed = folder.exists()
    if existed:
        folder.replace(replaced)
    try:
        written.replace(folder)
    except OSError:
        if existed:
            replaced.replace(folder)
        raise


def _load_backbone(folder: Path, trust_remote_code: bool) -> nn.Module:
    config = read_config(folder, trust_remote_code)
    model_class = MODEL_MAPPING.get(type(config), AutoModel)
    options: dict[str, Any] = {}
    if not isinstance(model_class, type) or model_class is AutoModel:
        model_class, options = AutoModel, {"trust_remote_code": trust_remote_code}
    elif "add_pooling_layer" in inspect.signature(model_class).parameters:
        options["add_pooling_layer"] = False  # its weights are never used, and often missing
    return load_weights(folder, model_class, {"config": config, **options})


def _load_head(folder: Path, settings: DenseSettings) -> nn.Module:
    if settings.activation not in ACTIVATIONS:
        msg = f"{folder / settings.folder} uses {settings.activation}; supported are {', '.join(ACTIVATIONS)}"
        raise ModelFormatError(msg)
    weights = read_weights(folder / settings.folder)
    if "linear.weight" not in weights:
        msg = f"{folder / settings.folder} holds no linear.weight. Copy or download the folder again"
        raise ModelFormatError(msg)
    return make_head(weights["linear.weight"], weights.get("linear.bias"), settings.activation)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a folder's model.safetensors, or else its pytorch_model.bin: arrays alone, whatever else a pickle may hold.

    Raises:
        ModelFormatError: If there is neither, or it is damaged.
    """
    path = folder / "model.safetensors"
    try:
        if path.is_file():
            return load_file(path)
        path = folder / "pytorch_model.bin"
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises all sorts for a damaged file
        msg = f"{path} is missing or damaged ({error!r}). Copy or download the folder again"
        raise ModelFormatError(msg) from error
    return weights


def make_head(weight: Tensor, bias: Tensor | None = None, activation: str = "Identity") -> nn.Module:
    """Make a head from its arrays.

    Args:
        weight: (D, H).
        bias: (D,), or None.
        activation: A key of ``ACTIVATIONS``.

    Returns:
        A module (B, H) -> (B, D).
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return nn.Sequential(linear, ACTIVATIONS[activation]())


def _save_head(folder: Path, index: int, head: nn.Module, activation: str) -> DenseSettings:
    linear = head[0]  # type: ignore[index]
    name = f"{index}_Dense"
    (folder / name).mkdir()
    tensors = {f"linear.{key}": value.detach().cpu().contiguous() for key, value in linear.state_dict().items()}
    save_file(tensors, folder / name / "model.safetensors")
    write_json(
        folder / name / "config.json",
        {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": f"torch.nn.modules.{_torch_module(activation)}",
        },
    )
    return DenseSettings(name, activation)


def _torch_module(activation: str) -> str:
    return "linear.Identity" if activation == "Identity" else f"activation.{activation}"
