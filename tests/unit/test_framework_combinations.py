"""LlamaIndex asks whether an object is LangChain's before it asks whether it is its own: the same object, either way.

tests/combinations.py tries the same with the packages themselves; here the bridge is put in place or taken away.
"""

import asyncio
import pickle
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from langchain_core.embeddings import Embeddings
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import resolve_embed_model
from llama_index.embeddings.langchain import LangchainEmbedding

from luotuo_integrations import LuotuoEmbeddings

BRIDGE = "llama_index.core.bridge.langchain"
PASSAGES = ["试用期员工可以请年假", "出差住宿标准每晚不超过四百五十元", "今天天气很好", "发票需要什么材料"]


@pytest.fixture(params=["bridge imports", "bridge does not import"])
def bridge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether LlamaIndex knows LangChain's Embeddings."""
    module = None
    if request.param == "bridge imports":
        module = ModuleType(BRIDGE)
        module.Embeddings = Embeddings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, BRIDGE, module)  # type: ignore[arg-type]
    before = Settings._embed_model
    yield module is not None
    Settings._embed_model = before


@pytest.fixture
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(model=tiny_folder, device="cpu")


def test_settings_take_the_object_and_give_our_vectors(bridge: bool, embeddings: LuotuoEmbeddings) -> None:
    Settings.embed_model = embeddings
    used = Settings.embed_model
    assert isinstance(used, BaseEmbedding)
    assert isinstance(used, LangchainEmbedding) is bridge
    assert (used is embeddings) is not bridge
    assert used.model_name == embeddings.model
    passages, query = embeddings.encode(PASSAGES), embeddings.encode(["年假"], "query")[0]
    np.testing.assert_allclose(used.get_text_embedding_batch(PASSAGES), passages, atol=1e-5)
    np.testing.assert_allclose(used.get_query_embedding("年假"), query, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(used.aget_text_embedding_batch(PASSAGES)), passages, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(used.aget_query_embedding("年假")), query, atol=1e-5)


@pytest.mark.parametrize("use_async", [False, True])
def test_an_index_holds_and_finds_the_same(bridge: bool, embeddings: LuotuoEmbeddings, use_async: bool) -> None:
    documents = [Document(text=text) for text in PASSAGES]
    index = VectorStoreIndex.from_documents(documents, embed_model=embeddings, use_async=use_async)
    found = index.as_retriever(similarity_top_k=4).retrieve("年假")
    cosines = embeddings.encode(PASSAGES) @ embeddings.encode(["年假"], "query")[0]
    assert [node.text for node in found] == [PASSAGES[position] for position in np.argsort(-cosines)]
    np.testing.assert_allclose([node.score for node in found], np.sort(cosines)[::-1], atol=1e-5)


def test_calls_of_the_wrapper_one_by_one_share_forward_passes(
    bridge: bool, embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrapper slices by 10 and, when asynchronous, sends one text a call: the coalescing worker mends that."""
    used = resolve_embed_model(embeddings)
    forward = embeddings.encoder.model.forward
    passes: list[int] = []

    def counted(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        passes.append(len(input_ids))
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(embeddings.encoder.model, "forward", counted)
    texts = [f"第{number}条" for number in range(100)]
    vectors = asyncio.run(used.aget_text_embedding_batch(texts))
    assert sum(passes) == 100
    assert len(passes) <= 10
    np.testing.assert_allclose(vectors, embeddings.encode(texts), atol=1e-5)


def test_what_llama_index_uses_can_be_pickled(bridge: bool, embeddings: LuotuoEmbeddings) -> None:
    used = resolve_embed_model(embeddings)
    again = pickle.loads(pickle.dumps(used))
    inner = again._langchain_embedding if bridge else again
    assert inner.to_dict() == embeddings.to_dict()


def test_the_wrapper_is_a_dependency() -> None:
    """Without it LlamaIndex refuses the object wherever its bridge imports."""
    core = [line for line in requires("luotuo-integrations") or [] if "extra ==" not in line]
    assert any(line.startswith("llama-index-embeddings-langchain") for line in core)
    assert not any(
        line.startswith(("langchain-community", "langchain-classic", "sentence-transformers")) for line in core
    )
