"""Packed weights: one safetensors file that holds 4-bit blocks beside plain half- or single-precision tensors.

A block is ggml's ``Q4_0``: 32 consecutive weights of a row share one float16 scale ``d``; the low nibble of byte ``j``
is weight ``j``, the high nibble weight ``j + 16``, and a weight is ``(nibble - 8) * d``. In the file a 4-bit tensor
``NAME`` is two entries, ``NAME.q4`` (uint8) and ``NAME.scale`` (float16); every other entry is a tensor as it is.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from luotuo_integrations.errors import ModelFormatError

BLOCK_SIZE = 32
FORMAT = "luotuo-packed"
VERSION = "1"
NIBBLES_SUFFIX = ".q4"
SCALES_SUFFIX = ".scale"

_HALF_BLOCK = BLOCK_SIZE // 2
_ZERO_NIBBLE = 8
_BLOCKS_AT_A_TIME = 8192  # temporary arrays of that many blocks stay in the processor's cache
_PLAIN_DTYPES = (torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix of 4-bit weights in blocks of 32 along its rows, on the CPU.

    Attributes:
        nibbles: uint8 (rows, columns // 2); the 16 bytes of a block lie together.
        scales: float16 (rows, columns // 32).

    Raises:
        ValueError: If a dtype or a shape is another, or the two shapes do not belong together.
    """

    nibbles: torch.Tensor
    scales: torch.Tensor

    def __post_init__(self) -> None:
        """Check dtypes and shapes."""
        nibbles, scales = self.nibbles, self.scales
        if nibbles.dtype != torch.uint8 or scales.dtype != torch.float16:
            msg = f"nibbles must be uint8 and scales float16, not {nibbles.dtype} and {scales.dtype}"
            raise ValueError(msg)
        expected = [scales.shape[0], scales.shape[1] * _HALF_BLOCK] if scales.ndim == 2 else None
        if list(nibbles.shape) != expected:
            msg = (
                f"nibbles (rows, columns // 2) and scales (rows, columns // {BLOCK_SIZE}) do not belong together: "
                f"{tuple(nibbles.shape)} and {tuple(scales.shape)}"
            )
            raise ValueError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix that `dequantize` returns."""
        return self.nibbles.shape[0], self.nibbles.shape[1] * 2

    def dequantize(self) -> torch.Tensor:
        """Return the float32 matrix (rows, columns)."""
        # In NumPy, on one thread: as fast as torch on two idle cores, and it does not stall on busy ones.
        nibbles = self.nibbles.numpy().reshape(-1, _HALF_BLOCK)
        scales = self.scales.numpy().astype(np.float32).reshape(-1, 1, 1)
        weights = np.empty((len(nibbles), 2, _HALF_BLOCK), dtype=np.float32)
        for start in range(0, len(nibbles), _BLOCKS_AT_A_TIME):
            part = slice(start, start + _BLOCKS_AT_A_TIME)
            view = weights[part]  # (blocks, 2, 16)
            view[:, 0] = nibbles[part] & 15
            view[:, 1] = nibbles[part] >> 4
            view -= _ZERO_NIBBLE
            view *= scales[part]
        return torch.from_numpy(weights).view(self.shape)


def quantize_q4(tensor: torch.Tensor) -> QuantizedTensor:
    """Round a matrix to 4-bit blocks.

    The scale of a block is its value of largest magnitude, sign included, divided by -8, so that this value becomes
    nibble 0 and is met exactly but for float16 (ggml's ``Q4_0`` rounding, https://github.com/ggml-org/ggml). Zero
    weights stay exactly zero. A weight moves by half a scale at most, and by one scale where it lies at the other end
    of the range, which has 7 steps and not 8.

    Args:
        tensor: Floating-point matrix (rows, columns); columns a multiple of 32.

    Returns:
        The blocks, on the CPU.

    Raises:
        ValueError: If the tensor is no such matrix, holds NaN or infinity, or a scale exceeds float16.
    """
    if tensor.ndim != 2 or tensor.shape[1] % BLOCK_SIZE or not tensor.is_floating_point():
        msg = (
            f"a floating-point matrix with a multiple of {BLOCK_SIZE} columns is needed, "
            f"not {tensor.dtype} {tuple(tensor.shape)}. Store this tensor as float16 instead"
        )
        raise ValueError(msg)
    rows, columns = tensor.shape
    blocks = tensor.detach().to("cpu", torch.float32).reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE)
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # (rows, blocks, 1)
    scales = (extreme / -_ZERO_NIBBLE).half()
    if not torch.isfinite(scales).all():
        msg = "the tensor holds NaN, infinity or values beyond float16; 4-bit blocks cannot hold them"
        raise ValueError(msg)
    steps = torch.where(scales == 0, 0.0, blocks / scales.float())
    nibbles = (steps + _ZERO_NIBBLE).round().clamp(0, 15).to(torch.uint8)
    packed = nibbles[..., :_HALF_BLOCK] | (nibbles[..., _HALF_BLOCK:] << 4)
    return QuantizedTensor(nibbles=packed.reshape(rows, columns // 2), scales=scales.squeeze(-1))


def write_packed(path: Path, tensors: Mapping[str, torch.Tensor | QuantizedTensor]) -> None:
    """Write tensors to a packed file; the file appears whole or not at all.

    Args:
        path: The file to write; an existing one is replaced.
        tensors: Name to tensor. Plain tensors are stored in their own dtype, float16 or float32.

    Raises:
        ValueError: If a plain tensor has another dtype, or a name ends in ``.q4`` or ``.scale``.
        OSError: If the folder is missing or full.
    """
    entries: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((NIBBLES_SUFFIX, SCALES_SUFFIX)):
            msg = f"the name {name!r} ends in {NIBBLES_SUFFIX} or {SCALES_SUFFIX}, which mark 4-bit parts: rename it"
            raise ValueError(msg)
        if isinstance(tensor, QuantizedTensor):
            entries[name + NIBBLES_SUFFIX] = tensor.nibbles.contiguous()
            entries[name + SCALES_SUFFIX] = tensor.scales.contiguous()
        elif tensor.dtype in _PLAIN_DTYPES:
            entries[name] = tensor.detach().cpu().contiguous()
        else:
            msg = f"tensor {name!r} is {tensor.dtype}; float16 and float32 are allowed. Convert it, e.g. by .half()"
            raise ValueError(msg)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Not save_file(): it makes files that only their owner can read, which breaks a shared installation.
        temporary.write_bytes(_sorted_header(save(entries, metadata={"format": FORMAT, "version": VERSION})))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sorted_header(data: bytes) -> bytes:
    """Safetensors bytes with the metadata in order: safetensors shuffles it, and equal weights must be equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(end - 8)
    return b"".join((data[:8], text, memoryview(data)[end:]))


def read_packed(path: Path) -> dict[str, torch.Tensor]:
    """Read a packed file and dequantize it.

    Args:
        path: A file that `write_packed` wrote.

    Returns:
        Name to float32 tensor, on the CPU.

    Raises:
        ModelFormatError: If the file is missing, truncated, not a packed file, of another version, or if half of a
            4-bit tensor is missing or does not fit the other half.
    """
    entries = _read_entries(path)
    tensors: dict[str, torch.Tensor] = {}
    for entry, tensor in entries.items():
        if entry.endswith(SCALES_SUFFIX):
            _partner(path, entries, entry, SCALES_SUFFIX, NIBBLES_SUFFIX)
        elif entry.endswith(NIBBLES_SUFFIX):
            scales = _partner(path, entries, entry, NIBBLES_SUFFIX, SCALES_SUFFIX)
            try:
                quantized = QuantizedTensor(nibbles=tensor, scales=scales)
            except ValueError as error:
                msg = f"{path}: the two parts of {entry.removesuffix(NIBBLES_SUFFIX)!r} are damaged: {error}"
                raise ModelFormatError(msg) from error
            tensors[entry.removesuffix(NIBBLES_SUFFIX)] = quantized.dequantize()
        else:
            tensors[entry] = tensor.float()
    return tensors


def _read_entries(path: Path) -> dict[str, torch.Tensor]:
    """Every entry of a packed file as it is stored, after the format and the version were checked."""
    if not path.is_file():
        msg = f"there is no packed weight file {path}. Give a model folder that holds {path.name}"
        raise ModelFormatError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                msg = (
                    f"{path} is a safetensors file, but not a packed one (its format is {metadata.get('format')!r}, "
                    f"not {FORMAT!r}). Plain weights belong in a file named model.safetensors"
                )
                raise ModelFormatError(msg)
            if metadata.get("version") != VERSION:
                msg = (
                    f"{path} has packed version {metadata.get('version')!r}; this release reads {VERSION!r}. "
                    "Type: pip install --upgrade luotuo-integrations"
                )
                raise ModelFormatError(msg)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        msg = f"{path} is truncated or is no safetensors file ({error}). Install or download the model again"
        raise ModelFormatError(msg) from error


def _partner(path: Path, entries: Mapping[str, torch.Tensor], entry: str, suffix: str, other: str) -> torch.Tensor:
    name = entry.removesuffix(suffix) + other
    if name not in entries:
        msg = f"{path} holds {entry!r} but not {name!r}: the file is incomplete. Install or download the model again"
        raise ModelFormatError(msg)
    return entries[name]
