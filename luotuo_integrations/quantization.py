"""Packed weights: one safetensors file that holds 4- or 8-bit blocks beside plain half- or single-precision tensors.

A 4-bit block is ggml's ``Q4_0``: 32 consecutive weights of a row share one float16 scale ``d``; the low nibble of byte
``j`` is weight ``j``, the high nibble weight ``j + 16``, and a weight is ``(nibble - 8) * d``. An 8-bit block is ggml's
``Q8_0``: 32 weights share one float16 scale ``d``, and a weight is ``level * d`` with an int8 level. In the file a
4-bit tensor ``NAME`` is two entries, ``NAME.q4`` (uint8) and ``NAME.scale`` (float16), and an 8-bit one ``NAME.q8``
(int8) and ``NAME.scale8`` (float16); every other entry is a tensor as it is. A file with 8-bit tensors says version 2,
one without them version 1, which releases before them read too.
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
EIGHT_BIT_VERSION = "2"
NIBBLES_SUFFIX = ".q4"
SCALES_SUFFIX = ".scale"
LEVELS_SUFFIX = ".q8"
EIGHT_BIT_SCALES_SUFFIX = ".scale8"

_HALF_BLOCK = BLOCK_SIZE // 2
_ZERO_NIBBLE = 8
_HIGHEST_LEVEL = 127
_BLOCKS_AT_A_TIME = 8192  # temporary arrays of that many blocks stay in the processor's cache
_PLAIN_DTYPES = (torch.float16, torch.float32)
_SUFFIXES = (NIBBLES_SUFFIX, SCALES_SUFFIX, LEVELS_SUFFIX, EIGHT_BIT_SCALES_SUFFIX)
_PARTNERS = {
    NIBBLES_SUFFIX: SCALES_SUFFIX,
    SCALES_SUFFIX: NIBBLES_SUFFIX,
    LEVELS_SUFFIX: EIGHT_BIT_SCALES_SUFFIX,
    EIGHT_BIT_SCALES_SUFFIX: LEVELS_SUFFIX,
}


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


@dataclass(frozen=True, eq=False)
class EightBitTensor:
    """A matrix of 8-bit weights in blocks of 32 along its rows, on the CPU.

    Attributes:
        levels: int8 (rows, columns).
        scales: float16 (rows, columns // 32).

    Raises:
        ValueError: If a dtype or a shape is another, or the two shapes do not belong together.
    """

    levels: torch.Tensor
    scales: torch.Tensor

    def __post_init__(self) -> None:
        """Check dtypes and shapes."""
        levels, scales = self.levels, self.scales
        if levels.dtype != torch.int8 or scales.dtype != torch.float16:
            msg = f"levels must be int8 and scales float16, not {levels.dtype} and {scales.dtype}"
            raise ValueError(msg)
        expected = [scales.shape[0], scales.shape[1] * BLOCK_SIZE] if scales.ndim == 2 else None
        if list(levels.shape) != expected:
            msg = (
                f"levels (rows, columns) and scales (rows, columns // {BLOCK_SIZE}) do not belong together: "
                f"{tuple(levels.shape)} and {tuple(scales.shape)}"
            )
            raise ValueError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix that `dequantize` returns."""
        return self.levels.shape[0], self.levels.shape[1]

    def dequantize(self) -> torch.Tensor:
        """Return the float32 matrix (rows, columns)."""
        rows, columns = self.shape
        blocks = self.levels.reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE).float()
        return (blocks * self.scales.float().unsqueeze(-1)).reshape(rows, columns)


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
    blocks = _blocks_of(tensor)
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # (rows, blocks, 1)
    scales = (extreme / -_ZERO_NIBBLE).half()
    nibbles = (_steps(blocks, scales, bits=4) + _ZERO_NIBBLE).round().clamp(0, 15).to(torch.uint8)
    packed = nibbles[..., :_HALF_BLOCK] | (nibbles[..., _HALF_BLOCK:] << 4)
    return QuantizedTensor(nibbles=packed.flatten(1), scales=scales.squeeze(-1))


def quantize_q8(tensor: torch.Tensor) -> EightBitTensor:
    """Round a matrix to 8-bit blocks.

    The scale of a block is its largest magnitude divided by 127 (ggml's ``Q8_0``, https://github.com/ggml-org/ggml).
    Zero weights stay exactly zero. A weight moves by half a scale at most, and a block's largest by what its scale
    loses in float16 too: noticeable only in blocks whose weights are all below 0.01.

    Args:
        tensor: Floating-point matrix (rows, columns); columns a multiple of 32.

    Returns:
        The blocks, on the CPU.

    Raises:
        ValueError: If the tensor is no such matrix, holds NaN or infinity, or a scale exceeds float16.
    """
    blocks = _blocks_of(tensor)
    scales = (blocks.abs().amax(-1, keepdim=True) / _HIGHEST_LEVEL).half()
    steps = _steps(blocks, scales, bits=8)
    levels = steps.round().clamp(-_HIGHEST_LEVEL, _HIGHEST_LEVEL).to(torch.int8)
    return EightBitTensor(levels=levels.reshape(tensor.shape), scales=scales.squeeze(-1))


def _blocks_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a matrix as float32 blocks (rows, columns // 32, 32) on the CPU, or refuse what has none."""
    if tensor.ndim != 2 or tensor.shape[1] % BLOCK_SIZE or not tensor.is_floating_point():
        msg = (
            f"a floating-point matrix with a multiple of {BLOCK_SIZE} columns is needed, "
            f"not {tensor.dtype} {tuple(tensor.shape)}. Store this tensor as float16 instead"
        )
        raise ValueError(msg)
    rows, columns = tensor.shape
    return tensor.detach().to("cpu", torch.float32).reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE)


def _steps(blocks: torch.Tensor, scales: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Return the weights in units of their blocks' scales; 0 where a scale is 0."""
    if not torch.isfinite(scales).all():
        msg = f"the tensor holds NaN, infinity or values beyond float16; {bits}-bit blocks cannot hold them"
        raise ValueError(msg)
    return torch.where(scales == 0, 0.0, blocks / scales.float())


def write_packed(path: Path, tensors: Mapping[str, torch.Tensor | QuantizedTensor | EightBitTensor]) -> None:
    """Write tensors to a packed file; the file appears whole or not at all.

    Args:
        path: The file to write; an existing one is replaced.
        tensors: Name to tensor. Plain tensors are stored in their own dtype, float16 or float32.

    Raises:
        ValueError: If a plain tensor has another dtype, or a name ends in a suffix that marks a part of a block.
        OSError: If the folder is missing or full.
    """
    entries: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SUFFIXES):
            msg = f"the name {name!r} ends in one of {', '.join(_SUFFIXES)}, which mark parts of blocks: rename it"
            raise ValueError(msg)
        if isinstance(tensor, QuantizedTensor):
            entries[name + NIBBLES_SUFFIX] = tensor.nibbles.contiguous()
            entries[name + SCALES_SUFFIX] = tensor.scales.contiguous()
        elif isinstance(tensor, EightBitTensor):
            entries[name + LEVELS_SUFFIX] = tensor.levels.contiguous()
            entries[name + EIGHT_BIT_SCALES_SUFFIX] = tensor.scales.contiguous()
        elif tensor.dtype in _PLAIN_DTYPES:
            entries[name] = tensor.detach().cpu().contiguous()
        else:
            msg = f"tensor {name!r} is {tensor.dtype}; float16 and float32 are allowed. Convert it, e.g. by .half()"
            raise ValueError(msg)
    version = EIGHT_BIT_VERSION if any(isinstance(one, EightBitTensor) for one in tensors.values()) else VERSION
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Not save_file(): it makes files that only their owner can read, which breaks a shared installation.
        temporary.write_bytes(_sorted_header(save(entries, metadata={"format": FORMAT, "version": version})))
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
            4- or 8-bit tensor is missing or does not fit the other half.
    """
    entries = _read_entries(path)
    tensors: dict[str, torch.Tensor] = {}
    for entry, tensor in entries.items():
        suffix = next((suffix for suffix in _SUFFIXES if entry.endswith(suffix)), None)
        if suffix is None:
            tensors[entry] = tensor.float()
            continue
        name = entry.removesuffix(suffix)
        partner = _partner(path, entries, entry, name + _PARTNERS[suffix])
        if suffix in (SCALES_SUFFIX, EIGHT_BIT_SCALES_SUFFIX):
            continue
        try:
            blocks = QuantizedTensor(tensor, partner) if suffix == NIBBLES_SUFFIX else EightBitTensor(tensor, partner)
        except ValueError as error:
            msg = f"{path}: the two parts of {name!r} are damaged: {error}"
            raise ModelFormatError(msg) from error
        tensors[name] = blocks.dequantize()
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
            if metadata.get("version") not in (VERSION, EIGHT_BIT_VERSION):
                msg = (
                    f"{path} has packed version {metadata.get('version')!r}; this release reads {VERSION!r} and "
                    f"{EIGHT_BIT_VERSION!r}. "
                    "Type: pip install --upgrade luotuo-integrations"
                )
                raise ModelFormatError(msg)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        msg = f"{path} is truncated or is no safetensors file ({error}). Install or download the model again"
        raise ModelFormatError(msg) from error


def _partner(path: Path, entries: Mapping[str, torch.Tensor], entry: str, partner: str) -> torch.Tensor:
    if partner not in entries:
        msg = f"{path} holds {entry!r} but not {partner!r}: the file is incomplete. Install or download the model again"
        raise ModelFormatError(msg)
    return entries[partner]
