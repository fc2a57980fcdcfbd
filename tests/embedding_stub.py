"""A stub of an OpenAI-compatible embeddings server on loopback. It holds no model: vectors are hashes of the texts."""

import base64
import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

BAD_ANSWERS = {"dimension", "nan", "zero", "fewer", "same index", "words", "uneven", "web page", "no data", "half json"}


def stub_vector(text: str, dimension: int = 8, input_type: str = "") -> npt.NDArray[np.float32]:
    """The vector that the stub gives for a text: float32 (dimension,), each number in [-1, 1)."""
    data = hashlib.shake_128(f"{input_type}|{text}".encode()).digest(2 * dimension)
    return (np.frombuffer(data, dtype="<i2") / 32768).astype(np.float32)


class EmbeddingStub:
    """A stub server for tests: ``with EmbeddingStub() as server: OpenAICompatibleTeacher("stub", base_url=...)``.

    Args:
        dimension: Length of the vectors; a request's ``dimensions`` goes before it.
        models: The names it offers; any other gets a 404.
        faults: What the first requests get, one each, in place of an answer: a status (``"429"``, ``"500"``),
            ``"quota"`` (429 with insufficient_quota), ``"hang up"`` (half an answer), ``"shuffled"`` (right, but out of
            order), or one of ``BAD_ANSWERS``. An empty string is no fault.
        always: A fault for every request after those.
        retry_after: The Retry-After header of a 429 or 5xx, in seconds.
        poison: A text; whichever request holds it gets a 400.
        most_texts: A request with more texts gets a 413; None for no limit.
        api_key: The key to insist on; None for any.
        base64_always: Answer in base64 whatever was asked for.
        meet: So many requests must be there at once before any is answered; they get 500 when that does not happen.
        on_request: Called with the number of requests so far, at the start of each.

    Attributes:
        requests: Bodies of the requests, in the order they came.
        headers: Their headers, names in lower case.
        answered: How often each text was in a request that was answered well.
        most_at_once: The most requests that were being answered at one time.
    """

    def __init__(
        self,
        dimension: int = 8,
        *,
        models: Sequence[str] = ("stub",),
        faults: Sequence[str] = (),
        always: str = "",
        retry_after: str | None = None,
        poison: str | None = None,
        most_texts: int | None = None,
        api_key: str | None = None,
        base64_always: bool = False,
        meet: int = 1,
        on_request: Callable[[int], None] | None = None,
    ) -> None:
        self.dimension = dimension
        self.models = list(models)
        self.faults = list(faults)
        self.always = always
        self.retry_after = retry_after
        self.poison = poison
        self.most_texts = most_texts
        self.api_key = api_key
        self.base64_always = base64_always
        self.on_request = on_request
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.most_at_once = 0
        self._at_once = 0
        self._meeting = threading.Barrier(meet) if meet > 1 else None
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._alive = True

    @property
    def base_url(self) -> str:
        """The root of the API, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def die(self) -> None:
        """Stop listening: further requests are refused a connection."""
        if self._alive:
            self._alive = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.die()

    def arrive(self, request: dict[str, Any], headers: dict[str, str]) -> str:
        """Count a request and return its fault, or an empty string."""
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self.faults.pop(0) if self.faults else self.always
            number = len(self.requests)
        if self.on_request is not None:
            self.on_request(number)
        if self._meeting is not None:
            try:
                self._meeting.wait(timeout=5)
            except threading.BrokenBarrierError:
                return "500"
        return fault

    def leave(self) -> None:
        """Count a request as done."""
        with self._lock:
            self._at_once -= 1

    def count(self, texts: Sequence[str]) -> None:
        """Count texts as answered."""
        with self._lock:
            self.answered.update(texts)

    def refusal(self, request: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the message to refuse a request with, or None to answer it."""
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, f"Incorrect API key provided: {headers.get('authorization', '').removeprefix('Bearer ')}"
        if request["model"] not in self.models:
            return 404, f"The model `{request['model']}` does not exist."
        if self.poison is not None and self.poison in request["input"]:
            return 400, "the stub was told not to like one of the texts"
        if self.most_texts is not None and len(request["input"]) > self.most_texts:
            return 413, "too many texts"
        if "" in request["input"]:
            return 400, "input cannot be an empty string"
        return None

    def data(self, request: dict[str, Any], fault: str) -> list[dict[str, Any]]:
        """The answer's items."""
        dimension = request.get("dimensions", self.dimension) + (fault == "dimension")
        texts: list[str] = request["input"]
        vectors: Any = np.stack([stub_vector(text, dimension, request.get("input_type", "")) for text in texts])
        if fault == "nan":
            vectors[-1, 0] = np.nan
        if fault == "zero":
            vectors[-1] = 0
        if request.get("encoding_format") == "base64" or self.base64_always:
            rows: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        else:
            rows = vectors.tolist()
        if fault == "words":
            rows[-1] = ["a", "b"]
        if fault == "uneven":
            rows[-1] = rows[-1][:-1]
        items = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        if fault == "same index":
            items = [{**item, "index": 0} for item in items]
        if fault == "shuffled":
            items.reverse()
        return items[1:] if fault == "fewer" else items


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that left early, or was killed, is part of some tests; anything else is worth a traceback.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(stub: EmbeddingStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                models = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in stub.models]
                self.send_json(200, {"object": "list", "data": models})
            else:
                self.fail(404, f"no such path: {self.path}")

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/embeddings":
                self.fail(404, f"no such path: {self.path}")
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            fault = stub.arrive(request, headers)
            try:
                self.answer(request, headers, fault)
            finally:
                stub.leave()

        def answer(self, request: dict[str, Any], headers: dict[str, str], fault: str) -> None:
            refusal = stub.refusal(request, headers)
            if fault == "quota":
                self.fail(429, "You exceeded your current quota", code="insufficient_quota")
            elif fault.isdigit():
                self.fail(int(fault), f"the stub was told to answer {fault}")
            elif refusal is not None:
                self.fail(*refusal)
            elif fault == "web page":
                self.send_body(200, b"<html>Welcome</html>", "text/html")
            elif fault == "no data":
                self.send_json(200, {"error_code": 17, "error_msg": "the day's quota is used up"})
            else:
                data = stub.data(request, fault)
                body = {"object": "list", "model": request["model"], "data": data, "usage": usage(request)}
                if fault in ("", "shuffled"):  # before it is sent: who has the answer may look at the count at once
                    stub.count(request["input"])
                self.send_answer(body, fault)

        def send_answer(self, content: dict[str, Any], fault: str) -> None:
            body = json.dumps(content).encode()
            if fault == "half json":
                self.send_body(200, body[: len(body) // 2], "application/json")
            elif fault == "hang up":
                self.send_body(200, body[: len(body) // 2], "application/json", length=len(body))
            else:
                self.send_body(200, body, "application/json")

        def fail(self, status: int, message: str, code: str = "stub") -> None:
            self.send_json(status, {"error": {"message": message, "type": "stub_error", "code": code}})

        def send_json(self, status: int, content: dict[str, Any]) -> None:
            self.send_body(status, json.dumps(content).encode(), "application/json")

        def send_body(self, status: int, body: bytes, content_type: str, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(length or len(body)))
            if stub.retry_after is not None and (status == 429 or status >= 500):
                self.send_header("Retry-After", stub.retry_after)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
            """Keep the test's output clean."""

    return Handler


def usage(request: dict[str, Any]) -> dict[str, int]:
    tokens = sum(len(text) for text in request["input"])
    return {"prompt_tokens": tokens, "total_tokens": tokens}
