"""The store's folder: whatever moment a save fails at, one whole store is readable; damage is found and named."""

import errno
import hashlib
import json
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luotuo_integrations.errors import StoreCorruptError, StoreMismatchError
from luotuo_integrations.store import files as store_files
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.files import Manifest, StoreFolder
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.table import DocumentTable


def writer(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write


def parts(content: str) -> dict[str, Callable[[Path], None]]:
    return {"index.faiss": writer(content), "documents.sqlite": writer(content * 2)}


def saved(folder: Path, content: str) -> StoreFolder:
    store = StoreFolder(folder)
    store.save({"内容": content}, parts(content))
    return store


def content_of(folder: Path, *, verify: bool = True) -> str:
    def build(manifest: Manifest) -> str:
        texts = [
            (manifest.folder / str(entry["name"])).read_text(encoding="utf-8") for entry in manifest.files.values()
        ]
        assert texts == [manifest.facts["内容"], manifest.facts["内容"] * 2]
        return texts[0]

    return StoreFolder(folder).load(build, verify=verify)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_save_makes_new_files_and_removes_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "新建" / "知识库"
    for number, content in enumerate(["甲", "乙", "丙"], start=1):
        saved(folder, content)
        assert content_of(folder) == content
        assert names(folder) == [
            f"documents-{number:06d}.sqlite",
            f"index-{number:06d}.faiss",
            "manifest.json",
            "save.lock",
        ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "luotuo-faiss"
    entry = manifest["files"]["index.faiss"]
    content_bytes = (folder / entry["name"]).read_bytes()
    assert entry == {
        "name": "index-000003.faiss",
        "bytes": len(content_bytes),
        "sha256": hashlib.sha256(content_bytes).hexdigest(),
    }


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("说明.txt", "index.faiss", "index-1.faiss", "index-000001.faiss.bak"):
        (tmp_path / name).write_text("别动")
    saved(tmp_path, "甲")
    saved(tmp_path, "乙")
    assert {"说明.txt", "index.faiss", "index-1.faiss", "index-000001.faiss.bak"} < set(names(tmp_path))


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_call(number: int, function: Callable[..., Any], failure: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails at its n-th call."""
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return failure() if len(calls) == number else function(*args, **kwargs)

    return counted


STEPS = [
    *(("fsync", number) for number in (1, 2, 3)),
    *(("sha256", number) for number in (1, 2)),
    ("replace", 1),
    ("write_text", 1),
]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("step", "number"), STEPS)
def test_a_full_disk_at_any_step_leaves_the_store_before(
    step: str, number: int, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not first:
        saved(tmp_path, "旧")
    before = names(tmp_path)
    owner, name = {
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "sha256": (store_files, "_sha256"),
        "write_text": (Path, "write_text"),
    }[step]
    if step == "write_text":
        number = 3  # after the two data files: the manifest
    monkeypatch.setattr(owner, name, at_call(number, getattr(owner, name), no_space))
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, "新")
    monkeypatch.undo()
    assert [name for name in names(tmp_path) if name != "save.lock"] == [n for n in before if n != "save.lock"]
    if first:
        with pytest.raises(FileNotFoundError, match="holds no store"):
            content_of(tmp_path)
    else:
        assert content_of(tmp_path) == "旧"
    saved(tmp_path, "新")
    assert content_of(tmp_path) == "新"


def test_a_failure_after_the_manifest_is_in_place_keeps_the_new_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, "旧")
    monkeypatch.setattr(store_files, "_flush_folder", no_space)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, "新")
    monkeypatch.undo()
    assert content_of(tmp_path) == "新"

    def interrupted(source: Any, target: Any) -> None:
        source.rename(target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, "最新")
    monkeypatch.undo()
    assert content_of(tmp_path) == "最新"


def killed_while_saving(folder: Path, step: int) -> None:
    """In a process of its own: end without any clean-up at the n-th flush."""
    os.fsync = at_call(step, os.fsync, lambda: os._exit(9))  # type: ignore[assignment]
    saved(folder, "新")


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_process_leaves_the_store_before_and_the_next_save_tidies_up(step: int, tmp_path: Path) -> None:
    saved(tmp_path, "旧")
    process = multiprocessing.get_context("spawn").Process(target=killed_while_saving, args=(tmp_path, step))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert content_of(tmp_path) == "旧"
    assert len(names(tmp_path)) > 4  # half-made files lie about
    saved(tmp_path, "新")
    assert content_of(tmp_path) == "新"
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("part", ["index", "documents"])
def test_missing_and_truncated_files_are_found(part: str, verify: bool, tmp_path: Path) -> None:
    saved(tmp_path, "甲乙丙")
    path = next(tmp_path.glob(f"{part}-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreCorruptError, match=rf"{path.name} has \d+ bytes instead of \d+.*build the store again"):
        content_of(tmp_path, verify=verify)
    path.unlink()
    with pytest.raises(StoreCorruptError, match="is missing"):
        content_of(tmp_path, verify=verify)


def test_an_edited_file_is_found_on_request(tmp_path: Path) -> None:
    saved(tmp_path, "甲乙丙")
    path = next(tmp_path.glob("index-*"))
    path.write_text("丙乙甲", encoding="utf-8")
    with pytest.raises(StoreCorruptError, match="checksum differs"):
        content_of(tmp_path)
    StoreFolder(tmp_path).load(lambda manifest: manifest)


def test_bad_manifests(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        content_of(tmp_path / "没有")
    with pytest.raises(FileNotFoundError, match=r"holds no store: there is no manifest\.json"):
        content_of(tmp_path)
    (tmp_path / "index.pkl").touch()
    with pytest.raises(FileNotFoundError, match="import_langchain_faiss"):
        content_of(tmp_path)
    saved(tmp_path, "甲")
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    cases: list[tuple[Any, type[Exception], str]] = [
        ({**good, "facts": {"内容": "乙"}}, StoreCorruptError, "edited or damaged"),
        ({**good, "format_version": 2}, StoreMismatchError, r"version 2.*pip install --upgrade"),
        ({"name": "别的程序"}, StoreMismatchError, "not a manifest of this package"),
        ([1], StoreMismatchError, "not a manifest of this package"),
    ]
    for content, error, words in cases:
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(error, match=words):
            content_of(tmp_path)
    for damaged in (b"", b"{", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(StoreCorruptError, match="not JSON"):
            content_of(tmp_path)
    path.unlink()
    with pytest.raises(StoreCorruptError, match="lost its manifest"):
        content_of(tmp_path)


def test_another_programs_folder_is_not_overwritten_but_a_damaged_store_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"name": "浏览器插件"}', encoding="utf-8")
    with pytest.raises(StoreMismatchError, match="another folder"):
        saved(tmp_path, "甲")
    assert path.read_text(encoding="utf-8") == '{"name": "浏览器插件"}'
    path.write_text("{", encoding="utf-8")
    saved(tmp_path, "甲")
    assert content_of(tmp_path) == "甲"


def test_a_reader_follows_a_save_that_happens_meanwhile(tmp_path: Path) -> None:
    saved(tmp_path, "甲")
    seen = []

    def build(manifest: Manifest) -> str:
        seen.append(manifest.number)
        if len(seen) == 1:
            saved(tmp_path, "乙")
        path = manifest.path("index.faiss")
        assert path is not None
        return path.read_text(encoding="utf-8")

    assert StoreFolder(tmp_path).load(build) == "乙"
    assert seen == [1, 2]


def test_many_savers_in_one_folder_leave_one_whole_store(tmp_path: Path) -> None:
    threads = [threading.Thread(target=saved, args=(tmp_path, content)) for content in "甲乙丙丁戊己庚辛"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content_of(tmp_path) in "甲乙丙丁戊己庚辛"
    assert len(names(tmp_path)) == 4
    assert "index-000008.faiss" in names(tmp_path)


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_files, "_LOCK_SECONDS", 0.0)
    with closing(sqlite3.connect(tmp_path / "save.lock", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"cannot be locked for saving.*another save stuck"):
            saved(tmp_path, "甲")
    saved(tmp_path, "甲")
    (tmp_path / "save.lock").unlink()
    (tmp_path / "save.lock").mkdir()
    with pytest.raises(OSError, match="cannot be locked"):
        saved(tmp_path, "甲")


# -- the whole store on a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [VectorIndex, DocumentTable])
def test_a_store_survives_a_full_disk(part: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = FaissCore(3)
    core.add([[1, 0, 0]], ["年假十五天"], None, ["甲"])
    core.save(tmp_path)
    core.add([[0, 1, 0]], ["病假要证明"], None, ["乙"])
    write = part.write  # type: ignore[attr-defined]

    def half(self: Any, path: Path) -> None:
        write(self, path)
        path.write_bytes(path.read_bytes()[:100])
        no_space()

    monkeypatch.setattr(part, "write", half)
    with pytest.raises(OSError, match="No space left"):
        core.save(tmp_path)
    assert [document.id for document in FaissCore.load(tmp_path, verify=True).find()] == ["甲"]
    monkeypatch.undo()
    core.save(tmp_path)
    assert [document.id for document in FaissCore.load(tmp_path, verify=True).find()] == ["甲", "乙"]


def test_an_open_store_outlives_its_files(tmp_path: Path) -> None:
    core = FaissCore(3)
    core.add([[1, 0, 0], [0, 1, 0]], ["年假十五天", "病假要证明"], [{"页": 1}, {"页": 2}], ["甲", "乙"])
    core.save(tmp_path)
    opened = FaissCore.load(tmp_path)
    core.delete(["乙"])
    core.save(tmp_path)  # removes the files that the other still reads
    assert opened.search([[0, 1, 0]], 1, where={"页": 2})[0][0].content == "病假要证明"
    opened.add([[0, 0, 1]], ["出差五百元"], None, ["丙"])
    opened.save(tmp_path)
    assert [document.id for document in FaissCore.load(tmp_path, verify=True).find()] == ["甲", "乙", "丙"]


def test_a_database_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written"):
        DocumentTable().write(tmp_path / "没有" / "a.sqlite")
    path = tmp_path / "b.sqlite"
    with pytest.raises(StoreCorruptError, match="cannot be read as a database"):
        DocumentTable(path, in_place=True)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StoreCorruptError, match="cannot be read as a database"):
        DocumentTable(path)
    path.unlink()
    path.touch()
    with pytest.raises(StoreCorruptError, match="has the columns"):
        DocumentTable(path)
