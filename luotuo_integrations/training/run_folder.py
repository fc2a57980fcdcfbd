"""RunFolder: where a run lives. It belongs to one configuration and one set of texts, and says so when reopened."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.training.config import TrainConfig

# What may differ when a run goes on: it changes neither the data nor the road of the weights.
HARMLESS = (
    "run.out",
    "run.name",
    "run.checkpoint_minutes",
    "run.keep_checkpoints",
    "run.pack",
    "run.onnx",
    "run.licence",
    "teacher.device",
    "teacher.requests_at_once",
    "teacher.requests_per_minute",
    "teacher.tokens_per_minute",
    "teacher.price_per_million_tokens",
    "teacher.max_cost",
    "teacher.cache",
    "batch.tokens_per_pass",
    "batch.tokens_in_memory",
)
_PACKAGES = ("luotuo-integrations", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "safetensors")


class RunError(LuotuoError, ValueError):
    """A folder holds another run, or the run's texts have changed."""


class RunFolder:
    """The folder of a run: config.json, environment.json, data.json, metrics.json and what training leaves.

    Until there is a checkpoint, nothing but the teacher's vectors was made that took time, and these fit any
    configuration and texts: what was wrong may be corrected, and the run resumed.

    Args:
        path: The folder; made by `begin` if it is not there.
        config: Of the run.
        resume: Go on with the run that is there; without one, begin.

    Raises:
        RunError: If there is a run already and ``resume`` is false, or its configuration is another.
        FileExistsError: If the folder holds something else.
    """

    def __init__(self, path: str | Path, config: TrainConfig, *, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_file():
            msg = f"{self.path} is a file; give a folder for the run"
            raise FileExistsError(msg)
        before = read_json(self.path / "config.json")
        if before is None and self.path.is_dir() and any(not one.name.startswith(".") for one in self.path.iterdir()):
            msg = f"{self.path} is not empty and holds no run; give another folder with --out"
            raise FileExistsError(msg)
        if before is not None and not resume:
            msg = f"{self.path} holds a run already. Add --resume to go on with it, or give another folder with --out"
            raise RunError(msg)
        self.config = config.to_dict()
        if before is not None and self.is_bound:
            _check_same(before, self.config)

    @property
    def is_bound(self) -> bool:
        """Whether there is something that fits one configuration and one set of texts alone."""
        return (self.path / "checkpoints").is_dir()

    @property
    def student(self) -> Path:
        """Folder of the student as it begins."""
        return self.path / "student"

    def begin(self, texts: Iterable[str], counts: Mapping[str, Any], *, write: bool = True) -> None:
        """Note what this run is about, or see that its texts are still the same.

        Args:
            texts: All texts to train on and to evaluate on, or the records as texts.
            counts: Of the texts, for messages.
            write: Whether to write; one process of several does.

        Raises:
            RunError: If they are others.
        """
        digest = hashlib.blake2b(digest_size=16)
        for text in texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        data: dict[str, Any] = {"fingerprint": digest.hexdigest(), "counts": dict(counts)}
        before = read_json(self.path / "data.json")
        if before is not None and before["fingerprint"] != data["fingerprint"] and self.is_bound:
            then, now = (" ".join(f"{name} {count}" for name, count in one["counts"].items()) for one in (before, data))
            msg = (
                f"The texts have changed since the run in {self.path} began (then: {then}; now: {now}), and its state "
                "does not fit them. Put the old texts back, or start a new run with another --out; the teacher's cache "
                f"can be kept: --set teacher.cache={self.path / 'teacher'}"
            )
            raise RunError(msg)
        if not write:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.is_bound:  # what an earlier start made of a configuration that may have been corrected
            shutil.rmtree(self.student, ignore_errors=True)
            for name in ("metrics.json", "log.jsonl", "best.safetensors"):
                (self.path / name).unlink(missing_ok=True)
        write_json(self.path / "config.json", self.config)
        write_json(self.path / "environment.json", environment())
        write_json(self.path / "data.json", data)

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds; empty before the first metric."""
        return read_json(self.path / "metrics.json") or {}

    def add_metrics(self, **values: Any) -> None:
        """Put values into metrics.json."""
        write_json(self.path / "metrics.json", {**self.metrics(), **values})


def environment() -> dict[str, str]:
    """Versions and hardware, for the record."""
    found: dict[str, str] = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {name: _version(name) for name in _PACKAGES}
    found["threads"] = str(torch.get_num_threads())
    found["cores"] = str(os.cpu_count())
    for number in range(torch.cuda.device_count()):
        found[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, or None where there is no file.

    Raises:
        RunError: If it is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        msg = f"{path} is damaged ({error}). Restore it, or start a new run with another --out"
        raise RunError(msg) from error
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; the file is there whole or as before."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then, current = dict(_flat(before)), dict(_flat(now))
    differing = [
        f"{name}: {then.get(name, 'unset')} then, {current.get(name, 'unset')} now"
        for name in sorted(then.keys() | current.keys())
        if name not in HARMLESS and then.get(name) != current.get(name)
    ]
    if differing:
        msg = (
            f"This run began with another configuration ({'; '.join(differing)}). Resume it with the old one, or start "
            "a new run with another --out"
        )
        raise RunError(msg)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
