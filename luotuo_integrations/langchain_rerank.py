"""LuotuoReranker: a cross-encoder as LangChain's document compressor."""

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor

from luotuo_integrations.rerank_settings import RerankSettings
from luotuo_integrations.texts import check_query


class LuotuoReranker(RerankSettings, BaseDocumentCompressor):
    """Put found documents in the order of their relevance to the query, and leave out the rest.

    The model reads query and document together, which is slower than comparing vectors and more exact: find 20 to 50
    documents by vectors, then keep the best of them. It is loaded at the first call; copies share it, pickles hold
    settings only, and every method may be called from any thread or event loop.

    Example:
        >>> reranker = LuotuoReranker(model="BAAI/bge-reranker-base", top_n=3)
        >>> reranker.compress_documents(documents, "试用期可以请年假吗？")

    Args:
        model: A folder, or a repository name on the hub, of a reranker: a sequence classifier such as
            ``BAAI/bge-reranker-base``, or ``Qwen/Qwen3-Reranker-0.6B``.
        top_n: The most documents to keep; None keeps all.
        min_score: The least relevance to keep, in [0, 1]; None keeps all.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        max_length: Longest query and document in tokens; documents are cut to fit, with a warning.
        max_tokens_per_batch: Padded tokens in one forward pass; None is 2,048 on the CPU and 16,384 on a GPU.
        instruction: What a relevant document does, for Qwen3-Reranker.
        cache_folder: Where downloads from the hub are kept.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that lies in the model's folder.
        show_progress: Show a progress bar.

    Raises:
        ValueError: If an argument is out of range.
    """

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002  (LangChain's signature)
    ) -> list[Document]:
        """Return copies of the most relevant documents.

        Args:
            documents: What was found; the documents themselves are left as they are.
            query: The question.
            callbacks: Not used.

        Returns:
            The kept documents, best first, with ``relevance_score`` in [0, 1] in their metadata.

        Raises:
            TypeError: If the query is no string, or a document none of LangChain's.
            ModelNotFoundError: At the first call, if there is no such model.
            ModelFormatError: At the first call, if the model is no reranker, or damaged.
        """
        check_query(query, many="one call each")
        found = list(documents)
        passages = [_content(document, index) for index, document in enumerate(found)]
        kept = []
        for position, relevance in self._ranked(query, passages):
            copied = found[position].model_copy(deep=True)
            copied.metadata["relevance_score"] = relevance
            kept.append(copied)
        return kept


def _content(document: object, index: int) -> str:
    if not isinstance(document, Document):
        msg = f"documents[{index}] is {type(document).__name__}: {document!r:.80}; give Documents of LangChain"
        raise TypeError(msg)
    return document.page_content
