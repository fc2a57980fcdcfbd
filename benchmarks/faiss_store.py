"""How fast the FAISS store adds, searches, filters, saves and opens: both of its faces beside raw faiss and its peers.

Vectors are random, of 384 float32 numbers and length 1, with short Chinese texts and two metadata fields; all indexes
are exact. Raw faiss is an IndexFlatIP alone: no texts, no ids, no metadata, no checks; its filtered search is given the
rows. The results must be the same. The systems take turns, and the medians of all calls are compared.

Systems that take vectors as lists of floats are left out above --peers-up-to: a million lists fill 12 GB.
LlamaIndex's nodes are made outside the clock and added 2,048 at a time, as its VectorStoreIndex does. This package's
saves end when all is on the disk, with checksums; those of others when the operating system has taken it. Opening is
timed with the first search, from files that may still be in memory.

Run from the root of the repository: OMP_WAIT_POLICY=PASSIVE python -m benchmarks.faiss_store
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from typing_extensions import override

from benchmarks.peers import machine
from luotuo_integrations import FAISS, FaissVectorStore
from luotuo_integrations._optional import require

faiss = require("faiss", extra="faiss")
DIMENSION, K, QUERIES, SINGLE = 384, 10, 64, 10
DEPARTMENTS = ["财务", "人事", "法务", "采购", "销售", "研发", "客服", "行政", "审计", "仓储"]
FIELD, VALUE = "部门", "财务"  # one document in ten
OPERATIONS = ("add", "1 query", "64 queries", "filter, new", "filter", "64, filter", "save", "open")
# operation, first query, how many, filtered?
SEARCHES = [("1 query", first, 1, False) for first in range(SINGLE)] + [("64 queries", 0, QUERIES, False)]
SEARCHES += [("filter, new", 0, 1, True)] + [("filter", first, 1, True) for first in range(1, SINGLE)]
SEARCHES += [("64, filter", 0, QUERIES, True)]
NODES_AT_ONCE = 2_048
SETTLE: Callable[[], object] = getattr(os, "sync", gc.collect)  # what another system wrote is then on the disk

Vectors = npt.NDArray[np.float32]
Ids = list[list[str]]


class Data(Embeddings):
    """``count`` documents and the queries; it is the embeddings of all systems, too, and knows each text's vector."""

    model, fingerprint, dimension = "random", "random", DIMENSION

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.vectors = unit_vectors(generator, count)  # float32 (N, 384)
        self.query_vectors = unit_vectors(generator, QUERIES)  # float32 (64, 384)
        self.queries = [f"第{number}个问题" for number in range(QUERIES)]
        characters = generator.integers(0x4E00, 0x9FA5, count * 30).astype("<u4").tobytes().decode("utf-32-le")
        self.texts = [characters[start : start + 30] for start in range(0, count * 30, 30)]
        self.metadatas = [{FIELD: DEPARTMENTS[row % 10], "页": row // 10} for row in range(count)]
        self.ids = [str(row) for row in range(count)]

    def encode(self, texts: list[str], kind: str = "passage") -> Vectors:
        """All passages, or any of the queries."""
        if kind == "passage":
            return self.vectors
        return self.query_vectors[[self.queries.index(text) for text in texts]]

    def relevance(self, cosine: Any) -> Any:
        """Relevance of cosines."""
        return (1 + np.asarray(cosine)) / 2

    def embed_documents(self, texts: list[str]) -> Any:
        """``encode`` for those who want lists."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> Any:
        """``encode`` for those who want a list."""
        return self.encode([text], "query")[0].tolist()

    def nodes(self) -> Iterator[list[TextNode]]:
        """The documents as LlamaIndex's nodes, some at a time."""
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="手册")}
        for start in range(0, len(self.ids), NODES_AT_ONCE):
            part = slice(start, start + NODES_AT_ONCE)
            columns = (self.ids[part], self.texts[part], self.metadatas[part], self.vectors[part].tolist())
            yield [
                TextNode(id_=id_, text=text, metadata=metadata, embedding=vector, relationships=dict(source))
                for id_, text, metadata, vector in zip(*columns, strict=True)
            ]


def unit_vectors(generator: np.random.Generator, count: int) -> Vectors:
    """Random directions: float32 (count, 384)."""
    vectors = generator.standard_normal((count, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class System:
    """A store under measurement."""

    name: str
    takes_lists = True

    def __init__(self, data: Data) -> None:
        self.data = data
        self.store: Any = None
        self.folder = Path()

    def add(self) -> float:
        """Make the store; gives the seconds."""
        start = time.perf_counter()
        self.fill()
        return time.perf_counter() - start

    def open(self) -> Ids:
        """Open what ``save`` wrote and search for the first query."""
        opened = type(self)(self.data)
        opened.store = self.load()
        return opened.search(0, 1)

    def fill(self) -> None:
        """Make the store."""
        raise NotImplementedError

    def search(self, first: int, count: int, *, filtered: bool = False) -> Ids:
        """Ids found for ``count`` queries, with the filter if told so."""
        raise NotImplementedError

    def save(self) -> None:
        """Write the store to its folder, which is empty."""
        raise NotImplementedError

    def load(self) -> Any:
        """The store that ``save`` wrote."""
        raise NotImplementedError


class RawFaiss(System):
    """IndexFlatIP alone."""

    name, takes_lists = "faiss, IndexFlatIP", False

    @override
    def fill(self) -> None:
        self.store = faiss.IndexFlatIP(DIMENSION)
        self.store.add(self.data.vectors)

    @override
    def search(self, first: int, count: int, *, filtered: bool = False) -> Ids:
        parameters = None
        if filtered:
            chosen = np.arange(self.store.ntotal) % 10 == DEPARTMENTS.index(VALUE)
            selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
            parameters = faiss.SearchParameters(sel=selector)
        _, rows = self.store.search(self.data.query_vectors[first : first + count], K, params=parameters)
        return [[str(row) for row in found] for found in rows]

    @override
    def save(self) -> None:
        faiss.write_index(self.store, str(self.folder / "index.faiss"))

    @override
    def load(self) -> Any:
        return faiss.read_index(str(self.folder / "index.faiss"))


class LangChainFace(System):
    """luotuo_integrations.FAISS."""

    name, takes_lists = "luotuo FAISS", False

    @override
    def fill(self) -> None:
        self.store = FAISS.from_texts(self.data.texts, self.data, self.data.metadatas, ids=self.data.ids)

    @override
    def search(self, first: int, count: int, *, filtered: bool = False) -> Ids:
        where = {FIELD: VALUE} if filtered else None
        found = self.store.similarity_search_batch(self.data.queries[first : first + count], K, where)
        return [[document.id for document, _ in pairs] for pairs in found]

    @override
    def save(self) -> None:
        self.store.save_local(str(self.folder))

    @override
    def load(self) -> Any:
        # Only the peer reads pickles; this package takes the argument and has no use for it.
        return type(self.store).load_local(str(self.folder), self.data, allow_dangerous_deserialization=True)


class Community(LangChainFace):
    """langchain_community's FAISS; it filters what it has found, so that it must fetch more."""

    name, takes_lists = "langchain-community FAISS", True

    @override
    def fill(self) -> None:
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import faiss as community
        from langchain_community.vectorstores.utils import DistanceStrategy

        strategy, index = DistanceStrategy.MAX_INNER_PRODUCT, faiss.IndexFlatIP(DIMENSION)
        self.store = community.FAISS(self.data, index, InMemoryDocstore(), {}, distance_strategy=strategy)
        self.store.add_texts(self.data.texts, self.data.metadatas, ids=self.data.ids)

    @override
    def search(self, first: int, count: int, *, filtered: bool = False) -> Ids:
        options: dict[str, Any] = {"filter": {FIELD: VALUE}, "fetch_k": 40 * K} if filtered else {}
        queries = self.data.queries[first : first + count]
        found = [self.store.similarity_search_with_score(query, K, **options) for query in queries]
        return [[document.id for document, _ in pairs] for pairs in found]


class LlamaFace(System):
    """luotuo_integrations.FaissVectorStore."""

    name = "luotuo FaissVectorStore"
    filters: MetadataFilters | None = MetadataFilters(filters=[MetadataFilter(key=FIELD, value=VALUE)])

    def empty_store(self) -> Any:
        """A new store."""
        return FaissVectorStore(self.data)

    @override
    def add(self) -> float:
        seconds, self.store = 0.0, self.empty_store()
        for nodes in self.data.nodes():
            start = time.perf_counter()
            self.store.add(nodes)
            seconds += time.perf_counter() - start
        return seconds

    @override
    def search(self, first: int, count: int, *, filtered: bool = False) -> Ids:
        found = []
        for query in self.data.queries[first : first + count]:
            filters = self.filters if filtered else None
            asked = VectorStoreQuery(self.data.embed_query(query), similarity_top_k=K, filters=filters)
            found.append(list(self.store.query(asked).ids))
        return found

    @override
    def save(self) -> None:
        self.store.persist(str(self.folder / "store.json"))

    @override
    def load(self) -> Any:
        return type(self.store).from_persist_path(str(self.folder / "store.json"))


class LlamaPeer(LlamaFace):
    """llama-index-vector-stores-faiss; it keeps no texts and cannot filter."""

    name = "llama-index faiss"
    filters = None

    @override
    def empty_store(self) -> Any:
        from llama_index.vector_stores.faiss import FaissVectorStore as Peer

        return Peer(faiss.IndexFlatIP(DIMENSION))


Seconds = dict[str, dict[str, list[float]]]  # operation -> system -> each call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-up-to", type=int, default=100_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results: dict[int, Seconds] = {}
    for size in arguments.sizes:
        kinds: list[type[System]] = [RawFaiss, LangChainFace, Community, LlamaFace, LlamaPeer]
        data = Data(size)
        gc.freeze()  # else what is there anyway is walked through while systems are timed
        systems = [kind(data) for kind in kinds if size <= arguments.peers_up_to or not kind.takes_lists]
        results[size] = measure(systems, arguments.rounds)
        gc.unfreeze()
        report(size, results[size])
        if len(systems) < len(kinds):
            print(f"those that take lists of floats were measured up to {arguments.peers_up_to:,} documents")
    if arguments.json:
        content = {"machine": machine(), "seconds": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(systems: list[System], rounds: int) -> Seconds:
    """Seconds of each call; each round begins with another system."""
    seconds: Seconds = {operation: {system.name: [] for system in systems} for operation in OPERATIONS}
    for turn in range(rounds):
        order = systems[turn % len(systems) :] + systems[: turn % len(systems)]
        for system in order:
            system.store = None
            gc.collect()
            seconds["add"][system.name].append(system.add())
        for operation, first, count, filtered in SEARCHES:
            able = [system for system in order if not (filtered and isinstance(system, LlamaPeer))]
            timed(seconds, operation, able, methodcaller("search", first, count, filtered=filtered))
        with tempfile.TemporaryDirectory() as temporary:
            for system in order:
                system.folder = Path(tempfile.mkdtemp(dir=temporary))
            timed(seconds, "save", order, methodcaller("save"))
            timed(seconds, "open", order, methodcaller("open"))
    return seconds


def timed(seconds: Seconds, operation: str, systems: list[System], call: Callable[[System], Any]) -> None:
    """Time a call of each system; SystemExit if they find different documents."""
    found = {}
    for system in systems:
        if operation in ("save", "open"):
            SETTLE()
        start = time.perf_counter()
        answer = call(system)
        seconds[operation][system.name].append(time.perf_counter() - start)
        found[system.name] = [set(ids) for ids in answer or []]
    if any(ids != found[systems[0].name] for ids in found.values()):
        raise SystemExit(f"different documents were found: {found}")


def report(size: int, seconds: Seconds) -> None:
    """Print a table: median milliseconds, and how many times those of raw faiss that is."""
    print(f"\n{size:,} documents{'':12s}" + "".join(f"{operation:>19s}" for operation in OPERATIONS))
    for name in seconds["add"]:
        cells = []
        for operation in OPERATIONS:
            medians = {system: statistics.median(times) for system, times in seconds[operation].items() if times}
            ratio = f"{medians[name] / medians[RawFaiss.name]:.2f}x" if name in medians else ""
            cells.append(f"{1000 * medians[name]:10.2f} {ratio:>8s}" if name in medians else f"{'-':>19s}")
        print(f"{name:30s}{''.join(cells)}")
    print("milliseconds, and the ratio to raw faiss; filter: one document in ten; new: not asked since the last change")


if __name__ == "__main__":
    main()
