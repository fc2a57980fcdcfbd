r"""Chinese tokens for keyword search: words, pairs of characters, or both, and where in the text they stand.

Tokenizers that split at ``\w+`` take a whole Chinese clause for one word, so they match nothing but exact copies. Here
documents and queries go through the same :class:`KeywordTokenizer`, which first folds what is written in several ways.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_args

from typing_extensions import Self

TokenizerKind = Literal["words", "bigrams", "both"]
Token = tuple[str, int, int]  # the folded token; text[start:end] is what the text has there

_FOLDED_CODES = range(0x80, 0x33480)  # up to the last block of Chinese characters
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
_OTHER = rf"[^\W_{_HAN}]"  # a letter or digit that is no Chinese character
_HAN_OR_OTHER_RUN = re.compile(rf"(?P<han>[{_HAN}]+)|{_OTHER}+")
_OTHER_PAIR = re.compile(_OTHER * 2)


def fold(text: object) -> str:
    """Write a text in one way, whichever way its characters were written; its length stays the same.

    Traditional characters become Simplified ones, character by character; full-width, circled and other forms of
    letters and digits become the plain ones (Ａ, ① and ² are a, 1 and 2; 一 is a word); letters become lower case, and
    a lone surrogate a space. The n-th character of the result stands for the n-th of the text.

    Args:
        text: Any text.

    Returns:
        A text of the same length.

    Raises:
        TypeError: If it is not a string.
    """
    if not isinstance(text, str):
        msg = f"text is {type(text).__name__}: {text!r:.80}; it must be one string"
        raise TypeError(msg)
    return text.lower() if text.isascii() else text.translate(_folding()).lower()


@cache
def _folding() -> dict[int, str]:
    """Code of each character that is folded to another -> that character; made once, in about 0.1 seconds."""
    from opencc import OpenCC  # here, because it is not needed before the first Chinese text

    simplified = OpenCC("t2s")
    characters = "\n".join(_plain(chr(code)) for code in _FOLDED_CODES)
    # Twice, because a few have a further step to go: 薴 -> 苧 -> 苎.
    folded = simplified.convert(simplified.convert(characters)).split("\n")
    return {code: character for code, character in zip(_FOLDED_CODES, folded, strict=True) if character != chr(code)}


def _plain(character: str) -> str:
    """The plain form of a character, if that is one character, else the character itself."""
    if "\ud800" <= character <= "\udfff":
        return " "  # the segmenter takes UTF-8, which has no lone surrogates
    digit = unicodedata.digit(character, None)
    plain = unicodedata.normalize("NFKC", character) if digit is None else str(digit)
    return plain.lower()[0] if len(plain) == 1 else character  # "İ" alone has two characters in lower case


@dataclass(frozen=True)
class KeywordTokenizer:
    """Splits texts into tokens for keyword search; documents and queries must pass the same one.

    Args:
        kind: ``"words"`` (dictionary words; pieces without a letter, digit or Chinese character are dropped),
            ``"bigrams"`` (a run of Chinese characters gives its overlapping pairs, or its only character; a run of
            other letters and digits is one token) or ``"both"``, one after the other, so that a word of two
            characters counts twice. Pairs find more than words, and need no dictionary, but a query of one Chinese
            character finds it only where no other stands beside it. Both together measured best
            (docs/retrieval.md), for an index of 1.6 times the size of the pairs' and 2.4 times their time.
        user_words: Words of one's own trade, which a dictionary may lack. ``"words"`` keeps them whole wherever they
            stand, the longest first; ``"bigrams"`` adds them to the pairs, so that they count for more; ``"both"``
            keeps them whole among its words. A word that begins or ends with a Latin letter or digit is not looked for
            inside longer words: "glm" not in "chatglm".

    Raises:
        TypeError: If ``user_words`` is not a tuple of strings.
        ValueError: If ``kind`` is not known, or a word is blank.
    """

    kind: TokenizerKind = "both"
    user_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(TokenizerKind):
            msg = f"kind={self.kind!r} is not known; type one of {', '.join(map(repr, get_args(TokenizerKind)))}"
            raise ValueError(msg)
        _check_words(self.user_words)

    def __call__(self, text: str) -> list[str]:
        """Split a text.

        Args:
            text: Any text; "" and blank text have no tokens.

        Returns:
            The folded tokens, repetitions kept.

        Raises:
            TypeError: If it is not a string.
        """
        return [token for token, _, _ in self.tokens(text)]

    def tokens(self, text: str) -> list[Token]:
        """Split a text, and tell where in it each token stands; arguments and errors as for calling it.

        Returns:
            Triples (token, start, end) such that ``fold(text[start:end])`` is the token.
        """
        folded = fold(text)
        pairs = [] if self.kind == "words" else _bigrams(folded, 0)
        return [*pairs, *(self._users(folded) if self.kind == "bigrams" else self._words(folded))]

    def _words(self, folded: str) -> Iterator[Token]:
        done = 0
        for word, start, end in self._users(folded):
            yield from _dictionary_words(folded[done:start], done)
            yield word, start, end
            done = end
        yield from _dictionary_words(folded[done:], done)

    def _users(self, folded: str) -> Iterator[Token]:
        """The user's words in a folded text, from left to right, the longest first.

        The segmenter's own user dictionary does not do: it only makes a word likelier, knows none with a space in it,
        takes "glm" out of "chatglm", and each object with one holds the whole dictionary once more.
        """
        words, lengths = self._vocabulary
        place = 0 if words else len(folded)
        while place < len(folded):
            candidates = (folded[place : place + length] for length in lengths)
            word = next((one for one in candidates if one in words and _stands_alone(folded, place, len(one))), None)
            if word is not None:
                yield word, place, place + len(word)
            place += 1 if word is None else len(word)

    @cached_property
    def _vocabulary(self) -> tuple[frozenset[str], list[int]]:
        """The user's words, folded, and their lengths, longest first."""
        words = {fold(word).strip() for word in self.user_words}
        if self.kind == "bigrams":  # which must not count twice what is a pair or a run already
            words = {word for word in words if [token for token, _, _ in _bigrams(word, 0)] != [word]}
        return frozenset(words), sorted({len(word) for word in words}, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, for ``from_dict``."""
        return {"kind": self.kind, "user_words": list(self.user_words)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make the tokenizer that ``to_dict`` described.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a key is missing or unknown, or a value is not allowed.
        """
        if set(settings) != {"kind", "user_words"}:
            msg = f"The settings of a tokenizer are kind and user_words, not {sorted(settings)}"
            raise ValueError(msg)
        words = settings["user_words"]
        return cls(settings["kind"], tuple(words) if isinstance(words, list) else words)


def words(text: str) -> list[str]:
    """Split a text into dictionary words; see ``KeywordTokenizer``."""
    return [token for token, _, _ in _dictionary_words(fold(text), 0)]


def character_bigrams(text: str) -> list[str]:
    """Split a text into overlapping pairs of Chinese characters; see ``KeywordTokenizer``."""
    return [token for token, _, _ in _bigrams(fold(text), 0)]


def _dictionary_words(folded: str, start: int) -> Iterator[Token]:
    """Words of a stretch that begins at ``start`` in its text."""
    import rjieba  # here, because it loads its dictionary when imported

    for piece in rjieba.cut(folded):  # the pieces make up the whole text
        end = start + len(piece)
        if any(character.isalnum() for character in piece):
            yield piece, start, end
        start = end


def _bigrams(folded: str, start: int) -> Iterator[Token]:
    """Pairs of a stretch that begins at ``start`` in its text."""
    for run in _HAN_OR_OTHER_RUN.finditer(folded):
        characters, first = run[0], start + run.start()
        if run["han"] is None or len(characters) == 1:
            yield characters, first, first + len(characters)
        else:
            for place in range(len(characters) - 1):
                yield characters[place : place + 2], first + place, first + place + 2


def _check_words(words: object) -> None:
    if not isinstance(words, tuple):
        msg = f"user_words is {type(words).__name__}: {words!r:.80}; give a tuple of strings"
        raise TypeError(msg)
    for word in words:
        if not fold(word).strip():
            msg = f"user_words has the blank word {word!r}; leave it out"
            raise ValueError(msg)


def _stands_alone(folded: str, start: int, length: int) -> bool:
    """Whether a stretch is cut out of no longer run of letters and digits."""
    return not any(place > 0 and _OTHER_PAIR.match(folded, place - 1) for place in (start, start + length))
