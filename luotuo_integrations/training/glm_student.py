"""A student of the first Luotuo design: untrained, in a folder of its own, with the tokenizer of its frozen GLM."""

from pathlib import Path

import torch
from transformers import BertConfig

from luotuo_integrations.glm_encoder import GlmEncoder, GlmEncoderConfig, find_glm, read_glm_config
from luotuo_integrations.model_folder import DenseSettings, ModelSettings
from luotuo_integrations.modeling import EmbeddingModel, make_head
from luotuo_integrations.tokenization import TextTokenizer

_HEAD_WIDTH = 64


def build_glm_student(
    glm: str | Path,
    folder: Path,
    *,
    layers: int = 4,
    width: int = 384,
    dimension: int | None = None,
    max_tokens: int = 512,
    seed: int = 0,
) -> Path:
    """Write the folder of an untrained student; the GLM's weights are not read.

    Args:
        glm: Folder of a GLM, or the name of one in the hub's cache; then its commit is written down.
        folder: Where to write; it must not hold anything yet.
        layers: Layers of the BERT.
        width: Width H of the BERT; from 64 on a multiple of 64, for heads of 64.
        dimension: Length D of a vector; where it is not ``width``, a Linear makes it. None is ``width``.
        max_tokens: Longest text in tokens, special tokens included.
        seed: Of the random weights.

    Returns:
        The folder, which `EmbeddingModel.load` opens where the GLM is.

    Raises:
        ModelFormatError: If there is no such GLM, or it has no tokenizer.
        ValueError: If a number is out of range.
        FileExistsError: If the folder holds anything.
    """
    attention_heads = max(1, width // _HEAD_WIDTH)
    dimension = width if dimension is None else dimension
    for name, value in (("layers", layers), ("width", width), ("dimension", dimension), ("max_tokens", max_tokens)):
        if value < 1:
            msg = f"{name}={value} must be at least 1"
            raise ValueError(msg)
    if width % attention_heads:
        msg = f"width={width} is no multiple of {_HEAD_WIDTH}; use {attention_heads * _HEAD_WIDTH} for instance"
        raise ValueError(msg)
    source = find_glm(glm)
    tokenizer = TextTokenizer(source).tokenizer
    is_folder = Path(glm).is_dir()
    config = GlmEncoderConfig(
        glm_source=str(source.resolve()) if is_folder else str(glm),
        glm_revision=None if is_folder else source.name,  # the cache names a snapshot by its commit
        glm_config=read_glm_config(source),
        bert_config=BertConfig(
            vocab_size=1,  # it reads vectors, not words
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_tokens,
            type_vocab_size=1,
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = GlmEncoder(config)
        heads = [] if dimension == width else [make_head(torch.randn(dimension, width) / width**0.5)]
    settings = ModelSettings(max_tokens=max_tokens, heads=[DenseSettings("2_Dense") for _ in heads])
    return EmbeddingModel(backbone, settings, heads).save(folder, tokenizer)
