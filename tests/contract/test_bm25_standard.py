"""LangChain's own suite for retrievers, on BM25Retriever with both tokenizers."""

from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from luotuo_integrations.retrieval import BM25Retriever

TEXTS = [
    "试用期为三个月",
    "试用期可以请年假",
    "试用期的考核由主管负责",
    "年假不足一天的按一天计",
    "发票须在三十天内交到财务",
]


class TestWords(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return BM25Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"documents": [Document(text) for text in TEXTS], "tokenizer": "words"}

    @property
    def retriever_query_example(self) -> str:
        return "试用期的规定"


class TestBigrams(TestWords):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"documents": [Document(text) for text in TEXTS], "tokenizer": "bigrams"}

    def test_uses_bigrams(self, retriever: BaseRetriever) -> None:
        assert isinstance(retriever, BM25Retriever)
        assert retriever.tokenizer == "bigrams"
