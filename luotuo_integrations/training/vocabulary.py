"""A tokenizer's vocabulary, pruned: which pieces stay, and the tokenizer of those alone.

Pieces keep their scores and their order, so a text whose pieces are all kept is cut exactly as before; another text
gets the best cut that the kept pieces allow.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

SPACE = "▁"
KINDS = ("Unigram", "WordPiece", "WordLevel")
# Single characters in these ranges are kept whatever the texts say: texts are mostly Simplified and would drop
# Traditional and rare characters.
KEPT_RANGES = (
    (0x0021, 0x007E),  # ASCII
    (0x00A0, 0x024F),  # Latin with diacritics, as in pinyin
    (0x0370, 0x03FF),  # Greek
    (0x2000, 0x27FF),  # punctuation, currency, arrows, mathematics, enclosed numbers, boxes, symbols
    (0x2900, 0x2BFF),  # more arrows and symbols
    (0x2E80, 0x33FF),  # Han radicals, Chinese punctuation, kana, bopomofo, enclosed Han
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFE30, 0xFE4F),  # vertical punctuation
    (0xFF00, 0xFFEF),  # full-width forms
    (0x1F000, 0x1FAFF),  # emoji
    (0x20000, 0x3FFFF),  # Han, rare
)


def is_kept_character(text: str) -> bool:
    """Whether a piece is a single character of Chinese or English text, or the space mark ``▁`` alone."""
    if text == SPACE:
        return True
    return len(text) == 1 and any(first <= ord(text) <= last for first, last in KEPT_RANGES)


def is_han(text: str) -> bool:
    """Whether a piece is a word of Han characters, with or without a leading space mark."""
    word = text.removeprefix(SPACE)
    return bool(word) and all("\u3400" <= character <= "\u9fff" for character in word)


def count_pieces(
    encode: Callable[[list[str]], Iterable[Sequence[int]]], size: int, texts: Iterable[str], batch_size: int = 2000
) -> NDArray[np.int64]:
    """How often each piece occurs in texts.

    Args:
        encode: Texts to token ids, without special tokens, one sequence a text.
        size: Number of ids V; each id is below it.
        texts: The texts, read once, ``batch_size`` at a time.
        batch_size: Texts handed to ``encode`` together, at least 1.

    Returns:
        int64 (V,).
    """
    counts = np.zeros(size, dtype=np.int64)
    batch: list[str] = []

    def add() -> None:
        for ids in encode(batch):
            np.add.at(counts, ids, 1)
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == batch_size:
            add()
    add()
    return counts


def select_pieces(
    pieces: Sequence[str],
    counts: NDArray[np.int64],
    limit: int,
    needed: Iterable[int] = (),
    *,
    option: str = "limit=",
) -> list[int]:
    """Choose pieces: single characters, ``needed``, Han words that occur at all, then the most frequent others.

    Every Han word that occurs comes before any other piece, however rare it is, because texts that are mostly
    Simplified make common Traditional words look rare.

    Args:
        pieces: What each id stands for, without the mark of a continued word; ``""`` where an id is not used.
        counts: Occurrences of each piece (V,).
        limit: How many pieces to keep.
        needed: Ids of pieces that must stay, for instance the special tokens and those of the prompts.
        option: What the user types before the limit, for the messages.

    Returns:
        Ids of the kept pieces, ascending; of equally frequent pieces the one with the lower id comes first.

    Raises:
        ValueError: If more pieces than the limit must stay, or the texts have fewer different pieces than the limit.
    """
    kept = {index for index, piece in enumerate(pieces) if is_kept_character(piece)} | set(needed)
    if len(kept) > limit:
        msg = f"{len(kept)} pieces are always kept; {option}{limit} is too few"
        raise ValueError(msg)
    by_count = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] > 0]
    han_first = sorted(by_count, key=lambda index: not is_han(pieces[index]))  # stable
    for index in han_first:
        if len(kept) == limit:
            break
        kept.add(index)
    if len(kept) < limit:
        msg = (
            f"the texts and the characters that are always kept have only {len(kept)} different pieces, not {limit}; "
            f"give more text or a lower {option}N"
        )
        raise ValueError(msg)
    return sorted(kept)


def piece_texts(tokenizer: Tokenizer) -> list[str]:
    """What each id of a tokenizer stands for, without WordPiece's mark of a continued word (``##``).

    Returns:
        One text an id, V in all; ``""`` where an id is not used.

    Raises:
        ValueError: If the tokenizer's model is none of ``KINDS``.
    """
    mark = _describe(tokenizer)["model"].get("continuing_subword_prefix") or ""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    texts = [""] * (max(vocabulary.values()) + 1)
    for text, index in vocabulary.items():
        texts[index] = text.removeprefix(mark)
    return texts


def needed_pieces(tokenizer: Tokenizer) -> set[int]:
    """Ids of a tokenizer that must stay, or it would no longer work, or cut texts in another way.

    They are the special and other added tokens, those that are put around a text, the unknown token, byte pieces, and
    of a Unigram vocabulary the piece of the lowest score: what an unknown character costs hangs on it.

    Raises:
        ValueError: If the tokenizer's model is none of ``KINDS``.
    """
    description = _describe(tokenizer)
    model = description["model"]
    needed = {token["id"] for token in description["added_tokens"]}
    needed.update(_processor_ids(description["post_processor"] or {}))
    if description["padding"]:
        needed.add(description["padding"]["pad_id"])
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        needed.add(scores.index(min(scores)))
        needed |= {model["unk_id"]} - {None}
        if model["byte_fallback"]:
            names = {f"<0x{byte:02X}>" for byte in range(256)}
            needed |= {index for index, (text, _) in enumerate(model["vocab"]) if text in names}
    elif model["unk_token"] in model["vocab"]:
        needed.add(model["vocab"][model["unk_token"]])
    return needed


def prune_tokenizer(tokenizer: Tokenizer, kept: Sequence[int]) -> Tokenizer:
    """Make the tokenizer of some pieces alone; everything else of it stays as it is.

    A text whose pieces are all kept is cut as before, where those of `needed_pieces` are kept too. For WordPiece there
    is one exception, a word that was unknown: fewer pieces may happen to fit it.

    Args:
        tokenizer: A tokenizer whose model is one of ``KINDS``. It is left as it is.
        kept: Ids of the kept pieces, ascending: id ``kept[i]`` becomes ``i``.

    Returns:
        The new tokenizer.

    Raises:
        ValueError: If the model is of another kind, ``kept`` is not ascending, or lacks an id of `needed_pieces`.
    """
    description = _describe(tokenizer)
    kept = [int(index) for index in kept]
    missing = sorted(needed_pieces(tokenizer) - set(kept))
    if missing or kept != sorted(set(kept)):
        msg = f"kept must be ascending and hold every id of needed_pieces(tokenizer); missing are {missing[:5]}"
        raise ValueError(msg)
    new = {old: index for index, old in enumerate(kept)}
    model = description["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for index, piece in enumerate(model["vocab"]) if index in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = {text: new[index] for text, index in model["vocab"].items() if index in new}
    for token in description["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_processor(description["post_processor"] or {}, new)
    if description["padding"]:
        description["padding"]["pad_id"] = new[description["padding"]["pad_id"]]
    pruned: Tokenizer = Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
    old = tokenizer.get_vocab(with_added_tokens=True)
    if pruned.get_vocab(with_added_tokens=True) != {text: new[index] for text, index in old.items() if index in new}:
        msg = "the ids of this tokenizer have gaps that the tokenizers library fills in another order: it stays whole"
        raise ValueError(msg)
    return pruned


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer.json of it would hold."""
    description: dict[str, Any] = json.loads(tokenizer.to_str())
    kind = description["model"]["type"]
    if kind not in KINDS:
        msg = (
            f"a {kind} vocabulary cannot be pruned: its pieces are made out of one another. Only {', '.join(KINDS)} "
            "can; leave the vocabulary whole, or choose another base"
        )
        raise ValueError(msg)
    return description


def _processors(processor: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A post-processor, or those that a sequence of them holds."""
    yield processor
    for inner in processor.get("processors", ()):
        yield from _processors(inner)


def _processor_ids(processor: dict[str, Any]) -> Iterator[int]:
    for one in _processors(processor):
        for special in one.get("special_tokens", {}).values():
            yield from special["ids"]
        yield from (one[name][1] for name in ("sep", "cls") if name in one)


def _renumber_processor(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    for one in _processors(processor):
        for special in one.get("special_tokens", {}).values():
            special["ids"] = [new[index] for index in special["ids"]]
        for name in ("sep", "cls"):
            if name in one:
                one[name][1] = new[one[name][1]]
