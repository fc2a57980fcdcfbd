"""One embeddings endpoint: a request, repeated while there is hope, and an answer that is checked before it is used."""

import base64
import binascii
import ipaddress
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from luotuo_integrations._optional import require
from luotuo_integrations.texts import Vectors
from luotuo_integrations.training.teacher_calls import RateLimiter, Sleep, TeacherError, check_positive

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 600.0  # seconds; a server that asks for more is not waited for: what is done is in the cache
_SHOWN = 300  # characters of a server's message


class RefusedTextsError(TeacherError):
    """The server refuses a request for what is in it: a smaller one may pass."""


class EmbeddingEndpoint:
    """POST /embeddings of one server and model. Any thread may ask.

    Args:
        base_url: The root of the API.
        model: The name under which the server offers the model.
        key_variable: Environment variable that holds the key; None where no key is to be sent.
        encoding_format: ``"float"`` or ``"base64"``; either is understood in an answer.
        dimensions: Length of the vectors to ask for; None for the model's own.
        timeout: Seconds to wait for an answer, at each attempt.
        attempts: How often a request is made at most.
        limiter: Paces the attempts.
        sleep: For tests: called with seconds in place of waiting.

    Raises:
        ImportError: If ``openai`` or ``tenacity`` is not installed.
        ValueError: If ``base_url`` is not an http address, or a number is not above 0.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None,
        encoding_format: str,
        dimensions: int | None,
        timeout: float,
        attempts: int,
        limiter: RateLimiter,
        sleep: Sleep | None = None,
    ) -> None:
        self._openai: Any = require("openai", extra="train")
        self._tenacity: Any = require("tenacity", extra="train")
        check_positive(dimensions=dimensions, timeout=timeout, attempts=attempts)
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"base_url is {base_url!r}, but must be an http address such as 'http://localhost:8000/v1'"
            raise ValueError(msg)
        self.base_url = base_url
        self.model = model
        self.key_variable = key_variable
        self._options: dict[str, Any] = {"encoding_format": encoding_format}
        if dimensions is not None:
            self._options["dimensions"] = dimensions
        self._timeout = timeout
        self._attempts = attempts
        self._limiter = limiter
        self._sleep = sleep
        self._dimension = dimensions
        self._lock = threading.Lock()
        self._client: Any = None

    def connect(self) -> None:
        """Make the client, with the key from the environment, unless it is there.

        Raises:
            TeacherError: If there is no key.
        """
        if self._client is not None:
            return
        key = "none"  # the client insists on one
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable, "").strip()
            if not key:
                msg = f"{self.base_url} needs a key: set the environment variable {self.key_variable}"
                raise TeacherError(msg)
        # A proxy set in the environment cannot reach this machine's own servers.
        own = self._openai.DefaultHttpxClient(trust_env=False) if is_loopback(self.base_url) else None
        self._client = self._openai.OpenAI(
            base_url=self.base_url, api_key=key, timeout=self._timeout, max_retries=0, http_client=own
        )

    def ask(
        self, texts: list[str], positions: Sequence[int], tokens: int, extra: Mapping[str, Any], stop: threading.Event
    ) -> Vectors:
        """Embed the texts of one request.

        Args:
            texts: The texts.
            positions: What to call them in messages: ``texts[position]``.
            tokens: About how many tokens they have, for the rate limit.
            extra: Fields of this request beside the body.
            stop: Once set, nothing new is tried and waiting ends.

        Returns:
            Float32 (n, D), finite, no row of zeros, in the order of the texts.

        Raises:
            RefusedTextsError: If the server answers 400, 413 or 422.
            TeacherError: If it refuses or fails for good, or its answer is not what it must be.
        """
        self.connect()
        tenacity, sleep = self._tenacity, self._sleep or stop.wait
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._attempts), tenacity.stop_when_event_set(stop)),
            wait=self._seconds_to_wait,
            retry=tenacity.retry_if_exception(self._may_pass),
            before_sleep=lambda state: logger.info(
                "%s: %s; again in %.1f s", self.base_url, self._told(state.outcome.exception()), state.next_action.sleep
            ),
            sleep=sleep,
            reraise=True,
        )
        try:
            content = retrying(self._post, texts, tokens, extra, stop)
        except self._openai.OpenAIError as error:
            # The chained error is left out: a server may quote the key in it.
            raise self._clear_error(error, _named(texts, positions)) from None
        return self._checked(content, texts, positions)

    def _post(self, texts: list[str], tokens: int, extra: Mapping[str, Any], stop: threading.Event) -> bytes:
        self._limiter.wait(tokens, self._sleep or stop.wait)
        if stop.is_set():
            msg = "Stopped before this request was made"
            raise TeacherError(msg)
        # The raw answer: the client's own types would look at every number of every vector.
        answer = self._client.embeddings.with_raw_response.create(
            model=self.model, input=texts, extra_body=dict(extra), **self._options
        )
        content: bytes = answer.content
        return content

    def _may_pass(self, error: BaseException) -> bool:
        """Whether the same request may succeed later."""
        openai = self._openai
        if not isinstance(error, openai.APIStatusError):
            return isinstance(error, openai.APIConnectionError)
        passing = error.status_code in (408, 429) or error.status_code >= 500
        return passing and error.code != "insufficient_quota" and (_retry_after(error) or 0) <= _LONGEST_WAIT

    def _seconds_to_wait(self, state: Any) -> float:
        asked = _retry_after(state.outcome.exception())
        backoff = self._tenacity.wait_exponential_jitter(initial=1, max=60, jitter=1)
        return float(backoff(state)) if asked is None else asked

    def _told(self, error: Any) -> str:
        """A server's message without the key in it."""
        message = str(getattr(error, "message", error))[:_SHOWN]
        key = self._client.api_key
        return message.replace(key, "***") if self.key_variable is not None else message

    def _clear_error(self, error: Any, texts: str) -> TeacherError:
        """Say what to check."""
        openai, told = self._openai, self._told(error)
        if isinstance(error, openai.APITimeoutError):
            msg = f"{self.base_url} did not answer within {self._timeout:g} seconds, {self._attempts} times: {texts}"
            return TeacherError(f"{msg}. Pass a longer timeout=... or a smaller max_items=...")
        if isinstance(error, openai.APIConnectionError):
            cause = f"{type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ else told
            msg = f"{self.base_url} cannot be reached or hangs up ({cause}) for {texts}. Check that the server runs"
            return TeacherError(f"{msg}, and its address")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            missing = (
                "none was sent: pass api_key_variable='...' with the name of the environment variable that holds it"
            )
            advice = f"check the environment variable {self.key_variable}" if self.key_variable else missing
            return TeacherError(f"{self.base_url} refuses the key ({told}): {advice}")
        if isinstance(error, openai.NotFoundError):
            offered = ", ".join(self._offered_models()) or "nothing: is base_url the root of its API, usually .../v1?"
            return TeacherError(f"{self.base_url} has no model {self.model!r} ({told}). It offers {offered}")
        if isinstance(error, openai.RateLimitError) and error.code == "insufficient_quota":
            return TeacherError(
                f"The account's quota at {self.base_url} is used up ({told}). Add credit, then run again"
            )
        status = getattr(error, "status_code", "no status")
        kind = RefusedTextsError if status in (400, 413, 422) else TeacherError
        return kind(f"{self.base_url} answered {status} ({told}) to {texts}")

    def _offered_models(self) -> list[str]:
        try:
            models = self._client.with_options(timeout=min(self._timeout, 5.0)).models.list()
            return sorted(str(model.id) for model in models)
        except (self._openai.OpenAIError, AttributeError, TypeError):
            return []  # this only adds to another error's message

    def _checked(self, content: bytes, texts: list[str], positions: Sequence[int]) -> Vectors:
        asked = _named(texts, positions)
        try:
            answer = json.loads(content)
        except ValueError as error:
            start = content[:80].decode("utf-8", "replace")
            msg = f"{self.base_url} answered {start!r}, which is no JSON: is base_url the root of its API, as .../v1?"
            raise TeacherError(msg) from error
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            msg = f"{self.base_url} gave no vectors for {asked}, but {str(answer)[:_SHOWN]}"
            raise TeacherError(msg)
        indexes = [item.get("index", row) for row, item in enumerate(data)]
        if not all(type(index) is int for index in indexes) or sorted(indexes) != list(range(len(texts))):
            msg = (
                f"{self.base_url} gave {len(data)} vectors, index {str(indexes)[:80]}, for {len(texts)} texts: {asked}"
            )
            raise TeacherError(msg)
        rows = [_numbers(item.get("embedding")) for item in data]
        for row, index in zip(rows, indexes, strict=True):
            if problem := self._problem(row):
                msg = f"{self.base_url} gave {problem} for {_named([texts[index]], [positions[index]])}"
                raise TeacherError(msg)
        vectors = np.empty((len(texts), len(rows[0])), dtype=np.float32)
        vectors[indexes] = rows
        return vectors

    def _problem(self, row: Vectors) -> str:
        """What is wrong with a vector, or nothing."""
        if row.ndim != 1 or not len(row):
            return "something that is no vector"
        with self._lock:
            self._dimension = self._dimension or len(row)
        if len(row) != self._dimension:
            return f"{len(row)} numbers in place of {self._dimension}"
        if not np.isfinite(row).all():
            return "NaN or infinity"
        return "" if row.any() else "a vector of zeros"


def is_loopback(url: str) -> bool:
    """Whether an address is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _numbers(embedding: object) -> Vectors:
    """Float32 (D,) of a list or of base64 of little-endian float32; an array without dimensions for anything else."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
        return np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError, binascii.Error):
        return np.empty((), dtype=np.float32)


def _named(texts: Sequence[str], positions: Sequence[int]) -> str:
    more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
    return f"texts[{positions[0]}] {texts[0][:40]!r}{more}"


def _retry_after(error: Any) -> float | None:
    """Seconds that a server asks to wait, from Retry-After as a number or a date; None where it does not say."""
    value = error.response.headers.get("retry-after", "") if hasattr(error, "response") else ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None
