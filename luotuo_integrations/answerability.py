"""Do the documents answer this question at all? A calibrated guess, from cosines alone.

A raw cosine cannot tell: some models give every pair of Chinese texts 0.8. What tells is whether the question is
nearer to the documents than to texts of no concern: a bank of small talk, general-knowledge questions and
encyclopaedic passages (assets/background/texts.jsonl). All four cosines below are measured in standard deviations of
unrelated pairs of the same model, so that one set of weights serves every model.
"""

import json
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luotuo_integrations.registry import ASSETS, DEFAULT_MODEL
from luotuo_integrations.store.vector_math import unit_rows
from luotuo_integrations.texts import ArrayEncoder, Vectors

logger = logging.getLogger(__name__)

WEIGHTS_FILE = ASSETS / "background" / "answerability.json"
BACKGROUND_FILE = ASSETS / "background" / "texts.jsonl"
PACKAGED_FILE = ASSETS / "background" / f"{DEFAULT_MODEL}.safetensors"
CACHE_FILE = "background.safetensors"
NEAREST = 5  # how many of the bank's texts stand for "the nearest unrelated text"


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
        cache_folder: A folder that keeps the bank's vectors by models that are not bundled; None keeps none.
    """

    def __init__(self, embeddings: ArrayEncoder, cache_folder: Path | None = None) -> None:
        self._embeddings = embeddings
        self._cache_folder = cache_folder
        self._background: Background | None = None

    @property
    def background(self) -> Background:
        """The bank in this model's vectors: those in the package or the cache where they fit, else embedded now."""
        if self._background is None:
            fingerprint = self._embeddings.fingerprint
            files = [PACKAGED_FILE] if self._cache_folder is None else [PACKAGED_FILE, self._cache_folder / CACHE_FILE]
            stored = (read_background(file, fingerprint) for file in files)
            self._background = next((bank for bank in stored if bank is not None), None) or self._embedded()
        return self._background

    def _embedded(self) -> Background:
        bank = embed_background(self._embeddings)
        if self._cache_folder is not None and self._cache_folder.is_dir():
            try:
                write_background(bank, self._cache_folder / CACHE_FILE, self._embeddings.fingerprint)
            except OSError as error:
                logger.info("The vectors of the background texts are not kept: %s", error)
        return bank

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


def write_background(bank: Background, path: Path, fingerprint: str) -> None:
    """Keep a bank's vectors in float16.

    Args:
        bank: The vectors.
        path: The safetensors file.
        fingerprint: Of the model.

    Raises:
        OSError: If it cannot be written; what was there is untouched.
    """
    tensors = {"passages": bank.passages.astype(np.float16), "questions": bank.questions.astype(np.float16)}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(save(tensors, metadata={"fingerprint": fingerprint}))
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_background(path: Path, fingerprint: str) -> Background | None:
    """Read what ``write_background`` wrote; None if there is none, or none of this model."""
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("fingerprint") == fingerprint:
                return Background.of(*(file.get_tensor(name).astype(np.float32) for name in ("passages", "questions")))
    except (FileNotFoundError, SafetensorError):
        logger.debug("%s holds no background", path)
    return None


@lru_cache(maxsize=1)
def _weights() -> tuple[float, npt.NDArray[np.float64]]:
    fitted = json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))
    names = ("passage", "sentence", "background_passage", "background_question")
    return float(fitted["intercept"]), np.array([fitted["weights"][name] for name in names], dtype=np.float64)
