import asyncio
import copy
import logging
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.kvstore import SimpleKVStore

from luotuo_integrations import CARDS, DEFAULT_MODEL, LuotuoEmbeddings
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelNotFoundError

PASSAGES = [
    "试用期员工按月累计带薪年假，转正之后即可使用。",
    "出差住宿标准：一线城市每晚不超过四百五十元。",
    "报销需要发票原件与审批单，在月底之前提交。",
    "食堂十一点半开饭，周五供应面条。",
]
QUESTION = "还没转正能休年假吗？"


@pytest.fixture
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(model=tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def bundled() -> LuotuoEmbeddings:
    return LuotuoEmbeddings(device="cpu")


def count_passes(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each forward pass from now on."""
    passes: list[int] = []
    forward = embeddings.encoder.model.forward

    def watched(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        passes.append(len(input_ids))
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(embeddings.encoder.model, "forward", watched)
    return passes


# -- one class, two interfaces ----------------------------------------------------------------------------------------


def test_it_is_both_and_gives_both_the_same(embeddings: LuotuoEmbeddings) -> None:
    assert isinstance(embeddings, Embeddings)
    assert isinstance(embeddings, BaseEmbedding)
    encoder = embeddings.encoder
    passages, query = encoder.encode(PASSAGES), encoder.encode([QUESTION], "query")[0]
    for vectors in (
        embeddings.embed_documents(PASSAGES),
        embeddings.get_text_embedding_batch(PASSAGES),
        [embeddings.get_text_embedding(text) for text in PASSAGES],
        embeddings._get_text_embeddings(PASSAGES),
        asyncio.run(embeddings.aembed_documents(PASSAGES)),
        asyncio.run(embeddings.aget_text_embedding_batch(PASSAGES)),
        [asyncio.run(embeddings.aget_text_embedding(text)) for text in PASSAGES],
        embeddings.encode(PASSAGES),
    ):
        np.testing.assert_allclose(vectors, passages, atol=1e-5)
    for vector in (
        embeddings.embed_query(QUESTION),
        embeddings.get_query_embedding(QUESTION),
        embeddings.get_agg_embedding_from_queries([QUESTION]),
        asyncio.run(embeddings.aembed_query(QUESTION)),
        asyncio.run(embeddings.aget_query_embedding(QUESTION)),
        embeddings.encode([QUESTION], "query")[0],
    ):
        np.testing.assert_allclose(vector, query, atol=1e-5)
    assert not np.allclose(query, encoder.encode([QUESTION])[0], atol=1e-3)  # the prompt is felt


def test_lists_hold_python_floats(embeddings: LuotuoEmbeddings) -> None:
    vectors = embeddings.embed_documents(PASSAGES)
    assert type(vectors) is list
    assert type(vectors[0]) is list
    assert type(vectors[0][0]) is float
    assert type(embeddings.embed_query(QUESTION)[0]) is float
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []
    assert embeddings.encode([]).shape == (0, 24)


def test_encode_takes_iterators_and_fills_arrays(embeddings: LuotuoEmbeddings) -> None:
    def texts() -> Iterator[str]:
        yield from PASSAGES

    out = np.zeros((4, 24), np.float32)
    assert embeddings.encode(texts(), out=out) is out
    np.testing.assert_allclose(out, embeddings.embed_documents(PASSAGES), atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_documents(texts())), out, atol=1e-6)  # type: ignore[arg-type]


# -- LlamaIndex -------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama_settings(bundled: LuotuoEmbeddings) -> Iterator[None]:
    before = Settings._embed_model
    Settings.embed_model = bundled
    yield
    Settings._embed_model = before


@pytest.mark.usefixtures("llama_settings")
def test_an_index_finds_the_passage_that_answers() -> None:
    index = VectorStoreIndex.from_documents([Document(text=text) for text in PASSAGES])
    found = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert found[0].text == PASSAGES[0]
    found = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve("住酒店一晚上最多花多少钱"))
    assert found[0].text == PASSAGES[1]


@pytest.mark.usefixtures("llama_settings")
def test_an_index_built_asynchronously_holds_the_same_vectors(bundled: LuotuoEmbeddings) -> None:
    index = VectorStoreIndex.from_documents([Document(text=text) for text in PASSAGES], use_async=True)
    stored = {
        index.docstore.get_document(node).get_content(): index.vector_store.get(node)  # type: ignore[attr-defined]
        for node in index.index_struct.nodes_dict
    }
    for text, vector in zip(PASSAGES, bundled.embed_documents(PASSAGES), strict=True):
        np.testing.assert_allclose(stored[text], vector, atol=1e-5)


def test_an_ingestion_pipeline_embeds_its_nodes(embeddings: LuotuoEmbeddings) -> None:
    documents = [Document(text=text) for text in PASSAGES]
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=200), embeddings])
    nodes = pipeline.run(documents=documents)
    expected = embeddings.embed_documents([node.get_content() for node in nodes])
    np.testing.assert_allclose([node.embedding for node in nodes], expected, atol=1e-5)
    again = asyncio.run(IngestionPipeline(transformations=[embeddings]).arun(documents=documents))
    np.testing.assert_allclose([node.embedding for node in again], expected, atol=1e-5)


def test_an_ingestion_pipeline_with_workers_works(tiny_folder: Path) -> None:
    embeddings = LuotuoEmbeddings(model=tiny_folder, device="cpu")
    pipeline = IngestionPipeline(transformations=[embeddings])
    nodes = pipeline.run(documents=[Document(text=text) for text in PASSAGES], num_workers=2)
    by_text = {node.get_content(): node.embedding for node in nodes}
    np.testing.assert_allclose([by_text[text] for text in PASSAGES], embeddings.embed_documents(PASSAGES), atol=1e-5)


def test_slices_of_llama_index_have_our_size(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    slices: list[int] = []
    encode = embeddings.encoder.encode

    def counted(texts: list[str], *arguments: Any) -> Any:
        slices.append(len(texts))
        return encode(texts, *arguments)

    monkeypatch.setattr(embeddings.encoder, "encode", counted)
    embeddings.get_text_embedding_batch([f"第{number}条" for number in range(300)])
    assert slices == [256, 44]


def test_langchain_stores_take_it(bundled: LuotuoEmbeddings) -> None:
    store = InMemoryVectorStore.from_texts(PASSAGES, bundled)
    assert store.similarity_search(QUESTION, k=1)[0].page_content == PASSAGES[0]


# -- settings ---------------------------------------------------------------------------------------------------------


def test_to_dict_holds_what_changes_vectors_and_nothing_else(tiny_folder: Path) -> None:
    embeddings = LuotuoEmbeddings(
        model=tiny_folder,
        device="cpu",
        dtype="float32",
        dimensions=8,
        max_length=64,
        normalize=False,
        query_prompt="问：",
        passage_prompt="文：",
        revision="main",
        embed_batch_size=7,
    )
    data = embeddings.to_dict()
    assert data == {
        "model": str(tiny_folder),
        "model_name": str(tiny_folder),
        "dimensions": 8,
        "max_length": 64,
        "normalize": False,
        "query_prompt": "问：",
        "passage_prompt": "文：",
        "revision": "main",
        "embed_batch_size": 7,
        "num_workers": None,
        "embeddings_cache": None,
        "class_name": "LuotuoEmbeddings",
    }
    again = LuotuoEmbeddings.from_dict(data)
    assert again.to_dict() == data
    np.testing.assert_allclose(again.embed_documents(PASSAGES), embeddings.embed_documents(PASSAGES), atol=1e-6)
    assert LuotuoEmbeddings.from_json(embeddings.to_json()).to_dict() == data


def test_loading_the_model_does_not_change_to_dict(embeddings: LuotuoEmbeddings) -> None:
    before = embeddings.to_dict()
    embeddings.embed_query(QUESTION)
    assert embeddings.to_dict() == before
    assert embeddings.class_name() == "LuotuoEmbeddings"


@pytest.mark.parametrize(
    "wrong",
    [
        {"embed_batch_size": 0},
        {"embed_batch_size": 4096},
        {"dimensions": 0},
        {"dimensions": -1},
        {"max_length": 0},
        {"max_tokens_per_batch": 0},
        {"dtype": "int8"},
        {"normalize": "maybe"},
        {"model": ""},
        {"model": "a", "model_name": "b"},
        {"embeddings_cache": SimpleKVStore()},
    ],
    ids=lambda wrong: " ".join(wrong),
)
def test_wrong_values_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(wrong)):
        LuotuoEmbeddings(**wrong)


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="batch_size"):
        LuotuoEmbeddings(batch_size=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["model", "model_name", "device", "dtype", "dimensions", "query_prompt", "revision"])
def test_settings_of_the_model_cannot_be_changed_afterwards(embeddings: LuotuoEmbeddings, name: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(embeddings, name, None)
    with pytest.raises(ValueError, match="batch_siez"):
        embeddings.batch_siez = 4  # type: ignore[attr-defined]


def test_an_embeddings_cache_cannot_be_put_in_afterwards(embeddings: LuotuoEmbeddings) -> None:
    with pytest.raises(ValueError, match="frozen"):
        embeddings.embeddings_cache = SimpleKVStore()


def test_model_name_is_another_name_for_model(tiny_folder: Path) -> None:
    by_alias = LuotuoEmbeddings(model_name=str(tiny_folder))
    assert by_alias.to_dict() == LuotuoEmbeddings(tiny_folder).to_dict()
    assert by_alias.model == by_alias.model_name == str(tiny_folder)
    assert LuotuoEmbeddings().model_name == DEFAULT_MODEL


# -- copies -----------------------------------------------------------------------------------------------------------


def test_a_pickle_is_small_and_silent(embeddings: LuotuoEmbeddings, caplog: pytest.LogCaptureFixture) -> None:
    expected = embeddings.embed_documents(PASSAGES)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        data = pickle.dumps(embeddings)
        again = pickle.loads(data)
    assert len(data) < 2048
    assert not caplog.records
    assert again._loader._encoder is None
    assert again.device == "cpu"
    np.testing.assert_allclose(again.embed_documents(PASSAGES), expected, atol=1e-6)


def test_a_pickle_keeps_every_setting(tiny_folder: Path) -> None:
    settings = {
        "model": str(tiny_folder),
        "device": "cpu",
        "dtype": "bfloat16",
        "dimensions": 7,
        "max_length": 50,
        "normalize": False,
        "query_prompt": "问",
        "passage_prompt": "",
        "embed_batch_size": 3,
        "max_tokens_per_batch": 99,
        "show_progress": True,
        "cache_folder": "/tmp/缓存",
        "revision": "v1",
        "trust_remote_code": True,
        "num_workers": 2,
    }
    again = pickle.loads(pickle.dumps(LuotuoEmbeddings(**settings)))  # type: ignore[arg-type]
    assert {name: getattr(again, name) for name in settings} == settings


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda one: one.model_copy()])
def test_copies_share_the_loaded_model(embeddings: LuotuoEmbeddings, copier: Any) -> None:
    manager = CallbackManager([])
    embeddings.callback_manager = manager
    copied = copier(embeddings)
    assert copied is not embeddings
    assert copied.encoder is embeddings.encoder
    assert copied.callback_manager is manager
    assert copied.to_dict() == embeddings.to_dict()


def test_a_copy_with_other_settings_has_its_own_model(embeddings: LuotuoEmbeddings) -> None:
    short = embeddings.model_copy(update={"dimensions": 5})
    assert (len(short.embed_query(QUESTION)), len(embeddings.embed_query(QUESTION))) == (5, 24)
    sliced = embeddings.model_copy(update={"embed_batch_size": 9})
    assert sliced.embed_batch_size == 9
    assert sliced.encoder is embeddings.encoder
    with pytest.raises(TypeError):
        embeddings.model_copy(update={"dimension": 5})


def test_a_copy_made_before_loading_shares_what_is_loaded_later(embeddings: LuotuoEmbeddings) -> None:
    copied = copy.deepcopy({"embeddings": embeddings})["embeddings"]
    assert copied.encoder is embeddings.encoder


# -- loading ----------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded too early")

    monkeypatch.setattr("luotuo_integrations.encoder.Encoder.__init__", refuse)
    embeddings = LuotuoEmbeddings()
    assert embeddings.dimension == CARDS[DEFAULT_MODEL].dimension == 384
    assert LuotuoEmbeddings(dimensions=64).dimension == 64
    assert embeddings.relevance([1.0]).shape == (1,)
    pickle.dumps(copy.deepcopy(embeddings))
    with pytest.raises(AssertionError, match="too early"):
        embeddings.embed_query(QUESTION)


def test_threads_that_come_at_once_load_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    init = Encoder.__init__

    def counted(self: Encoder, *args: Any, **settings: Any) -> None:
        loads.append(1)
        init(self, *args, **settings)

    monkeypatch.setattr(Encoder, "__init__", counted)
    embeddings = LuotuoEmbeddings(model=tiny_folder, device="cpu")
    results: list[list[float]] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        results.append(embeddings.embed_query(QUESTION))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    for vector in results:
        np.testing.assert_allclose(vector, results[0], atol=1e-6)
    assert len(results) == 8


def test_a_model_that_does_not_exist_is_an_error_at_the_first_call_and_again() -> None:
    embeddings = LuotuoEmbeddings(model="没有这个模型")
    for _ in range(2):
        with pytest.raises(ModelNotFoundError, match=DEFAULT_MODEL):
            embeddings.embed_query(QUESTION)
    with pytest.raises(ModelNotFoundError):
        asyncio.run(embeddings.aembed_query(QUESTION))


def test_an_impossible_dimension_is_an_error_for_the_bundled_model_too() -> None:
    with pytest.raises(ValueError, match="dimensions=385"):
        _ = LuotuoEmbeddings(dimensions=385, device="cpu").dimension


def test_properties_of_the_model(embeddings: LuotuoEmbeddings, tiny_folder: Path) -> None:
    encoder = Encoder(tiny_folder, device="cpu")
    assert embeddings.dimension == 24
    assert embeddings.max_tokens == 128
    assert embeddings.fingerprint == encoder.fingerprint
    assert embeddings.count_tokens(["年假", ""]) == [2, 0]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", ["试用期", b"x", None, 3, {"a": 1}, {"a"}, ["好", None], ["好", 3.0], [["好"]]])
def test_what_is_no_text_is_refused_before_the_model_is_loaded(texts: Any) -> None:
    embeddings = LuotuoEmbeddings(device="cpu")
    for call in (embeddings.embed_documents, embeddings.encode, embeddings.count_tokens):
        with pytest.raises(TypeError, match="texts"):
            call(texts)
    with pytest.raises(TypeError, match="texts"):
        asyncio.run(embeddings.aembed_documents(texts))
    assert embeddings._loader._encoder is None


@pytest.mark.parametrize("text", [None, 3, b"x", ["好"], float("nan")])
def test_a_query_must_be_one_string(text: Any) -> None:
    embeddings = LuotuoEmbeddings(device="cpu")
    with pytest.raises(TypeError, match="must be one string"):
        embeddings.embed_query(text)
    with pytest.raises(TypeError, match="must be one string"):
        asyncio.run(embeddings.aembed_query(text))
    assert embeddings._loader._encoder is None


# -- relevance --------------------------------------------------------------------------------------------------------


def test_relevance_lies_between_zero_and_one_in_the_order_of_the_cosines(
    embeddings: LuotuoEmbeddings, bundled: LuotuoEmbeddings
) -> None:
    cosines = np.linspace(-1, 1, 201).reshape(3, 67)
    for one in (embeddings, bundled):
        relevance = one.relevance(cosines)
        assert relevance.shape == cosines.shape
        assert ((relevance >= 0) & (relevance <= 1)).all()
        assert (np.diff(relevance.ravel()) >= 0).all()
    np.testing.assert_allclose(embeddings.relevance([-1.0, 0.0, 1.0]), [0.0, 0.5, 1.0])
    assert float(embeddings.relevance(1.0000001)) <= 1.0


def test_cut_vectors_have_a_relevance_of_their_own() -> None:
    card = CARDS[DEFAULT_MODEL]
    assert [size for size, _, _ in card.cut_relevance] == list(card.matryoshka)
    for size, _, midpoint in card.cut_relevance:
        assert float(LuotuoEmbeddings(dimensions=size).relevance(midpoint)) == pytest.approx(0.5)
    assert float(LuotuoEmbeddings(dimensions=100).relevance(0.5)) == 0.75  # none was fitted
    assert card.relevance is not None
    assert float(LuotuoEmbeddings(dimensions=384).relevance(card.relevance[1])) == pytest.approx(0.5)


# -- concurrency ------------------------------------------------------------------------------------------------------


def test_concurrent_queries_share_forward_passes(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [f"第{number}个问题：{QUESTION}" for number in range(64)]
    expected = embeddings.encode(queries, "query")
    passes = count_passes(embeddings, monkeypatch)

    async def ask() -> list[list[float]]:
        return await asyncio.gather(*(embeddings.aembed_query(query) for query in queries))

    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-5)
    assert sum(passes) == 64
    assert len(passes) <= 8


def test_queries_and_passages_that_come_together_are_told_apart(embeddings: LuotuoEmbeddings) -> None:
    async def ask() -> list[Any]:
        both = [(embeddings.aembed_query(text), embeddings.aembed_documents([text, text])) for text in PASSAGES]
        return await asyncio.gather(*(call for pair in both for call in pair))

    answers = asyncio.run(ask())
    np.testing.assert_allclose(answers[::2], embeddings.encode(PASSAGES, "query"), atol=1e-5)
    for number, text in enumerate(PASSAGES):
        np.testing.assert_allclose(answers[2 * number + 1], embeddings.encode([text, text]), atol=1e-5)


def test_one_bad_text_among_concurrent_callers_fails_alone(embeddings: LuotuoEmbeddings) -> None:
    weight = embeddings.encoder.model.backbone.embeddings.word_embeddings.weight
    weight.data[embeddings.encoder.tokenizer.encode(["超"])[0]] = float("nan")
    texts: list[Any] = ["出差", "超过", None, *(f"第{number}条" for number in range(30))]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(embeddings.aembed_documents([text]) for text in texts), return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers[1], ValueError)
    assert isinstance(answers[2], TypeError)
    good = [0, *range(3, 33)]
    np.testing.assert_allclose(
        [answers[index][0] for index in good], embeddings.encode([texts[index] for index in good]), atol=1e-5
    )


@pytest.mark.parametrize("count", [1, 64, 65, 300])
def test_the_event_loop_never_waits(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The model finishes only after the loop has turned a hundred times meanwhile."""
    forward = embeddings.encoder.model.forward
    turned = threading.Event()

    def slow(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert turned.wait(30), "the event loop stood still while the model worked"
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(embeddings.encoder.model, "forward", slow)

    async def tick() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        turned.set()

    async def both() -> list[list[float]]:
        vectors, _ = await asyncio.gather(embeddings.aembed_documents(["年假"] * count), tick())
        return vectors

    assert len(asyncio.run(both())) == count


def test_loading_does_not_stop_the_event_loop(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = threading.Event()
    init = Encoder.__init__

    def slow(self: Encoder, *args: Any, **settings: Any) -> None:
        assert turned.wait(30), "the event loop stood still while the model was loaded"
        init(self, *args, **settings)

    monkeypatch.setattr(Encoder, "__init__", slow)
    embeddings = LuotuoEmbeddings(model=tiny_folder, device="cpu")

    async def both() -> None:
        async def tick() -> None:
            await asyncio.sleep(0.01)
            turned.set()

        await asyncio.gather(embeddings.aembed_query(QUESTION), embeddings.aembed_documents(PASSAGES), tick())

    asyncio.run(both())


def test_a_cancelled_call_leaves_the_others_alone(embeddings: LuotuoEmbeddings) -> None:
    async def ask() -> list[list[float]]:
        calls = [asyncio.create_task(embeddings.aembed_query(text)) for text in PASSAGES]
        await asyncio.sleep(0)
        calls[1].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        return [result for result in results if isinstance(result, list)]

    kept = [text for number, text in enumerate(PASSAGES) if number != 1]
    np.testing.assert_allclose(asyncio.run(ask()), embeddings.encode(kept, "query"), atol=1e-5)


def test_one_object_serves_several_event_loops(embeddings: LuotuoEmbeddings) -> None:
    expected = embeddings.embed_query(QUESTION)
    results: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(embeddings.aembed_query(QUESTION))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for vector in results:
        np.testing.assert_allclose(vector, expected, atol=1e-6)
