"""A stub of an OpenAI-compatible server on loopback. It holds no language model: it quotes the prompt back."""

import json
import re
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from typing_extensions import Self

PASSAGE = re.compile(
    r"^[ \t]*\[(?P<number>\d+)\][ \t]*(?P<text>.*?)(?=\n[ \t]*\[\d+\]|\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL
)
WITHOUT_PASSAGES = "桩服务器的回答：提示里没有带编号的段落。"


def quote_first_passage(request: dict[str, Any]) -> str:
    """Answer with the first passage numbered like ``[1] ...`` in the messages, and its number as the citation."""
    prompt = "\n\n".join(str(message.get("content") or "") for message in request["messages"])
    found = PASSAGE.search(prompt)
    return f"{found['text'].strip()} [{found['number']}]" if found else WITHOUT_PASSAGES


class OpenAIStubServer:
    """A stub server for tests: ``with OpenAIStubServer() as server: openai_compatible(server.base_url, "stub-model")``.

    It serves /v1/models and /v1/chat/completions, whole and streamed (server-sent events, four characters each), obeys
    ``stop`` and ``max_tokens``, and counts one token a character.

    Args:
        answer: The answer, or a function from the request's body to it; by default the first numbered passage.
        models: The names it offers; any other name gets a 404.
        error: An HTTP status, for instance 404, 429 or 500: what every chat request gets instead of an answer.
        failures: Only so many requests get the error, then all goes well; None for all of them.
        api_key: The key to insist on; None for any.
        stream_options: Whether the server knows them, or answers 400 as older ones do.

    Attributes:
        requests: The body of each chat request that came, in order, those with an error too.
        headers: The headers of each chat request, their names in lower case.
    """

    def __init__(
        self,
        answer: str | Callable[[dict[str, Any]], str] = quote_first_passage,
        *,
        models: Sequence[str] = ("stub-model",),
        error: int | None = None,
        failures: int | None = None,
        api_key: str | None = None,
        stream_options: bool = True,
    ) -> None:
        self.answer = answer
        self.models = list(models)
        self.error = error
        self.failures = failures
        self.api_key = api_key
        self.stream_options = stream_options
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def base_url(self) -> str:
        """The root of the API, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def refusal(self, request: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the message to refuse a chat request with, or None to answer it."""
        if self.error and (self.failures is None or len(self.requests) <= self.failures):
            return self.error, f"the stub was told to answer {self.error}"
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, "wrong api key"
        if request.get("model") not in self.models:
            return 404, f"The model `{request.get('model')}` does not exist."
        if "stream_options" in request and not self.stream_options:
            return 400, "Unrecognized request argument supplied: stream_options"
        return None

    def complete(self, request: dict[str, Any]) -> tuple[str, str]:
        """The answer and the reason why it ended there."""
        text = self.answer if isinstance(self.answer, str) else self.answer(request)
        stops = request.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.partition(stop)[0]
        limit = request.get("max_tokens")
        return (text, "stop") if limit is None or len(text) <= limit else (text[:limit], "length")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that left early is part of some tests; anything else is worth a traceback.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(stub: OpenAIStubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self.fail(404, f"no such path: {self.path}")
                return
            self.send_json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in stub.models]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self.fail(404, f"no such path: {self.path}")
                return
            request = json.loads(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            stub.requests.append(request)
            stub.headers.append(headers)
            if refusal := stub.refusal(request, headers):
                self.fail(*refusal)
            elif request.get("stream"):
                self.send_events(request, *stub.complete(request))
            else:
                self.send_completion(request, *stub.complete(request))

        def send_completion(self, request: dict[str, Any], text: str, reason: str) -> None:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            kind = "chat.completion"
            self.send_json(200, envelope(request, kind, choices=[choice], usage=usage(request, text)))

        def send_events(self, request: dict[str, Any], text: str, reason: str) -> None:
            deltas = [{"role": "assistant", "content": ""}]
            deltas += [{"content": text[start : start + 4]} for start in range(0, len(text), 4)]
            choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
            choices.append({"index": 0, "delta": {}, "finish_reason": reason})
            kind = "chat.completion.chunk"
            events = [envelope(request, kind, choices=[choice]) for choice in choices]
            if (request.get("stream_options") or {}).get("include_usage"):
                events.append(envelope(request, kind, choices=[], usage=usage(request, text)))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for data in [*(json.dumps(event, ensure_ascii=False) for event in events), "[DONE]"]:
                self.wfile.write(f"data: {data}\n\n".encode())
                self.wfile.flush()

        def fail(self, status: int, message: str) -> None:
            self.send_json(status, {"error": {"message": message, "type": "stub_error", "code": status}})

        def send_json(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status in (429, 500):
                self.send_header("retry-after-ms", "1")  # clients wait half a second and more otherwise
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
            """Keep the test's output clean."""

    return Handler


def envelope(request: dict[str, Any], kind: str, **content: Any) -> dict[str, Any]:
    return {"id": "stub-1", "object": kind, "created": 0, "model": request["model"], **content}


def usage(request: dict[str, Any], text: str) -> dict[str, int]:
    prompt = sum(len(str(message.get("content") or "")) for message in request["messages"])
    return {"prompt_tokens": prompt, "completion_tokens": len(text), "total_tokens": prompt + len(text)}
