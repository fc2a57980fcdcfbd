"""Chat models behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, Xinference, LM Studio, cloud APIs.

ChatGLM, GLM-4, Qwen and others are served by all of these; :func:`openai_compatible` talks to them through the
``openai`` client alone. For a model in this process see :mod:`luotuo_integrations.local_chat`.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, UsageMetadata, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from luotuo_integrations._optional import require
from luotuo_integrations.errors import ModelNotFoundError

_LOGGER = logging.getLogger(__name__)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# For a server that does not know stream_options: model.bind(stream_options=None).
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def openai_compatible(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    timeout: float = 60.0,
    max_retries: int = 2,
) -> BaseChatModel:
    """Make a LangChain chat model of a model behind an OpenAI-compatible server.

    Args:
        base_url: The root of the API, usually ending in /v1: ``"http://localhost:8000/v1"`` for vLLM. Where the address
            has no path, /v1 is appended: ``"http://localhost:11434"`` is enough for Ollama.
        model: The name under which the server offers the model, for instance ``"glm-4-9b-chat"``.
        api_key: The server's key; None reads the environment variable OPENAI_API_KEY. Local servers need none. It is
            kept out of the object's repr and of everything it is saved as, pickles too.
        temperature: From 0 (the likeliest answer) upwards.
        max_tokens: The most tokens to answer with.
        timeout: Seconds to wait for the server, at each attempt.
        max_retries: How often to try again when the server is busy (429), fails (5xx) or cannot be reached.

    Returns:
        The chat model: ``invoke``, ``stream``, ``ainvoke``, ``astream``, ``prompt | model | StrOutputParser()``.
        Further settings of the server go through ``bind``, for instance to switch a model's thinking off:
        ``model.bind(extra_body={"chat_template_kwargs": {"enable_thinking": False}})``.

    Raises:
        ImportError: If the ``openai`` package is not installed.
        ValueError: If an argument is out of range or ``base_url`` is not an http address.
        ConnectionError: When called: the server cannot be reached.
        TimeoutError: When called: the server does not answer in time.
        PermissionError: When called: the server refuses the key.
        ModelNotFoundError: When called: the server does not offer the model; the message lists those it does.
        openai.OpenAIError: When called: any other error, with the server's own message.
    """
    require("openai", extra="llm")
    return ChatOpenAICompatible(
        base_url=base_url,
        model=model,
        api_key=_api_key(api_key),
        temperature=temperature,
        max_tokens=max_tokens,
        timeout=timeout,
        max_retries=max_retries,
    )


def _api_key(given: str | None = None) -> SecretStr:
    # The client insists on a key, local servers do not: "EMPTY" is what their manuals use.
    return SecretStr((given or os.environ.get("OPENAI_API_KEY") or "").strip() or "EMPTY")


class _Clients:
    """The ``openai`` clients of one chat model: made when first used, never copied or pickled."""

    def __init__(self) -> None:
        self.sync: Any = None
        # Connections belong to the event loop that opened them: another loop needs another client.
        self.by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Clients":
        return _Clients()

    def __reduce__(self) -> tuple[type["_Clients"], tuple[()]]:
        return (_Clients, ())


class ChatOpenAICompatible(BaseChatModel):
    """The LangChain chat model that :func:`openai_compatible` makes; the fields are its arguments.

    Args:
        stop: Strings at which to stop answering; ``invoke(..., stop=[...])`` overrides them.
        streaming: Let ``invoke`` stream as well.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key: SecretStr = Field(default_factory=_api_key, exclude=True, repr=False)
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int | None = Field(default=1024, ge=1)
    timeout: float = Field(default=60.0, gt=0)
    max_retries: int = Field(default=2, ge=0)
    stop: list[str] | None = None
    streaming: bool = False
    _clients: _Clients = PrivateAttr(default_factory=_Clients)

    model_config = ConfigDict(extra="forbid")

    @field_validator("base_url")
    @classmethod
    def _complete_base_url(cls, value: str) -> str:
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"base_url is {value!r}, but must be an http address such as 'http://localhost:8000/v1'"
            raise ValueError(msg)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return parts._replace(path=path or "/v1").geturl()

    @property
    def _llm_type(self) -> str:
        return "openai-compatible"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.model_dump(include={"base_url", "model", "temperature", "max_tokens", "stop"})

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {name: value for name, value in state["__dict__"].items() if name != "api_key"}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__({**state, "__dict__": {**state["__dict__"], "api_key": _api_key()}})

    def _settings(self, http_client_class: Any) -> dict[str, Any]:
        # A proxy set in the environment cannot reach this machine's own servers, and answers 502 instead.
        local = urlsplit(self.base_url).hostname in _LOOPBACK
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value(),
            "timeout": self.timeout,
            "max_retries": self.max_retries,
            "http_client": http_client_class(trust_env=False) if local else None,
        }

    def _client(self) -> Any:
        openai = require("openai", extra="llm")
        if self._clients.sync is None:
            self._clients.sync = openai.OpenAI(**self._settings(openai.DefaultHttpxClient))
        return self._clients.sync

    def _async_client(self) -> Any:
        openai = require("openai", extra="llm")
        loop = asyncio.get_running_loop()
        if loop not in self._clients.by_loop:
            self._clients.by_loop[loop] = openai.AsyncOpenAI(**self._settings(openai.DefaultAsyncHttpxClient))
        return self._clients.by_loop[loop]

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
        """The body of a request; options given for one call come last, and what is None is not sent."""
        request = {
            "model": self.model,
            "messages": convert_to_openai_messages(messages, text_format="string"),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": (self.stop if stop is None else stop) or None,
            **options,
        }
        return {name: value for name, value in request.items() if value is not None}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002  (LangChain's signature)
        **kwargs: Any,
    ) -> ChatResult:
        with self._clear_errors():
            response = self._client().chat.completions.create(**self._request(messages, stop, kwargs))
        return self._result(response)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002  (LangChain's signature)
        **kwargs: Any,
    ) -> ChatResult:
        async with self._async_clear_errors():
            response = await self._async_client().chat.completions.create(**self._request(messages, stop, kwargs))
        return self._result(response)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer = _StreamedAnswer()
        with self._clear_errors():
            request = self._request(messages, stop, {**_STREAMED, **kwargs})
            with self._client().chat.completions.create(**request) as events:
                for event in events:
                    if text := answer.add(event):
                        chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                        if run_manager:
                            run_manager.on_llm_new_token(text, chunk=chunk)
                        yield chunk
        yield self._last_chunk(answer)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        answer = _StreamedAnswer()
        async with self._async_clear_errors():
            request = self._request(messages, stop, {**_STREAMED, **kwargs})
            async with await self._async_client().chat.completions.create(**request) as events:
                async for event in events:
                    if text := answer.add(event):
                        chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                        if run_manager:
                            await run_manager.on_llm_new_token(text, chunk=chunk)
                        yield chunk
        yield self._last_chunk(answer)

    def _result(self, response: Any) -> ChatResult:
        choices = getattr(response, "choices", None)
        if not choices:
            # A web page, or an error sent with the status 200, arrives here.
            raise ValueError(_not_a_completion(self.base_url, str(response)[:200]))
        message = AIMessage(
            content=choices[0].message.content or "",
            usage_metadata=_usage(response.usage),
            response_metadata={"model_name": response.model, "finish_reason": choices[0].finish_reason},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, answer: "_StreamedAnswer") -> ChatGenerationChunk:
        if not answer.metadata:
            raise ValueError(_not_a_completion(self.base_url, "no event"))
        if "finish_reason" not in answer.metadata:
            _LOGGER.warning("%s ended its answer without a finish_reason: it may be cut off", self.base_url)
        usage, metadata = _usage(answer.usage), answer.metadata
        message = AIMessageChunk(content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last")
        return ChatGenerationChunk(message=message)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        openai = require("openai", extra="llm")
        try:
            yield
        except openai.OpenAIError as error:
            if clear := self._clear_error(error):
                raise clear from error
            raise

    @asynccontextmanager
    async def _async_clear_errors(self) -> AsyncIterator[None]:
        openai = require("openai", extra="llm")
        try:
            yield
        except openai.OpenAIError as error:
            # In a thread: it may ask the server for its models.
            if clear := await asyncio.to_thread(self._clear_error, error):
                raise clear from error
            raise

    def _clear_error(self, error: Exception) -> Exception | None:
        """Say what to check, for the errors that are the set-up's and not the server's; else None."""
        openai = require("openai", extra="llm")
        if isinstance(error, openai.APITimeoutError):
            return TimeoutError(
                f"{self.base_url} did not answer within {self.timeout:g} seconds. Is the model still loading, or the "
                "machine too slow? Pass a longer timeout=... or a smaller max_tokens=..."
            )
        if isinstance(error, openai.APIConnectionError):
            return ConnectionError(
                f"{self.base_url} cannot be reached ({error.__cause__ or error}). Check that the server runs, that the "
                "host and the port are right, and that no firewall or proxy lies between"
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return PermissionError(
                f"{self.base_url} refused access ({error}). Pass api_key=... or set the environment variable "
                "OPENAI_API_KEY"
            )
        if isinstance(error, openai.NotFoundError):
            offered = ", ".join(self._offered_models()) or "nothing: is base_url the root of its API, usually .../v1?"
            return ModelNotFoundError(f"{self.base_url} has no model {self.model!r} ({error}). It offers {offered}")
        return None

    def _offered_models(self) -> list[str]:
        openai = require("openai", extra="llm")
        try:
            models = self._client().with_options(timeout=min(self.timeout, 5.0), max_retries=0).models.list()
            return sorted(str(model.id) for model in models)
        except (openai.OpenAIError, AttributeError, TypeError):
            # The answer may be a web page: this only adds to another error's message.
            return []


class _StreamedAnswer:
    """Gathers what comes beside the text in a streamed answer, to be told once, at its end."""

    def __init__(self) -> None:
        self.usage: Any = None
        self.metadata: dict[str, Any] = {}

    def add(self, event: Any) -> str:
        """Take one event of the stream and return the text in it."""
        # Some servers send the usage so far with every event: only the last one is the sum.
        self.usage = getattr(event, "usage", None) or self.usage
        if not event.choices:
            return ""
        choice = event.choices[0]
        self.metadata["model_name"] = event.model
        if choice.finish_reason:
            self.metadata["finish_reason"] = choice.finish_reason
        return choice.delta.content or ""


def _not_a_completion(base_url: str, answer: str) -> str:
    return (
        f"{base_url} answered, but not with a chat completion: {answer!r}. "
        "Check that base_url is the root of the server's OpenAI-compatible API, usually ending in /v1"
    )


def _usage(usage: Any) -> UsageMetadata | None:
    if usage is None:
        return None
    prompt, answer = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)
