"""The folder of a model: read and write the layout that sentence-transformers and its peers share.

A folder holds config.json, a tokenizer and weights. Beside them stand modules.json (the list of modules), 1_Pooling,
any number of Dense heads, and config_sentence_transformers.json (prompts). A plain transformers folder, which has none
of these, is read with the pooling of its card, or mean.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.pooling import POOLINGS
from luotuo_integrations.registry import ModelCard

logger = logging.getLogger(__name__)

PACKED_WEIGHTS = "packed.safetensors"
_OUR_POOLING = {"weightedmean": "weighted_mean", "lasttoken": "last"}
_THEIR_POOLING = {ours: theirs for theirs, ours in _OUR_POOLING.items()}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
_VECTOR = "sentence_embedding"
_LIMIT_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")


@dataclass(frozen=True)
class DenseSettings:
    """One Linear head: its folder inside the model's folder, and the name of the activation after it."""

    folder: str
    activation: str = "Identity"


@dataclass(frozen=True)
class ModelSettings:
    """All that a model folder says beside its weights.

    Attributes:
        pooling: One of ``pooling.POOLINGS``.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: Longest text, special tokens included; None where the folder does not say.
        prompts: Text put in front, by kind: ``"query"`` and ``"passage"``.
        lowercase: Whether texts are lowercased whatever the tokenizer does.
        transformer: Subfolder of the backbone, ``""`` for the folder itself.
        heads: The Linear heads, in order.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    lowercase: bool = False
    transformer: str = ""
    heads: Sequence[DenseSettings] = ()


def read_settings(folder: Path, card: ModelCard | None = None) -> ModelSettings:
    """Read a folder's settings; where the folder is silent the card speaks.

    Args:
        folder: A model folder.
        card: What is known of this model, if anything.

    Returns:
        The settings.

    Raises:
        ModelFormatError: If a file is not JSON, or asks for a module or pooling that is not supported.
    """
    transformer, heads = "", []
    pooling = card.pooling if card else "mean"
    normalize = card.normalize if card else True
    if (folder / "modules.json").is_file():
        modules = _read_modules(folder)
        normalize = card.normalize if card else any(kind == "Normalize" for kind, _ in modules)
        for kind, path in modules:
            if kind == "Transformer":
                transformer = path
            elif kind == "Pooling":
                pooling = _read_pooling(folder / path / "config.json")
            elif kind == "Dense":
                heads.append(_read_dense(folder, path))
    limits = _read_limits(folder / transformer)
    return ModelSettings(
        pooling=pooling,
        normalize=normalize,
        max_tokens=limits.get("max_seq_length") or (card.max_tokens if card else None),
        prompts=_read_prompts(folder, card),
        lowercase=bool(limits.get("do_lower_case")),
        transformer=transformer,
        heads=tuple(heads),
    )


def write_settings(folder: Path, settings: ModelSettings, dimension: int) -> None:
    """Write modules.json and its companions, so that sentence-transformers loads the folder as we do.

    Args:
        folder: An existing folder that holds the backbone and the heads.
        settings: What to write. The poolings ``first_last_mean`` and ``embedding_last_mean`` have no counterpart in
            sentence-transformers: such a folder loads here only.
        dimension: Width H of the backbone's token vectors.
    """
    entries = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries += [(head.folder, "Dense") for head in settings.heads]
    if settings.normalize:
        entries.append((f"{len(entries)}_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(entries)
    ]
    # The name is what sentence-transformers 6 reads; the flags are for what is older, and for other servers.
    pooling = {
        "word_embedding_dimension": dimension,
        "pooling_mode": _THEIR_POOLING.get(settings.pooling, settings.pooling),
        **{flag: name == settings.pooling for flag, name in _POOLING_FLAGS.items()},
    }
    for path, _ in entries[1:]:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    limits = {"max_seq_length": settings.max_tokens, "do_lower_case": settings.lowercase}
    write_json(folder / "sentence_bert_config.json", limits)
    prompts = {"query": settings.prompts.get("query", ""), "document": settings.prompts.get("passage", "")}
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def read_json(path: Path) -> Any:
    """Read a JSON file of a model folder.

    Raises:
        ModelFormatError: If the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON ({error}). The folder is incomplete or damaged: download or copy it again"
        raise ModelFormatError(msg) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder that must hold an object.

    Raises:
        ModelFormatError: If the file is missing, not UTF-8, not JSON or not an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        msg = f"{path} holds a JSON {type(content).__name__}, not an object. Download or copy the folder again"
        raise ModelFormatError(msg)
    return content


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, two spaces deep, Chinese as it is."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """The (kind, path) of each module in modules.json."""
    path = folder / "modules.json"
    content = read_json(path)
    try:
        modules = [(str(module["type"]), str(module["path"])) for module in list(content or (None,))]
    except (TypeError, KeyError) as error:
        msg = f"{path} is no list of modules with a type and a path. Download or copy the folder again"
        raise ModelFormatError(msg) from error
    for name, _ in modules:
        # A class of the repository's own may bear a usual name, and compute something else.
        if not name.startswith("sentence_transformers.") or name.rsplit(".", 1)[-1] not in _MODULES:
            msg = f"{folder} uses the module {name}; supported are sentence_transformers' {', '.join(_MODULES)}"
            raise ModelFormatError(msg)
    return [(name.rsplit(".", 1)[-1], path) for name, path in modules]


def _read_dense(folder: Path, path: str) -> DenseSettings:
    settings = read_object(folder / path / "config.json")
    if settings.get("use_residual") or settings.get("module_input_name", _VECTOR) != _VECTOR:
        msg = f"{folder / path} has a residual connection or reads tokens, which is not supported"
        raise ModelFormatError(msg)
    # sentence-transformers takes Tanh where the file is silent.
    return DenseSettings(path, str(settings.get("activation_function", "Tanh")).rsplit(".", 1)[-1])


def _read_pooling(path: Path) -> str:
    settings = read_object(path)
    if settings.get("include_prompt", True) is False:
        msg = f"{path} pools without the prompt's tokens (include_prompt: false), which is not supported"
        raise ModelFormatError(msg)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [name for flag, name in _POOLING_FLAGS.items() if settings.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1:
        msg = f"{path} asks for {modes or 'no pooling'}; exactly one pooling is supported"
        raise ModelFormatError(msg)
    pooling = _OUR_POOLING.get(str(modes[0]), str(modes[0]))
    if pooling not in POOLINGS:
        msg = f"{path} asks for pooling {pooling!r}; supported are {', '.join(POOLINGS)}"
        raise ModelFormatError(msg)
    return pooling


def _read_limits(folder: Path) -> dict[str, Any]:
    return next((read_object(folder / name) for name in _LIMIT_FILES if (folder / name).is_file()), {})


def _read_prompts(folder: Path, card: ModelCard | None) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    own: dict[str, str] = (read_object(path).get("prompts") or {}) if path.is_file() else {}
    passage = next((own[key] for key in ("document", "passage", "corpus", "text") if own.get(key)), "")
    prompts = {"query": own.get("query") or "", "passage": passage}
    if any(prompts.values()):
        return prompts
    if card is not None and any(card.prompts.values()):
        logger.info("%s names no prompts; using those of %s", folder, card.name)
        return dict(card.prompts)
    if any(own.values()):
        names = ", ".join(repr(name) for name in own)
        logger.warning(
            "%s has prompts named %s, but none for queries or passages: none is used. Choose with query_prompt= and "
            "passage_prompt=",
            folder,
            names,
        )
    return prompts
