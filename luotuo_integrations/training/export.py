"""The folder of a finished model: weights, model card, golden vectors and, where asked for, packed weights and ONNX."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from luotuo_integrations._optional import require
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import PACKED_WEIGHTS, read_object, write_json
from luotuo_integrations.modeling import EmbeddingModel, put_in_place
from luotuo_integrations.pooling import NEEDS_HIDDEN_STATES
from luotuo_integrations.quantization import (
    BLOCK_SIZE,
    EightBitTensor,
    QuantizedTensor,
    quantize_q4,
    quantize_q8,
    write_packed,
)
from luotuo_integrations.texts import Kind, check_texts
from luotuo_integrations.training.onnx_export import export_onnx

Pack = Literal["none", "4bit", "8bit"]

CARD_FILE = "README.md"
GOLDEN_FILE = "golden.json"
ONNX_FILE = "onnx/model.onnx"
GOLDEN_TEXTS = (
    "骆驼把水存在血液里，而不是驼峰里。",
    "请假超过三天，需要部门经理和人事一起批准。",
    "这台洗衣机脱水时声音很大，是不是没有放平？",
    "傍晚的图书馆很安静，只听得见翻书的声音。",
)

_GOLDEN_NUMBERS = 8
_GOLDEN_DECIMALS = 5
_GOLDEN_TOLERANCE = 1e-4  # of a number of a vector of length 1
_KINDS: tuple[Kind, ...] = ("query", "passage")
_PACKS: Mapping[str, str] = {
    "none": "safetensors",
    "4bit": "4-bit blocks of 32",
    "8bit": "8-bit blocks of 32, 4-bit where that loses nothing",
}
_WITH_CODE_OF_OURS = ("luotuo-glm-encoder",)  # types of backbone that plain transformers does not know


@dataclass(frozen=True)
class ModelDescription:
    """What a model card says beside what the model itself tells.

    Attributes:
        name: The model's name, as a user types it: a folder, or a repository on the hub.
        base: What the model was before the training.
        data: What it was trained on.
        licence: SPDX identifier or name of the model's licence; None where none was chosen.
        metrics: Numbers by name, in the order of the table.
        teacher: What it was distilled from; None where nothing was.
        teacher_licence: The teacher's licence.
        configuration: The command or the settings of the training, as text.
        languages: Codes of ISO 639-1.
    """

    name: str
    base: str
    data: str
    licence: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    teacher: str | None = None
    teacher_licence: str | None = None
    configuration: str = ""
    languages: Sequence[str] = ("zh",)


def export_model(
    model: EmbeddingModel,
    tokenizer: Any,
    folder: Path,
    *,
    card: ModelDescription,
    golden_texts: Sequence[str] = GOLDEN_TEXTS,
    pack: Pack = "none",
    onnx: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a finished model: the folder appears whole or not at all.

    It holds what `EmbeddingModel.save` writes, README.md (the model card), golden.json (for `check_golden`), and
    onnx/model.onnx where asked for. Open weights load in sentence-transformers too, packed ones in this package only.

    Args:
        model: The model, on any device.
        tokenizer: Its transformers tokenizer.
        folder: Where to write.
        card: What the model card says.
        golden_texts: Texts whose vectors are written down.
        pack: ``"4bit"`` and ``"8bit"`` store the backbone's matrices in blocks, in place of model.safetensors; with
            ``"8bit"``, a matrix that 4-bit blocks hold without loss is stored in these. Heads stay as they are.
        onnx: Write onnx/model.onnx; of packed weights, as they are after unpacking.
        overwrite: Replace an existing folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder exists and holds anything, and ``overwrite`` is false.
        ImportError: If ``onnx`` is asked for and onnx or onnxruntime is not installed.
        TypeError: If a golden text is no string.
        ValueError: If ``pack`` is unknown, there is no golden text, or a GLM encoder is asked for as ONNX.
    """
    _check_request(model, folder, golden_texts, pack, onnx, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        # Under its own name, which may tell the encoder what is known of the model.
        written = model.save(Path(temporary) / folder.name, tokenizer)
        if pack != "none":
            _pack_weights(written, pack)
        if onnx:
            (written / ONNX_FILE).parent.mkdir()
            export_onnx(EmbeddingModel.load(written), written / ONNX_FILE)
        (written / CARD_FILE).write_text(_card_text(card, model, pack, onnx), encoding="utf-8")
        _write_golden(written, golden_texts)
        put_in_place(written, folder)
    return folder


def check_onnx(model: EmbeddingModel) -> None:
    """See that a model can be exported to ONNX here.

    Raises:
        ValueError: If it cannot, being a student behind a GLM.
        ImportError: If onnx or onnxruntime is not installed.
    """
    if _type_of(model) in _WITH_CODE_OF_OURS:
        msg = f"A {_type_of(model)} reads its GLM from another folder, which ONNX cannot say. Use onnx=False"
        raise ValueError(msg)
    require("onnx", extra="onnx")
    require("onnxruntime", extra="onnx")


def check_golden(folder: Path) -> float:
    """Embed the golden texts of a folder again, in float32 on the CPU.

    Args:
        folder: A folder that `export_model` wrote.

    Returns:
        The largest deviation of any number from what golden.json says.

    Raises:
        ModelFormatError: If golden.json is missing or damaged, or the folder does not load.
        ValueError: If the dimension is another, or the deviation exceeds the file's tolerance.
    """
    path = folder / GOLDEN_FILE
    golden = read_object(path)
    try:
        dimension, tolerance = int(golden["dimension"]), float(golden["tolerance"])
        texts: dict[Kind, list[str]] = {kind: list(golden["texts"][kind]) for kind in _KINDS}
        expected = {kind: np.asarray(golden["vectors"][kind], np.float32) for kind in _KINDS}
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} holds no golden vectors ({error!r}). Copy or download the folder again"
        raise ModelFormatError(msg) from error
    encoder = Encoder(folder, device="cpu", dtype="float32")
    if encoder.dimension != dimension:
        msg = f"The model in {folder} gives {encoder.dimension} numbers; {GOLDEN_FILE} was written at {dimension}"
        raise ValueError(msg)
    worst = 0.0
    for kind in _KINDS:
        found = encoder.encode(texts[kind], kind)[:, :_GOLDEN_NUMBERS]
        if found.shape != expected[kind].shape:
            msg = f"{path}: {len(texts[kind])} texts do not fit vectors of shape {expected[kind].shape}"
            raise ModelFormatError(msg)
        worst = max(worst, float(np.abs(found - expected[kind]).max()))
    if worst > tolerance:
        msg = (
            f"Vectors of the model in {folder} differ by {worst:.2g} from {GOLDEN_FILE}; {tolerance:.2g} is allowed. "
            "The weights, the tokenizer or the prompts are not those that were exported: export or copy them again"
        )
        raise ValueError(msg)
    return worst


def _card_text(card: ModelDescription, model: EmbeddingModel, pack: Pack, onnx: bool) -> str:
    """The model card: Markdown with the front matter that the hub reads, Chinese and English."""
    teacher = f"{card.teacher} (licence: {card.teacher_licence or 'unknown'})" if card.teacher else "none 无"
    facts = {
        "Base 基座": card.base,
        "Teacher 教师": teacher,
        "Training data 训练数据": card.data,
        "Licence 许可": card.licence or "not chosen yet 尚未确定",
        "Dimension 维数": model.dimension,
        "Longest text 最长": f"{model.settings.max_tokens} tokens" if model.settings.max_tokens else "as the tokenizer",
        "Pooling 池化": model.settings.pooling,
        "Prompts 提示语": ", ".join(f"{kind}: `{text}`" for kind, text in model.settings.prompts.items() if text)
        or "none 无",
        "Weights 权重": _PACKS[pack],
    }
    measured = {name: f"{value:.4f}" for name, value in card.metrics.items()} or {"none 无": ""}
    parts = [
        _front_matter(card),
        f"# {card.name}",
        f"把文本变成 {model.dimension} 维向量，用于语义检索、聚类和去重。",
        f"Turns text into vectors of {model.dimension} numbers, for semantic search, clustering and deduplication.",
        _table(("", ""), facts),
        "## Measured 评测",
        _table(("Metric 指标", "Value 数值"), measured),
        "## Use 用法",
        _usage(card, model, pack, onnx),
    ]
    if card.configuration:
        parts += ["## Training 训练", f"```\n{card.configuration.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: ModelDescription) -> str:
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "language": list(card.languages),
        "tags": ["sentence-transformers", "feature-extraction", "luotuo"],
    }
    if card.licence and re.fullmatch(r"[\w.-]+", card.licence):  # the hub knows identifiers only
        fields["license"] = card.licence.lower()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base):
        fields["base_model"] = card.base
    # JSON is YAML too, and needs no thought about quotes.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    cells = [(name, " ".join(str(value).split()).replace("|", "\\|")) for name, value in rows.items()]
    return "\n".join(f"| {left} | {right} |" for left, right in (head, ("---", "---"), *cells))


def _usage(card: ModelDescription, model: EmbeddingModel, pack: Pack, onnx: bool) -> str:
    name = json.dumps(card.name, ensure_ascii=False)
    parts = [
        "`pip install luotuo-integrations`; give the folder, or the model's name on the hub.",
        "```python\n"
        "from luotuo_integrations import LuotuoEmbeddings\n"
        f"embeddings = LuotuoEmbeddings({name})\n"
        'vector = embeddings.embed_query("出差住宿每晚可以报销多少？")\n```',
        "LangChain:",
        "```python\n"
        "from langchain_core.vectorstores import InMemoryVectorStore\n"
        'store = InMemoryVectorStore.from_texts(["每晚不超过四百五十元。"], embedding=embeddings)\n'
        'documents = store.similarity_search("出差住宿每晚可以报销多少？", k=1)\n```',
    ]
    if pack != "none" or model.settings.pooling in NEEDS_HIDDEN_STATES or _type_of(model) in _WITH_CODE_OF_OURS:
        parts.append(
            "Not for sentence-transformers: loads in luotuo-integrations only. 只能用 luotuo-integrations 加载。"
        )
    else:
        parts += [
            "sentence-transformers:",
            "```python\n"
            "from sentence_transformers import SentenceTransformer\n"
            f"model = SentenceTransformer({name})\n"
            'vectors = model.encode(["出差住宿每晚可以报销多少？"], prompt_name="query")\n```',
        ]
    if onnx:
        parts.append(
            f"`{ONNX_FILE}`: inputs `input_ids` and `attention_mask`, int64 (batch, sequence), padded on the right and "
            "with the prompt's tokens; output `sentence_embedding`, float32."
        )
    return "\n\n".join(parts)


def _check_request(
    model: EmbeddingModel, folder: Path, golden_texts: Sequence[str], pack: str, onnx: bool, overwrite: bool
) -> None:
    if pack not in _PACKS:
        msg = f"pack={pack!r} is unknown; choose one of {', '.join(_PACKS)}"
        raise ValueError(msg)
    check_texts(golden_texts)
    if not golden_texts:
        msg = "golden_texts is empty; give at least one text, or leave it out"
        raise ValueError(msg)
    if onnx:
        check_onnx(model)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        msg = f"{folder} is not empty. Choose another folder, or pass overwrite=True"
        raise FileExistsError(msg)


def _type_of(model: EmbeddingModel) -> str:
    return str(model.backbone.config.model_type)  # type: ignore[union-attr]


def _pack_weights(folder: Path, pack: Pack) -> None:
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: _packed(tensor, pack) for file in files for name, tensor in load_file(file).items()}
    write_packed(folder / PACKED_WEIGHTS, tensors)
    for file in [*files, *folder.glob("*.safetensors.index.json")]:
        file.unlink()


def _packed(tensor: Tensor, pack: Pack) -> Tensor | QuantizedTensor | EightBitTensor:
    if tensor.ndim == 2 and tensor.shape[1] % BLOCK_SIZE == 0:
        four_bits = quantize_q4(tensor)
        # Word embeddings that came in 4-bit blocks and were not trained are such already: 8 bits would add nothing.
        lossless = torch.equal(four_bits.dequantize(), tensor.float())
        return four_bits if pack == "4bit" or lossless else quantize_q8(tensor)
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor.float()


def _write_golden(folder: Path, texts: Sequence[str]) -> None:
    encoder = Encoder(folder, device="cpu", dtype="float32")
    vectors = {kind: encoder.encode(texts, kind)[:, :_GOLDEN_NUMBERS] for kind in _KINDS}
    largest = max(float(np.abs(found).max()) for found in vectors.values())
    golden = {
        "dimension": encoder.dimension,
        "tolerance": _GOLDEN_TOLERANCE * max(1.0, largest),
        "texts": {kind: list(texts) for kind in _KINDS},
        "vectors": {
            kind: [[round(float(number), _GOLDEN_DECIMALS) for number in row] for row in found]
            for kind, found in vectors.items()
        },
    }
    write_json(folder / GOLDEN_FILE, golden)
