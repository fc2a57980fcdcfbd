"""PDF files, made here: lines joined, pages known, bad pages reported."""

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypdf
import pytest

from luotuo_integrations.documents import Problem, load_documents, load_file
from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.pdf import read_pdf
from luotuo_integrations.splitter import ChineseTextSplitter


def make_pdf(
    pages: list[list[str] | None],
    unicode_of: Callable[[str], int] = ord,
    sizes: dict[str, int] | None = None,
) -> bytes:
    """A PDF file of one font without outlines: one Tj a line; None makes a page that is an image.

    unicode_of gives the code point that the file claims for a character; sizes those of lines that are not 12 points.
    """
    characters = sorted({character for page in pages for line in page or () for character in line})
    codes = {character: index + 1 for index, character in enumerate(characters)}
    pairs = "\n".join(
        f"<{code:04x}> <{chr(unicode_of(character)).encode('utf-16-be').hex()}>" for character, code in codes.items()
    )
    cmap = (
        "/CIDInit /ProcSet findresource begin begincmap /CMapType 2 def 1 begincodespacerange <0000> <ffff> "
        f"endcodespacerange {len(codes)} beginbfchar\n{pairs}\nendbfchar endcmap end"
    )
    objects: list[bytes] = []

    def add(body: str, stream: bytes | None = None) -> int:
        head = body.encode() if stream is None else f"<< {body} /Length {len(stream)} >>".encode()
        objects.append(head if stream is None else head + b"\nstream\n" + stream + b"\nendstream")
        return len(objects)

    catalog, tree = add(""), add("")
    to_unicode = add("", cmap.encode())
    descriptor = "<< /Type /FontDescriptor /FontName /F /Flags 4 /FontBBox [0 0 1 1] /ItalicAngle 0 >>"
    cid = add(f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /F /DW 1000 /FontDescriptor {descriptor} "
              "/CIDSystemInfo << /Registry (A) /Ordering (B) /Supplement 0 >> >>")  # fmt: skip
    font = add(f"<< /Type /Font /Subtype /Type0 /BaseFont /F /Encoding /Identity-H "
               f"/DescendantFonts [{cid} 0 R] /ToUnicode {to_unicode} 0 R >>")  # fmt: skip
    image = add("/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
                "/Filter /FlateDecode", zlib.compress(b"\0"))  # fmt: skip
    kids = []
    for page in pages:
        shown = []
        for row, line in enumerate(page or ()):
            size, shown_codes = (sizes or {}).get(line, 12), "".join(f"{codes[character]:04x}" for character in line)
            shown.append(f"BT /F {size} Tf 1 0 0 1 50 {800 - 20 * row} Tm <{shown_codes}> Tj ET")
        content = add("", "\n".join(shown if page is not None else ["q 500 0 0 800 0 0 cm /I Do Q"]).encode())
        resources = f"/Font << /F {font} 0 R >>" if page is not None else f"/XObject << /I {image} 0 R >>"
        kids.append(add(f"<< /Type /Page /Parent {tree} 0 R /MediaBox [0 0 595 842] "
                        f"/Contents {content} 0 R /Resources << {resources} >> >>"))  # fmt: skip
    objects[catalog - 1] = f"<< /Type /Catalog /Pages {tree} 0 R >>".encode()
    references = " ".join(f"{kid} 0 R" for kid in kids)
    objects[tree - 1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{references}] >>".encode()
    out = io.BytesIO(b"%PDF-1.5\n")
    out.seek(0, os.SEEK_END)
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj\n".encode() + body + b"\nendobj\n")
    start = out.tell()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode())
    out.write(f"trailer << /Size {len(objects) + 1} /Root {catalog} 0 R >>\nstartxref\n{start}\n%%EOF".encode())
    return out.getvalue()


def rewritten(data: bytes, change: Callable[[pypdf.PdfWriter], Any]) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    change(writer)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_pdf_lines_are_joined_and_pages_kept(tmp_path: Path) -> None:
    pages: list[list[str] | None] = [
        ["员工手册", "试用期内的员工不得申", "请年假，但是病假和事", "假除外。请参照规定办", "理。"],
        [
            "第二条 出差住宿标准为每晚不",
            "超过四百五十元。see inter-",
            "national rules for the",
            "whole company 以及附件",
        ],
        [],
        ["中的补充规定。"],
    ]
    (tmp_path / "手册.pdf").write_bytes(make_pdf(pages))
    (document,) = load_file(tmp_path / "手册.pdf", tmp_path)
    text = document.page_content
    assert text == (
        "员工手册\n试用期内的员工不得申请年假，但是病假和事假除外。请参照规定办理。\n"
        "第二条 出差住宿标准为每晚不超过四百五十元。"
        "see international rules for the whole company 以及附件中的补充规定。"
    )
    starts = document.metadata["page_starts"]
    assert starts == [0, text.index("第二条"), text.index("中的补充"), text.index("中的补充")]
    assert document.metadata["title"] == "手册"
    chunks = ChineseTextSplitter(60, 0).split_documents([document])
    assert [(chunk.metadata["page"], chunk.metadata.get("page_end")) for chunk in chunks] == [
        (1, None),
        (2, None),
        (2, 4),
    ]
    assert all("page_starts" not in chunk.metadata for chunk in chunks)


def test_pdf_running_titles_page_numbers_and_contents_are_left_out() -> None:
    pages: list[list[str] | None] = [
        ["骆驼公司员工手册 内部", f"第{number}条的正文在这一页。", f"- {number} -"] for number in range(1, 5)
    ]
    pages.insert(0, ["第一条 ........ 1", "第二条 . . . . . . 2"])
    document = read_pdf(make_pdf(pages))
    assert document.text == "\n".join(f"第{number}条的正文在这一页。" for number in range(1, 5))


def test_pdf_bookmarks_become_headings() -> None:
    data = make_pdf([["一、总则", "为规范管理。", "# 这不是标题"], ["1.1 请假", "年假五天。"]])

    def add_bookmarks(writer: pypdf.PdfWriter) -> None:
        parent = writer.add_outline_item(title="总则", page_number=0)
        writer.add_outline_item(title="请 假", page_number=1, parent=parent)
        writer.add_metadata({"/Title": "员工手册"})

    document = read_pdf(rewritten(data, add_bookmarks))
    assert document.text == "# 一、总则\n为规范管理。\n    # 这不是标题\n## 1.1 请假\n年假五天。"
    assert document.title == "员工手册"


def test_pdf_lines_in_larger_letters_are_headings_where_there_are_no_bookmarks() -> None:
    lines = ["员工手册", "1 休假", "年假五天，病假十天，都要提前申请。", "请注意！", "2 报销", "住宿四百五十元。", "12"]
    sizes = {"员工手册": 20, "1 休假": 14, "2 报销": 14, "请注意！": 14, "12": 20}
    document = read_pdf(make_pdf([lines], sizes=sizes))
    assert document.text.split("\n") == [
        "# 员工手册",
        "## 1 休假",
        "年假五天，病假十天，都要提前申请。",
        "请注意！",
        "## 2 报销",
        "住宿四百五十元。",
        "12",
    ]
    chunks = ChineseTextSplitter().create_documents([document.text])
    assert [chunk.metadata["headings"] for chunk in chunks] == ["员工手册 > 1 休假", "员工手册 > 2 报销"]


def test_pdf_titles_that_are_file_names_are_not_used() -> None:
    data = rewritten(
        make_pdf([["正文。"]]), lambda writer: writer.add_metadata({"/Title": "Microsoft Word - 手册.doc"})
    )
    assert read_pdf(data).title == ""


def test_pdf_radicals_become_characters_and_private_bullets_bullets() -> None:
    stand_ins = {"用": 0x2F64, "长": 0x2ED3, "•": 0xF0B7}
    document = read_pdf(make_pdf([["• 试用期长"]], lambda character: stand_ins.get(character, ord(character))))
    assert document.text == "• 试用期长"


def test_bad_pdf_pages_are_reported_and_the_others_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = {character: 0xE000 + index for index, character in enumerate("乱码页面")}
    pages: list[list[str] | None] = [["这一份文件写得很好。"], ["乱码的页面"], None, [], ["另一份也很好。"]]
    (tmp_path / "扫描.pdf").write_bytes(make_pdf(pages, lambda character: private.get(character, ord(character))))
    problems: list[Problem] = []
    (document,) = load_file(tmp_path / "扫描.pdf", tmp_path, on_problem=problems.append)
    assert document.page_content == "这一份文件写得很好。\n另一份也很好。"
    assert problems == [
        Problem("扫描.pdf", "its text is garbled: 4 of 5 characters mean nothing in Unicode", 2),
        Problem("扫描.pdf", "it is an image without text", 3),
    ]
    assert "扫描.pdf, page 2: its text is garbled" in caplog.text
    assert load_documents(tmp_path).problems == problems


def test_pdf_text_in_a_chinese_encoding_taken_for_latin_is_garbled() -> None:
    mojibake = "员工手册".encode("gbk").decode("latin-1")
    with pytest.raises(DocumentError, match=r"accented Latin letters.*ocrmypdf"):
        read_pdf(make_pdf([[mojibake]]))


def test_pdf_of_images_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "扫描.pdf").write_bytes(make_pdf([None, None]))
    with pytest.raises(
        DocumentError, match=r"Cannot read 扫描\.pdf: it has no readable text .*image.*ocrmypdf -l chi_sim"
    ):
        load_file(tmp_path / "扫描.pdf", tmp_path)


def test_blank_pdf() -> None:
    with pytest.raises(DocumentError, match="all pages are blank"):
        read_pdf(make_pdf([[], []]))


@pytest.mark.parametrize("password", ["", "口令"])
def test_encrypted_pdf(password: str) -> None:
    data = rewritten(
        make_pdf([["试用期。"]]),
        lambda writer: writer.encrypt(password, owner_password="主人", algorithm="RC4-128"),
    )
    if not password:
        assert read_pdf(data).text == "试用期。"
        return
    with pytest.raises(DocumentError, match=r"needs a password.*qpdf --decrypt"):
        read_pdf(data)


@pytest.mark.parametrize("data", [b"%PDF-1.5 nothing", b"not a PDF", b"%PDF-1.4\n%%EOF"])
def test_damaged_pdf(data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"print it to PDF again|no readable text"):
        read_pdf(data)


def test_a_truncated_pdf_is_an_error_or_read_in_part() -> None:
    data = make_pdf([["试用期为三个月。"]])
    whole = 0
    for end in range(0, len(data) + 1, 97):
        try:
            text = read_pdf(data[:end]).text
        except DocumentError:
            continue
        assert text == "试用期为三个月。"
        whole += 1
    assert whole < len(data) // 97
