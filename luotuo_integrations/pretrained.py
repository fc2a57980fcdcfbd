"""A transformers model out of a folder: with every weight that it needs, or an error that says what is wrong."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import PACKED_WEIGHTS, read_object
from luotuo_integrations.quantization import read_packed

# Fields of config.json that an older transformers carries along without obeying them.
_DECISIVE_FIELDS = ("use_bidirectional_attention",)
_GLM_ENCODER = "luotuo-glm-encoder"  # its module is imported when such a folder is loaded
_LOADING = threading.Lock()


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """Read config.json into transformers' configuration, or say why this model cannot be loaded.

    Raises:
        ModelFormatError: If the file is damaged, needs code that was not asked for, or describes a model that is
            unknown here or has both encoder and decoder.
    """
    description = read_object(folder / "config.json")
    if description.get("auto_map") and not trust_remote_code:
        msg = (
            f"{folder} wants to run Python code of its own. Read that code; then pass trust_remote_code=True, or "
            "convert the weights once (for luotuo-bert: luotuo_integrations.luotuo_bert.convert_luotuo_bert)"
        )
        raise ModelFormatError(msg)
    if description.get("model_type") == _GLM_ENCODER:
        from luotuo_integrations.glm_encoder import register_glm_encoder

        register_glm_encoder()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        msg = (
            f"{folder / 'config.json'} describes no model that this transformers knows ({error}). "
            "Type: pip install --upgrade transformers, or download the folder again"
        )
        raise ModelFormatError(msg) from error
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{folder} is a {config.model_type} with encoder and decoder; supported are models with one of them"
        raise ModelFormatError(msg)
    config_class: Any = type(config)
    unknown = [name for name in _DECISIVE_FIELDS if description.get(name) and not hasattr(config_class(), name)]
    if unknown:
        msg = (
            f"{folder / 'config.json'} asks for {unknown[0]}, which this transformers does not know for "
            f"{config.model_type}: its vectors would be wrong. Type: pip install --upgrade transformers"
        )
        raise ModelFormatError(msg)
    config.use_cache = False
    return config


def load_weights(folder: Path, model_class: Any, options: dict[str, Any]) -> nn.Module:
    """Load a transformers model, every weight of it, never from a pickle unless remote code is trusted.

    Args:
        folder: Where the weights lie.
        model_class: The class, or auto class, whose ``from_pretrained`` loads them.
        options: Its arguments.

    Raises:
        ModelFormatError: If there are no weights, or they are damaged or incomplete.
    """
    packed = folder / PACKED_WEIGHTS
    if packed.is_file():
        options = {**options, "state_dict": read_packed(packed)}
    elif not options.get("trust_remote_code") and not any(folder.glob("*.safetensors")):
        name = model_class.__name__
        msg = (
            f"{folder} holds no *.safetensors weights. Copy or download the folder again; if it only has pickled "
            "weights (pytorch_model.bin) that you trust, rewrite them once: "
            f"python -c \"from transformers import {name}; {name}.from_pretrained('DIR').save_pretrained('DIR')\""
        )
        raise ModelFormatError(msg)
    try:
        backbone, report = model_class.from_pretrained(
            None if packed.is_file() else folder, output_loading_info=True, **options
        )
    except ModelFormatError:  # of a part that lies elsewhere, and says so
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        msg = f"The weights in {folder} cannot be loaded ({error}). Copy or download the folder again"
        raise ModelFormatError(msg) from error
    # transformers fills what is missing with random numbers, and goes on.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        msg = (
            f"The weights in {folder} lack {len(missing)} tensors of the model in config.json, {missing[0]!r} among "
            "them. Copy or download the folder again"
        )
        raise ModelFormatError(msg)
    loaded: nn.Module = backbone
    return loaded


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bar and its table of weights that are left over: ours are checked by name."""
    # One thread at a time: each would restore what the other had set, and transformers 4 itself, while it loads,
    # changes how every module in the process is made.
    with _LOADING:
        verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
