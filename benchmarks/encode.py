"""How fast passages are embedded: LuotuoEmbeddings beside HuggingFaceEmbeddings and sentence-transformers.

All three load one folder: the bundled model, exported to float32 weights. The texts are cut from examples/data with a
fixed seed, 10 to 2,000 characters long (log-uniform), and get the same prompt. The vectors must agree. The systems
take turns, and the medians of the rounds are compared.

Run from the root of the repository: python benchmarks/encode.py
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.documents import load_documents

DATA = Path(__file__).parents[1] / "examples" / "data"
SHORTEST, LONGEST = 10, 2_000
LEAST_COSINE = 0.9999

Embed = Callable[[list[str]], list[list[float]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    logging.getLogger("luotuo_integrations").setLevel(logging.ERROR)  # that long texts are cut is known
    texts = mixed_texts(arguments.texts, arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        encoder = LuotuoEmbeddings().encoder
        folder = encoder.model.save(Path(temporary) / "model", encoder.tokenizer.tokenizer)
        prompt = encoder.prompts["passage"]
        tokens = sum(
            min(count, encoder.max_length) for count in encoder.count_tokens([prompt + text for text in texts])
        )
        systems = {
            "LuotuoEmbeddings": luotuo(folder, arguments.device),
            "HuggingFaceEmbeddings": hugging_face(folder, prompt, arguments.device),
            "sentence-transformers": sentence_transformers(folder, prompt, arguments.device),
        }
        least_cosine = check_agreement(systems, texts[:32])
        seconds = measure(systems, texts, arguments.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    threads = torch.get_num_threads()
    print(f"{len(texts)} texts, {tokens} tokens, {threads} threads; least cosine {least_cosine:.6f}\n")
    report(len(texts), tokens, medians)
    if arguments.json:
        results = {
            "texts": len(texts),
            "tokens": tokens,
            "threads": threads,
            "least_cosine": least_cosine,
            "medians": medians,
            "rounds": seconds,
        }
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def mixed_texts(count: int, seed: int) -> list[str]:
    """Cut texts of mixed lengths from the example documents, without white space."""
    source = "".join("".join(document.page_content.split()) for document in load_documents(DATA).documents)
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** generator.random())
        start = generator.randrange(len(source) - length)
        texts.append(source[start : start + length])
    return texts


def luotuo(folder: Path, device: str | None) -> Embed:
    """This package; the prompt is read from the folder."""
    return LuotuoEmbeddings(folder, device=device, dtype="float32").embed_documents


def hugging_face(folder: Path, prompt: str, device: str | None) -> Embed:
    """langchain-huggingface, told what it does not read from the folder."""
    from langchain_huggingface import HuggingFaceEmbeddings

    options = {"device": device} if device else {}
    model = HuggingFaceEmbeddings(
        model_name=str(folder), model_kwargs=options, encode_kwargs={"prompt": prompt, "normalize_embeddings": True}
    )
    embed: Embed = model.embed_documents
    return embed


def sentence_transformers(folder: Path, prompt: str, device: str | None) -> Embed:
    """sentence-transformers itself, with its default batches of 32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device)

    def embed(texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = model.encode(texts, prompt=prompt, normalize_embeddings=True).tolist()
        return vectors

    return embed


def check_agreement(systems: dict[str, Embed], texts: list[str]) -> float:
    """Least cosine between the vectors of two systems; this warms them up too.

    Raises:
        SystemExit: If they do not agree.
    """
    vectors = [np.array(embed(texts)) for embed in systems.values()]
    cosines = [float((vectors[0] * other).sum(axis=1).min()) for other in vectors[1:]]
    if min(cosines) < LEAST_COSINE:
        raise SystemExit(f"the vectors differ: least cosines {cosines}")
    return min(cosines)


def measure(systems: dict[str, Embed], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; each round begins with another system."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for first in range(rounds):
        for position in range(len(names)):
            name = names[(first + position) % len(names)]
            start = time.perf_counter()
            systems[name](texts)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(count: int, tokens: int, medians: dict[str, float]) -> None:
    """Print a line a system; speed is relative to sentence-transformers, more is faster."""
    print(f"{'':24s}{'seconds':>9s}{'texts/s':>9s}{'tokens/s':>10s}{'speed':>8s}")
    for name, seconds in medians.items():
        speed = medians["sentence-transformers"] / seconds
        print(f"{name:24s}{seconds:9.2f}{count / seconds:9.1f}{tokens / seconds:10.0f}{speed:8.2f}")


if __name__ == "__main__":
    main()
