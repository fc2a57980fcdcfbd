"""Retrieval in eight domains: vectors, keywords, both fused, and both with a query mapper; one table each.

    python -m benchmarks.retrieval DATA --json benchmarks/results/retrieval.json --picture docs/images/retrieval.png

``DATA`` is the folder of the development data, with ``pairs/*.jsonl.xz`` (see training/README.md). In each domain the
passages are ordered by a hash; the first 300 are asked for by one question each, the next 2,000 give pairs for the
mapper, and the first 3,000 are searched. The questions of law, medicine and technology are those of
``training/devsets.py``, which the bundled models did not learn from; of news, programming and instructions they learnt
nothing at all. Of counselling they learnt one pair in twenty, of dialogue one in three, which may be among these.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.chinese_tokens import KeywordTokenizer, TokenizerKind
from luotuo_integrations.evaluation import ranking_values
from luotuo_integrations.hybrid_search import HybridMethod, HybridSettings, hybrid_search
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.mapper_fit import fit_mapper
from luotuo_integrations.registry import DEFAULT_MODEL
from luotuo_integrations.significance import paired_significance
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.texts import Vectors
from training.devsets import LONGEST, Row, place, rows_of

QUESTIONS, PAIRS, PASSAGES = 300, 2_000, 3_000
SIZES = (20, 100, 500, 2_000)
DEPTH = 10
HARD = 0.95  # sets on which vectors or keywords alone reach this say little

Source = Callable[[str], bool]
DOMAINS: dict[str, tuple[str, Source]] = {
    "law": ("law_qa", lambda one: one in ("lawyer-llama/advice", "LegalQA")),
    "medicine": ("medical_qa", lambda one: one not in ("Huatuo/literature", "COVID-Dialogue")),
    "technology": ("tech_title_body", lambda one: one.startswith("LCTT")),
    "programming": ("tech_title_body", lambda one: one.startswith("gold-miner")),
    "news": ("news_title_body", bool),
    "instructions": ("instruction_alpaca", bool),
    "counselling": ("psychology_smile", bool),
    "dialogue": ("medical_qa", lambda one: one == "COVID-Dialogue"),
}
KEYWORDS: dict[str, TokenizerKind] = {"BM25 words": "words", "BM25 bigrams": "bigrams", "BM25 both": "both"}
FUSIONS: dict[str, HybridMethod] = {
    "hybrid, reciprocal rank": "reciprocal_rank",
    "hybrid, weighted": "weighted",
    "hybrid": "calibrated",
}

Values = dict[str, NDArray[np.float64]]  # measure -> (Q,)


@dataclass(frozen=True)
class Domain:
    """Questions that search passages, and pairs to learn from.

    Attributes:
        questions: Q of them.
        passages: P of them.
        positives: For each question the numbers of the passages that answer it.
        pairs: (question, answer), whose answers answer none of the questions.
    """

    questions: list[str]
    passages: list[str]
    positives: list[list[int]]
    pairs: list[tuple[str, str]]


def domain_of(rows: Iterable[Row]) -> Domain:
    """Make a domain of lines with a query and the passage that answers it."""
    asked_by: dict[str, set[str]] = {}
    for row in rows:
        query, passage = row["query"].strip(), row["positive"].strip()
        if 20 <= len(passage) <= LONGEST and 2 <= len(query) <= 200 and query not in passage[: len(query) + 4]:
            asked_by.setdefault(passage, set()).add(query)
    ordered = sorted(asked_by, key=place)
    count = min(QUESTIONS, len(ordered) // 3)
    passages = ordered[:PASSAGES]
    answers: dict[str, list[int]] = {}
    for number, passage in enumerate(passages):
        for query in asked_by[passage]:
            answers.setdefault(query, []).append(number)
    questions = list(dict.fromkeys(min(asked_by[passage], key=place) for passage in ordered[:count]))
    asked = set(questions)
    others = [passage for passage in ordered[count : count + PAIRS] if not asked_by[passage] & asked]
    pairs = [(min(asked_by[passage], key=place), passage) for passage in others]
    return Domain(questions, passages, [answers[one] for one in questions], pairs)


class Searches:
    """The searches of one domain, each giving its measures by question."""

    def __init__(self, domain: Domain, embeddings: LuotuoEmbeddings) -> None:
        self._domain = domain
        self.vectors = embeddings.encode(domain.questions, "query")
        self.core = FaissCore(embeddings.dimension, fingerprint=embeddings.fingerprint, model=embeddings.model)
        ids = [str(number) for number in range(len(domain.passages))]
        self.core.add(embeddings.encode(domain.passages, "passage"), domain.passages, ids=ids)

    def nearest(self, vectors: Vectors) -> Values:
        """By vectors alone."""
        return self._measured([[hit.id for hit in hits] for hits in self.core.search(vectors, DEPTH)])

    def keywords(self, kind: TokenizerKind) -> Values:
        """By keywords alone."""
        self.core.use_keywords(KeywordTokenizer(kind))
        found = (self.core.keyword_search(question, DEPTH) for question in self._domain.questions)
        return self._measured([[hit.id for hit in hits] for hits in found])

    def hybrid(self, vectors: Vectors, method: HybridMethod = "calibrated") -> Values:
        """By both."""
        asked = zip(vectors, self._domain.questions, strict=True)
        settings = HybridSettings(method=method)
        found = (hybrid_search(self.core, vector, text, DEPTH, settings=settings) for vector, text in asked)
        return self._measured([[hit.id for hit in hits] for hits in found])

    def _measured(self, ranked: list[list[str]]) -> Values:
        relevant = [[str(number) for number in numbers] for numbers in self._domain.positives]
        values = ranking_values(ranked, relevant, cutoffs=[1, DEPTH])
        return {name: values[name] for name in ("recall@1", f"ndcg@{DEPTH}")}


def measure(domain: Domain, embeddings: LuotuoEmbeddings) -> tuple[dict[str, Values], dict[str, str]]:
    """All searches of a domain, and how each mapper was fitted."""
    searches = Searches(domain, embeddings)
    found = {"vector": searches.nearest(searches.vectors)}
    found |= {name: searches.keywords(kind) for name, kind in KEYWORDS.items()}
    found |= {name: searches.hybrid(searches.vectors, method) for name, method in FUSIONS.items()}
    questions = embeddings.encode([question for question, _ in domain.pairs], "query")
    answers = embeddings.encode([answer for _, answer in domain.pairs], "passage")
    methods: dict[str, str] = {}
    for size in SIZES:
        mapper = _fitted(questions[:size], answers[:size])
        report = mapper.report
        methods[str(size)] = (
            f"{report['method']}, strength {report['strength']}" if "strength" in report else "identity"
        )
        mapped = mapper(searches.vectors)
        found[f"vector + mapper {size:,}"] = searches.nearest(mapped)
        found[f"hybrid + mapper {size:,}"] = searches.hybrid(mapped)
    return found, methods


def _fitted(questions: Vectors, answers: Vectors) -> LinearQueryMapper:
    known, places = np.unique(answers, axis=0, return_inverse=True)  # a text may answer several questions
    return fit_mapper(questions, known, places.reshape(-1))


def table(results: dict[str, dict[str, Values]], measured: str) -> Iterator[str]:
    """Markdown: a line a search, a column a domain, and the means over all and over the hard domains."""
    hard = hard_domains(results)
    yield f"| {measured} | " + " | ".join(results) + " | mean | hard |"
    yield "|---|" + "--:|" * (len(results) + 2)
    for search in next(iter(results.values())):
        means = {name: float(one[search][measured].mean()) for name, one in results.items()}
        cells = [*means.values(), float(np.mean([*means.values()])), float(np.mean([means[one] for one in hard]))]
        yield f"| {search} | " + " | ".join(f"{one:.3f}" for one in cells) + " |"


def hard_domains(results: dict[str, dict[str, Values]]) -> list[str]:
    """Those in which neither vectors nor keywords alone reach 0.95 of nDCG@10."""
    singles = ("vector", *KEYWORDS)
    return [
        name for name, one in results.items() if max(one[single][f"ndcg@{DEPTH}"].mean() for single in singles) < HARD
    ]


def differences(results: dict[str, dict[str, Values]]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What the goals ask: (measure, what minus what, the difference over all questions of the hard domains)."""
    hard = [results[name] for name in hard_domains(results)]
    ndcg, recall = f"ndcg@{DEPTH}", "recall@1"

    def pooled(searches: Sequence[str], measured: str) -> NDArray[np.float64]:
        """Values of all questions; of several searches those of the better one of each domain."""
        best = (max((one[search][measured] for search in searches), key=lambda column: column.mean()) for one in hard)
        return np.concatenate(list(best))

    singles = ["vector", *KEYWORDS]
    biggest = SIZES[-1]
    compared = [
        (ndcg, "hybrid", singles, "better of vector and BM25"),
        *((recall, f"vector + mapper {size:,}", ["vector"], "vector") for size in SIZES),
        *((ndcg, f"vector + mapper {size:,}", ["vector"], "vector") for size in SIZES),
        *((ndcg, f"hybrid + mapper {size:,}", ["hybrid"], "hybrid") for size in SIZES),
        (ndcg, f"hybrid + mapper {biggest:,}", [f"vector + mapper {biggest:,}"], f"vector + mapper {biggest:,}"),
        (ndcg, "hybrid + mapper 500", singles, "better of vector and BM25"),
    ]
    for measured, search, others, name in compared:
        difference = paired_significance(pooled([search], measured), pooled(others, measured))
        yield measured, f"{search} - {name}", difference


def never_worse(results: dict[str, dict[str, Values]]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(domain, pairs, difference of recall@1 to no mapper), for each domain."""
    for name, one in results.items():
        for size in SIZES:
            plain, mapped = one["vector"]["recall@1"], one[f"vector + mapper {size:,}"]["recall@1"]
            yield name, size, paired_significance(mapped, plain)


def draw(results: dict[str, dict[str, Values]], path: Path) -> None:
    """Bars by domain: the better single search, both fused, a mapper of 500 pairs, and all together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ndcg = f"ndcg@{DEPTH}"
    bars = {
        "vector": "vector",
        "BM25": "BM25 both",
        "vector + mapper (500 pairs)": "vector + mapper 500",
        "hybrid": "hybrid",
        "hybrid + mapper (500 pairs)": "hybrid + mapper 500",
    }
    figure: Any = Figure(
        figsize=(11, 4.2), layout="constrained"
    )  # the object-oriented interface changes no global state
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(bars)
    colours = ("#9aa5b1", "#d3c6a5", "#6c8ebf", "#82b366", "#2f6b3a")
    for number, ((label, search), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        heights = [one[search][ndcg].mean() for one in results.values()]
        axes.bar(np.arange(len(results)) + (number - 2) * width, heights, width, label=label, color=colour)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.13), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with pairs/*.jsonl.xz")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--domains", nargs="+", choices=list(DOMAINS), default=list(DOMAINS))
    parser.add_argument("--vector-cache", type=Path, help="folder that keeps the vectors for another run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="needs matplotlib")
    arguments = parser.parse_args()
    embeddings = LuotuoEmbeddings(arguments.model, vector_cache=arguments.vector_cache)
    results: dict[str, dict[str, Values]] = {}
    fitted: dict[str, dict[str, str]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name in arguments.domains:
        file, keep = DOMAINS[name]
        rows = rows_of(arguments.data / "pairs" / f"{file}.jsonl.xz")
        domain = domain_of(row for row in rows if keep(row.get("source", file)))
        sizes[name] = {part: len(getattr(domain, part)) for part in ("questions", "passages", "pairs")}
        print(f"{name}: {sizes[name]}", flush=True)
        results[name], fitted[name] = measure(domain, embeddings)
        print(f"  mappers: {fitted[name]}", flush=True)
    for measured in (f"ndcg@{DEPTH}", "recall@1"):
        print("\n" + "\n".join(table(results, measured)))
    print(f"\nOver the questions of {', '.join(hard_domains(results))}, with 95 % intervals:")
    compared = list(differences(results)) if hard_domains(results) else []
    for measured, what, one in compared:
        print(
            f"  {measured} {what}: {one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f}), p {one['p']:.4f}"
        )
    print("\nrecall@1 with a mapper minus without, by domain:")
    by_domain = list(never_worse(results))
    for name, size, one in by_domain:
        print(f"  {name}, {size:,} pairs: {one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})")
    if arguments.json:
        found: dict[str, Any] = {
            "model": arguments.model,
            "sizes": sizes,
            "means": {
                name: {search: {key: float(v.mean()) for key, v in values.items()} for search, values in one.items()}
                for name, one in results.items()
            },
            "mappers": fitted,
            "hard": hard_domains(results),
            "differences": [{"measure": a, "what": b, **c} for a, b, c in compared],
            "by_domain": [{"domain": a, "pairs": b, **c} for a, b, c in by_domain],
        }
        arguments.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
