"""How fast passages are embedded: LuotuoEmbeddings beside everything that a user would pick instead.

All load one folder: the bundled model, exported to float32 weights and to ONNX. The texts are cut from examples/data
with a fixed seed, 10 to 2,000 characters long (log-uniform), and get the same prompt. Peers run as they come, and with
the batch size that is fastest for them. The vectors must agree. The systems take turns, and the medians of the rounds
are compared, with each other and with the floor: the time of the matrix products alone.

Run from the root of the repository: python -m benchmarks.encode
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import Floor, floor
from benchmarks.peers import Folder, all_peers, export, least_cosines, machine, measure, medians, mixed_texts, quiet
from luotuo_integrations.encoder import Encoder

LEAST_COSINE = 0.9999
COMPARED = 32  # texts whose vectors are compared


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    quiet()
    texts = mixed_texts(arguments.texts, arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(Path(temporary) / "model", onnx=True)
        lengths, floors = limits(folder, texts, arguments.device)
        peers, missing = all_peers(folder, texts, arguments.device)
        cosines = least_cosines(peers, texts[:COMPARED])
        wrong = [name for name, cosine in cosines.items() if cosine < LEAST_COSINE]
        if wrong:
            raise SystemExit(f"the vectors differ: {', '.join(f'{name} {cosines[name]:.6f}' for name in wrong)}")
        seconds = measure(peers, texts, arguments.rounds)
    results = {
        "machine": machine(),
        "texts": len(texts),
        "tokens": sum(lengths),
        "floor": {name: found._asdict() for name, found in floors.items()},
        "least_cosine": cosines,
        "medians": medians(seconds),
        "rounds": seconds,
        "not_run": missing,
    }
    report(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def limits(folder: Folder, texts: list[str], device: str | None) -> tuple[list[int], dict[str, Floor]]:
    """Tokens of each text, and on the CPU the floor in float32 and bfloat16."""
    encoder = Encoder(folder.path, device="cpu", dtype="float32", backend="torch")
    counts = encoder.count_tokens([folder.passage_prompt + text for text in texts])
    lengths = [min(count + encoder.tokenizer.special_count, encoder.max_length) for count in counts]
    if device not in (None, "cpu") or (device is None and encoder_device() != "cpu"):
        return lengths, {}
    dtypes = (torch.float32, torch.bfloat16)
    return lengths, {str(dtype).removeprefix("torch."): floor(encoder, lengths, dtype) for dtype in dtypes}


def encoder_device() -> str:
    """Kind of device that is chosen where none is asked for."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def report(results: dict[str, Any]) -> None:
    """Print a line a system; ``ours`` is how many times as fast as it LuotuoEmbeddings is."""
    count, tokens, times = results["texts"], results["tokens"], results["medians"]
    print(
        f"{results['machine']['processor']}, {results['machine']['threads']} threads: {count} texts, {tokens} tokens\n"
    )
    print(f"{'':40s}{'seconds':>9s}{'texts/s':>9s}{'tokens/s':>10s}{'ours':>7s}{'float32':>9s}{'cosine':>10s}")
    fast, exact = times["LuotuoEmbeddings"], times["LuotuoEmbeddings, float32"]
    for name, seconds in times.items():
        print(
            f"{name:40s}{seconds:9.2f}{count / seconds:9.1f}{tokens / seconds:10.0f}{seconds / fast:7.2f}"
            f"{seconds / exact:9.2f}{results['least_cosine'][name]:10.6f}"
        )
    for dtype, found in results["floor"].items():
        print(
            f"{'floor of the products, ' + dtype:40s}{found['seconds']:9.2f}   {found['gigaflop']:.0f} gigaflop; "
            f"{found['linear_rate']:.0f} gigaflop/s linear, {found['attention_rate']:.0f} attention"
        )
    for name, reason in results["not_run"].items():
        print(f"{name} was left out: {reason}")


if __name__ == "__main__":
    main()
