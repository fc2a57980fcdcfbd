"""Try the embeddings class beside other versions of the frameworks: python tests/combinations.py

Each combination is this environment with a folder of other packages put before it, so that little is installed. Prints
one line a combination, and exits with 1 if one fails.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
LANGCHAIN = ("langchain==1.4.7", "langchain-classic==1.0.8")
# Name, packages put before this environment's (without their dependencies), and how LlamaIndex then uses our object.
# LlamaIndex's bridge imports where langchain-community still has ChatOpenAI, and then takes a LangChain object for
# foreign before it looks whether it is one of its own.
COMBINATIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("as installed", (), ""),
    ("langchain 1, community 0.4.2: no bridge", (*LANGCHAIN, "langchain-community==0.4.2"), "itself"),
    (
        "langchain 1, community 0.4.1: bridge",
        (*LANGCHAIN, "langchain-community==0.4.1"),
        "wrapped in LangchainEmbedding",
    ),
    ("oldest langchain-core and llama-index-core", ("langchain-core==1.0.0", "llama-index-core==0.14.0"), "itself"),
    (
        "oldest transformers",
        ("transformers==4.51.3", "tokenizers==0.21.4", "huggingface-hub==0.36.0"),
        "itself",
    ),
)


def try_combination(packages: tuple[str, ...], expected: str) -> tuple[bool, str]:
    """Install packages into a folder of their own and run framework_check.py with it.

    Returns:
        Whether all is right, and one line that says what was found.
    """
    with tempfile.TemporaryDirectory(prefix="luotuo-combination-") as folder:
        if packages:
            options = ["--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check", "--target", folder]
            install = [sys.executable, "-m", "pip", "install", *options, *packages]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            if done.returncode:
                return False, f"cannot be installed: {done.stderr.strip().splitlines()[-1]}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(HERE.parent)))}
        check = [sys.executable, "-W", "ignore", str(HERE / "framework_check.py")]
        done = subprocess.run(check, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or ["no message"])[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    versions = ", ".join(f"{name} {number}" for name, number in found.items() if name != "used as")
    return expected in found["used as"], f"used as {found['used as']} ({versions})"


def main() -> int:
    """Try all combinations.

    Returns:
        0 if all are right, else 1.
    """
    failed = 0
    for name, packages, expected in COMBINATIONS:
        start = time.perf_counter()
        right, found = try_combination(packages, expected)
        failed += not right
        print(f"{'ok  ' if right else 'FAIL'} {name}: {found}, {time.perf_counter() - start:.0f} s", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
