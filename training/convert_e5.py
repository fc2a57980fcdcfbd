"""Make the bundled model folder from the 4-bit file of multilingual-e5-small.

The 4-bit blocks are copied as they are, so the kept part of the model is exactly the source's; what changes is the
vocabulary, which is pruned to the pieces of Chinese and English text. The same input gives the same bytes.

    python -m training.convert_e5 --source e5-small-q4.bin --corpus corpus/ --pieces 24000 --output luotuo-interim/
    python -m training.convert_e5 --source e5-small-q4.bin --pieces-from tokenizer.json --output luotuo-interim/
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from luotuo_integrations.quantization import QuantizedTensor, write_packed
from training.e5_binary import E5Binary, Piece, read_e5_binary
from training.prune_vocabulary import (
    PROMPTS,
    SPECIAL_PIECES,
    build_tokenizer,
    count_pieces,
    ids_of,
    read_corpus,
    select_pieces,
)

MASK = "<mask>"  # of use in pre-training only: left out
LAYER_NAMES = {  # name in the file -> name in transformers' BertLayer
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
LAYER_NORMS = ("aln", "oln")


def bert_weights(binary: E5Binary, kept: list[int]) -> dict[str, torch.Tensor | QuantizedTensor]:
    """The weights under the names of transformers' BertModel, without a pooler.

    Args:
        binary: The source.
        kept: Ids of the kept pieces: row i of the new word embedding is row ``kept[i]`` of the source's.

    Returns:
        4-bit blocks for the matrices, float16 for everything else (exact: the source's values fit float16).
    """
    hidden = binary.hidden
    words = binary.tensor("emb.word", hidden)
    if not isinstance(words, QuantizedTensor):
        raise ValueError(f"{binary.path}: the word embedding is not 4-bit. Give the file e5-small-q4.bin")
    rows = torch.tensor(kept)
    weights: dict[str, torch.Tensor | QuantizedTensor] = {
        "embeddings.word_embeddings.weight": QuantizedTensor(words.nibbles[rows], words.scales[rows]),
        "embeddings.position_embeddings.weight": binary.tensor("emb.pos", hidden),
        "embeddings.token_type_embeddings.weight": binary.tensor("emb.type", hidden),
        "embeddings.LayerNorm.weight": binary.tensor("emb.ln.w"),
        "embeddings.LayerNorm.bias": binary.tensor("emb.ln.b"),
    }
    for layer in range(binary.layers):
        for source, target in LAYER_NAMES.items():
            columns = None if source in LAYER_NORMS else binary.feed_forward if source == "fo" else hidden
            weights[f"encoder.layer.{layer}.{target}.weight"] = binary.tensor(f"l{layer}.{source}.w", columns)
            weights[f"encoder.layer.{layer}.{target}.bias"] = binary.tensor(f"l{layer}.{source}.b")
    return {name: _exact_half(name, value) for name, value in weights.items()}


def _exact_half(name: str, value: torch.Tensor | QuantizedTensor) -> torch.Tensor | QuantizedTensor:
    if isinstance(value, QuantizedTensor):
        return value
    half = value.half()
    if not torch.equal(half.float(), value):
        raise ValueError(f"{name} does not fit float16 without loss: store it as float32")
    return half


def folder_files(binary: E5Binary, piece_count: int) -> dict[str, object]:
    """The JSON files of the folder, in the layout of transformers and sentence-transformers."""
    bos, pad, eos, unk = SPECIAL_PIECES
    hidden, positions = binary.hidden, binary.positions
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": piece_count,
            "hidden_size": hidden,
            "num_hidden_layers": binary.layers,
            "num_attention_heads": binary.heads,
            "intermediate_size": binary.feed_forward,
            "hidden_act": "gelu",
            "layer_norm_eps": float(f"{binary.layer_norm_epsilon:.6g}"),  # a float32 in the file
            "max_position_embeddings": positions,
            "type_vocab_size": binary.token_types,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "pad_token_id": SPECIAL_PIECES.index(pad),
        },
        "tokenizer_config.json": {
            # Without this line transformers takes a folder of model_type "bert" for WordPiece.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": positions,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            "bos_token": bos,
            "cls_token": bos,
            "eos_token": eos,
            "sep_token": eos,
            "pad_token": pad,
            "unk_token": unk,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": False,
            "include_prompt": True,
        },
        "sentence_bert_config.json": {"max_seq_length": positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            # sentence-transformers asks for "document" where this package says "passage".
            "prompts": PROMPTS | {"document": PROMPTS["passage"]},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def choose_pieces(pieces: list[Piece], texts: Iterable[str], limit: int) -> list[int]:
    """Ids of the pieces to keep, by their counts in these texts; the pieces of the prompts are among them."""
    tokenizer = build_tokenizer(pieces)
    prompts = tokenizer.encode_batch(list(PROMPTS.values()), add_special_tokens=False)
    needed = [index for prompt in prompts for index in prompt.ids]
    return select_pieces(pieces, count_pieces(tokenizer, texts), limit, needed)


def vocabulary_of(tokenizer_file: Path) -> list[str]:
    """The pieces of a tokenizer file, in the order of their ids."""
    vocabulary = Tokenizer.from_file(str(tokenizer_file)).get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def convert(
    source: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The file e5-small-q4.bin.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="Model folder to write.")],
    corpus: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of *.jsonl.xz texts to count pieces in.")
    ] = None,
    pieces_from: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A tokenizer.json: take its pieces, count nothing.")
    ] = None,
    pieces: Annotated[int, typer.Option(min=1, help="How many pieces to keep.")] = 24_000,
    characters_per_file: Annotated[int, typer.Option(min=1, help="Read so much of each corpus file.")] = 2_000_000,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave out corpus files and lines whose name or source contains this.")
    ] = None,
) -> None:
    """Make a model folder: the 4-bit blocks of multilingual-e5-small, its vocabulary pruned to Chinese and English."""
    binary = read_e5_binary(source)
    all_pieces = [piece for piece in binary.pieces if piece.text != MASK]  # it is the last one: ids stay
    if corpus is not None and pieces_from is None:
        kept = choose_pieces(all_pieces, read_corpus(corpus, characters_per_file, skip or []), pieces)
    elif pieces_from is not None and corpus is None:
        kept = ids_of(all_pieces, vocabulary_of(pieces_from))
    else:
        raise typer.BadParameter("give either --corpus, to choose the pieces, or --pieces-from, to take chosen ones")
    tokenizer = build_tokenizer([all_pieces[index] for index in kept])
    for name, content in folder_files(binary, len(kept)).items():
        write_text(output / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    write_text(output / "tokenizer.json", tokenizer.to_str())
    write_packed(output / "packed.safetensors", bert_weights(binary, kept))
    megabytes = (output / "packed.safetensors").stat().st_size / 1e6
    typer.echo(f"{output}: {len(kept)} pieces, {megabytes:.1f} MB of weights")


if __name__ == "__main__":
    typer.run(convert)
