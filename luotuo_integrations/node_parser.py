"""ChineseNodeParser: lossless Chinese text splitting for LlamaIndex."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llama_index.core.callbacks import CallbackManager
from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.utils import get_tqdm_iterable
from pydantic import Field, PrivateAttr
from typing_extensions import Self

from luotuo_integrations.parsing.spans import (
    DEFAULT_CHUNK_SIZE,
    LengthFunction,
    checked_overlap,
    count_characters,
    split_spans,
)
from luotuo_integrations.splitter import PAGE_STARTS, TokenCounter, check_model_limit, chunk_metadata

_CHARACTERS = "characters"
_PAGE_KEYS = ("page", "page_end")
_Node = TypeVar("_Node", bound=BaseNode)


class ChineseNodeParser(NodeParser):
    """Split documents into nodes of whole Chinese sentences, at headings and paragraphs first.

    The rules are those of :func:`~luotuo_integrations.parsing.spans.split_spans`. Each node is a verbatim part of
    its document, from ``start_char_idx`` to ``end_char_idx``; its metadata has what the document's has, ``headings``
    ("第一章 总则 > 请假制度") and, for documents with ``page_starts`` from
    :func:`~luotuo_integrations.documents.load_file`, ``page`` and ``page_end``. LlamaIndex embeds the metadata with the
    text, so the headings help retrieval; chunk_size counts the text alone.

    Args:
        chunk_size: Largest size of a node's text, at least 1.
        chunk_overlap: Largest size of what a node repeats of the one before: 0 to chunk_size - 1, made of whole
            sentences. None means 15 % of chunk_size (60 of 400).
        length: Sizes of a list of texts, in one call; None counts characters. It is not part of ``to_dict()``.
        size_unit: What length counts, for ``to_dict()``, so that cached results of another unit are not used.
        include_metadata: Give nodes the metadata of their document, headings and pages.
        include_prev_next_rel: Link each node with its neighbours.
        callback_manager: LlamaIndex's.
        id_func: Makes the id of a node from its index and document; None makes random ids.

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> from llama_index.core import Document
        >>> nodes = ChineseNodeParser(chunk_size=12)([Document(text="试用期为三个月。试用期内不得请年假。")])
        >>> [node.text for node in nodes]
        ['试用期为三个月。', '试用期内不得请年假。']
    """

    chunk_size: int = Field(default=DEFAULT_CHUNK_SIZE, description="Largest size of a node's text.", gt=0)
    chunk_overlap: int = Field(default=0, description="Largest size of what a node repeats of the one before.", ge=0)
    size_unit: str = Field(default=_CHARACTERS, description="What sizes count.")
    _length: LengthFunction | None = PrivateAttr(default=None)

    def __init__(
        self,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        chunk_overlap: int | None = None,
        *,
        length: LengthFunction | None = None,
        size_unit: str | None = None,
        include_metadata: bool = True,
        include_prev_next_rel: bool = True,
        callback_manager: CallbackManager | None = None,
        id_func: Callable[[int, BaseNode], str] | None = None,
    ) -> None:
        fields: dict[str, Any] = {
            "chunk_size": chunk_size,
            "chunk_overlap": checked_overlap(chunk_size, chunk_overlap),
            "size_unit": size_unit or (_CHARACTERS if length is None else "custom"),
            "include_metadata": include_metadata,
            "include_prev_next_rel": include_prev_next_rel,
            "callback_manager": callback_manager or CallbackManager([]),
            # to_dict() writes only the name of the function, so from_dict() gets no function.
            "id_func": id_func if callable(id_func) else default_id_func,
        }
        super().__init__(**fields)
        self._length = length

    @classmethod
    def from_embeddings(
        cls, embeddings: TokenCounter, chunk_size: int = DEFAULT_CHUNK_SIZE, chunk_overlap: int | None = None
    ) -> Self:
        """Make a parser that counts the tokens of an embedding model.

        Args:
            embeddings: A ``LuotuoEmbeddings``, or anything with ``count_tokens(texts)`` and ``max_tokens``.
            chunk_size: Largest text of a node in tokens; at most ``max_tokens``. Leave room for the metadata.
            chunk_overlap: Largest overlap in tokens; None means 15 % of chunk_size.

        Raises:
            ValueError: If a size is out of range, or chunk_size is more than the model reads.
        """
        checked_overlap(chunk_size, chunk_overlap)
        check_model_limit(embeddings, chunk_size)
        unit = f"tokens of {getattr(embeddings, 'model_name', type(embeddings).__name__)}"
        return cls(chunk_size, chunk_overlap, length=embeddings.count_tokens, size_unit=unit)

    @classmethod
    def class_name(cls) -> str:
        """Name in LlamaIndex's serialised form."""
        return "ChineseNodeParser"

    def split_text(self, text: str) -> list[str]:
        """Split one text.

        Args:
            text: Any text; blank text has no chunks.

        Returns:
            The chunks, verbatim and in order.
        """
        spans = split_spans(text, self.chunk_size, self.chunk_overlap, self._counter())
        return [text[span.start : span.end] for span in spans]

    def _counter(self) -> LengthFunction:
        if self._length is None and self.size_unit != _CHARACTERS:
            msg = (
                f"This parser counts {self.size_unit}, but lost the function when it was serialised: "
                "make it anew with ChineseNodeParser.from_embeddings(embeddings), or pass length="
            )
            raise ValueError(msg)
        return self._length or count_characters

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        del kwargs  # LlamaIndex passes on what its callers give; there are no settings here
        length = self._counter()
        parsed: list[BaseNode] = []
        for document in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            text = document.get_content(metadata_mode=MetadataMode.NONE)
            spans = split_spans(text, self.chunk_size, self.chunk_overlap, length)
            texts = [text[span.start : span.end] for span in spans]
            made = build_nodes_from_splits(texts, _without_page_table(document), id_func=self.id_func)
            for node, span in zip(made, spans, strict=True):
                node.start_char_idx, node.end_char_idx = span.start, span.end
                if self.include_metadata:
                    own = chunk_metadata(document.metadata, span)
                    node.metadata = {key: value for key, value in own.items() if key not in ("start", "end")}
                    # Page numbers say nothing about what the text means.
                    node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, *_PAGE_KEYS]
            parsed.extend(made)
        return parsed

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress, **kwargs)

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:
        # LlamaIndex looks for each text in the document, which finds the wrong place where the text recurs.
        made = [node for node in nodes if isinstance(node, TextNode)]
        offsets = [(node.start_char_idx, node.end_char_idx) for node in made]
        documents = {key: _without_page_table(document) for key, document in parent_doc_map.items()}
        nodes = super()._postprocess_parsed_nodes(nodes, documents)
        for node, (start, end) in zip(made, offsets, strict=True):
            node.start_char_idx, node.end_char_idx = start, end
        return nodes

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._length = (state.get("__pydantic_private__") or {}).get("_length")


def _without_page_table(document: _Node) -> _Node:
    if PAGE_STARTS not in document.metadata:
        return document
    metadata = {key: value for key, value in document.metadata.items() if key != PAGE_STARTS}
    return document.model_copy(update={"metadata": metadata})
