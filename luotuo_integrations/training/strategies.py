"""Which weights of a model learn, and how fast: full, biases only (BitFit), prefix embeddings, LoRA."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from luotuo_integrations._optional import require
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.backbones import find_layers, find_words

Strategy = Literal["full", "bias", "prefix", "lora"]

_ROW_MASK = "row_mask"  # attribute of the word embedding while only its last rows learn
_FROZEN = "backbone.glm."  # the GLM that a `glm_encoder.GlmEncoder` reads is never trained
_EMBEDDINGS = re.compile(r"backbone\.(.*\.)?emb")
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class StrategySettings:
    """Which weights learn, and how fast. Heads learn under every strategy, unless ``head_learning_rate`` is 0.

    The GLM of a GLM student learns under none.

    Attributes:
        name: ``"full"``: every weight. ``"bias"``: every bias (BitFit, Ben Zaken et al. 2022). ``"prefix"``: the
            embeddings of the prefix tokens (prompt tuning, Lester et al. 2021). ``"lora"``: low-rank updates of the
            attention's linear maps (Hu et al. 2022).
        freeze_embeddings: Keep the embeddings, of words, positions and all, and their norm as they are.
        layer_decay: In (0, 1]: each layer learns at this times the rate of the layer above it.
        lora_rank: Rank r of an update, at least 1.
        lora_alpha: An update is scaled by ``lora_alpha / lora_rank``.
        lora_targets: Last parts of the names of the linear maps to update (``("query", "value")``); None for all
            linear maps of the attention.
        prefix_tokens: So many last rows of the word embedding learn under every strategy, as the student was built
            with them. ``"prefix"`` needs at least 1.
        head_learning_rate: The heads learn at this times the learning rate; 0 keeps them as they are.

    Raises:
        ValueError: If a value is out of range.
    """

    name: Strategy = "full"
    freeze_embeddings: bool = False
    layer_decay: float = 1.0
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] | None = None
    prefix_tokens: int = 0
    head_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        least_prefix = 1 if self.name == "prefix" else 0
        checks = {
            "name": (self.name in get_args(Strategy), " or ".join(get_args(Strategy))),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0, at most 1"),
            "lora_rank": (self.lora_rank >= 1, "at least 1"),
            "lora_alpha": (self.lora_alpha > 0, "above 0"),
            "lora_targets": (self.lora_targets is None or len(self.lora_targets) > 0, "at least one name, or None"),
            "prefix_tokens": (self.prefix_tokens >= least_prefix, f"at least {least_prefix} for {self.name!r}"),
            "head_learning_rate": (self.head_learning_rate >= 0, "at least 0"),
        }
        for field, (is_right, allowed) in checks.items():
            if not is_right:
                msg = f"strategy {field}={getattr(self, field)!r} is not allowed: {allowed}"
                raise ValueError(msg)


@dataclass(frozen=True)
class RowMask:
    """Gradient hook of a word embedding of which only the last rows learn.

    Attributes:
        weight: The word embedding (V, H).
        rows: How many rows learn.
        handle: Removes the hook.
    """

    weight: Tensor
    rows: int
    handle: RemovableHandle


def apply_strategy(model: EmbeddingModel, settings: StrategySettings) -> None:
    """Let those weights learn that the strategy names, and no others. The model still embeds as before.

    LoRA's matrices start from random numbers of a fixed seed; the process's own are left as they were.

    Args:
        model: Changed in place. It must carry no strategy that was not finished.
        settings: The strategy.

    Raises:
        ValueError: If the model has no biases, no attention or no such targets to train, fewer word embeddings than
            prefix tokens, unknown layers where ``layer_decay`` is not 1, or an unfinished strategy.
        ImportError: If LoRA is asked for without peft.
    """
    if _row_mask(model) is not None or any(".lora_A." in name for name, _ in model.named_parameters()):
        msg = "the model already carries a strategy: call finish_strategy(model, settings) first"
        raise ValueError(msg)
    words = find_words(model.backbone)
    known = 0 if words is None else len(words.weight)
    if settings.prefix_tokens > known:
        msg = f"prefix_tokens={settings.prefix_tokens}, but the model has only {known} word embeddings"
        raise ValueError(msg)
    if settings.layer_decay != 1:
        find_layers(model.backbone)
    if settings.name == "bias" and not any(_is_bias(name) for name, _ in model.backbone.named_parameters()):
        msg = "strategy name='bias', but this model has no biases; choose 'lora' or 'full'"
        raise ValueError(msg)
    if settings.name == "lora":
        _inject_lora(model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(name, settings))
    if words is not None and settings.prefix_tokens and not words.weight.requires_grad:
        words.weight.requires_grad_(True)
        setattr(words, _ROW_MASK, _mask_rows(words.weight, settings.prefix_tokens))


def parameter_groups(
    model: EmbeddingModel, settings: StrategySettings, *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Group what learns for a torch optimizer, by learning rate and weight decay.

    The rate is ``learning_rate * layer_decay ** depth``: depth 0 above the layers (heads, a last norm), 1 for the
    top layer, L for the bottom one of L, L + 1 for the embeddings (ELECTRA, Clark et al. 2020, and BEiT, Bao et al.
    2022, count like this). Heads learn at ``head_learning_rate`` times that. Vectors (biases, norms) and a word
    embedding of which only prefix rows learn have no weight decay.

    Args:
        model: After `apply_strategy`.
        settings: The same strategy.
        learning_rate: Of depth 0, above 0.
        weight_decay: At least 0.

    Returns:
        One dict a group, embeddings first and heads last: ``name``, ``params``, ``lr`` and ``weight_decay``.

    Raises:
        ValueError: If nothing learns.
    """
    groups: dict[tuple[int, str, bool], dict[str, Any]] = {}
    # Weight decay would move the rows whose gradient is masked.
    mask = _row_mask(model)
    deepest, part_of = _parts(model, settings)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, depth = part_of(name)
        decays = parameter.ndim > 1 and not _is_bias(name) and (mask is None or parameter is not mask.weight)
        rate = learning_rate * settings.layer_decay**depth
        if part == "heads":
            rate *= settings.head_learning_rate
        group = groups.setdefault(
            (deepest - depth, part, not decays),
            {
                "name": part if decays else f"{part}, no decay",
                "params": [],
                "lr": rate,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        msg = "no weight learns: this strategy leaves none (a model without heads, or head_learning_rate=0?)"
        raise ValueError(msg)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[1] == "heads", *key))]


def finish_strategy(model: EmbeddingModel, settings: StrategySettings) -> None:
    """Turn the model into a plain one that `EmbeddingModel.save` writes as such.

    LoRA's updates are added to the weights and their wrappers removed; every weight may learn again.

    Args:
        model: Changed in place.
        settings: The strategy that was applied.
    """
    mask = _row_mask(model)
    if mask is not None:
        mask.handle.remove()
        delattr(find_words(model.backbone), _ROW_MASK)
    if settings.name == "lora":
        _merge_lora(model.backbone)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(_FROZEN))


def trainable_parameters(model: EmbeddingModel) -> tuple[int, int]:
    """Count numbers: those that learn, and all. Of a word embedding whose prefix rows learn only these count."""
    mask = _row_mask(model)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if mask is not None:
        trainable -= (len(mask.weight) - mask.rows) * mask.weight.shape[1]
    return trainable, sum(parameter.numel() for parameter in model.parameters())


def _learns(name: str, settings: StrategySettings) -> bool:
    if name.startswith("heads."):
        return settings.head_learning_rate > 0
    if name.startswith(_FROZEN) or (settings.freeze_embeddings and _is_embedding(name)):
        return False
    if settings.name == "bias":
        return _is_bias(name)
    if settings.name == "lora":
        return ".lora_" in name
    return settings.name == "full"


def _is_bias(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == "bias"


def _is_embedding(name: str) -> bool:
    """Whether a parameter belongs to what comes before the first layer: ``backbone.embeddings``, ``.embed_tokens``."""
    return _EMBEDDINGS.match(name) is not None


def _row_mask(model: EmbeddingModel) -> RowMask | None:
    mask: RowMask | None = getattr(find_words(model.backbone), _ROW_MASK, None)
    return mask


def _mask_rows(weight: Tensor, rows: int) -> RowMask:
    def keep_last(gradient: Tensor) -> Tensor:
        masked = torch.zeros_like(gradient)
        masked[-rows:] = gradient[-rows:]
        return masked

    return RowMask(weight, rows, weight.register_hook(keep_last))  # type: ignore[no-untyped-call]


def _parts(model: EmbeddingModel, settings: StrategySettings) -> tuple[int, Any]:
    """The depth L + 1 of the embeddings, and a function: name of a parameter -> (part, depth)."""
    try:
        layers_name, layers = find_layers(model.backbone)
    except ValueError:
        if settings.layer_decay != 1:
            raise
        layers_name, layers = "", nn.ModuleList()
    pattern = re.compile(rf"backbone\.{re.escape(layers_name)}\.(\d+)\.")

    def part_of(name: str) -> tuple[str, int]:
        layer = pattern.match(name)
        if layer is not None:
            return f"layer {layer[1]}", len(layers) - int(layer[1])
        if _is_embedding(name):
            return "embeddings", len(layers) + 1
        return ("heads" if name.startswith("heads.") else "backbone"), 0

    return len(layers) + 1, part_of


def _inject_lora(model: EmbeddingModel, settings: StrategySettings) -> None:
    peft = require("peft", extra="train")
    targets = list(_lora_targets(model.backbone, settings.lora_targets))
    config = peft.LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets, lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        peft.inject_adapter_in_model(config, model.backbone)


def _lora_targets(backbone: nn.Module, wanted: tuple[str, ...] | None) -> Iterator[str]:
    """Full names of the linear maps to update."""
    linears = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not f"backbone.{name}".startswith(_FROZEN)
    ]
    found = [
        name
        for name in linears
        if (wanted is None and _ATTENTION.search(name)) or (wanted is not None and name.rsplit(".", 1)[-1] in wanted)
    ]
    unused = set(wanted or ()) - {name.rsplit(".", 1)[-1] for name in found}
    if unused or not found:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
        asked = ", ".join(sorted(unused)) or "None (the attention's)"
        msg = f"lora_targets: {asked} names no linear map of {type(backbone).__name__}; it has {known}"
        raise ValueError(msg)
    yield from found


def _merge_lora(backbone: nn.Module) -> None:
    tuners = require("peft.tuners.tuners_utils", extra="train")
    wrapped = [(name, module) for name, module in backbone.named_modules() if isinstance(module, tuners.BaseTunerLayer)]
    for name, module in wrapped:
        module.merge()
        backbone.set_submodule(name, module.get_base_layer())
    if hasattr(backbone, "peft_config"):  # peft leaves it there
        del backbone.peft_config
