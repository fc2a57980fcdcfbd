"""How much of exact search the approximate indexes find, how fast, and in how much memory.

The share of the ten nearest vectors by exact search that an index finds (recall@10); the median time of one query, on
one core; the bytes that it needs in memory, and in its files; the time to train and fill it, on all cores. The kinds
that the store takes run as in the store, opened from its files, without its texts; the others, marked "raw", are faiss
alone: LSH, RaBitQ and one bit a number, whether it is above the mean ("signs", IndexBinaryFlat). An effort is the
store's ``search_effort``: lists that an IVF index visits, candidates that an HNSW index keeps, or those of Int8 and
Binary for each result that is asked for; empty is the store's own choice: 16 lists of 256, 64 candidates, 4 of Int8,
16 of Binary. "cut to 128" are the first 128 numbers, as LuotuoEmbeddings(dimensions=128) gives them, compared with
exact search by all numbers; they mean something for --data texts only.

The vectors have length 1. --data clusters: random, around sqrt(N) centres, with variances that fall from direction to
direction, as those of a model do, turned at random. --data texts: those of the bundled model, of texts made of three
sentences each, drawn from examples/data; the queries are two sentences. Both are fixed by --seed.

Run from the root of the repository: OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ann
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.keywords import drawn_texts
from benchmarks.peers import machine
from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations._optional import require
from luotuo_integrations.evaluation import ranking_metrics
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind
from luotuo_integrations.store.rescoring import RESCORED, WHOLE, RescoredIndex, new_index
from luotuo_integrations.store.vector_math import unit_rows

faiss = require("faiss", extra="faiss")
DIMENSION, K, QUERIES, SINGLE = 384, 10, 500, 100
# Factory string and the efforts to try; None is the store's own choice.
STORE_KINDS: dict[str, tuple[int | None, ...]] = {
    "Flat": (None,),
    "Int8": (1, None),
    "Binary": (4, 8, None),
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
# Vectors cut to their first numbers: how many, and the kind of index they are put into.
CUTS = {
    f"{factory}, cut to {dimension}": (dimension, factory)
    for dimension in (256, 128, 64)
    for factory in ("Flat", "Int8", "Binary")
}
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
    memory_megabytes: float
    disk_megabytes: float
    build_seconds: float


class Built(NamedTuple):
    """An index to be asked."""

    name: str
    effort: int | None
    search: Search
    memory: int  # bytes
    disk: int  # bytes
    build_seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["clusters", "texts"], default="clusters")
    parser.add_argument("--size", type=int, default=100_000, help="how many vectors")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *CUTS], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    make = clusters if arguments.data == "clusters" else text_vectors
    vectors, queries = make(arguments.size, arguments.seed)
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers ({arguments.data}), {len(queries)} queries\n")
    rows = []
    print(f"{'kind':20s}{'effort':>8s}{'recall@10':>11s}{'ms a query':>12s}", end="")
    print(f"{'MB memory':>11s}{'MB disk':>9s}{'build, s':>10s}")
    for row in measure(vectors, queries, arguments.kinds or [*KINDS, *(CUTS if arguments.data == "texts" else ())]):
        rows.append(row)
        effort = "" if row.effort is None else str(row.effort)
        print(f"{row.kind:20s}{effort:>8s}{row.recall:11.3f}{row.milliseconds:12.2f}", end="")
        print(f"{row.memory_megabytes:11.1f}{row.disk_megabytes:9.1f}{row.build_seconds:10.1f}", flush=True)
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
    embeddings = LuotuoEmbeddings(show_progress=True)
    generator = np.random.default_rng(seed)
    passages, queries = drawn_texts(size, 3, generator), drawn_texts(QUERIES, 2, generator)
    return embeddings.encode(passages, "passage"), embeddings.encode(queries, "query")


# -- indexes ----------------------------------------------------------------------------------------------------------


def measure(vectors: Vectors, queries: Vectors, kinds: list[str]) -> Iterator[Row]:
    """Build and ask each index; each is forgotten before the next is built."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    wanted = exact.search(queries, K)[1].tolist()
    del exact
    for kind in kinds:
        build = cut_index if kind in CUTS else store_index
        if kind not in CUTS and kind not in STORE_KINDS:
            build = sign_index if kind == SIGNS else raw_index
        for built in build(kind, vectors):
            recall = ranking_metrics(built.search(queries).tolist(), wanted, cutoffs=[K])[f"recall@{K}"]
            milliseconds = 1_000 * seconds_a_query(built.search, queries[:SINGLE])
            sizes = built.memory / 1e6, built.disk / 1e6
            yield Row(built.name, built.effort, recall, milliseconds, *sizes, built.build_seconds)


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
    index = new_index(kind)
    index.add(vectors, rows)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        files = {part: Path(folder) / part for part in index.parts()}
        for part, write in index.parts().items():
            write(files[part])
        disk = sum(file.stat().st_size for file in files.values())
        memory = disk
        if factory in RESCORED:  # the whole vectors stay in their file; row numbers, which it lacks, lie in memory
            memory += rows.nbytes - files[WHOLE].stat().st_size
        for effort in STORE_KINDS[factory]:
            opened = new_index(kind, search_effort=effort)
            opened.restore(files, rows, memory_map=factory in RESCORED)
            yield Built(factory, effort, partial(_rows, opened), memory, disk, seconds)


def cut_index(name: str, vectors: Vectors) -> Iterator[Built]:
    """The store's index of vectors cut to their first numbers and scaled to length 1 again; its own effort alone."""
    dimension, factory = CUTS[name]
    for built in store_index(factory, unit_rows(np.ascontiguousarray(vectors[:, :dimension]))):
        if built.effort is None:
            yield built._replace(name=name, search=partial(_cut, built.search, dimension))


def _cut(search: Search, dimension: int, queries: Vectors) -> Found:
    return search(np.ascontiguousarray(queries[:, :dimension]))  # for cosines the store scales them


def _rows(index: VectorIndex | RescoredIndex, queries: Vectors) -> Found:
    return index.search(queries, K)[1]


def raw_index(factory: str, vectors: Vectors) -> Iterator[Built]:
    """An index of faiss alone. Between vectors of length 1 the least Euclidean distance is the largest cosine."""
    start = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    seconds = time.perf_counter() - start
    size = len(faiss.serialize_index(index))
    yield Built(f"{factory}, raw", None, lambda queries: index.search(queries, K)[1], size, size, seconds)


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

    size = len(faiss.serialize_index_binary(index))
    yield Built(f"{name}, raw", None, search, size, size, seconds)


if __name__ == "__main__":
    main()
