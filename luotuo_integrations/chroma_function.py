"""The embedding function that plain chromadb knows under the name ``luotuo``.

Importing it turns chromadb's telemetry off, unless the environment variable ANONYMIZED_TELEMETRY is set.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from luotuo_integrations._optional import require
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.registry import CARDS
from luotuo_integrations.texts import Kind

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ModuleNotFoundError as missing:
    require(missing.name or "chromadb", extra="chroma")
    raise

# Chroma refuses a second client of a folder whose settings differ from the first one's. So its telemetry is switched
# off where every client of the process reads it: in one client alone, a plain PersistentClient beside ours would fail.
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

# What decides vectors, and nothing else: no device, no cache folder, no leave to run a model's own code.
_SETTINGS = ("model", "dimensions", "max_length", "normalize", "query_prompt", "passage_prompt", "revision")


@register_embedding_function
class LuotuoEmbeddingFunction(EmbeddingFunction[Documents]):
    """Chinese embeddings for plain chromadb: passages and queries each with their own prompt, cosine by default.

    chromadb writes the function's name and settings into the collection, so that any process that has imported this
    module can open the collection without naming a function.

    Example:
        >>> import chromadb
        >>> from luotuo_integrations.chroma import LuotuoEmbeddingFunction
        >>> client = chromadb.EphemeralClient()
        >>> collection = client.create_collection("handbook", embedding_function=LuotuoEmbeddingFunction())
        >>> collection.add(ids=["1"], documents=["试用期员工同样享受带薪病假。"])
        >>> collection.query(query_texts=["试用期能请病假吗？"], n_results=1)["ids"]
        [['1']]

    Args:
        embeddings: The model and its settings; None is the bundled model.
        fingerprint: Fingerprint that the model must have when it is first used; None takes the model's own, now.

    Raises:
        TypeError: If ``embeddings`` is something else.
        ModelNotFoundError: If there is no such model.
    """

    def __init__(self, embeddings: LuotuoEmbeddings | None = None, *, fingerprint: str | None = None) -> None:
        self.embeddings = checked_embeddings(embeddings)
        # chromadb turns an error of get_config() into a warning and forgets the function: what can fail, fails here.
        self.fingerprint = self.embeddings.fingerprint if fingerprint is None else fingerprint

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - chromadb's name
        """Embed passages: a float32 (D,) array each."""
        return self._encode(input, "passage")

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - chromadb's name
        """Embed queries: a float32 (D,) array each."""
        return self._encode(input, "query")

    def _encode(self, texts: Documents, kind: Kind) -> Embeddings:
        if self.embeddings.fingerprint != self.fingerprint:
            msg = (
                f"The model {self.embeddings.model!r} is not the one that made the collection: its fingerprint is"
                f" {self.embeddings.fingerprint}, the collection's is {self.fingerprint}. Put the former model back,"
                " or add the documents to a new collection"
            )
            raise StoreMismatchError(msg)
        return list(self.embeddings.encode(texts, kind, show_progress=None if kind == "passage" else False))

    @staticmethod
    def name() -> str:
        """Name under which chromadb knows the function."""
        return "luotuo"

    def get_config(self) -> dict[str, Any]:
        """Give the settings that decide vectors, and the fingerprint: JSON values, no secrets, no device."""
        given = {name: getattr(self.embeddings, name) for name in _SETTINGS}
        config = {name: value for name, value in given.items() if value is not None}
        if config["model"] not in CARDS and Path(config["model"]).is_dir():
            config["model"] = str(Path(config["model"]).absolute())  # the next process may start elsewhere
        return {**config, "fingerprint": self.fingerprint}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "LuotuoEmbeddingFunction":
        """Make the function that a collection names; its model is loaded at the first text.

        Raises:
            ValueError: If ``config`` is not one of ``get_config()``.
        """
        LuotuoEmbeddingFunction.validate_config(config)
        settings = tuple(sorted((name, config[name]) for name in _SETTINGS if name in config))
        return LuotuoEmbeddingFunction(_shared_embeddings(settings), fingerprint=config["fingerprint"])

    def default_space(self) -> Space:
        """Cosine: what the models are trained for."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Cosine alone; relevance is fitted to it."""
        return ["cosine"]

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ValueError unless ``config`` is one of ``get_config()``."""
        unknown = config.keys() - {*_SETTINGS, "fingerprint"}
        complete = all(isinstance(config.get(name), str) and config[name] for name in ("model", "fingerprint"))
        if unknown or not complete:
            msg = (
                f"The embedding function's settings are {config!r}: 'model' and 'fingerprint' must be there, and"
                f" {', '.join(map(repr, _SETTINGS[1:]))} may. Type LuotuoEmbeddingFunction(...).get_config()"
            )
            raise ValueError(msg)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse another model for a collection that holds vectors.

        Settings that touch queries alone may change, and the model may move to another folder.

        Raises:
            StoreMismatchError: If the fingerprints differ; the message names both models.
        """
        self.validate_config(new_config)
        if old_config.get("fingerprint") != new_config["fingerprint"]:
            msg = (
                f"The collection holds vectors of {describe_model(old_config)}; they cannot be compared with those of"
                f" {describe_model(new_config)}. Add the documents to a new collection"
            )
            raise StoreMismatchError(msg)


@lru_cache(maxsize=4)
def _shared_embeddings(settings: tuple[tuple[str, Any], ...]) -> LuotuoEmbeddings:
    """The embeddings that collections name. chromadb builds the function anew for each query; models stay loaded."""
    return LuotuoEmbeddings(**dict(settings))


def checked_embeddings(embeddings: object) -> LuotuoEmbeddings:
    """Return the embeddings, for None those of the bundled model, or raise TypeError."""
    if embeddings is None:
        return LuotuoEmbeddings()
    if not isinstance(embeddings, LuotuoEmbeddings):
        msg = (
            f"The embeddings are {type(embeddings).__name__}; give LuotuoEmbeddings(model=...). For vectors of another"
            " class use langchain_chroma or chromadb itself"
        )
        raise TypeError(msg)
    return embeddings


def describe_model(recorded: Mapping[str, Any]) -> str:
    """Name a model by what is recorded of it: its name, its dimension where known, its fingerprint."""
    dimension = recorded.get("dimension") or recorded.get("dimensions")
    size = f"{dimension} dimensions, " if dimension else ""
    return f"the model {recorded.get('model')!r} ({size}fingerprint {recorded.get('fingerprint')})"
