"""A chat model in this process: GLM-4, Qwen, Llama and whatever else transformers has natively.

ChatGLM-6B, ChatGLM2, ChatGLM3 and the first GLM-4-9B exist only as code beside their weights, which is never run here:
serve them and use :func:`luotuo_integrations.chat_models.openai_compatible`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel, generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage, UsageMetadata, convert_to_openai_messages
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from luotuo_integrations.causal_model import CausalModel
from luotuo_integrations.errors import ModelFormatError, ModelNotFoundError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
_REPLACEMENT = "\ufffd"


def local_chat_model(
    folder_or_name: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    template_arguments: Mapping[str, Any] | None = None,
) -> BaseChatModel:
    """Make a LangChain chat model that runs in this process. The weights are loaded when it is first asked.

    Args:
        folder_or_name: A folder that transformers saved (config.json, safetensors, tokenizer with a chat template), or
            a name on the hub such as ``"Qwen/Qwen3-0.6B"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or None for the best there is.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: as saved, but float32 on the CPU.
        max_new_tokens: The most tokens to answer with; fewer where the model's context has no more room.
        temperature: 0 for the likeliest answer, always the same; above 0 it is drawn with torch's random numbers.
        template_arguments: Further variables of the chat template, for instance ``{"enable_thinking": False}``.

    Returns:
        The chat model: ``invoke``, ``stream``, ``ainvoke``, ``astream``, ``prompt | model | StrOutputParser()``.

    Raises:
        ModelNotFoundError: If the folder does not exist; when first asked, if the hub has no such name.
        ModelFormatError: When first asked: the folder is incomplete, has no chat template, or needs code of its own.
        ValueError: If an argument is out of range; when asked, if the prompt is longer than the model's context.
    """
    name = os.fspath(folder_or_name)
    path = Path(name).expanduser()
    if path.is_file():
        msg = (
            f"{name!r} is a file, but a folder with config.json and safetensors is needed. A GGUF file is served by "
            "llama.cpp or Ollama: use openai_compatible(base_url, model)"
        )
        raise ModelFormatError(msg)
    if not name or (not path.is_dir() and not _HUB_NAME.fullmatch(name)):
        msg = f"there is no folder {name!r}; pass a folder that transformers saved, or a hub name 'owner/model'"
        raise ModelNotFoundError(msg)
    return ChatTransformers(
        model=str(path) if path.is_dir() else name,
        device=device,
        dtype=dtype,
        max_tokens=max_new_tokens,
        temperature=temperature,
        template_arguments=dict(template_arguments or {}),
    )


class ChatTransformers(BaseChatModel):
    """The LangChain chat model that :func:`local_chat_model` makes; copies of it share the weights.

    Args:
        model: The folder or the hub name.
        device: As in :func:`local_chat_model`.
        dtype: As in :func:`local_chat_model`.
        max_tokens: The most tokens to answer with.
        temperature: As in :func:`local_chat_model`.
        template_arguments: As in :func:`local_chat_model`.
        stop: Strings at which to stop answering; ``invoke(..., stop=[...])`` overrides them.
        streaming: Accepted because LangChain's models have it; this model streams within ``invoke`` anyway.
    """

    model: str
    device: str | None = None
    dtype: str = "auto"
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    stop: list[str] | None = None
    streaming: bool = False
    _causal_model: CausalModel = PrivateAttr()

    model_config = ConfigDict(extra="forbid")

    def model_post_init(self, context: Any, /) -> None:
        """Remember what to load."""
        super().model_post_init(context)
        self._causal_model = CausalModel(self.model, self.device, self.dtype)

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.model_dump(include={"model", "dtype", "max_tokens", "temperature", "template_arguments", "stop"})

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        allowed = ("max_tokens", "temperature", "template_arguments")
        if unknown := set(kwargs) - set(allowed):
            msg = (
                f"options for one call may be {', '.join(allowed)} and stop, but {', '.join(sorted(unknown))} was given"
            )
            raise TypeError(msg)
        options = {name: kwargs.get(name, getattr(self, name)) for name in allowed}
        stop = [word for word in ((self.stop if stop is None else stop) or []) if word]
        causal_model = self._causal_model
        conversation = convert_to_openai_messages(messages, text_format="string")
        prompt = causal_model.prompt_ids(conversation, options["template_arguments"])
        answer = _Answer(causal_model, stop)
        with closing(causal_model.generate(prompt, options["max_tokens"], options["temperature"])) as new_ids:
            for text in answer.pieces(new_ids):
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
        read, written = len(prompt), len(answer.ids)
        last = AIMessageChunk(
            content="",
            usage_metadata=UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written),
            response_metadata={"model_name": self.model, "finish_reason": answer.finish_reason},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)


class _Answer:
    """Turns token ids into text, a piece at a time, up to a stop word or the end token.

    Every piece comes from decoding all ids so far, so that the pieces add up to the whole decoded text with any
    tokenizer. Held back is what the next token may change: an unfinished character, and the beginning of a stop word.
    """

    def __init__(self, causal_model: CausalModel, stop: Sequence[str]) -> None:
        self.ids: list[int] = []
        self.finish_reason = "length"
        self._causal_model = causal_model
        self._stop = stop
        self._text = ""
        self._shown = 0

    def pieces(self, new_ids: Iterator[int]) -> Iterator[str]:
        """Yield the text piece by piece; afterwards ``ids`` and ``finish_reason`` are complete."""
        for token_id in new_ids:
            self.ids.append(token_id)
            self._text = self._causal_model.decode(self.ids)
            stops = [place for word in self._stop if (place := self._text.find(word)) >= 0]
            if stops:
                self._text = self._text[: min(stops)]
            if stops or token_id in self._causal_model.end_ids:
                self.finish_reason = "stop"
                break
            if text := self._show(len(self._text) - self._held_back()):
                yield text
        if text := self._show(len(self._text.rstrip(_REPLACEMENT))):
            yield text

    def _show(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self._text[start:end]

    def _held_back(self) -> int:
        whole = self._text.rstrip(_REPLACEMENT)  # U+FFFD stands for a character whose last token is still to come
        longest = min(len(whole), max((len(word) - 1 for word in self._stop), default=0))
        beginnings = (n for n in range(longest, 0, -1) if any(word.startswith(whole[-n:]) for word in self._stop))
        return len(self._text) - len(whole) + next(beginnings, 0)
