"""Which models there are, and where their folders lie: facts as data, and one resolve()."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from luotuo_integrations.errors import ModelFormatError, ModelNotFoundError

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "luotuo-mini"
ASSETS = Path(__file__).parent / "assets"

# Rerankers that are known to load, for messages; they need no card: all that must be known is in their folders.
RERANKERS = ("BAAI/bge-reranker-base", "BAAI/bge-reranker-v2-m3", "Qwen/Qwen3-Reranker-0.6B")

# What is fetched from the hub: configuration, tokenizer and safetensors of the folder, and its numbered modules.
# Never code, never pickled weights of a backbone.
HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors", "[0-9]_*/*")

_BGE_QUERY = "为这个句子生成表示以用于检索相关文章："
_QWEN_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class ModelCard:
    """What must be known of a model to use it right.

    Attributes:
        name: What a user types.
        source: ``"bundled"``, or the repository's name on the hub.
        dimension: Length D of a vector.
        pooling: One of ``pooling.POOLINGS``.
        max_tokens: Longest text in tokens, special tokens included; the rest is cut.
        licence: SPDX identifier or the name of the model's licence.
        prompts: Text put in front, by kind (``"query"``, ``"passage"``).
        normalize: Whether vectors are scaled to length 1.
        revision: Commit, branch or tag on the hub; None is the newest.
        similarity_range: Cosines (low, high) between which texts of this model's kind usually fall.
        relevance: (slope, midpoint) of the logistic 1 / (1 + exp(-slope * (cosine - midpoint))) that turns a
            cosine into a relevance in [0, 1]; None where none was fitted.
        cut_relevance: (dimensions, slope, midpoint) of the same for vectors cut to their first numbers.
        matryoshka: Shorter dimensions that the model was trained for.
        remote_code: Whether the hub's repository holds code of its own that is needed to load it as published.
        note: One line that a user should read.
    """

    name: str
    source: str
    dimension: int
    pooling: str
    max_tokens: int
    licence: str
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    normalize: bool = True
    revision: str | None = None
    similarity_range: tuple[float, float] = (0.0, 1.0)
    relevance: tuple[float, float] | None = None
    cut_relevance: tuple[tuple[int, float, float], ...] = ()
    matryoshka: tuple[int, ...] = ()
    remote_code: bool = False
    note: str = ""

    def relevance_at(self, dimensions: int | None) -> tuple[float, float] | None:
        """The (slope, midpoint) for vectors of so many numbers, None being all; None where none was fitted."""
        if dimensions is None or dimensions == self.dimension:
            return self.relevance
        found = [(slope, midpoint) for size, slope, midpoint in self.cut_relevance if size == dimensions]
        return found[0] if found else None


def _prompts(query: str = "", passage: str = "") -> Mapping[str, str]:
    return MappingProxyType({"query": query, "passage": passage})


_E5 = _prompts("query: ", "passage: ")
_LUOTUO_NOTE = (
    "Published with code of its own and pickled weights. Download it, read its code if you like, and convert it once: "
    "luotuo_integrations.luotuo_bert.convert_luotuo_bert(folder, output); then use the output folder. "
    "Its own code, which is never run here, asks for model_args=Namespace(do_mlm=None, pooler_type='cls', "
    "temp=0.05, mlp_only_train=False, init_embeddings_model=None) and reads pooler_output with sent_emb=True."
)


def _bundled(
    name: str, relevance: tuple[float, float], cut_relevance: tuple[tuple[int, float, float], ...], note: str
) -> ModelCard:
    return ModelCard(
        name=name,
        source="bundled",
        dimension=384,
        pooling="mean",
        max_tokens=512,
        licence="MIT",
        prompts=_E5,
        similarity_range=(0.7, 1.0),
        relevance=relevance,  # training/fit_answerability.py
        cut_relevance=cut_relevance,
        matryoshka=(64, 128, 256),
        note=note,
    )


def _hub(name: str, dimension: int, pooling: str, max_tokens: int, licence: str, **facts: Any) -> ModelCard:
    return ModelCard(name, name, dimension, pooling, max_tokens, licence, **facts)


def _luotuo(name: str) -> ModelCard:
    return _hub(name, 1536, "cls", 512, "Apache-2.0", remote_code=True, note=_LUOTUO_NOTE)


def _bge(name: str, dimension: int) -> ModelCard:
    return _hub(name, dimension, "cls", 512, "MIT", prompts=_prompts(_BGE_QUERY), similarity_range=(0.2, 1.0))


def _m3e(name: str, dimension: int) -> ModelCard:
    return _hub(name, dimension, "mean", 512, "non-commercial", similarity_range=(0.6, 1.0))


def _e5(name: str, dimension: int) -> ModelCard:
    return _hub(name, dimension, "mean", 512, "MIT", prompts=_E5, similarity_range=(0.7, 1.0))


_ALL_CARDS = (
    _bundled(
        DEFAULT_MODEL,
        (74.5, 0.838),
        ((64, 72.8, 0.904), (128, 77.5, 0.875), (256, 73.4, 0.848)),
        "In the package. Six layers, distilled from multilingual-e5-small and trained on Chinese pairs.",
    ),
    _bundled(
        "luotuo-tiny",
        (70.0, 0.861),
        ((64, 64.6, 0.912), (128, 67.2, 0.888), (256, 69.9, 0.867)),
        "In the package. Three layers, distilled from luotuo-mini: the fast one.",
    ),
    _luotuo("silk-road/luotuo-bert"),
    _luotuo("silk-road/luotuo-bert-medium"),
    _luotuo("silk-road/luotuo-bert-en"),
    _bge("BAAI/bge-small-zh-v1.5", 512),
    _bge("BAAI/bge-base-zh-v1.5", 768),
    _bge("BAAI/bge-large-zh-v1.5", 1024),
    _hub("BAAI/bge-m3", 1024, "cls", 8192, "MIT", similarity_range=(0.3, 1.0), note="Dense vectors only."),
    _m3e("moka-ai/m3e-small", 512),
    _m3e("moka-ai/m3e-base", 768),
    _m3e("moka-ai/m3e-large", 1024),
    _e5("intfloat/multilingual-e5-small", 384),
    _e5("intfloat/multilingual-e5-base", 768),
    _e5("intfloat/multilingual-e5-large", 1024),
    _hub("shibing624/text2vec-base-chinese", 768, "mean", 128, "Apache-2.0", similarity_range=(0.3, 1.0)),
    _hub(
        "Qwen/Qwen3-Embedding-0.6B",
        1024,
        "last",
        32768,
        "Apache-2.0",
        prompts=_prompts(_QWEN_QUERY),
        similarity_range=(0.1, 1.0),
        matryoshka=(32, 64, 128, 256, 512, 768),
    ),
    _hub(
        "google/embeddinggemma-300m",
        768,
        "mean",
        2048,
        "Gemma",
        prompts=_prompts("task: search result | query: ", "title: none | text: "),
        similarity_range=(0.1, 1.0),
        matryoshka=(128, 256, 512),
        note="The hub asks for a login and for consent to the licence.",
    ),
)

CARDS: Mapping[str, ModelCard] = MappingProxyType({card.name: card for card in _ALL_CARDS})


def find_card(name: str | Path) -> ModelCard | None:
    """Find the card of a model by its name, by its name without the owner, or by its folder's name.

    A folder downloaded by hand keeps its repository's last name (``models/bge-small-zh-v1.5``), and the hub cache
    writes ``models--BAAI--bge-small-zh-v1.5/snapshots/<commit>``: both are recognised, by exact match only.

    Args:
        name: A model name or a folder.

    Returns:
        The card, or None.
    """
    text = str(name)
    if text in CARDS:
        return CARDS[text]
    parts = Path(text).parts
    candidates = {parts[-1]} if parts else set()
    candidates |= {part.split("--")[-1] for part in parts if part.startswith("models--")}
    for card in CARDS.values():
        if card.name.split("/")[-1] in candidates:
            return card
    return None


def resolve(
    name: str | Path,
    *,
    cache_folder: str | Path | None = None,
    revision: str | None = None,
    kind: Literal["embedding", "reranker"] = "embedding",
) -> Path:
    """Find the folder of a model: bundled, then an existing folder, then the hub cache, then the hub.

    Args:
        name: A name in ``CARDS``, any repository name on the hub (``owner/name``), or a folder.
        cache_folder: Where the hub's files are kept; None is the hub library's own cache.
        revision: Commit, branch or tag on the hub.
        kind: What the model is wanted for: an error tells which models of that kind there are.

    Returns:
        The folder. Nothing in it is opened.

    Raises:
        ModelNotFoundError: If there is no such model. The message lists what to try.
        ModelFormatError: If the model is published in a form that must be converted first.
    """
    card = CARDS.get(str(name))
    if card is not None and card.source == "bundled":
        return ASSETS / card.name
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser() raises for an unknown user
    if str(name) and folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        reason = "it is no folder, and no name in the registry or on the hub"
        known = _known_name(str(name), kind) if len(folder.parts) == 1 else None
        raise ModelNotFoundError(_not_found(name, f"{reason}; is it {known!r}?" if known else reason, kind))
    if card is not None and card.remote_code:
        msg = f"{card.name} cannot be loaded as it is on the hub. {card.note}"
        raise ModelFormatError(msg)
    return _from_hub(str(name), card, cache_folder, revision or (card.revision if card is not None else None), kind)


def _from_hub(
    name: str, card: ModelCard | None, cache_folder: str | Path | None, revision: str | None, kind: str
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository = card.source if card is not None else name
    options: dict[str, Any] = {"cache_dir": cache_folder, "revision": revision, "allow_patterns": list(HUB_PATTERNS)}
    try:  # a complete copy in the cache is used without asking the network
        cached = Path(snapshot_download(repository, local_files_only=True, **options))
        if _is_complete(cached):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        logger.debug("%s is not in the hub cache", repository)
    note = f" {card.note}" if card is not None and card.note else ""
    try:
        logger.info("Downloading %s from the hub", repository)
        folder = Path(snapshot_download(repository, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = f"the hub could not be reached or refused ({type(error).__name__}; HF_ENDPOINT may name a mirror)"
        raise ModelNotFoundError(_not_found(name, reason, kind) + note) from error
    if not _is_complete(folder):  # where the hub cannot be reached, its library returns what there is
        reason = f"{folder} lacks configuration or *.safetensors: an interrupted download, or the hub has none of them"
        raise ModelNotFoundError(_not_found(name, reason, kind) + note)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether every weight file that the folder asks for is there: an interrupted download leaves some out."""
    modules = [{"path": "", "type": "Transformer"}]
    if (folder / "modules.json").is_file():
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    elif not (folder / "config.json").is_file():
        return False
    for module in modules:
        part = folder / module["path"]
        weights = [*part.glob("*.safetensors"), *part.glob("*.bin")]
        if module["type"].endswith(("Transformer", "Dense")) and not weights:
            return False
    indexes = folder.rglob("*.safetensors.index.json")
    maps = [(path.parent, json.loads(path.read_text(encoding="utf-8"))["weight_map"]) for path in indexes]
    return all((parent / shard).is_file() for parent, weight_map in maps for shard in weight_map.values())


def _known_name(name: str, kind: str) -> str | None:
    """The whole name of a model that was typed without its owner."""
    if kind == "reranker":
        return next((known for known in RERANKERS if known.split("/")[-1] == name), None)
    card = find_card(name)
    return None if card is None else card.name


def _not_found(name: str | Path, reason: str, kind: str) -> str:
    if kind == "reranker":
        return (
            f"No reranker {str(name)!r}: {reason}. Give a folder that holds config.json, or a repository name "
            f"'owner/name', such as {', '.join(RERANKERS)}, that is in the hub's cache or can be downloaded. The "
            "package brings no reranker: without a network, download one elsewhere and give its folder."
        )
    return (
        f"No model {str(name)!r}: {reason}. Give a folder that holds config.json, a repository name 'owner/name', "
        f"or one of: {', '.join(CARDS)}. Without a network, {DEFAULT_MODEL!r} is in the package."
    )
