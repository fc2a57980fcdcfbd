"""How long one query takes, and how many are answered a second when many wait: LuotuoEmbeddings beside its peers.

langchain-huggingface, LlamaIndex's HuggingFaceEmbedding and sentence-transformers load one folder, the bundled model
exported to float32 weights, and put the same prompt before each query. LuotuoEmbeddings stands there twice: as it comes
out of the package, and with that folder in float32, whose vectors must agree with those of the peers. The questions are
those of examples/data, asked in several ways with a fixed seed. The systems take turns; medians are compared.

Run from the root of the repository: python -m benchmarks.query
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.peers import DATA, export, machine
from luotuo_integrations import LuotuoEmbeddings

OPENINGS = ("", "请问", "你好，", "想问一下，", "麻烦问下，", "我想知道，", "新来的，不太懂：", "帮同事问的，")
ENDINGS = ("", "？", "，谢谢", "，急", "，手册里怎么说", "，有规定吗")
CONCURRENT = (1, 8, 64, 512)
LEAST_COSINE = 0.9999
LEAST_TIMED = 32  # queries in one measurement of throughput; fewer at a time are repeated

OURS, OURS_FLOAT32 = "LuotuoEmbeddings", "LuotuoEmbeddings, float32"
HUGGING_FACE, LLAMA_INDEX = "HuggingFaceEmbeddings", "HuggingFaceEmbedding"
SENTENCE_TRANSFORMERS = "sentence-transformers"

Ask = Callable[[str], list[float]]
AskLater = Callable[[str], Awaitable[list[float]]]


class System(NamedTuple):
    """The two ways to ask for one query's vector; sentence-transformers has one."""

    ask: Ask
    ask_later: AskLater | None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100, help="queries timed one by one in each round")
    parser.add_argument("--concurrent", type=int, nargs="+", default=CONCURRENT, help="queries that wait at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args(argv)
    questions = make_questions(max(arguments.queries, *arguments.concurrent), arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, prompt, *_ = export(Path(temporary) / "model")
        systems = load_systems(folder, prompt, arguments.device)
        least_cosine = check_agreement(systems, questions[:16])
        latency = measure_latency(systems, questions[: arguments.queries], arguments.rounds)
        throughput = {
            count: measure_throughput(systems, questions[:count], arguments.rounds) for count in arguments.concurrent
        }
    characters = statistics.mean(map(len, questions))
    print(f"questions of {characters:.0f} characters, {torch.get_num_threads()} threads; least cosine in float32 ")
    print(f"{least_cosine:.6f}; {arguments.rounds} rounds, medians\n")
    report_latency(latency)
    report_throughput(throughput)
    if arguments.json:
        results = {
            "machine": machine(),
            "least_cosine": least_cosine,
            "latency_seconds": latency,
            "queries_per_second": throughput,
        }
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def make_questions(count: int, seed: int) -> list[str]:
    """Different questions: those of examples/data, each in several ways, shuffled.

    Raises:
        SystemExit: If there are not so many.
    """
    lines = [
        line
        for name in ("questions.jsonl", "unanswerable.jsonl")
        for line in (DATA / name).read_text(encoding="utf-8").splitlines()
    ]
    asked = [json.loads(line)["query"].rstrip("？?。") for line in lines]
    ways = [opening + question + ending for question in asked for opening in OPENINGS for ending in ENDINGS]
    different = list(dict.fromkeys(ways))
    if count > len(different):
        raise SystemExit(f"{count} questions are asked for; there are {len(different)}")
    random.Random(seed).shuffle(different)
    return different[:count]


def load_systems(folder: Path, prompt: str, device: str | None) -> dict[str, System]:
    """All systems, by name, in the order of the tables."""
    return {
        OURS: luotuo(None, device, "auto"),
        OURS_FLOAT32: luotuo(folder, device, "float32"),
        HUGGING_FACE: hugging_face(folder, prompt, device),
        LLAMA_INDEX: llama_index(folder, prompt, device),
        SENTENCE_TRANSFORMERS: sentence_transformers(folder, prompt, device),
    }


def luotuo(folder: Path | None, device: str | None, dtype: str) -> System:
    """This package; the prompt is read from the folder."""
    embeddings = LuotuoEmbeddings(folder, device=device, dtype=dtype)  # type: ignore[arg-type]
    return System(embeddings.embed_query, embeddings.aembed_query)


def hugging_face(folder: Path, prompt: str, device: str | None) -> System:
    """langchain-huggingface, told what it does not read from the folder."""
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(
        model_name=str(folder),
        model_kwargs={"device": device} if device else {},
        query_encode_kwargs={"prompt": prompt, "normalize_embeddings": True},
    )
    return System(model.embed_query, model.aembed_query)


def llama_index(folder: Path, prompt: str, device: str | None) -> System:
    """llama-index-embeddings-huggingface."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(model_name=str(folder), query_instruction=prompt, device=device, normalize=True)
    return System(model.get_query_embedding, model.aget_query_embedding)


def sentence_transformers(folder: Path, prompt: str, device: str | None) -> System:
    """sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device)

    def ask(text: str) -> list[float]:
        vector: list[float] = model.encode(
            text, prompt=prompt, normalize_embeddings=True, show_progress_bar=False
        ).tolist()
        return vector

    return System(ask, None)


def check_agreement(systems: dict[str, System], questions: list[str]) -> float:
    """Least cosine of our vectors in float32 with those of a peer, by both ways; this warms the systems up too.

    Raises:
        SystemExit: If they do not agree.
    """
    ours = np.array([systems[OURS_FLOAT32].ask(question) for question in questions])
    cosines = {}
    for name, system in systems.items():
        vectors = [np.array([system.ask(question) for question in questions])]
        if system.ask_later is not None:
            vectors.append(np.array(asyncio.run(ask_all(system.ask_later, questions))))
        cosines[name] = min(float((ours * other).sum(axis=1).min()) for other in vectors)
    del cosines[OURS]  # it may run in less than float32
    if min(cosines.values()) < LEAST_COSINE:
        raise SystemExit(f"the vectors differ: least cosines {cosines}")
    return min(cosines.values())


async def ask_all(ask_later: AskLater, questions: list[str]) -> list[list[float]]:
    """Ask all questions at once."""
    return await asyncio.gather(*(ask_later(question) for question in questions))


def turns(names: list[str], rounds: int) -> list[str]:
    """Names in the order in which they are measured; each round begins with another."""
    return [names[(first + position) % len(names)] for first in range(rounds) for position in range(len(names))]


def measure_latency(systems: dict[str, System], questions: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each query, asked alone, by ``name`` and ``name, async``."""
    seconds: dict[str, list[float]] = {}
    for name in turns(list(systems), rounds):
        ask, ask_later = systems[name]
        seconds.setdefault(name, []).extend(seconds_of(ask, question) for question in questions)
        if ask_later is not None:
            seconds.setdefault(f"{name}, async", []).extend(asyncio.run(seconds_of_each(ask_later, questions)))
    return seconds


def seconds_of(ask: Ask, question: str) -> float:
    """Seconds until the vector of one question is there."""
    start = time.perf_counter()
    ask(question)
    return time.perf_counter() - start


async def seconds_of_each(ask_later: AskLater, questions: list[str]) -> list[float]:
    """Seconds of each question, asked one after another in a running event loop."""
    await ask_later(questions[0])  # the first call of a loop starts a thread
    seconds = []
    for question in questions:
        start = time.perf_counter()
        await ask_later(question)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_throughput(systems: dict[str, System], questions: list[str], rounds: int) -> dict[str, list[float]]:
    """Queries a second in each round, all questions asked at once."""
    asked = {name: system.ask_later for name, system in systems.items() if system.ask_later is not None}
    rates: dict[str, list[float]] = {name: [] for name in asked}
    repeats = max(1, LEAST_TIMED // len(questions))
    for name in turns(list(asked), rounds):
        rates[name].append(asyncio.run(rate_of(asked[name], questions, repeats)))
    return rates


async def rate_of(ask_later: AskLater, questions: list[str], repeats: int) -> float:
    """Queries a second, all questions asked at once, and again as soon as all are answered."""
    await ask_all(ask_later, questions[:8])  # the first calls of a loop start threads
    start = time.perf_counter()
    for _ in range(repeats):
        await ask_all(ask_later, questions)
    return repeats * len(questions) / (time.perf_counter() - start)


def report_latency(seconds: dict[str, list[float]]) -> None:
    """Print a line a system; speed is relative to sentence-transformers, more is faster."""
    print(f"{'one query':32s}{'median ms':>10s}{'p95 ms':>9s}{'speed':>8s}")
    reference = statistics.median(seconds[SENTENCE_TRANSFORMERS])
    for name, times in seconds.items():
        median = statistics.median(times)
        p95 = float(np.percentile(times, 95))
        print(f"{name:32s}{1000 * median:10.2f}{1000 * p95:9.2f}{reference / median:8.2f}")


def report_throughput(rates: dict[int, dict[str, list[float]]]) -> None:
    """Print a line a system and a column a number of queries; ratios are to HuggingFaceEmbeddings."""
    print("\nqueries a second, and how many times those of " + HUGGING_FACE)
    print(f"{'asked at once':28s}" + "".join(f"{count:>16d}" for count in rates))
    for name in next(iter(rates.values())):
        cells = []
        for by_name in rates.values():
            rate, reference = (statistics.median(by_name[one]) for one in (name, HUGGING_FACE))
            cells.append(f"{rate:9.1f}{f'({rate / reference:.2f})':>7s}")
        print(f"{name:28s}" + "".join(cells))


if __name__ == "__main__":
    main()
