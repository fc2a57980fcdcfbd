"""Ask any language model: a LangChain model or chain, a LlamaIndex LLM, or a plain function."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable

LanguageModel: TypeAlias = Any
"""A LangChain Runnable, a LlamaIndex LLM, or a function from a prompt to the answer or an iterator of its pieces."""


def check_llm(llm: object) -> None:
    """Refuse what cannot answer, before any work.

    Raises:
        TypeError: If ``llm`` is no language model of a known kind.
    """
    given = f"the class {llm.__name__}" if isinstance(llm, type) else type(llm).__name__
    if isinstance(llm, type) or not (isinstance(llm, Runnable) or _is_llama_index(llm) or callable(llm)):
        msg = (
            f"llm is {given}; give a LangChain chat model (luotuo_integrations.openai_compatible(...) "
            "makes one), a LlamaIndex LLM, or a function from str to str"
        )
        raise TypeError(msg)


def reply(llm: LanguageModel, system: str, user: str) -> str:
    """Get one whole answer.

    Args:
        llm: The language model.
        system: Its instructions.
        user: What it is asked.

    Returns:
        The answer's text.
    """
    if isinstance(llm, Runnable):
        return _text(llm.invoke(_messages(system, user)))
    if _is_llama_index(llm):
        return str(llm.chat(_llama_messages(system, user)).message.content or "")
    return "".join(_call(llm, system, user))


def stream_reply(llm: LanguageModel, system: str, user: str) -> Iterator[str]:
    """Get an answer piece by piece, as the model writes it.

    Args:
        llm: The language model.
        system: Its instructions.
        user: What it is asked.

    Yields:
        Pieces that add up to the answer.
    """
    if isinstance(llm, Runnable):
        yield from (_text(piece) for piece in llm.stream(_messages(system, user)))
    elif _is_llama_index(llm):
        yield from (piece.delta or "" for piece in llm.stream_chat(_llama_messages(system, user)))
    else:
        yield from _call(llm, system, user)


def _call(function: Callable[[str], object], system: str, user: str) -> Iterator[str]:
    answer = function(f"{system}\n\n{user}")
    pieces = [answer] if isinstance(answer, str) or not isinstance(answer, Iterable) else answer
    for piece in pieces:
        if not isinstance(piece, str):
            msg = f"The function given as llm gave {type(piece).__name__}; it must give a string, or pieces of one"
            raise TypeError(msg)
        yield piece


def _messages(system: str, user: str) -> list[BaseMessage]:
    return [SystemMessage(system), HumanMessage(user)]


def _llama_messages(system: str, user: str) -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="system", content=system), ChatMessage(role="user", content=user)]


def _is_llama_index(llm: object) -> bool:
    # A LlamaIndex LLM cannot exist before its module was imported; importing it here would cost seconds.
    module = sys.modules.get("llama_index.core.base.llms.base")
    return module is not None and isinstance(llm, module.BaseLLM)


def _text(piece: object) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, BaseMessage):
        return str(piece.text)
    msg = f"The language model gave {type(piece).__name__}, not text or a message; put StrOutputParser() behind it"
    raise TypeError(msg)
