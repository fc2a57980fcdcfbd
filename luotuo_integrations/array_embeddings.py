"""Embeddings that give arrays: the short road from a model to a store, without lists of floats."""

from typing import Any, Literal, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from luotuo_integrations.store.vector_math import Matrix, as_matrix

_MEMBERS = ("encode", "dimension", "fingerprint", "relevance")


class ArrayEmbeddings(Protocol):
    """What a store uses of LuotuoEmbeddings; any class with these members takes the short road too."""

    model: str

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a passage's vector."""
        ...

    def encode(self, texts: list[str], kind: Literal["query", "passage"] = ...) -> Matrix:
        """Embed texts: float32 (N, D)."""
        ...

    def relevance(self, cosine: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn cosines into relevances in [0, 1], in the same order."""
        ...


def gives_arrays(embedding: object) -> TypeGuard[ArrayEmbeddings]:
    """Tell whether an embeddings object has the members of ArrayEmbeddings.

    The class is asked, not the object: reading a property such as ``fingerprint`` may load a model.
    """
    return all(hasattr(type(embedding), name) for name in _MEMBERS)


def check_embedding(embedding: object) -> Embeddings:
    """Return the object if it is a LangChain Embeddings object, else raise TypeError."""
    if isinstance(embedding, Embeddings):
        return embedding
    given = embedding.__name__ if isinstance(embedding, type) else type(embedding).__name__
    msg = f"The embedding is {given}; give a LangChain Embeddings object, for instance LuotuoEmbeddings()"
    raise TypeError(msg)


def embed_passages(embedding: Embeddings, texts: list[str]) -> Matrix:
    """Embed passages: float32 (N, D). ``[]`` gives (0, 0)."""
    if not texts:
        return np.zeros((0, 0), dtype=np.float32)
    given: Any = embedding.encode(texts, "passage") if gives_arrays(embedding) else embedding.embed_documents(texts)
    vectors = as_matrix(given, name="the embedding's vectors")
    if len(vectors) != len(texts):
        msg = f"{type(embedding).__name__} gave {len(vectors)} vectors for {len(texts)} texts; one each is needed"
        raise ValueError(msg)
    return vectors


def embed_queries(embedding: Embeddings, queries: list[str]) -> Matrix:
    """Embed queries: float32 (Q, D). ``[]`` gives (0, 0)."""
    if not queries:
        return np.zeros((0, 0), dtype=np.float32)
    if gives_arrays(embedding):
        return as_matrix(embedding.encode(queries, "query"), name="the embedding's query vectors")
    return as_matrix([embedding.embed_query(query) for query in queries], name="the embedding's query vectors")


def dimension_of(embedding: Embeddings) -> int:
    """Length of the vectors; asks embeddings that do not tell for the vector of one short query."""
    return embedding.dimension if gives_arrays(embedding) else len(embedding.embed_query("维度"))


def fingerprint_of(embedding: object) -> str:
    """Fingerprint of the model, or "" for embeddings that have none."""
    return embedding.fingerprint if gives_arrays(embedding) else ""


def model_name_of(embedding: object) -> str:
    """Name to show for the model: what the object itself calls it, else its class."""
    for name in ("model", "model_name"):
        value = getattr(embedding, name, None)
        if isinstance(value, str) and value:
            return value
    return type(embedding).__name__
