import shutil
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import character_tokenizer
from hub_layouts import make_tokenizer
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizer

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.registry import DEFAULT_MODEL, resolve
from luotuo_integrations.tokenization import TextTokenizer

TEXTS = ["试用期员工可以请年假吗？", "出差 450 元\n\n\t每晚", "", " ", "ChatGLM-6B 😀", "[CLS]", "全角ＡＢＣ"]


@pytest.fixture(scope="module")
def bundled() -> TextTokenizer:
    return TextTokenizer(resolve(DEFAULT_MODEL))


def test_ids_equal_those_of_transformers(bundled: TextTokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(resolve(DEFAULT_MODEL))
    bare = bundled.encode(TEXTS)
    assert bare == [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    for limit in (3, 5, 512):
        expected = [theirs(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
        assert [bundled.add_special(ids, limit) for ids in bare] == expected


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen", "gemma"])
def test_special_tokens_are_found_for_each_kind_of_model(tmp_path: Path, kind: str) -> None:
    make_tokenizer(kind).save_pretrained(tmp_path)
    ours, theirs = TextTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("出差", ""):
        assert ours.add_special(ours.encode([text])[0], 99) == theirs(text)["input_ids"]
    assert ours.special_count == len(theirs("")["input_ids"])
    assert ours.pad_id == theirs.pad_token_id


def test_a_cut_never_reaches_the_special_tokens(bundled: TextTokenizer) -> None:
    ids = bundled.encode(["试用期员工可以请年假吗" * 20])[0]
    for limit in range(3, 40):
        cut = bundled.add_special(ids, limit)
        assert len(cut) == limit
        assert (cut[:1], cut[-1:]) == (bundled.prefix, bundled.suffix)


def test_an_empty_text_without_special_tokens_is_one_padding_token(tmp_path: Path) -> None:
    character_tokenizer(bos=None, eos=None).save_pretrained(tmp_path)
    tokenizer = TextTokenizer(tmp_path)
    assert tokenizer.special_count == 0
    assert tokenizer.add_special(tokenizer.encode([""])[0], 8) == [tokenizer.pad_id]


def test_lone_surrogates_become_the_replacement_character(bundled: TextTokenizer) -> None:
    broken = ["a\ud800b", "\udfff", "年\ud83d\ude00假", "好"]
    assert bundled.encode(broken) == bundled.encode(["a\ufffdb", "\ufffd", "年😀假", "好"])


def test_texts_are_lowercased_where_the_folder_asks_for_it(tmp_path: Path) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    plain, lower = TextTokenizer(tmp_path), TextTokenizer(tmp_path, lowercase=True)
    assert lower.encode(["ABC"]) == plain.encode(["abc"]) != plain.encode(["ABC"])


def test_special_tokens_may_be_taken_literally(tmp_path: Path) -> None:
    make_tokenizer("bert").save_pretrained(tmp_path)
    mark = "[SEP]"
    special = TextTokenizer(tmp_path).encode([mark])[0]
    literal = TextTokenizer(tmp_path, literal=True)
    assert len(special) == 1
    assert literal.encode([mark])[0] == [id_ for letter in mark for id_ in literal.encode([letter])[0]]
    assert literal.suffix == special  # around a text it is meant


def test_truncation_and_padding_of_the_shared_tokenizer_change_nothing(bundled: TextTokenizer) -> None:
    before = bundled.encode(TEXTS)
    bundled.tokenizer(TEXTS, padding=True, truncation=True, max_length=4)
    assert bundled.encode(TEXTS) == before


def test_settings_in_the_file_itself_change_nothing(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.save_pretrained(tmp_path)
    assert [len(ids) for ids in TextTokenizer(tmp_path).encode(["出差住宿标准", "出"])] == [6, 1]


def test_threads_do_not_disturb_each_other(bundled: TextTokenizer) -> None:
    texts = [f"第{number}条：出差住宿标准" * (number % 7 + 1) for number in range(200)]
    expected = bundled.encode(texts)
    results: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: results.append(bundled.encode(texts))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python alone: code points, with one special token on each side."""

    vocab_files_names: ClassVar = {"vocab_file": "points.txt"}

    def __init__(self, vocab_file: str | None = None, **options: object) -> None:
        special = {"pad_token": "\x00", "unk_token": "\x01", "cls_token": "\x02", "sep_token": "\x03"}
        super().__init__(**{**options, **special})

    @property
    def vocab_size(self) -> int:
        return 0x3000

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [2, *ids, 3]

    def save_vocabulary(self, folder: str, filename_prefix: str | None = None) -> tuple[str]:
        (Path(folder) / "points.txt").write_text("all")
        return (str(Path(folder) / "points.txt"),)


def test_a_tokenizer_without_a_rust_core_works(tmp_path: Path) -> None:
    class OwnConfig(BertConfig):
        model_type = "own-of-this-test"

    from transformers import AutoConfig

    AutoConfig.register("own-of-this-test", OwnConfig)
    AutoTokenizer.register(OwnConfig, SlowTokenizer)
    OwnConfig().save_pretrained(tmp_path)
    SlowTokenizer().save_pretrained(tmp_path)
    tokenizer = TextTokenizer(tmp_path)
    assert type(tokenizer.tokenizer) is SlowTokenizer
    assert tokenizer.encode(["ab", "c\ud800", ""]) == [[97, 98], [99, 0xFFFD], []]
    assert tokenizer.add_special([97, 98, 99], 4) == [2, 97, 98, 3]
    assert TextTokenizer(tmp_path, literal=True).encode(["ab", "c\ud800"]) == [[97, 98], [99, 0xFFFD]]


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": "1.0", "model": {"type": "WordPiece"}}', "[]"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        TextTokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Transformers 5 makes an empty tokenizer there, to which every character is unknown."""
    shutil.copy(resolve(DEFAULT_MODEL) / "config.json", tmp_path)
    with pytest.raises(ModelFormatError, match=r"holds no tokenizer|cannot be loaded"):
        TextTokenizer(tmp_path)
    with pytest.raises(ModelFormatError):
        TextTokenizer(tmp_path / "没有")
