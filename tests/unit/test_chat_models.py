"""The chat model on the openai client, against a stub server on loopback."""

import asyncio
import copy
import http.server
import json
import logging
import pickle
import socket
import sys
import threading
from collections.abc import Iterator

import openai
import pytest
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from openai_stub import WITHOUT_PASSAGES, OpenAIStubServer
from pydantic import ValidationError

from luotuo_integrations.chat_models import ChatOpenAICompatible, openai_compatible
from luotuo_integrations.errors import ModelNotFoundError

ANSWER = "试用期为三个月。期满前一周由主管考核。"
PROMPT = "资料：\n\n[1] 试用期为三个月，\n不得延长。\n\n[2] 年假每年十天。\n\n问题：试用期多久？"


@pytest.fixture
def server() -> Iterator[OpenAIStubServer]:
    with OpenAIStubServer(ANSWER) as running:
        yield running


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Answers


def test_invoke(server: OpenAIStubServer) -> None:
    message = openai_compatible(server.base_url, "stub-model").invoke("试用期多久？")
    assert isinstance(message, AIMessage)
    assert message.content == ANSWER
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "stub-model"
    assert message.usage_metadata == {"input_tokens": 6, "output_tokens": len(ANSWER), "total_tokens": 6 + len(ANSWER)}


def test_the_request_holds_messages_and_settings(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model", temperature=0.3, max_tokens=50)
    model.invoke([SystemMessage("只用资料回答"), HumanMessage([{"type": "text", "text": "几天？"}]), AIMessage("十天")])
    assert server.requests == [
        {
            "model": "stub-model",
            "messages": [
                {"role": "system", "content": "只用资料回答"},
                {"role": "user", "content": "几天？"},
                {"role": "assistant", "content": "十天"},
            ],
            "temperature": 0.3,
            "max_tokens": 50,
        }
    ]


async def test_all_four_ways_give_the_same_text_and_usage(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model")
    whole = model.invoke("多久？")
    streamed = list(model.stream("多久？"))
    assert len(streamed) > 3
    assert [chunk.content for chunk in streamed][:2] == [ANSWER[:4], ANSWER[4:8]]
    assert streamed[-1].chunk_position == "last"
    async_streamed = [chunk async for chunk in model.astream("多久？")]
    others = [sum(streamed[1:], streamed[0]), sum(async_streamed[1:], async_streamed[0]), await model.ainvoke("多久？")]
    for other in others:
        assert other.content == whole.content == ANSWER
        assert other.usage_metadata == whole.usage_metadata
        assert other.response_metadata["finish_reason"] == "stop"
        assert other.response_metadata["model_name"] == "stub-model"


async def test_a_chain(server: OpenAIStubServer) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "简短回答"), ("human", "{question}")])
    chain = prompt | openai_compatible(server.base_url, "stub-model") | StrOutputParser()
    assert chain.invoke({"question": "试用期多久？"}) == ANSWER
    assert await chain.ainvoke({"question": "试用期多久？"}) == ANSWER
    assert "".join(chain.stream({"question": "试用期多久？"})) == ANSWER
    assert chain.batch([{"question": "甲"}, {"question": "乙"}]) == [ANSWER, ANSWER]
    assert server.requests[0]["messages"][1] == {"role": "user", "content": "试用期多久？"}


def test_stop_words(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model")
    assert model.invoke("多久？", stop=["。"]).content == "试用期为三个月"
    assert "".join(chunk.content for chunk in model.stream("多久？", stop=["。", "三"])) == "试用期为"
    stopping = ChatOpenAICompatible(base_url=server.base_url, model="stub-model", stop=["个"])
    assert stopping.invoke("多久？").content == "试用期为三"
    assert stopping.invoke("多久？", stop=[]).content == ANSWER
    assert server.requests[0]["stop"] == ["。"]
    assert "stop" not in server.requests[-1]


def test_an_answer_that_is_too_long_says_so(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model", max_tokens=3)
    assert model.invoke("多久？").response_metadata["finish_reason"] == "length"
    assert list(model.stream("多久？"))[-1].response_metadata["finish_reason"] == "length"


def test_options_for_one_call(server: OpenAIStubServer) -> None:
    server.models.append("另一个")
    model = openai_compatible(server.base_url, "stub-model")
    thinking_off = {"chat_template_kwargs": {"enable_thinking": False}}
    model.bind(temperature=0.9, model="另一个", extra_body=thinking_off).invoke("多久？")
    assert server.requests[0]["temperature"] == 0.9
    assert server.requests[0]["model"] == "另一个"
    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(TypeError, match="temprature"):
        model.invoke("多久？", temprature=1.0)


def test_usage_is_counted_once_where_a_server_repeats_it() -> None:
    events = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], "usage": counts}
        for text, reason, counts in [
            ("三个", None, {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}),
            ("月", "stop", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}),
        ]
    ]
    with raw_server("text/event-stream", server_sent(events)) as base_url:
        chunks = list(openai_compatible(base_url, "glm-4").stream("多久？"))
    total = sum(chunks[1:], chunks[0])
    assert total.content == "三个月"
    assert total.usage_metadata == {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}


def test_a_server_without_stream_options() -> None:
    with OpenAIStubServer(ANSWER, stream_options=False) as server:
        model = openai_compatible(server.base_url, "stub-model")
        with pytest.raises(openai.BadRequestError, match="stream_options"):
            list(model.stream("多久？"))
        chunks = list(model.bind(stream_options=None).stream("多久？"))
        assert "".join(chunk.content for chunk in chunks) == ANSWER
        assert chunks[-1].usage_metadata is None


def test_streaming_events_reach_callbacks(server: OpenAIStubServer) -> None:
    model = ChatOpenAICompatible(base_url=server.base_url, model="stub-model", streaming=True)
    assert model.invoke("多久？").content == ANSWER
    assert server.requests[0]["stream"] is True


def test_leaving_a_stream_early_is_harmless(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model")
    for chunk in model.stream("多久？"):
        assert isinstance(chunk, AIMessageChunk)
        break
    assert model.invoke("多久？").content == ANSWER


def test_one_model_in_several_event_loops(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model")

    async def ask_twice() -> list[str]:
        answers = await asyncio.gather(model.ainvoke("甲"), model.ainvoke("乙"))
        return [answer.content for answer in answers]

    assert [asyncio.run(ask_twice()) for _ in range(3)] == [[ANSWER, ANSWER]] * 3


async def test_the_event_loop_keeps_running() -> None:
    loop_ran = threading.Event()

    def wait_for_the_loop(request: dict) -> str:
        return ANSWER if loop_ran.wait(timeout=20) else "the event loop was blocked"

    with OpenAIStubServer(wait_for_the_loop) as server:
        answer = asyncio.create_task(openai_compatible(server.base_url, "stub-model").ainvoke("多久？"))
        await asyncio.sleep(0.05)
        loop_ran.set()
        assert (await answer).content == ANSWER


# The address


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1"),
        ("http://localhost:11434/", "http://localhost:11434/v1"),
        (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
        ("https://api.example.cn/api/paas/v4", "https://api.example.cn/api/paas/v4"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_base_url_is_completed(given: str, used: str) -> None:
    assert ChatOpenAICompatible(base_url=given, model="glm-4").base_url == used


@pytest.mark.parametrize("given", ["localhost:8000", "", "ftp://localhost/v1", "127.0.0.1:8000/v1", "http://"])
def test_base_url_that_is_no_http_address(given: str) -> None:
    with pytest.raises(ValueError, match="must be an http address such as 'http://localhost:8000/v1'"):
        openai_compatible(given, "glm-4")


def test_the_root_without_v1_is_enough(server: OpenAIStubServer) -> None:
    assert openai_compatible(server.base_url.removesuffix("/v1"), "stub-model").invoke("多久？").content == ANSWER


async def test_a_proxy_in_the_environment_is_not_asked_for_local_servers(
    server: OpenAIStubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    model = openai_compatible(server.base_url, "stub-model", max_retries=0)
    assert model.invoke("多久？").content == ANSWER
    assert (await model.ainvoke("多久？")).content == ANSWER


# The key


def test_where_the_key_comes_from(server: OpenAIStubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    openai_compatible(server.base_url, "stub-model").invoke("多久？")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env\n")
    openai_compatible(server.base_url, "stub-model").invoke("多久？")
    openai_compatible(server.base_url, "stub-model", api_key="sk-argument").invoke("多久？")
    assert [headers["authorization"] for headers in server.headers] == [
        "Bearer EMPTY",
        "Bearer sk-env",
        "Bearer sk-argument",
    ]


def test_the_key_is_never_shown_or_saved(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url, "stub-model", api_key="sk-secret")
    model.invoke("多久？")
    shown = [
        repr(model),
        str(model),
        model.model_dump_json(),
        dumps(model),
        str(model.asdict()),
        str(model.model_dump()),
    ]
    assert not [text for text in shown if "sk-secret" in text]
    assert b"sk-secret" not in pickle.dumps(model)


def test_a_pickled_copy_takes_its_key_from_the_environment(
    server: OpenAIStubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "sk-other"
    model = openai_compatible(server.base_url, "stub-model", api_key="sk-other", max_tokens=7)
    assert model.invoke("多久？").content == ANSWER[:7]
    saved = pickle.dumps(model)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert pickle.loads(saved).invoke("多久？").content == ANSWER[:7]
    assert copy.deepcopy(model).invoke("多久？").content == ANSWER[:7]


# Errors


async def test_a_server_that_is_not_there() -> None:
    base_url = f"http://127.0.0.1:{free_port()}/v1"
    model = openai_compatible(base_url, "glm-4", max_retries=0)
    with pytest.raises(ConnectionError, match=rf"{base_url} cannot be reached.*Check that the server runs"):
        model.invoke("多久？")
    with pytest.raises(ConnectionError, match=base_url):
        list(model.stream("多久？"))
    with pytest.raises(ConnectionError, match=base_url):
        await model.ainvoke("多久？")
    with pytest.raises(ConnectionError, match=base_url):
        [chunk async for chunk in model.astream("多久？")]


async def test_a_model_that_the_server_does_not_offer(server: OpenAIStubServer) -> None:
    server.models.append("glm-4-9b-chat")
    model = openai_compatible(server.base_url, "chatglm3")
    message = r"no model 'chatglm3' .*does not exist.*It offers glm-4-9b-chat, stub-model"
    with pytest.raises(ModelNotFoundError, match=message):
        model.invoke("多久？")
    with pytest.raises(ModelNotFoundError, match=message):
        [chunk async for chunk in model.astream("多久？")]


def test_an_address_beside_the_api(server: OpenAIStubServer) -> None:
    model = openai_compatible(server.base_url.removesuffix("/v1") + "/api", "stub-model")
    with pytest.raises(ModelNotFoundError, match=r"/api has no model.*offers nothing: is base_url the root of its API"):
        model.invoke("多久？")


async def test_a_web_page_instead_of_an_api() -> None:
    with raw_server("text/html", "<html>骆驼的主页</html>".encode()) as base_url:
        model = openai_compatible(base_url, "glm-4")
        with pytest.raises(ValueError, match=r"not with a chat completion: '<html>骆驼的主页.*usually ending in /v1"):
            model.invoke("多久？")
        with pytest.raises(ValueError, match="not with a chat completion: 'no event'"):
            list(model.stream("多久？"))
        with pytest.raises(ValueError, match="not with a chat completion: 'no event'"):
            [chunk async for chunk in model.astream("多久？")]


def test_a_wrong_key() -> None:
    with OpenAIStubServer(api_key="sk-right") as server:
        with pytest.raises(PermissionError, match=r"refused access.*wrong api key.*Pass api_key=") as caught:
            openai_compatible(server.base_url, "stub-model", api_key="sk-wrong").invoke("多久？")
        assert "sk-wrong" not in str(caught.value)
        assert openai_compatible(server.base_url, "stub-model", api_key="sk-right").invoke("多久？").content


@pytest.mark.parametrize("status", [429, 500])
async def test_a_busy_server_is_asked_again(status: int) -> None:
    with OpenAIStubServer(ANSWER, error=status, failures=2) as server:
        assert openai_compatible(server.base_url, "stub-model", max_retries=2).invoke("多久？").content == ANSWER
        assert len(server.requests) == 3
    with OpenAIStubServer(ANSWER, error=status) as server:
        with pytest.raises(openai.APIStatusError, match=f"told to answer {status}"):
            await openai_compatible(server.base_url, "stub-model", max_retries=1).ainvoke("多久？")
        assert len(server.requests) == 2


def test_a_server_that_is_too_slow() -> None:
    answered = threading.Event()

    def slowly(request: dict) -> str:
        answered.wait(timeout=20)
        return ANSWER

    with OpenAIStubServer(slowly) as server:
        model = openai_compatible(server.base_url, "stub-model", timeout=0.2, max_retries=0)
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 seconds.*longer timeout"):
            model.invoke("多久？")
        answered.set()


def test_an_answer_that_breaks_off_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    events = [{"choices": [{"index": 0, "delta": {"content": "试用"}, "finish_reason": None}]}]
    with raw_server("text/event-stream", server_sent(events)) as base_url, caplog.at_level(logging.WARNING):
        text = "".join(chunk.content for chunk in openai_compatible(base_url, "glm-4").stream("多久？"))
    assert text == "试用"
    assert "without a finish_reason: it may be cut off" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [{"temperature": -0.1}, {"max_tokens": 0}, {"timeout": 0}, {"max_retries": -1}, {"model": ""}, {"modle": "glm-4"}],
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(arguments))):
        ChatOpenAICompatible(**{"base_url": "http://localhost:8000/v1", "model": "glm-4", **arguments})


def test_without_the_openai_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'luotuo-integrations\[llm\]'"):
        openai_compatible("http://localhost:8000/v1", "glm-4")


# The stub itself, on which other tests lean


def test_the_stub_quotes_the_first_numbered_passage() -> None:
    with OpenAIStubServer() as server:
        model = openai_compatible(server.base_url, "stub-model")
        assert model.invoke(PROMPT).content == "试用期为三个月，\n不得延长。 [1]"
        assert "".join(chunk.content for chunk in model.stream(PROMPT)) == "试用期为三个月，\n不得延长。 [1]"
        assert model.invoke("没有资料").content == WITHOUT_PASSAGES


class raw_server:  # noqa: N801  (used as a function)
    """A server that answers everything with the same bytes."""

    def __init__(self, content_type: str, body: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def server_sent(events: list[dict]) -> bytes:
    envelope = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "glm-4"}
    lines = [f"data: {json.dumps({**envelope, **event}, ensure_ascii=False)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
