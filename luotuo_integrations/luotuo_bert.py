"""The published Luotuo-BERT models: their weights read into our folder layout, without their code."""

from pathlib import Path

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings, read_object
from luotuo_integrations.modeling import EmbeddingModel, make_head, read_weights
from luotuo_integrations.tokenization import TextTokenizer


def convert_luotuo_bert(folder: str | Path, output: str | Path, *, activation: str = "Tanh") -> Path:
    """Convert a downloaded silk-road/luotuo-bert folder to one that loads without remote code.

    The published models are SimCSE-style BERTs (Gao et al. 2021): a BERT under the prefix ``bert.``, cls pooling, and
    one dense head to 1536 dimensions. Only arrays are read; the folder's own Python code never runs.

    Args:
        folder: The downloaded folder, with config.json, a tokenizer and pytorch_model.bin or model.safetensors.
        output: Where to write.
        activation: What follows the head's Linear: ``"Tanh"`` as in SimCSE, or ``"Identity"``. The folder's own
            models.py tells; for numbers as small as those of 1536-dimensional unit vectors it hardly matters.

    Returns:
        ``output``.

    Raises:
        ModelFormatError: If the weights are not a BERT with exactly one dense head, or the folder is incomplete.
        FileExistsError: If ``output`` exists and holds anything.
    """
    from transformers import BertConfig, BertModel

    folder = Path(folder)
    weights = read_weights(folder)
    description = read_object(folder / "config.json")
    description.pop("auto_map", None)  # where the published code lies; the converted folder needs none
    config = BertConfig.from_dict(description)
    tokenizer = TextTokenizer(folder).tokenizer
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
    return EmbeddingModel(backbone, settings, [head]).save(output, tokenizer)
