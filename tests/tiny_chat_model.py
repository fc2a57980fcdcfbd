"""Tiny random chat models, saved like real ones: they load and generate as those do, but their text means nothing."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "[UNK]", "<|system|>", "<|user|>", "<|assistant|>"]
CHARACTERS = "试用期的员工可以请年假吗公司每给十天出差住宿不超过四百五元只资料回答，。？abcdefghijklmnopqrstuvwxyzH<|> "
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if suffix %}{{ suffix }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny_glm(folder: Path, *, characters: Iterable[str] = CHARACTERS, context: int = 96) -> Path:
    """Save a random Glm (2 layers, 32 wide) whose tokens are single characters."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(set(characters))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    _save_tokenizer(core, folder)
    torch.manual_seed(3)
    config = GlmConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=[0],
    )
    GlmForCausalLM(config).save_pretrained(folder)
    return folder


def save_tiny_byte_llama(folder: Path) -> Path:
    """Save a random Llama (2 layers, 32 wide) whose tokens are single bytes: a Chinese character takes three."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    _save_tokenizer(core, folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _save_tokenizer(core: Tokenizer, folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=SPECIAL[0], unk_token=SPECIAL[1], additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
