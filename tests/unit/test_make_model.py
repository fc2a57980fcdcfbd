"""Both stages on a tiny teacher: from a pack to a packed model, and what holds between the stages."""

import json
import lzma
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALPHABET, character_tokenizer
from transformers import BertConfig, BertModel

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.model_folder import ModelSettings
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.run_folder import RunError
from training.devsets import DevSets, Halves, Retrieval
from training.make_model import align, contrast, pack_aligned, rotate, turn_of

SOURCES = ("LegalQA", "Huatuo", "LCTT", "cmrc2018/train")


def text(seed: int, length: int = 40) -> str:
    characters = random.Random(seed).choices(ALPHABET, k=length)
    return "".join(characters[: length // 2]) + "。" + "".join(characters[length // 2 :])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    prompts = {"query": "query: ", "passage": "passage: "}
    settings = ModelSettings(pooling="mean", max_tokens=128, prompts=prompts, normalize=True)
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    return EmbeddingModel(BertModel(config, add_pooling_layer=False), settings).save(folder, character_tokenizer())


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines: list[dict[str, Any]] = []
    for number in range(60):
        lines.append({"kind": "text", "text": text(number, 70), "as": "passage", "source": "Laws/DLC"})
        source = SOURCES[number % len(SOURCES)]
        pair = {"query": text(number)[:9], "positive": text(number)}
        lines.append({"kind": "pair", **pair, "source": source})
        scored = {"sentence1": text(number), "sentence2": text(number + number % 3), "label": float(number % 3 == 0)}
        lines.append({"kind": "scored", **scored, "source": "stsb_train" if number % 2 else "atec_train"})
    path = tmp_path_factory.mktemp("pack") / "pack.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return path


@pytest.fixture(scope="module")
def devsets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    passages = [text(number) for number in range(1000, 1008)]
    halves = Halves([one[:20] for one in passages], [one[20:] for one in passages])
    sets = DevSets(
        retrieval={"texts": Retrieval([one[:9] for one in passages], passages, [[n] for n in range(8)], 8)},
        halves={"texts": halves},
    )
    path = tmp_path_factory.mktemp("devsets") / "devsets.json"
    sets.write(path)
    return path


def config_of(teacher: Path, out: Path) -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "matryoshka": [8],
            "data": {"max_pairs": 60},
            "teacher": {"model": str(teacher)},
            "student": {"build": "bert-pruned:2", "base": str(teacher)},
            "strategy": {"freeze_embeddings": True},
            "alignment": {"tokens": 3_000, "tokens_per_step": 300, "learning_rate": 2e-3},
            "loss": {
                "feature": {"distance": "cosine", "weights": [10.0]},
                "kl": {"temperature": 0.1},
                "softmax": {"temperature": 0.1},
                "cosent": {"scale": 10.0},
            },
            "batch": {"size": 4},
            "optimizer": {"epochs": 1, "learning_rate": 1e-3},
            "run": {"out": str(out), "name": "luotuo-mini", "device": "cpu", "pack": "8bit", "licence": "MIT"},
        }
    )


@pytest.fixture(scope="module")
def made(teacher: Path, pack: Path, devsets: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = config_of(teacher, tmp_path_factory.mktemp("runs") / "made")
    align(config, pack, ["text"], show_progress=False)
    contrast(config, pack, devsets, show_progress=False)
    return config


def test_an_aligned_student_is_nearer_to_its_teacher(made: TrainConfig, teacher: Path) -> None:
    texts = [text(number) for number in range(2000, 2040)]
    taught = Encoder(teacher, device="cpu").encode(texts)
    before, after = (
        float((Encoder(Path(made.run.out) / folder, device="cpu").encode(texts) * taught).sum(1).mean())
        for folder in ("alignment/student", "aligned")
    )
    assert after > before


def test_turning_changes_no_cosine_and_puts_what_tells_most_first(
    made: TrainConfig, pack: Path, tmp_path: Path
) -> None:
    aligned = Path(made.run.out) / "aligned"
    turned = rotate(aligned, tmp_path / "turned", pack)
    texts = [text(number) for number in range(40)]
    first, second = (Encoder(folder, device="cpu").encode(texts) for folder in (aligned, turned))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-5)
    turn = turn_of(turned)
    np.testing.assert_allclose(turn @ turn.T, np.eye(32), atol=1e-5)
    np.testing.assert_allclose(first @ turn.T, second, atol=1e-5)
    assert float((second[:, :8] ** 2).sum()) > float((first[:, :8] ** 2).sum())


def test_the_finished_model_is_packed_described_and_reported(made: TrainConfig) -> None:
    run = Path(made.run.out) / "contrast"
    card = (run / "model-8bit" / "README.md").read_text(encoding="utf-8")
    assert "luotuo-mini" in card
    assert "intfloat/multilingual-e5-small" in card
    whole, packed = (Encoder(run / name, device="cpu").encode([text(1)]) for name in ("model", "model-8bit"))
    assert float((whole * packed).sum()) > 0.999
    assert (run / "similarity.png").is_file()
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert "mixed/ndcg@10" in metrics["after"]
    parts = [json.loads(line).get("parts", {}) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    assert {name for one in parts for name in one} == {"feature", "kl", "softmax", "cosent"}
    assert not any({"softmax", "cosent"} <= one.keys() for one in parts)


def test_stages_that_are_done_are_not_done_again(made: TrainConfig, pack: Path) -> None:
    log = Path(made.run.out) / "alignment" / "log.jsonl"
    before = log.read_text(encoding="utf-8")
    align(made, pack, ["text"], show_progress=False)
    assert log.read_text(encoding="utf-8") == before
    other = replace(made, alignment=replace(made.alignment, learning_rate=1e-4))
    with pytest.raises(RunError, match=r"alignment\.learning_rate"):
        align(other, pack, ["text"], show_progress=False)


def test_a_tiny_model_needs_one_stage(made: TrainConfig, pack: Path, tmp_path: Path) -> None:
    model = Path(made.run.out) / "contrast" / "model"
    config = config_of(model, tmp_path / "tiny").with_values(
        {"student.build": "bert-pruned:1", "run.name": "luotuo-tiny"}
    )
    align(config, pack, ["text", "pair", "scored"], show_progress=False)
    packed = pack_aligned(config)
    encoder = Encoder(packed, device="cpu")
    assert encoder.encode([text(1)]).shape == (1, 32)
    assert "luotuo-mini" in (packed / "README.md").read_text(encoding="utf-8")
    assert [one.name for one in packed.glob("*_Dense")] == ["2_Dense"]
