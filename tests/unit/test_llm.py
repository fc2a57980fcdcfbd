"""Language models of every kind answer through the same two functions."""

from collections.abc import Iterator

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM

from luotuo_integrations.llm import check_llm, reply, stream_reply

SYSTEM, USER = "你根据资料回答问题。", "资料：\n[1] 年假十五天。\n\n问题：年假几天？"
ANSWER = "年假十五天[1]。"


class LlamaIndexLLM(CustomLLM):
    """Answers as LlamaIndex's own classes do, and keeps the prompt."""

    prompts: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=ANSWER)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> Iterator[CompletionResponse]:
        self.prompts.append(prompt)
        for end in range(1, len(ANSWER) + 1):
            yield CompletionResponse(text=ANSWER[:end], delta=ANSWER[end - 1])


def test_langchain_chat_model() -> None:
    model = FakeListChatModel(responses=[ANSWER])
    assert reply(model, SYSTEM, USER) == ANSWER
    pieces = list(stream_reply(model, SYSTEM, USER))
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


def test_langchain_chain_gets_system_and_human_messages() -> None:
    seen = []

    def chain(messages: list) -> str:
        seen.append([(message.type, message.content) for message in messages])
        return ANSWER

    assert reply(RunnableLambda(chain), SYSTEM, USER) == ANSWER
    assert "".join(stream_reply(RunnableLambda(chain), SYSTEM, USER)) == ANSWER
    assert seen == [[("system", SYSTEM), ("human", USER)]] * 2
    parsed = FakeListChatModel(responses=[ANSWER]) | StrOutputParser()
    assert reply(parsed, SYSTEM, USER) == ANSWER


def test_chain_that_gives_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match=r"gave dict.*StrOutputParser"):
        reply(RunnableLambda(lambda _: {"answer": ANSWER}), SYSTEM, USER)
    with pytest.raises(TypeError, match="gave dict"):
        list(stream_reply(RunnableLambda(lambda _: {"answer": ANSWER}), SYSTEM, USER))


def test_llama_index_llm() -> None:
    model = LlamaIndexLLM(prompts=[])
    assert reply(model, SYSTEM, USER) == ANSWER
    pieces = list(stream_reply(model, SYSTEM, USER))
    assert pieces == list(ANSWER)
    assert all(SYSTEM in prompt and USER in prompt for prompt in model.prompts)
    assert USER in reply(MockLLM(), SYSTEM, USER)  # it repeats what it is asked


def test_plain_function_gets_one_prompt() -> None:
    seen = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return ANSWER

    assert reply(answer, SYSTEM, USER) == ANSWER
    assert list(stream_reply(answer, SYSTEM, USER)) == [ANSWER]
    assert seen == [f"{SYSTEM}\n\n{USER}"] * 2


def test_generator_function_is_streamed_as_it_comes() -> None:
    written = []

    def answer(_: str) -> Iterator[str]:
        for piece in ("年假", "十五天", "[1]。"):
            written.append(piece)
            yield piece

    assert reply(answer, SYSTEM, USER) == ANSWER
    written.clear()
    stream = stream_reply(answer, SYSTEM, USER)
    assert not written
    assert next(stream) == "年假"
    assert written == ["年假"]


@pytest.mark.parametrize(("answer", "given"), [(None, "NoneType"), (7, "int"), ([b"x"], "bytes"), ([None], "NoneType")])
def test_function_that_gives_no_text_is_refused(answer: object, given: str) -> None:
    with pytest.raises(TypeError, match=f"gave {given}; it must give a string"):
        reply(lambda _: answer, SYSTEM, USER)


@pytest.mark.parametrize(("llm", "given"), [("gpt", "str"), (7, "int"), (FakeListChatModel, "the class FakeListCh")])
def test_wrong_kinds_are_refused(llm: object, given: str) -> None:
    with pytest.raises(TypeError, match=f"llm is {given}.*openai_compatible"):
        check_llm(llm)


def test_known_kinds_pass() -> None:
    for llm in (FakeListChatModel(responses=[]), RunnableLambda(str), MockLLM(), LlamaIndexLLM(prompts=[]), str.lower):
        check_llm(llm)
