"""HTML and Word files, made here."""

import io
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import nsdecls, qn

from luotuo_integrations.documents import load_file
from luotuo_integrations.errors import DocumentError
from luotuo_integrations.parsing.formats import read_docx, read_html
from luotuo_integrations.splitter import ChineseTextSplitter

PAGE = """<!DOCTYPE html><html><head><title>手册 - 骆驼网</title><style>p{}</style></head><body>
<nav>首页 关于</nav><div class="breadcrumb">您的位置</div><header><a href="/">骆驼网</a></header>
<!-- 注释 --><script>var x = 1;</script>
<main><header><h1>员工<b>手册</b></h1></header>
<p>为规范
  管理，<em>制定</em>本手册。<br>第二行 English
  text.</p>
散文<a href="x">链接</a>。
<h2>请假</h2><div><div>流程：<p>如下</p></div></div>
<ul><li>年假<ul><li>五天</li><li>十天<p>满十年</p></li></ul></li><li><p>病假</p></li></ul>
<ol><li>申请<li>审批</ol>
<table><caption>标准</caption><thead><tr><th>项目<th>上限<th></tr></thead>
<tr><td><p>住宿</p><p>每晚</p><td>450<br>元<td></tr><tr><td></td><td></td><td></td></tr></table>
<pre># 命令
  luotuo ask 手册/ &lt;问题&gt;
```
</pre>
<p># 不是标题</p></main><footer>版权所有</footer></body></html>"""


def test_html_becomes_text_with_headings_lists_tables_and_code() -> None:
    document = read_html(PAGE)
    assert document.title == "员工手册"
    assert document.text.split("\n\n") == [
        "# 员工手册",
        "为规范管理，制定本手册。\n第二行 English text.",
        "散文链接。",
        "## 请假",
        "流程：",
        "如下",
        "- 年假\n  - 五天\n  - 十天\n    满十年\n- 病假",
        "1. 申请\n2. 审批",
        "标准\n项目 | 上限 | \n住宿 每晚 | 450 元 | ",
        "````\n# 命令\n  luotuo ask 手册/ <问题>\n```\n````",
        "    # 不是标题",
    ]


def test_html_headings_reach_the_metadata_of_chunks(tmp_path: Path) -> None:
    (tmp_path / "手册.html").write_bytes(PAGE.encode("gb18030"))
    chunks = ChineseTextSplitter(200, 0).split_documents(load_file(tmp_path / "手册.html", tmp_path))
    assert [chunk.metadata["headings"] for chunk in chunks] == ["员工手册", "员工手册 > 请假"]


def test_tables_that_only_lay_out_the_page_are_read_as_text() -> None:
    assert read_html("<table><tr><td><h1>标题</h1>正文。</td></tr></table>").text == "# 标题\n\n正文。"


@pytest.mark.parametrize("charset", ["big5", "gb2312", "gbk"])
def test_html_that_names_its_encoding(charset: str, tmp_path: Path) -> None:
    html = (
        f'<html><head><meta http-equiv="Content-Type" content="text/html; charset={charset}"></head><p>不得</p></html>'
    )
    (tmp_path / "a.htm").write_bytes(html.encode(charset))
    assert load_file(tmp_path / "a.htm")[0].page_content == "不得"


def test_html_nested_too_deeply_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<div>" * 5000 + "深" + "</div>" * 5000, encoding="utf-8")
    with pytest.raises(DocumentError, match="nested too deeply"):
        load_file(tmp_path / "a.html")


def saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_docx_in_document_order_with_headings_lists_and_tables() -> None:
    document = docx.Document()
    document.add_paragraph("骆驼公司员工手册", style="Title")
    document.add_heading("休假", level=1)
    document.add_paragraph("年假五天。")
    document.add_paragraph("申请", style="List Bullet")
    document.add_paragraph("审批", style="List Number")
    table = document.add_table(rows=2, cols=3)
    for cell, text in zip(table.rows[0].cells, ("项目", "上限", "备注"), strict=True):
        cell.text = text
    table.rows[1].cells[0].text = "住宿\n每晚"
    table.rows[1].cells[1].merge(table.rows[1].cells[2]).text = "450 元"
    document.styles.add_style("标题 2", WD_STYLE_TYPE.PARAGRAPH)
    document.add_paragraph("请假流程", style="标题 2")
    paragraph = document.add_paragraph("第一行")
    paragraph.add_run().add_break()
    paragraph.add_run("# 第二行")
    parsed = read_docx(saved(document))
    assert parsed.title == "骆驼公司员工手册"
    assert parsed.text.split("\n\n") == [
        "# 骆驼公司员工手册",
        "## 休假",
        "年假五天。",
        "- 申请\n- 审批",
        "项目 | 上限 | 备注\n住宿 每晚 | 450 元",
        "### 请假流程",
        "第一行\n    # 第二行",
    ]


def test_docx_headings_by_outline_level_and_by_the_style_below() -> None:
    document = docx.Document()
    own = document.styles.add_style("公司标题", WD_STYLE_TYPE.PARAGRAPH)
    own.base_style = document.styles["Heading 2"]
    document.add_paragraph("按样式", style="公司标题")
    for text in ("按大纲级别", "一" * 101):
        paragraph = document.add_paragraph(text)
        level = OxmlElement("w:outlineLvl")
        level.set(qn("w:val"), "2")
        paragraph._p.get_or_add_pPr().append(level)
    assert read_docx(saved(document)).text.split("\n\n") == ["## 按样式", "### 按大纲级别", "一" * 101]


def test_docx_tracked_changes_content_controls_and_contents() -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("试用期")
    words = nsdecls("w")
    paragraph._p.append(parse_xml(f"<w:ins {words}><w:r><w:t>为三个月</w:t></w:r></w:ins>"))
    paragraph._p.append(parse_xml(f"<w:del {words}><w:r><w:delText>为半年</w:delText></w:r></w:del>"))
    control = f"<w:sdt {words}><w:sdtContent><w:p><w:r><w:t>控件里的段落</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    gallery = '<w:sdtPr><w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj></w:sdtPr>'
    contents = control.replace("<w:sdtContent>", gallery + "<w:sdtContent>").replace("控件里的段落", "目录")
    for xml in (control, contents):
        paragraph._p.addnext(parse_xml(xml))
    assert read_docx(saved(document)).text == "试用期为三个月\n\n控件里的段落"


@pytest.mark.parametrize("data", [b"\xd0\xcf\x11\xe0 an old Word file", b"PK\x03\x04 cut", b""])
def test_damaged_docx(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "旧.docx").write_bytes(data)
    with pytest.raises(DocumentError, match=r"Cannot read 旧\.docx: it is (not a readable \.docx file|empty)"):
        load_file(tmp_path / "旧.docx", tmp_path)
