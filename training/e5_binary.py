"""Reader of the ``E5S1`` file: multilingual-e5-small with 4-bit blocks, its pieces and its scores, in one binary file.

The file is little endian and has no padding between header fields: dimensions, pieces, character map, a table of
tensors, then the tensors themselves. Only the weights and the pieces are read here; the character map is the
``nmt_nfkc`` map of sentencepiece, which `training.prune_vocabulary` takes from sentencepiece itself.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luotuo_integrations.quantization import BLOCK_SIZE, QuantizedTensor

MAGIC = b"E5S1"
VERSION = 1
FLOAT32, Q4_0 = 0, 1
Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", (BLOCK_SIZE // 2,))])  # 18 bytes, 32 weights


@dataclass(frozen=True)
class Piece:
    """One entry of the Unigram vocabulary.

    Attributes:
        text: The piece, with ``▁`` for a space.
        score: Natural logarithm of its probability; 0 for special tokens.
    """

    text: str
    score: float


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in the file."""

    dtype: int
    elements: int
    offset: int
    size: int


@dataclass(frozen=True)
class E5Binary:
    """The header, the pieces and the table of tensors of an ``E5S1`` file; tensors are read when asked for.

    Attributes:
        path: The file.
        hidden: Width of the token vectors, 384.
        layers: Number of transformer layers, 12.
        heads: Attention heads of a layer, 12.
        feed_forward: Inner width of the feed-forward part, 1536.
        vocabulary_rows: Rows of the word embedding; at least as many as there are pieces.
        positions: Longest input in tokens, 512.
        token_types: Rows of the token type embedding, 2.
        layer_norm_epsilon: 1e-12.
        pieces: The vocabulary; the index is the token id.
        special_ids: Ids of ``bos``, ``eos``, ``pad`` and ``unk``.
        entries: The table of tensors.
    """

    path: Path
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary_rows: int
    positions: int
    token_types: int
    layer_norm_epsilon: float
    pieces: list[Piece]
    special_ids: dict[str, int]
    entries: dict[str, TensorEntry]

    def tensor(self, name: str, columns: int | None = None) -> torch.Tensor | QuantizedTensor:
        """Read one tensor.

        Args:
            name: Name in the file, for instance ``"emb.word"`` or ``"l0.q.w"``.
            columns: Length of a row; None gives a vector.

        Returns:
            A float32 tensor (rows, columns) or (elements,), or the 4-bit blocks as they are in the file.

        Raises:
            ValueError: If the tensor is not in the file, has another size than the table says, or is 4-bit and has
                no multiple of 32 columns.
        """
        if name not in self.entries:
            raise ValueError(f"{self.path} has no tensor {name!r}; it has {', '.join(sorted(self.entries))}")
        entry = self.entries[name]
        data = np.fromfile(self.path, dtype=np.uint8, count=entry.size, offset=entry.offset)
        if data.size != entry.size:
            raise ValueError(f"{self.path} ends inside tensor {name!r}: it is truncated. Get the file again")
        if entry.dtype == FLOAT32:
            values = torch.from_numpy(data.view("<f4").astype(np.float32))
            return values if columns is None else values.view(-1, columns)
        if columns is None or columns % BLOCK_SIZE:
            raise ValueError(f"tensor {name!r} is 4-bit: columns must be a multiple of {BLOCK_SIZE}, not {columns}")
        blocks = data.view(Q4_0_BLOCK)
        nibbles = torch.from_numpy(np.ascontiguousarray(blocks["nibbles"])).view(-1, columns // 2)
        scales = torch.from_numpy(blocks["scale"].astype(np.float16)).view(-1, columns // BLOCK_SIZE)
        return QuantizedTensor(nibbles=nibbles, scales=scales)


class _Cursor:
    """Reads header fields one after another."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def bytes(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError(f"{self.path} ends inside its header: it is truncated or damaged. Get the file again")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def fields(self, layout: str) -> tuple[int, ...]:
        """The next fields, as in `struct`, little endian and without padding."""
        return struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}")))


def read_e5_binary(path: Path) -> E5Binary:
    """Read the header of an ``E5S1`` file.

    Args:
        path: The file, about 72 MB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ``E5S1`` file of version 1, its block size is not 32, or it is truncated.
    """
    cursor = _Cursor(path, memoryview(path.read_bytes()))
    if bytes(cursor.bytes(4)) != MAGIC:
        raise ValueError(f"{path} is not an E5S1 file: give the file e5-small-q4.bin")
    (version,) = cursor.fields("I")
    if version != VERSION:
        raise ValueError(f"{path} has version {version}; this reader knows version {VERSION}")
    hidden, layers, heads, feed_forward, rows, positions, token_types = cursor.fields("7i")
    (epsilon,) = cursor.fields("f")
    (block_size,) = cursor.fields("i")
    if block_size != BLOCK_SIZE:
        raise ValueError(f"{path} has blocks of {block_size} weights; this reader knows {BLOCK_SIZE}")
    pieces, special_ids = _read_pieces(cursor)
    _map_entries, map_bytes = cursor.fields("iI")
    cursor.bytes(map_bytes)
    return E5Binary(
        path=path,
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        vocabulary_rows=rows,
        positions=positions,
        token_types=token_types,
        layer_norm_epsilon=epsilon,
        pieces=pieces,
        special_ids=special_ids,
        entries=_read_table(cursor),
    )


def _read_pieces(cursor: _Cursor) -> tuple[list[Piece], dict[str, int]]:
    count, bos, eos, pad, unk = cursor.fields("5i")
    (blob_length,) = cursor.fields("Q")
    offsets = np.frombuffer(cursor.bytes(4 * (count + 1)), dtype="<u4")
    scores = np.frombuffer(cursor.bytes(4 * count), dtype="<f4")
    blob = bytes(cursor.bytes(blob_length))
    pieces = [
        Piece(blob[start:end].decode("utf-8"), float(score))
        for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]
    return pieces, {"bos": bos, "eos": eos, "pad": pad, "unk": unk}


def _read_table(cursor: _Cursor) -> dict[str, TensorEntry]:
    (count,) = cursor.fields("i")
    entries = {}
    for _ in range(count):
        (name_length,) = cursor.fields("H")
        name = bytes(cursor.bytes(name_length)).decode("utf-8")
        dtype, elements, offset, size = cursor.fields("BIQQ")
        if dtype not in (FLOAT32, Q4_0):
            raise ValueError(f"{cursor.path}: tensor {name!r} has type {dtype}; 0 (float32) and 1 (Q4_0) are known")
        entries[name] = TensorEntry(dtype, elements, offset, size)
    return entries
