"""Keyword search in Chinese text: a BM25 index, and its LangChain retriever."""

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr
from typing_extensions import Self

from luotuo_integrations.chinese_tokens import KeywordTokenizer, TokenizerKind
from luotuo_integrations.chinese_tokens import character_bigrams as character_bigrams
from luotuo_integrations.chinese_tokens import words as words
from luotuo_integrations.store import keyword_index


class KeywordIndex:
    """A BM25 index over texts that are split into tokens already, built once; searched from any thread.

    See ``store.keyword_index`` for the score, and for the index that splits texts itself, grows, and has a file.

    Args:
        corpus: One list of tokens a text; lists may be empty.
        k1: How slowly repetitions of a token saturate, from 0.
        b: How much long texts are marked down, from 0 (not at all) to 1.

    Raises:
        TypeError: If the corpus holds strings instead of lists of tokens.
        ValueError: If ``k1`` or ``b`` is out of range.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], *, k1: float = 1.5, b: float = 0.75) -> None:
        for position, tokens in enumerate(corpus):
            _check_tokens(tokens, f"corpus[{position}]")
        self._index = keyword_index.KeywordIndex(k1=k1, b=b)
        self._index.add_tokens(range(len(corpus)), corpus)

    def __len__(self) -> int:
        return len(self._index)

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
        scores, positions = self._index.search_tokens(query, k)
        return list(zip(positions.tolist(), scores.tolist(), strict=True))


def _check_tokens(tokens: Sequence[str], what: str) -> None:
    if isinstance(tokens, str):
        msg = f"{what} is the string {tokens[:40]!r}, but must be a list of tokens, such as words(text) makes"
        raise TypeError(msg)


class BM25Retriever(BaseRetriever):
    """A LangChain retriever by keywords, for Chinese and mixed text.

    A query that shares no token with any document finds nothing: the list may be shorter than ``k``, or empty. The
    documents are split once, when the retriever is made. Found documents are copies; their metadata holds nothing new.

    Args:
        documents: What to search in.
        k: The most documents to return, from 1; ``retriever.invoke(query, k=10)`` sets it for one call.
        tokenizer: ``"bigrams"`` (pairs of characters), ``"words"`` (dictionary words) or ``"both"``; see
            ``KeywordTokenizer``.
        user_words: Words of one's own trade, which a dictionary may lack; see there.

    Example:
        >>> documents = [Document("试用期为三个月"), Document("报销需要发票")]
        >>> BM25Retriever.from_documents(documents).invoke("试用期多久")[0].page_content
        '试用期为三个月'
    """

    documents: list[Document] = Field(repr=False)
    k: int = Field(default=4, ge=1)
    tokenizer: TokenizerKind = "both"
    user_words: tuple[str, ...] = ()
    _tokens: KeywordTokenizer = PrivateAttr()
    _index: KeywordIndex = PrivateAttr()

    model_config = ConfigDict(extra="forbid")

    def model_post_init(self, context: Any, /) -> None:
        """Build the index."""
        super().model_post_init(context)
        self._tokens = KeywordTokenizer(self.tokenizer, self.user_words)
        self._index = KeywordIndex([self._tokens(document.page_content) for document in self.documents])

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        k: int = 4,
        tokenizer: TokenizerKind = "both",
        user_words: Sequence[str] = (),
    ) -> Self:
        """Make a retriever; the arguments are the class's."""
        return cls(documents=list(documents), k=k, tokenizer=tokenizer, user_words=tuple(user_words))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  (LangChain's signature)
        k: int | None = None,
    ) -> list[Document]:
        hits = self._index.search(self._tokens(query), self.k if k is None else k)
        return [self.documents[position].model_copy(deep=True) for position, _ in hits]
