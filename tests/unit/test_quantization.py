"""4- and 8-bit blocks and packed files, against naive loops and damaged files."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.quantization import (
    EightBitTensor,
    QuantizedTensor,
    quantize_q4,
    quantize_q8,
    read_packed,
    write_packed,
)

METADATA = {"format": "luotuo-packed", "version": "1"}


def random_blocks(rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    nibbles = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    return QuantizedTensor(nibbles, torch.randn(rows, columns // 32, generator=generator).half())


def naive_dequantize(blocks: QuantizedTensor) -> np.ndarray:
    """The definition of Q4_0, weight by weight."""
    rows, columns = blocks.shape
    result = np.zeros((rows, columns), dtype=np.float32)
    nibbles, scales = blocks.nibbles.numpy(), blocks.scales.float().numpy()
    for row in range(rows):
        for column in range(columns):
            block, place = divmod(column, 32)
            byte = int(nibbles[row, block * 16 + place % 16])
            nibble = byte & 15 if place < 16 else byte >> 4
            result[row, column] = np.float32(nibble - 8) * scales[row, block]
    return result


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (3, 96), (8200, 32), (0, 64)])
def test_dequantize_equals_the_definition(rows: int, columns: int) -> None:
    blocks = random_blocks(rows, columns)
    values = blocks.dequantize()
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), naive_dequantize(blocks))


def test_every_nibble_of_every_place() -> None:
    nibbles = torch.arange(256, dtype=torch.uint8).view(1, 256)
    blocks = QuantizedTensor(nibbles, torch.linspace(-2, 2, 16).half().view(1, 16))
    np.testing.assert_array_equal(blocks.dequantize().numpy(), naive_dequantize(blocks))


def test_dequantize_reads_views() -> None:
    blocks = random_blocks(4, 128)
    view = QuantizedTensor(blocks.nibbles[:, 16:48], blocks.scales[:, 1:3])
    assert torch.equal(view.dequantize(), blocks.dequantize()[:, 32:96])


@pytest.mark.parametrize(
    ("nibbles", "scales"),
    [
        (torch.zeros(2, 16, dtype=torch.int8), torch.zeros(2, 1).half()),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1)),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 2).half()),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(3, 1).half()),
        (torch.zeros(16, dtype=torch.uint8), torch.zeros(1).half()),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1, 1).half()),
    ],
)
def test_parts_that_do_not_belong_together(nibbles: torch.Tensor, scales: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8|do not belong together"):
        QuantizedTensor(nibbles, scales)


@pytest.mark.parametrize("magnitude", [1e-4, 0.05, 1.0, 3000.0])
def test_quantize_takes_the_nearest_level(magnitude: float) -> None:
    weights = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)) * magnitude
    blocks = quantize_q4(weights)
    values = blocks.dequantize()
    scales = blocks.scales.float()
    for row in range(5):
        for column in range(96):
            scale, weight = scales[row, column // 32].item(), weights[row, column].item()
            best = min(abs((nibble - 8) * scale - weight) for nibble in range(16))
            error = abs(values[row, column].item() - weight)
            assert error <= best + 1e-6 * magnitude
            assert error <= abs(scale) * 1.01


def test_quantize_meets_the_extreme_of_a_block_and_zeros() -> None:
    weights = torch.zeros(2, 64)
    weights[0, 5], weights[0, 40], weights[1, 63] = 0.5, -2.0, 1.0
    assert torch.equal(quantize_q4(weights).dequantize(), weights)


def test_quantizing_again_changes_nothing() -> None:
    weights = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    once = quantize_q4(weights)
    twice = quantize_q4(once.dequantize())
    assert torch.equal(once.dequantize(), twice.dequantize())


def test_quantize_takes_half_precision_and_views() -> None:
    weights = torch.randn(64, 6, generator=torch.Generator().manual_seed(3)).half()
    assert torch.equal(quantize_q4(weights.T).dequantize(), quantize_q4(weights.T.contiguous().float()).dequantize())


@pytest.mark.parametrize("weights", [torch.zeros(3, 33), torch.zeros(32), torch.zeros(2, 32, dtype=torch.int64)])
def test_quantize_refuses_what_has_no_blocks(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="multiple of 32 columns"):
        quantize_q4(weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e7])
def test_quantize_refuses_what_float16_cannot_hold(value: float) -> None:
    weights = torch.ones(2, 64)
    weights[1, 40] = value
    with pytest.raises(ValueError, match="NaN, infinity"):
        quantize_q4(weights)


def test_write_and_read(tmp_path: Path) -> None:
    blocks = random_blocks(3, 64)
    half, single = torch.randn(4).half(), torch.randn(2, 3)
    path = tmp_path / "骆驼.safetensors"
    write_packed(path, {"word.weight": blocks, "bias": half, "层.weight": single})
    tensors = read_packed(path)
    assert set(tensors) == {"word.weight", "bias", "层.weight"}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert torch.equal(tensors["word.weight"], blocks.dequantize())
    assert torch.equal(tensors["bias"], half.float())
    assert torch.equal(tensors["层.weight"], single)
    entries = load_file(path)
    assert torch.equal(entries["word.weight.q4"], blocks.nibbles)
    assert torch.equal(entries["word.weight.scale"], blocks.scales)
    assert [file.name for file in tmp_path.iterdir()] == ["骆驼.safetensors"]


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    tensors = {"word.weight": random_blocks(3, 64), "bias": torch.ones(4)}
    for index in range(8):  # safetensors alone shuffles its metadata about every second time
        write_packed(tmp_path / str(index), tensors)
    assert len({(tmp_path / str(index)).read_bytes() for index in range(8)}) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_other_users_can_read_the_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_packed(tmp_path / "packed.safetensors", {"bias": torch.ones(4)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "packed.safetensors").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "packed.safetensors"
    write_packed(path, {"bias": torch.ones(4)})
    write_bytes = Path.write_bytes

    def half_then_full(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_then_full)
    with pytest.raises(OSError, match="No space left"):
        write_packed(path, {"bias": torch.zeros(4)})
    assert [file.name for file in tmp_path.iterdir()] == ["packed.safetensors"]
    assert torch.equal(read_packed(path)["bias"], torch.ones(4))


@pytest.mark.parametrize("name", ["word.q4", "word.scale", "word.q8", "word.scale8"])
def test_names_that_mark_parts_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="rename it"):
        write_packed(tmp_path / "packed.safetensors", {name: torch.ones(4)})
    assert not list(tmp_path.iterdir())


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'bias' is torch.bfloat16"):
        write_packed(tmp_path / "packed.safetensors", {"bias": torch.ones(4).bfloat16()})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="no packed weight file"):
        read_packed(tmp_path / "packed.safetensors")


def test_a_file_truncated_anywhere(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_packed(whole, {"word.weight": random_blocks(3, 64), "bias": torch.ones(4)})
    data = whole.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length in (0, 7, 8, 50, header, header + 1, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ModelFormatError, match="truncated or is no safetensors file"):
            read_packed(tmp_path / "cut")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("骆驼会在沙漠里走很久。" * 20, encoding="utf-8")
    with pytest.raises(ModelFormatError, match="no safetensors file"):
        read_packed(tmp_path / "notes.safetensors")
    save_file({"bias": torch.ones(4)}, tmp_path / "plain.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"its format is 'pt'.*model\.safetensors"):
        read_packed(tmp_path / "plain.safetensors")
    save_file({"bias": torch.ones(4)}, tmp_path / "bare.safetensors")
    with pytest.raises(ModelFormatError, match="its format is None"):
        read_packed(tmp_path / "bare.safetensors")


def test_another_version(tmp_path: Path) -> None:
    save_file({"bias": torch.ones(4)}, tmp_path / "new", metadata=METADATA | {"version": "3"})
    with pytest.raises(ModelFormatError, match=r"version '3'; this release reads '1' and '2'.*pip install"):
        read_packed(tmp_path / "new")


@pytest.mark.parametrize(("kept", "missing"), [("q4", "scale"), ("scale", "q4")])
def test_half_of_a_pair(tmp_path: Path, kept: str, missing: str) -> None:
    blocks = random_blocks(3, 64)
    part = blocks.nibbles if kept == "q4" else blocks.scales
    save_file({f"word.weight.{kept}": part}, tmp_path / "half", metadata=METADATA)
    with pytest.raises(ModelFormatError, match=rf"'word\.weight\.{kept}' but not 'word\.weight\.{missing}'"):
        read_packed(tmp_path / "half")


def test_a_pair_that_does_not_fit(tmp_path: Path) -> None:
    entries = {"word.weight.q4": random_blocks(3, 64).nibbles, "word.weight.scale": random_blocks(3, 32).scales}
    save_file(entries, tmp_path / "pair", metadata=METADATA)
    with pytest.raises(ModelFormatError, match=r"'word\.weight' are damaged.*\(3, 32\) and \(3, 1\)"):
        read_packed(tmp_path / "pair")


def test_the_header_is_plain_safetensors(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed", {"word.weight": random_blocks(3, 64)})
    data = (tmp_path / "packed").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == METADATA
    assert header["word.weight.q4"]["shape"] == [3, 32]


def test_eight_bits_dequantize_to_level_times_scale() -> None:
    generator = torch.Generator().manual_seed(4)
    levels = torch.randint(-128, 128, (3, 96), generator=generator, dtype=torch.int8)
    scales = torch.randn(3, 3, generator=generator).half()
    values = EightBitTensor(levels, scales).dequantize()
    assert values.dtype == torch.float32
    for row in range(3):
        for column in range(96):
            scale = np.float32(scales[row, column // 32].item())
            assert values[row, column].item() == np.float32(levels[row, column].item()) * scale


@pytest.mark.parametrize(
    ("levels", "scales"),
    [
        (torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(2, 1).half()),
        (torch.zeros(2, 32, dtype=torch.int8), torch.zeros(2, 1)),
        (torch.zeros(2, 32, dtype=torch.int8), torch.zeros(2, 2).half()),
        (torch.zeros(2, 32, dtype=torch.int8), torch.zeros(3, 1).half()),
        (torch.zeros(32, dtype=torch.int8), torch.zeros(1).half()),
    ],
)
def test_eight_bit_parts_that_do_not_belong_together(levels: torch.Tensor, scales: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be int8|do not belong together"):
        EightBitTensor(levels, scales)


@pytest.mark.parametrize("magnitude", [0.05, 1.0, 3000.0])
def test_eight_bits_take_the_nearest_level(magnitude: float) -> None:
    weights = torch.randn(5, 96, generator=torch.Generator().manual_seed(5)) * magnitude
    blocks = quantize_q8(weights)
    values = blocks.dequantize()
    for row in range(5):
        for column in range(96):
            scale, weight = blocks.scales[row, column // 32].item(), weights[row, column].item()
            best = min(abs(level * scale - weight) for level in range(-127, 128))
            error = abs(values[row, column].item() - weight)
            assert error <= best + 1e-6 * magnitude
            assert error <= scale * 0.57  # half a step, and 127 times what float16 takes from the scale


def test_eight_bits_lose_a_tenth_of_what_four_bits_lose() -> None:
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(6))
    four, eight = (quantize(weights).dequantize() - weights for quantize in (quantize_q4, quantize_q8))
    assert 0 < eight.square().mean().sqrt() < four.square().mean().sqrt() / 10


def test_eight_bits_meet_zeros_and_keep_their_signs() -> None:
    weights = torch.zeros(2, 64)
    weights[0, 5], weights[0, 40], weights[1, 63] = 127.0, -254.0, -127.0
    assert torch.equal(quantize_q8(weights).dequantize(), weights)


def test_eight_bits_take_views() -> None:
    weights = torch.randn(64, 6, generator=torch.Generator().manual_seed(7)).half()
    assert torch.equal(quantize_q8(weights.T).dequantize(), quantize_q8(weights.T.contiguous().float()).dequantize())


@pytest.mark.parametrize("weights", [torch.zeros(3, 33), torch.zeros(32), torch.zeros(2, 32, dtype=torch.int64)])
def test_eight_bits_refuse_what_has_no_blocks(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="multiple of 32 columns"):
        quantize_q8(weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e7])
def test_eight_bits_refuse_what_float16_cannot_hold(value: float) -> None:
    weights = torch.ones(2, 64)
    weights[1, 40] = value
    with pytest.raises(ValueError, match=r"NaN, infinity.*8-bit"):
        quantize_q8(weights)


def test_four_and_eight_bits_in_one_file(tmp_path: Path) -> None:
    eight = quantize_q8(torch.randn(3, 64, generator=torch.Generator().manual_seed(8)))
    four, bias = random_blocks(2, 32), torch.ones(4).half()
    path = tmp_path / "packed.safetensors"
    write_packed(path, {"a": eight, "b": four, "bias": bias})
    tensors = read_packed(path)
    assert set(tensors) == {"a", "b", "bias"}
    assert torch.equal(tensors["a"], eight.dequantize())
    assert torch.equal(tensors["b"], four.dequantize())
    entries = load_file(path)
    assert torch.equal(entries["a.q8"], eight.levels)
    assert torch.equal(entries["a.scale8"], eight.scales)


@pytest.mark.parametrize(("eight", "version"), [(False, "1"), (True, "2")])
def test_only_files_with_eight_bits_have_the_newer_version(tmp_path: Path, eight: bool, version: str) -> None:
    blocks = quantize_q8(torch.ones(2, 32)) if eight else quantize_q4(torch.ones(2, 32))
    write_packed(tmp_path / "packed", {"a": blocks})
    with safe_open(tmp_path / "packed", framework="pt") as file:
        assert file.metadata() == METADATA | {"version": version}


@pytest.mark.parametrize(("kept", "missing"), [("q8", "scale8"), ("scale8", "q8")])
def test_half_of_an_eight_bit_pair(tmp_path: Path, kept: str, missing: str) -> None:
    blocks = quantize_q8(torch.ones(2, 32))
    part = blocks.levels if kept == "q8" else blocks.scales
    save_file({f"word.weight.{kept}": part}, tmp_path / "half", metadata=METADATA | {"version": "2"})
    with pytest.raises(ModelFormatError, match=rf"'word\.weight\.{kept}' but not 'word\.weight\.{missing}'"):
        read_packed(tmp_path / "half")


def test_an_eight_bit_pair_that_does_not_fit(tmp_path: Path) -> None:
    entries = {"a.q8": torch.zeros(3, 64, dtype=torch.int8), "a.scale8": torch.zeros(3, 1).half()}
    save_file(entries, tmp_path / "pair", metadata=METADATA | {"version": "2"})
    with pytest.raises(ModelFormatError, match=r"'a' are damaged.*\(3, 64\) and \(3, 1\)"):
        read_packed(tmp_path / "pair")
