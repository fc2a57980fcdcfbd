"""A causal language model of transformers: token ids in, new token ids out, one at a time. No framework."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

from luotuo_integrations.errors import ModelFormatError, ModelNotFoundError


class CausalModel:
    """A causal language model with its tokenizer, loaded when first used; pickles hold its name alone.

    Safe to call from several threads: they take turns on the model.
    """

    def __init__(self, name: str, device: str | None, dtype: str) -> None:
        self._arguments = (name, device, dtype)
        self._loaded: tuple[Any, Any] | None = None
        self._loading, self._tokenizing, self._generating = Lock(), Lock(), Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CausalModel":
        return self

    def __reduce__(self) -> tuple[type["CausalModel"], tuple[str, str | None, str]]:
        return (CausalModel, self._arguments)

    def _load(self) -> tuple[Any, Any]:
        with self._loading:
            if self._loaded is None:
                self._loaded = _load(*self._arguments)
            return self._loaded

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end an answer: the tokenizer's, and those of generation_config.json (GLM-4 has three)."""
        model, tokenizer = self._load()
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {token_id for token_id in [*ends, tokenizer.eos_token_id] if token_id is not None}

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], template_arguments: Mapping[str, Any]) -> list[int]:
        """Write the messages (``{"role": ..., "content": ...}``) in the model's own chat format, as token ids."""
        _, tokenizer = self._load()
        with self._tokenizing:
            # Documents may hold text such as <|user|>: it must stay text. Older versions of transformers take this
            # argument for a variable of the template, and ignore it.
            encoded = tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                return_dict=True,
                sanitize_control_tokens=True,
                **template_arguments,
            )
        return list(encoded["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Turn token ids into text, special tokens left out."""
        _, tokenizer = self._load()
        with self._tokenizing:
            return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(self, prompt: list[int], max_tokens: int, temperature: float) -> Generator[int, None, None]:
        """Yield new token ids as a second thread generates them; closing the iterator stops that thread.

        Raises:
            ValueError: If the prompt leaves no room in the model's context.
        """
        model, _ = self._load()
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and len(prompt) >= context:
            msg = (
                f"the prompt has {len(prompt)} tokens, but {self._arguments[0]} has room for {context}, its answer "
                "included: pass fewer or shorter passages"
            )
            raise ValueError(msg)
        limit = max_tokens if context is None else min(max_tokens, context - len(prompt))
        new_ids: SimpleQueue[int | None] = SimpleQueue()
        cancelled = Event()
        with ThreadPoolExecutor(max_workers=1) as pool:
            running = pool.submit(self._run, prompt, limit, temperature, new_ids, cancelled)
            try:
                yield from iter(new_ids.get, None)
            finally:
                cancelled.set()
            running.result()

    def _run(
        self, prompt: list[int], limit: int, temperature: float, new_ids: SimpleQueue[int | None], cancelled: Event
    ) -> None:
        try:
            import torch

            model, _ = self._load()
            ids = torch.tensor([prompt], device=model.device)  # (1, T)
            with self._generating:
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=self._settings(model, limit, temperature),
                    streamer=_TokenQueue(new_ids),
                    stopping_criteria=[
                        lambda _ids, _scores, **_: torch.tensor([cancelled.is_set()], device=ids.device)
                    ],
                )
        finally:  # whatever went wrong: the reader waits for this
            new_ids.put(None)

    def _settings(self, model: Any, limit: int, temperature: float) -> Any:
        ends = sorted(self.end_ids)
        settings = copy.deepcopy(model.generation_config)
        settings.update(max_new_tokens=limit, max_length=None, num_beams=1, do_sample=temperature > 0)
        settings.update(eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0)
        if temperature > 0:
            settings.temperature = temperature
        else:  # settings of sampling would only bring warnings
            settings.update(temperature=None, top_p=None, top_k=None, min_p=None, typical_p=None)
        return settings


class _TokenQueue:
    """What ``generate`` hands the prompt and then each new token to."""

    def __init__(self, new_ids: SimpleQueue[int | None]) -> None:
        self._new_ids = new_ids
        self._prompt_is_over = False

    def put(self, ids: Any) -> None:
        if self._prompt_is_over:
            self._new_ids.put(int(ids.reshape(-1)[0]))
        self._prompt_is_over = True

    def end(self) -> None:
        """Do nothing: the thread that generates says when it is done, also when it fails."""


def _load(name: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer, after the checks that need no weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

    from luotuo_integrations.devices import choose_device, choose_dtype

    target = choose_device(device)
    kind = "auto" if dtype == "auto" and target.type != "cpu" else choose_dtype(dtype, target)
    _check_config(name)
    with _clear_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.chat_template:
        msg = (
            f"{name} has no chat template (in tokenizer_config.json or chat_template.jinja): it completes text and was "
            "not taught to answer. Pass the model's chat or instruct version"
        )
        raise ModelFormatError(msg)
    # The argument was called torch_dtype before transformers 4.56.
    kinds = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": kind}
    with _clear_errors(name):
        model, report = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **kinds
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        msg = f"{name} lacks {len(missing)} of its weights, {missing[0]} among them. Copy or download it again"
        raise ModelFormatError(msg)
    return model.to(target).eval(), tokenizer


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        msg = f"{name} cannot be loaded: {error}. If a file is missing or torn, copy or download the model again"
        raise ModelFormatError(msg) from error


def _check_config(name: str) -> None:
    """Refuse what transformers cannot run as a chat model without code from the model's own folder."""
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    cause: OSError | None = None
    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        config, cause = {}, error
    if not config:
        reason = f" ({cause})" if cause else ""
        msg = f"{name} is neither a folder with config.json nor a model that the hub gives out{reason}"
        raise ModelNotFoundError(msg) from cause
    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if kind not in CONFIG_MAPPING_NAMES and "auto_map" in config:
        msg = (
            f"{name} is a {kind!r} model, which exists only as code beside its weights; that code is never run here. "
            "Serve it (vLLM, Xinference, llama.cpp) and use openai_compatible(base_url, model), or take a version that "
            "transformers has natively, such as zai-org/glm-4-9b-chat-hf or Qwen/Qwen3-0.6B"
        )
    else:
        msg = f"{name} is a {kind!r} model, which the installed transformers does not know as one that writes text"
    raise ModelFormatError(msg)
