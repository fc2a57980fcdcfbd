"""What tests share: a tiny random model of each kind, built here, so that nothing is downloaded."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from luotuo_integrations.model_folder import DenseSettings, ModelSettings
from luotuo_integrations.modeling import EmbeddingModel, make_head

ALPHABET = "试用期员工可以请年假吗出差住宿标准每晚不超过四百五十元今天天气很好你是谁的公司在哪里报销发票需要什么材料"


def character_tokenizer(bos: str | None = "[CLS]", eos: str | None = "[SEP]") -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; special tokens around the text where names are given."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(ALPHABET)), *"abcdefghijklmnopqrstuvwxyz0123456789:. "]
    vocabulary = {token: index for index, token in enumerate(names)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos or eos:
        template = " ".join(token for token in (bos, "$A", eos) if token)
        special = [(token, vocabulary[token]) for token in (bos, eos) if token]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
    )


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore Ctrl-C, and some tests press it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _log_untouched() -> None:
    """The command line and the benchmarks set up this package's log, some of them in fixtures of a whole file."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "luotuo_integrations" and isinstance(logger, logging.Logger):
            logger.handlers = []
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random BERT: 2 layers, 16 wide, mean pooling, a head to 24 numbers, query prompt 'query: '."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    settings = ModelSettings(
        pooling="mean", max_tokens=128, prompts={"query": "query: ", "passage": ""}, heads=[DenseSettings("2_Dense")]
    )
    head = make_head(torch.randn(24, 16, generator=generator))
    folder = tmp_path_factory.mktemp("models") / "小模型"
    return EmbeddingModel(BertModel(config, add_pooling_layer=False), settings, [head]).save(
        folder, character_tokenizer()
    )
