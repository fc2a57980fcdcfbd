"""How much memory it takes to embed many texts: an iterator into a memory map, beside sentence-transformers on a list.

The texts are short (5 to 20 characters), made on the fly with a fixed seed, so that nobody has to hold them:
LuotuoEmbeddings reads them from a generator and writes into a numpy memory map; sentence-transformers takes a list and
returns an array. Both load one folder, a bundled model exported to float32 weights, and their first vectors must agree.
Each number of texts has a process of its own. What counts is anonymous memory, that which a process cannot give back:
the pages of the map belong to the page cache. Elsewhere than on Linux only the whole peak is known, with those pages.

Run from the root of the repository: python -m benchmarks.memory
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import export, machine
from luotuo_integrations import LuotuoEmbeddings

OURS, SENTENCE_TRANSFORMERS = "LuotuoEmbeddings", "sentence-transformers"
STATUS = Path("/proc/self/status")
SAMPLED_SECONDS = 0.01
COMPARED = 64  # first vectors, which must agree
LEAST_COSINE = 0.9999
MIB = 2**20

WHO = ("行政部", "夜班同事", "新来的实习生", "门卫", "仓库", "客服", "三楼的会议室", "采购", "班车", "食堂")
WHEN = ("今天", "周五下午", "月底前", "下班以后", "年初", "明天一早", "随时", "午休时")
WHAT = ("盘点", "领取", "登记", "更换", "归还", "检查", "清洗", "预约", "退回", "调试")
WHICH = ("打印机", "门禁卡", "灭火器", "投影仪", "雨伞", "工牌", "货架", "饮水机", "样品", "表格")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--texts", type=int, nargs="+", default=[50_000, 100_000, 200_000], help="how many, a process each"
    )
    parser.add_argument("--model", default="luotuo-tiny", help="a bundled model, or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", choices=MEASURED, nargs="+", default=list(MEASURED))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "PROMPT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        folder, prompt = arguments.child
        print(json.dumps(measure(arguments.system[0], Path(folder), prompt, arguments.texts[0], arguments.seed)))
        return
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in arguments.system}
    print(f"{arguments.model}, float32; MiB\n")
    print(f"{'':24s}{'texts':>10s}{'seconds':>9s}{'loaded':>9s}{'peak':>9s}{'grown by':>10s}{'whole peak':>12s}")
    with tempfile.TemporaryDirectory() as temporary:
        folder, _, prompt, _ = export(Path(temporary) / "model", arguments.model)
        for count in arguments.texts:
            firsts = []
            for name in arguments.system:
                result = measure_apart(name, folder, prompt, count, arguments.seed)
                firsts.append(np.array(result.pop("first")))
                results[name][count] = result
                print_row(name, count, result)
            check_agreement(firsts)
    for name, by_count in results.items():
        print(f"{name}: {growth(by_count):.1f} MiB more for every 100,000 texts")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(), "memory": results}, indent=2) + "\n", encoding="utf-8"
        )


def short_texts(count: int, seed: int) -> Iterator[str]:
    """Make texts of 5 to 20 characters, one at a time."""
    generator = random.Random(seed)
    for number in range(count):
        who, when, what, which = (generator.choice(words) for words in (WHO, WHEN, WHAT, WHICH))
        yield f"{who}{when}{what}{which}{number % 1000}"[: generator.randint(5, 20)]


def measure_apart(name: str, folder: Path, prompt: str, count: int, seed: int) -> dict[str, Any]:
    """What ``measure`` gives, measured in a new process."""
    options = ["--system", name, "--texts", str(count), "--seed", str(seed), "--child", str(folder), prompt]
    command = [sys.executable, "-m", "benchmarks.memory", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, folder: Path, prompt: str, count: int, seed: int) -> dict[str, Any]:
    """Embed texts in this process.

    Returns:
        Seconds; bytes of memory when the model was loaded and at the peak; the peak of all memory, pages of files
        included; the first vectors.
    """
    embed = MEASURED[name](folder, prompt)
    embed(2_000, seed)  # libraries, buffers of the first batches
    loaded = resident()
    with PeakMemory() as memory:
        start = time.perf_counter()
        vectors = embed(count, seed)
        seconds = time.perf_counter() - start
    first = vectors[:COMPARED].tolist()
    return {"seconds": seconds, "loaded": loaded, "peak": memory.peak, "whole_peak": whole_peak(), "first": first}


def luotuo(folder: Path, prompt: str) -> Callable[[int, int], Any]:  # noqa: ARG001 - the prompt is in the folder
    """This package: from a generator into a memory map."""
    embeddings = LuotuoEmbeddings(folder, dtype="float32")

    def embed(count: int, seed: int) -> Any:
        out = np.memmap(folder.parent / "vectors.f32", np.float32, "w+", shape=(count, embeddings.dimension))
        return embeddings.encode(short_texts(count, seed), out=out)

    return embed


def sentence_transformers(folder: Path, prompt: str) -> Callable[[int, int], Any]:
    """sentence-transformers: from a list to an array."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder))

    def embed(count: int, seed: int) -> Any:
        texts = list(short_texts(count, seed))
        return model.encode(texts, prompt=prompt, normalize_embeddings=True, show_progress_bar=False)

    return embed


MEASURED = {OURS: luotuo, SENTENCE_TRANSFORMERS: sentence_transformers}


class PeakMemory:
    """The most memory that is resident during a with-block, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident())
            if self._done.wait(SAMPLED_SECONDS):
                return


def resident() -> int:
    """Bytes of anonymous memory now; where that is not told, the peak of all memory until now."""
    return _status("RssAnon") if STATUS.is_file() else whole_peak()


def whole_peak() -> int:
    """Most bytes of memory until now, with the pages of mapped files."""
    if STATUS.is_file():
        return _status("VmHWM")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else 1024 * most


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def check_agreement(firsts: list[Any]) -> None:
    """See that the systems gave the same vectors.

    Raises:
        SystemExit: If they did not.
    """
    least = min(float((firsts[0] * other).sum(axis=1).min()) for other in firsts)
    if least < LEAST_COSINE:
        raise SystemExit(f"the vectors differ: least cosine {least}")


def growth(by_count: dict[int, dict[str, float]]) -> float:
    """MiB that the peak grows by 100,000 texts, from the smallest number of texts to the largest."""
    small, large = min(by_count), max(by_count)
    if small == large:
        return float("nan")
    grown = by_count[large]["peak"] - by_count[small]["peak"]
    return grown / MIB / (large - small) * 100_000


def print_row(name: str, count: int, result: dict[str, float]) -> None:
    """Print what one process needed."""
    loaded, peak, whole = (result[key] / MIB for key in ("loaded", "peak", "whole_peak"))
    seconds = result["seconds"]
    print(f"{name:24s}{count:10,d}{seconds:9.1f}{loaded:9.0f}{peak:9.0f}{peak - loaded:10.0f}{whole:12.0f}", flush=True)


if __name__ == "__main__":
    main()
