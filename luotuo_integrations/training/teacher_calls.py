"""What the calls of any hired teacher need: an estimate beforehand, batches within limits, and a steady pace."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from luotuo_integrations.errors import LuotuoError

Sleep = Callable[[float], object]  # given seconds


class TeacherError(LuotuoError, RuntimeError):
    """A teacher cannot be used, refuses, or gives vectors that must not be learnt from."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding some texts will take, told before the first call.

    Attributes:
        texts: Number of texts.
        requests: Number of calls, 0 where nothing is called.
        tokens: About how many tokens, rather too many than too few; see :func:`estimated_tokens`.
        cost: Price in ``currency``; None where nobody knows the price.
        currency: ISO 4217 code.
        seconds: Least time that the rate limits allow; None where nothing is known.
    """

    texts: int
    requests: int
    tokens: int
    cost: float | None
    currency: str = "USD"
    seconds: float | None = None

    def __str__(self) -> str:
        price = "unknown cost" if self.cost is None else f"{self.cost:.4f} {self.currency}"
        duration = "" if self.seconds is None else f", at least {self.seconds:.0f} s"
        return f"{self.texts} texts, {self.requests} requests, about {self.tokens} tokens, {price}{duration}"


def check_positive(**values: float | None) -> None:
    """Refuse arguments that are not above 0; None is left alone.

    Raises:
        ValueError: With the argument's name.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            msg = f"{name}={value} must be above 0"
            raise ValueError(msg)


def estimated_tokens(text: str, tokens_per_character: float = 1.5) -> int:
    """Estimate the number of tokens of a text without its tokenizer, rather too many than too few.

    Three ASCII characters make one token (English words give four and more), any other character
    ``tokens_per_character``: Chinese text takes about 1.1 to 1.3 in OpenAI's cl100k_base, one in vocabularies that
    were made for Chinese.

    Args:
        text: Any text.
        tokens_per_character: Tokens for one character outside ASCII.

    Returns:
        The estimate, at least 1.
    """
    ascii_characters = len(text.encode("ascii", "ignore"))
    return max(1, math.ceil(ascii_characters / 3 + (len(text) - ascii_characters) * tokens_per_character))


def cut_text(text: str, max_tokens: int, tokens_per_character: float = 1.5) -> str:
    """Keep the beginning of a text that is estimated at no more than ``max_tokens`` tokens.

    Args:
        text: Any text.
        max_tokens: The most tokens, by :func:`estimated_tokens`; at least 1.
        tokens_per_character: Tokens for one character outside ASCII.

    Returns:
        The longest such beginning, of at least one character.
    """
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if estimated_tokens(text[:middle], tokens_per_character) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def request_batches(tokens: Sequence[int], max_items: int, max_tokens: int) -> Iterator[list[int]]:
    """Group texts, in their order, into requests.

    Args:
        tokens: Estimated tokens of each text.
        max_items: The most texts in one request.
        max_tokens: The most tokens in one request; a single text above it gets a request of its own.

    Yields:
        Positions of the texts of one request.
    """
    batch: list[int] = []
    total = 0
    for position, count in enumerate(tokens):
        if batch and (len(batch) == max_items or total + count > max_tokens):
            yield batch
            batch, total = [], 0
        batch.append(position)
        total += count
    if batch:
        yield batch


class RateLimiter:
    """Paces calls evenly, so that no minute holds more requests or tokens than allowed. Any thread may call it.

    Args:
        requests_per_minute: The most requests in a minute; None for no limit.
        tokens_per_minute: The most tokens in a minute; None for no limit.
        clock: Seconds that only grow; for tests.

    Raises:
        ValueError: If a rate is not above 0.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_positive(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = -math.inf

    def duration(self, requests: int, tokens: int) -> float:
        """Seconds that so many requests and tokens take at the least."""
        return max(requests * self._seconds_per_request, tokens * self._seconds_per_token)

    def wait(self, tokens: int, sleep: Sleep) -> None:
        """Wait until a request of so many tokens may go out."""
        duration = self.duration(1, tokens)
        if not duration:
            return
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + duration
        if start > now:
            sleep(start - now)
