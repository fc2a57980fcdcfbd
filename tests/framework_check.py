"""One object in LangChain and LlamaIndex, in whatever environment this runs; prints what it found as JSON.

Run by combinations.py in environments that differ in their installed packages; by hand: python tests/framework_check.py
"""

import asyncio
import json
from importlib.metadata import distributions

import numpy as np
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, Settings, VectorStoreIndex

from luotuo_integrations import LuotuoEmbeddings

PASSAGES = [
    "试用期员工按月累计带薪年假，转正之后即可使用。",
    "出差住宿标准：一线城市每晚不超过四百五十元。",
    "报销需要发票原件与审批单，在月底之前提交。",
]
QUESTION = "还没转正能休年假吗？"
PACKAGES = ("langchain", "langchain-community", "langchain-core", "llama-index-core", "transformers", "tokenizers")


def check() -> dict[str, object]:
    """Use one object in both frameworks; raise AssertionError where a vector or an answer is wrong."""
    embeddings = LuotuoEmbeddings(device="cpu")
    passages, query = embeddings.encode(PASSAGES), embeddings.encode([QUESTION], "query")[0]
    Settings.embed_model = embeddings
    used = Settings.embed_model
    np.testing.assert_allclose(used.get_text_embedding_batch(PASSAGES), passages, atol=1e-5)
    np.testing.assert_allclose(used.get_query_embedding(QUESTION), query, atol=1e-5)
    together = asyncio.run(used.aget_text_embedding_batch(PASSAGES * 20))
    np.testing.assert_allclose(together, np.tile(passages, (20, 1)), atol=1e-5)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in PASSAGES])
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve(QUESTION)[0].text == PASSAGES[0]
    assert asyncio.run(retriever.aretrieve(QUESTION))[0].text == PASSAGES[0]
    store = InMemoryVectorStore.from_texts(PASSAGES, embeddings)
    assert store.similarity_search(QUESTION, k=1)[0].page_content == PASSAGES[0]
    return {"used as": "itself" if used is embeddings else f"wrapped in {type(used).__name__}", **_versions()}


def _versions() -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in reversed(list(distributions()))}
    return {package: installed.get(package, "-") for package in PACKAGES}


if __name__ == "__main__":
    print(json.dumps(check()))  # noqa: T201
