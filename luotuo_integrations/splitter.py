"""ChineseTextSplitter: lossless Chinese text splitting for LangChain."""

import copy
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from langchain_core.documents import Document
from langchain_text_splitters import TextSplitter
from typing_extensions import Self

from luotuo_integrations.parsing.spans import (
    DEFAULT_CHUNK_SIZE,
    LengthFunction,
    Span,
    checked_overlap,
    count_characters,
    split_spans,
)
from luotuo_integrations.texts import check_texts

PAGE_STARTS = "page_starts"
"""Metadata key of a whole document: offsets in its text at which its pages begin. No chunk has it."""

_HEADING_SEPARATOR = " > "


class TokenCounter(Protocol):
    """What a splitter needs of an embedding model; ``LuotuoEmbeddings`` has it."""

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, without prompt and special tokens."""


class ChineseTextSplitter(TextSplitter):
    """Split Chinese text into chunks of whole sentences, at headings and paragraphs first.

    The rules are those of :func:`~luotuo_integrations.parsing.spans.split_spans`. Each chunk is a verbatim part of its
    document, and its metadata says which: ``start`` and ``end`` (offsets in the document's text), ``headings`` (titles
    above it, "第一章 总则 > 请假制度"; absent when there are none), and for documents with pages ``page`` (from 1) and,
    for a chunk that goes on to another page, ``page_end``. Headings are not written into the text of chunks that do not
    have them: who wants them embedded can put ``metadata["headings"]`` before it.

    Args:
        chunk_size: Largest size of a chunk, at least 1.
        chunk_overlap: Largest size of what a chunk repeats of the one before: 0 to chunk_size - 1, made of whole
            sentences. None means 15 % of chunk_size (60 of 400).
        length: Sizes of a list of texts, in one call; None counts characters.
        length_function: Size of one text, as other LangChain splitters take it; give this or ``length``.
        add_start_index: Also write ``start_index``, as other LangChain splitters do.

    Raises:
        ValueError: If a size is out of range, or both length functions are given.

    Example:
        >>> splitter = ChineseTextSplitter(chunk_size=12, chunk_overlap=0)
        >>> splitter.split_text("试用期为三个月。试用期内不得请年假。病假除外。")
        ['试用期为三个月。', '试用期内不得请年假。', '病假除外。']
    """

    def __init__(
        self,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        chunk_overlap: int | None = None,
        *,
        length: LengthFunction | None = None,
        length_function: Callable[[str], int] | None = None,
        add_start_index: bool = False,
    ) -> None:
        if length is not None and length_function is not None:
            msg = "Both length and length_function were given: give one of them, or neither to count characters"
            raise ValueError(msg)
        overlap = checked_overlap(chunk_size, chunk_overlap)
        if length_function is not None:
            length = _one_by_one(length_function)
        self._length = length or count_characters
        super().__init__(
            chunk_size,
            overlap,
            length_function=lambda text: self._length([text])[0],
            add_start_index=add_start_index,
        )

    @classmethod
    def from_embeddings(
        cls, embeddings: TokenCounter, chunk_size: int = DEFAULT_CHUNK_SIZE, chunk_overlap: int | None = None
    ) -> Self:
        """Make a splitter that counts the tokens of an embedding model.

        Args:
            embeddings: A ``LuotuoEmbeddings``, or anything with ``count_tokens(texts)`` and ``max_tokens``.
            chunk_size: Largest chunk in tokens, without the model's prompt and special tokens; at most ``max_tokens``.
            chunk_overlap: Largest overlap in tokens; None means 15 % of chunk_size.

        Raises:
            ValueError: If a size is out of range, or chunk_size is more than the model reads.
        """
        checked_overlap(chunk_size, chunk_overlap)
        check_model_limit(embeddings, chunk_size)
        return cls(chunk_size, chunk_overlap, length=embeddings.count_tokens)

    def split_text(self, text: str) -> list[str]:
        """Split one text.

        Args:
            text: Any text; blank text has no chunks.

        Returns:
            The chunks, verbatim and in order.
        """
        return [text[span.start : span.end] for span in self.split_spans(text)]

    def split_spans(self, text: str) -> list[Span]:
        """Split one text into spans: offsets and headings of its chunks.

        Args:
            text: Any text.

        Returns:
            The spans, in order.
        """
        return split_spans(text, self._chunk_size, self._chunk_overlap, self._length)

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """Split texts into Documents.

        Args:
            texts: A list of texts.
            metadatas: Metadata of each text; every chunk gets a copy of it, and its own keys (see the class).

        Returns:
            The chunks of all texts, in order.

        Raises:
            TypeError: If one string is given instead of a list, or a text is not a string.
            ValueError: If there are not as many metadatas as texts.
        """
        check_texts(texts)
        if metadatas is None:
            metadatas = [{} for _ in texts]
        if len(metadatas) != len(texts):
            msg = f"{len(texts)} texts and {len(metadatas)} metadatas were given: give one metadata for each text"
            raise ValueError(msg)
        chunks = []
        for text, metadata in zip(texts, metadatas, strict=True):
            for span in self.split_spans(text):
                own = chunk_metadata(metadata, span)
                if self._add_start_index:
                    own["start_index"] = span.start
                chunks.append(Document(page_content=text[span.start : span.end], metadata=own))
        return chunks


def chunk_metadata(metadata: Mapping[str, Any], span: Span) -> dict[str, Any]:
    """Metadata of a chunk: a copy of its document's, with offsets, headings and pages.

    Args:
        metadata: Metadata of the document; left as it is. Where it has ``page_starts``, pages are added.
        span: The chunk.

    Returns:
        A new dict, without ``page_starts``.
    """
    own = {key: copy.deepcopy(value) for key, value in metadata.items() if key != PAGE_STARTS}
    own["start"], own["end"] = span.start, span.end
    if span.headings:
        own["headings"] = _HEADING_SEPARATOR.join(span.headings)
    if page_starts := metadata.get(PAGE_STARTS):
        page, page_end = bisect_right(page_starts, span.start), bisect_right(page_starts, span.end - 1)
        own["page"] = page
        if page_end > page:
            own["page_end"] = page_end
    return own


def check_model_limit(embeddings: TokenCounter, chunk_size: int) -> None:
    """Check that a model reads chunks of a size.

    Args:
        embeddings: The model.
        chunk_size: In tokens.

    Raises:
        ValueError: If the model would cut such chunks.
    """
    if chunk_size > embeddings.max_tokens:
        advice = min(DEFAULT_CHUNK_SIZE, embeddings.max_tokens * 4 // 5)
        msg = (
            f"chunk_size={chunk_size} is more than the {embeddings.max_tokens} tokens that the model reads, prompt "
            f"and special tokens included: give less, for instance {advice}"
        )
        raise ValueError(msg)


def _one_by_one(length_function: Callable[[str], int]) -> LengthFunction:
    def length(texts: list[str]) -> list[int]:
        return [length_function(text) for text in texts]

    return length
