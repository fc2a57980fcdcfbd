"""LangChain's own test suites for vector stores and retrievers, run on FAISS."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from luotuo_integrations.vectorstores import FAISS


class TestFaiss(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return FAISS(self.get_embeddings())


class TestFaissWithGraph(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return FAISS(self.get_embeddings(), index_factory="HNSW16", metric="euclidean")


class TestFaissRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> Callable[..., BaseRetriever]:  # type: ignore[override]
        texts = ["年假十五天", "病假需要医院证明", "差旅住宿每晚五百元", "加班可以调休", "试用期三个月"]
        store = FAISS.from_texts(texts, DeterministicFakeEmbedding(size=16))
        return lambda **search: store.as_retriever(search_kwargs=search)

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "可以休几天假"
