"""A folder of documents: kept up to date file by file, through interruptions, bad files and full disks."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from luotuo_integrations import FAISS, KnowledgeBase, LuotuoEmbeddings, folder_sync
from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.errors import DocumentError, StoreCorruptError, StoreMismatchError
from luotuo_integrations.file_states import FileState
from luotuo_integrations.folder_sync import embedded_text
from luotuo_integrations.knowledge_base import find_store, model_of_store
from luotuo_integrations.store.core import FaissCore

LEAVE = "# 休假制度\n\n## 年休假\n\n正式员工每年有十五天年休假。\n\n## 试用期\n\n试用期员工暂不享受年休假。\n"
TRAVEL = "出差住宿标准每晚不超过四百五十元。\n"
FOOD = "食堂早餐七点开始。\n"


class RecordingEmbeddings(LuotuoEmbeddings):
    """Keeps what it embeds; raises KeyboardInterrupt at a given call."""

    def __init__(self, model: str, interrupt_at: int | None = None) -> None:
        super().__init__(model)
        self.__dict__["calls"] = []
        self.__dict__["interrupt_at"] = interrupt_at

    def encode(self, texts: Iterable[str], *args: object, **kwargs: object) -> np.ndarray:
        if len(self.__dict__["calls"]) == self.__dict__["interrupt_at"]:
            raise KeyboardInterrupt
        self.__dict__["calls"].append(list(texts))
        return super().encode(texts, *args, **kwargs)

    @property
    def texts(self) -> list[str]:
        return [text for call in self.__dict__["calls"] for text in call]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "员工手册"
    (folder / "差旅").mkdir(parents=True)
    (folder / "休假制度.md").write_text(LEAVE, encoding="utf-8")
    (folder / "差旅" / "住宿.txt").write_text(TRAVEL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(str(tiny_folder))


def opened(folder: Path, tiny: LuotuoEmbeddings, **options: object) -> KnowledgeBase:
    return KnowledgeBase(folder, embeddings=tiny, **options)


def texts_by_source(knowledge_base: KnowledgeBase) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for document in knowledge_base.vectorstore.documents():
        found.setdefault(document.metadata["source"], []).append(document.page_content)
    return {source: sorted(texts) for source, texts in found.items()}


# -- searching --------------------------------------------------------------------------------------------------------


def test_search_by_meaning_by_words_and_by_both(folder: Path, tiny: LuotuoEmbeddings) -> None:
    knowledge_base = opened(folder, tiny)
    knowledge_base.sync()
    by_meaning = knowledge_base.search("住宿标准", 2)
    assert [result.score_name for result in by_meaning] == ["cosine", "cosine"]
    assert by_meaning == knowledge_base.search("住宿标准", 2, mode="vector")
    assert all(result.relevance == pytest.approx(tiny.relevance([result.score])[0]) for result in by_meaning)
    (by_words,) = knowledge_base.search("住宿标准", mode="keyword")
    assert (by_words.document.metadata["source"], by_words.score_name) == ("差旅/住宿.txt", "BM25")
    assert by_words.score > 0
    assert by_words.relevance is None
    both = knowledge_base.search("住宿标准", 2, mode="hybrid")
    assert [result.score_name for result in both] == ["fused score"] * 2
    assert 1 >= both[0].score >= both[1].score >= 0
    only = {"source": "休假制度.md"}
    assert knowledge_base.search("住宿标准", mode="keyword", filter=only) == []
    assert {one.document.metadata["source"] for one in knowledge_base.search("住宿", mode="hybrid", filter=only)} == {
        "休假制度.md"
    }
    with pytest.raises(ValueError, match="'vector', 'keyword', 'hybrid'"):
        knowledge_base.search("住宿标准", mode="fuzzy")  # type: ignore[arg-type]


def test_an_index_is_found_by_its_folder_or_by_that_of_the_documents(folder: Path, tiny: LuotuoEmbeddings) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index in .* type: luotuo index"):
        find_store(folder)
    opened(folder, tiny).sync()
    assert find_store(folder) == find_store(str(folder / ".luotuo")) == folder / ".luotuo"
    other = folder / "别的"
    other.mkdir()
    (other / "index.pkl").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="import_langchain_faiss"):
        find_store(other)


# -- syncing ----------------------------------------------------------------------------------------------------------


def test_sync_adds_updates_removes_and_leaves_alone(folder: Path, tiny: LuotuoEmbeddings) -> None:
    first = opened(folder, tiny).sync()
    assert (first.added, first.updated, first.removed, first.unchanged) == (
        ["休假制度.md", "差旅/住宿.txt"],
        [],
        [],
        0,
    )
    assert first.chunks == len(opened(folder, tiny)) > 2
    assert first.changed

    again = opened(folder, tiny).sync()
    assert not again.changed
    assert again.unchanged == 2

    (folder / "休假制度.md").write_text("年假改为二十天。", encoding="utf-8")
    (folder / "差旅" / "住宿.txt").unlink()
    (folder / "食堂.txt").write_text(FOOD, encoding="utf-8")
    changed = opened(folder, tiny).sync()
    assert (changed.added, changed.updated, changed.removed) == (["食堂.txt"], ["休假制度.md"], ["差旅/住宿.txt"])
    assert changed.unchanged == 0
    assert texts_by_source(opened(folder, tiny)) == {"休假制度.md": ["年假改为二十天。"], "食堂.txt": [FOOD.strip()]}


def test_unchanged_files_are_not_read_again(folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = RecordingEmbeddings(str(tiny_folder))
    opened(folder, embeddings).sync()
    embedded = len(embeddings.texts)
    monkeypatch.setattr(folder_sync, "load_file", lambda *_, **__: pytest.fail("a file was read"))
    os.utime(folder / "休假制度.md")  # touched, not changed
    assert opened(folder, embeddings).sync().unchanged == 2
    assert len(embeddings.texts) == embedded


def test_headings_are_embedded_with_their_passage(folder: Path, tiny_folder: Path) -> None:
    embeddings = RecordingEmbeddings(str(tiny_folder))
    knowledge_base = opened(folder, embeddings)
    knowledge_base.sync()
    documents = knowledge_base.vectorstore.documents()
    assert sorted(embeddings.texts) == sorted(embedded_text(document) for document in documents)
    leave = next(document for document in documents if document.metadata.get("headings") == "休假制度 > 年休假")
    assert embedded_text(leave).startswith("休假制度 > 年休假\n")
    whole = LEAVE[leave.metadata["start"] : leave.metadata["end"]]
    assert leave.page_content == whole
    vector = embeddings.encode([embedded_text(leave)])[0]
    assert knowledge_base.vectorstore.similarity_search_with_score_by_vector(vector, k=1)[0][1] > 0.9999


def test_same_content_under_two_names_is_indexed_twice(folder: Path, tiny: LuotuoEmbeddings) -> None:
    shutil.copy(folder / "休假制度.md", folder / "副本.md")
    knowledge_base = opened(folder, tiny)
    knowledge_base.sync()
    texts = texts_by_source(knowledge_base)
    assert texts["副本.md"] == texts["休假制度.md"]
    (folder / "副本.md").write_text("只剩一句。", encoding="utf-8")
    assert knowledge_base.sync().updated == ["副本.md"]
    assert texts_by_source(knowledge_base) == {**texts, "副本.md": ["只剩一句。"]}


def test_another_encoding_or_chunk_size_reads_again_and_is_remembered(folder: Path, tiny: LuotuoEmbeddings) -> None:
    (folder / "差旅" / "住宿.txt").write_bytes("試用期員工可以請假".encode("big5"))
    wrong = "試用期員工可以請假".encode("big5").decode("gb18030")
    opened(folder, tiny, encoding="gb18030").sync()
    assert texts_by_source(opened(folder, tiny))["差旅/住宿.txt"] == [wrong]

    (folder / "休假制度.md").unlink()
    report = opened(folder, tiny, encoding="big5").sync()
    assert report.updated == ["差旅/住宿.txt"]
    assert texts_by_source(opened(folder, tiny))["差旅/住宿.txt"] == ["試用期員工可以請假"]
    assert not opened(folder, tiny).sync().changed

    (folder / "差旅" / "住宿.txt").write_bytes("試用期員工".encode("big5"))
    assert opened(folder, tiny).sync().updated == ["差旅/住宿.txt"]
    assert texts_by_source(opened(folder, tiny))["差旅/住宿.txt"] == ["試用期員工"]

    assert opened(folder, tiny, chunk_size=3).sync().updated == ["差旅/住宿.txt"]
    assert all(tiny.count_tokens([text])[0] <= 3 for text in texts_by_source(opened(folder, tiny))["差旅/住宿.txt"])
    assert not opened(folder, tiny).sync().changed


def test_store_folder_is_not_indexed(folder: Path, tiny: LuotuoEmbeddings) -> None:
    opened(folder, tiny).sync()
    (folder / ".luotuo" / "说明.txt").write_text("不是文档", encoding="utf-8")
    assert opened(folder, tiny).sync().unchanged == 2
    assert not any(".luotuo" in source for source in texts_by_source(opened(folder, tiny)))


def test_store_outside_leaves_the_documents_folder_alone(folder: Path, tiny: LuotuoEmbeddings, tmp_path: Path) -> None:
    store = tmp_path / "索引" / "手册"
    before = sorted(folder.rglob("*"))
    knowledge_base = opened(folder, tiny, store=store)
    knowledge_base.sync()
    assert sorted(folder.rglob("*")) == before
    assert len(opened(folder, tiny, store=store)) == len(knowledge_base)
    assert len(opened(folder, tiny)) == 0
    assert model_of_store(folder, store) == tiny.model
    assert model_of_store(folder) is None


def test_progress_counts_files_on_standard_error(
    folder: Path, tiny: LuotuoEmbeddings, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "空.md").write_bytes(b"")
    opened(folder, tiny).sync(show_progress=True)
    captured = capsys.readouterr()
    assert "Indexing files" in captured.err
    assert "3/3" in captured.err
    assert captured.out == ""
    opened(folder, tiny).sync(retry_unreadable=False, show_progress=True)
    assert capsys.readouterr().err == ""


# -- interruptions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "资料"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"试用期{number}员工可以请年假。", encoding="utf-8")
    return folder


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_interrupted_sync_keeps_what_was_finished(
    many: Path, tiny_folder: Path, finished: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_sync, "BATCH_CHUNKS", 1)  # each file is a batch
    with pytest.raises(KeyboardInterrupt):
        opened(many, RecordingEmbeddings(str(tiny_folder), interrupt_at=finished)).sync()

    embeddings = RecordingEmbeddings(str(tiny_folder))
    knowledge_base = opened(many, embeddings)
    assert len(knowledge_base) == finished
    assert not embeddings.texts
    report = knowledge_base.sync()
    assert report.unchanged == finished
    assert report.added == [f"{number}.txt" for number in range(finished, 6)]
    assert embeddings.texts == [f"试用期{number}员工可以请年假。" for number in range(finished, 6)]
    assert len(opened(many, embeddings)) == 6


def test_interrupted_update_keeps_the_old_version(
    many: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_sync, "BATCH_CHUNKS", 1)
    opened(many, RecordingEmbeddings(str(tiny_folder))).sync()
    for number in (2, 3):
        (many / f"{number}.txt").write_text(f"新{number}", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        opened(many, RecordingEmbeddings(str(tiny_folder), interrupt_at=1)).sync()
    texts = texts_by_source(opened(many, RecordingEmbeddings(str(tiny_folder))))
    assert texts["2.txt"] == ["新2"]
    assert texts["3.txt"] == ["试用期3员工可以请年假。"]
    assert opened(many, RecordingEmbeddings(str(tiny_folder))).sync().updated == ["3.txt"]


def test_long_sync_saves_on_the_way(many: Path, tiny: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_sync, "BATCH_CHUNKS", 1)
    monkeypatch.setattr(folder_sync, "SAVE_SECONDS", -1.0)
    on_disk = []
    save = FAISS.save_local

    def counted(store: FAISS, path: Path) -> None:
        save(store, path)
        on_disk.append(len(FAISS.load_local(path, tiny)))

    monkeypatch.setattr(FAISS, "save_local", counted)
    opened(many, tiny).sync()
    assert on_disk == [1, 2, 3, 4, 5, 6]


class Crash(BaseException):
    """The process ends: nothing after it runs."""


@pytest.mark.parametrize("place", ["add", "delete", "save"])
def test_crash_leaves_the_index_before(
    folder: Path, tiny: LuotuoEmbeddings, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder, tiny).sync()
    before = texts_by_source(opened(folder, tiny))
    (folder / "休假制度.md").write_text("短了。", encoding="utf-8")

    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(FAISS, "save_local", crash)
        if place == "add":
            patched.setattr(FaissCore, "add_batch", crash)
        if place == "delete":
            patched.setattr(FaissCore, "delete", crash)
        with pytest.raises(Crash):
            opened(folder, tiny).sync()
    assert texts_by_source(opened(folder, tiny)) == before
    assert opened(folder, tiny).sync().updated == ["休假制度.md"]
    assert texts_by_source(opened(folder, tiny))["休假制度.md"] == ["短了。"]


def test_interruption_between_adding_and_deleting_is_mended(
    folder: Path, tiny: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge_base = opened(folder, tiny)
    knowledge_base.sync()
    (folder / "休假制度.md").write_text("短了。", encoding="utf-8")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FaissCore, "delete", interrupt)
        with pytest.raises(KeyboardInterrupt):
            knowledge_base.sync()
    assert len(texts_by_source(opened(folder, tiny))["休假制度.md"]) > 1  # old and new, saved
    for again in (knowledge_base, opened(folder, tiny)):  # in the same process, and in a later one
        again.sync()
        assert texts_by_source(again)["休假制度.md"] == ["短了。"]


def test_no_disk_space_while_saving_keeps_the_index_before(
    folder: Path, tiny: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder, tiny).sync()
    before = texts_by_source(opened(folder, tiny))
    files = sorted(path.name for path in (folder / ".luotuo").iterdir())
    (folder / "食堂.txt").write_text(FOOD, encoding="utf-8")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("luotuo_integrations.store.files._flush", no_space)
        with pytest.raises(OSError, match="No space left"):
            opened(folder, tiny).sync()
    assert texts_by_source(opened(folder, tiny)) == before
    assert sorted(path.name for path in (folder / ".luotuo").iterdir()) == files
    assert opened(folder, tiny).sync().added == ["食堂.txt"]


# -- keywords ---------------------------------------------------------------------------------------------------------


def save_without_keywords(folder: Path, tiny: LuotuoEmbeddings) -> list[str]:
    """Put in place of an index one of the same passages that has no keyword index -> its files."""
    knowledge_base = opened(folder, tiny)
    knowledge_base.sync()
    documents, vectors = knowledge_base.vectorstore.core.export()
    without = FAISS(tiny)
    pairs = zip([one.content for one in documents], vectors.tolist(), strict=True)
    without.add_embeddings(pairs, [one.metadata for one in documents], ids=[one.id for one in documents])
    shutil.rmtree(folder / ".luotuo")
    without.save_local(folder / ".luotuo")
    return index_files(folder)


def index_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".luotuo").iterdir() if path.name != "save.lock")


def test_a_keyword_tokenizer_of_ones_own_outlives_a_sync(folder: Path, tiny: LuotuoEmbeddings) -> None:
    (folder / "产量.txt").write_text("驼峰井的产量每天三吨。", encoding="utf-8")
    knowledge_base = opened(folder, tiny)
    knowledge_base.sync()
    assert knowledge_base.search("峰井", mode="keyword")  # a pair of characters
    knowledge_base.vectorstore.core.use_keywords(KeywordTokenizer("words", user_words=("驼峰井",)))
    knowledge_base.vectorstore.save_local(knowledge_base.store_folder)
    (folder / "食堂.txt").write_text(FOOD + "驼峰井旁边。\n", encoding="utf-8")
    (folder / "差旅" / "住宿.txt").unlink()
    assert opened(folder, tiny).sync().changed
    again = opened(folder, tiny)
    assert again.search("峰井", mode="keyword") == []  # no word
    found = {one.document.metadata["source"] for one in again.search("驼峰井", mode="keyword")}
    assert found == {"产量.txt", "食堂.txt"}


def test_an_index_without_keywords_gets_them_once_though_no_file_has_changed(
    folder: Path, tiny: LuotuoEmbeddings
) -> None:
    assert not any(name.startswith("keywords") for name in save_without_keywords(folder, tiny))
    searched = opened(folder, tiny)
    expected = searched.search("住宿标准", mode="keyword")  # made for this search, not saved
    assert len(expected) == 1
    report = searched.sync()
    assert (report.changed, report.unchanged) == (False, 2)
    files = index_files(folder)
    assert sum(name.startswith("keywords") for name in files) == 1
    again = opened(folder, tiny)
    again.sync()
    assert index_files(folder) == files  # their numbers would be higher
    assert again.search("住宿标准", mode="keyword") == expected
    assert texts_by_source(again) == texts_by_source(searched)


@pytest.mark.parametrize("problem", ["forbidden", "full"])
def test_an_index_that_cannot_be_written_is_searched_all_the_same(
    folder: Path,
    tiny: LuotuoEmbeddings,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = save_without_keywords(folder, tiny)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if problem == "full":
        monkeypatch.setattr("luotuo_integrations.store.files._flush", no_space)
    else:
        (folder / ".luotuo").chmod(0o555)
        if os.access(folder / ".luotuo", os.W_OK):  # to root nothing is forbidden
            monkeypatch.setattr(os, "access", lambda *_: False)
    knowledge_base = opened(folder, tiny)
    assert knowledge_base.sync().unchanged == 2
    assert len(knowledge_base.search("住宿标准", mode="keyword")) == 1
    (folder / ".luotuo").chmod(0o755)
    assert index_files(folder) == before
    assert ("each search will make its own" in caplog.text) == (problem == "full")


# -- bad files and folders --------------------------------------------------------------------------------------------


def test_bad_files_among_good_ones_are_reported(folder: Path, tiny: LuotuoEmbeddings) -> None:
    (folder / "坏.txt").write_bytes(b"\x00\x01\x02")
    (folder / "空.md").write_bytes(b"")
    (folder / "坏.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    report = opened(folder, tiny).sync()
    assert report.added == ["休假制度.md", "差旅/住宿.txt"]
    assert [problem.source for problem in report.problems] == ["坏.pdf", "坏.txt", "空.md"]
    assert all(problem.reason.startswith(f"Cannot read {problem.source}") for problem in report.problems)


def test_bad_files_are_tried_again_only_when_wanted_or_changed(
    folder: Path, tiny: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "空.md").write_bytes(b"")
    first = opened(folder, tiny).sync()
    assert first.problems
    read = []
    load = folder_sync.load_file
    monkeypatch.setattr(
        folder_sync, "load_file", lambda *args, **options: (read.append(args), load(*args, **options))[1]
    )
    again = opened(folder, tiny).sync(retry_unreadable=False)
    assert again.problems == first.problems
    assert not again.changed
    assert not read
    assert opened(folder, tiny).sync().problems == first.problems
    assert len(read) == 1
    (folder / "空.md").write_text(FOOD, encoding="utf-8")
    mended = opened(folder, tiny).sync(retry_unreadable=False)
    assert (mended.added, mended.problems) == (["空.md"], [])
    assert json.loads((folder / ".luotuo" / "unreadable.json").read_text(encoding="utf-8")) == {}


def test_damaged_note_of_bad_files_is_no_error(folder: Path, tiny: LuotuoEmbeddings) -> None:
    (folder / "空.md").write_bytes(b"")
    opened(folder, tiny).sync()
    for content in ("{", "[]", '{"空.md": 3}', '{"空.md": ["x"]}'):
        (folder / ".luotuo" / "unreadable.json").write_text(content, encoding="utf-8")
        assert len(opened(folder, tiny).sync(retry_unreadable=False).problems) == 1


def test_a_file_that_lost_its_text_is_dropped_from_the_index(folder: Path, tiny: LuotuoEmbeddings) -> None:
    opened(folder, tiny).sync()
    (folder / "休假制度.md").write_bytes(b"")
    report = opened(folder, tiny).sync()
    assert (report.updated, report.removed) == ([], ["休假制度.md"])
    assert list(texts_by_source(opened(folder, tiny))) == ["差旅/住宿.txt"]


def test_a_file_that_is_locked_just_now_stays_indexed(
    folder: Path, tiny: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder, tiny).sync()
    before = texts_by_source(opened(folder, tiny))

    def locked(file: Path) -> str:
        return "" if file.name == "休假制度.md" else real(file)

    def refuse(path: Path, *args: object, **options: object) -> list:
        raise DocumentError(f"Cannot read {path.name}: Permission denied")

    real = folder_sync.sha256_of
    monkeypatch.setattr(folder_sync, "sha256_of", locked)
    monkeypatch.setattr(folder_sync, "load_file", refuse)
    report = opened(folder, tiny).sync()
    assert not report.changed
    assert [problem.source for problem in report.problems] == ["休假制度.md"]
    assert texts_by_source(opened(folder, tiny)) == before


def test_folder_without_text_is_refused(tmp_path: Path, tiny: LuotuoEmbeddings) -> None:
    empty = tmp_path / "空文件夹"
    empty.mkdir()
    with pytest.raises(DocumentError, match=r"nothing to index in .*空文件夹.* Put txt, md, html"):
        opened(empty, tiny).sync()
    assert list(empty.iterdir()) == []
    (empty / "图.png").write_bytes(b"x")
    with pytest.raises(DocumentError, match="nothing to index"):
        opened(empty, tiny).sync()
    (empty / "空.md").write_bytes(b"")
    with pytest.raises(DocumentError, match=r"No file in .* has text: Cannot read 空.md: it is empty"):
        opened(empty, tiny).sync()


def test_files_that_are_all_gone_leave_the_index(folder: Path, tiny: LuotuoEmbeddings, tmp_path: Path) -> None:
    store = tmp_path / "索引"
    opened(folder, tiny, store=store).sync()
    shutil.rmtree(folder)
    folder.mkdir()  # as a drive that is not mounted
    with pytest.raises(DocumentError, match=r"All 2 indexed files are gone .* left as it is.*索引"):
        opened(folder, tiny, store=store).sync()
    assert len(opened(folder, tiny, store=store)) > 0


def test_missing_folder_and_file_in_its_place(folder: Path, tiny: LuotuoEmbeddings) -> None:
    with pytest.raises(DocumentError, match=r"没有这个.* does not exist"):
        opened(folder / "没有这个", tiny)
    with pytest.raises(DocumentError, match=r"休假制度.md' is a file; give the folder it lies in"):
        opened(folder / "休假制度.md", tiny)


def test_store_that_cannot_be_written_is_refused_before_work(folder: Path, tiny_folder: Path) -> None:
    embeddings = RecordingEmbeddings(str(tiny_folder))
    for store in (folder / "休假制度.md", folder / "休假制度.md" / "索引"):
        with pytest.raises(OSError, match=r"cannot be made .*; give another store"):
            opened(folder, embeddings, store=store).sync()
    assert not embeddings.texts


# -- the wrong store --------------------------------------------------------------------------------------------------


def test_index_of_another_model_is_refused(folder: Path, tiny: LuotuoEmbeddings, tiny_folder: Path) -> None:
    opened(folder, tiny).sync()
    other = LuotuoEmbeddings(str(tiny_folder), passage_prompt="passage: ")  # same dimension, other vectors
    with pytest.raises(StoreMismatchError, match=r"was built with the model .*小模型.*delete the folder .*\.luotuo"):
        opened(folder, other)
    with pytest.raises(StoreMismatchError, match="was built with the model"):
        opened(folder, LuotuoEmbeddings())


def test_store_of_another_kind_is_refused(folder: Path, tiny: LuotuoEmbeddings, tmp_path: Path) -> None:
    FAISS.from_texts(["年假"], tiny).save_local(tmp_path / "别的")
    knowledge_base = opened(folder, tiny, store=tmp_path / "别的")
    with pytest.raises(StoreMismatchError, match=r"别的.* no knowledge base's; give another folder"):
        knowledge_base.sync()
    assert len(FAISS.load_local(tmp_path / "别的", tiny)) == 1


def test_damaged_index_says_what_to_delete(folder: Path, tiny: LuotuoEmbeddings) -> None:
    opened(folder, tiny).sync()
    file = next((folder / ".luotuo").glob("documents-*.sqlite"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreCorruptError, match=r"100 bytes instead of .* delete the folder .*\.luotuo"):
        opened(folder, tiny)
    (folder / ".luotuo" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreCorruptError, match="is not JSON"):
        model_of_store(folder)


# -- searching and asking ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    folder = tmp_path_factory.mktemp("手册")
    (folder / "休假制度.md").write_text(LEAVE, encoding="utf-8")
    (folder / "住宿.txt").write_text(TRAVEL, encoding="utf-8")
    (folder / "食堂.txt").write_text(FOOD, encoding="utf-8")
    knowledge_base = KnowledgeBase(folder)
    knowledge_base.sync()
    return knowledge_base


def test_search_finds_the_passage_with_scores(handbook: KnowledgeBase) -> None:
    results = handbook.search("出差一晚住宿多少钱", k=3)
    assert results[0].document.metadata["source"] == "住宿.txt"
    assert results[0].title == "住宿.txt"
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    relevances = [result.relevance for result in results]
    assert relevances == sorted(relevances, reverse=True)
    assert all(0 <= relevance <= 1 for relevance in relevances)
    only = handbook.search("出差一晚住宿多少钱", k=3, filter={"source": "食堂.txt"})
    assert [result.document.page_content for result in only] == [FOOD.strip()]


def test_ask_and_stream(handbook: KnowledgeBase) -> None:
    answer = handbook.ask("试用期员工可以请年休假吗？")
    assert answer.found
    assert "试用期员工暂不享受年休假。[1]" in answer.text
    assert answer.sources[0].title == "休假制度.md · 休假制度 > 试用期"
    assert not handbook.ask("你好").found
    stream = handbook.stream("试用期员工可以请年休假吗？")
    assert "".join(stream) == answer.text


def test_ask_passes_the_language_model_and_settings_on(handbook: KnowledgeBase) -> None:
    asked = KnowledgeBase(
        handbook.folder, embeddings=handbook.embeddings, llm=lambda _: "不可以[2]。", k=2, threshold=0
    )
    answer = asked.ask("试用期员工可以请年休假吗？")
    assert (answer.text, [source.number for source in answer.sources]) == ("不可以[2]。", [2])
    with pytest.raises(ValueError, match="k=9"):
        KnowledgeBase(handbook.folder, embeddings=handbook.embeddings, k=9)
    with pytest.raises(TypeError, match="llm is int"):
        KnowledgeBase(handbook.folder, embeddings=handbook.embeddings, llm=7)


def test_background_of_another_model_is_kept_beside_the_index(folder: Path, tiny_folder: Path) -> None:
    embeddings = RecordingEmbeddings(str(tiny_folder))
    knowledge_base = opened(folder, embeddings, threshold=0.0)
    knowledge_base.sync()
    knowledge_base.ask("试用期")
    assert len(embeddings.texts) > 500  # the bank
    later = RecordingEmbeddings(str(tiny_folder))
    opened(folder, later, threshold=0.0).ask("试用期")
    assert len(later.texts) < 20
    assert opened(folder, later).sync().unchanged == 2


def test_file_state_reads_back_what_it_wrote() -> None:
    for state in (FileState("ab12", 400, ""), FileState("", 1, "big5"), FileState("ff", 96, "utf-16 le")):
        assert FileState.parse(str(state)) == state
