"""Readers of HTML and Word files: bytes or text in, Markdown-like text and a title out."""

import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

from luotuo_integrations._optional import require
from luotuo_integrations.errors import DocumentError

if TYPE_CHECKING:
    from bs4 import Tag

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\u3000-\u303f\uff00-\uffef"


_LIKE_HEADING = re.compile(r"^(?= {0,3}#{1,6}\s)", re.MULTILINE)


class PlainDocument(NamedTuple):
    """A document as text.

    Attributes:
        text: Its text; headings are lines that begin with ``#``, table rows have cells separated by `` | ``.
        title: Its own title, "" where it has none.
        page_starts: Offsets in the text at which its pages begin; None where it has no pages.
        bad_pages: Pages (from 1) that cannot be read, and why.
    """

    text: str
    title: str = ""
    page_starts: list[int] | None = None
    bad_pages: tuple[tuple[int, str], ...] = ()


def table_row(cells: Iterable[str]) -> str:
    """One line for a table row: its cells separated by `` | ``, or its only cell that is not empty, or "".

    Args:
        cells: Texts of the cells; white space in them, line breaks too, becomes one space.
    """
    flat = [" ".join(cell.split()) for cell in cells]
    filled = [cell for cell in flat if cell]
    return " | ".join(flat if len(filled) > 1 else filled)


def no_heading(text: str) -> str:
    """Indent lines such as "# ls", which are no headings but would be read as Markdown's.

    Args:
        text: Ordinary text of a document that is not Markdown.

    Returns:
        The text; four spaces stand before such lines.
    """
    return _LIKE_HEADING.sub("    ", text)


# -- HTML ----------------------------------------------------------------------------------------------------------

_DROPPED = ["script", "style", "noscript", "template", "nav", "svg", "iframe", "object", "button", "select", "textarea"]
_PAGE_PARTS = {"header", "footer", "aside"}  # of the page: dropped; of an article, or with the title in it: kept
_NAVIGATION = re.compile(
    r"^(nav|navbar|nav-?(header|footer)|navigation|sidebar|breadcrumbs?|menu|pagination|toc|table-?of-?contents)$", re.I
)
_ROLES = {"navigation", "banner", "contentinfo", "search"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "header", "hr", "html", "li", "main", "ol", "p", "pre", "section",
    "summary", "table", "ul", *_HEADINGS,
}  # fmt: skip
# An element, where to look for an open one, and which ones its start closes.
_OPEN_TAGS = {
    "li": (["ul", "ol", "menu", "li"], {"li"}),
    "tr": (["table", "tr"], {"tr"}),
    "td": (["table", "tr", "td", "th"], {"td", "th"}),
    "th": (["table", "tr", "td", "th"], {"td", "th"}),
}
_LAYOUT = ["table", "pre", *_HEADINGS]  # in a cell, these mean that the table is there for the layout only


def read_html(html: str) -> PlainDocument:
    """Turn a web page into text: headings, paragraphs, lists, tables and code, without navigation.

    Args:
        html: The page.

    Returns:
        Its text and title (the first h1, else the title element).

    Raises:
        ImportError: If beautifulsoup4 is not installed.
        DocumentError: If its elements are nested too deeply to read.
    """
    bs4 = require("bs4", extra="docs")
    try:
        soup = bs4.BeautifulSoup(html, "html.parser")
        title = _inline(soup.h1 or soup.title) if soup.h1 or soup.title else ""
        for note in soup.find_all(string=lambda text: isinstance(text, bs4.element.PreformattedString)):
            note.extract()  # comments, doctype and the like
        _drop_navigation(soup)
        _close_open_tags(soup)
        text = "\n\n".join(_blocks(soup.body or soup))
    except RecursionError as error:
        msg = "its HTML elements are nested too deeply: convert it to text or Markdown"
        raise DocumentError(msg) from error
    return PlainDocument(text, " ".join(title.split()))


def _drop_navigation(soup: "Tag") -> None:
    for tag in [*soup.find_all(["head", *_DROPPED]), *soup.find_all(_is_navigation)]:
        tag.extract()


def _is_navigation(tag: "Tag") -> bool:
    if tag.get("role") in _ROLES or tag.has_attr("hidden") or _is_page_part(tag):
        return True
    names = [*(tag.get("class") or []), tag.get("id") or ""]
    return tag.name != "body" and any(_NAVIGATION.match(name) for name in names)


def _is_page_part(tag: "Tag") -> bool:
    if tag.name not in _PAGE_PARTS:
        return False
    return tag.find_parent(["article", "main"]) is None and tag.find("h1") is None


def _close_open_tags(soup: "Tag") -> None:
    """Put side by side what the parser nests, because <li>, <td>, <th> and <tr> may be left open in HTML."""
    nested: list[tuple[Tag, Tag]] = []  # an element, and the outermost one that it stands behind
    outermost: dict[int, Tag] = {}
    for tag in soup.find_all(list(_OPEN_TAGS)):
        parents, same = _OPEN_TAGS[tag.name]
        nearest = next((parent for parent in tag.parents if parent.name in parents), None)
        if nearest is not None and nearest.name in same:
            outermost[id(tag)] = outermost.get(id(nearest), nearest)
            nested.append((tag, outermost[id(tag)]))
    # The deepest first, and all before one is put back: moving an element takes time by how deep things nest in it.
    for tag, _ in reversed(nested):
        tag.extract()
    for tag, first in reversed(nested):
        first.insert_after(tag)


def _blocks(node: "Tag") -> Iterator[str]:
    """Texts of the blocks inside an element, in order."""
    line: list[str] = []
    child: Any
    for child in node.children:
        if getattr(child, "name", None) in _BLOCKS or _has_block(child):
            yield from _flushed(line)
            line = []
            yield from _block(child)
        else:
            line.append(_inline(child))
    yield from _flushed(line)


def _flushed(line: list[str]) -> Iterator[str]:
    text = no_heading(_collapsed("".join(line)))
    if text:
        yield text


def _block(tag: "Tag") -> Iterator[str]:
    if tag.name in _HEADINGS:
        title = " ".join(_collapsed(_inline(tag)).split("\n"))
        if title:
            yield "#" * _HEADINGS[tag.name] + " " + title
    elif tag.name in ("ul", "ol"):
        items = "\n".join(_list_lines(tag))
        if items:
            yield items
    elif tag.name == "pre":
        code = tag.get_text().strip("\n")
        if code.strip():
            fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`{3,}", code))])
            yield f"{fence}\n{code}\n{fence}"
    elif tag.name == "table" and not _is_layout(tag):
        yield from _flushed_rows(tag)
    else:
        yield from _blocks(tag)


def _flushed_rows(table: "Tag") -> Iterator[str]:
    lines = [_collapsed(_inline(table.caption))] if table.caption else []
    rows = [row.find_all(["td", "th"], recursive=False) for row in table.find_all("tr")]
    lines += [table_row(_collapsed(_inline(cell)) for cell in row) for row in rows]
    text = "\n".join(line for line in lines if line)
    if text:
        yield text


def _list_lines(tag: "Tag") -> Iterator[str]:
    number = 0
    for item in tag.find_all(True, recursive=False):
        blocks = list(_blocks(item))
        if not blocks:
            continue
        number += 1
        marker = f"{number}. " if tag.name == "ol" else "- "
        lines = "\n".join(blocks).split("\n")
        yield marker + lines[0]
        yield from (("  " + line if line else line) for line in lines[1:])


def _is_layout(table: "Tag") -> bool:
    return any(cell.find(_LAYOUT) is not None for cell in table.find_all("td"))


def _has_block(node: Any) -> bool:
    """Whether an inline element wraps blocks, as <a><div>...</div></a> does."""
    if getattr(node, "name", None) is None:
        return False
    return any(inner.name in _BLOCKS for inner in node.descendants)


def _inline(node: Any) -> str:
    """Text of an element. A form feed stands for a line break until white space is collapsed."""
    if getattr(node, "name", None) is None:
        return str(node)
    if node.name == "br":
        return "\f"
    text = "".join(map(_inline, node.children))
    return f"\f{text}\f" if node.name in _BLOCKS else text


def _collapsed(text: str) -> str:
    # A line break of the source between two Chinese characters is no space: Chinese has none there.
    text = re.sub(rf"(?<=[{_HAN}])[ \t]*[\r\n][ \t\r\n]*(?=[{_HAN}])", "", text)
    text = re.sub(r"[ \t\r\n]+", " ", text)
    return re.sub(r" ?\f[ \f]*", "\n", text).strip(" \n")


# -- Word ----------------------------------------------------------------------------------------------------------

_HEADING_STYLE = re.compile(r"(?:heading|标题) ?([1-9])", re.IGNORECASE)
_TITLE_STYLE = re.compile(r"title|标题", re.IGNORECASE)
_LIST_STYLE = re.compile(r"(?:list bullet|list number|列表项目符号|列表编号)(?: ?\d)?", re.IGNORECASE)
_CONTENTS_STYLE = re.compile(r"(?:toc|目录) ?\d", re.IGNORECASE)
_DEEPEST_STYLE = 10
_LONGEST_HEADING = 100  # characters; a longer paragraph with an outline level is ordinary text


def read_docx(data: bytes) -> PlainDocument:
    """Turn a Word file into text: headings, paragraphs, list items and tables, in their order.

    Args:
        data: The file.

    Returns:
        Its text and title (the first paragraph in the style Title, else the first heading).

    Raises:
        ImportError: If python-docx is not installed.
        DocumentError: If it is not a Word file of the .docx kind, or damaged.
    """
    docx = require("docx", extra="docs")
    opc_error = require("docx.opc.exceptions", extra="docs").OpcError
    try:
        parts = [(kind, text) for kind, text in _docx_parts(docx.Document(BytesIO(data))) if text]
    # SyntaxError is what lxml raises for damaged XML.
    except (opc_error, BadZipFile, LookupError, ValueError, SyntaxError, EOFError, OSError) as error:
        msg = "it is not a readable .docx file: open it in Word or WPS and save it as .docx again"
        raise DocumentError(msg) from error
    shift = 1 if any(kind == "title" for kind, _ in parts) else 0  # below a title, headings go one deeper
    pieces: list[str] = []
    previous = ""
    for kind, content in parts:
        line = no_heading(content)
        if kind == "item":
            line = "- " + content
        elif kind == "title" or kind.isdigit():
            level = 1 if kind == "title" else min(int(kind) + shift, 6)
            line = "#" * level + " " + " ".join(content.split())
        pieces += ["\n" if kind == previous == "item" else "\n\n", line]
        previous = kind
    titles = [content for wanted in ("title", "1", "2") for kind, content in parts if kind == wanted]
    return PlainDocument("".join(pieces).strip("\n"), " ".join(titles[0].split()) if titles else "")


def _docx_parts(document: Any) -> Iterator[tuple[str, str]]:
    """Kind and text of each part: "title", "1" to "9" (a heading's level), "item", "text"."""
    table_class = require("docx.table", extra="docs").Table
    kinds = {style.style_id: _style_kind(style) for style in document.styles if style.type == 1}  # paragraph styles
    for element in _docx_elements(document.element.body):
        if element.tag.endswith("}tbl"):
            rows = [table_row(_row_cells(row)) for row in table_class(element, document).rows]
            yield "text", "\n".join(row for row in rows if row)
            continue
        text = _docx_text(element)
        kind = kinds.get(element.style, "text")
        levels = element.xpath("./w:pPr/w:outlineLvl/@w:val")
        if levels and int(levels[0]) < 9:
            kind = str(int(levels[0]) + 1)
        if kind.isdigit() and len(text) > _LONGEST_HEADING:
            kind = "text"
        if kind == "text" and element.xpath("./w:pPr/w:numPr/w:numId[@w:val != '0']"):
            kind = "item"
        if kind != "contents":
            yield kind, text


def _docx_elements(parent: Any) -> Iterator[Any]:
    """Paragraphs and tables, those in content controls too, but not what Word generates (the table of contents)."""
    contents = "w:sdtPr/w:docPartObj/w:docPartGallery"
    for child in parent.iterchildren():
        name = str(child.tag).rpartition("}")[2]
        if name in ("p", "tbl"):
            yield child
        elif name in ("sdt", "sdtContent", "customXml", "ins") and child.find(contents, parent.nsmap) is None:
            yield from _docx_elements(child)


def _style_kind(style: Any) -> str:
    """What a paragraph in a style is, by the name of the style or of one it is based on, or by its outline level."""
    for _ in range(_DEEPEST_STYLE):  # a damaged file may base a style on itself
        if style is None:
            break
        name = (style.name or "").strip()
        heading = _HEADING_STYLE.fullmatch(name)
        levels = style.element.xpath("./w:pPr/w:outlineLvl/@w:val")
        if heading or (levels and int(levels[0]) < 9):
            return heading[1] if heading else str(int(levels[0]) + 1)
        for kind, pattern in (("title", _TITLE_STYLE), ("item", _LIST_STYLE), ("contents", _CONTENTS_STYLE)):
            if pattern.fullmatch(name):
                return kind
        style = style.base_style
    return "text"


def _row_cells(row: Any) -> Iterator[str]:
    previous = None
    for cell in row.cells:
        if cell._tc is not previous:  # a cell merged across columns comes once for each of them
            yield " ".join(_docx_text(paragraph) for paragraph in cell._tc.xpath(".//w:p"))
        previous = cell._tc


def _docx_text(paragraph: Any) -> str:
    """Text of a paragraph as it reads with all tracked changes accepted; text boxes are left out."""
    outside = "[not(ancestor::w:txbxContent) and not(ancestor::w:moveFrom)]"
    names = ("w:t", "w:tab", "w:br", "w:cr", "w:noBreakHyphen")
    others = {"tab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
    nodes = paragraph.xpath(" | ".join(f".//{name}{outside}" for name in names))
    return "".join(others.get(str(node.tag).rpartition("}")[2]) or node.text or "" for node in nodes).strip()
