"""Exported folders: the same vectors everywhere, a model card that works when typed, golden vectors that notice."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, GlmConfig, GlmModel, Qwen2Config, Qwen2Model

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings
from luotuo_integrations.modeling import EmbeddingModel, make_head
from luotuo_integrations.pooling import POOLINGS
from luotuo_integrations.quantization import quantize_q4
from luotuo_integrations.training.export import GOLDEN_TEXTS, ModelDescription, check_golden, export_model
from luotuo_integrations.training.glm_student import build_glm_student
from luotuo_integrations.training.onnx_export import export_onnx
from tests.conftest import character_tokenizer
from tests.unit.test_glm_encoder import SIZES

TEXTS = ["试用期员工可以请年假吗", "出差", "今天天气很好你是谁", "报销发票需要什么材料"]
CARD = ModelDescription(
    name="luotuo-small",
    base="google-bert/bert-base-chinese",
    data="12,000 pairs of halves of articles",
    licence="Apache-2.0",
    metrics={"recall@10": 0.91234, "ndcg@10": 0.8},
    teacher="text-embedding-ada-002",
    teacher_licence="terms of OpenAI",
    configuration="luotuo distill config.toml",
)


def bert_model(pooling: str = "mean", width: int = 64) -> EmbeddingModel:
    """A random BERT whose matrices are wide enough for blocks, with a head to 24 numbers and both prompts."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    prompts = {"query": "query: ", "passage": "passage: "}
    settings = ModelSettings(pooling=pooling, max_tokens=128, prompts=prompts, heads=[DenseSettings("2_Dense", "Tanh")])
    head = make_head(torch.randn(24, width), torch.randn(24), "Tanh")
    return EmbeddingModel(BertModel(config, add_pooling_layer=False), settings, [head]).eval()


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "luotuo-small"
    return export_model(bert_model(), character_tokenizer(), folder, card=CARD, onnx=True)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def run_onnx(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    vectors: np.ndarray = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    return vectors


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_vectors_are_those_of_the_model_here_and_in_sentence_transformers(plain_folder: Path, kind: Any) -> None:
    from sentence_transformers import SentenceTransformer

    model, tokenizer = bert_model(), character_tokenizer()
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(f"{kind}: {text}")["input_ids"]])
        with torch.no_grad():
            expected.append(torch.nn.functional.normalize(model(ids, torch.ones_like(ids)), dim=1)[0].numpy())
    np.testing.assert_allclose(Encoder(plain_folder, device="cpu").encode(TEXTS, kind), expected, atol=1e-5)
    theirs = SentenceTransformer(str(plain_folder), device="cpu")
    name = "document" if kind == "passage" else kind
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name=name), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_exported(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = export_model(bert_model().to(dtype), character_tokenizer(), tmp_path / "model", card=CARD, pack="8bit")
    assert check_golden(folder) < 1e-5


def test_the_golden_vectors_hold(plain_folder: Path) -> None:
    golden = json.loads((plain_folder / "golden.json").read_text(encoding="utf-8"))
    assert golden["dimension"] == 24
    assert golden["texts"] == {"query": list(GOLDEN_TEXTS), "passage": list(GOLDEN_TEXTS)}
    vectors = Encoder(plain_folder, device="cpu").encode(GOLDEN_TEXTS, "query")
    np.testing.assert_allclose(golden["vectors"]["query"], vectors[:, :8], atol=1e-5)
    assert golden["vectors"]["query"] != golden["vectors"]["passage"]
    assert check_golden(plain_folder) <= 1e-5


@pytest.mark.parametrize("change", ["weights", "prompt", "dimension"])
def test_golden_vectors_notice_a_change(tmp_path: Path, plain_folder: Path, change: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(plain_folder, folder)
    if change == "weights":
        model = bert_model()
        with torch.no_grad():
            model.heads[0][0].weight *= 1.01
        model.save(tmp_path / "other")
        shutil.copy(tmp_path / "other/2_Dense/model.safetensors", folder / "2_Dense/model.safetensors")
    elif change == "prompt":
        path = folder / "config_sentence_transformers.json"
        path.write_text(path.read_text(encoding="utf-8").replace("query: ", "ask: "), encoding="utf-8")
    else:
        path = folder / "golden.json"
        golden = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(golden | {"dimension": 384}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"differ by|gives 24 numbers; golden\.json was written at 384"):
        check_golden(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"dimension": 24, "tolerance": 0.1, "texts": 3}'])
def test_damaged_golden_vectors_are_named(tmp_path: Path, plain_folder: Path, content: str | None) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(plain_folder, folder)
    (folder / "golden.json").unlink()
    if content is not None:
        (folder / "golden.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFormatError, match=r"golden\.json"):
        check_golden(folder)


@pytest.mark.parametrize(("pack", "least"), [("4bit", 0.95), ("8bit", 0.9999)])
def test_packed_weights_come_in_place_of_the_open_ones(
    tmp_path: Path, plain_folder: Path, pack: Any, least: float
) -> None:
    folder = export_model(bert_model(), character_tokenizer(), tmp_path / "packed", card=CARD, pack=pack)
    assert [path.name for path in folder.glob("*.safetensors")] == ["packed.safetensors"]
    names = load_file(folder / "packed.safetensors")
    suffix = ".q4" if pack == "4bit" else ".q8"
    matrices = {name for name, tensor in load_file(plain_folder / "model.safetensors").items() if tensor.ndim == 2}
    assert {name.removesuffix(suffix) for name in names if name.endswith(suffix)} == matrices
    exact, packed = (Encoder(one, device="cpu").encode(TEXTS) for one in (plain_folder, folder))
    cosines = (exact * packed).sum(axis=1)
    assert least < cosines.min() < 1 - 1e-9
    head = "2_Dense/model.safetensors"
    assert (folder / head).read_bytes() == (plain_folder / head).read_bytes()
    assert check_golden(folder) <= 1e-5
    assert "sentence_transformers import" not in card_of(folder)


def test_what_lies_in_4_bit_blocks_stays_there(tmp_path: Path) -> None:
    model = bert_model()
    words = model.backbone.embeddings.word_embeddings.weight
    words.data = quantize_q4(words.data).dequantize()
    folder = export_model(model, character_tokenizer(), tmp_path / "model", card=CARD, pack="8bit")
    names = load_file(folder / "packed.safetensors")
    assert [name for name in names if name.endswith(".q4")] == ["embeddings.word_embeddings.weight.q4"]
    found = EmbeddingModel.load(folder).backbone.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    assert torch.equal(found, words)


def test_matrices_without_blocks_stay_plain(tmp_path: Path) -> None:
    model = bert_model(width=40)
    model.backbone.encoder.layer[0].output.dense.bias.data[0] = 1e6  # beyond float16
    folder = export_model(model, character_tokenizer(), tmp_path / "model", card=CARD, pack="8bit")
    entries = load_file(folder / "packed.safetensors")
    assert entries["embeddings.word_embeddings.weight"].dtype == torch.float16
    assert entries["encoder.layer.0.output.dense.weight.q8"].dtype == torch.int8
    assert entries["encoder.layer.0.output.dense.bias"].dtype == torch.float32
    assert entries["encoder.layer.0.output.dense.bias"][0] == 1e6


@pytest.mark.parametrize("lengths", [(1,), (4, 4), (9, 2, 5), (1, 128), (3, 1, 1, 2, 3)])
def test_onnx_gives_the_vectors_at_any_shape(plain_folder: Path, lengths: tuple[int, ...]) -> None:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 200, mask.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(bert_model()(ids, mask), dim=1)
    vectors = run_onnx(plain_folder / "onnx/model.onnx", ids, mask)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_onnx_knows_every_pooling(tmp_path: Path, pooling: str) -> None:
    model = bert_model(pooling)
    model.settings = replace(model.settings, normalize=False)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    ids = torch.randint(1, 200, mask.shape, generator=torch.Generator().manual_seed(2))
    path = export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run_onnx(path, ids, mask), model(ids, mask), atol=1e-4)


def test_onnx_leaves_the_model_as_it_is_and_nothing_else(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    model = bert_model().to(torch.bfloat16).train()
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert [str(one.message) for one in recwarn.list] == []
    assert capfd.readouterr() == ("", "")


def test_onnx_of_packed_weights_is_the_packed_model(tmp_path: Path) -> None:
    folder = export_model(bert_model(), character_tokenizer(), tmp_path / "model", card=CARD, pack="4bit", onnx=True)
    ids, mask = torch.arange(1, 9).view(2, 4), torch.ones(2, 4, dtype=torch.long)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(EmbeddingModel.load(folder)(ids, mask), dim=1)
    np.testing.assert_allclose(run_onnx(folder / "onnx/model.onnx", ids, mask), expected, atol=1e-4)


def test_onnx_of_a_decoder(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=200, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    model = EmbeddingModel(Qwen2Model(config), ModelSettings(pooling="last")).eval()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    ids = torch.randint(1, 200, mask.shape, generator=torch.Generator().manual_seed(3))
    path = export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(ids, mask), dim=1)
    np.testing.assert_allclose(run_onnx(path, ids, mask), expected, atol=1e-4)


class ShapeBound(torch.nn.Module):
    """A head whose result hangs on the number of rows as a Python number, which a trace makes a constant."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + len(vectors)


def test_an_onnx_file_with_other_vectors_is_refused(tmp_path: Path) -> None:
    model = bert_model()
    model.heads.append(ShapeBound())
    model.settings = replace(model.settings, heads=[*model.settings.heads, DenseSettings("3_Dense")], normalize=False)
    with pytest.raises(ValueError, match=r"its vectors would differ by 1\. Use onnx=False"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class ShapeBoundRows(torch.nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + torch.arange(len(vectors)).unsqueeze(1)


def test_an_onnx_file_that_does_not_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = bert_model()
    model.heads.append(ShapeBoundRows())
    with pytest.raises(ValueError, match="the file does not run"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_card_says_what_a_reader_must_know(plain_folder: Path) -> None:
    text = card_of(plain_folder)
    for words in ("text-embedding-ada-002", "terms of OpenAI", "12,000 pairs of halves", "Apache-2.0", "| 24 |"):
        assert words in text
    assert "| recall@10 | 0.9123 |" in text
    assert "| ndcg@10 | 0.8000 |" in text
    assert "luotuo distill config.toml" in text
    assert "onnx/model.onnx" in text
    front = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    assert front["license"] == '"apache-2.0"'
    assert front["base_model"] == '"google-bert/bert-base-chinese"'
    assert json.loads(front["language"]) == ["zh"]


def test_a_card_without_teacher_licence_and_metrics(tmp_path: Path) -> None:
    card = ModelDescription(name="own", base="a | b\nin lines", data="own records")
    text = card_of(export_model(bert_model(), character_tokenizer(), tmp_path / "own", card=card))
    assert "| Teacher 教师 | none 无 |" in text
    assert "not chosen yet" in text
    assert "license:" not in text
    assert r"| Base 基座 | a \| b in lines |" in text
    assert "onnx" not in text


def test_the_lines_of_the_card_run_as_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / '引"号'  # a name that needs quoting
    export_model(bert_model(), character_tokenizer(), folder, card=replace(CARD, name=str(folder)))
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", card_of(folder), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert len(names["vector"]) == 24
    assert names["documents"][0].page_content == "每晚不超过四百五十元。"
    np.testing.assert_allclose(names["vectors"][0], names["vector"], atol=1e-5)


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model, tokenizer, folder = bert_model(), character_tokenizer(), tmp_path / "new" / "model"
    wrong: Any
    for wrong, error in (
        ({"pack": "2bit"}, "pack='2bit' is unknown; choose one of none, 4bit, 8bit"),
        ({"golden_texts": []}, "golden_texts is empty"),
    ):
        with pytest.raises(ValueError, match=error):
            export_model(model, tokenizer, folder, card=CARD, **wrong)
    with pytest.raises(TypeError, match=r"texts\[1\] is int"):
        export_model(model, tokenizer, folder, card=CARD, golden_texts=["出差", 3])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_onnx_that_is_not_installed_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"'{name}' is not installed.*luotuo-integrations\[onnx\]"):
        export_model(bert_model(), character_tokenizer(), tmp_path / "model", card=CARD, onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("notes", encoding="utf-8")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_model(bert_model(), character_tokenizer(), folder, card=CARD)
    assert (folder / "notes.txt").is_file()
    export_model(bert_model(), character_tokenizer(), folder, card=CARD, overwrite=True)
    assert not (folder / "notes.txt").exists()
    assert check_golden(folder) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("culprit", ["_write_golden", "_pack_weights", "export_onnx", "rename"])
def test_a_failed_export_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("notes", encoding="utf-8")
    rename = Path.replace

    def fail(*arguments: Any) -> None:
        raise OSError("No space left on device")

    def fail_at_last(self: Path, target: Path) -> Path:
        return fail() if target == folder and (self / "golden.json").is_file() else rename(self, target)  # type: ignore[func-returns-value, return-value]

    if culprit == "rename":
        monkeypatch.setattr(Path, "replace", fail_at_last)
    else:
        monkeypatch.setattr(f"luotuo_integrations.training.export.{culprit}", fail)
    with pytest.raises(OSError, match="No space left"):
        export_model(bert_model(), character_tokenizer(), folder, card=CARD, pack="4bit", onnx=True, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_glm_student_is_exported_without_its_glm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GlmModel(GlmConfig(**SIZES)).save_pretrained(tmp_path / "glm")
    character_tokenizer(eos=None).save_pretrained(tmp_path / "glm")
    student = build_glm_student(tmp_path / "glm", tmp_path / "student", layers=1, width=32)
    model = EmbeddingModel.load(student)
    with pytest.raises(ValueError, match="reads its GLM from another folder"):
        export_model(model, character_tokenizer(eos=None), tmp_path / "onnx", card=CARD, onnx=True)
    folder = export_model(model, character_tokenizer(eos=None), tmp_path / "packed", card=CARD, pack="8bit")
    assert {name.split(".")[0] for name in load_file(folder / "packed.safetensors")} == {"bert", "projection"}
    exact, packed = (Encoder(one, device="cpu").encode(TEXTS) for one in (student, folder))
    assert (exact * packed).sum(axis=1).min() > 0.999
    assert "Not for sentence-transformers" in card_of(folder)
