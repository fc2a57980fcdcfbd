"""The choice of pieces, and a whole conversion of a made-up source."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece", reason="the converter takes the character map from sentencepiece")

from luotuo_integrations.training.vocabulary import is_han
from training.convert_e5 import choose_pieces, vocabulary_of
from training.e5_binary import Piece
from training.prune_vocabulary import (
    SPECIAL_PIECES,
    build_tokenizer,
    count_pieces,
    ids_of,
    is_always_kept,
    read_corpus,
    select_pieces,
)

SPECIAL = [Piece(text, 0.0) for text in SPECIAL_PIECES]
WORDS = [
    "▁",
    "骆",
    "驼",
    "骆驼",
    "駱駝",
    "沙漠",
    "▁camel",
    "▁walk",
    "в",
    "пустыня",
    "k",
    "。",
    ":",
    "▁que",
    "ry",
    "▁passage",
]
SOURCE = SPECIAL + [Piece(text, -5.0 - index / 10) for index, text in enumerate(WORDS)]


def texts_of(pieces: list[Piece], ids: list[int]) -> list[str]:
    return [pieces[index].text for index in ids]


@pytest.mark.parametrize(
    "text", ["<s>", "▁", "a", "Z", "7", "~", "骆", "駱", "，", "。", "「", "㎡", "é", "λ", "あ", "😀", "𠮷"]
)
def test_single_characters_are_kept(text: str) -> None:
    assert is_always_kept(text)


@pytest.mark.parametrize("text", ["骆驼", "ab", "▁a", "в", "ก", "한", "\x7f", ""])
def test_other_pieces_must_earn_their_place(text: str) -> None:
    assert not is_always_kept(text)


def test_han_words() -> None:
    assert is_han("骆驼")
    assert is_han("▁骆驼")
    assert not any(is_han(text) for text in ("", "▁", "camel", "骆驼s", "3年", "骆驼。", "あ"))


def test_counts_equal_a_loop() -> None:
    tokenizer = build_tokenizer(SOURCE)
    texts = ["骆驼 camel", "骆驼。沙漠。", "驼", ""] * 3
    counts = np.zeros(len(SOURCE), dtype=int)
    for text in texts:
        for index in tokenizer.encode(text, add_special_tokens=False).ids:
            counts[index] += 1
    np.testing.assert_array_equal(count_pieces(tokenizer, iter(texts), batch_size=5), counts)
    assert counts[ids_of(SOURCE, ["骆驼"])] == 6


def test_rare_han_words_come_before_frequent_others() -> None:
    counts = np.zeros(len(SOURCE), dtype=np.int64)
    for text, count in {"▁camel": 900, "▁walk": 900, "пустыня": 5, "骆驼": 50, "駱駝": 1}.items():
        counts[ids_of(SOURCE, [text])] = count
    always = [index for index, piece in enumerate(SOURCE) if is_always_kept(piece.text)]
    kept = select_pieces(SOURCE, counts, len(always) + 3)
    assert kept == sorted(kept)
    assert set(texts_of(SOURCE, kept)) - set(texts_of(SOURCE, always)) == {"骆驼", "駱駝", "▁camel"}  # not 沙漠: unseen


def test_needed_pieces_stay() -> None:
    counts = np.zeros(len(SOURCE), dtype=np.int64)
    needed = ids_of(SOURCE, ["▁que", "ry"])
    always = {index for index, piece in enumerate(SOURCE) if is_always_kept(piece.text)}
    assert select_pieces(SOURCE, counts, len(always) + 2, needed) == sorted(always | set(needed))


def test_limits_that_cannot_be_met() -> None:
    counts = np.ones(len(SOURCE), dtype=np.int64)
    with pytest.raises(ValueError, match="always kept; --pieces 5 is too few"):
        select_pieces(SOURCE, counts, 5)
    with pytest.raises(ValueError, match="give more text or a lower --pieces"):
        select_pieces(SOURCE, counts, len(SOURCE) + 1)


def test_the_prompts_survive_any_corpus() -> None:
    kept = choose_pieces(SOURCE, ["骆驼骆驼", "camel walk"], limit=len(SPECIAL) + 11)
    assert {"▁que", "ry", ":", "▁passage", "骆驼"} <= set(texts_of(SOURCE, kept))


def test_pieces_of_a_tokenizer_file_are_found_again(tmp_path: Path) -> None:
    kept = [*range(4), 4, 7, 10]
    build_tokenizer([SOURCE[index] for index in kept]).save(str(tmp_path / "tokenizer.json"))
    assert ids_of(SOURCE, vocabulary_of(tmp_path / "tokenizer.json")) == kept
    with pytest.raises(ValueError, match=r"1 pieces are not in the source vocabulary, for instance \['大象'"):
        ids_of(SOURCE, ["骆驼", "大象"])


def test_the_special_pieces_come_first() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        build_tokenizer(SOURCE[1:])


def test_a_corpus_is_read_in_order_up_to_its_limit(tmp_path: Path) -> None:
    for name, source in (("b_news", "报纸"), ("a_books", "书")):
        lines = [json.dumps({"text": f"{name}{index}骆驼", "source": source}, ensure_ascii=False) for index in range(9)]
        with lzma.open(tmp_path / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
    assert list(read_corpus(tmp_path, 15)) == ["a_books0骆驼", "a_books1骆驼", "b_news0骆驼", "b_news1骆驼"]
    assert list(read_corpus(tmp_path, 5, skip=["书"])) == ["b_news0骆驼"]
    assert list(read_corpus(tmp_path, 5, skip=["b_news"])) == ["a_books0骆驼"]
    (tmp_path / "空").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.jsonl\.xz file"):
        next(read_corpus(tmp_path / "空", 5))
