"""Keywords in a store: found as a new store finds them whatever has happened, kept in a file, never half-changed."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from character_embeddings import CharacterArrays
from safetensors.numpy import load_file
from small_store import TEXTS, filled, is_in_step, some_vectors

from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store import keyword_index, reader
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.files import StoreFolder
from luotuo_integrations.store.keyword_index import KeywordIndex
from luotuo_integrations.store.merge import merge_stores
from luotuo_integrations.store.reader import Hit
from luotuo_integrations.vectorstores import FAISS

WORDS = KeywordTokenizer("words", ("十五天",))
QUERIES = ("年假十五天", "三个月的發票", "要", "驼峰")


def found(core: FaissCore, query: str, **options: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in core.keyword_search(query, 100, **options)]


def as_if_built_anew(core: FaissCore, tokenizer: KeywordTokenizer) -> bool:
    """Whether keywords find what they find in a new store of the same documents."""
    fresh = FaissCore()
    documents = core.find()
    if documents:
        fresh.add(some_vectors(len(documents)), [one.content for one in documents], None, [one.id for one in documents])
    fresh.use_keywords(tokenizer)
    return is_in_step(core) and all(found(core, query) == found(fresh, query) for query in QUERIES)


def parts(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir() if path.name[0] in "dik")


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that fills with the texts that are split."""
    texts: list[str] = []
    method = KeywordTokenizer.__call__

    def call(self: KeywordTokenizer, text: str) -> list[str]:
        texts.append(text)
        return method(self, text)

    monkeypatch.setattr(KeywordTokenizer, "__call__", call)
    return texts


# Searching


def test_hits_are_whole_documents_with_bm25_scores() -> None:
    core = filled()
    index = KeywordIndex()
    index.add(range(6), TEXTS)
    scores, rows = index.search("年假要几天", 10)
    hits = core.keyword_search("年假要几天", 10)
    assert [(hit.content, hit.score) for hit in hits] == [
        (TEXTS[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]
    assert hits[0] == Hit("一", "年假十五天", {"部门": "人事", "页": 0}, hits[0].score)
    assert core.keyword_search("年假要几天", 1) == hits[:1]
    assert core.keyword_search("月球", 3) == core.keyword_search("", 3) == []


def test_filters_work_as_on_the_side_of_the_vectors() -> None:
    core = filled()
    every = dict(found(core, "要证明 要发票 年假 出差"))
    assert set(every) == {"一", "二", "三", "六"}
    for where in ({"部门": "财务"}, lambda metadata: metadata["部门"] == "财务"):
        assert dict(found(core, "要证明 要发票 年假 出差", where=where)) == {one: every[one] for one in ("三", "六")}
        assert [one for one, _ in found(core, "要证明 要发票 年假 出差", where=where, ids=["一", "六"])] == ["六"]
    assert found(core, "年假", where={"部门": "没有"}) == found(core, "年假", ids=[]) == []


def test_an_empty_store_has_no_keywords() -> None:
    core = FaissCore()
    assert core.keyword_search("年假") == []
    core.add(some_vectors(), TEXTS)
    assert core.keyword_search("年假")[0].content == TEXTS[0]


def test_bad_arguments_are_refused_before_any_text_is_split(split: list[str]) -> None:
    core = filled()
    for k in (0, True, 1.5, "3"):
        with pytest.raises(ValueError, match=r"k=.* must be a whole number"):
            core.keyword_search("年假", k)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tokenizer is str: 'words'"):
        core.use_keywords("words")  # type: ignore[arg-type]
    assert split == []
    with pytest.raises(TypeError, match="text is NoneType"):
        core.keyword_search(None)  # type: ignore[arg-type]


# Changes


def test_keywords_cost_nothing_until_they_are_asked_for(split: list[str], tmp_path: Path) -> None:
    core = filled()
    core.delete(["二"])
    core.save(tmp_path)
    assert split == []
    assert parts(tmp_path) == ["documents", "index"]
    again = FaissCore.load(tmp_path)  # as a store of an earlier release
    assert found(again, "年假")[0][0] == "一"
    again.save(tmp_path)
    assert parts(tmp_path) == ["documents", "index", "keywords"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokenizer", [WORDS, KeywordTokenizer()])
def test_after_any_changes_keywords_find_what_a_new_store_finds(
    tokenizer: KeywordTokenizer, seed: int, tmp_path: Path
) -> None:
    generator, core = random.Random(seed), filled()
    core.use_keywords(tokenizer)
    for step in range(12):
        change = generator.choice(
            ["add", "replace", "delete", "where", "file", "merge", "clear" if step == 6 else "add"]
        )
        texts = ["".join(generator.sample("年假十五天要发票驼峰三个月", 6)) for _ in range(2)]
        if change in ("add", "replace"):
            ids = ["一", "新"] if change == "replace" else None
            core.add(some_vectors(2, seed=step), texts, [{"步": step}] * 2, ids)
        elif change == "delete":
            core.delete(generator.sample(["一", "二", "三", "四", "新"], 2))
        elif change == "where":
            core.delete_where({"步": {"$lt": step - 2}})
        elif change == "merge":
            other = FaissCore()
            other.add(some_vectors(2, seed=step), texts)
            merge_stores(core, other)
        elif change == "clear":
            core.clear()
        else:
            core.save(tmp_path)
            core = FaissCore.load(tmp_path, memory_map=generator.random() < 0.5)
        assert as_if_built_anew(core, tokenizer)


def test_only_new_texts_are_split(split: list[str], tmp_path: Path) -> None:
    core = filled()
    core.keyword_search("年假")
    assert split == [*TEXTS, "年假"]
    split.clear()
    core.add(some_vectors(2), ["年假二十天", "新的一条"], None, ["一", "七"])
    core.delete(["三"])
    core.use_keywords()
    core.save(tmp_path)
    again = FaissCore.load(tmp_path)
    again.use_keywords()
    again.delete(["四"])
    again.add(some_vectors(1), ["又一条"])
    again.keyword_search("二十天")
    assert split == ["年假二十天", "新的一条", "又一条", "二十天"]


def test_another_tokenizer_takes_the_place_of_the_first(split: list[str], tmp_path: Path) -> None:
    core = filled()
    core.use_keywords()
    core.use_keywords(WORDS)
    assert split == TEXTS * 2
    core.save(tmp_path)
    split.clear()
    again = FaissCore.load(tmp_path)
    again.use_keywords(WORDS)
    assert split == []
    assert as_if_built_anew(again, WORDS)
    again.clear()
    again.add(some_vectors(), TEXTS)
    assert as_if_built_anew(again, WORDS)


def test_many_texts_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TEXTS_AT_A_TIME", 4)
    assert as_if_built_anew(filled(), KeywordTokenizer())


@pytest.mark.parametrize("step", ["vectors", "keywords"])
def test_a_change_that_fails_changes_no_keywords(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled()
    core.use_keywords()
    before = [found(core, query) for query in QUERIES]

    def fail(*_: Any) -> None:
        raise MemoryError

    owner = core._index if step == "vectors" else core._keywords
    monkeypatch.setattr(owner, "add", fail)
    with pytest.raises(MemoryError):
        core.add(some_vectors(2), ["年假驼峰", "十五天要发票"], None, ["一", "七"])
    monkeypatch.undo()
    assert [found(core, query) for query in QUERIES] == before
    assert as_if_built_anew(core, KeywordTokenizer())


def test_threads_search_while_others_change(split: list[str]) -> None:
    core = filled()
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for turn in range(10):
            if number % 2:
                core.add(some_vectors(1, seed=turn), [f"年假{number}号"], None, [f"{number}-{turn}"])
                core.delete([f"{number}-{turn - 3}"])
            else:
                assert all("年假" in hit.content for hit in core.keyword_search("年假", 50))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert split.count(TEXTS[0]) == 1  # whoever came first built the index, the others waited for it
    assert as_if_built_anew(core, KeywordTokenizer())


# Files


def test_the_file_is_read_when_keywords_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = filled()
    core.use_keywords(WORDS)
    core.save(tmp_path)
    read: list[Any] = []
    method = keyword_index._KeywordFile.contents
    monkeypatch.setattr(keyword_index._KeywordFile, "contents", lambda file: read.append(1) or method(file))
    again = FaissCore.load(tmp_path)
    again.search(some_vectors(1), 3)
    assert read == []
    core.delete(["一"])
    core.save(tmp_path)  # removes the file
    assert found(again, "十五天") == found(again, "十五天") != []
    assert read == [1]
    FaissCore.load(tmp_path, memory_map=False)
    assert read == [1, 1]
    assert parts(tmp_path) == ["documents", "index", "keywords"]


def test_damaged_keywords_are_found_and_nothing_is_changed(tmp_path: Path) -> None:
    core = filled()
    core.use_keywords()
    core.save(tmp_path)
    path = next(tmp_path.glob("keywords-*"))
    size, rows = path.stat().st_size, load_file(path)["rows"].tobytes()
    content = path.read_bytes()
    path.write_bytes(content.replace(rows, rows[::-1]))
    assert path.stat().st_size == size
    with pytest.raises(StoreCorruptError, match="checksum differs"):
        FaissCore.load(tmp_path, verify=True)
    with pytest.raises(StoreCorruptError, match="cannot be read as a keyword index"):
        FaissCore.load(tmp_path, memory_map=False)
    damaged = FaissCore.load(tmp_path)
    for use in (
        lambda: damaged.keyword_search("年假"),
        lambda: damaged.delete(["一"]),
        lambda: damaged.delete_where({"部门": "人事"}),
        lambda: damaged.add(some_vectors(1), ["年假"], None, ["一"]),
        lambda: damaged.save(tmp_path / "新"),
    ):
        with pytest.raises(StoreCorruptError, match="cannot be read as a keyword index"):
            use()
    assert [document.content for document in damaged.find()] == TEXTS
    assert is_in_step(damaged)
    path.write_bytes(content[:-1])
    with pytest.raises(StoreCorruptError, match=r"has \d+ bytes instead of \d+"):
        FaissCore.load(tmp_path)
    path.unlink()
    with pytest.raises(StoreCorruptError, match="is missing"):
        FaissCore.load(tmp_path)


def test_keywords_of_other_documents_are_refused(tmp_path: Path) -> None:
    core = filled()
    core.use_keywords()
    core.save(tmp_path)
    facts = dict(StoreFolder(tmp_path).manifest().facts)
    other = KeywordIndex()
    other.add([0], ["年假"])
    StoreFolder(tmp_path).save(
        facts,
        {"documents.sqlite": core._table.write, "index.faiss": core._index.write, "keywords.safetensors": other.save},
    )
    with pytest.raises(StoreCorruptError, match="do not belong together"):
        FaissCore.load(tmp_path)


# LangChain


def test_langchain_s_face_asks_no_embedding() -> None:
    embedding = CharacterArrays()
    store = FAISS.from_texts(TEXTS, embedding, [{"页": page} for page in range(6)], ids=list("一二三四五六"))
    embedded = embedding.encoded
    (document, score), *others = store.keyword_search("年假要休十五天", k=2)
    assert (document.id, document.page_content, document.metadata) == ("一", TEXTS[0], {"页": 0})
    assert [(document.id, score)] == found(store.core, "年假要休十五天")[:1]
    assert all(score >= other for _, other in others)
    assert [one.id for one, _ in store.keyword_search("驼", filter={"页": {"$gt": 3}})] == []
    assert [one.id for one, _ in store.keyword_search("要证明 发票", filter={"页": {"$gt": 3}})] == ["六"]
    assert embedding.encoded == embedded
    with pytest.raises(TypeError, match="query"):
        store.keyword_search(["年假"])  # type: ignore[arg-type]
    assert np.isfinite(score)
