"""The published Luotuo-BERT models: their weights read into our folder layout, without their code."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings
from luotuo_integrations.modeling import EmbeddingModel, make_head


def convert_luotuo_bert(folder: str | Path, output: str | Path, *, activation: str = "Tanh") -> Path:
    """Convert a downloaded silk-road/luotuo-bert folder to one that loads without remote code.

    The published models are SimCSE-style BERTs (Gao et al. 2021): a BERT under the prefix ``bert.``, cls pooling, and
    one dense head to 1536 dimensions. Only arrays are read; the folder's own Python code never runs.

    Args:
        folder: The downloaded folder, with config.json, a tokenizer and pytorch_model.bin or model.safetensors.
        output: Where to write.
        activation: What follows the head's Linear: ``"Tanh"`` as in SimCSE, or ``"Identity"``.

    Returns:
        ``output``.

    Raises:
        ModelFormatError: If the weights are not a BERT with exactly one dense head.
    """
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        weights = load_file(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").is_file():
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        msg = f"{folder} holds neither model.safetensors nor pytorch_model.bin"
        raise ModelFormatError(msg)
    config = BertConfig.from_pretrained(folder)
    backbone = BertModel(config, add_pooling_layer=False)
    bert = {name.removeprefix("bert."): value for name, value in weights.items() if name.startswith("bert.")}
    missing, _ = backbone.load_state_dict(bert, strict=False)
    # Buffers such as position_ids were saved by some versions and not by others; parameters must all be there.
    parameters = {name for name, _ in backbone.named_parameters()}
    heads = {
        name: value
        for name, value in weights.items()
        if not name.startswith(("bert.", "lm_head.")) and value.ndim == 2 and value.shape[1] == config.hidden_size
    }
    absent = sorted(parameters & set(missing))
    if absent or len(heads) != 1:
        msg = f"{folder} is no BERT with one dense head: missing {absent[:3]}, heads {list(heads)}"
        raise ModelFormatError(msg)
    name, weight = next(iter(heads.items()))
    head = make_head(weight.float(), weights.get(name.removesuffix("weight") + "bias"), activation)
    settings = ModelSettings(pooling="cls", max_tokens=512, heads=(DenseSettings("2_Dense", activation),))
    return EmbeddingModel(backbone, settings, [head]).save(output, AutoTokenizer.from_pretrained(folder))
