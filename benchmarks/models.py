"""How fast models of this package embed: each beside the first, on the same passages.

The texts are those of encode. The models take turns, and the medians of the rounds are compared.

Run from the root of the repository: python -m benchmarks.models luotuo-mini luotuo-tiny
"""

import argparse
import json
import logging
import statistics
import time
from pathlib import Path

import torch

from benchmarks.peers import mixed_texts
from luotuo_integrations import Encoder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names or folders; the first is what the others are compared with")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--longest", type=int, default=2_000, help="characters; longer texts are cut")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    logging.getLogger("luotuo_integrations").setLevel(logging.ERROR)  # that long texts are cut is known
    texts = [text[: arguments.longest] for text in mixed_texts(arguments.texts, arguments.seed)]
    encoders = {model: Encoder(model, device=arguments.device, dtype="float32") for model in arguments.models}
    for encoder in encoders.values():
        encoder.encode(texts[:16])
    seconds: dict[str, list[float]] = {model: [] for model in encoders}
    for turn in range(arguments.rounds):
        names = arguments.models[turn % len(encoders) :] + arguments.models[: turn % len(encoders)]
        for name in names:
            start = time.perf_counter()
            encoders[name].encode(texts)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = medians[arguments.models[0]]
    characters = sum(map(len, texts))
    print(
        f"{len(texts)} texts, {characters} characters, {torch.get_num_threads()} threads, {arguments.rounds} rounds\n"
    )
    print("| model | texts/s | times as fast |\n|---|--:|--:|")
    for name, median in medians.items():
        print(f"| {name} | {len(texts) / median:.1f} | {first / median:.2f} |")
    if arguments.json:
        results = {"texts": len(texts), "characters": characters, "medians": medians, "rounds": seconds}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
