"""Choose the pieces of a Unigram vocabulary that Chinese and English text needs, and build the tokenizer of them.

Scores are kept as they are, so a text whose best pieces are all kept is cut exactly as before; another text gets the
best cut that the kept pieces allow.
"""

import json
import lzma
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from luotuo_integrations.training import vocabulary
from training.e5_binary import Piece

SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in the source
PROMPTS = {"query": "query: ", "passage": "passage: "}


def nmt_nfkc_charsmap() -> bytes:
    """The compiled ``nmt_nfkc`` character map, taken from sentencepiece by training a toy model."""
    import sentencepiece  # a tool of the conversion only

    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "toy"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["骆驼走过沙漠。", "a camel walks."] * 20),
            model_prefix=str(prefix),
            vocab_size=40,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc",
            minloglevel=2,
        )
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(prefix.with_suffix(".model").read_bytes())
        charsmap: bytes = model.normalizer_spec.precompiled_charsmap
    return charsmap


def build_tokenizer(pieces: Sequence[Piece]) -> Tokenizer:
    """The tokenizer of XLM-RoBERTa's kind over these pieces.

    Text is normalized by ``nmt_nfkc``, split at white space, marked with ``▁``, cut by Unigram (an unknown character
    scores 10 below the lowest piece; consecutive ones become one ``<unk>``) and wrapped in ``<s>`` and ``</s>``.

    Args:
        pieces: The vocabulary; the first four are the special pieces.

    Raises:
        ValueError: If the special pieces are not where they must be.
    """
    head = tuple(piece.text for piece in pieces[: len(SPECIAL_PIECES)])
    if head != SPECIAL_PIECES:
        raise ValueError(f"the vocabulary must begin with {SPECIAL_PIECES}, not {head}")
    tokenizer = Tokenizer(models.Unigram([(piece.text, piece.score) for piece in pieces], unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(nmt_nfkc_charsmap())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL_PIECES])
    return tokenizer


def read_corpus(folder: Path, characters_per_file: int, skip: Sequence[str] = ()) -> Iterator[str]:
    """Texts of every ``*.jsonl.xz`` file of a folder, in the order of the names.

    Args:
        folder: Folder of files with one JSON object a line: ``{"text", "source"}``.
        characters_per_file: Reading a file stops after so many characters, so that no source dominates.
        skip: Leave out files and lines whose file name or ``source`` contains one of these strings.

    Raises:
        FileNotFoundError: If the folder has no such file.
    """
    files = sorted(folder.glob("*.jsonl.xz"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.jsonl.xz file")
    for path in files:
        if any(word in path.name for word in skip):
            continue
        left = characters_per_file
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if any(word in record.get("source", "") for word in skip):
                    continue
                yield record["text"]
                left -= len(record["text"])
                if left <= 0:
                    break


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str], batch_size: int = 2000) -> np.ndarray:
    """How often each piece occurs in the best cut of the texts.

    Returns:
        int64 (pieces,).
    """

    def encode(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    return vocabulary.count_pieces(encode, tokenizer.get_vocab_size(), texts, batch_size)


def is_always_kept(text: str) -> bool:
    """Whether a piece is kept whatever the corpus says: the single characters of Chinese and English text."""
    return text in SPECIAL_PIECES or vocabulary.is_kept_character(text)


def select_pieces(pieces: Sequence[Piece], counts: np.ndarray, limit: int, needed: Iterable[int] = ()) -> list[int]:
    """Choose pieces: single characters, ``needed``, Han words that occur at all, then the most frequent others.

    The source has only some 9,400 Han words, so that keeping each that occurs costs English little.

    Args:
        pieces: The source vocabulary.
        counts: Occurrences of each piece (pieces,).
        limit: How many pieces to keep.
        needed: Ids of pieces that must stay, for instance those of the prompts.

    Returns:
        Ids of the kept pieces, ascending; of equally frequent pieces the one with the lower id comes first.

    Raises:
        ValueError: If the limit is below the number of characters that are always kept, or the corpus has fewer
            different pieces than the limit.
    """
    special = [index for index, piece in enumerate(pieces) if piece.text in SPECIAL_PIECES]
    texts = [piece.text for piece in pieces]
    return vocabulary.select_pieces(texts, counts, limit, {*special, *needed}, option="--pieces ")


def ids_of(pieces: Sequence[Piece], texts: Iterable[str]) -> list[int]:
    """Ids of the pieces with these texts, in the order of the texts.

    Raises:
        ValueError: If a text is no piece.
    """
    index = {piece.text: position for position, piece in enumerate(pieces)}
    texts = list(texts)
    missing = [text for text in texts if text not in index]
    if missing:
        raise ValueError(f"{len(missing)} pieces are not in the source vocabulary, for instance {missing[:5]}")
    return [index[text] for text in texts]
