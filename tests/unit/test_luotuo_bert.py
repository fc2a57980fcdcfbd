"""A folder as silk-road publishes its Luotuo-BERTs, made here: with code of its own, pickled weights and one head."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_layouts import make_tokenizer
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.luotuo_bert import convert_luotuo_bert
from luotuo_integrations.registry import CARDS

TEXTS = ["试用期员工可以请年假吗", "出差", ""]
HEAD = 48  # 1536 in the published models
SPY = """
from pathlib import Path
Path({marker!r}).write_text("run")
raise RuntimeError("this code must never run")
"""


class Published:
    """The folder, its arrays, and the vectors that its own code would compute (SimCSE: head of the first token)."""

    def __init__(self, folder: Path, marker: Path) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.4,
        )
        self.folder, self.marker = folder, marker
        self.backbone = BertModel(config, add_pooling_layer=False).eval()
        self.weight, self.bias = torch.randn(HEAD, 32) / 9, torch.randn(HEAD) / 9
        folder.mkdir(parents=True)
        make_tokenizer("bert", max_tokens=64).save_pretrained(folder)
        settings = config.to_dict() | {
            "architectures": ["BertForCL"],
            "auto_map": {"AutoModel": "models.BertForCL", "AutoConfig": "models.BertConfig"},
        }
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "models.py").write_text(SPY.format(marker=str(marker)))

    def arrays(self) -> dict[str, Tensor]:
        bert = {f"bert.{name}": value.clone() for name, value in self.backbone.state_dict().items()}
        positions = {"bert.embeddings.position_ids": torch.arange(64).unsqueeze(0)}
        return bert | positions | {"mlp.dense.weight": self.weight, "mlp.dense.bias": self.bias}

    def write(self, arrays: dict[str, Tensor], name: str = "pytorch_model.bin") -> Path:
        (torch.save if name.endswith(".bin") else save_file)(arrays, self.folder / name)
        return self.folder

    def vectors(self, activation: str = "Tanh") -> np.ndarray:
        batch = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)(
            TEXTS, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            output = self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            vectors = output.last_hidden_state[:, 0] @ self.weight.T + self.bias
        vectors = vectors.tanh() if activation == "Tanh" else vectors
        return (vectors / vectors.norm(dim=1, keepdim=True)).numpy()


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path / "下载" / "luotuo-bert", tmp_path / "marker")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_the_conversion_gives_the_vectors_of_the_published_code_without_running_it(
    published: Published, tmp_path: Path, name: str, activation: str
) -> None:
    folder = published.write(published.arrays(), name)
    output = tmp_path / "骆驼" / "luotuo-bert"
    assert convert_luotuo_bert(folder, output, activation=activation) == output
    encoder = Encoder(output, device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), published.vectors(activation), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS), published.vectors(activation), atol=1e-5)
    assert encoder.card == CARDS["silk-road/luotuo-bert"]
    assert (encoder.model.settings.pooling, encoder.dimension) == ("cls", HEAD)
    assert not published.marker.exists()
    assert not list(output.rglob("*.py"))
    assert "auto_map" not in (output / "config.json").read_text()


def test_the_converted_folder_loads_in_the_embeddings_class_and_in_sentence_transformers(
    published: Published, tmp_path: Path
) -> None:
    output = convert_luotuo_bert(published.write(published.arrays()), tmp_path / "luotuo-bert-medium")
    np.testing.assert_allclose(
        LuotuoEmbeddings(model=output, device="cpu").embed_documents(TEXTS), published.vectors(), atol=1e-5
    )
    peer = SentenceTransformer(str(output), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), published.vectors(), atol=1e-5)


def test_the_published_folder_is_refused_as_it_is(published: Published) -> None:
    folder = published.write(published.arrays())
    with pytest.raises(ModelFormatError, match=r"trust_remote_code=True.*convert_luotuo_bert"):
        Encoder(folder, device="cpu")
    with pytest.raises(ModelFormatError, match="convert_luotuo_bert"):
        LuotuoEmbeddings(model=folder, device="cpu").embed_query("出差")
    with pytest.raises(ModelFormatError, match="convert_luotuo_bert"):
        LuotuoEmbeddings(model="silk-road/luotuo-bert", device="cpu").embed_query("出差")
    assert not published.marker.exists()


def test_weights_in_half_precision_and_with_a_language_model_head_convert(published: Published, tmp_path: Path) -> None:
    arrays = {name: value.half() if value.is_floating_point() else value for name, value in published.arrays().items()}
    arrays["lm_head.decoder.weight"] = torch.randn(400, 32)
    encoder = Encoder(convert_luotuo_bert(published.write(arrays), tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), published.vectors(), atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("mlp.dense.weight"), r"heads \[\]"),
        (lambda arrays: arrays.update(second=torch.randn(5, 32)), r"heads \['mlp\.dense\.weight', 'second'\]"),
        (
            lambda arrays: arrays.pop("bert.encoder.layer.1.output.dense.weight"),
            r"missing \['encoder\.layer\.1\.output\.dense\.weight'\]",
        ),
    ],
)
def test_weights_of_another_kind_are_refused_and_nothing_is_written(
    published: Published, tmp_path: Path, change, message: str
) -> None:
    arrays = published.arrays()
    change(arrays)
    with pytest.raises(ModelFormatError, match=message):
        convert_luotuo_bert(published.write(arrays), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_missing_and_malicious_weights_are_refused(published: Published, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin is missing or damaged"):
        convert_luotuo_bert(published.folder, tmp_path / "out")
    (published.folder / "pytorch_model.bin").write_bytes(b"rubbish")
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin is missing or damaged"):
        convert_luotuo_bert(published.folder, tmp_path / "out")
    torch.save({"mlp.dense.weight": _Bomb(published.marker)}, published.folder / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin is missing or damaged"):
        convert_luotuo_bert(published.folder, tmp_path / "out")
    assert not published.marker.exists()
    with pytest.raises(ModelFormatError):
        convert_luotuo_bert(tmp_path / "没有", tmp_path / "out")


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.marker, "run")


def test_an_existing_output_is_kept(published: Published, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "笔记.txt").write_text("重要")
    with pytest.raises(FileExistsError):
        convert_luotuo_bert(published.write(published.arrays()), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["笔记.txt"]
