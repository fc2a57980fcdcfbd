"""How good retrieval and refusal are on examples/data: the bundled model beside BM25, and the answerability test.

The passages are those of KnowledgeBase, and what is compared with a question is what is embedded: the headings above a
passage, then its text. A passage answers a question if it is of the right file and holds the answering text verbatim,
white space aside. 60 questions: "paraphrase" ones share no content word with the section that answers them.

Run from the root of the repository: python -m benchmarks.example_questions
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.documents import Document

from luotuo_integrations import KnowledgeBase, LuotuoEmbeddings
from luotuo_integrations.evaluation import bootstrap_interval, rank_metrics, rank_values, ranks
from luotuo_integrations.folder_sync import embedded_text
from luotuo_integrations.qa import QuestionAnswerer
from luotuo_integrations.registry import DEFAULT_MODEL
from luotuo_integrations.retrieval import KeywordIndex, character_bigrams, words

DATA = Path(__file__).parents[1] / "examples" / "data"
METRICS = ("recall@1", "recall@5", "mrr@10")
THRESHOLD = 0.5

Row = dict[str, Any]
Scores = npt.NDArray[np.floating[Any]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with documents and the two files of questions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    questions = read_lines(arguments.data / "questions.jsonl")
    others = read_lines(arguments.data / "unanswerable.jsonl")
    embeddings = LuotuoEmbeddings(arguments.model)
    with tempfile.TemporaryDirectory() as store:
        knowledge_base = KnowledgeBase(arguments.data, store=store, embeddings=embeddings)
        knowledge_base.sync()
        results = {
            "retrieval": retrieval(knowledge_base, questions),
            "answerability": answerability(knowledge_base, questions, others),
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[Row]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- retrieval --------------------------------------------------------------------------------------------------------


def retrieval(knowledge_base: KnowledgeBase, questions: list[Row]) -> dict[str, Any]:
    """Recall and MRR of the model and of BM25, for all questions and by style."""
    documents = knowledge_base.vectorstore.documents()
    queries = [question["query"] for question in questions]
    positives = np.array([[answers(document, question) for document in documents] for question in questions])
    print(f"{len(questions)} questions, {len(documents)} passages; ", end="")
    print(f"{int((~positives.any(axis=1)).sum())} questions whose answer no passage holds whole\n")
    systems = {
        knowledge_base.embeddings.model: dense_scores(knowledge_base, documents, queries),
        "BM25 words": keyword_scores(words, documents, queries),
        "BM25 bigrams": keyword_scores(character_bigrams, documents, queries),
    }
    styles = np.array([question["style"] for question in questions])
    groups = {"all": np.ones(len(questions), dtype=bool)} | {style: styles == style for style in sorted({*styles})}
    results: dict[str, Any] = {}
    print(f"{'':18s}{'':12s}" + "".join(f"{metric:>10s}" for metric in METRICS) + "   recall@1, 95 % interval")
    for name, scores in systems.items():
        places = ranks(scores, positives)
        for group, members in groups.items():
            metrics = rank_metrics(places[members], cutoffs=(1, 5, 10))
            interval = bootstrap_interval(rank_values(places[members], cutoffs=(1,))["recall@1"])
            results.setdefault(name, {})[group] = {metric: metrics[metric] for metric in METRICS}
            shown = "".join(f"{metrics[metric]:10.3f}" for metric in METRICS)
            print(f"{name:18s}{group:12s}{shown}   {interval['low']:.2f} to {interval['high']:.2f}")
    return results


def answers(document: Document, question: Row) -> bool:
    """Whether a passage holds the text that answers a question."""
    return document.metadata["source"] == question["source"] and squeezed(question["positive"]) in squeezed(
        document.page_content
    )


def squeezed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def dense_scores(knowledge_base: KnowledgeBase, documents: list[Document], queries: list[str]) -> Scores:
    """Cosines of all questions with all passages, (Q, N)."""
    vectors = knowledge_base.vectorstore.core.vectors([document.id or "" for document in documents])
    scores: Scores = knowledge_base.embeddings.encode(queries, "query") @ vectors.T
    return scores


def keyword_scores(tokens: Callable[[str], list[str]], documents: list[Document], queries: list[str]) -> Scores:
    """BM25 scores of all questions with all passages, (Q, N); 0 where no token is shared."""
    index = KeywordIndex([tokens(embedded_text(document)) for document in documents])
    scores = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        for position, score in index.search(tokens(query), len(documents)):
            scores[row, position] = score
    return scores


# -- answerability ----------------------------------------------------------------------------------------------------


def answerability(knowledge_base: KnowledgeBase, questions: list[Row], others: list[Row]) -> dict[str, Any]:
    """How sure the answerer is that the documents answer, for questions that they do and do not answer."""
    answerer = QuestionAnswerer(knowledge_base.vectorstore, threshold=0.0)
    groups = {"answerable": questions} | {
        f"unanswerable: {kind}": [row for row in others if row["kind"] == kind]
        for kind in dict.fromkeys(row["kind"] for row in others)
    }
    results: dict[str, Any] = {}
    for name, rows in groups.items():
        relevances = np.array([answerer.find(row["query"]).relevance for row in rows])
        refused = float((relevances < THRESHOLD).mean())
        results[name] = {"refused": refused, "relevances": relevances.round(4).tolist()}
        print(f"\n{name}: {len(rows)} questions, {refused:.1%} refused at {THRESHOLD}")
        print("\n".join(histogram(relevances)))
        wrong = [row["query"] for row, value in zip(rows, relevances, strict=True)
                 if (value < THRESHOLD) == (name == "answerable")]  # fmt: skip
        if wrong:
            print(f"  {'refused' if name == 'answerable' else 'answered'}: {'；'.join(wrong)}")
    return results


def histogram(values: npt.NDArray[np.float64], bins: int = 10) -> list[str]:
    """Lines of a text histogram of numbers in [0, 1]."""
    counts, edges = np.histogram(values, bins=bins, range=(0, 1))
    return [
        f"  {low:.1f} to {high:.1f} {count:4d} {'█' * round(40 * count / max(1, len(values)))}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


if __name__ == "__main__":
    main()
