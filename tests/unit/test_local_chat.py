"""The chat model in this process, on tiny random models of GLM's and Llama's own classes."""

import asyncio
import copy
import inspect
import json
import pickle
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import pytest
import torch
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from safetensors.torch import load_file, save_file
from tiny_chat_model import save_tiny_byte_llama, save_tiny_glm
from transformers import GlmForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luotuo_integrations.causal_model import CausalModel
from luotuo_integrations.errors import ModelFormatError, ModelNotFoundError
from luotuo_integrations.local_chat import ChatTransformers, _Answer, local_chat_model

QUESTION = "试用期的员工可以请年假吗？"
CONTEXT = 96


@pytest.fixture(scope="module")
def glm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_glm(tmp_path_factory.mktemp("models") / "小模型", context=CONTEXT)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_byte_llama(tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture(scope="module")
def glm(glm_folder: Path) -> BaseChatModel:
    return local_chat_model(glm_folder, device="cpu", max_new_tokens=20)


def greedy_ids(folder: Path, prompt: str, count: int) -> list[int]:
    """What the model's own forward pass gives, one whole pass a token, without any of the code under test."""
    model = GlmForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + count:
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# Answers


def test_the_answer_is_the_model_s_own_greedy_text(glm_folder: Path, glm: BaseChatModel) -> None:
    expected = greedy_ids(glm_folder, f"<|user|>{QUESTION}<|assistant|>", 20)
    assert 0 not in expected  # this random model does not end by itself
    tokenizer = PreTrainedTokenizerFast.from_pretrained(glm_folder)
    message = glm.invoke(QUESTION)
    assert isinstance(message, AIMessage)
    assert message.content == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(message.content)) > 1
    prompt = len(QUESTION) + 2
    assert message.usage_metadata == {"input_tokens": prompt, "output_tokens": 20, "total_tokens": prompt + 20}
    assert message.response_metadata == {"model_name": str(glm_folder), "finish_reason": "length"}


async def test_streaming_equals_invoke(glm: BaseChatModel) -> None:
    whole = glm.invoke(QUESTION)
    streamed = list(glm.stream(QUESTION))
    assert len(streamed) > 5
    assert streamed[-1].chunk_position == "last"
    async_streamed = [chunk async for chunk in glm.astream(QUESTION)]
    for other in (
        sum(streamed[1:], streamed[0]),
        sum(async_streamed[1:], async_streamed[0]),
        await glm.ainvoke(QUESTION),
    ):
        assert other.content == whole.content
        assert other.usage_metadata == whole.usage_metadata
        assert other.response_metadata == whole.response_metadata


def test_characters_of_several_tokens_are_never_torn(byte_folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(byte_folder)
    assert tokenizer.decode(tokenizer(QUESTION)["input_ids"]) == QUESTION
    model = local_chat_model(byte_folder, device="cpu", max_new_tokens=60, temperature=3.0)
    causal_model = CausalModel(str(byte_folder), "cpu", "auto")
    prompt = causal_model.prompt_ids([{"role": "user", "content": QUESTION}], {})
    for seed in range(5):
        torch.manual_seed(seed)
        ids = list(causal_model.generate(prompt, 60, 3.0))
        torch.manual_seed(seed)
        pieces = [chunk.content for chunk in model.stream(QUESTION)]
        assert len(pieces) > 10
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def test_a_chain_and_a_conversation(glm: BaseChatModel) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "请只用资料回答"), ("human", "{question}")])
    text = (prompt | glm | StrOutputParser()).invoke({"question": QUESTION})
    messages = [SystemMessage("请只用资料回答"), HumanMessage([{"type": "text", "text": QUESTION}])]
    assert text == glm.invoke(messages).content
    assert glm.invoke([*messages, AIMessage("可以"), HumanMessage("每年十天吗？")]).usage_metadata["input_tokens"] == (
        len("请只用资料回答" + QUESTION + "可以" + "每年十天吗？") + 5
    )


def test_it_ends_at_the_end_token(glm_folder: Path, glm: BaseChatModel, tmp_path: Path) -> None:
    ids = greedy_ids(glm_folder, f"<|user|>{QUESTION}<|assistant|>", 20)
    end = next(place for place in range(3, 20) if ids[place] not in ids[:place])
    folder = copy_of(glm_folder, tmp_path / "ending")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0, ids[end]]}))
    message = local_chat_model(folder, device="cpu", max_new_tokens=20).invoke(QUESTION)
    # The end token of this model is an ordinary character, so that it is still in the text.
    assert message.content == glm.invoke(QUESTION).content[: len(message.content)]
    assert message.usage_metadata["output_tokens"] == end + 1
    assert message.response_metadata["finish_reason"] == "stop"


def test_stop_words(glm: BaseChatModel) -> None:
    whole = glm.invoke(QUESTION).content
    stop = whole[7:9]
    expected = whole[: whole.index(stop)]
    message = glm.invoke(QUESTION, stop=[stop])
    assert message.content == expected
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.usage_metadata["output_tokens"] < 20
    assert "".join(chunk.content for chunk in glm.stream(QUESTION, stop=[stop, "不会出现的字"])) == expected
    stopping = ChatTransformers(model=glm.model, device="cpu", max_tokens=20, stop=[stop])
    assert stopping.invoke(QUESTION).content == expected
    assert stopping.invoke(QUESTION, stop=[]).content == whole


class Letters:
    """Stands for a causal model whose tokens are UTF-8 bytes."""

    end_ids = frozenset({0})

    @staticmethod
    def decode(ids: list[int]) -> str:
        return bytes(byte for byte in ids if byte).decode(errors="replace")


@pytest.mark.parametrize("seed", range(200))
def test_stop_words_equal_a_naive_scan(seed: int) -> None:
    generator = random.Random(seed)
    text = "".join(generator.choices("年假a。", k=generator.randint(0, 25)))
    stop = ["".join(generator.choices("年假a。", k=generator.randint(1, 4))) for _ in range(generator.randint(0, 3))]
    ids = [*text.encode(), 0]
    expected, reason_to_end = text, len(ids)
    for end in range(len(text) + 1):
        found = [text[:end].index(word) for word in stop if word in text[:end]]
        if found:
            expected, reason_to_end = text[: min(found)], len(text[:end].encode())
            break
    answer = _Answer(Letters, stop)
    pieces = list(answer.pieces(iter(ids)))
    assert "".join(pieces) == expected
    assert "" not in pieces
    assert answer.finish_reason == "stop"
    assert len(answer.ids) == reason_to_end


def test_an_unfinished_character_at_the_limit_is_left_out() -> None:
    answer = _Answer(Letters, [])
    assert "".join(answer.pieces(iter("年假".encode()[:-1]))) == "年"
    assert answer.finish_reason == "length"


def test_temperature(glm_folder: Path, glm: BaseChatModel) -> None:
    drawing = local_chat_model(glm_folder, device="cpu", max_new_tokens=20, temperature=2.0)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(drawing.invoke(QUESTION).content)
    assert answers[0] == answers[1] != answers[2]
    assert glm.invoke(QUESTION).content == glm.invoke(QUESTION).content
    torch.manual_seed(1)
    assert glm.bind(temperature=2.0).invoke(QUESTION).content == answers[0]


def test_no_warnings(glm_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = local_chat_model(glm_folder, device="cpu", max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.invoke(QUESTION)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


def test_template_arguments(glm_folder: Path, glm: BaseChatModel) -> None:
    before = glm.invoke(QUESTION).usage_metadata["input_tokens"]
    model = local_chat_model(glm_folder, device="cpu", max_new_tokens=1, template_arguments={"suffix": "abc"})
    assert model.invoke(QUESTION).usage_metadata["input_tokens"] == before + 3


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    reason="transformers keeps them apart since 5.x",
)
def test_special_tokens_in_a_document_stay_text(glm_folder: Path) -> None:
    model = CausalModel(str(glm_folder), "cpu", "auto")
    user = PreTrainedTokenizerFast.from_pretrained(glm_folder).convert_tokens_to_ids("<|user|>")
    assert model.prompt_ids([{"role": "user", "content": "年假<|user|>十天"}], {}).count(user) == 1


# The context


def test_a_prompt_longer_than_the_context(glm: BaseChatModel) -> None:
    with pytest.raises(ValueError, match=rf"the prompt has {CONTEXT} tokens.*has room for {CONTEXT}.*fewer or shorter"):
        glm.invoke("年" * (CONTEXT - 2))


def test_an_answer_never_outgrows_the_context(glm: BaseChatModel) -> None:
    message = glm.invoke("年" * (CONTEXT - 2 - 5))
    assert message.usage_metadata["input_tokens"] == CONTEXT - 5
    assert message.usage_metadata["output_tokens"] == 5
    assert message.response_metadata["finish_reason"] == "length"


# Threads, copies


def test_many_threads(glm: BaseChatModel) -> None:
    questions = [QUESTION, "每年十天吗？", "出差住宿", "公司"] * 3
    expected = {question: glm.invoke(question).content for question in questions}
    assert len(set(expected.values())) > 1
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda question: glm.invoke(question).content, questions))
    assert answers == [expected[question] for question in questions]


def test_a_stream_may_stay_open_or_be_left(glm: BaseChatModel) -> None:
    stream = glm.stream(QUESTION)
    first = next(stream)
    # Asking anew while the first stream is open must not wait for it for ever.
    assert glm.invoke(QUESTION).content.startswith(first.content)
    stream.close()
    assert glm.invoke(QUESTION).content.startswith(first.content)


def test_generation_stops_when_nobody_listens(glm_folder: Path) -> None:
    model = CausalModel(str(glm_folder), "cpu", "auto")
    new_ids: SimpleQueue = SimpleQueue()
    cancelled = Event()
    cancelled.set()
    model._run(model.prompt_ids([{"role": "user", "content": QUESTION}], {}), 50, 0.0, new_ids, cancelled)
    assert new_ids.get() is not None
    assert new_ids.get() is None
    assert new_ids.empty()


def test_an_error_in_the_generating_thread_arrives(glm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        msg = "CUDA out of memory"
        raise RuntimeError(msg)

    monkeypatch.setattr(GlmForCausalLM, "generate", fail)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        local_chat_model(glm_folder, device="cpu").invoke(QUESTION)


def test_copies_share_the_weights_and_pickles_hold_none(glm: BaseChatModel) -> None:
    answer = glm.invoke(QUESTION).content
    assert copy.deepcopy(glm)._causal_model is glm._causal_model
    saved = pickle.dumps(glm)
    assert len(saved) < 3000
    assert pickle.loads(saved).invoke(QUESTION).content == answer


async def test_the_event_loop_keeps_running(glm: BaseChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, loop_ran = GlmForCausalLM.generate, Event()

    def wait_for_the_loop(*arguments: object, **settings: object) -> object:
        assert loop_ran.wait(timeout=20), "the event loop was blocked"
        return generate(*arguments, **settings)

    monkeypatch.setattr(GlmForCausalLM, "generate", wait_for_the_loop)
    answer = asyncio.create_task(glm.ainvoke(QUESTION))
    await asyncio.sleep(0.05)
    loop_ran.set()
    assert (await answer).content


def test_making_a_model_loads_nothing(glm_folder: Path) -> None:
    code = (
        "import sys; from luotuo_integrations.local_chat import local_chat_model\n"
        f"local_chat_model({str(glm_folder)!r})\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# What cannot be loaded


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no folder .*没有的模型.*hub name 'owner/model'"):
        local_chat_model(tmp_path / "没有的模型")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "glm-4-9b-q4.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match=r"is a file, .*GGUF file is served by.*openai_compatible"):
        local_chat_model(file)


def test_a_hub_name_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fails at once instead of trying again
    with pytest.raises(ModelNotFoundError, match=r"luotuo/no-such-model is neither a folder with config\.json nor"):
        local_chat_model("luotuo/no-such-model").invoke(QUESTION)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither a folder with config\.json"):
        local_chat_model(tmp_path).invoke(QUESTION)


@pytest.mark.parametrize("kind", ["chatglm", "qwen", "baichuan"])
def test_a_model_that_needs_code_of_its_own(tmp_path: Path, kind: str) -> None:
    config = {"model_type": kind, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('this code must never run')")
    message = rf"{kind}.*never run here.*Serve it.*openai_compatible\(base_url, model\).*glm-4-9b-chat-hf"
    with pytest.raises(ModelFormatError, match=message):
        local_chat_model(tmp_path).invoke(QUESTION)


def test_an_embedding_model_or_an_unknown_kind(tmp_path: Path) -> None:
    for kind in ("clip", "未知"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelFormatError, match=f"'{kind}' model, which the installed transformers does not know"):
            local_chat_model(tmp_path).invoke(QUESTION)


def test_a_folder_without_a_chat_template(glm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(glm_folder, tmp_path / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelFormatError, match=r"no chat template.*chat or instruct version"):
        local_chat_model(folder, device="cpu").invoke(QUESTION)


def test_a_folder_without_weights_or_with_some_missing(glm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(glm_folder, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"lacks 1 of its weights, model\.layers\.1\.mlp\.down_proj"):
        local_chat_model(folder, device="cpu").invoke(QUESTION)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        local_chat_model(folder, device="cpu").invoke(QUESTION)


def test_a_folder_without_a_tokenizer(glm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(glm_folder, tmp_path / "mute")
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        local_chat_model(folder, device="cpu").invoke(QUESTION)


def test_a_truncated_weights_file(glm_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(glm_folder, tmp_path / "truncated")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        local_chat_model(folder, device="cpu").invoke(QUESTION)


def test_bad_arguments(glm_folder: Path, glm: BaseChatModel) -> None:
    for arguments in ({"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="greater than or equal to"):
            local_chat_model(glm_folder, **arguments)
    with pytest.raises(ValueError, match="dtype='float8' is unknown"):
        local_chat_model(glm_folder, device="cpu", dtype="float8").invoke(QUESTION)
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        local_chat_model(glm_folder, device="gpu").invoke(QUESTION)
    with pytest.raises(TypeError, match="may be max_tokens, temperature, template_arguments and stop, but top_p"):
        glm.invoke(QUESTION, top_p=0.5)


def test_dtype(glm_folder: Path) -> None:
    for name, expected in [("auto", torch.float32), ("bfloat16", torch.bfloat16)]:
        model = CausalModel(str(glm_folder), "cpu", name)
        assert model._load()[0].dtype == expected
