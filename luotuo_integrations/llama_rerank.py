"""LuotuoRerank: a cross-encoder as LlamaIndex's node postprocessor."""

from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from luotuo_integrations.rerank_settings import RerankSettings


class LuotuoRerank(RerankSettings, BaseNodePostprocessor):
    """Put found nodes in the order of their relevance to the query, and leave out the rest.

    The model reads a node as embedding models do: its text, with the metadata that the node does not exclude for them
    (``excluded_embed_metadata_keys``), which count for ``max_length`` and take time like any text. Which model to
    choose, what it costs, and what happens with long texts: see ``LuotuoReranker``, the same for LangChain, whose
    arguments, loading and copies these are.

    Example:
        >>> reranker = LuotuoRerank(model="BAAI/bge-reranker-base", top_n=3)
        >>> index.as_query_engine(similarity_top_k=20, node_postprocessors=[reranker])
        >>> nodes = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=20).retrieve(query)
        >>> reranker.postprocess_nodes(nodes, query_str=query)

    Args:
        model: A folder, or a repository name on the hub, of a reranker: a sequence classifier such as
            ``BAAI/bge-reranker-base``, or ``Qwen/Qwen3-Reranker-0.6B``.
        top_n: The most nodes to keep; None keeps all.
        min_score: The least relevance to keep, in [0, 1]; None keeps all.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        backend: ``"auto"`` or ``"torch"``: whether the CPU may run matrix products by oneDNN, where that is faster.
        max_length: Longest query and node in tokens; None is what the model allows, 8,192 at most. Nodes are cut to
            fit, with a warning; a query only where it would leave its node less than a fourth of the room.
        max_tokens_per_batch: Padded tokens in one forward pass; None is 2,048 on the CPU and 16,384 on a GPU.
        instruction: What a relevant node does, for Qwen3-Reranker.
        cache_folder: Where downloads from the hub are kept.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that lies in the model's folder.
        show_progress: Show a progress bar.
        callback_manager: LlamaIndex's; told of every reranking.

    Raises:
        ValueError: If an argument is out of range.
    """

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises the object."""
        return "LuotuoRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Return new objects, best first, whose score is the relevance in [0, 1]; the given ones keep theirs."""
        if query_bundle is None:
            msg = "nodes cannot be reranked without a query; pass query_str='...', or query_bundle=QueryBundle('...')"
            raise ValueError(msg)
        query = query_bundle.query_str
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            passages = [found.node.get_content(metadata_mode=MetadataMode.EMBED) for found in nodes]
            kept = [NodeWithScore(node=nodes[i].node, score=score) for i, score in self._ranked(query, passages)]
            event.on_end(payload={EventPayload.NODES: kept})
        return kept
