"""Checkpoints: numbered folders of safetensors and JSON, each there whole or not at all.

A checkpoint is written under a temporary name, flushed to the disk and renamed. Its manifest, written last, tells the
size of each file, so that one that was cut short all the same is passed over for the one before.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from luotuo_integrations.errors import LuotuoError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")


class CheckpointError(LuotuoError, ValueError):
    """A checkpoint cannot be read, or belongs to another model."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: Name to tensor, on the CPU.
        state: Plain values.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: Where they lie; made when the first is written.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, whole or not, the newest first."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete the oldest.

        Raises:
            OSError: If there is no room; what was there before is still there, and nothing half-written is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{target.name}.partial"
        replaced = self.folder / f".{target.name}.replaced"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            try:
                save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, temporary / TENSORS)
            except SafetensorError as error:  # its own error for a full disk
                raise OSError(str(error)) from error
            (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"files": sizes}), encoding="utf-8")
            for path in temporary.iterdir():
                _flush(path)
            if target.exists():  # of the same step: it goes when the new one is complete
                target.replace(replaced)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
        for old in self.steps()[self.keep :]:
            shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole, or None; each one that is passed over is named in a warning."""
        for step in self.steps():
            folder = self.folder / f"step-{step:08d}"
            try:
                return self._read(folder)
            except CheckpointError as error:
                logger.warning("%s; the checkpoint before it is used", error)
        return None

    def _read(self, folder: Path) -> Checkpoint:
        try:
            sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
            short = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
            if not short:
                state = json.loads((folder / STATE).read_text(encoding="utf-8"))
                return Checkpoint(load_file(folder / TENSORS), state)
            problem = f"{short[0]} is cut short"
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problem = str(error)
        msg = f"The checkpoint {folder} is damaged ({problem})"
        raise CheckpointError(msg)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `trained_tensors` back.

    Raises:
        CheckpointError: If names or shapes are not those of the model.
    """
    wanted = trained_tensors(model)
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [
        name for name in wanted if wanted[name].shape != tensors[name].shape
    ]
    if wrong:
        msg = f"the checkpoint is of another model: {wrong[0]!r} differs. Start a new run in another folder"
        raise CheckpointError(msg)
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``"parameter name|key"`` to tensor."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(model: nn.Module, optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `optimizer_tensors` back, each beside its parameter's device."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("|")
        parameter = parameters[parameter_name]
        # Step counters stay where AdamW keeps them: on the CPU, unless the optimizer is fused.
        device = parameter.device if tensor.ndim or optimizer.param_groups[0].get("fused") else tensor.device
        optimizer.state[parameter][key] = tensor.to(device)
