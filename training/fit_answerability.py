"""Fit what says whether documents answer a question, and what a cosine is worth, for one model.

Everything is fitted on training/calibration. The counts on examples/data are of another document set, but no blind
test: the method was chosen with both in view.

- answerability.json: the weights of a logistic regression over the evidence (luotuo_integrations/answerability.py),
  answerable questions against small talk and general knowledge; the intercept makes 0.5 the threshold that refuses 4 %
  of the answerable ones.
- luotuo-mini.safetensors: the vectors of the background bank, so that the first question need not wait for them.
- printed: (slope, midpoint) of the card's relevance, a logistic of the cosine, gold passages against the best that
  off-topic questions find; also for vectors cut to the dimensions that the card names.

Run from the root of the repository: python -m training.fit_answerability
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from luotuo_integrations.answerability import (
    WEIGHTS_FILE,
    Answerability,
    Evidence,
    background_texts,
    embed_background,
    write_background,
)
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.knowledge_base import KnowledgeBase
from luotuo_integrations.qa import QuestionAnswerer
from luotuo_integrations.registry import DEFAULT_MODEL, find_card

CALIBRATION = Path(__file__).parent / "calibration"
REFUSED = 0.04  # share of answerable calibration questions below the threshold
NAMES = ("passage", "sentence", "background_passage", "background_question")


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE.parent)
    arguments = parser.parse_args()
    embeddings = LuotuoEmbeddings(arguments.model)
    bank = embed_background(embeddings)
    write_background(bank, arguments.output / f"{embeddings.model}.safetensors", embeddings.fingerprint)
    answerable = read_lines(CALIBRATION / "questions.jsonl")
    others = unknown_to_the_bank(read_lines(CALIBRATION / "unanswerable.jsonl"))
    with tempfile.TemporaryDirectory() as store:
        knowledge_base = KnowledgeBase(CALIBRATION, store=store, embeddings=embeddings)
        knowledge_base.sync()
        answerer = QuestionAnswerer(knowledge_base.vectorstore)
        judge = Answerability(embeddings)
        positive = features(answerer, judge, answerable)
        negative = features(answerer, judge, others)
        slope, midpoint = fit_relevance(knowledge_base, answerable, others)
    weights, intercept = fit_weights(positive, negative)
    content = {
        "fitted_with": arguments.model,
        "fitted_on": "training/calibration",
        "answerable": len(positive),
        "unanswerable": len(negative),
        "answerable_refused": REFUSED,
        "intercept": round(intercept, 4),
        "weights": {name: round(float(weight), 4) for name, weight in zip(NAMES, weights, strict=True)},
    }
    arguments.output.joinpath(WEIGHTS_FILE.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=2))
    refused = {name: float(np.mean(rows @ weights + intercept < 0)) for name, rows in
               (("answerable", positive), ("small talk and general", negative))}  # fmt: skip
    print("refused on the calibration set:", refused)
    print(f"relevance of a cosine: slope {slope:.1f}, midpoint {midpoint:.3f}")
    card = find_card(arguments.model)
    for dimensions in () if card is None else card.matryoshka:
        with tempfile.TemporaryDirectory() as store:
            cut = LuotuoEmbeddings(arguments.model, dimensions=dimensions)
            knowledge_base = KnowledgeBase(CALIBRATION, store=store, embeddings=cut)
            knowledge_base.sync()
            slope, midpoint = fit_relevance(knowledge_base, answerable, others)
        print(f"relevance at {dimensions} numbers: slope {slope:.1f}, midpoint {midpoint:.3f}")


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unknown_to_the_bank(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Small talk and general questions that no text of the bank nearly repeats; such would be too easy to refuse."""
    passages, questions = background_texts()
    known = [bigrams(text) for text in (*passages, *questions)]

    def is_new(text: str) -> bool:
        own = bigrams(text)
        return all(len(own & other) / len(own | other) < 0.5 for other in known)

    return [row for row in rows if row["kind"] != "in_domain" and is_new(row["query"])]


def bigrams(text: str) -> set[str]:
    """Pairs of neighbouring characters; of a single character itself."""
    return {text[i : i + 2] for i in range(len(text) - 1)} or {text}


def features(answerer: QuestionAnswerer, judge: Answerability, rows: list[dict[str, str]]) -> np.ndarray:
    """Features of questions, float64 (N, 4)."""
    found = [answerer.evidence(row["query"]) for row in rows]
    return np.array([judge.background.features(evidence) for evidence in found if isinstance(evidence, Evidence)])


def fit_weights(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression; then the intercept that puts the threshold at the ``REFUSED`` quantile of the positive."""
    rows = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(rows, labels)
    weights = model.coef_[0].round(4)
    scores = np.sort(positive @ weights)
    cut = int(REFUSED * len(scores))
    return weights, -float((scores[cut - 1] + scores[cut]) / 2)


def fit_relevance(
    knowledge_base: KnowledgeBase, answerable: list[dict[str, str]], others: list[dict[str, str]]
) -> tuple[float, float]:
    """(slope, midpoint) of the logistic between gold passages and the best that questions without an answer find."""
    gold: list[float] = []
    for row in answerable:
        wanted = "".join(row["positive"].split())
        for result in knowledge_base.search(row["query"], k=len(knowledge_base)):
            if wanted in "".join(result.document.page_content.split()):
                gold.append(result.score)
                break
    other = [knowledge_base.search(row["query"], k=1)[0].score for row in others]
    cosines = np.array([*gold, *other])[:, None]
    labels = np.repeat([1, 0], [len(gold), len(other)])
    model = LogisticRegression(class_weight="balanced", C=1e6, max_iter=10_000).fit(cosines, labels)
    slope = float(model.coef_[0, 0])
    return slope, -float(model.intercept_[0]) / slope


if __name__ == "__main__":
    main()
