"""Students: models to train, made out of a base by a short description, and written to a folder."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from luotuo_integrations.model_folder import DenseSettings, read_settings, write_settings
from luotuo_integrations.modeling import EmbeddingModel, make_head
from luotuo_integrations.pooling import POOLINGS
from luotuo_integrations.registry import DEFAULT_MODEL, find_card, resolve
from luotuo_integrations.texts import Kind
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.backbones import find_layers, find_words, keep_layers, new_backbone, spread_layers
from luotuo_integrations.training.student_spec import StudentSpec
from luotuo_integrations.training.vocabulary import (
    count_pieces,
    needed_pieces,
    piece_texts,
    prune_tokenizer,
    select_pieces,
)

PREFIX_TOKEN = "<luotuo-prefix-{}>"
KINDS: tuple[str, ...] = get_args(Kind)
DEFAULT_TOKENS = 512

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PREFIX_NOISE = 0.1


def build_student(
    spec: str,
    folder: Path,
    *,
    base: str | Path = DEFAULT_MODEL,
    teacher_dimension: int | None = None,
    texts: Iterable[str] = (),
    max_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
    one_prompt: bool = False,
    pooling: str | None = None,
    prefix_tokens: int = 0,
    seed: int = 0,
    cache_folder: str | Path | None = None,
    revision: str | None = None,
) -> Path:
    """Make a student and write its folder, which `EmbeddingModel.load` and `Encoder` read: float32 weights.

    Prompts, pooling, longest length and lowercasing are the base's where nothing else is said; vectors are normalised.

    Args:
        spec: What to build, see ``student_spec.GRAMMAR``.
        folder: Where to write; nothing may be in it.
        base: Folder or name of the model that the student starts from.
        teacher_dimension: Length of the teacher's vectors. Where the model's own are of another length, its heads give
            way to one Linear head: weights normal with standard deviation 1 / sqrt(H), H the model's width, biases
            zero, no activation. None leaves the heads as they are.
        texts: Texts whose pieces are counted for ``vocab:``; read once, and only then.
        max_tokens: Longest text in tokens, special tokens included.
        prompts: Text put in front, by ``"query"`` and ``"passage"``; a kind that is missing keeps the base's.
        one_prompt: Queries get the prompt of passages, for a teacher that embeds both in one way.
        pooling: One of ``pooling.POOLINGS``.
        prefix_tokens: So many new tokens ``<luotuo-prefix-0>`` and so on are put before both prompts. Their embeddings,
            the last rows, start at the mean embedding, with noise of a tenth of the embeddings' standard deviation.
        seed: Of all random numbers.
        cache_folder: Where the hub's files are kept.
        revision: Commit, branch or tag on the hub.

    Returns:
        ``folder``.

    Raises:
        ValueError: If the description is wrong or does not fit the base, or another value is out of range.
        FileExistsError: If the folder holds anything.
        ModelNotFoundError: If there is no such base.
    """
    folder = Path(folder)
    parsed = StudentSpec.parse(spec)
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder} is not empty. Choose another folder for the student"
        raise FileExistsError(msg)
    _check(prompts or {}, pooling, teacher_dimension=teacher_dimension, max_tokens=max_tokens)
    if prefix_tokens < 0 or (parsed.glm is not None and (prefix_tokens or parsed.vocabulary is not None)):
        msg = (
            f"prefix_tokens={prefix_tokens}: give 0 or more. A glm: student has no words of its own, so 0 and no vocab:"
        )
        raise ValueError(msg)
    if parsed.glm is not None:
        return _build_glm(parsed.glm, folder, teacher_dimension, max_tokens, prompts or {}, pooling, seed)
    model, reader = _load(base if parsed.base is None else parsed.base, cache_folder, revision)
    model = _with_architecture(model, reader, parsed, max_tokens, seed)
    model = _with_settings(model, reader, max_tokens, prompts or {}, pooling)
    if one_prompt:
        passage = model.settings.prompts["passage"]
        model.settings = replace(model.settings, prompts={"query": passage, "passage": passage})
    tokenizer = reader.tokenizer
    if parsed.vocabulary is not None:
        tokenizer = _prune_vocabulary(model, reader, parsed.vocabulary, texts)
    if prefix_tokens:
        tokenizer = _add_prefix(model, tokenizer, prefix_tokens, seed)
    if teacher_dimension is not None and teacher_dimension != model.dimension:
        model = _with_head(model, teacher_dimension, seed)
    return model.save(folder, tokenizer)


def _check(prompts: Mapping[str, str], pooling: str | None, **numbers: int | None) -> None:
    """Refuse what is wrong for any student, before anything is loaded."""
    wrong = [f"a prompt for {kind!r}" for kind in sorted(set(prompts) - set(KINDS))]
    wrong += [f"{name}={value}" for name, value in numbers.items() if value is not None and value < 1]
    if pooling is not None and pooling not in POOLINGS:
        wrong.append(f"pooling={pooling!r}")
    if wrong:
        msg = (
            f"{', '.join(wrong)} cannot be used: prompts are for {' and '.join(KINDS)}, numbers at least 1, and "
            f"pooling is one of {', '.join(POOLINGS)}"
        )
        raise ValueError(msg)


def _build_glm(
    glm: tuple[str, tuple[int, int]],
    folder: Path,
    dimension: int | None,
    max_tokens: int | None,
    prompts: Mapping[str, str],
    pooling: str | None,
    seed: int,
) -> Path:
    """Write a student behind a frozen GLM, which is large and is not loaded for that."""
    from luotuo_integrations.training.glm_student import build_glm_student

    source, (layers, width) = glm
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        tokens = max_tokens or DEFAULT_TOKENS
        built = build_glm_student(
            source,
            Path(temporary) / "model",
            layers=layers,
            width=width,
            dimension=dimension,
            max_tokens=tokens,
            seed=seed,
        )
        settings = read_settings(built)
        prompts = {**settings.prompts, **prompts}
        write_settings(built, replace(settings, prompts=prompts, pooling=pooling or settings.pooling), width)
        if folder.exists():
            folder.rmdir()  # it is empty
        built.replace(folder)
    return folder


def _load(
    source: str | Path, cache_folder: str | Path | None, revision: str | None
) -> tuple[EmbeddingModel, TextTokenizer]:
    folder = resolve(source, cache_folder=cache_folder, revision=revision)
    model = EmbeddingModel.load(folder, card=find_card(source))
    return model, TextTokenizer(folder / model.settings.transformer, lowercase=model.settings.lowercase)


def _with_architecture(
    model: EmbeddingModel, reader: TextTokenizer, spec: StudentSpec, max_tokens: int | None, seed: int
) -> EmbeddingModel:
    """The model with the layers that the description names, or a random one in its place."""
    if spec.layers is not None:
        count = len(find_layers(model.backbone)[1])
        kept = spread_layers(count, spec.layers[0]) if len(spec.layers) == 1 else spec.layers
        return EmbeddingModel(keep_layers(model.backbone, kept), model.settings, list(model.heads))
    if spec.random is None:
        return model
    layers, width = spec.random
    config = BertConfig(
        vocab_size=max(reader.tokenizer.get_vocab().values()) + 1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // (32 if width % 64 else 64),
        intermediate_size=4 * width,
        max_position_embeddings=max_tokens or model.settings.max_tokens or DEFAULT_TOKENS,
        pad_token_id=reader.pad_id,
    )
    return EmbeddingModel(new_backbone(BertModel, config, seed), replace(model.settings, heads=()))


def _with_settings(
    model: EmbeddingModel,
    reader: TextTokenizer,
    max_tokens: int | None,
    prompts: Mapping[str, str],
    pooling: str | None,
) -> EmbeddingModel:
    config: Any = model.backbone.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions and _counts_from_padding(model.backbone):
        positions -= config.pad_token_id + 1
    if max_tokens is not None:
        least = reader.special_count + 1
        if max_tokens < least or (positions and max_tokens > positions):
            msg = f"max_tokens={max_tokens} is out of range: this student takes {least} to {positions or 'any number'}"
            raise ValueError(msg)
        reader.tokenizer.model_max_length = max_tokens
    old = model.settings
    settings = replace(
        old,
        normalize=True,
        max_tokens=max_tokens or old.max_tokens,
        prompts={kind: prompts.get(kind, old.prompts.get(kind, "")) for kind in KINDS},
        pooling=pooling or old.pooling,
    )
    return EmbeddingModel(model.backbone, settings, list(model.heads))


def _counts_from_padding(backbone: nn.Module) -> bool:
    """Whether positions are counted from the padding id on, as RoBERTa does."""
    return getattr(getattr(backbone, "embeddings", None), "padding_idx", None) is not None


def _prune_vocabulary(model: EmbeddingModel, reader: TextTokenizer, limit: int, texts: Iterable[str]) -> Any:
    """Keep the rows of the tokens that the texts and the prompts need; return the tokenizer of these."""
    core = _core(reader.tokenizer)
    pieces = piece_texts(core)
    prompts = [prompt for prompt in model.settings.prompts.values() if prompt]
    needed = needed_pieces(core).union(*reader.encode(prompts))
    kept = select_pieces(pieces, count_pieces(reader.encode, len(pieces), texts), limit, needed, option="vocab:")
    new = {old: index for index, old in enumerate(kept)}
    config: Any = model.backbone.config
    padding = config.pad_token_id
    if _counts_from_padding(model.backbone) and new.get(padding) != padding:
        msg = (
            f"the padding token's id would move from {padding} to {new.get(padding)}, and this model counts its "
            "positions from it. Leave vocab: away, or choose another base"
        )
        raise ValueError(msg)
    words = _words(model.backbone)
    padding = None if words.padding_idx is None else new.get(words.padding_idx)
    _set_words(model.backbone, words.weight.detach()[kept], padding)
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new.get(value))
    return _with_core(reader.tokenizer, prune_tokenizer(core, kept))


def _add_prefix(model: EmbeddingModel, tokenizer: Any, count: int, seed: int) -> Any:
    """Put new tokens before both prompts, their embeddings last; return the tokenizer that knows them."""
    core = _core(tokenizer)
    names = [PREFIX_TOKEN.format(index) for index in range(count)]
    if names[0] in core.get_vocab():
        msg = "the base has prefix tokens already. Leave prefix_tokens at 0, and they are trained on"
        raise ValueError(msg)
    core.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    first = core.get_vocab()[names[0]]
    words = _words(model.backbone)
    known = words.weight.detach()[:first]  # rows beyond the tokenizer's ids were never used
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, known.shape[1], generator=generator) * known.std() * _PREFIX_NOISE
    _set_words(model.backbone, torch.cat([known, known.mean(dim=0) + noise]), words.padding_idx)
    prefix = "".join(names)
    prompts = {kind: prefix + prompt for kind, prompt in model.settings.prompts.items()}
    model.settings = replace(model.settings, prompts=prompts)
    return _with_core(tokenizer, core)


def _with_head(model: EmbeddingModel, dimension: int, seed: int) -> EmbeddingModel:
    """The model with one Linear head to that many numbers."""
    width = model.hidden_size
    weight = torch.randn(dimension, width, generator=torch.Generator().manual_seed(seed)) / width**0.5  # (D, H)
    settings = replace(model.settings, heads=(DenseSettings("2_Dense"),))
    return EmbeddingModel(model.backbone, settings, [make_head(weight, torch.zeros(dimension))])


def _words(backbone: nn.Module) -> nn.Embedding:
    words = find_words(backbone)
    if words is None:
        msg = f"{type(backbone).__name__} has no word embedding of its own: no vocab: and no prefix_tokens for it"
        raise ValueError(msg)
    return words


def _set_words(backbone: nn.Module, rows: Tensor, padding_id: int | None) -> None:
    """Give the backbone another word embedding (V, H)."""
    words = nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=padding_id, _weight=rows.clone())
    backbone.set_input_embeddings(words)  # type: ignore[operator]
    backbone.config.vocab_size = len(rows)  # type: ignore[union-attr]


def _core(tokenizer: Any) -> Tokenizer:
    """A copy of the Rust core of a transformers tokenizer.

    Raises:
        ValueError: If it has none.
    """
    core: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        msg = f"{type(tokenizer).__name__} has no tokenizer.json: its vocabulary can be neither pruned nor extended"
        raise ValueError(msg)
    copied: Tokenizer = Tokenizer.from_str(core.to_str())
    return copied


def _with_core(tokenizer: Any, core: Tokenizer) -> Any:
    """A transformers tokenizer with another core, and all else as it was."""
    named = {name: token for name in _NAMED_TOKENS if (token := getattr(tokenizer, name)) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **named,
    )
