"""Pruned vocabularies: what stays, and that a text of kept pieces is cut as before."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from luotuo_integrations.training.vocabulary import (
    count_pieces,
    is_han,
    is_kept_character,
    needed_pieces,
    piece_texts,
    prune_tokenizer,
    select_pieces,
)

SPECIAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]"]
WORD_PIECES = [*SPECIAL, "驼", "##驼", "骆", "##骆", "camel", "cam", "##el", "##s", "walk", "##ing", "[MASK]"]
UNIGRAM = [
    *[(text, 0.0) for text in ("<s>", "<pad>", "</s>", "<unk>")],
    *[("▁", -3.0), ("骆", -8.0), ("驼", -8.1), ("骆驼", -9.0), ("沙漠", -9.5), ("走", -6.0), ("▁walk", -7.0)],
    *[("沙", -11.0), ("ing", -6.5), ("罕见词组", -14.0), ("<mask>", 0.0)],
]


def word_piece_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({text: i for i, text in enumerate(WORD_PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.add_tokens(["新词"])
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(UNIGRAM, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    template = processors.TemplateProcessing(single="<s> $A <mask>", special_tokens=[("<s>", 0), ("<mask>", 14)])
    tokenizer.post_processor = processors.Sequence([template])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "<pad>", "</s>", "<unk>")])
    return tokenizer


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Tokens with the special ones, each looked up by its id."""
    return [tokenizer.id_to_token(index) for index in tokenizer.encode(text).ids]


def test_which_pieces_earn_their_place_by_themselves() -> None:
    assert all(map(is_kept_character, "▁aZ7~骆駱，「㎡éあ😀𠮷"))
    assert not any(map(is_kept_character, ["", "骆驼", "▁a", "в", "한"]))
    assert is_han("▁骆驼")
    assert not is_han("▁")


def test_counts_equal_a_loop_over_single_texts() -> None:
    tokenizer = word_piece_tokenizer()
    texts = ["骆驼 camels", "walking 驼", "", "骆骆骆"] * 3

    def encode(batch: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch(batch, add_special_tokens=False)]

    expected = [0] * 17
    tokenizer.no_padding()
    for text in texts:
        for index in tokenizer.encode(text, add_special_tokens=False).ids:
            expected[index] += 1
    assert count_pieces(encode, 17, iter(texts), batch_size=5).tolist() == expected
    assert expected[7] == 12  # 骆


def test_han_words_come_before_more_frequent_others() -> None:
    pieces = ["[X]", "a", "骆驼", "沙漠", "walk", "camel", "herd"]
    counts = np.array([0, 0, 1, 0, 9, 5, 9])
    assert select_pieces(pieces, counts, 4, needed=[0]) == [0, 1, 2, 4]
    assert select_pieces(pieces, counts, 5, needed=[0]) == [0, 1, 2, 4, 6]


def test_a_limit_that_cannot_be_met_is_told_as_it_was_typed() -> None:
    with pytest.raises(ValueError, match="2 pieces are always kept; vocab:1 is too few"):
        select_pieces(["a", "b", "cc"], np.array([1, 1, 1]), 1, option="vocab:")
    with pytest.raises(ValueError, match="only 2 different pieces, not 3; give more text or a lower vocab:N"):
        select_pieces(["a", "b", "cc"], np.array([0, 1, 0]), 3, option="vocab:")


def test_continued_characters_count_as_characters() -> None:
    texts = piece_texts(word_piece_tokenizer())
    assert texts[5:9] == ["驼", "驼", "骆", "骆"]
    assert texts[WORD_PIECES.index("##el")] == "el"
    assert texts[-1] == "新词"


def test_needed_pieces_are_the_special_ones_and_the_lowest_score() -> None:
    assert needed_pieces(word_piece_tokenizer()) == {0, 2, 3, 4, 15, 16}
    assert needed_pieces(unigram_tokenizer()) == {0, 1, 2, 3, 13, 14}  # 14: put around texts; 13: the lowest score


def test_byte_pieces_are_needed() -> None:
    pieces = [("<unk>", 0.0), *[(f"<0x{byte:02X}>", -20.0) for byte in range(256)], ("ab", -30.0), ("abc", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    assert needed_pieces(tokenizer) == set(range(258))


def test_a_word_piece_vocabulary_is_renumbered_with_all_that_names_ids() -> None:
    tokenizer = word_piece_tokenizer()
    kept = [index for index, text in enumerate(WORD_PIECES) if text not in {"[unused1]", "camel", "##ing"}] + [16]
    pruned = prune_tokenizer(tokenizer, kept)
    expected = [text for text in WORD_PIECES if text not in {"[unused1]", "camel", "##ing"}] + ["新词"]
    assert pruned.get_vocab(with_added_tokens=True) == {text: index for index, text in enumerate(expected)}
    assert pruned.get_vocab_size() == 14
    description = json.loads(pruned.to_str())
    assert description["post_processor"]["cls"] == ["[CLS]", 2]
    assert description["post_processor"]["sep"] == ["[SEP]", 3]
    assert [token["id"] for token in description["added_tokens"]] == [0, 1, 2, 3, 12, 13]
    for text in ("骆驼 walk", "骆 walks 驼[MASK]", "新词骆", "大象"):
        assert tokens(pruned, text) == tokens(tokenizer, text)
    assert tokens(pruned, "camel") == ["[CLS]", "cam", "##el", "[SEP]"]
    padded = pruned.encode_batch(["骆驼", ""])
    assert padded[1].ids == [2, 3, 0, 0]


def test_a_unigram_vocabulary_cuts_texts_of_kept_pieces_as_before() -> None:
    tokenizer = unigram_tokenizer()
    kept = [index for index, (text, _) in enumerate(UNIGRAM) if text not in {"沙", "ing", "走"}]
    pruned = prune_tokenizer(tokenizer, kept)
    for text in ("骆驼沙漠", "骆骆驼 walk", "罕见词组", "骆驼象骆", "沙漠"):
        assert tokens(pruned, text) == tokens(tokenizer, text)
        assert [kept[index] for index in pruned.encode(text).ids] == tokenizer.encode(text).ids
    assert tokens(pruned, "骆驼走沙漠") == ["<s>", "▁", "骆驼", "<unk>", "沙漠", "<mask>"]
    assert json.loads(pruned.to_str())["model"]["unk_id"] == 3


def test_without_the_lowest_score_an_unknown_character_would_be_cheaper() -> None:
    """Why needed_pieces holds it: an unknown costs 10 more than the lowest score, 50 with "rare" and 34 without."""
    pieces = [("<unk>", 0.0), ("ab", -24.0), ("c", -24.0), ("bc", -1.0), ("rare", -40.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    assert tokens(tokenizer, "abc") == ["ab", "c"]
    assert tokens(Tokenizer(models.Unigram(pieces[:-1], unk_id=0)), "abc") == ["<unk>", "bc"]
    assert tokens(prune_tokenizer(tokenizer, [0, 1, 2, 3, 4]), "abc") == ["ab", "c"]
    with pytest.raises(ValueError, match=r"missing are \[4\]"):
        prune_tokenizer(tokenizer, [0, 1, 2, 3])


def test_ids_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="kept must be ascending"):
        prune_tokenizer(unigram_tokenizer(), [1, 0, 2, 3, 13, 14])


def test_merged_pieces_cannot_be_pruned() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    for refuse in (piece_texts, needed_pieces):
        with pytest.raises(ValueError, match=r"a BPE vocabulary cannot be pruned.*Only Unigram, WordPiece, WordLevel"):
            refuse(tokenizer)
    with pytest.raises(ValueError, match="leave the vocabulary whole"):
        prune_tokenizer(tokenizer, [0, 1])


def test_the_tokenizer_itself_stays_as_it_was() -> None:
    tokenizer = word_piece_tokenizer()
    before = tokenizer.to_str()
    prune_tokenizer(tokenizer, sorted(needed_pieces(tokenizer)))
    assert tokenizer.to_str() == before
