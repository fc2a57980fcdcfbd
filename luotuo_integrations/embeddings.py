"""LuotuoEmbeddings: one class that LangChain and LlamaIndex both take for their own.

This is the only file that knows both frameworks' embedding interfaces. It holds no model code: it hands texts to an
Encoder, which is loaded at the first call and shared by copies.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager

from luotuo_integrations.encoder_loader import EncoderLoader
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.query_mapping import QueryMapping
from luotuo_integrations.registry import CARDS, DEFAULT_MODEL, find_card
from luotuo_integrations.texts import Kind, Vectors, check_query, check_texts

if TYPE_CHECKING:
    from luotuo_integrations.encoder import Encoder

# Above this an asynchronous call goes its own way, so that a query never waits behind a folder of documents.
_COALESCE_LIMIT = 64


class LuotuoEmbeddings(QueryMapping, BaseEmbedding, Embeddings):
    """Chinese text embeddings for LangChain and LlamaIndex.

    The model is loaded at the first call. Objects are small to pickle (settings only), copies share the loaded model,
    and every method may be called from any thread or event loop.

    Example:
        >>> from luotuo_integrations import LuotuoEmbeddings
        >>> embeddings = LuotuoEmbeddings()
        >>> len(embeddings.embed_query("试用期可以请年假吗？"))
        384
        >>> embeddings = LuotuoEmbeddings(vector_cache="vectors")  # nothing is embedded twice, after a restart too

    Args:
        model: A name that ``luotuo models`` lists, a repository name on the hub, or a model folder. The default is in
            the package. ``model_name`` is accepted as another name for it.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None takes the best there is.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``; auto is bfloat16 on CUDA and on processors
            that are faster in it, if the vectors agree; else float32.
        backend: ``"auto"`` or ``"torch"``: whether the CPU may run matrix products by oneDNN, where that is faster.
        dimensions: Keep the first so many numbers of each vector (Matryoshka) and normalise again.
        max_length: Longest text in tokens; what is over is cut, with a warning.
        normalize: Scale vectors to length 1; None as the model says.
        query_prompt: Text put before queries; None as the model says.
        passage_prompt: Text put before passages; None as the model says.
        embed_batch_size: How many texts LlamaIndex hands over at a time, 1 to 2048. Device batches are made inside,
            by tokens.
        max_tokens_per_batch: Padded tokens in one forward pass; None is 2,048 on the CPU and 16,384 on a GPU.
        show_progress: Show a progress bar while embedding documents.
        cache_folder: Where downloads from the hub are kept.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that lies in the model's folder.
        mapper: What moves the vectors of queries towards their answers, or its file; see ``fit_mapper``. A folder of
            LlamaIndex's ``LinearLayer`` will do.
        vector_cache: A folder on this machine that keeps every vector, so that the next run, thread or process computes
            only what is new; any models may share it. None keeps none.

    Raises:
        EmbeddingCacheError: If the vector cache is damaged, or cannot be read or written.
        ModelNotFoundError: At the first call, if there is no such model.
        ValueError: If an argument is out of range.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=("pydantic_model_",), arbitrary_types_allowed=True)

    model: str = Field(default=DEFAULT_MODEL, frozen=True)
    model_name: str = Field(default=DEFAULT_MODEL, frozen=True)
    embeddings_cache: Any = Field(default=None, frozen=True)
    dimensions: int | None = Field(default=None, gt=0, frozen=True)
    max_length: int | None = Field(default=None, gt=0, frozen=True)
    normalize: bool | None = Field(default=None, frozen=True)
    query_prompt: str | None = Field(default=None, frozen=True)
    passage_prompt: str | None = Field(default=None, frozen=True)
    revision: str | None = Field(default=None, frozen=True)
    # What does not change a vector stays out of to_dict(), which LlamaIndex hashes into its cache keys.
    device: str | None = Field(default=None, frozen=True, exclude=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", frozen=True, exclude=True)
    backend: Literal["auto", "torch"] = Field(default="auto", frozen=True, exclude=True)
    max_tokens_per_batch: int | None = Field(default=None, gt=0, frozen=True, exclude=True)
    show_progress: bool = Field(default=False, exclude=True)
    cache_folder: str | None = Field(default=None, frozen=True, exclude=True)
    trust_remote_code: bool = Field(default=False, frozen=True, exclude=True)
    vector_cache: str | None = Field(default=None, frozen=True, exclude=True)

    _loader: EncoderLoader = PrivateAttr()
    _mapper: LinearQueryMapper | None = PrivateAttr(default=None)  # of QueryMapping

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        backend: Literal["auto", "torch"] = "auto",
        dimensions: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        embed_batch_size: int = 256,
        max_tokens_per_batch: int | None = None,
        show_progress: bool = False,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        mapper: LinearQueryMapper | str | Path | None = None,
        vector_cache: str | Path | None = None,
        model_name: str | None = None,
        num_workers: int | None = None,
        callback_manager: CallbackManager | None = None,
        rate_limiter: Any = None,
        embeddings_cache: Any = None,
    ) -> None:
        if embeddings_cache is not None:
            msg = "embeddings_cache of LlamaIndex gives queries the vectors of passages; use vector_cache='a folder'"
            raise ValueError(msg)
        name = _chosen_name(model, model_name)
        fields: dict[str, Any] = {
            "model": name,
            "model_name": name,
            "device": device,
            "dtype": dtype,
            "backend": backend,
            "dimensions": dimensions,
            "max_length": max_length,
            "normalize": normalize,
            "query_prompt": query_prompt,
            "passage_prompt": passage_prompt,
            "embed_batch_size": embed_batch_size,
            "max_tokens_per_batch": max_tokens_per_batch,
            "show_progress": show_progress,
            "cache_folder": None if cache_folder is None else str(cache_folder),
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "vector_cache": None if vector_cache is None else str(vector_cache),
            "num_workers": num_workers,
            "callback_manager": CallbackManager([]) if callback_manager is None else callback_manager,
        }
        if rate_limiter is not None:  # the first releases of llama-index-core 0.14 know none
            fields["rate_limiter"] = rate_limiter
        super().__init__(**fields)
        self._loader = EncoderLoader(self._encoder_settings(), vector_cache)
        self.mapper = LinearQueryMapper.load(mapper) if isinstance(mapper, str | Path) else mapper

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises the object."""
        return "LuotuoEmbeddings"

    # -- arrays ---------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> "Encoder":
        """The loaded Encoder; the first use loads it."""
        return self._loader.encoder()

    @property
    def dimension(self) -> int:
        """Length D of a vector. For the bundled model this needs no loading."""
        card = CARDS.get(self.model)
        if card is not None and card.source == "bundled" and (self.dimensions or 0) <= card.dimension:
            return self.dimensions or card.dimension
        return self.encoder.dimension

    @property
    def fingerprint(self) -> str:
        """Hash of what decides passage vectors; stores built with another fingerprint are refused."""
        return self.encoder.fingerprint

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, prompt and special tokens included."""
        return self.encoder.max_length

    def encode(
        self,
        texts: Iterable[str],
        kind: Kind = "passage",
        out: Vectors | None = None,
        show_progress: bool | None = None,
    ) -> Vectors:
        """Embed texts into an array; see ``Encoder.encode``.

        Args:
            texts: A list, or an iterator of any length.
            kind: ``"query"`` or ``"passage"``.
            out: float32 (N, D) array to fill, for instance a memory map.
            show_progress: Show a progress bar; None as the object was made.

        Returns:
            float32 (N, D).

        Raises:
            TypeError: If a text is not a string.
        """
        check_texts(texts)
        progress = self.show_progress if show_progress is None else show_progress
        return self._mapped(self._loader.encode(texts, kind, out, progress), kind)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, without prompt and special tokens."""
        check_texts(texts)
        return self.encoder.count_tokens(texts)

    def relevance(self, cosine: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn cosines into relevances that mean the same for every model.

        Args:
            cosine: Cosines of a query with passages, any shape, in [-1, 1].

        Returns:
            Relevances in [0, 1], in the order of the cosines: the logistic that was fitted for the model and the
            dimensions, else (1 + cosine) / 2.
        """
        values = np.asarray(cosine, dtype=np.float64)
        card = find_card(self.model)
        fitted = None if card is None else card.relevance_at(self.dimensions)
        if fitted is None:
            return np.clip((1 + values) / 2, 0.0, 1.0)
        slope, midpoint = fitted
        scores: npt.NDArray[np.float64] = 1 / (1 + np.exp(-slope * (values - midpoint)))
        return scores

    # -- LangChain ------------------------------------------------------------------------------------------------

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages.

        Args:
            texts: The passages; ``[]`` gives ``[]``.

        Returns:
            One list of D floats a passage.

        Raises:
            TypeError: If ``texts`` is a bare string or an item is not a string.
        """
        vectors: list[list[float]] = self.encode(texts, "passage").tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Returns:
            D floats.

        Raises:
            TypeError: If ``text`` is not a string.
        """
        vector: list[float] = self.encode([check_query(text)], "query", show_progress=False)[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages without blocking the event loop; small concurrent calls share a forward pass."""
        check_texts(texts)
        if not isinstance(texts, Sequence) or len(texts) > _COALESCE_LIMIT:
            return await asyncio.to_thread(self.embed_documents, texts)
        return await asyncio.wrap_future(self._loader.coalescer.submit("passage", texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop; concurrent calls share a forward pass."""
        vectors = await asyncio.wrap_future(self._loader.coalescer.submit("query", [check_query(text)]))
        if self._mapper is None:
            return vectors[0]
        mapped: list[float] = self._mapped(np.array(vectors, np.float32), "query")[0].tolist()
        return mapped

    # -- LlamaIndex -----------------------------------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.embed_query(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self.aembed_query(query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self.aembed_documents(texts)

    # -- copies ---------------------------------------------------------------------------------------------------

    def _encoder_settings(self) -> dict[str, Any]:
        names = (
            "model", "device", "dtype", "backend", "dimensions", "max_length", "normalize", "query_prompt",
            "passage_prompt", "max_tokens_per_batch", "cache_folder", "revision", "trust_remote_code",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self._encoder_settings(),
            "embed_batch_size": self.embed_batch_size,
            "show_progress": self.show_progress,
            "num_workers": self.num_workers,
            "mapper": self._mapper,
            "vector_cache": self.vector_cache,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "LuotuoEmbeddings":  # noqa: ARG002
        """Copy the object; the copy shares the loaded model where the settings are the same.

        Args:
            update: Arguments of this class to change in the copy.
            deep: Makes no difference: settings cannot be changed, and a loaded model is never copied.
        """
        held = {"callback_manager": self.callback_manager, "rate_limiter": getattr(self, "rate_limiter", None)}
        copied = type(self)(**{**self.__getstate__(), **held, **(update or {})})
        if (copied._encoder_settings(), copied.vector_cache) == (self._encoder_settings(), self.vector_cache):
            copied._loader = self._loader
        return copied

    def __copy__(self) -> "LuotuoEmbeddings":
        return self.model_copy()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "LuotuoEmbeddings":
        return self.model_copy()


def _chosen_name(model: str | Path | None, model_name: str | None) -> str:
    if model is not None and model_name is not None and str(model) != model_name:
        msg = f"model={str(model)!r} and model_name={model_name!r} differ; give one of them"
        raise ValueError(msg)
    given = model if model is not None else model_name
    if given == "":
        msg = f"model is empty; give a name, a folder, or nothing at all for {DEFAULT_MODEL!r}"
        raise ValueError(msg)
    return DEFAULT_MODEL if given is None else str(given)
