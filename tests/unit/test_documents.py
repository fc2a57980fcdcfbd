"""Files and folders to Documents, encodings, and everything that can be wrong with them."""

import builtins
import os
from pathlib import Path
from typing import Any

import pytest

from luotuo_integrations.documents import LoadedDocuments, iter_files, load_documents, load_file
from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.decoding import decode

TEXT = "试用期为三个月。\n试用期内不得请年假，病假除外。\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "gbk", "big5"])
def test_encodings_are_detected(encoding: str, tmp_path: Path) -> None:
    text = "試用期規定：試用期內的員工不得申請特別休假。\n" if encoding == "big5" else TEXT
    (tmp_path / "手册.txt").write_bytes(text.encode(encoding))
    (document,) = load_file(tmp_path / "手册.txt", tmp_path)
    assert document.page_content == text
    assert document.metadata == {"source": "手册.txt", "title": "手册"}


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_of_both_byte_orders(mark: bytes) -> None:
    codec = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    assert decode(mark + TEXT.encode(codec)) == TEXT


def test_a_short_gbk_text_is_not_taken_for_another_encoding() -> None:
    assert decode("你好".encode("gbk")) == "你好"


def test_an_encoding_that_is_passed_decides() -> None:
    assert decode("員工".encode("big5"), "big5") == "員工"
    assert decode(TEXT.encode("utf-16-le"), "utf-16-le") == TEXT


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (
            b"abc\xff\xff",
            None,
            r"neither UTF-8 \(byte 3\) nor gb18030, byte 3: convert it to UTF-8, or pass its encoding",
        ),
        (TEXT.encode()[:-2] + "。".encode()[:2] + b"\n" + TEXT.encode(), None, "is not UTF-8, though the rest is"),
        ("试用".encode("gbk"), "utf-8", "byte 0 is not utf-8"),
        (b"abc", "utf-9", "encoding='utf-9' is unknown: give for instance 'utf-8'"),
        (b"PK\x03\x04\x00\x00", None, "byte 4 is NUL"),
        (TEXT.encode("utf-16-le"), None, "pass encoding='utf-16-le'"),
        (bytes(range(1, 9)) * 10, None, "control characters"),
        (b"abc\x00", "utf-8", "control characters"),
    ],
)
def test_bytes_that_are_no_text(data: bytes, encoding: str | None, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        decode(data, encoding)


def test_text_is_kept_and_lines_end_alike() -> None:
    text = "全角ＡＢＣ，①，㈱ｱ\u3000缩进\r\n第二行\r第三行\n"
    assert decode(text.encode()) == "全角ＡＢＣ，①，㈱ｱ\u3000缩进\n第二行\n第三行\n"


def test_markdown_keeps_its_text_and_has_a_title(tmp_path: Path) -> None:
    text = "前言。\n\n## **休假** ##\n\n- 年假\n"
    (tmp_path / "a.markdown").write_text(text, encoding="utf-8")
    (document,) = load_file(tmp_path / "a.markdown", tmp_path)
    assert document.page_content == text
    assert document.metadata["title"] == "休假"


def test_folder_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("乙.md", "甲/1.txt", "甲/.隐藏.txt", ".luotuo/store.txt", "~$乙.md", "图.png", "甲/A.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    (tmp_path / "甲" / "环").symlink_to(tmp_path, target_is_directory=True)
    found = [file.relative_to(tmp_path).as_posix() for file in iter_files(tmp_path)]
    assert found == ["乙.md", "甲/1.txt", "甲/A.TXT"]
    loaded = load_documents(tmp_path)
    assert [document.metadata["source"] for document in loaded.documents] == found
    assert loaded.problems == []
    assert [file.name for file in iter_files(tmp_path, [".md"])] == ["乙.md"]


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "好.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "坏.txt").write_bytes(b"\x00\x01")
    (tmp_path / "空.md").write_text(" \n\ufeff\u200b", encoding="utf-8")
    (tmp_path / "断.txt").symlink_to(tmp_path / "没有.txt")
    documents, problems = load_documents(tmp_path)
    assert [document.metadata["source"] for document in documents] == ["好.txt"]
    assert sorted(problem.source for problem in problems) == ["坏.txt", "断.txt", "空.md"]
    reasons = " ".join(problem.reason for problem in problems)
    assert "byte 0 is NUL" in reasons
    assert "Cannot read 空.md: it is empty" in reasons
    assert "No such file" in reasons


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "手册.txt"
    path.write_text(TEXT, encoding="utf-8")
    loaded = load_documents(path)
    assert loaded == LoadedDocuments(load_file(path), [])
    assert loaded.documents[0].metadata["source"] == path.as_posix()


def test_files_that_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "旧.doc").write_bytes(b"x")
    (tmp_path / "图.png").write_bytes(b"x")
    with pytest.raises(DocumentError, match=r"found 1 \.png, 1 \.doc; allowed are \.txt, \.md"):
        load_documents(tmp_path)
    assert "convert them to .docx, .pdf or .md): 旧.doc" in caplog.text
    with pytest.raises(DocumentError, match=r"'\.doc' cannot be read: convert it to one of"):
        load_file(tmp_path / "旧.doc")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="found no files"):
        load_documents(tmp_path)
    with pytest.raises(DocumentError, match="does not exist"):
        load_documents(tmp_path / "没有")
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    with pytest.raises(DocumentError, match=r"None of the 1 files .* Cannot read a\.txt: it is empty \(0 bytes\)"):
        load_documents(tmp_path)
    with pytest.raises(DocumentError, match="is a file: give its folder"):
        list(iter_files(tmp_path / "a.txt"))


@pytest.mark.parametrize("suffixes", [[".xyz"], ".txt"])
def test_suffixes_must_be_known(suffixes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give a list with some of \.txt"):
        list(iter_files(tmp_path, suffixes))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "机密.txt"
    path.write_text(TEXT, encoding="utf-8")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read every file, so permissions cannot show it
    with pytest.raises(DocumentError, match=r"Cannot read 机密\.txt: Permission denied: allow it with chmod u\+r"):
        load_file(path, tmp_path)


def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + "手册.txt".encode("gbk")))
    try:
        path.write_text(TEXT, encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DocumentError, match=r"its name is not valid UTF-8. Rename it"):
        load_file(path, tmp_path)


def test_source_must_be_below_root(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match="subpath"):
        load_file(tmp_path / "a.txt", tmp_path / "别处")


@pytest.mark.parametrize(("name", "module"), [("a.pdf", "pypdf"), ("a.docx", "docx"), ("a.html", "bs4")])
def test_a_missing_extra_is_named(name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"<p>text</p>")

    def missing(wanted: str) -> Any:
        raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(
        ImportError, match=rf"'{module}' is not installed. Type: pip install 'luotuo-integrations\[docs\]'"
    ):
        load_documents(tmp_path)


def test_text_files_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text(TEXT, encoding="utf-8")
    real_import = builtins.__import__

    def no_extras(name: str, *arguments: Any, **settings: Any) -> Any:
        assert name.split(".")[0] not in ("bs4", "pypdf", "docx")
        return real_import(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", no_extras)
    assert load_file(tmp_path / "a.md")[0].page_content == TEXT
