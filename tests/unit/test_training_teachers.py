"""Teachers: a model here, vectors in files, and the line of text that names one."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training import teachers
from luotuo_integrations.training.openai_teacher import OpenAICompatibleTeacher
from luotuo_integrations.training.teacher_calls import RateLimiter, cut_text, estimated_tokens, request_batches
from luotuo_integrations.training.teachers import (
    Estimate,
    FileTeacher,
    LocalTeacher,
    TeacherError,
    embed,
    open_teacher,
)

TEXTS = ["试用期员工可以请年假吗", "出差住宿标准", "今天天气很好", "你是谁"]
VECTORS = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


def write_lines(path: Path, items: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def write_texts(folder: Path) -> None:
    write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])


class ScriptedTeacher:
    """Gives the batches that it was made with."""

    name = "scripted"
    licence = "CC0-1.0"
    distinguishes_kinds = True

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def estimate(self, texts: Sequence[str]) -> Estimate:
        return Estimate(len(texts), len(self.batches), 0, 0.0)

    def embed_batches(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[list[int], Vectors]]:
        for positions in self.batches:
            yield positions, VECTORS[positions]


def test_embed_puts_batches_in_order() -> None:
    assert np.array_equal(embed(ScriptedTeacher([[3, 0], [2], [1]]), TEXTS, "query"), VECTORS)


@pytest.mark.parametrize("batches", [[[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2], [3, 3]], []])
def test_embed_refuses_a_teacher_that_leaves_out_or_repeats(batches: list[list[int]]) -> None:
    with pytest.raises(TeacherError, match="scripted gave"):
        embed(ScriptedTeacher(batches), TEXTS, "query")


def test_embed_of_no_texts_is_empty() -> None:
    assert embed(ScriptedTeacher([]), [], "passage").shape == (0, 0)


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_a_local_teacher_gives_the_encoders_vectors(
    tiny_folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "_CHUNK", 3)
    teacher = open_teacher(tiny_folder, device="cpu")
    assert isinstance(teacher, LocalTeacher)
    assert [positions for positions, _ in teacher.embed_batches(TEXTS, kind)] == [[0, 1, 2], [3]]
    expected = Encoder(tiny_folder, device="cpu").encode(TEXTS, kind)
    assert np.allclose(embed(teacher, TEXTS, kind), expected, atol=1e-6)
    assert teacher.estimate(TEXTS).cost == 0.0


def test_a_local_teachers_name_tells_what_decides_its_vectors(tiny_folder: Path) -> None:
    names = {
        open_teacher(tiny_folder, device="cpu").name,
        open_teacher(tiny_folder, device="cpu", dimensions=8).name,
        open_teacher(tiny_folder, device="cpu", prompts={"query": "问题："}).name,
        open_teacher(tiny_folder, device="cpu", prompts={"passage": "段落："}).name,
    }
    assert len(names) == 4
    assert open_teacher(tiny_folder, device="cpu").name in names
    assert embed(open_teacher(tiny_folder, device="cpu", dimensions=8), TEXTS, "query").shape == (4, 8)


def test_the_bundled_models_licence_is_known() -> None:
    teacher = open_teacher("luotuo-mini", device="cpu")
    assert teacher.licence == "MIT"
    assert teacher.name.startswith("local:luotuo-mini;")


def test_vectors_in_a_jsonl_file_are_looked_up_by_text(tmp_path: Path) -> None:
    items = [{"text": text, "embedding": row.tolist()} for text, row in zip(TEXTS, VECTORS, strict=True)]
    teacher = open_teacher(write_lines(tmp_path / "v.jsonl", [*items, items[0]]))
    assert np.array_equal(embed(teacher, [TEXTS[2], TEXTS[0], TEXTS[2]], "query"), VECTORS[[2, 0, 2]])
    assert teacher.estimate(TEXTS) == Estimate(4, 0, 0, 0.0)


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_in_an_array_file_are_looked_up_by_text(tmp_path: Path, name: str, dtype: type[np.floating]) -> None:
    write_texts(tmp_path)
    path = tmp_path / name
    array: np.ndarray[tuple[int, ...], np.dtype[np.floating]] = VECTORS.astype(dtype)
    if name.endswith(".npy"):
        np.save(path, array)
    else:
        save_file({"vectors": array}, path)
    for spec in (path, tmp_path):
        found = embed(open_teacher(spec), TEXTS[::-1], "passage")
        assert found.dtype == np.float32
        assert np.array_equal(found, VECTORS[::-1])


def test_a_file_teachers_name_follows_its_content(tmp_path: Path) -> None:
    def named(vectors: Vectors) -> str:
        items = [{"text": text, "embedding": row.tolist()} for text, row in zip(TEXTS, vectors, strict=True)]
        return FileTeacher(write_lines(tmp_path / "v.jsonl", items)).name

    assert named(VECTORS) == named(VECTORS)
    assert named(VECTORS) != named(VECTORS + 1)


def test_a_file_teacher_names_how_many_texts_are_missing_and_the_first(tmp_path: Path) -> None:
    teacher = FileTeacher(write_lines(tmp_path / "v.jsonl", [{"text": TEXTS[0], "embedding": [1.0, 2.0]}]))
    with pytest.raises(TeacherError, match=f"2 of 3 texts, first '{TEXTS[2]}'"):
        teacher.embed_batches([TEXTS[0], TEXTS[2], TEXTS[1]], "query")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "甲", "embedding": [1, 2]}, {"text": "乙", "embedding": [1]}], "line 2.*2 numbers"),
        ([{"text": "甲", "embedding": "abc"}], "line 1"),
        ([{"text": "甲"}], "line 1"),
        ([{"embedding": [1, 2]}], "line 1.*text"),
        ([["甲", [1, 2]]], "line 1.*text"),
        ([{"text": "甲", "embedding": [1, 2]}, {"text": "甲", "embedding": [2, 1]}], "two different vectors"),
        ([], "shape"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        FileTeacher(write_lines(tmp_path / "v.jsonl", lines))


@pytest.mark.parametrize("row", [[float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_a_file_teacher_refuses_vectors_that_are_none(tmp_path: Path, row: list[float]) -> None:
    items = [{"text": "甲", "embedding": [1.0, 2.0]}, {"text": "乙", "embedding": row}]
    teacher = FileTeacher(write_lines(tmp_path / "v.jsonl", items))
    assert embed(teacher, ["甲"], "query").tolist() == [[1.0, 2.0]]
    with pytest.raises(TeacherError, match="乙"):
        embed(teacher, ["甲", "乙"], "query")


def test_array_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, VECTORS)
    with pytest.raises(TeacherError, match=r"texts\.jsonl"):
        FileTeacher(path)
    write_texts(tmp_path)
    np.save(path, VECTORS[:3])
    with pytest.raises(TeacherError, match="4 texts"):
        FileTeacher(path)
    np.save(path, VECTORS.astype(np.int64))
    with pytest.raises(TeacherError, match="int64"):
        FileTeacher(path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(TeacherError, match="cannot be read"):
        FileTeacher(path)
    save_file({"other": VECTORS}, tmp_path / "v.safetensors")
    with pytest.raises(TeacherError, match="no tensor 'vectors'"):
        FileTeacher(tmp_path / "v.safetensors")
    with pytest.raises(TeacherError, match=r"v\.npy, v\.safetensors"):
        FileTeacher(tmp_path)


@pytest.mark.parametrize("spec", ["no such model", "cohere:embed", "missing.jsonl", "missing.npy", ""])
def test_a_bad_spec_is_told_what_is_allowed(spec: str) -> None:
    with pytest.raises(TeacherError) as caught:
        open_teacher(spec)
    message = str(caught.value)
    assert "embedding" in message
    if "." not in spec:
        assert all(form in message for form in ("openai:MODEL", "qianfan:MODEL", "zhipu:MODEL", ".safetensors"))


@pytest.mark.parametrize(
    ("spec", "name", "variable"),
    [
        ("openai:text-embedding-3-small", "openai:text-embedding-3-small", "OPENAI_API_KEY"),
        ("qianfan:bge-large-zh", "qianfan:bge-large-zh", "QIANFAN_API_KEY"),
        ("zhipu:embedding-3", "zhipu:embedding-3", "ZHIPUAI_API_KEY"),
    ],
)
def test_providers_open_without_a_key_and_ask_for_it_before_a_call(
    spec: str, name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    teacher = open_teacher(spec)
    assert isinstance(teacher, OpenAICompatibleTeacher)
    assert teacher.name == name
    assert teacher.estimate(TEXTS).texts == 4
    with pytest.raises(TeacherError, match=variable):
        teacher.embed_batches(TEXTS, "passage")


def test_arguments_without_meaning_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    path = write_lines(tmp_path / "v.jsonl", [{"text": "甲", "embedding": [1.0, 2.0]}])
    with pytest.raises(ValueError, match="base_url"):
        open_teacher(tiny_folder, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="dimensions"):
        open_teacher(path, dimensions=2)
    with pytest.raises(ValueError, match="prompts"):
        open_teacher(path, prompts={"query": "问题："})
    with pytest.raises(ValueError, match="model"):
        open_teacher("openai:")


def test_texts_must_be_a_list_of_strings(tmp_path: Path) -> None:
    teacher = FileTeacher(write_lines(tmp_path / "v.jsonl", [{"text": "甲", "embedding": [1.0, 2.0]}]))
    with pytest.raises(TypeError, match="for one text"):
        teacher.embed_batches("甲", "query")
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        teacher.embed_batches(["甲", None], "query")  # type: ignore[list-item]


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abc", 1), ("abcd", 2), ("你好", 3), ("你好 ok", 4)])
def test_tokens_are_estimated_by_the_stated_rule(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_a_text_is_cut_to_the_longest_beginning_that_fits() -> None:
    text = "年假十五天ab" * 20
    for limit in (1, 2, 7, 50, 10_000):
        fitting = [n for n in range(1, len(text) + 1) if estimated_tokens(text[:n]) <= limit] or [1]
        assert cut_text(text, limit) == text[: max(fitting)]


def test_batches_keep_order_and_limits() -> None:
    tokens = [5, 5, 5, 30, 1, 1, 1, 1]
    assert list(request_batches(tokens, 3, 12)) == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert list(request_batches([], 3, 12)) == []


def test_the_limiter_spaces_requests_and_tokens() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    limiter = RateLimiter(60, 600, clock=lambda: now[0])
    starts = []
    for tokens in (5, 30, 5, 5):
        limiter.wait(tokens, sleep)
        starts.append(now[0])
    assert starts == [0.0, 1.0, 4.0, 5.0]  # a request takes a second, thirty tokens take three
    assert limiter.duration(10, 50) == 10.0


def test_an_estimate_reads_well() -> None:
    assert str(Estimate(3, 2, 90, 0.5)) == "3 texts, 2 requests, about 90 tokens, 0.5000 USD"
    assert str(Estimate(3, 2, 90, None, seconds=7)).endswith("unknown cost, at least 7 s")


def test_no_teacher_is_loaded_for_a_bad_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(TeacherError):
        open_teacher("./no/such/folder")
    assert "Downloading" not in caplog.text
