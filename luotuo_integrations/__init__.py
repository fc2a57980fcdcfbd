"""Chinese text embeddings for LangChain and LlamaIndex.

Names are loaded when they are first used (PEP 562): importing this package imports neither torch nor a framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BM25Retriever": "retrieval",
    "CARDS": "registry",
    "ChineseNodeParser": "node_parser",
    "ChineseTextSplitter": "splitter",
    "CrossEncoder": "cross_encoder",
    "DEFAULT_MODEL": "registry",
    "Encoder": "encoder",
    "FAISS": "vectorstores",
    "FaissVectorStore": "llama_stores",
    "HybridNodeRetriever": "llama_hybrid",
    "HybridRetriever": "hybrid_retriever",
    "KnowledgeBase": "knowledge_base",
    "LuotuoEmbeddings": "embeddings",
    "LuotuoRerank": "llama_rerank",
    "LuotuoReranker": "langchain_rerank",
    "ModelCard": "registry",
    "load_documents": "documents",
    "local_chat_model": "local_chat",
    "openai_compatible": "chat_models",
}

if TYPE_CHECKING:
    from luotuo_integrations.chat_models import openai_compatible as openai_compatible
    from luotuo_integrations.cross_encoder import CrossEncoder as CrossEncoder
    from luotuo_integrations.documents import load_documents as load_documents
    from luotuo_integrations.embeddings import LuotuoEmbeddings as LuotuoEmbeddings
    from luotuo_integrations.encoder import Encoder as Encoder
    from luotuo_integrations.hybrid_retriever import HybridRetriever as HybridRetriever
    from luotuo_integrations.knowledge_base import KnowledgeBase as KnowledgeBase
    from luotuo_integrations.langchain_rerank import LuotuoReranker as LuotuoReranker
    from luotuo_integrations.llama_hybrid import HybridNodeRetriever as HybridNodeRetriever
    from luotuo_integrations.llama_rerank import LuotuoRerank as LuotuoRerank
    from luotuo_integrations.llama_stores import FaissVectorStore as FaissVectorStore
    from luotuo_integrations.local_chat import local_chat_model as local_chat_model
    from luotuo_integrations.node_parser import ChineseNodeParser as ChineseNodeParser
    from luotuo_integrations.registry import CARDS as CARDS
    from luotuo_integrations.registry import DEFAULT_MODEL as DEFAULT_MODEL
    from luotuo_integrations.registry import ModelCard as ModelCard
    from luotuo_integrations.retrieval import BM25Retriever as BM25Retriever
    from luotuo_integrations.splitter import ChineseTextSplitter as ChineseTextSplitter
    from luotuo_integrations.vectorstores import FAISS as FAISS

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
