"""Do the documents answer this question at all? A calibrated guess, from cosines alone.

A raw cosine cannot tell: some models give every pair of Chinese texts 0.8. What tells is whether the question is
nearer to the documents than to texts of no concern: a bank of small talk, general-knowledge questions and
encyclopaedic passages (assets/background/texts.jsonl). All four cosines below are measured in standard deviations of
unrelated pairs of the same model, so that one set of weights serves every model.
"""

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from luotuo_integrations.registry import ASSETS
from luotuo_integrations.vector_math import unit_rows

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
WEIGHTS_FILE = ASSETS / "background" / "answerability.json"
BACKGROUND_FILE = ASSETS / "background" / "texts.jsonl"
NEAREST = 5  # how many of the bank's texts stand for "the nearest unrelated text"


class ArrayEncoder(Protocol):
    """What is needed of an embedding model; ``LuotuoEmbeddings`` has it."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def fingerprint(self) -> str:
        """Hash of what decides passage vectors."""

    def encode(self, texts: list[str], kind: Literal["query", "passage"] = "passage") -> Vectors:
        """Texts to float32 (N, D)."""


@dataclass(frozen=True)
class Evidence:
    """Cosines of a question with what might answer it, and with what has nothing to do with it.

    Attributes:
        passage: Highest cosine with a passage of the documents.
        sentence: Highest cosine with a sentence of the best passages.
        background_passage: Mean of the five highest cosines with the bank's passages.
        background_question: Mean of the five highest cosines with the bank's questions and small talk.
    """

    passage: float
    sentence: float
    background_passage: float
    background_question: float


@dataclass(frozen=True)
class Background:
    """Vectors of the bank by one model.

    Attributes:
        passages: float32 (P, D), passages.
        questions: float32 (Q, D), questions and small talk, as queries.
        mean: Mean cosine of a question with a passage, all pairs of the bank.
        deviation: Standard deviation of those cosines.
    """

    passages: Vectors
    questions: Vectors
    mean: float
    deviation: float

    @classmethod
    def of(cls, passages: Vectors, questions: Vectors) -> "Background":
        """Measure the bank: ``passages`` (P, D), ``questions`` (Q, D)."""
        cosines = questions @ passages.T  # (Q, P)
        return cls(passages, questions, float(cosines.mean()), float(cosines.std()))

    def features(self, evidence: Evidence) -> npt.NDArray[np.float64]:
        """The evidence in standard deviations of unrelated pairs, float64 (4,)."""
        values = (evidence.passage, evidence.sentence, evidence.background_passage, evidence.background_question)
        scaled: npt.NDArray[np.float64] = (np.array(values, dtype=np.float64) - self.mean) / self.deviation
        return scaled


class Answerability:
    """Judges questions with one embedding model.

    Args:
        embeddings: The model that embeds question and documents.
    """

    def __init__(self, embeddings: ArrayEncoder) -> None:
        self._embeddings = embeddings
        self._background: Background | None = None

    @property
    def background(self) -> Background:
        """The bank in this model's vectors: those in the package where they fit, else embedded now."""
        if self._background is None:
            stored = _stored_background(self._embeddings.model, self._embeddings.fingerprint)
            self._background = stored or embed_background(self._embeddings)
        return self._background

    def evidence(self, query: Vectors, passage: float, sentence: float) -> Evidence:
        """Collect the four cosines.

        Args:
            query: Vector of the question, float32 (D,), of length 1.
            passage: Its highest cosine with a passage of the documents.
            sentence: Its highest cosine with a sentence of the best passages.
        """
        nearest = [
            float(np.sort(bank @ query)[-NEAREST:].mean())
            for bank in (self.background.passages, self.background.questions)
        ]
        return Evidence(passage, sentence, nearest[0], nearest[1])

    def probability(self, evidence: Evidence) -> float:
        """How sure it is that the documents answer the question.

        Returns:
            In [0, 1]: a logistic of the evidence, whose intercept is set so that 0.5 is the threshold that refuses
            4 % of the answerable calibration questions (training/CALIBRATION.md).
        """
        intercept, weights = _weights()
        return float(1 / (1 + np.exp(-(intercept + self.background.features(evidence) @ weights))))


def background_texts() -> tuple[list[str], list[str]]:
    """The bank's (passages, questions and small talk)."""
    rows = [json.loads(line) for line in BACKGROUND_FILE.read_text(encoding="utf-8").splitlines()]
    passages = [row["text"] for row in rows if row["kind"] == "general_passage"]
    return passages, [row["text"] for row in rows if row["kind"] != "general_passage"]


def embed_background(embeddings: ArrayEncoder) -> Background:
    """Embed the bank with a model; about 700 short texts."""
    logger.info("Embedding the background texts with %s, once", embeddings.model)
    passages, questions = background_texts()
    return Background.of(
        unit_rows(embeddings.encode(passages, "passage")), unit_rows(embeddings.encode(questions, "query"))
    )


def _stored_background(model: str, fingerprint: str) -> Background | None:
    path = ASSETS / "background" / f"{model}.safetensors"
    if "/" in model or not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        if file.metadata().get("fingerprint") != fingerprint:
            return None
        return Background.of(*(file.get_tensor(name).astype(np.float32) for name in ("passages", "questions")))


@lru_cache(maxsize=1)
def _weights() -> tuple[float, npt.NDArray[np.float64]]:
    fitted = json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))
    names = ("passage", "sentence", "background_passage", "background_question")
    return float(fitted["intercept"]), np.array([fitted["weights"][name] for name in names], dtype=np.float64)
