"""Backbones: where their layers and words lie, a backbone of some layers of another, a random one."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# Where transformers' encoders keep the list of their layers: BERT, RoBERTa and XLM-R; DistilBERT; ModernBERT, Qwen3,
# Gemma; those after PyTorch's own encoder; the encoder behind a frozen GLM.
LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers", "encoder.layers", "bert.encoder.layer")


def find_layers(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the layers of a backbone.

    Returns:
        The name of the list inside the backbone, and the list: the layer next to the embeddings first.

    Raises:
        ValueError: If the backbone keeps its layers elsewhere.
    """
    for name in LAYER_LISTS:
        try:
            layers = backbone.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and len(layers):
            return name, layers
    msg = (
        f"{type(backbone).__name__} keeps its layers in none of {', '.join(LAYER_LISTS)}. Use another base "
        "(BERT, RoBERTa, XLM-R, DistilBERT and ModernBERT are known), all its layers, and layer_decay=1"
    )
    raise ValueError(msg)


def find_words(backbone: nn.Module) -> nn.Embedding | None:
    """Find the word embedding (V, H) of a backbone; None where it has none of its own, as behind a frozen GLM."""
    try:
        words = backbone.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return words if isinstance(words, nn.Embedding) else None


def spread_layers(count: int, wanted: int) -> list[int]:
    """Choose layers, evenly spread and always with the last one.

    Args:
        count: Number of layers L.
        wanted: How many of them, 1 to L.

    Returns:
        Indexes from 0, ascending; of 12 layers 6 are 1, 3, 5, 7, 9, 11.

    Raises:
        ValueError: If ``wanted`` is out of range.
    """
    if not 1 <= wanted <= count:
        msg = f"{wanted} layers cannot be kept of a base with {count}; choose 1 to {count}"
        raise ValueError(msg)
    return [(index + 1) * count // wanted - 1 for index in range(wanted)]


def keep_layers(backbone: nn.Module, kept: Sequence[int]) -> nn.Module:
    """Make a backbone of some layers of another, with its weights and its configuration.

    Where a class gives its first layer another form (ModernBERT's has no norm before its attention, because the
    embeddings end in one), the first kept layer takes that form.

    Args:
        backbone: A transformers model. It is left as it is.
        kept: Indexes of the layers from 0, ascending.

    Returns:
        The new model, in evaluation mode, on the CPU.

    Raises:
        ValueError: If an index is out of range or out of order, the layers are not found, or the class cannot be cut.
    """
    name, layers = find_layers(backbone)
    if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < len(layers):
        msg = f"layers {','.join(map(str, kept))} are out of range or order; this base has 0 to {len(layers) - 1}"
        raise ValueError(msg)
    config: Any = copy.deepcopy(backbone.config)
    if not hasattr(config, "num_hidden_layers"):
        msg = (
            f"{type(config).__name__} does not hold a number of layers to change: keep them all, or choose another base"
        )
        raise ValueError(msg)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    every = getattr(config, "global_attn_every_n_layers", 1)  # how transformers 4 tells ModernBERT's kinds of attention
    if not getattr(config, "layer_types", None) and any(
        (old % every == 0) != (new % every == 0) for new, old in enumerate(kept)
    ):
        msg = "this transformers ties a layer's kind of attention to its number. Type: pip install 'transformers>=5'"
        raise ValueError(msg)
    new_index = {str(old): new for new, old in enumerate(kept)}
    weights = {}
    for key, value in backbone.state_dict().items():
        if not key.startswith(f"{name}."):
            weights[key] = value
            continue
        index, rest = key.removeprefix(f"{name}.").split(".", 1)
        if index in new_index:
            weights[f"{name}.{new_index[index]}.{rest}"] = value
    model = new_backbone(type(backbone), config)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        msg = f"{type(backbone).__name__} cannot be pruned to layers {list(kept)}: it would lack {missing[:3]}"
        raise ValueError(msg)
    return model


def new_backbone(model_class: Any, config: Any, seed: int = 0) -> nn.Module:
    """Make a randomly initialised transformers model; the process's own random numbers are left as they were.

    Args:
        model_class: A class of transformers.
        config: Its configuration.
        seed: Of the random numbers.

    Returns:
        The model, in evaluation mode, on the CPU, without the pooler that `EmbeddingModel` never uses.
    """
    poolers = "add_pooling_layer" in inspect.signature(model_class).parameters
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: nn.Module = model_class(config, add_pooling_layer=False) if poolers else model_class(config)
    return model.eval()
