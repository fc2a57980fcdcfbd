"""What keywords cost a store, and what a hybrid search costs beside its two halves.

    python -m benchmarks.keywords --size 100000

The texts are three sentences each, drawn at random from examples/data, the vectors random. Times are medians of 50
queries, one at a time; ratios are those of one run.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np

from luotuo_integrations.chinese_tokens import KeywordTokenizer, TokenizerKind
from luotuo_integrations.hybrid_search import HybridMethod, HybridSettings, hybrid_search
from luotuo_integrations.store.core import FaissCore

DATA = Path(__file__).parents[1] / "examples" / "data"
DIMENSION = 384
FETCHED = HybridSettings.fetch_k
QUERIES = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="how many texts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    results = measure(arguments.size)
    print(f"{arguments.size:,} texts of {results['characters']:.0f} characters")
    for name in get_args(TokenizerKind):
        print(f"  splitting, {name}: {results[f'split {name}']:.2f} microseconds a character")
    print(f"  BM25 matrix after a change: {results['matrix']:.2f} s")
    for name in ("vector", "keyword", *map(_named, get_args(HybridMethod))):
        print(f"  {name}: {results[name]:.2f} ms a query, {results[name] / results['vector']:.2f} times vectors alone")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(size: int, seed: int = 0) -> dict[str, float]:
    """Build a store of ``size`` texts and ask it; times in the units that `main` prints."""
    generator = np.random.default_rng(seed)
    texts, queries = drawn_texts(size, 3, generator), drawn_texts(QUERIES, 1, generator)
    vectors = generator.standard_normal((size + 1, DIMENSION)).astype(np.float32)
    query, core = vectors[-1], FaissCore(DIMENSION)
    core.add(vectors[:-1], texts, ids=[str(number) for number in range(size)])
    characters = sum(map(len, texts))
    results = {"characters": characters / size}
    for kind in get_args(TokenizerKind):  # the default comes last and stays
        KeywordTokenizer(kind)("预热")
        results[f"split {kind}"] = 1e6 * _seconds(partial(core.use_keywords, KeywordTokenizer(kind))) / characters
    results["matrix"] = _seconds(partial(core.keyword_search, queries[0], FETCHED))

    def ask(text: str, name: str) -> object:
        if name == "vector":
            return core.search(query[None], FETCHED)
        if name == "keyword":
            return core.keyword_search(text, FETCHED)
        return hybrid_search(core, query, text, 4, settings=settings[name])

    settings = {_named(method): HybridSettings(method=method) for method in get_args(HybridMethod)}
    for name in ("vector", "keyword", *settings):
        ask(queries[0], name)
        results[name] = 1e3 * median(_seconds(partial(ask, text, name)) for text in queries)
    return results


def drawn_texts(count: int, sentences: int, generator: np.random.Generator) -> list[str]:
    """Texts of so many sentences of examples/data, drawn at random."""
    documents = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DATA.rglob("*.md")))
    known = sorted({part.strip() for part in re.split(r"(?<=[。！？])|\n", documents) if len(part.strip()) > 6})
    places = generator.integers(len(known), size=(count, sentences))
    return ["".join(known[place] for place in row) for row in places]


def _named(method: str) -> str:
    return f"hybrid, {method}"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
