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

    - Choice. The package brings no reranker. ``BAAI/bge-reranker-base`` (278 million parameters, Chinese and English)
      is for a CPU too; ``BAAI/bge-reranker-v2-m3`` (568 million, many languages) reads longer documents, and
      ``Qwen/Qwen3-Reranker-0.6B`` (596 million) takes an ``instruction``: both are better on a GPU.
    - Memory. Four bytes a parameter in float32, on a CPU, and two in half precision, on CUDA: 1.1, 2.3 and 2.4 GB, or
      half of that. Batches add little, and where a device runs out of memory they are halved.
    - Time. A call computes query and document anew for every document: time grows with their number and length, to
      seconds for 20 paragraphs on a few CPU cores, where halving ``k`` of the search halves it. Nothing is kept.
    - Long documents. A document that does not fit into ``max_length`` together with the query (512 tokens for
      ``bge-reranker-base``, 8,192 for the other two if nothing is said) is judged by its beginning alone, and a warning
      counts such documents. Split documents before they are indexed. A smaller ``max_length`` is faster and cuts more.
    - Scores are relevances by this model, comparable from query to query, not with cosines nor with another model's:
      choose ``min_score`` by looking at some of your own.

    Example:
        >>> reranker = LuotuoReranker(model="BAAI/bge-reranker-base", top_n=3)
        >>> reranker.compress_documents(store.similarity_search(query, k=20), query)
        >>> HybridRetriever.from_store(store, k=3, rerank=reranker, rerank_k=20)  # both in one retriever

    Args:
        model: A folder, or a repository name on the hub, of a reranker: a sequence classifier such as
            ``BAAI/bge-reranker-base``, or ``Qwen/Qwen3-Reranker-0.6B``.
        top_n: The most documents to keep; None keeps all.
        min_score: The least relevance to keep, in [0, 1]; None keeps all.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        backend: ``"auto"`` or ``"torch"``: whether the CPU may run matrix products by oneDNN, where that is faster.
        max_length: Longest query and document in tokens; None is what the model allows, 8,192 at most. Documents are
            cut to fit, with a warning; a query only where it would leave its document less than a fourth of the room.
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
