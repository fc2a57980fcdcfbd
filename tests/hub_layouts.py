"""Tiny random models in the very folders that the hub's repositories have, one for each card of the registry."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

HIDDEN = 32
MAX_TOKENS = 96  # of the tiny backbones, but for what a layout says
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
QWEN_PROMPTS = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    "document": "",
}
GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
}


@dataclass(frozen=True)
class Layout:
    """How one repository on the hub is made.

    Attributes:
        card: Its card's name.
        backbone: Makes the tiny random model of its class.
        pooling: As sentence-transformers names it.
        normalize: Whether modules.json ends in Normalize.
        prompts: What config_sentence_transformers.json holds; None where it names none.
        heads: (in, out) of each Dense, without bias or activation.
        vocabulary: Which special tokens the tokenizer has, and where.
        max_seq_length: What sentence_bert_config.json says; None where there is no such file.
    """

    card: str
    backbone: Callable[[], PreTrainedModel]
    pooling: str
    normalize: bool = True
    prompts: Mapping[str, str] | None = None
    heads: tuple[tuple[int, int], ...] = ()
    vocabulary: Literal["bert", "roberta", "qwen", "gemma"] = "bert"
    max_seq_length: int | None = 80


def _bert() -> BertModel:
    return BertModel(BertConfig(max_position_embeddings=MAX_TOKENS, **_sizes()))


def _xlm_roberta() -> XLMRobertaModel:
    # Positions count from the padding id on: 514 rows for 512 tokens.
    return XLMRobertaModel(
        XLMRobertaConfig(
            max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **_sizes()
        )
    )


def _qwen3() -> Qwen3Model:
    return Qwen3Model(Qwen3Config(num_key_value_heads=1, head_dim=8, max_position_embeddings=512, **_sizes()))


def _gemma3() -> Gemma3TextModel:
    return Gemma3TextModel(
        Gemma3TextConfig(
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            use_bidirectional_attention=True,
            pad_token_id=0,
            **_sizes(),
        )
    )


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": 400,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.4,
    }


LAYOUTS = (
    Layout("BAAI/bge-small-zh-v1.5", _bert, "cls"),
    Layout("BAAI/bge-base-zh-v1.5", _bert, "cls"),
    Layout("BAAI/bge-large-zh-v1.5", _bert, "cls"),
    Layout("BAAI/bge-m3", _xlm_roberta, "cls", vocabulary="roberta", max_seq_length=512),
    Layout("moka-ai/m3e-small", _bert, "mean", normalize=False),
    Layout("moka-ai/m3e-base", _bert, "mean", normalize=False),
    Layout("moka-ai/m3e-large", _bert, "mean", normalize=False),
    # E5 small is a BERT with XLM-R's vocabulary. Its repository names no prompts: the card must.
    Layout("intfloat/multilingual-e5-small", _bert, "mean", vocabulary="roberta"),
    Layout("intfloat/multilingual-e5-base", _xlm_roberta, "mean", vocabulary="roberta", max_seq_length=512),
    Layout("intfloat/multilingual-e5-large", _xlm_roberta, "mean", vocabulary="roberta", max_seq_length=512),
    Layout("shibing624/text2vec-base-chinese", _bert, "mean", normalize=False),
    Layout(
        "Qwen/Qwen3-Embedding-0.6B",
        _qwen3,
        "lasttoken",
        prompts=QWEN_PROMPTS,
        vocabulary="qwen",
        max_seq_length=None,
    ),
    Layout(
        "google/embeddinggemma-300m",
        _gemma3,
        "mean",
        prompts=GEMMA_PROMPTS,
        heads=((HIDDEN, 4 * HIDDEN), (4 * HIDDEN, HIDDEN)),
        vocabulary="gemma",
        max_seq_length=256,
    ),
)


def make_tokenizer(kind: str, *, max_tokens: int = 100_000) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, with the special tokens and the padding side of one kind of model."""
    special, before, after, side = {
        "bert": (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS]", "[SEP]", "right"),
        "roberta": (["<s>", "<pad>", "</s>", "<unk>"], "<s>", "</s>", "right"),
        "qwen": (["<|endoftext|>", "<unk>"], None, "<|endoftext|>", "left"),
        "gemma": (["<pad>", "<eos>", "<bos>", "<unk>"], "<bos>", "<eos>", "right"),
    }[kind]
    characters = sorted(
        set("试用期员工可以请年假吗出差住宿标准每晚不超过四百五十元今天气很好你是谁的公司在哪里报销发票材料需要什么")
    )
    latin = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate([*special, *characters, *latin])}
    unknown = "[UNK]" if kind == "bert" else "<unk>"
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = [token for token in (before, after) if token]
    template = " ".join(token for token in (before, "$A", after) if token)
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in around]
    )
    padding = next(token for token in special if token.lower() in {"[pad]", "<pad>", "<|endoftext|>"})
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=padding,
        unk_token=unknown,
        bos_token=before,
        eos_token=after,
        padding_side=side,
        model_max_length=max_tokens,
    )


def write_layout(layout: Layout, parent: Path, *, old_pooling: bool, seed: int = 0) -> Path:
    """Save a tiny model as ``parent/<last part of the card's name>``, file by file as its repository has it.

    Args:
        layout: What to write.
        parent: Where.
        old_pooling: Flags (``pooling_mode_cls_token``) rather than sentence-transformers 6's name of the pooling.
        seed: Of the random weights.
    """
    torch.manual_seed(seed)
    folder = parent / layout.card.split("/")[-1]
    shutil.rmtree(folder, ignore_errors=True)
    layout.backbone().save_pretrained(folder)
    make_tokenizer(layout.vocabulary).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [(f"{index}_Dense", "Dense") for index in range(2, 2 + len(layout.heads))]
    if layout.normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    _write(folder / "modules.json", modules)
    pooling: dict[str, Any] = {"word_embedding_dimension": HIDDEN}
    if old_pooling:
        pooling |= {flag: name == layout.pooling for name, flag in POOLING_FLAGS.items()}
    else:
        pooling = {"embedding_dimension": HIDDEN, "pooling_mode": layout.pooling, "include_prompt": True}
    _write(folder / "1_Pooling" / "config.json", pooling)
    for index, (size, width) in enumerate(layout.heads, start=2):
        activation = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
        _write(folder / f"{index}_Dense" / "config.json", {"in_features": size, "out_features": width, **activation})
        save_file({"linear.weight": torch.randn(width, size)}, folder / f"{index}_Dense" / "model.safetensors")
    about: dict[str, Any] = {"__version__": {"sentence_transformers": "2.2.2", "transformers": "4.28.1"}}
    if layout.prompts is not None:
        about |= {"prompts": layout.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", about)
    if layout.max_seq_length:
        limits = {"max_seq_length": layout.max_seq_length, "do_lower_case": False}
        _write(folder / "sentence_bert_config.json", limits)
    return folder


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
