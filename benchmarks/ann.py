"""How much of exact search the approximate indexes find, how fast, and in how much memory.

The share of the ten nearest vectors by exact search that an index finds (recall@10); the median time of one query, on
one core; the bytes of the index, as written to a file; the time to train and fill it, on all cores. The kinds that the
store takes run as in the store, without its texts; the others, marked "raw", are faiss alone: LSH, RaBitQ and one bit a
number, whether it is above the mean ("signs", IndexBinaryFlat). An effort is the store's ``search_effort``: lists that
an IVF index visits, or candidates that an HNSW index keeps; empty is its own choice: 16 lists of 256, 64 candidates.

The vectors have length 1. --data clusters: random, around sqrt(N) centres, with variances that fall from direction to
direction, as those of a model do, turned at random. --data texts: those of the bundled model, of texts made of three
sentences each, drawn from examples/data; the queries are two sentences. Both are fixed by --seed.

Run from the root of the repository: OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ann
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.peers import machine
from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations._optional import require
from luotuo_integrations.evaluation import ranking_metrics
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind

faiss = require("faiss", extra="faiss")
DATA = Path(__file__).parents[1] / "examples" / "data"
DIMENSION, K, QUERIES, SINGLE = 384, 10, 500, 100
# Factory string and the efforts to try; None is the store's own choice.
STORE_KINDS: dict[str, tuple[int | None, ...]] = {
    "Flat": (None,),
    "SQ8": (None,),
    "PQ48": (None,),
    "HNSW32": (32, None, 256),
    "HNSW32_SQ8": (None,),
    "IVF256,Flat": (4, None, 64),
    "IVF256,SQ8": (None,),
    "IVF256,PQ48": (None,),
}
RAW_KINDS = ("LSH384rt", "RaBitQ")
SIGNS = "signs"
KINDS = (*STORE_KINDS, *RAW_KINDS, SIGNS)

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]
Search = Callable[[Vectors], Found]


class Row(NamedTuple):
    """What was measured of one index with one effort."""

    kind: str
    effort: int | None
    recall: float
    milliseconds: float
    megabytes: float
    build_seconds: float


class Built(NamedTuple):
    """An index to be asked."""

    name: str
    effort: int | None
    search: Search
    size: int  # bytes
    build_seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["clusters", "texts"], default="clusters")
    parser.add_argument("--size", type=int, default=100_000, help="how many vectors")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    make = clusters if arguments.data == "clusters" else text_vectors
    vectors, queries = make(arguments.size, arguments.seed)
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers ({arguments.data}), {len(queries)} queries\n")
    rows = []
    print(f"{'kind':14s}{'effort':>8s}{'recall@10':>11s}{'ms a query':>12s}{'MB':>8s}{'build, s':>10s}")
    for row in measure(vectors, queries, arguments.kinds):
        rows.append(row)
        effort = "" if row.effort is None else str(row.effort)
        print(f"{row.kind:14s}{effort:>8s}{row.recall:11.3f}{row.milliseconds:12.2f}", end="")
        print(f"{row.megabytes:8.1f}{row.build_seconds:10.1f}", flush=True)
    if arguments.json:
        results = {"machine": machine(), "data": arguments.data, "size": len(vectors), "seed": arguments.seed}
        results["rows"] = [row._asdict() for row in rows]
        arguments.json.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# -- vectors ----------------------------------------------------------------------------------------------------------


def clusters(size: int, seed: int) -> tuple[Vectors, Vectors]:
    """Random vectors around centres: float32 (size, 384) and (500, 384), of length 1."""
    generator = np.random.default_rng(seed)
    spread = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5  # the falling variances
    turn, _ = np.linalg.qr(generator.standard_normal((DIMENSION, DIMENSION)))
    centres = generator.standard_normal((max(1, round(size**0.5)), DIMENSION), dtype=np.float32) * spread
    places = generator.integers(len(centres), size=size + QUERIES)
    vectors = generator.standard_normal((size + QUERIES, DIMENSION), dtype=np.float32) * spread
    vectors = ((centres[places] + 0.7 * vectors) @ turn).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:size], vectors[size:]


def text_vectors(size: int, seed: int) -> tuple[Vectors, Vectors]:
    """Vectors of the bundled model: passages float32 (size, 384) and queries (500, 384), of length 1."""
    documents = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DATA.rglob("*.md")))
    sentences = sorted({part.strip() for part in re.split(r"(?<=[。！？])|\n", documents) if len(part.strip()) > 6})
    generator = np.random.default_rng(seed)

    def drawn(count: int, length: int) -> list[str]:
        return [
            "".join(sentences[place] for place in row)
            for row in generator.integers(len(sentences), size=(count, length))
        ]

    embeddings = LuotuoEmbeddings(show_progress=True)
    return embeddings.encode(drawn(size, 3), "passage"), embeddings.encode(drawn(QUERIES, 2), "query")


# -- indexes ----------------------------------------------------------------------------------------------------------


def measure(vectors: Vectors, queries: Vectors, kinds: list[str]) -> Iterator[Row]:
    """Build and ask each index; each is forgotten before the next is built."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    wanted = exact.search(queries, K)[1].tolist()
    del exact
    for kind in kinds:
        build = store_index if kind in STORE_KINDS else sign_index if kind == SIGNS else raw_index
        for built in build(kind, vectors):
            recall = ranking_metrics(built.search(queries).tolist(), wanted, cutoffs=[K])[f"recall@{K}"]
            milliseconds = 1_000 * seconds_a_query(built.search, queries[:SINGLE])
            yield Row(built.name, built.effort, recall, milliseconds, built.size / 1e6, built.build_seconds)


def seconds_a_query(search: Search, queries: Vectors) -> float:
    """Median time of a search for one query, on one core: waiting for another takes longer than most searches."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query[None])
        times.append(time.perf_counter() - start)
    faiss.omp_set_num_threads(threads)
    return statistics.median(times)


def store_index(factory: str, vectors: Vectors) -> Iterator[Built]:
    """The store's own index; for a further effort it is read from its file, as a store is opened."""
    kind = IndexKind(vectors.shape[1], "cosine", factory)
    rows = np.arange(len(vectors), dtype=np.int64)
    start = time.perf_counter()
    index = VectorIndex(kind)
    index.add(vectors, rows)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        index.write(file)
        for effort in STORE_KINDS[factory]:
            opened = VectorIndex(kind, search_effort=effort)
            opened.read(file, rows, memory_map=False)
            yield Built(factory, effort, partial(_rows, opened), file.stat().st_size, seconds)


def _rows(index: VectorIndex, queries: Vectors) -> Found:
    return index.search(queries, K)[1]


def raw_index(factory: str, vectors: Vectors) -> Iterator[Built]:
    """An index of faiss alone. Between vectors of length 1 the least Euclidean distance is the largest cosine."""
    start = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    seconds = time.perf_counter() - start
    yield Built(
        f"{factory}, raw", None, lambda queries: index.search(queries, K)[1], len(faiss.serialize_index(index)), seconds
    )


def sign_index(name: str, vectors: Vectors) -> Iterator[Built]:
    """One bit a number: whether it is above the mean of all vectors; compared by how many bits differ."""
    start = time.perf_counter()
    mean = vectors.mean(axis=0)
    index = faiss.IndexBinaryFlat(vectors.shape[1])
    index.add(np.packbits(vectors > mean, axis=1))
    seconds = time.perf_counter() - start

    def search(queries: Vectors) -> Found:
        found: Found = index.search(np.packbits(queries > mean, axis=1), K)[1]
        return found

    yield Built(f"{name}, raw", None, search, len(faiss.serialize_index_binary(index)), seconds)


if __name__ == "__main__":
    main()
