"""Every card: a tiny random model of its class, in its repository's layout, against two other computations."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hub_layouts import E5_PROMPTS, HIDDEN, LAYOUTS, Layout, write_layout
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertModel, Gemma3TextModel, PreTrainedModel, Qwen3Model, XLMRobertaModel

from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.registry import CARDS, find_card

TEXTS = ["试用期员工可以请年假吗", "出差", "今天天气很好，你是谁？", "每晚住宿标准不超过450元\n需要发票", "", "a"]
CLASSES = {"bert": BertModel, "xlm-roberta": XLMRobertaModel, "qwen3": Qwen3Model, "gemma3_text": Gemma3TextModel}
# As the hub has them, and one of each kind as sentence-transformers 6 would save it.
RESAVED = ("bge-small-zh-v1.5", "bge-m3", "multilingual-e5-small", "Qwen3-Embedding-0.6B", "embeddinggemma-300m")
CASES = [(layout, True) for layout in LAYOUTS] + [(one, False) for one in LAYOUTS if one.card.endswith(RESAVED)]
Saved = tuple[Layout, Path, Encoder]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].card}-{'old' if case[1] else 'new'}")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    layout, old_pooling = request.param
    folder = write_layout(layout, tmp_path_factory.mktemp("hub"), old_pooling=old_pooling)
    return layout, folder, Encoder(folder, device="cpu")


@cache
def backbone_of(folder: Path) -> PreTrainedModel:
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return CLASSES[model_type].from_pretrained(folder).eval()


def by_hand(folder: Path, layout: Layout, texts: Sequence[str], padding_side: str) -> npt.NDArray[np.float32]:
    """The vectors from transformers' own class and a loop over the texts: nothing of ours."""
    batch = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)(
        list(texts), padding=True, return_tensors="pt"
    )
    backbone = backbone_of(folder)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if backbone.config.model_type == "bert":  # its positions count from the first column, padding or not
        inputs["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = backbone(**inputs).last_hidden_state
    rows = []
    for row, keep in zip(hidden, batch["attention_mask"].bool(), strict=True):
        tokens = row[keep]
        vector = {"cls": tokens[0], "lasttoken": tokens[-1], "mean": sum(tokens) / len(tokens)}[layout.pooling]
        for index in range(2, 2 + len(layout.heads)):
            vector = load_file(folder / f"{index}_Dense" / "model.safetensors")["linear.weight"] @ vector
        rows.append(vector / vector.norm())
    result: npt.NDArray[np.float32] = torch.stack(rows).numpy()
    return result


@pytest.fixture(scope="module")
def peer(saved: Saved) -> SentenceTransformer:
    return SentenceTransformer(str(saved[1]), device="cpu")


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_card_has_a_layout() -> None:
    converted = {"silk-road/luotuo-bert", "silk-road/luotuo-bert-medium", "silk-road/luotuo-bert-en"}
    bundled = {name for name, card in CARDS.items() if card.source == "bundled"}
    assert {layout.card for layout in LAYOUTS} | converted | bundled == set(CARDS)


def test_the_folder_is_recognised_and_agrees_with_its_card(saved: Saved) -> None:
    layout, folder, encoder = saved
    card = find_card(folder)
    assert card is not None
    assert card.name == layout.card
    assert encoder.card == card
    assert encoder.model.settings.pooling == card.pooling
    assert dict(encoder.prompts) == {kind: card.prompts.get(kind, "") for kind in ("query", "passage")}
    assert encoder.normalize
    assert encoder.dimension == (layout.heads[-1][1] if layout.heads else HIDDEN)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_vectors_equal_those_computed_by_hand(saved: Saved, kind: str, padding_side: str) -> None:
    layout, folder, encoder = saved
    prompt = CARDS[layout.card].prompts.get(kind, "")
    expected = by_hand(folder, layout, [prompt + text for text in TEXTS], padding_side)
    np.testing.assert_allclose(encoder.encode(TEXTS, kind), expected, atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_model_itself_takes_padding_on_either_side(saved: Saved, padding_side: str) -> None:
    layout, folder, encoder = saved
    batch = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        vectors = encoder.model(batch["input_ids"], batch["attention_mask"]).numpy()
    np.testing.assert_allclose(unit(vectors), by_hand(folder, layout, TEXTS, "right"), atol=1e-5)


def test_vectors_equal_those_of_sentence_transformers(saved: Saved, peer: SentenceTransformer) -> None:
    layout, _, encoder = saved
    for kind, theirs in (("query", peer.encode_query), ("passage", peer.encode_document)):
        # Where the repository names no prompts sentence-transformers uses none: there it is told those of the card.
        prompt = {} if layout.prompts is not None else {"prompt": encoder.prompts[kind]}
        np.testing.assert_allclose(encoder.encode(TEXTS, kind), unit(theirs(TEXTS, **prompt)), atol=1e-5)


def test_texts_are_cut_where_sentence_transformers_cuts(saved: Saved, peer: SentenceTransformer) -> None:
    layout, _, encoder = saved
    long = "试用期员工可以请年假吗" * 60
    assert encoder.max_length == min(peer.max_seq_length, CARDS[layout.card].max_tokens)
    peer.max_seq_length = encoder.max_length
    prompt = {} if layout.prompts is not None else {"prompt": encoder.prompts["passage"]}
    np.testing.assert_allclose(encoder.encode([long]), unit(peer.encode_document([long], **prompt)), atol=1e-5)


def test_the_embeddings_class_gives_the_same(saved: Saved) -> None:
    _, folder, encoder = saved
    embeddings = LuotuoEmbeddings(model=folder, device="cpu")
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), encoder.encode(TEXTS[:1], "query")[0], atol=1e-6)


def layout_of(card: str, **changes: object) -> Layout:
    return replace(next(layout for layout in LAYOUTS if layout.card == card), **changes)  # type: ignore[arg-type]


def test_prompts_of_the_folder_win_over_those_of_the_card(tmp_path: Path) -> None:
    layout = layout_of("BAAI/bge-small-zh-v1.5", prompts={"query": "q: ", "document": "d: "})
    encoder = Encoder(write_layout(layout, tmp_path, old_pooling=True), device="cpu")
    assert dict(encoder.prompts) == {"query": "q: ", "passage": "d: "}


@pytest.mark.parametrize("name", ["document", "passage", "corpus", "text"])
def test_a_passage_prompt_has_several_names(tmp_path: Path, name: str) -> None:
    layout = layout_of("moka-ai/m3e-small", prompts={"query": "q: ", name: "p: "})
    encoder = Encoder(write_layout(layout, tmp_path, old_pooling=True), device="cpu")
    assert encoder.prompts["passage"] == "p: "


def test_prompts_of_the_caller_win_over_all(tmp_path: Path) -> None:
    layout = layout_of("intfloat/multilingual-e5-small", prompts=E5_PROMPTS)
    folder = write_layout(layout, tmp_path, old_pooling=True)
    encoder = Encoder(folder, device="cpu", query_prompt="", passage_prompt="文：")
    expected = by_hand(folder, layout, ["文：" + text for text in TEXTS], "right")
    np.testing.assert_allclose(encoder.encode(TEXTS, "passage"), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), by_hand(folder, layout, TEXTS, "right"), atol=1e-5)


def test_a_folder_of_another_name_has_no_card(tmp_path: Path) -> None:
    layout = layout_of("BAAI/bge-small-zh-v1.5")
    folder = write_layout(layout, tmp_path, old_pooling=True).rename(tmp_path / "我的模型")
    encoder = Encoder(folder, device="cpu")
    assert encoder.card is None
    assert dict(encoder.prompts) == {"query": "", "passage": ""}
    assert encoder.model.settings.pooling == "cls"  # the folder says so itself


def test_xlm_roberta_has_two_positions_less_than_rows(tmp_path: Path) -> None:
    folder = write_layout(layout_of("BAAI/bge-m3", max_seq_length=None), tmp_path, old_pooling=True)
    encoder = Encoder(folder, device="cpu")
    assert encoder.max_length == 512
    assert np.isfinite(encoder.encode(["试" * 2000])).all()  # one position more would be outside the table


def test_gemma_attends_in_both_directions(tmp_path: Path) -> None:
    encoder = Encoder(write_layout(layout_of("google/embeddinggemma-300m"), tmp_path, old_pooling=True), device="cpu")
    first, other = (encoder.tokenizer.add_special(ids, 99) for ids in encoder.tokenizer.encode(["你好吗", "你好的"]))
    with torch.inference_mode():
        states = [encoder.model.backbone(input_ids=torch.tensor([ids])).last_hidden_state for ids in (first, other)]
    assert not torch.allclose(states[0][0, 0], states[1][0, 0], atol=1e-4)
