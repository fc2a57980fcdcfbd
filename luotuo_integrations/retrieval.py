r"""Keyword search in Chinese text: tokens, a BM25 index, and its LangChain retriever.

Tokenizers that split at ``\w+`` take a whole Chinese clause for one word, so they match nothing but exact copies. Here
both the documents and the query go through :func:`words` or :func:`character_bigrams`.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Self

# Full-width ！ to ～ are the ASCII characters 0x21 to 0x7E moved up by 0xFEE0; the full-width space stands apart.
_HALF_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)} | {0x3000: 0x20}
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
_HAN_OR_OTHER_RUN = re.compile(rf"(?P<han>[{_HAN}]+)|[^\W_{_HAN}]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def words(text: str) -> list[str]:
    """Split a text into words, for keyword search.

    Full-width Latin letters, digits and punctuation become half-width and letters lower case, so that "ＧＬＭ" finds
    "glm"; pieces without a letter, digit or Chinese character are dropped. Documents and queries must both pass here.

    Args:
        text: Any text; "" and blank text have no words.

    Returns:
        The words in their order, repetitions kept.
    """
    import rjieba  # here, because it loads its dictionary when imported

    # The segmenter takes UTF-8, which has no lone surrogates.
    pieces: list[str] = rjieba.cut(_LONE_SURROGATE.sub(" ", _fold(text)))
    return [piece for piece in pieces if any(character.isalnum() for character in piece)]


def character_bigrams(text: str) -> list[str]:
    """Split a text into overlapping pairs of Chinese characters, for keyword search without a dictionary.

    A run of Chinese characters gives its bigrams (a run of one character: that character), a run of other letters and
    digits is one word. Letters are folded as in :func:`words`.

    Args:
        text: Any text; "" and blank text have no tokens.

    Returns:
        The tokens in their order, repetitions kept.
    """
    tokens: list[str] = []
    for run in _HAN_OR_OTHER_RUN.finditer(_fold(text)):
        characters = run.group()
        if run["han"] is None or len(characters) == 1:
            tokens.append(characters)
        else:
            tokens.extend(characters[i : i + 2] for i in range(len(characters) - 1))
    return tokens


def _fold(text: object) -> str:
    if not isinstance(text, str):
        msg = f"text is {type(text).__name__}: {text!r:.80}; it must be one string"
        raise TypeError(msg)
    return text.translate(_HALF_WIDTH).lower()


class KeywordIndex:
    """A BM25 index over tokenized texts, built once.

    The score is Lucene's BM25 (Robertson and Zaragoza, 2009, without the constant factor k1 + 1 in the numerator):
    ``sum over query tokens t of ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * length / mean
    length))`` where N is the number of texts, n_t of them hold t, and f is the count of t in the scored text. A token
    that is twice in the query counts twice. Searching from several threads is safe.

    Args:
        corpus: One list of tokens a text; lists may be empty.
        k1: How slowly repetitions of a token saturate, from 0.
        b: How much long texts are marked down, from 0 (not at all) to 1.

    Raises:
        TypeError: If the corpus holds strings instead of lists of tokens.
        ValueError: If ``k1`` or ``b`` is out of range.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            msg = f"k1 must be at least 0 and b between 0 and 1, but k1={k1} and b={b}"
            raise ValueError(msg)
        for position, tokens in enumerate(corpus):
            _check_tokens(tokens, f"corpus[{position}]")
        self._size = len(corpus)
        self._vocabulary: dict[str, int] = {}
        token_ids = [[self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokens] for tokens in corpus]
        # bm25s divides by the mean length: a corpus without a single token gets no index and finds nothing.
        self._index: Any = None
        if self._vocabulary:
            import bm25s  # here, because it imports scipy and tqdm where they are installed

            # Named backends: "auto" takes whatever numba or jax happens to be installed.
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")
            self._index.index((token_ids, self._vocabulary), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        return self._size

    def search(self, query: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Find the texts that share tokens with the query.

        Args:
            query: The query's tokens, made by the function that made the corpus's.
            k: The most hits to return, from 1.

        Returns:
            Pairs (position in the corpus, score > 0), best first, equal scores in corpus order. Only texts that hold a
            token of the query are hits, so there may be fewer than k, or none.

        Raises:
            TypeError: If the query is a string instead of a list of tokens.
            ValueError: If k is below 1.
        """
        _check_tokens(query, "the query")
        if k < 1:
            msg = f"k must be at least 1, but is {k}"
            raise ValueError(msg)
        known = [self._vocabulary[token] for token in query if token in self._vocabulary]
        if not known:
            return []
        scores = self._index.get_scores(known)  # (N,), 0 where no token matches
        hits = np.flatnonzero(scores > 0)
        if len(hits) > k:
            # Everything that ties with the k-th best stays in, so that corpus order, not chance, decides between them.
            hits = hits[scores[hits] >= np.partition(scores[hits], -k)[-k]]
        order = np.argsort(-scores[hits], kind="stable")[:k]
        return [(int(position), float(scores[position])) for position in hits[order]]


def _check_tokens(tokens: Sequence[str], what: str) -> None:
    if isinstance(tokens, str):
        msg = f"{what} is the string {tokens[:40]!r}, but must be a list of tokens, such as words(text) makes"
        raise TypeError(msg)


class BM25Retriever(BaseRetriever):
    """A LangChain retriever by keywords, for Chinese and mixed text.

    A query that shares no token with any document finds nothing: the list may be shorter than ``k``, or empty. The
    index is built once, when the retriever is made. Found documents are copies; their metadata holds nothing new.

    Args:
        documents: What to search in.
        k: The most documents to return, from 1; ``retriever.invoke(query, k=10)`` sets it for one call.
        tokenizer: ``"words"`` (dictionary words) or ``"bigrams"`` (pairs of characters: finds more, and more noise).

    Example:
        >>> documents = [Document("试用期为三个月"), Document("报销需要发票")]
        >>> BM25Retriever.from_documents(documents).invoke("试用期多久")[0].page_content
        '试用期为三个月'
    """

    documents: list[Document] = Field(repr=False)
    k: int = Field(default=4, ge=1)
    tokenizer: Literal["words", "bigrams"] = "words"
    _index: KeywordIndex = PrivateAttr()

    model_config = ConfigDict(extra="forbid")

    def model_post_init(self, context: Any, /) -> None:
        """Build the index."""
        super().model_post_init(context)
        self._index = KeywordIndex([self._tokens(document.page_content) for document in self.documents])

    @classmethod
    def from_documents(
        cls, documents: Sequence[Document], *, k: int = 4, tokenizer: Literal["words", "bigrams"] = "words"
    ) -> Self:
        """Make a retriever; the arguments are the class's."""
        return cls(documents=list(documents), k=k, tokenizer=tokenizer)

    def _tokens(self, text: str) -> list[str]:
        return words(text) if self.tokenizer == "words" else character_bigrams(text)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  (LangChain's signature)
        k: int | None = None,
    ) -> list[Document]:
        hits = self._index.search(self._tokens(query), self.k if k is None else k)
        return [self.documents[position].model_copy(deep=True) for position, _ in hits]
