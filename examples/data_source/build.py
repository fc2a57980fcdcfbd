"""Renders the PDF and the DOCX of examples/data from the Markdown sources beside this file.

Usage: python examples/data_source/build.py --font wqy-microhei.ttc
The font must hold Chinese glyphs (the committed PDF uses WenQuanYi Micro Hei, Apache-2.0); only those in use are
embedded. Needs fpdf2 and python-docx.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

from docx import Document
from fpdf import FPDF
from fpdf.enums import XPos, YPos

SOURCE = Path(__file__).parent
TARGET = SOURCE.parent / "data"
PDF_NAME = "野灯1500户外电源说明书"
DOCX_NAME = "差旅管理办法"
# A fixed date: the same source gives the same document.
CREATED = datetime(2026, 3, 2, tzinfo=timezone.utc)

Table = list[list[str]]


def parse(markdown: str) -> list[tuple[str, str | Table]]:
    """Splits a small Markdown subset into ("h1" | "h2" | "p", text) and ("table", rows) blocks."""
    blocks: list[tuple[str, str | Table]] = []
    for block in markdown.strip().split("\n\n"):
        if block.startswith("## "):
            blocks.append(("h2", block[3:]))
        elif block.startswith("# "):
            blocks.append(("h1", block[2:]))
        elif block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            blocks.append(("table", [rows[0], *rows[2:]]))  # rows[1] is the |---| line
        else:
            blocks.append(("p", block))
    return blocks


class Manual(FPDF):  # type: ignore[misc]  # fpdf2 is followed as Any
    """An A4 manual with a running header and page numbers."""

    def header(self) -> None:
        """Prints the product name at the top of every page."""
        self.set_font("cjk", size=9)
        self.cell(0, 8, "禾渡科技 · 野灯 1500 户外电源说明书", align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def footer(self) -> None:
        """Prints the page number at the bottom of every page."""
        self.set_y(-15)
        self.set_font("cjk", size=9)
        self.cell(0, 8, f"第 {self.page_no()} 页", align="C")


def wrap(pdf: FPDF, text: str) -> str:
    """Breaks text into lines of the printable width; no line begins with closing punctuation."""
    lines = [""]
    for character in text:
        fits = pdf.get_string_width(lines[-1] + character) <= pdf.epw - 2 * pdf.c_margin
        if fits:
            lines[-1] += character
        elif character in "。，、；：？！）”":
            lines[-1], carried = lines[-1][:-1], lines[-1][-1]
            lines.append(carried + character)
        else:
            lines.append(character)
    return "\n".join(lines)


def write_pdf(blocks: list[tuple[str, str | Table]], font: Path, path: Path) -> None:
    """Writes the blocks as a PDF with the glyphs in use embedded."""
    pdf = Manual(format="A4")
    pdf.set_creation_date(CREATED)
    pdf.set_title(PDF_NAME)
    pdf.set_lang("zh-CN")
    pdf.add_font("cjk", fname=font)
    pdf.set_margins(22, 18, 22)
    pdf.set_auto_page_break(True, margin=22)
    pdf.add_page()
    for kind, content in blocks:
        if isinstance(content, list):
            pdf.set_font("cjk", size=10)
            with pdf.table(width=140, col_widths=(2, 4), line_height=7, first_row_as_headings=False) as table:
                for row in content:
                    table.row(row)
            pdf.ln(4)
            continue
        if kind == "h2" and pdf.will_page_break(32):  # a heading never stands alone at the foot of a page
            pdf.add_page()
        pdf.set_font("cjk", size={"h1": 20, "h2": 13.5, "p": 11}[kind])
        height = {"h1": 14.0, "h2": 10.0, "p": 7.0}[kind]
        pdf.multi_cell(0, height, wrap(pdf, content), align="L", wrapmode="CHAR", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        pdf.ln(2)
    pdf.output(str(path))


def write_docx(blocks: list[tuple[str, str | Table]], path: Path) -> None:
    """Writes the blocks as a DOCX with Heading styles and real tables."""
    document = Document()
    document.core_properties.title = DOCX_NAME
    document.core_properties.author = "禾渡科技 行政部"
    document.core_properties.created = CREATED
    for kind, content in blocks:
        if isinstance(content, list):
            table = document.add_table(rows=0, cols=len(content[0]), style="Table Grid")
            for row in content:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        elif kind == "p":
            document.add_paragraph(content)
        else:
            document.add_heading(content, level=1 if kind == "h1" else 2)
    document.save(str(path))


def main() -> None:
    """Renders both documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", type=Path, required=True, help="a TrueType font with Chinese glyphs")
    font = parser.parse_args().font
    manual = parse((SOURCE / f"{PDF_NAME}.md").read_text(encoding="utf-8"))
    write_pdf(manual, font, TARGET / "产品手册" / f"{PDF_NAME}.pdf")
    policy = parse((SOURCE / f"{DOCX_NAME}.md").read_text(encoding="utf-8"))
    write_docx(policy, TARGET / "员工手册" / f"{DOCX_NAME}.docx")


if __name__ == "__main__":
    main()
