"""How long a new Python process takes until a package is imported, a class is there, a first vector comes.

Each line is a process of its own, run several times in turns; the median and the fastest are printed, the bare
interpreter's share included. sentence-transformers and langchain-huggingface stand beside, with the same weights in
float32.

Run from the root of the repository: python -m benchmarks.startup
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import export, machine

PROGRAMS = {
    "the interpreter alone": "pass",
    "import luotuo_integrations": "import luotuo_integrations",
    "luotuo models": "from luotuo_integrations.cli import app; app(['models'])",
    "import LuotuoEmbeddings": "from luotuo_integrations import LuotuoEmbeddings",
    "import FAISS": "from luotuo_integrations import FAISS",
    "LuotuoEmbeddings(), first vector": (
        "from luotuo_integrations import LuotuoEmbeddings; LuotuoEmbeddings().embed_query('你好')"
    ),
    "LuotuoEmbeddings(folder), first vector": (
        "from luotuo_integrations import LuotuoEmbeddings; LuotuoEmbeddings({folder!r}).embed_query('你好')"
    ),
    "import torch": "import torch",
    "import llama_index.core": "import llama_index.core",
    "import sentence_transformers": "import sentence_transformers",
    "SentenceTransformer(folder), first vector": (
        "from sentence_transformers import SentenceTransformer; SentenceTransformer({folder!r}).encode('你好')"
    ),
    "HuggingFaceEmbeddings(folder), first vector": (
        "from langchain_huggingface import HuggingFaceEmbeddings; "
        "HuggingFaceEmbeddings(model_name={folder!r}).embed_query('你好')"
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(Path(temporary) / "model").path
        for _ in range(arguments.rounds):
            for name, program in PROGRAMS.items():
                seconds[name].append(run(program.replace("{folder!r}", repr(str(folder)))))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{arguments.rounds} processes each, seconds{'median':>24s}{'fastest':>9s}\n")
    for name, median in medians.items():
        print(f"{name:44s}{median:9.2f}{min(seconds[name]):9.2f}")
    if arguments.json:
        content = {"machine": machine(), "medians": medians, "rounds": seconds}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run(program: str) -> float:
    """Seconds that a new process takes for a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
