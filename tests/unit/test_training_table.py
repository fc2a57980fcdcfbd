"""TextTable and TokenTable: each text once, and batches that equal what the encoder sees."""

from pathlib import Path

import numpy as np
import pytest
import torch

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.table import TextTable, TokenTable, embed_numbers

TEXTS = ["试用期可以请年假吗", "出差住宿标准", "试用期可以请年假吗", "a", ""]


def make_tokens(folder: Path, table: TextTable, max_tokens: int = 128) -> TokenTable:
    prompts = {"query": "query: ", "passage": ""}
    return TokenTable.of(table, TextTokenizer(folder), prompts, max_tokens)


def test_the_same_text_of_the_same_kind_has_one_number() -> None:
    table = TextTable()
    assert table.add_all(TEXTS, "passage").tolist() == [0, 1, 0, 2, 3]
    assert table.add(TEXTS[0], "query") == 4
    assert table.texts[4] == TEXTS[0]
    assert table.kinds == ["passage"] * 4 + ["query"]
    assert len(table) == 5


def test_a_batch_is_padded_to_its_longest_text(tiny_folder: Path) -> None:
    table = TextTable()
    numbers = table.add_all(TEXTS, "passage")
    tokens = make_tokens(tiny_folder, table)
    ids, mask = tokens.batch(numbers[[1, 0]])
    tokenizer = TextTokenizer(tiny_folder)
    for row, text in enumerate((TEXTS[1], TEXTS[0])):
        expected = tokenizer.add_special(tokenizer.encode([text])[0], 128)
        assert ids[row, : len(expected)].tolist() == expected
        assert mask[row].tolist() == [1] * len(expected) + [0] * (ids.shape[1] - len(expected))
    assert ids.shape[1] == int(tokens.lengths.max())


def test_prompts_go_before_their_kind_and_long_texts_are_cut(tiny_folder: Path) -> None:
    table = TextTable()
    table.add("试用期", "passage")
    table.add("试用期", "query")
    table.add("试" * 100, "passage")
    assert make_tokens(tiny_folder, table, max_tokens=20).lengths.tolist() == [5, 12, 20]


@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_embeddings_equal_the_encoders(tiny_folder: Path, budget: int) -> None:
    table = TextTable()
    numbers = table.add_all(TEXTS, "query")
    model = EmbeddingModel.load(tiny_folder).train()
    device = torch.device("cpu")
    vectors = embed_numbers(model, make_tokens(tiny_folder, table), numbers, budget=budget, device=device)
    expected = Encoder(tiny_folder, device="cpu").encode(TEXTS, "query")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert model.training  # the mode is as it was


def test_an_empty_table_has_no_tokens(tiny_folder: Path) -> None:
    assert len(make_tokens(tiny_folder, TextTable())) == 0
