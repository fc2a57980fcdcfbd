"""What is installed here, and what is wrong with it."""

import importlib.metadata
import platform
from dataclasses import dataclass, field

from luotuo_integrations._optional import require
from luotuo_integrations.registry import DEFAULT_MODEL

PACKAGES = (
    "luotuo-integrations", "torch", "transformers", "tokenizers", "numpy", "langchain-core", "llama-index-core",
    "llama-index-embeddings-langchain", "bm25s", "rjieba", "chromadb", "langchain-chroma",
    "llama-index-vector-stores-chroma", "beautifulsoup4", "pypdf", "python-docx", "openai", "sentence-transformers",
)  # fmt: skip
_FAISS_MODULE = "faiss"


@dataclass
class Diagnosis:
    """The state of an installation.

    Attributes:
        python: Version of Python and the platform.
        versions: Version of each package; None where it is not installed.
        faiss: Distributions that bring the ``faiss`` module, with their versions.
        devices: What torch can compute on, best first.
        cpu_engine: What runs the bundled model on the CPU, and in which type: "onednn bfloat16"; "" if it does not run.
        problems: What should be mended, each with what to type.
    """

    python: str
    versions: dict[str, str | None]
    faiss: dict[str, str]
    devices: list[str]
    cpu_engine: str = ""
    problems: list[str] = field(default_factory=list)


def diagnose() -> Diagnosis:
    """Look at this installation; nothing is changed and nothing is downloaded."""
    versions = {name: _version(name) for name in PACKAGES}
    diagnosis = Diagnosis(
        python=f"{platform.python_version()} on {platform.platform()}",
        versions=versions,
        faiss=_faiss_distributions(),
        devices=_devices(),
    )
    if len(diagnosis.faiss) > 1:
        names = " ".join(sorted(diagnosis.faiss))
        diagnosis.problems.append(
            f"{len(diagnosis.faiss)} packages bring the module faiss and overwrite each other. "
            f"Type: pip uninstall -y {names} && pip install 'luotuo-integrations[faiss]'"
        )
    diagnosis.problems += _faiss_problem()
    if versions["llama-index-embeddings-langchain"] is None:
        diagnosis.problems.append(
            "llama-index-embeddings-langchain is missing: LlamaIndex may refuse LuotuoEmbeddings. "
            "Type: pip install llama-index-embeddings-langchain"
        )
    _try_model(diagnosis)
    return diagnosis


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _faiss_distributions() -> dict[str, str]:
    names = set(importlib.metadata.packages_distributions().get(_FAISS_MODULE, []))
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _faiss_problem() -> list[str]:
    try:
        require(_FAISS_MODULE, extra="faiss")
    except ImportError as error:
        return [f"There is no FAISS store: {error}"]
    return []


def _devices() -> list[str]:
    import torch

    devices = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, f"cpu ({torch.get_num_threads()} threads)"]


def _try_model(diagnosis: Diagnosis) -> None:
    from luotuo_integrations.encoder import Encoder
    from luotuo_integrations.errors import LuotuoError

    try:
        encoder = Encoder(DEFAULT_MODEL, device="cpu")
        encoder.encode(["你好"])
    except (LuotuoError, OSError, RuntimeError, ValueError) as error:
        diagnosis.problems.append(
            f"The bundled model {DEFAULT_MODEL!r} does not work ({error}). Install the package again"
        )
    else:
        diagnosis.cpu_engine = f"{encoder.engine} {str(encoder.dtype).removeprefix('torch.')}"


def describe(diagnosis: Diagnosis) -> list[str]:
    """A diagnosis as lines of text."""
    lines = [f"Python {diagnosis.python}", *(f"device  {device}" for device in diagnosis.devices)]
    lines += [f"engine  {diagnosis.cpu_engine} (on the CPU)"] if diagnosis.cpu_engine else []
    lines += [f"{name:34s} {version or '-'}" for name, version in diagnosis.versions.items()]
    lines += [f"{name + ' (module faiss)':34s} {version}" for name, version in diagnosis.faiss.items()]
    return lines
