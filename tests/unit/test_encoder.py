import json
import logging
import shutil
import threading
import time
from collections import UserList
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import ALPHABET
from safetensors.torch import load_file, save_file

import luotuo_integrations.encoder as encoder_module
from luotuo_integrations.batching import CPU_BUDGET
from luotuo_integrations.devices import choose_device, choose_dtype, is_out_of_memory
from luotuo_integrations.encoder import Encoder

TEXTS = [
    "试用期员工可以请年假吗",
    "出差",
    "",
    "出差住宿标准每晚不超过四百五十元，发票需要什么材料？\n在哪里报销",
    " ",
    "今天天气很好",
    "a",
    "你是谁",
    *(ALPHABET[start : start + length] for start in range(0, 30, 3) for length in (1, 4, 17)),
]


@pytest.fixture
def encoder(tiny_folder: Path) -> Encoder:
    return Encoder(tiny_folder, device="cpu")


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "模型"))


def watch_forward(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, before: Callable[[tuple[int, int]], None]
) -> list[tuple[int, int]]:
    """Call ``before`` ahead of every forward pass; return the growing list of their (n, T)."""
    shapes: list[tuple[int, int]] = []
    forward = encoder.model.forward

    def watched(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
        before(shape)
        shapes.append(shape)
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(encoder.model, "forward", watched)
    return shapes


# -- the same vector, whatever stands beside the text -----------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 20, 77, 1000, 10**7])
def test_vectors_do_not_depend_on_the_batch(tiny_folder: Path, budget: int) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_tokens_per_batch=budget)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS + TEXTS[:3])[: len(TEXTS)], alone, atol=1e-5)


def test_batches_keep_to_the_budget(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_tokens_per_batch=60)
    shapes = watch_forward(encoder, monkeypatch, lambda _: None)
    encoder.encode(TEXTS)
    assert sum(count for count, _ in shapes) == len(TEXTS)
    assert all(count == 1 or count * longest <= 60 for count, longest in shapes)
    assert len(shapes) < len(TEXTS) / 2


@pytest.mark.parametrize(("window", "chunk"), [(1, 1), (7, 3), (1000, 5)])
def test_windows_and_chunks_leave_no_trace(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, window: int, chunk: int
) -> None:
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr(encoder_module, "WINDOW", window)
    monkeypatch.setattr(encoder_module, "CHUNK", chunk)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(iter(TEXTS)), expected, atol=1e-5)


def test_vectors_are_float32_rows_of_length_one(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 24) == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert vectors.flags.writeable


def test_queries_have_their_prompt(encoder: Encoder) -> None:
    prompted = encoder.encode(["query: " + text for text in TEXTS], "passage")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), prompted, atol=1e-6)
    assert not np.allclose(encoder.encode(TEXTS, "passage"), prompted, atol=1e-2)


# -- any iterable, any length -----------------------------------------------------------------------------------------


def test_every_ordered_iterable_of_strings_is_taken(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    for texts in (tuple(TEXTS), iter(TEXTS), UserList(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object)):
        np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(dict.fromkeys(range(3), "出差").values()), expected[[1, 1, 1]], atol=1e-6)


def test_an_iterator_is_never_listed(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 10)
    given = 0
    lead: list[int] = []
    embedded = 0

    def endless() -> Iterator[str]:
        nonlocal given
        for number in range(100):
            given += 1
            yield f"第{number}条"

    def note(shape: tuple[int, int]) -> None:
        nonlocal embedded
        lead.append(given - embedded)
        embedded += shape[0]

    watch_forward(encoder, monkeypatch, note)
    vectors = encoder.encode(endless())
    assert vectors.shape == (100, 24)
    assert given == 100
    assert max(lead) <= 10  # never more than one window ahead of the model
    np.testing.assert_allclose(vectors, encoder.encode([f"第{number}条" for number in range(100)]), atol=1e-5)


def test_long_texts_close_a_window_before_it_is_full(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW_CHARACTERS", 250)
    monkeypatch.setattr(encoder_module, "CHUNK_CHARACTERS", 90)
    sizes: list[int] = []
    encode_window = encoder._encode_window

    def watched(texts: list[str], *rest: Any) -> int:
        sizes.append(len(texts))
        return encode_window(texts, *rest)

    monkeypatch.setattr(encoder, "_encode_window", watched)
    vectors = encoder.encode(iter(["试" * 100] * 7))
    assert sizes == [3, 3, 1]
    np.testing.assert_allclose(vectors, encoder.encode(["试" * 100])[[0] * 7], atol=1e-5)


@pytest.mark.parametrize("nothing", [[], (), iter([]), np.array([], dtype=str)])
def test_no_texts_give_no_rows(encoder: Encoder, nothing: Any) -> None:
    vectors = encoder.encode(nothing)
    assert vectors.shape == (0, 24)
    assert vectors.dtype == np.float32


def test_empty_and_blank_texts_are_texts(encoder: Encoder) -> None:
    vectors = encoder.encode(["", " ", "\n", "\u3000", "出差"])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_lone_surrogates_become_replacement_characters(encoder: Encoder) -> None:
    np.testing.assert_allclose(
        encoder.encode(["出\ud800差", "年\udfff", "好"]), encoder.encode(["出\ufffd差", "年\ufffd", "好"]), atol=1e-6
    )


# -- out --------------------------------------------------------------------------------------------------------------


def test_out_may_be_a_memory_map(encoder: Encoder, tmp_path: Path) -> None:
    out = np.memmap(tmp_path / "向量.f32", np.float32, "w+", shape=(len(TEXTS), 24))
    assert encoder.encode(TEXTS, out=out) is out
    out.flush()
    written = np.fromfile(tmp_path / "向量.f32", np.float32).reshape(-1, 24)
    np.testing.assert_allclose(written, encoder.encode(TEXTS), atol=1e-6)


def test_out_may_be_a_part_of_another_array(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 7)
    whole = np.zeros((2 * len(TEXTS), 30), np.float32)
    encoder.encode(iter(TEXTS), out=whole[::2, :24])
    np.testing.assert_allclose(whole[::2, :24], encoder.encode(TEXTS), atol=1e-6)
    assert not whole[1::2].any()
    assert not whole[:, 24:].any()


def read_only() -> npt.NDArray[np.float32]:
    array = np.zeros((2, 24), np.float32)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((2, 23), np.float32), r"float32 \(2, 23\).*float32 array \(2, 24\)"),
        (np.zeros((3, 24), np.float32), r"3 rows for 2 texts.*\(2, 24\)"),
        (np.zeros((2, 24)), r"float64 \(2, 24\)"),
        (np.zeros((2, 24), ">f4"), ">f4"),
        (np.zeros(48, np.float32), r"\(48,\)"),
        (read_only(), "read-only"),
    ],
)
def test_an_out_that_does_not_fit_is_refused_before_any_work(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, out: npt.NDArray[Any], message: str
) -> None:
    shapes = watch_forward(encoder, monkeypatch, lambda _: None)
    with pytest.raises(ValueError, match=message):
        encoder.encode(["一", "二"], out=out)
    assert shapes == []


def test_an_out_that_is_no_array_is_refused(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match=r"out is list; it must be a writeable float32 array \(N, 24\)"):
        encoder.encode(iter(["一"]), out=[[0.0] * 24])  # type: ignore[arg-type]


def test_an_iterator_must_fill_out_exactly(encoder: Encoder) -> None:
    out = np.zeros((5, 24), np.float32)
    with pytest.raises(ValueError, match="out has 5 rows, but 3 texts came; the first 3 rows are filled"):
        encoder.encode(iter(TEXTS[:3]), out=out)
    np.testing.assert_allclose(out[:3], encoder.encode(TEXTS[:3]), atol=1e-6)
    with pytest.raises(ValueError, match="5 rows, but more texts"):
        encoder.encode(iter(TEXTS[:6]), out=out)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("试用期", r"str: '试用期'; give a list of strings"),
        (b"abc", "bytes"),
        (bytearray(b"abc"), "bytearray"),
        (None, "texts is None"),
        (7, "int: '7'"),
        ({"a": "b"}, "dict, which has no rows in order"),
        ({"a", "b"}, "set"),
        (["好", None], r"texts\[1\] is None"),
        (["好", "好", 3.5], r"texts\[2\] is float: '3\.5'"),
        ([float("nan")], r"texts\[0\] is float: 'nan'"),
        (["好", b"x"], r"texts\[1\] is bytes"),
        ([["好"]], r"texts\[0\] is list"),
        (np.array(["好", None], dtype=object), r"texts\[1\] is None"),
    ],
)
def test_what_is_no_text_is_refused_before_any_work(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, texts: Any, message: str
) -> None:
    shapes = watch_forward(encoder, monkeypatch, lambda _: None)
    for call in (encoder.encode, encoder.count_tokens):
        with pytest.raises(TypeError, match=message):
            call(texts)
    assert shapes == []


def test_in_an_iterator_the_index_counts_from_its_start(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 4)
    with pytest.raises(TypeError, match=r"texts\[9\] is int: '9'"):
        encoder.encode(iter(["好"] * 9 + [9]))  # type: ignore[list-item]


def test_an_unknown_kind_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="kind='document' is unknown; use 'query' or 'passage'"):
        encoder.encode(["好"], "document")  # type: ignore[arg-type]


def test_a_vector_that_is_not_finite_is_refused_by_index(encoder: Encoder) -> None:
    weight = encoder.model.backbone.embeddings.word_embeddings.weight
    weight.data[encoder.tokenizer.encode(["超"])[0]] = float("nan")
    assert encoder.encode(["好", "出差"]).shape == (2, 24)
    with pytest.raises(ValueError, match=r"texts\[2\]: its weights are damaged"):
        encoder.encode(["好", "出差", "超过", "年"])
    out = np.full((4, 24), 7, np.float32)
    with pytest.raises(ValueError, match=r"texts\[2\]"):
        encoder.encode(iter(["好", "出差", "超过", "年"]), out=out)
    assert np.isfinite(out).all()  # a bad row is never written


def test_in_half_precision_the_remedy_is_float32(copied: Path) -> None:
    weights = load_file(copied / "2_Dense" / "model.safetensors")
    save_file({name: value * 1e5 for name, value in weights.items()}, copied / "2_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match=r"torch\.float16.*texts\[0\]: try dtype='float32'"):
        Encoder(copied, device="cpu", dtype="float16").encode(["出差"])
    assert np.isfinite(Encoder(copied, device="cpu").encode(["出差"])).all()


# -- lengths ----------------------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_exactly_and_counted_once(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    long = "试用期员工可以请年假" * 10_000
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode([long, "出差", "年" + long])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 texts are longer than max_length=128 tokens and were cut"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # 126 characters and two special tokens fit exactly
        np.testing.assert_allclose(vectors[0], encoder.encode([long[:126]])[0], atol=1e-6)
    assert not caplog.records
    assert not np.allclose(vectors[0], encoder.encode([long[:125]])[0], atol=1e-4)


def test_cut_texts_are_counted_over_windows(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 2)
    with caplog.at_level(logging.WARNING):
        encoder.encode(iter(["年" * 127, "年" * 126] * 3))
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 6 texts are longer than max_length=128 tokens and were cut"
    ]


def test_max_length_counts_prompt_and_special_tokens(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_length=16)
    shapes = watch_forward(encoder, monkeypatch, lambda _: None)
    query = encoder.encode(["年" * 50], "query")
    assert shapes == [(1, 16)]
    np.testing.assert_allclose(query, encoder.encode(["query: " + "年" * 7]), atol=1e-6)


@pytest.mark.parametrize("length", [0, 2, 129, -1])
def test_a_max_length_out_of_range_is_refused(tiny_folder: Path, length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length={length} is out of range: this model takes 3 to 128 tokens"):
        Encoder(tiny_folder, device="cpu", max_length=length)


def test_the_shortest_max_length_keeps_one_token(tiny_folder: Path) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_length=3)
    np.testing.assert_allclose(encoder.encode(["年假"]), encoder.encode(["年"]), atol=1e-6)


def test_count_tokens_leaves_out_prompt_and_special_tokens(encoder: Encoder) -> None:
    assert encoder.count_tokens(["年假", "", "年" * 5000]) == [2, 0, 5000]
    assert encoder.count_tokens([]) == []


# -- dimensions and normalisation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 5, 24])
def test_dimensions_are_cut_and_normalised_again(tiny_folder: Path, encoder: Encoder, dimensions: int) -> None:
    short = Encoder(tiny_folder, device="cpu", dimensions=dimensions)
    head = encoder.encode(TEXTS)[:, :dimensions]
    assert short.dimension == dimensions
    np.testing.assert_allclose(
        short.encode(TEXTS), head / np.linalg.norm(head, axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dimensions", [0, 25, -3])
def test_dimensions_out_of_range_are_refused(tiny_folder: Path, dimensions: int) -> None:
    with pytest.raises(ValueError, match=rf"dimensions={dimensions} is out of range.*24 numbers"):
        Encoder(tiny_folder, device="cpu", dimensions=dimensions)


def test_without_normalisation_the_lengths_stay(tiny_folder: Path, encoder: Encoder) -> None:
    raw = Encoder(tiny_folder, device="cpu", normalize=False).encode(TEXTS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert lengths.std() > 0.01
    np.testing.assert_allclose(raw / lengths, encoder.encode(TEXTS), atol=1e-5)


def test_prompts_can_be_chosen(tiny_folder: Path, encoder: Encoder) -> None:
    own = Encoder(tiny_folder, device="cpu", query_prompt="", passage_prompt="材料")
    np.testing.assert_allclose(own.encode(TEXTS, "query"), encoder.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(own.encode(TEXTS), encoder.encode(["材料" + text for text in TEXTS]), atol=1e-6)


# -- devices and types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.05), ("float16", 0.01)])
def test_every_dtype_is_close_to_float32(tiny_folder: Path, encoder: Encoder, dtype: str, tolerance: float) -> None:
    other = Encoder(tiny_folder, device="cpu", dtype=dtype)
    vectors = other.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert other.model.backbone.embeddings.word_embeddings.weight.dtype == getattr(torch, dtype)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=tolerance)


@pytest.mark.parametrize("dtype", ["int8", "fp16", torch.float16])
def test_an_unknown_dtype_is_refused(tiny_folder: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="is unknown; use 'auto', 'float32', 'bfloat16', 'float16'"):
        Encoder(tiny_folder, device="cpu", dtype=dtype)


def test_devices_that_are_not_there_are_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, message in (
        ("cuda", "torch sees 0 CUDA devices here; use device='cpu'"),
        ("cuda:3", "device='cuda:3'"),
        ("mps", "no Apple GPU"),
        ("gpu", "device='gpu' is unknown; use 'cpu', 'cuda'"),
        ("", "device='' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            Encoder(tiny_folder, device=name)


def test_the_best_device_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=cuda: found)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda found=mps: found)
        assert choose_device(None).type == expected


def test_auto_is_half_precision_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=supported: found)
        assert choose_dtype("auto", torch.device("cuda")) == expected


def test_a_budget_below_one_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens_per_batch=0 must be at least 1"):
        Encoder(tiny_folder, max_tokens_per_batch=0)


# -- out of memory ----------------------------------------------------------------------------------------------------


def test_out_of_memory_is_answered_with_smaller_batches(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = encoder.encode(TEXTS)

    def small_device(shape: tuple[int, int]) -> None:
        if shape[0] * shape[1] > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    shapes = watch_forward(encoder, monkeypatch, small_device)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert all(count * longest <= 100 for count, longest in shapes)
    assert "Out of memory on cpu: max_tokens_per_batch is now" in caplog.text
    lowered = encoder.max_tokens_per_batch
    assert lowered <= 200
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # what was learned is kept
        encoder.encode(TEXTS)
    assert len(caplog.records) <= 1
    assert encoder.max_tokens_per_batch <= lowered


def test_one_text_that_does_not_fit_is_a_clear_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny_device(shape: tuple[int, int]) -> None:
        if shape[1] > 50:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    watch_forward(encoder, monkeypatch, tiny_device)
    with pytest.raises(MemoryError, match="one text of 128 tokens; lower max_length"):
        encoder.encode(["出差", "年" * 200])
    assert encoder.encode(["出差"]).shape == (1, 24)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: tuple[int, int]) -> None:
        raise RuntimeError("device-side assert triggered")

    watch_forward(encoder, monkeypatch, broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        encoder.encode(TEXTS)
    assert encoder.max_tokens_per_batch == CPU_BUDGET
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))


# -- threads, interruption, progress ----------------------------------------------------------------------------------


def test_threads_give_the_same_as_one_after_the_other(tiny_folder: Path) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_tokens_per_batch=100)
    groups = [[f"第{number}条 {text}" for text in TEXTS] for number in range(6)]
    expected = [encoder.encode(group) for group in groups]
    results: dict[int, npt.NDArray[np.float32]] = {}

    def work(number: int) -> None:
        results[number] = encoder.encode(groups[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        np.testing.assert_allclose(results[number], expected[number], atol=1e-5)


def test_one_forward_pass_runs_at_a_time(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_tokens_per_batch=50)
    forward = encoder.model.forward
    inside, most = 0, 0

    def counted(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)  # lets other threads come
        vectors = forward(input_ids, attention_mask)
        inside -= 1
        return vectors

    monkeypatch.setattr(encoder.model, "forward", counted)
    threads = [threading.Thread(target=encoder.encode, args=(TEXTS,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_an_interruption_keeps_the_rows_already_written(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_folder, device="cpu", max_tokens_per_batch=40)
    expected = encoder.encode(TEXTS)
    out = np.full((len(TEXTS), 24), np.nan, np.float32)
    passes = 0

    def interrupt(_: tuple[int, int]) -> None:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise KeyboardInterrupt

    shapes = watch_forward(encoder, monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(TEXTS, out=out)
    written = ~np.isnan(out).any(axis=1)
    assert written.sum() == sum(count for count, _ in shapes) > 0
    np.testing.assert_allclose(out[written], expected[written], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)  # no lock was left behind


@pytest.mark.parametrize("lazily", [True, False])
def test_a_progress_bar_changes_nothing(encoder: Encoder, capfd: pytest.CaptureFixture[str], lazily: bool) -> None:
    expected = encoder.encode(TEXTS)
    assert capfd.readouterr() == ("", "")
    vectors = encoder.encode(iter(TEXTS) if lazily else TEXTS, show_progress=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Embedding" in shown.err


def test_a_progress_bar_leaves_errors_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: tuple[int, int]) -> None:
        raise RuntimeError("broken")

    watch_forward(encoder, monkeypatch, broken)
    with pytest.raises(RuntimeError, match="broken"):
        encoder.encode(TEXTS, show_progress=True)


def test_no_gradients_are_kept(encoder: Encoder) -> None:
    encoder.encode(TEXTS)
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    assert not encoder.model.training


# -- fingerprint ------------------------------------------------------------------------------------------------------


def test_what_does_not_change_passage_vectors_does_not_change_the_fingerprint(
    tiny_folder: Path, copied: Path, encoder: Encoder
) -> None:
    assert len(encoder.fingerprint) == 32
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")  # as a clone of a repository has
    (copied / "README.md").write_text("说明")
    for same in (
        Encoder(tiny_folder, device="cpu", dtype="bfloat16", query_prompt="问：", max_tokens_per_batch=9),
        Encoder(copied, device="cpu", dimensions=24, max_length=128, passage_prompt="", normalize=True),
    ):
        assert same.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    "settings", [{"dimensions": 23}, {"max_length": 127}, {"normalize": False}, {"passage_prompt": "文"}]
)
def test_settings_that_change_passage_vectors_change_the_fingerprint(
    tiny_folder: Path, encoder: Encoder, settings: dict[str, Any]
) -> None:
    assert Encoder(tiny_folder, device="cpu", **settings).fingerprint != encoder.fingerprint


def test_files_that_change_passage_vectors_change_the_fingerprint(copied: Path) -> None:
    def fingerprint() -> str:
        return Encoder(copied, device="cpu").fingerprint

    seen = [fingerprint()]
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        weights = load_file(copied / name)
        first = sorted(weights)[0]
        weights[first].view(-1)[-1] += 1
        save_file(weights, copied / name, metadata={"format": "pt"})
        seen.append(fingerprint())
    (copied / "tokenizer.json").write_text((copied / "tokenizer.json").read_text() + " ")
    seen.append(fingerprint())
    for name, key, value in (
        ("1_Pooling/config.json", "pooling_mode", "cls"),
        ("2_Dense/config.json", "activation_function", "torch.nn.modules.activation.Tanh"),
    ):
        content = json.loads((copied / name).read_text()) | {key: value}
        (copied / name).write_text(json.dumps(content))
        seen.append(fingerprint())
    assert len(set(seen)) == 6
