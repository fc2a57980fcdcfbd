"""Teachers: whatever gives vectors to learn from. A model here, one behind an API, or vectors made earlier."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.texts import Kind, Vectors, check_texts
from luotuo_integrations.training.file_teacher import ALLOWED_FILES, VECTOR_FILES, FileTeacher
from luotuo_integrations.training.teacher_calls import Estimate, TeacherError, estimated_tokens
from luotuo_integrations.training.teacher_providers import PROVIDERS

__all__ = ["Estimate", "FileTeacher", "LocalTeacher", "Teacher", "TeacherError", "embed", "open_teacher"]

_CHUNK = 2_048  # texts that a local teacher embeds before it hands them over: what is lost when it is stopped
_ALLOWED = (
    f"Give {', '.join(f'{name}:MODEL' for name in PROVIDERS)} for an API; a model's name or folder as Encoder takes "
    f"them; or vectors made earlier: {ALLOWED_FILES}."
)


class Teacher(Protocol):
    """Gives vectors for texts."""

    @property
    def name(self) -> str:
        """What decides the vectors, the same from run to run: for the cache and the model card. Never a key."""

    @property
    def licence(self) -> str:
        """Licence of the teacher, as far as it is known."""

    @property
    def distinguishes_kinds(self) -> bool:
        """Whether it embeds a query otherwise than a passage."""

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Tell what embedding the texts will take, without any call."""

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        """Embed texts: positions and float32 vectors (n, D) as they are finished, in any order, each position once."""


def embed(teacher: Teacher, texts: Sequence[str], kind: Kind) -> Vectors:
    """Embed texts and put the vectors in order.

    Args:
        teacher: Any teacher.
        texts: The texts.
        kind: What they are.

    Returns:
        Float32 (N, D); (0, 0) for no texts.

    Raises:
        TeacherError: If the teacher fails, or leaves a text out or gives it twice.
    """
    batches = list(teacher.embed_batches(texts, kind))
    positions = [position for given, _ in batches for position in given]
    if sorted(positions) != list(range(len(texts))):
        msg = f"{teacher.name} gave {len(positions)} vectors for {len(set(positions))} of {len(texts)} texts"
        raise TeacherError(msg)
    if not batches:
        return np.empty((0, 0), dtype=np.float32)
    vectors = np.empty((len(texts), batches[0][1].shape[1]), dtype=np.float32)
    for given, rows in batches:
        vectors[given] = rows
    return vectors


class LocalTeacher:
    """A model in this process.

    Args:
        model: A name in the registry, a repository name on the hub, or a folder, as :class:`Encoder` takes it.
        device: As Encoder takes it; None for the best there is.
        dimensions: Keep the first so many numbers of a vector; None for all.
        prompts: Texts put in front, by kind; None as the model says.

    Raises:
        ModelNotFoundError: If there is no such model.
        ModelFormatError: If it cannot be loaded.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dimensions: int | None = None,
        prompts: Mapping[Kind, str] | None = None,
    ) -> None:
        from luotuo_integrations.encoder import Encoder

        given = prompts or {}
        self._encoder = Encoder(
            model,
            device=device,
            dimensions=dimensions,
            query_prompt=given.get("query"),
            passage_prompt=given.get("passage"),
        )
        card = self._encoder.card
        self._model = card.name if card is not None else Path(model).name or str(model)

    @property
    def name(self) -> str:
        """The model's name, and a hash of its weights and of whatever else decides the vectors."""
        decisive = f"{self._encoder.fingerprint}|{self._encoder.prompts['query']}"
        return f"local:{self._model};{hashlib.blake2b(decisive.encode(), digest_size=8).hexdigest()}"

    @property
    def licence(self) -> str:
        """The licence on the model's card."""
        card = self._encoder.card
        return card.licence if card is not None else "unknown: see the model's own card"

    @property
    def distinguishes_kinds(self) -> bool:
        """Whether the prompts of queries and passages differ."""
        return self._encoder.prompts["query"] != self._encoder.prompts["passage"]

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Tell about how many tokens there are; no call, no cost."""
        check_texts(texts)
        return Estimate(len(texts), 0, sum(estimated_tokens(text, 1.0) for text in texts), 0.0)

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        """Embed texts, 2,048 at a time, in their order, with the model's prompt of the kind."""
        check_texts(texts)
        return self._chunks(texts, kind)

    def _chunks(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            yield list(range(start, start + len(chunk))), self._encoder.encode(chunk, kind)


def open_teacher(
    spec: str | Path,
    *,
    device: str | None = None,
    dimensions: int | None = None,
    prompts: Mapping[Kind, str] | None = None,
    base_url: str | None = None,
    api_key_variable: str | None = None,
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
) -> Teacher:
    """Open the teacher that a line of text names.

    Args:
        spec: ``openai:MODEL``, ``qianfan:MODEL`` or ``zhipu:MODEL``; a model's name or folder; or the path of vectors
            made earlier, see :class:`FileTeacher`.
        device: For a model in this process.
        dimensions: Length of the vectors, where the teacher can shorten them.
        prompts: Texts put in front, by kind; None for the model's own, and for none with an API.
        base_url: For an API, as everything below, which OpenAICompatibleTeacher says more of: the root of the API.
        api_key_variable: Environment variable that holds the key.
        input_types: Send the kind of the texts along.
        requests_at_once: Requests that run at the same time.
        max_items: The most texts in one request.
        max_tokens_per_request: The most tokens in one request.
        max_tokens_per_text: Longest text in tokens.
        cut_long_texts: Cut what is longer, or refuse it.
        requests_per_minute: Rate limit.
        tokens_per_minute: Rate limit.
        price_per_million_tokens: Price, for the estimate.
        timeout: Seconds to wait for an answer.
        attempts: How often a request is made at most.

    Returns:
        The teacher. A model in this process is loaded; an API has not been called.

    Raises:
        TeacherError: If there is no such teacher; the message lists what is allowed.
        ValueError: If an argument is out of range, or has no meaning for this teacher.
    """
    text = str(spec)
    provider, _, model = text.partition(":")
    if provider in PROVIDERS:
        from luotuo_integrations.training.openai_teacher import OpenAICompatibleTeacher

        return OpenAICompatibleTeacher(
            model,
            provider=provider,
            dimensions=dimensions,
            prompts=prompts,
            base_url=base_url,
            api_key_variable=api_key_variable,
            input_types=input_types,
            requests_at_once=requests_at_once,
            max_items=max_items,
            max_tokens_per_request=max_tokens_per_request,
            max_tokens_per_text=max_tokens_per_text,
            cut_long_texts=cut_long_texts,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            price_per_million_tokens=price_per_million_tokens,
            timeout=timeout,
            attempts=attempts,
        )
    if base_url is not None:
        msg = f"base_url={base_url!r} has no meaning for {text!r}; for a server: 'openai:{text}'"
        raise ValueError(msg)
    path = Path(text)
    if path.suffix in VECTOR_FILES or (path / "texts.jsonl").is_file():
        if dimensions is not None or prompts:
            msg = f"dimensions and prompts have no meaning for vectors made earlier ({text!r}): leave them out"
            raise ValueError(msg)
        return FileTeacher(path)
    try:
        return LocalTeacher(text, device=device, dimensions=dimensions, prompts=prompts)
    except LuotuoError as error:
        msg = f"No teacher {text!r}. {_ALLOWED} ({error})"
        raise TeacherError(msg) from error
