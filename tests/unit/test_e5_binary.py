"""The E5S1 reader, on a small file written here field by field."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from luotuo_integrations.quantization import QuantizedTensor
from training.e5_binary import Piece, read_e5_binary

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁骆驼", -3.5), ("沙漠", -4.25)]
BIAS = np.array([0.5, -1.25, 3.0], dtype="<f4")
# Two blocks in one row: scale 0.5 with nibbles 0..15 low and 15..0 high, then scale -1 with every weight 3 - 8 = -5.
BLOCKS = (
    struct.pack("<e", 0.5) + bytes(low | (15 - low) << 4 for low in range(16)) + struct.pack("<e", -1.0) + b"3" * 16
)


@dataclass
class SmallFile:
    """Fields of an E5S1 file that tests change."""

    magic: bytes = b"E5S1"
    version: int = 1
    block_size: int = 32
    tensor_dtype: int = 1
    pieces: list[tuple[str, float]] = field(default_factory=lambda: list(PIECES))

    def header(self) -> bytes:
        """All up to the table of tensors."""
        texts = [text.encode() for text, _ in self.pieces]
        offsets = np.cumsum([0, *map(len, texts)]).astype("<u4")
        scores = np.array([score for _, score in self.pieces], dtype="<f4")
        blob = b"".join(texts)
        return b"".join(
            [
                self.magic,
                struct.pack("<I7ifi", self.version, 64, 2, 4, 128, 8, 16, 2, 1e-12, self.block_size),
                struct.pack("<5iQ", len(texts), 0, 2, 1, 3, len(blob)),
                offsets.tobytes(),
                scores.tobytes(),
                blob,
                struct.pack("<iI", 2, 14),  # character map: two entries, one of them a deletion
                struct.pack("<IBI", 0xFF21, 1, 0x41) + struct.pack("<IB", 0x200B, 0),
            ]
        )

    def write(self, path: Path) -> bytes:
        """Write header, table and data; return the bytes."""
        tensors = [("emb.bias", 0, 3, BIAS.tobytes()), ("emb.word", self.tensor_dtype, 64, BLOCKS)]
        table_size = 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in tensors)
        head = self.header()
        table, data = struct.pack("<i", len(tensors)), b""
        begin = -(-(len(head) + table_size) // 64) * 64
        for name, dtype, elements, content in tensors:
            offset = begin + len(data)
            table += struct.pack("<H", len(name)) + name.encode()
            table += struct.pack("<BIQQ", dtype, elements, offset, len(content))
            data += content.ljust(-(-len(content) // 64) * 64, b"\0")
        whole = (head + table).ljust(begin, b"\0") + data.rstrip(b"\0")
        path.write_bytes(whole)
        return whole


def test_header_and_pieces(tmp_path: Path) -> None:
    SmallFile().write(tmp_path / "small.bin")
    binary = read_e5_binary(tmp_path / "small.bin")
    assert (binary.hidden, binary.layers, binary.heads, binary.feed_forward) == (64, 2, 4, 128)
    assert (binary.vocabulary_rows, binary.positions, binary.token_types) == (8, 16, 2)
    assert binary.layer_norm_epsilon == pytest.approx(1e-12)
    assert binary.special_ids == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    assert binary.pieces == [Piece(text, score) for text, score in PIECES]


def test_tensors(tmp_path: Path) -> None:
    SmallFile().write(tmp_path / "small.bin")
    binary = read_e5_binary(tmp_path / "small.bin")
    assert torch.equal(binary.tensor("emb.bias"), torch.tensor([0.5, -1.25, 3.0]))
    words = binary.tensor("emb.word", columns=64)
    assert isinstance(words, QuantizedTensor)
    first = [(nibble - 8) * 0.5 for nibble in [*range(16), *range(15, -1, -1)]]
    second = [5.0] * 32  # b"3" is 0x33: nibble 3 low and high
    assert words.dequantize().tolist() == [first + second]


def test_other_files_are_refused(tmp_path: Path) -> None:
    SmallFile(magic=b"GGUF").write(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="not an E5S1 file"):
        read_e5_binary(tmp_path / "a.bin")
    SmallFile(version=2).write(tmp_path / "b.bin")
    with pytest.raises(ValueError, match="version 2; this reader knows version 1"):
        read_e5_binary(tmp_path / "b.bin")
    SmallFile(block_size=64).write(tmp_path / "c.bin")
    with pytest.raises(ValueError, match="blocks of 64 weights"):
        read_e5_binary(tmp_path / "c.bin")
    SmallFile(tensor_dtype=7).write(tmp_path / "d.bin")
    with pytest.raises(ValueError, match=r"'emb\.word' has type 7"):
        read_e5_binary(tmp_path / "d.bin")
    with pytest.raises(FileNotFoundError):
        read_e5_binary(tmp_path / "e.bin")


def test_a_truncated_header(tmp_path: Path) -> None:
    file = SmallFile()
    whole = file.write(tmp_path / "small.bin")
    for length in (0, 3, 20, 60, len(file.header()) - 3, len(file.header()) + 10):
        (tmp_path / "cut.bin").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_e5_binary(tmp_path / "cut.bin")


def test_a_truncated_tensor(tmp_path: Path) -> None:
    whole = SmallFile().write(tmp_path / "small.bin")
    (tmp_path / "cut.bin").write_bytes(whole[:-1])
    binary = read_e5_binary(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match=r"ends inside tensor 'emb\.word'"):
        binary.tensor("emb.word", columns=64)


def test_tensors_asked_for_wrongly(tmp_path: Path) -> None:
    SmallFile().write(tmp_path / "small.bin")
    binary = read_e5_binary(tmp_path / "small.bin")
    with pytest.raises(ValueError, match=r"no tensor 'emb\.words'; it has emb\.bias, emb\.word"):
        binary.tensor("emb.words")
    for columns in (None, 33):
        with pytest.raises(ValueError, match="multiple of 32"):
            binary.tensor("emb.word", columns=columns)
