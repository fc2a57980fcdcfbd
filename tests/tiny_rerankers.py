"""Tiny random rerankers of each class, saved like real ones: they judge as those do, but it means nothing."""

import json
from pathlib import Path

import torch
from hub_layouts import make_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# What the merges of a byte-level vocabulary are learnt from: marks with the line break after them, words after a space.
QWEN_TEXT = [
    "yes no yes no\n",
    'system user assistant Judge whether the Document meets the requirements based on the Query "yes" or "no".\n',
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    "<Query>: 试用期可以请年假吗？\n<Document>: 年假\n",
    "<Document>: 试用期员工每月有一天病假。\n<Document>: 出差住宿每晚不超过四百五十元！\n<Document>: 《报销办法》\n",
]


def save_bert(folder: Path, *, labels: int = 1, positions: int = 128) -> Path:
    """A BERT classifier: token types tell query and passage apart."""
    torch.manual_seed(1)
    config = BertConfig(vocab_size=400, num_labels=labels, max_position_embeddings=positions, **SIZES)
    BertForSequenceClassification(config).save_pretrained(folder)
    bert_tokenizer(positions).save_pretrained(folder)
    _name_inputs(folder, "input_ids", "token_type_ids", "attention_mask")
    return folder


def bert_tokenizer(max_tokens: int = 128) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer("bert", max_tokens=max_tokens)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def save_xlm_roberta(folder: Path, *, labels: int = 1) -> Path:
    """An XLM-R classifier, as bge-reranker-base is: two marks between the texts, no types, positions from 2 on."""
    torch.manual_seed(2)
    config = XLMRobertaConfig(
        vocab_size=400,
        num_labels=labels,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **SIZES,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = make_tokenizer("roberta", max_tokens=8192)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")],
    )
    tokenizer.save_pretrained(folder)
    _name_inputs(folder, "input_ids", "attention_mask")
    return folder


def save_qwen3(folder: Path, *, padding_side: str = "left", tied: bool = True, classifier: bool = False) -> Path:
    """A Qwen3 that writes text, or that classifies after the same prompt, with byte-level tokens cut by Qwen's rule."""
    tokenizer = qwen_tokenizer(padding_side)
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        num_labels=1,
        **SIZES,
    )
    model = Qwen3ForSequenceClassification(config) if classifier else Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen_tokenizer(padding_side: str = "left") -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=QWEN_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(QWEN_TEXT * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=QWEN_SPECIAL[1:],
        padding_side=padding_side,
        model_max_length=100_000,
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def _name_inputs(folder: Path, *names: str) -> None:
    """Say which inputs the model takes, as the tokenizer's class does for a real model."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names}))
