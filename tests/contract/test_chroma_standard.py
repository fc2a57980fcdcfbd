"""LangChain's own suite for vector stores, on Chroma: on disk and in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from luotuo_integrations.chroma import Chroma
from luotuo_integrations.embeddings import LuotuoEmbeddings


@pytest.fixture(scope="module")
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    # The suite expects the query's own text first, which a random model gives without a prompt only.
    return LuotuoEmbeddings(model=str(tiny_folder), device="cpu", query_prompt="")


class TestOnDisk(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, embeddings: LuotuoEmbeddings, tmp_path: Path) -> Iterator[VectorStore]:
        store = Chroma("员工手册", embeddings, persist_directory=tmp_path / "数据库")
        yield store
        store.delete_collection()


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, embeddings: LuotuoEmbeddings) -> Iterator[VectorStore]:
        store = Chroma("标准测试", embeddings)
        yield store
        store.delete_collection()
