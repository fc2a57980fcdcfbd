import asyncio
import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError
from tiny_rerankers import save_bert

import luotuo_integrations.cross_encoder as cross_encoder_module
from luotuo_integrations import BM25Retriever, CrossEncoder, LuotuoRerank, LuotuoReranker
from luotuo_integrations.errors import ModelFormatError

QUERY = "试用期可以请年假吗"
TEXTS = [
    "试用期员工每月有一天病假",
    "出差住宿每晚不超过四百五十元",
    "报销需要发票和材料",
    "年假从转正之日起算",
    "",
    "请假要在哪里申请",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("rerankers") / "重排模型")


@pytest.fixture(scope="module")
def scores(folder: Path) -> list[float]:
    found: list[float] = CrossEncoder(folder, device="cpu").score(QUERY, TEXTS).tolist()
    assert len(set(found)) == len(TEXTS)
    return found


@pytest.fixture(scope="module")
def order(scores: list[float]) -> list[int]:
    best_first: list[int] = np.argsort(scores)[::-1].tolist()
    assert best_first != list(range(len(TEXTS)))
    return best_first


def documents() -> list[Document]:
    return [Document(text, id=str(i), metadata={"source": {"page": i}}) for i, text in enumerate(TEXTS)]


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5) for i, text in enumerate(TEXTS)]


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The growing list of the models that are loaded from here on."""
    loaded: list[Any] = []
    load = cross_encoder_module.load_reranker

    def counted(folder: Path, **settings: Any) -> Any:
        loaded.append(folder)
        return load(folder, **settings)

    monkeypatch.setattr(cross_encoder_module, "load_reranker", counted)
    return loaded


# -- LangChain --------------------------------------------------------------------------------------------------------


def test_documents_come_best_first_with_their_relevance(folder: Path, scores: list[float], order: list[int]) -> None:
    reranker = LuotuoReranker(model=folder, device="cpu")
    assert isinstance(reranker, BaseDocumentCompressor)
    given = documents()
    kept = reranker.compress_documents(given, QUERY)
    assert [document.page_content for document in kept] == [TEXTS[i] for i in order]
    assert [document.id for document in kept] == [str(i) for i in order]
    assert [document.metadata["source"] for document in kept] == [{"page": i} for i in order]
    relevances = [document.metadata["relevance_score"] for document in kept]
    assert all(type(relevance) is float for relevance in relevances)
    np.testing.assert_allclose(relevances, sorted(scores, reverse=True), atol=1e-6)
    kept[0].metadata["source"]["page"] = "changed"
    assert given == documents()  # the given ones are as they were


def test_top_n_and_min_score_leave_out_the_rest(folder: Path, scores: list[float], order: list[int]) -> None:
    def kept(**settings: Any) -> list[int]:
        reranker = LuotuoReranker(model=folder, device="cpu", **settings)
        return [int(document.id or "") for document in reranker.compress_documents(documents(), QUERY)]

    least = scores[order[2]] - 1e-4
    assert kept(top_n=2) == order[:2]
    assert kept(top_n=99) == order
    assert kept(min_score=least) == order[:3]
    assert kept(min_score=least, top_n=1) == order[:1]
    assert kept(min_score=1.0) == []


def test_equal_scores_keep_the_order_of_the_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = LuotuoReranker(model=folder, device="cpu")
    monkeypatch.setattr(reranker.cross_encoder.model, "forward", lambda input_ids, **_: torch.zeros(len(input_ids)))
    assert [document.id for document in reranker.compress_documents(documents(), QUERY)] == list("012345")


def test_a_search_and_a_reranker_make_a_chain(folder: Path) -> None:
    retriever = BM25Retriever.from_documents(documents(), k=4)
    reranker = LuotuoReranker(model=folder, device="cpu", top_n=2)
    query = "请假要等多少天，年假和住宿报销呢"
    chain = {"documents": retriever, "query": RunnablePassthrough()} | RunnableLambda(
        lambda found: reranker.compress_documents(found["documents"], found["query"])
    )
    kept = chain.invoke(query)
    found = retriever.invoke(query)
    assert len(kept) == 2 < len(found)
    assert {document.id for document in kept} <= {document.id for document in found}
    assert kept[0].metadata["relevance_score"] >= kept[1].metadata["relevance_score"]
    assert all("relevance_score" not in document.metadata for document in retriever.documents)


async def test_the_event_loop_goes_on_while_documents_are_judged(
    folder: Path, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = LuotuoReranker(model=folder, device="cpu")
    ticked = asyncio.Event()
    loop = asyncio.get_running_loop()
    forward = reranker.cross_encoder.model.forward
    threads = []

    def waiting(*tensors: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        asyncio.run_coroutine_threadsafe(ticked.wait(), loop).result(timeout=30)
        return forward(*tensors, **named)

    monkeypatch.setattr(reranker.cross_encoder.model, "forward", waiting)

    async def tick() -> None:
        ticked.set()

    kept, _ = await asyncio.gather(reranker.acompress_documents(documents(), QUERY), tick())
    assert [document.id for document in kept] == [str(i) for i in order]
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("given", "query", "message"),
    [
        ([Document("好")], None, "The query is None; it must be one string"),
        (["好"], QUERY, r"documents\[0\] is str: '好'; give Documents of LangChain"),
        ([Document("好"), None], QUERY, r"documents\[1\] is NoneType"),
    ],
)
def test_what_is_no_document_is_refused_before_the_model_is_loaded(given: Any, query: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LuotuoReranker(model="/nowhere").compress_documents(given, query)


# -- LlamaIndex -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["text", "bundle", "async"])
def test_nodes_come_best_first_with_the_relevance_as_score(
    folder: Path, scores: list[float], order: list[int], how: str
) -> None:
    reranker = LuotuoRerank(model=folder, device="cpu", top_n=3)
    assert isinstance(reranker, BaseNodePostprocessor)
    given = nodes()
    if how == "text":
        kept = reranker.postprocess_nodes(given, query_str=QUERY)
    elif how == "bundle":
        kept = reranker.postprocess_nodes(given, QueryBundle(QUERY))
    else:
        kept = asyncio.run(reranker.apostprocess_nodes(given, query_str=QUERY))
    assert [found.node.node_id for found in kept] == [str(i) for i in order[:3]]
    np.testing.assert_allclose([found.score for found in kept], [scores[i] for i in order[:3]], atol=1e-6)
    assert all(found.score == 0.5 for found in given)


def test_the_model_reads_the_metadata_that_embedding_models_read(folder: Path) -> None:
    node = TextNode(text="年假", metadata={"标题": "请假", "file": "x"}, excluded_embed_metadata_keys=["file"])
    (kept,) = LuotuoRerank(model=folder, device="cpu").postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    expected = CrossEncoder(folder, device="cpu").score(QUERY, ["标题: 请假\n\n年假"])
    assert kept.score == pytest.approx(expected[0], abs=1e-6)


def test_nodes_need_a_query(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot be reranked without a query; pass query_str"):
        LuotuoRerank(model=folder).postprocess_nodes(nodes())


def test_a_query_engine_reranks_and_tells_its_callbacks(folder: Path, scores: list[float], order: list[int]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    written = [found.node for found in nodes() if found.text]
    index = VectorStoreIndex(written, embed_model=MockEmbedding(8))
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=5),
        llm=MockLLM(),
        node_postprocessors=[LuotuoRerank(model=folder, device="cpu", top_n=2)],
        callback_manager=CallbackManager([debug]),
    )
    kept = [i for i in order if TEXTS[i]][:2]
    sources = engine.query(QUERY).source_nodes
    assert [found.node.node_id for found in sources] == [str(i) for i in kept]
    np.testing.assert_allclose([found.score for found in sources], [scores[i] for i in kept], atol=1e-6)
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload is not None
    assert end.payload is not None
    assert start.payload[EventPayload.QUERY_STR] == QUERY
    assert len(start.payload[EventPayload.NODES]) == 5
    assert end.payload[EventPayload.NODES] == sources


def test_llamaindex_writes_it_down_and_reads_it_again(folder: Path) -> None:
    reranker = LuotuoRerank(model=folder, device="cpu", top_n=3, instruction=None)
    written = reranker.to_dict()
    assert written["class_name"] == "LuotuoRerank"
    assert written["model"] == str(folder)
    assert LuotuoRerank.from_json(reranker.to_json()).to_dict() == written


# -- both -------------------------------------------------------------------------------------------------------------

BOTH = [LuotuoReranker, LuotuoRerank]


def use(reranker: LuotuoReranker | LuotuoRerank) -> list[str]:
    """Ids, best first."""
    if isinstance(reranker, LuotuoReranker):
        return [document.id or "" for document in reranker.compress_documents(documents(), QUERY)]
    return [found.node.node_id for found in reranker.postprocess_nodes(nodes(), query_str=QUERY)]


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_found_needs_no_model(kind: Any) -> None:
    reranker = kind(model="/nowhere")
    if kind is LuotuoReranker:
        assert reranker.compress_documents([], QUERY) == []
    else:
        assert reranker.postprocess_nodes([], query_str=QUERY) == []


@pytest.mark.parametrize("kind", BOTH)
def test_the_model_is_loaded_at_the_first_use_and_shared_by_copies(
    kind: Any, folder: Path, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = count_loads(monkeypatch)
    reranker = kind(model=folder, device="cpu")
    copies = [reranker.model_copy(), copy.copy(reranker), copy.deepcopy(reranker), reranker.model_copy(deep=True)]
    assert loaded == []
    for one in [copies[0], reranker, *copies]:
        assert use(one) == [str(i) for i in order]
    assert len(loaded) == 1
    assert reranker.model_copy(update={"top_n": 1}).cross_encoder is reranker.cross_encoder
    assert reranker.model_copy(update={"max_length": 20}).cross_encoder.max_length == 20
    assert reranker.cross_encoder.max_length == 128
    assert len(loaded) == 2


@pytest.mark.parametrize("kind", BOTH)
def test_threads_that_come_first_together_load_it_once(
    kind: Any, folder: Path, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = count_loads(monkeypatch)
    reranker = kind(model=folder, device="cpu")
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(use(reranker))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[str(i) for i in order]] * 4
    assert len(loaded) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_pickles_hold_settings_alone(kind: Any, folder: Path, order: list[int]) -> None:
    reranker = kind(model=folder, device="cpu", top_n=2, min_score=0.01)
    assert use(reranker) == [str(i) for i in order[:2]]
    pickled = pickle.dumps(reranker)
    assert len(pickled) < 2_000 < (folder / "model.safetensors").stat().st_size
    again = pickle.loads(pickled)
    assert (again.top_n, again.min_score, again.model) == (2, 0.01, str(folder))
    assert use(again) == [str(i) for i in order[:2]]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"model": ""}, "model"),
        ({}, "model"),
        ({"model": "x", "top_n": 0}, "top_n"),
        ({"model": "x", "min_score": 1.5}, "min_score"),
        ({"model": "x", "max_length": 0}, "max_length"),
        ({"model": "x", "dtype": "int8"}, "dtype"),
        ({"model": "x", "topn": 3}, "topn"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(kind: Any, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        kind(**settings)
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_that_is_no_reranker_is_named_at_the_first_use(kind: Any) -> None:
    with pytest.raises(ModelFormatError, match="holds BertModel, which is no reranker"):
        use(kind(model="luotuo-mini"))


@pytest.mark.parametrize("kind", BOTH)
def test_settings_reach_the_model(kind: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reranker = kind(
        model=folder, device="cpu", dtype="float16", max_length=30, max_tokens_per_batch=50, show_progress=True
    )
    use(reranker)
    encoder = reranker.cross_encoder
    assert (str(encoder.dtype), encoder.max_length, encoder.max_tokens_per_batch) == ("torch.float16", 30, 50)
    assert "Reranking" in capfd.readouterr().err
