"""Measures models on the development sets, side by side: one table.

    python -m training.measure luotuo-interim runs/luotuo-mini/contrast/model-8bit bm25 --out runs/measure

Each model's numbers are kept in the folder; it is measured again where the model, the sets, the tasks or the dimensions
are others.
``--dimensions 256 128`` adds columns of vectors cut to their first numbers.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.evaluation import rank_metrics, ranking_metrics, ranks
from luotuo_integrations.retrieval import KeywordIndex, character_bigrams
from luotuo_integrations.similarity_metrics import paired_cosines, retrieval_from_vectors, spearman
from luotuo_integrations.texts import Kind, Vectors
from training.devsets import DevSets, Halves, Labelled, Retrieval, Scored

Encode = Callable[[Sequence[str], Kind], Vectors]
Metrics = dict[str, float]
TASKS = {
    "retrieval": "nDCG@10",
    "sts": "Spearman",
    "halves": "MRR",
    "classification": "accuracy",
}


def measure(encode: Encode, sets: DevSets, tasks: Sequence[str], dimensions: Sequence[int]) -> dict[str, Metrics]:
    """Measure one encoder: column name ("" for whole vectors, else the dimension) to metrics by ``task/name``."""
    found: dict[str, Metrics] = {str(one): {} for one in ("", *dimensions)}

    def note(key: str, judge: Callable[..., float], *vectors: Vectors) -> None:
        for column, metrics in found.items():
            metrics[key] = judge(*(cut(one, int(column)) if column else one for one in vectors))

    for name, retrieval in sets.retrieval.items() if "retrieval" in tasks else ():
        queries, passages = encode(retrieval.queries, "query"), encode(retrieval.passages, "passage")
        note(f"retrieval/{name}", _retrieval(retrieval), queries, passages)
    for name, scored in sets.sts.items() if "sts" in tasks else ():
        note(f"sts/{name}", _sts(scored), encode(scored.first, "query"), encode(scored.second, "query"))
    for name, halves in sets.halves.items() if "halves" in tasks else ():
        note(f"halves/{name}", _halves(halves), encode(halves.front, "passage"), encode(halves.back, "passage"))
    for name, labelled in sets.classification.items() if "classification" in tasks else ():
        note(f"classification/{name}", _probe(labelled), encode(labelled.texts, "query"))
    return found


def measure_bm25(sets: DevSets) -> Metrics:
    """BM25 over character bigrams, on the tasks that it can do: retrieval."""
    metrics: Metrics = {}
    for name, one in sets.retrieval.items():
        index = KeywordIndex([character_bigrams(passage) for passage in one.passages])
        ranked = [[place for place, _ in index.search(character_bigrams(query), 10)] for query in one.queries]
        metrics[f"retrieval/{name}"] = ranking_metrics(ranked, one.positives)["ndcg@10"]
    return metrics


def cut(vectors: Vectors, dimensions: int) -> Vectors:
    """The first numbers of each vector, of length 1 again."""
    short = vectors[:, :dimensions]
    unit: Vectors = short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)
    return unit


def _retrieval(one: Retrieval) -> Callable[[Vectors, Vectors], float]:
    return lambda queries, passages: retrieval_from_vectors(queries, passages, one.positives)["ndcg@10"]


def _sts(one: Scored) -> Callable[[Vectors, Vectors], float]:
    return lambda first, second: spearman(paired_cosines(first, second), one.labels)


def _halves(one: Halves) -> Callable[[Vectors, Vectors], float]:
    return lambda front, back: rank_metrics(ranks(front @ back.T, np.arange(len(one.front))), cutoffs=[1000])[
        "mrr@1000"
    ]


def _probe(one: Labelled) -> Callable[[Vectors], float]:
    from sklearn.linear_model import LogisticRegression

    def accuracy(vectors: Vectors) -> float:
        # Of length 1 and all much alike: without the mean and in units of their spread, so that one strength of
        # regularisation suits every model.
        centred = vectors - vectors[: one.train].mean(0)
        centred = centred / centred[: one.train].std()
        probe = LogisticRegression(C=0.1, max_iter=1_000).fit(centred[: one.train], one.labels[: one.train])
        return float(probe.score(centred[one.train :], one.labels[one.train :]))

    return accuracy


def with_means(metrics: Metrics) -> Metrics:
    """The metrics with the mean of each task in front."""
    means = {}
    for task in TASKS:
        values = [value for key, value in metrics.items() if key.startswith(f"{task}/")]
        if values:
            means[task] = float(np.mean(values))
    return means | metrics


def table(columns: dict[str, Metrics]) -> str:
    """All columns as a Markdown table."""
    columns = {name: with_means(metrics) for name, metrics in columns.items()}
    keys = list(TASKS) + sorted({key for one in columns.values() for key in one if "/" in key}, key=_order)
    rows = ["| | " + " | ".join(columns) + " |", "|---" + "|--:" * len(columns) + "|"]
    for key in keys:
        label = f"**{key}** ({TASKS[key]}, mean)" if key in TASKS else key
        values = (f"{one[key]:.4f}" if key in one else "" for one in columns.values())
        rows.append(f"| {label} | " + " | ".join(values) + " |")
    return "\n".join(rows) + "\n"


def _order(key: str) -> tuple[int, str]:
    return list(TASKS).index(key.partition("/")[0]), key


def main() -> None:
    """Measure what was not measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names, folders, or bm25")
    parser.add_argument("--devsets", type=Path, default=Path("runs/devsets/devsets.json"))
    parser.add_argument("--out", type=Path, default=Path("runs/measure"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--dimensions", nargs="*", type=int, default=[], help="cut vectors, too")
    arguments = parser.parse_args()
    sets = DevSets.read(arguments.devsets)
    request = {
        "devsets": hashlib.sha256(arguments.devsets.read_bytes()).hexdigest(),
        "tasks": arguments.tasks,
        "dimensions": arguments.dimensions,
    }
    columns: dict[str, Metrics] = {}
    for model in arguments.models:
        encoder = None if model == "bm25" else Encoder(model)
        asked = {**request, "model": "" if encoder is None else encoder.fingerprint}
        kept = arguments.out / (re.sub(r"\W+", "-", model).strip("-") + ".json")
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if known.get("asked") != asked:
            if encoder is None:
                found = {"": measure_bm25(sets)}
            else:
                found = measure(encoder.encode, sets, arguments.tasks, arguments.dimensions)
            known = {"asked": asked, "found": found}
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
        for column, metrics in known["found"].items():
            columns[f"{model} {column}".strip()] = metrics
    print(table(columns))


if __name__ == "__main__":
    main()
