import json
import logging
import math
import random
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_layouts import LAYOUTS, write_layout
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from tiny_chat_model import save_tiny_glm
from tiny_rerankers import bert_tokenizer, save_bert, save_qwen3, save_xlm_roberta
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import luotuo_integrations.cross_encoder as cross_encoder_module
from luotuo_integrations.batching import CPU_BUDGET, GPU_BUDGET
from luotuo_integrations.cross_encoder import DEFAULT_LENGTH, CrossEncoder
from luotuo_integrations.errors import ModelFormatError, ModelNotFoundError
from luotuo_integrations.rerank_models import AnswerMargin
from luotuo_integrations.rerank_prompts import qwen_prompt
from luotuo_integrations.tokenization import TextTokenizer

QUERY = "试用期可以请年假吗？"
PASSAGES = [
    "试用期员工每月有一天病假，年假从转正之日起算。",
    "",
    "出差住宿标准每晚不超过四百五十元",
    "年假",
    " ",
    "报销发票需要什么材料？\n在哪里报销",
    "《请假办法》",
    "  试用",
    "1. 今天天气很好",
    *("试用期员工可以请年假吗"[start:] for start in range(9)),
]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SAVERS: dict[str, Callable[[Path], Path]] = {
    "bert, one label": lambda folder: save_bert(folder),
    "bert, two labels": lambda folder: save_bert(folder, labels=2),
    "xlm-r, one label": lambda folder: save_xlm_roberta(folder),
    "xlm-r, two labels": lambda folder: save_xlm_roberta(folder, labels=2),
    "qwen3": lambda folder: save_qwen3(folder),
    "qwen3, head of its own": lambda folder: save_qwen3(folder, tied=False),
    "qwen3, padding on the right": lambda folder: save_qwen3(folder, padding_side="right"),
    "qwen3, classifier": lambda folder: save_qwen3(folder, classifier=True),
}


@pytest.fixture(scope="module", params=SAVERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVERS[request.param](tmp_path_factory.mktemp("rerankers") / "重排模型")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "重排模型")


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3(tmp_path_factory.mktemp("qwen") / "重排模型")


@pytest.fixture
def bert(bert_folder: Path) -> CrossEncoder:
    return CrossEncoder(bert_folder, device="cpu")


@pytest.fixture
def copied(bert_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "模型"))


def watch(
    encoder: CrossEncoder, monkeypatch: pytest.MonkeyPatch, before: Callable[[tuple[int, int]], None] = lambda _: None
) -> list[tuple[int, int]]:
    """Call ``before`` ahead of every forward pass; return the growing list of their (n, T)."""
    shapes: list[tuple[int, int]] = []
    forward = encoder.model.forward

    def watched(input_ids: Tensor, **others: Tensor) -> Tensor:
        shape = (int(input_ids.shape[0]), int(input_ids.shape[1]))
        before(shape)
        shapes.append(shape)
        return forward(input_ids, **others)

    monkeypatch.setattr(encoder.model, "forward", watched)
    return shapes


# -- the oracle: each pair alone, by transformers ---------------------------------------------------------------------


@cache
def plain(folder: Path, auto: Any) -> Any:
    loaded = auto.from_pretrained(folder)
    return loaded.eval() if isinstance(loaded, torch.nn.Module) else loaded


def classified_alone(folder: Path, query: str, passage: str, max_length: int = 128) -> float:
    # Lists, because transformers takes "" alone for no passage at all.
    encoded = plain(folder, AutoTokenizer)(
        [query], [passage], return_tensors="pt", truncation="only_second", max_length=max_length
    )
    with torch.no_grad():
        logits = plain(folder, AutoModelForSequenceClassification)(**encoded).logits[0]
    return float(torch.sigmoid(logits)[0] if len(logits) == 1 else torch.softmax(logits, 0)[1])


def qwen_ids(tokenizer: Any, query: str, passage: str, instruction: str = INSTRUCTION) -> list[int]:
    parts = (
        "<|im_start|>system\n"
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
        'answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n",
        f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )
    return [id_ for part in parts for id_ in tokenizer(part, add_special_tokens=False)["input_ids"]]


def answered_alone(folder: Path, query: str, passage: str, instruction: str = INSTRUCTION) -> float:
    tokenizer = plain(folder, AutoTokenizer)
    ids = torch.tensor([qwen_ids(tokenizer, query, passage, instruction)])
    with torch.no_grad():
        if about(folder)["architectures"] == ["Qwen3ForSequenceClassification"]:
            return float(torch.sigmoid(plain(folder, AutoModelForSequenceClassification)(input_ids=ids).logits[0, 0]))
        chances = torch.softmax(plain(folder, AutoModelForCausalLM)(input_ids=ids).logits[0, -1], 0)
    yes, no = chances[tokenizer.convert_tokens_to_ids("yes")], chances[tokenizer.convert_tokens_to_ids("no")]
    return float(yes / (yes + no))


def alone(folder: Path, query: str, passage: str) -> float:
    is_qwen = about(folder)["model_type"] == "qwen3"
    return (answered_alone if is_qwen else classified_alone)(folder, query, passage)


def about(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize("budget", [1, 200, None])
def test_scores_are_those_of_each_pair_alone(folder: Path, budget: int | None) -> None:
    encoder = CrossEncoder(folder, device="cpu", max_tokens_per_batch=budget)
    expected = [alone(folder, QUERY, passage) for passage in PASSAGES]
    assert np.ptp(expected) > 0.05  # else any order would pass
    scores = encoder.score(QUERY, PASSAGES)
    assert scores.dtype == np.float64
    assert scores.shape == (len(PASSAGES),)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES[::-1])[::-1], expected, atol=1e-5)


def test_token_types_go_where_the_model_has_them(tmp_path: Path, bert_folder: Path, qwen_folder: Path) -> None:
    row = CrossEncoder(bert_folder, device="cpu").prompt.rows([("年假", "出差住")], 128)[0][0]
    assert row.types == plain(bert_folder, AutoTokenizer)("年假", "出差住")["token_type_ids"] == [0] * 4 + [1] * 4
    for folder in (save_xlm_roberta(tmp_path), qwen_folder):
        assert CrossEncoder(folder, device="cpu").prompt.rows([("年假", "出差住")], 128)[0][0].types == []


def test_many_queries_are_judged_in_one_go(folder: Path) -> None:
    encoder = CrossEncoder(folder, device="cpu")
    pairs = [(query, passage) for passage in PASSAGES[:5] for query in (QUERY, "", "出差住哪里", "报销")]
    expected = [alone(folder, query, passage) for query, passage in pairs]
    np.testing.assert_allclose(encoder.scores(pairs), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.scores([list(pair) for pair in pairs]), expected, atol=1e-5)  # type: ignore[misc]


@pytest.mark.parametrize("labels", [1, 2])
def test_sentence_transformers_gives_the_same(tmp_path: Path, labels: int) -> None:
    folder = save_bert(tmp_path, labels=labels)
    theirs = TheirCrossEncoder(str(folder), device="cpu").predict(
        [(QUERY, passage) for passage in PASSAGES], apply_softmax=labels == 2
    )
    expected = theirs if labels == 1 else theirs[:, 1]
    np.testing.assert_allclose(CrossEncoder(folder, device="cpu").score(QUERY, PASSAGES), expected, atol=1e-5)


def test_a_folder_that_sentence_transformers_saved_is_loaded(tmp_path: Path, bert: CrossEncoder) -> None:
    TheirCrossEncoder(str(bert.folder), device="cpu").save_pretrained(str(tmp_path))
    np.testing.assert_allclose(
        CrossEncoder(tmp_path, device="cpu").score(QUERY, PASSAGES), bert.score(QUERY, PASSAGES), atol=1e-6
    )


def test_texts_are_tokenized_together_with_what_touches_them(qwen_folder: Path) -> None:
    tokenizer = plain(qwen_folder, AutoTokenizer)
    assert tokenizer.tokenize(QUERY + "\n") != tokenizer.tokenize(QUERY) + tokenizer.tokenize("\n")
    prompt = CrossEncoder(qwen_folder, device="cpu").prompt
    for query in (QUERY, "年假", "", "a\n", "《出差》", "试用 ", "1"):
        rows, cut = prompt.rows([(query, passage) for passage in PASSAGES], 512)
        assert [row.ids for row in rows] == [qwen_ids(tokenizer, query, passage) for passage in PASSAGES]
        assert cut == 0


def test_an_instruction_takes_the_place_of_the_models_own(qwen_folder: Path, bert_folder: Path) -> None:
    instruction = "判断条文能不能回答员工的问题"
    scores = CrossEncoder(qwen_folder, device="cpu", instruction=instruction).score(QUERY, PASSAGES[:4])
    expected = [answered_alone(qwen_folder, QUERY, passage, instruction) for passage in PASSAGES[:4]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(scores - CrossEncoder(qwen_folder, device="cpu").score(QUERY, PASSAGES[:4])).max() > 1e-3
    with pytest.raises(ValueError, match="BertForSequenceClassification has none; leave it out"):
        CrossEncoder(bert_folder, instruction=instruction)


def test_of_a_vocabulary_two_logits_are_computed(qwen_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CrossEncoder(qwen_folder, device="cpu")
    assert isinstance(encoder.model, AnswerMargin)
    assert encoder.model.head.shape == (2, 32)
    made: set[int] = set()
    linear = torch.nn.functional.linear

    def watched(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made.add(len(weight))
        return linear(inputs, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    encoder.score(QUERY, PASSAGES)
    assert made  # the layers were seen
    assert max(made) < 100 < encoder.model.backbone.config.vocab_size
    assert {name for name, _ in encoder.model.named_children()} == {"backbone"}


def test_scores_near_the_ends_stay_apart(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    margins = [30.0, 31.0, -90.0, -1000.0, 1000.0, 0.0]
    monkeypatch.setattr(bert.model, "forward", lambda input_ids, **_: torch.tensor(margins))
    scores = bert.score("同", ["样"] * 6)
    assert 1 > scores[1] > scores[0] > 0.999999
    assert scores[2:].tolist() == [pytest.approx(math.exp(-90)), 0.0, 1.0, 0.5]


# -- lengths ----------------------------------------------------------------------------------------------------------


def test_a_long_passage_is_cut_and_the_query_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = CrossEncoder(folder, device="cpu")
    long = "试用期员工可以请年假" * 100
    seen: list[list[int]] = []
    forward = encoder.model.forward

    def watched(input_ids: Tensor, **others: Tensor) -> Tensor:
        seen.extend(input_ids.tolist())
        return forward(input_ids, **others)

    monkeypatch.setattr(encoder.model, "forward", watched)
    with caplog.at_level(logging.WARNING):
        encoder.score(QUERY, [long, "年假"])
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 2 pairs are longer than max_length={encoder.max_length} tokens and were cut"
    ]
    cut = next(row for row in seen if len(row) == encoder.max_length)
    tokenizer = encoder.prompt.tokenizer.tokenizer
    is_qwen = encoder.prompt.passage_start == " "
    whole = qwen_ids(tokenizer, QUERY, long) if is_qwen else tokenizer(QUERY, long)["input_ids"]
    end = encoder.prompt.suffix
    assert len(whole) > encoder.max_length
    assert cut == whole[: encoder.max_length - len(end)] + end


@pytest.mark.parametrize("kind", ["bert_folder", "qwen_folder"])
def test_a_query_is_cut_only_where_it_would_leave_its_passage_too_little(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = CrossEncoder(request.getfixturevalue(kind), device="cpu")
    prompt, decode = encoder.prompt, encoder.prompt.tokenizer.tokenizer.decode
    frame = prompt.least - 4
    room = encoder.max_length - frame
    passage = "x" * 1000

    def kept(query: str, passage: str) -> tuple[int, int]:
        rows, cut = prompt.rows([(query, passage)], encoder.max_length)
        assert cut == 1
        assert len(rows[0].ids) == encoder.max_length
        text = decode(rows[0].ids)
        assert text.endswith(decode(prompt.suffix))
        assert "\n<Document>:" in text or kind == "bert_folder"
        return text.count("q") - decode(prompt.rows([("", "")], 500)[0][0].ids).count("q"), text.count("x")

    assert kept("q" * 10, passage) == (10, room - 10 - prompt_space(prompt))
    assert kept("q" * (room - room // 4), passage)[0] == room - room // 4
    assert kept("q" * 1000, passage)[0] == room - room // 4
    query_left, passage_left = kept("q" * 1000, "xx")
    assert passage_left == 2  # a short passage is whole, and takes no more than it needs
    assert query_left == room - 2 - prompt_space(prompt)
    assert encoder.score("q" * 1000, [passage]).shape == (1,)


def prompt_space(prompt: Any) -> int:
    """Tokens of the space that Qwen3-Reranker's prompt puts before a passage, where x follows it."""
    return len(prompt.tokenizer.encode([prompt.passage_start + "x"])[0]) - 1


def test_max_length_shortens_the_passage(bert_folder: Path) -> None:
    encoder = CrossEncoder(bert_folder, device="cpu", max_length=20)
    expected = [classified_alone(bert_folder, QUERY, passage, 20) for passage in PASSAGES]
    np.testing.assert_allclose(encoder.score(QUERY, PASSAGES), expected, atol=1e-5)


@pytest.mark.parametrize("length", [0, 6, 129, -1])
def test_a_max_length_out_of_range_is_refused(bert_folder: Path, length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length={length} is out of range: this model takes 7 to 128 tokens"):
        CrossEncoder(bert_folder, device="cpu", max_length=length)


def test_the_least_max_length_keeps_a_token_of_each(bert_folder: Path) -> None:
    encoder = CrossEncoder(bert_folder, device="cpu", max_length=7)
    assert [len(row.ids) for row in encoder.prompt.rows([("试用期可以", "年假可以请")], 7)[0]] == [7]
    np.testing.assert_allclose(
        encoder.score("试用期可以", ["年假可以请"]), [classified_alone(bert_folder, "试用期", "年")], atol=1e-5
    )


def test_lengths_are_what_the_models_take(tmp_path: Path, qwen_folder: Path) -> None:
    assert CrossEncoder(save_xlm_roberta(tmp_path / "xlm-r"), device="cpu").max_length == 128  # of 130 positions
    assert CrossEncoder(qwen_folder, device="cpu").max_length == 512
    config = about(qwen_folder)
    large = Path(shutil.copytree(qwen_folder, tmp_path / "large"))
    (large / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40_960}))
    assert CrossEncoder(large, device="cpu").max_length == DEFAULT_LENGTH
    assert CrossEncoder(large, device="cpu", max_length=40_000).max_length == 40_000


# -- texts ------------------------------------------------------------------------------------------------------------


def test_no_passages_give_no_scores(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch(bert, monkeypatch)
    for scores in (bert.score(QUERY, []), bert.score(QUERY, np.array([], str)), bert.scores([])):  # type: ignore[arg-type]
        assert scores.shape == (0,)
        assert scores.dtype == np.float64
    assert shapes == []


def test_special_tokens_in_a_text_are_text(bert_folder: Path, qwen_folder: Path) -> None:
    for mark, where in (("[SEP]", bert_folder), ("<|im_end|>", qwen_folder)):
        prompt = CrossEncoder(where, device="cpu").prompt
        special = prompt.tokenizer.tokenizer.convert_tokens_to_ids(mark)
        plain, forged = (prompt.rows([(end, end)], 500)[0][0].ids for end in ("年", f"年{mark}"))
        assert forged.count(special) == plain.count(special) > 0
        assert len(forged) > len(plain)


def test_lone_surrogates_become_replacement_characters(bert: CrossEncoder) -> None:
    np.testing.assert_allclose(
        bert.score("年\ud800假", ["出\udfff差"]), bert.score("年\ufffd假", ["出\ufffd差"]), atol=1e-7
    )


@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [
        (None, ["好"], r"query is None; it must be one string. For many: scores\(pairs\)"),
        (["好"], ["好"], "query is list"),
        ("好", "试用期", r"passages is str: '试用期'; give a list of strings"),
        ("好", None, "passages is None"),
        ("好", {"a": 1}, "passages is a dict"),
        ("好", ["好", None], r"passages\[1\] is None"),
        ("好", iter(["好", "好", 7]), r"passages\[2\] is int: '7'"),
    ],
)
def test_what_is_no_text_is_refused_before_any_work(
    bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch, query: Any, passages: Any, message: str
) -> None:
    shapes = watch(bert, monkeypatch)
    with pytest.raises(TypeError, match=message):
        bert.score(query, passages)
    assert shapes == []


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("试用期", r"pairs is str: '试用期'; give a list of \(query, passage\)"),
        (None, "pairs is NoneType"),
        ([("一", "二"), "一二"], r"pairs\[1\] is str: '一二'; every pair must be \(query, passage\)"),
        ([("一", "二", "三")], r"pairs\[0\] is tuple"),
        ([("一", None)], r"pairs\[0\] is tuple: \('一', None\)"),
    ],
)
def test_what_is_no_pair_is_refused(bert: CrossEncoder, pairs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        bert.scores(pairs)


# -- work -------------------------------------------------------------------------------------------------------------


def mixed_pairs(count: int) -> list[tuple[str, str]]:
    generator = random.Random(0)
    return [(QUERY, "年" * round(3 * 30 ** generator.random())) for _ in range(count)]


def test_hardly_any_token_is_padding(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    real = 0

    def counted(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        nonlocal real
        shapes.append(tuple(input_ids.shape))
        real += int(attention_mask.sum())
        return torch.zeros(len(input_ids))  # computes nothing

    monkeypatch.setattr(bert.model, "forward", counted)
    bert.scores(mixed_pairs(3_000))
    assert sum(count for count, _ in shapes) == 3_000
    assert sum(count * longest for count, longest in shapes) / real <= 1.05
    assert all(count * longest <= CPU_BUDGET for count, longest in shapes)
    assert len(shapes) <= 1 + real // (CPU_BUDGET // 4)


def test_twenty_passages_of_like_lengths_are_one_pass(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch(bert, monkeypatch)
    bert.score(QUERY, ["试用期员工每月有一天病假"] * 20)
    assert len(shapes) == 1


def test_a_query_is_tokenized_once(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []
    encode = bert.prompt.tokenizer.encode

    def watched(texts: list[str]) -> list[list[int]]:
        tokenized.extend(texts)
        return encode(texts)

    monkeypatch.setattr(bert.prompt.tokenizer, "encode", watched)
    bert.score(QUERY, PASSAGES)
    assert tokenized.count(QUERY) == 1


@pytest.mark.parametrize(("window", "characters"), [(1, 10**6), (4, 10**6), (10**6, 60)])
def test_windows_leave_no_trace(
    bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch, window: int, characters: int
) -> None:
    expected = bert.score(QUERY, PASSAGES)
    monkeypatch.setattr(cross_encoder_module, "WINDOW", window)
    monkeypatch.setattr(cross_encoder_module, "WINDOW_CHARACTERS", characters)
    shapes = watch(bert, monkeypatch)
    np.testing.assert_allclose(bert.score(QUERY, PASSAGES), expected, atol=1e-5)
    assert len(shapes) > 3


def test_the_budget_is_the_devices_or_ones_own(bert_folder: Path, bert: CrossEncoder) -> None:
    assert bert.max_tokens_per_batch == CPU_BUDGET < GPU_BUDGET
    assert CrossEncoder(bert_folder, device="cpu", max_tokens_per_batch=9).max_tokens_per_batch == 9
    with pytest.raises(ValueError, match="max_tokens_per_batch=0 must be at least 1"):
        CrossEncoder(bert_folder, max_tokens_per_batch=0)


# -- devices, types, memory, threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.1), ("float16", 0.02)])
def test_every_dtype_is_close_to_float32(folder: Path, dtype: str, tolerance: float) -> None:
    other = CrossEncoder(folder, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in other.model.parameters()} == {getattr(torch, dtype)}
    expected = CrossEncoder(folder, device="cpu").score(QUERY, PASSAGES)
    np.testing.assert_allclose(other.score(QUERY, PASSAGES), expected, atol=tolerance)


def test_unknown_devices_and_dtypes_are_refused(bert_folder: Path) -> None:
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        CrossEncoder(bert_folder, device="gpu")
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        CrossEncoder(bert_folder, dtype="int8")


def test_out_of_memory_is_answered_with_smaller_batches(
    bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = bert.score(QUERY, PASSAGES)

    def small_device(shape: tuple[int, int]) -> None:
        if shape[0] * shape[1] > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    shapes = watch(bert, monkeypatch, small_device)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(bert.score(QUERY, PASSAGES), expected, atol=1e-5)
    assert all(count * longest <= 100 for count, longest in shapes)
    assert "Out of memory on cpu: max_tokens_per_batch is now" in caplog.text
    lowered = bert.max_tokens_per_batch
    assert lowered <= 200
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # what was learned is kept
        bert.score(QUERY, PASSAGES)
    assert len(caplog.records) <= 1


def test_one_pair_that_does_not_fit_is_a_clear_error(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny_device(shape: tuple[int, int]) -> None:
        if shape[1] > 50:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    watch(bert, monkeypatch, tiny_device)
    with pytest.raises(MemoryError, match="one pair of 128 tokens; lower max_length"):
        bert.score(QUERY, ["出差", "年" * 200])
    assert bert.score(QUERY, ["出差"]).shape == (1,)


def test_other_errors_are_not_taken_for_a_lack_of_memory(bert: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: tuple[int, int]) -> None:
        raise RuntimeError("device-side assert triggered")

    watch(bert, monkeypatch, broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        bert.score(QUERY, PASSAGES, show_progress=True)
    assert bert.max_tokens_per_batch == CPU_BUDGET


def test_threads_give_the_same_one_pass_at_a_time(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CrossEncoder(bert_folder, device="cpu", max_tokens_per_batch=100)
    groups = [[f"第{number}条 {text}" for text in PASSAGES] for number in range(6)]
    expected = [encoder.score(QUERY, group) for group in groups]
    inside, most, resting = 0, 0, threading.Event()
    forward = encoder.model.forward

    def counted(input_ids: Tensor, **others: Tensor) -> Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        resting.wait(0.001)  # lets other threads come
        margins = forward(input_ids, **others)
        inside -= 1
        return margins

    monkeypatch.setattr(encoder.model, "forward", counted)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = encoder.score(QUERY, groups[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for number in range(6):
        np.testing.assert_allclose(results[number], expected[number], atol=1e-5)


def test_a_score_that_is_not_finite_is_refused_by_index(copied: Path, bert: CrossEncoder) -> None:
    weight = bert.model.classifier.bert.embeddings.word_embeddings.weight
    weight.data[bert.prompt.tokenizer.encode(["超"])[0]] = float("nan")
    with pytest.raises(ValueError, match=r"pair 1: its weights are damaged"):
        bert.score(QUERY, ["好", "超过", "年"])
    weights = load_file(copied / "model.safetensors")
    weights["classifier.weight"] *= 1e6
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"torch\.float16.*pair 0: try dtype='float32'"):
        CrossEncoder(copied, device="cpu", dtype="float16").score(QUERY, ["出差"])


def test_a_progress_bar_changes_nothing(bert: CrossEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    expected = bert.score(QUERY, PASSAGES)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(bert.score(QUERY, PASSAGES, show_progress=True), expected, atol=1e-7)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Reranking" in shown.err


# -- folders ----------------------------------------------------------------------------------------------------------


def test_an_embedding_models_folder_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("luotuo-mini", tiny_folder):
        with pytest.raises(ModelFormatError, match=r"holds BertModel, which is no reranker: .*BAAI/bge-reranker-base"):
            CrossEncoder(name)
    layout = next(layout for layout in LAYOUTS if layout.card == "Qwen/Qwen3-Embedding-0.6B")
    folder = write_layout(layout, tmp_path, old_pooling=True)
    config = about(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))  # as on the hub
    with pytest.raises(ModelFormatError, match=r"holds Qwen3ForCausalLM, which is no reranker: it pools .*embedding"):
        CrossEncoder(folder)


def test_other_models_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"GlmForCausalLM, which is no reranker: .*only Qwen3-Reranker's prompt"):
        CrossEncoder(save_tiny_glm(tmp_path / "glm"))
    with pytest.raises(ModelFormatError, match="sorts texts into 3 labels; a reranker has one or two"):
        CrossEncoder(save_bert(tmp_path / "three", labels=3))
    config = about(copied)
    for architectures in (None, [], ["BertForTokenClassification"]):
        (copied / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
        with pytest.raises(ModelFormatError, match="which is no reranker: its architecture must be"):
            CrossEncoder(copied)


def test_a_tokenizer_that_does_not_part_the_texts_is_refused(copied: Path) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(copied)
    with pytest.raises(ModelFormatError, match="puts no special token between a query and a passage"):
        CrossEncoder(copied)


def test_a_qwen_without_the_marks_of_a_chat_is_refused(qwen_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen_folder, tmp_path / "模型"))
    bert_tokenizer().save_pretrained(folder)
    with pytest.raises(ModelFormatError, match=r"has no token '<\|im_start\|>', which Qwen3-Reranker's prompt needs"):
        CrossEncoder(folder)
    with pytest.raises(ModelFormatError, match="has no token"):
        qwen_prompt(TextTokenizer(folder), None)


def test_damaged_folders_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    classifier = weights.pop("classifier.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"lack 1 tensors .*'classifier\.weight'"):
        CrossEncoder(copied)
    weights["classifier.weight"] = torch.cat([classifier, classifier])  # of a model with two labels
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        CrossEncoder(copied)
    (copied / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        CrossEncoder(copied)
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"no \*\.safetensors weights.*AutoModelForSequenceClassification"):
        CrossEncoder(copied)
    with pytest.raises(ModelFormatError, match="cannot be loaded"):  # code may be trusted, a pickle is not read
        CrossEncoder(copied, trust_remote_code=True)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match="tokenizer"):
        CrossEncoder(copied)
    (copied / "config.json").unlink()
    with pytest.raises(ModelFormatError, match=r"config\.json cannot be read"):
        CrossEncoder(copied)


def test_code_of_the_models_own_is_not_run(copied: Path) -> None:
    config = about(copied)
    code = {"auto_map": {"AutoModelForSequenceClassification": "own.OwnModel"}}
    (copied / "config.json").write_text(json.dumps(config | code))
    (copied / "own.py").write_text("raise SystemExit('this code must never run')")
    with pytest.raises(ModelFormatError, match="wants to run Python code of its own"):
        CrossEncoder(copied)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"No reranker .*没有.*BAAI/bge-reranker-base"):
        CrossEncoder(tmp_path / "没有")
