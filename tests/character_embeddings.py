"""Embeddings that count characters: a model for tests of stores that costs nothing and still tells texts apart."""

import threading
from typing import Literal

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings


class CharacterEmbeddings(Embeddings):
    """Counts characters: vectors of texts that share characters are near each other. Lists only, like most."""

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self.threads: set[int] = set()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.threads.add(threading.get_ident())
        vectors = np.full((len(texts), self.size), 0.01)
        for row, text in enumerate(texts):
            for character in text:
                vectors[row, ord(character) % self.size] += 1
        return vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class CharacterArrays(CharacterEmbeddings):
    """The same on the short road; the long one is closed."""

    def __init__(self, size: int = 32, fingerprint: str = "abc", model: str = "字数") -> None:
        super().__init__(size)
        self.model = model
        self._fingerprint = fingerprint
        self.encoded = 0

    @property
    def dimension(self) -> int:
        return self.size

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, texts: list[str], kind: Literal["query", "passage"] = "passage") -> npt.NDArray[np.float32]:
        assert isinstance(texts, list)
        self.encoded += len(texts)
        return np.asarray(CharacterEmbeddings.embed_documents(self, texts), dtype=np.float32).reshape(-1, self.size)

    def relevance(self, cosine: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.clip(np.asarray(cosine, dtype=np.float64), 0, 1) ** 4

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("a list of floats was made")

    embed_query = embed_documents  # type: ignore[assignment]

    async def aembed_query(self, text: str) -> list[float]:
        return self.encode([text], "query")[0].tolist()  # type: ignore[no-any-return]
