"""The keyword index that grows: scores against a naive loop after any changes, work counted, files and their damage."""

import json
import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.keyword_index import KeywordIndex

TEXTS = [
    "新员工的试用期为三个月，试用期内可以请病假。",
    "年假从入职满一年起计算，每年十天。",
    "出差须提前三天申请，机票由行政部统一预订。",
    "报销单须附发票原件，三十天内交到财务部。",
]
WORDS = KeywordTokenizer("words", ("驼峰井",))


def naive_bm25(texts: dict[int, str], query: str, tokenizer: KeywordTokenizer) -> dict[int, float]:
    """Score of each row that holds a token of the query, with k1 = 1.5 and b = 0.75."""
    counts = {row: Counter(tokenizer(text)) for row, text in texts.items()}
    mean_length = sum(count.total() for count in counts.values()) / max(1, len(counts))
    scores: dict[int, float] = {}
    for token in tokenizer(query):
        holders = sum(token in count for count in counts.values())
        for row, count in counts.items():
            if token in count:
                rarity = math.log(1 + (len(counts) - holders + 0.5) / (holders + 0.5))
                length_factor = 0.25 + 0.75 * count.total() / mean_length
                scores[row] = scores.get(row, 0) + rarity * count[token] / (count[token] + 1.5 * length_factor)
    return scores


def naive_ceiling(texts: dict[int, str], query: str, tokenizer: KeywordTokenizer) -> float:
    holders = [sum(token in tokenizer(text) for text in texts.values()) for token in tokenizer(query)]
    return sum(math.log(1 + (len(texts) - count + 0.5) / (count + 0.5)) for count in holders)


def found(index: KeywordIndex, query: str, k: int = 100, allowed: list[int] | None = None) -> dict[int, float]:
    scores, rows = index.search(query, k, None if allowed is None else np.array(allowed, dtype=np.int64))
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    return dict(zip(rows.tolist(), scores.tolist(), strict=True))


def filled(tokenizer: KeywordTokenizer = WORDS) -> KeywordIndex:
    index = KeywordIndex(tokenizer)
    index.add([3, 5, 8, 9], TEXTS)
    return index


@pytest.mark.parametrize("kind", ["words", "bigrams", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_naive_loop_after_any_changes(seed: int, kind: Any, tmp_path: Path) -> None:
    generator, tokenizer = random.Random(seed), KeywordTokenizer(kind)
    index, kept = KeywordIndex(tokenizer), dict[int, str]()
    for step in range(30):
        change = generator.choice(["add", "add", "replace", "discard", "file"])
        texts = ["".join(generator.choices("年假病试用期三天月 ", k=generator.randint(0, 12))) for _ in range(3)]
        rows = [step * 3, step * 3 + 1, step * 3 + 2]
        if change == "replace":
            rows = generator.sample(sorted(kept), min(3, len(kept)))
        if change == "discard":
            gone = generator.sample(sorted(kept), len(kept) // 2)
            index.discard([*gone, 99_999])
            kept = {row: text for row, text in kept.items() if row not in gone}
        elif change == "file":
            index.save(tmp_path / f"{step}.safetensors")
            index = KeywordIndex.load(tmp_path / f"{step}.safetensors")
        else:
            index.add(rows, texts[: len(rows)])
            kept.update(zip(rows, texts, strict=False))
        assert len(index) == len(kept)
        for query in ("年假三天", "试用期 病假，试用", "无"):
            scores = found(index, query)
            assert scores == pytest.approx(naive_bm25(kept, query, tokenizer), rel=1e-5)
            ceiling = index.ceiling(query)
            assert ceiling == pytest.approx(naive_ceiling(kept, query, tokenizer))
            assert all(score < ceiling for score in scores.values())


def test_the_best_come_first_and_of_equals_the_lowest_row() -> None:
    index = KeywordIndex()
    index.add(range(40, 0, -1), ["年假", "报销"] * 20)
    assert list(found(index, "年假", 5)) == [2, 4, 6, 8, 10]
    index.add([60], ["年假，年假"])
    assert list(found(index, "年假", 2)) == [60, 2]


def test_only_allowed_rows_are_found_with_the_scores_they_have() -> None:
    index = filled()
    every = found(index, "三天 年假 试用期 发票")
    assert set(every) == {3, 5, 8, 9}
    for allowed in ([3, 8], [9], [], [4, 100]):
        expected = {row: score for row, score in every.items() if row in allowed}
        assert found(index, "三天 年假 试用期 发票", allowed=allowed) == expected
    best, second, *_ = every
    assert list(found(index, "三天 年假 试用期 发票", 1, allowed=sorted(set(every) - {best}))) == [second]


def test_nothing_to_find() -> None:
    index = KeywordIndex()
    assert found(index, "年假") == {}
    index.add([1, 2], ["", "，。"])
    assert found(index, "年假") == {}
    index.add([3], ["年假"])
    assert set(found(index, "年假")) == {3}
    assert found(index, "") == {}
    index.discard([3])
    assert found(index, "年假") == {}
    assert len(index) == 2


def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that fills with the texts that are split."""
    texts: list[str] = []
    method = KeywordTokenizer.__call__

    def call(self: KeywordTokenizer, text: str) -> list[str]:
        texts.append(text)
        return method(self, text)

    monkeypatch.setattr(KeywordTokenizer, "__call__", call)
    return texts


def test_no_old_text_is_tokenized_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = tokenized(monkeypatch)
    index = filled()
    assert texts == TEXTS
    texts.clear()
    index.add([10], ["驼峰井的年假"])
    index.search("年假", 3)
    index.discard([3])
    index.search("试用期", 3)
    index.save(tmp_path / "甲")
    KeywordIndex.load(tmp_path / "甲").search("报销", 3)
    assert texts == ["驼峰井的年假", "年假", "试用期", "报销"]


def test_the_matrix_is_computed_once_after_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    built: list[Any] = []
    method = bm25s.BM25.index
    monkeypatch.setattr(bm25s.BM25, "index", lambda *args, **kwargs: built.append(1) or method(*args, **kwargs))
    index = filled()
    for row in range(10, 15):
        index.add([row], ["年假"])
    index.discard([10])
    assert built == []
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: found(index, "年假"), range(20)))
    assert built == [1]
    assert all(answer == answers[0] for answer in answers)


def test_a_text_that_cannot_be_split_changes_nothing() -> None:
    index = filled()
    before = found(index, "试用期 新")
    with pytest.raises(TypeError, match="text is int"):
        index.add([1, 2], ["新的试用期", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        index.add([1, 2], ["新的试用期"])
    assert found(index, "试用期 新") == before
    assert len(index) == 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, but is 0"):
        filled().search("年假", 0)
    with pytest.raises(TypeError, match="text is NoneType"):
        filled().search(None, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k1=-1"):
        KeywordIndex(k1=-1)
    with pytest.raises(ValueError, match=r"b=1\.5"):
        KeywordIndex(b=1.5)


# Files


def test_a_file_keeps_settings_and_leaves_out_what_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "关键词.safetensors"
    index = KeywordIndex(WORDS, k1=0.9, b=0.4)
    index.add([3, 7, 12], [TEXTS[0], "保密的驼峰井", ""])
    index.discard([7])
    index.save(path)
    assert "保密" not in bytes(load_file(path)["vocabulary"]).decode()
    again = KeywordIndex.load(path)
    assert (again.tokenizer, len(again)) == (WORDS, 2)
    path.unlink()  # a later save of a store removes it while this one still holds it open
    assert found(again, "试用期") == found(index, "试用期")
    assert found(again, "驼峰井") == {}
    again.add([20], ["驼峰井"])
    assert set(found(again, "驼峰井")) == {20}


def test_an_empty_index_comes_back(tmp_path: Path) -> None:
    KeywordIndex(WORDS).save(tmp_path / "甲")
    again = KeywordIndex.load(tmp_path / "甲")
    assert len(again) == 0
    assert found(again, "年假") == {}
    again.add([1], ["年假"])
    assert set(found(again, "年假")) == {1}


def rewritten(path: Path, **changes: Any) -> None:
    save_file({**load_file(path), **{name: np.array(value) for name, value in changes.items()}}, path, metadata(path))


def metadata(path: Path) -> dict[str, str]:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return dict(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"])


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": np.array([99] * 4, np.int32)},
        {"token_ids": np.array([-1] * 4, np.int32)},
        {"token_ids": np.array([0] * 5, np.int32)},
        {"offsets": np.array([0, 3, 1, 4])},
        {"offsets": np.array([0, 4])},
        {"rows": np.array([5, 5, 6])},
        {"vocabulary": np.frombuffer('["年假","年假"]'.encode(), np.uint8)},
        {"vocabulary": np.frombuffer(b"[1, 2]", np.uint8)},
        {"vocabulary": np.frombuffer(b"\xff", np.uint8)},
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_changed(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "甲"
    index = KeywordIndex(KeywordTokenizer("bigrams"))
    index.add([5, 7, 9], ["年假 报销", "年假", "报销"])
    index.save(path)
    assert len(load_file(path)["token_ids"]) == 4
    rewritten(path, **changes)
    damaged = KeywordIndex.load(path)
    for use in (lambda: damaged.search("年假", 1), lambda: damaged.add([1], ["甲"]), lambda: damaged.discard([1])):
        with pytest.raises(StoreCorruptError, match=r"甲 cannot be read as a keyword index.*build it again"):
            use()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "甲"
    with pytest.raises(StoreCorruptError, match="甲 cannot be read"):
        KeywordIndex.load(path)
    path.write_bytes(b"no such file")
    with pytest.raises(StoreCorruptError, match="甲 cannot be read"):
        KeywordIndex.load(path)
    settings = {"tokenizer": {"kind": "jieba", "user_words": []}, "k1": 1.5, "b": 0.75}
    for facts in (
        None,
        {"format": "another"},
        {"format": "luotuo-keywords-1"},
        {"format": "luotuo-keywords-1", "settings": "{"},
        {"format": "luotuo-keywords-1", "settings": "{}"},
        {"format": "luotuo-keywords-1", "settings": json.dumps(settings)},
    ):
        save_file({"rows": np.zeros(1, np.int64)}, path, facts)
        with pytest.raises(StoreCorruptError, match="甲 cannot be read"):
            KeywordIndex.load(path)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="没有"):
        filled().save(tmp_path / "没有" / "甲")
