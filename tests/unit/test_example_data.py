"""The sample documents and questions of examples/data keep what examples/data_source/README.md promises."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

rjieba = pytest.importorskip("rjieba")
docx = pytest.importorskip("docx")
pypdf = pytest.importorskip("pypdf")
bs4 = pytest.importorskip("bs4")

DATA = Path(__file__).parents[2] / "examples" / "data"
Question = dict[str, str | bool]
# Function words, question words, modal verbs, numerals and plain classifiers: they say how, not what.
_FUNCTION_WORDS = """
的 了 吗 呢 吧 啊 呀 么 是 在 有 没 没有 不 不能 不会 我 你 您 他 她 它 我们 咱 咱们 你们 他们 自己 别人 能
能不能 可以 可不可以 会 会不会 要 要不要 得 想 该 行 行不行 行吗 多少 多久 多长 几 几天 几次 什么 啥 哪 哪个
哪儿 哪里 哪些 谁 怎么 怎么办 怎样 咋 咋办 如何 为什么 为啥 是不是 有没有 一 二 三 四 五 六 七 八 九 十 两 一个
一台 一次 个 次 台 份 位 些 一些 一点 点 和 与 及 或 或者 并 也 都 还 还是 就 才 又 再 先 后 很 太 更 最 把 被
让 给 对 向 从 到 去 来 上 下 里 中 内 外 以 以后 以前 之后 之前 时 时候 用 做 这 这个 那 那个 那些 这些 之 而
但 若 如果 因 因为 所以 为 于 至 按 由 将 其 该 每 各 等 者 所 则 须 应 可 说 请 请问 现在 后来 然后 过 着 地
起来 出来
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def markdown_sections(text: str) -> dict[str, str]:
    """Returns {heading: heading and body} of the second-level headings."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {heading.strip(): heading + body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def plain_sections(text: str) -> dict[str, str]:
    """Returns the sections of a text file numbered （一）, （二）."""
    parts = re.split(r"^(（[一二三四五六七八九十]+）.+)$", text, flags=re.MULTILINE)
    return {heading: heading + body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def html_sections(text: str) -> dict[str, str]:
    """Returns the sections under the h2 elements."""
    page = bs4.BeautifulSoup(text, "html.parser")
    sections: dict[str, str] = {}
    for heading in page.find_all("h2"):
        body = [heading.get_text()]
        for sibling in heading.find_next_siblings():
            if sibling.name == "h2":
                break
            body.append(sibling.get_text(" "))
        sections[heading.get_text()] = " ".join(body)
    return sections


def docx_sections(path: Path) -> dict[str, str]:
    """Returns the sections under the Heading 2 paragraphs."""
    sections: dict[str, str] = {}
    heading = ""
    for block in docx.Document(str(path)).iter_inner_content():
        if isinstance(block, docx.table.Table):
            sections[heading] += " ".join(cell.text for row in block.rows for cell in row.cells)
        elif block.style.name == "Heading 2":
            heading = block.text
            sections[heading] = heading
        elif heading:
            sections[heading] += block.text
    return sections


def pdf_sections(path: Path) -> dict[str, str]:
    """Returns the sections under the numbered headings of the PDF; running headers and page numbers are cut."""
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    text = re.sub(r"^(禾渡科技 · .*|第 \d+ 页)$", "", "\n".join(pages), flags=re.MULTILINE)
    parts = re.split(r"^(\d{1,2} [^\d\s，。][^，。]{2,18})$", text, flags=re.MULTILINE)
    return {heading: heading + body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def sections_of(source: str) -> dict[str, str]:
    """Returns {heading: text} of one document, given its path below examples/data."""
    path = DATA / source
    if path.suffix == ".docx":
        return docx_sections(path)
    if path.suffix == ".pdf":
        return pdf_sections(path)
    text = path.read_text(encoding="utf-8")
    return {".md": markdown_sections, ".txt": plain_sections, ".html": html_sections}[path.suffix](text)


@cache
def documents() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("*/*")))


def read_lines(name: str) -> list[Question]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def squeeze(text: str) -> str:
    return re.sub(r"\s", "", text)


def content_words(text: str) -> set[str]:
    words = {word.lower() for word in rjieba.cut(squeeze(text)) if re.search(r"[\w]", word)}
    return words - FUNCTION_WORDS


def test_documents_come_in_every_format() -> None:
    suffixes = [Path(name).suffix for name in documents()]
    assert set(suffixes) == {".md", ".txt", ".html", ".pdf", ".docx"}
    assert suffixes.count(".md") > len(suffixes) / 2
    for name in documents():
        if name.endswith(".pdf"):
            assert len(pypdf.PdfReader(DATA / name).pages) >= 3


def test_sections_have_text_of_their_own() -> None:
    lengths = {
        (name, h): len(squeeze(text)) - len(squeeze(h)) for name in documents() for h, text in sections_of(name).items()
    }
    assert len(lengths) >= 130
    assert {key: n for key, n in lengths.items() if not 80 <= n <= 400} == {}
    assert 25_000 <= sum(lengths.values()) <= 35_000


def test_no_sentence_occurs_twice() -> None:
    sentences = [
        s
        for name in documents()
        for text in sections_of(name).values()
        for s in re.split(r"[。；]", squeeze(text))
        if len(s) >= 15
    ]
    assert len(sentences) == len(set(sentences))


def test_questions_point_at_their_section() -> None:
    questions = read_lines("questions.jsonl")
    assert len(questions) == 60
    assert len({q["query"] for q in questions}) == 60
    for q in questions:
        section = squeeze(sections_of(str(q["source"]))[str(q["section"])])
        positive = squeeze(str(q["positive"]))
        assert positive in section, q["query"]
        assert 20 <= len(positive) <= 150, q["query"]
        holders = [h for name in documents() for h, text in sections_of(name).items() if positive in squeeze(text)]
        assert holders == [q["section"]]
    assert len({q["section"] for q in questions if q["near_duplicate"]}) >= 10
    assert {q["source"] for q in questions} == set(documents())


def test_paraphrases_share_no_content_word_with_their_section() -> None:
    paraphrases = [q for q in read_lines("questions.jsonl") if q["style"] == "paraphrase"]
    assert len(paraphrases) >= 25
    shared = {
        q["query"]: content_words(str(q["query"])) & content_words(sections_of(str(q["source"]))[str(q["section"])])
        for q in paraphrases
    }
    assert {query: words for query, words in shared.items() if words} == {}
    assert all(len(content_words(str(q["query"]))) >= 2 for q in paraphrases)  # an empty question would pass too


def test_unanswerable_questions() -> None:
    unanswerable = read_lines("unanswerable.jsonl")
    assert len(unanswerable) == 20
    kinds = [q["kind"] for q in unanswerable]
    assert set(kinds) == {"chitchat", "general", "in_domain"}
    assert kinds.count("in_domain") >= 7
    assert not {q["query"] for q in unanswerable} & {q["query"] for q in read_lines("questions.jsonl")}


def test_calibration_set_is_another_set() -> None:
    folder = DATA.parents[1] / "training" / "calibration"
    sections = {path.name: markdown_sections(path.read_text(encoding="utf-8")) for path in folder.glob("*.md")}
    lines = {
        name: (folder / name).read_text(encoding="utf-8").splitlines()
        for name in ("questions.jsonl", "unanswerable.jsonl")
    }
    questions = [json.loads(line) for line in lines["questions.jsonl"]]
    unanswerable = [json.loads(line) for line in lines["unanswerable.jsonl"]]
    assert (len(questions), len(unanswerable)) == (100, 100)
    for q in questions:
        section = sections[q["source"]][q["section"]]
        assert squeeze(q["positive"]) in squeeze(section), q["query"]
        if q["style"] == "paraphrase":
            assert not content_words(q["query"]) & content_words(section), q["query"]
    here = {q["query"] for q in questions + unanswerable}
    assert len(here) == 200
    assert not here & {q["query"] for q in read_lines("questions.jsonl") + read_lines("unanswerable.jsonl")}
