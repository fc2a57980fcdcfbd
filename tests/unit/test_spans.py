"""The core of the Chinese splitter: nothing lost, nothing too large, cut at the right places."""

import random
import re
from itertools import pairwise

import pytest

from luotuo_integrations.parsing.outline import CLOSING_WIDE, blocks
from luotuo_integrations.parsing.spans import Span, split_spans

HANDBOOK = """# 员工手册

## 第一章 总则

为规范管理，制定本手册。本手册适用于全体员工！试用期员工也适用。

### 请假制度

试用期内不得请年假。他说：“好。”然后走了。

请假流程如下：

1. 提交申请；
2. 主管审批（一天内完成。）
3. 人事备案

## 第二章 报销

| 项目 | 上限 |
| --- | --- |
| 住宿 | 1,000 元 |
| 餐饮 | 3.5 元 |

```
# 这不是标题
luotuo ask 员工手册/
```
"""


def chunks(text: str, size: int, overlap: int = 0) -> list[str]:
    return [text[span.start : span.end] for span in split_spans(text, size, overlap)]


def random_text(seed: int) -> str:
    """Random Chinese text with structure: sentences, quotes, numbers, lists, tables, headings, Latin words."""
    generator = random.Random(seed)
    words = ["骆驼", "公司", "请假", "员工", "v2.0版", "3.5亿", "1,000元", "GLM-4的", "的", "了", "不得", "报销"]
    ends = ["。", "！", "？", "……", "；", "。”", "！）", "?", "!"]
    lines: list[str] = []
    for _ in range(generator.randint(1, 40)):
        kind = generator.randrange(10)
        sentence = "".join(
            "".join(generator.choices(words, k=generator.randint(1, 12))) + generator.choice(["，", "、", "：", ""])
            for _ in range(generator.randint(1, 4))
        )
        sentence += generator.choice(ends)
        if kind == 0:
            lines += ["", "#" * generator.randint(1, 6) + " " + generator.choice(words)]
        elif kind == 1:
            lines.append("- " + sentence)
        elif kind == 2:
            lines.append("| " + " | ".join(generator.choices(words, k=3)) + " |")
        elif kind == 3:
            lines.append(generator.choice(["", "", "  ", "\u3000\u3000"]))
        elif kind == 4:
            lines.append("第" + generator.choice("一二三四") + "条 " + sentence)
        elif kind == 5:
            lines += ["```", sentence, "```"]
        else:
            lines.append("“" + sentence + sentence)
    return "\n".join(lines)


def assert_covers(text: str, spans: list[Span]) -> None:
    """Whatever no span covers is white space, spans go forward, and none has white space at its ends."""
    covered = 0
    for before, span in zip([None, *spans], spans, strict=False):
        assert 0 <= span.start < span.end <= len(text)
        assert before is None or (span.start > before.start and span.end > before.end)
        assert not text[covered : span.start].strip()
        assert text[span.start : span.end] == text[span.start : span.end].strip()
        covered = span.end
    assert not text[covered:].strip()


@pytest.mark.parametrize("seed", range(150))
def test_random_text_is_covered_and_within_size(seed: int) -> None:
    text = random_text(seed)
    size = random.Random(seed).choice([1, 2, 7, 20, 60, 150, 400])
    overlap = random.Random(seed + 1).randrange(size)
    spans = split_spans(text, size, overlap)
    assert_covers(text, spans)
    assert max(span.end - span.start for span in spans) <= size
    for before, span in pairwise(spans):
        assert before.end - span.start <= overlap  # characters repeated


@pytest.mark.parametrize("seed", range(60))
def test_no_chunk_begins_with_a_closing_mark_or_inside_a_number(seed: int) -> None:
    text = random_text(seed)
    for size in (40, 120):
        for span in split_spans(text, size):
            assert text[span.start] not in CLOSING_WIDE
            assert not re.fullmatch(r"[A-Za-z0-9.,-]{2}", text[max(span.start - 1, 0) : span.start + 1])


@pytest.mark.parametrize("seed", range(40))
def test_sentences_that_fit_are_never_cut(seed: int) -> None:
    generator = random.Random(seed)
    sentences = [
        "骆" + "".join(generator.choices("驼公司员工请假制度的了，、；", k=generator.randint(3, 37))) + "职。"
        for _ in range(60)
    ]
    text = "".join(sentences)
    ends = {0}
    for sentence in sentences:
        ends.add(max(ends) + len(sentence))
    for span in split_spans(text, 40, 15):
        assert span.start in ends
        assert span.end in ends


@pytest.mark.parametrize("seed", range(40))
def test_sizes_that_do_not_add_up_still_hold(seed: int) -> None:
    """A made-up tokenizer whose sizes are neither sums of their parts nor monotone in length by parts."""

    def length(texts: list[str]) -> list[int]:
        return [len(text.encode()) // 2 + 3 * text.count("。") ** 2 + (len(text) % 7) for text in texts]

    text = random_text(seed)
    spans = split_spans(text, 60, 20, length)
    assert_covers(text, spans)
    assert max(length([text[span.start : span.end] for span in spans])) <= 60


def test_length_is_called_in_batches() -> None:
    calls = []

    def length(texts: list[str]) -> list[int]:
        calls.append(len(texts))
        return [len(text) for text in texts]

    text = "试用期内不得请年假。" * 2000
    assert len(split_spans(text, 100, 20, length)) > 200
    assert len(calls) <= 3  # sentences, white space between them, chunks


def test_a_length_function_that_drops_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="1 sizes for 2 texts"):
        split_spans("第一句。第二句。", 5, 0, lambda texts: [1] * min(1, len(texts)))


@pytest.mark.parametrize("text", ["", " ", "\n\n\u3000\n", "\t"])
def test_blank_text_has_no_chunks(text: str) -> None:
    assert split_spans(text) == []


def test_headings_begin_chunks_and_are_in_the_path() -> None:
    spans = split_spans(HANDBOOK, 200, 0)
    found = [(HANDBOOK[span.start : span.end].split("\n")[0], " > ".join(span.headings)) for span in spans]
    assert found == [
        ("# 员工手册", "员工手册 > 第一章 总则"),
        ("### 请假制度", "员工手册 > 第一章 总则 > 请假制度"),
        ("## 第二章 报销", "员工手册 > 第二章 报销"),
    ]


def test_a_heading_stays_with_the_text_below_even_when_that_must_be_cut() -> None:
    text = "## 年假\n\n" + "，".join(["入职满一年的员工每年享有五天带薪年假"] * 8) + "。"
    first, *others = chunks(text, 60)
    assert first.startswith("## 年假\n\n入职满一年")
    assert others
    assert all(len(chunk) <= 60 for chunk in [first, *others])


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("# 总则", ("总则",)),
        ("### 总则 ###", ("总则",)),
        ("# C#", ("C#",)),
        ("#\u3000总则", ("总则",)),
        ("总则\n====", ("总则",)),
        ("总则\n---", ("总则",)),
        ("第一章 总则", ("第一章 总则",)),
        ("第十二章", ("第十二章",)),
        ("第 3 节 休假", ("第 3 节 休假",)),
        ("第一章 总则 ...... 3", ()),
        ("第一章 规定了劳动合同的订立。", ()),
        ("#话题", ()),
        ("####### 七级", ()),
        ("    # 缩进的代码", ()),
        ("| 甲 | 乙 |\n| --- | --- |", ()),
        ("---\ntitle: 手册\n---", ()),
    ],
)
def test_what_is_a_heading(line: str, path: tuple[str, ...]) -> None:
    (span,) = split_spans(f"{line}\n\n正文。")
    assert span.headings == path


def test_chapters_without_markdown_nest_below_markdown_headings() -> None:
    text = "# 员工手册\n\n第一章 总则\n为规范管理。\n第一节 范围\n全体员工。\n第二章 休假\n年假五天。\n# 附录\n表格。"
    assert [span.headings for span in split_spans(text)] == [
        ("员工手册", "第一章 总则"),
        ("员工手册", "第一章 总则", "第一节 范围"),
        ("员工手册", "第二章 休假"),
        ("附录",),
    ]


def test_comments_in_code_are_no_headings_and_code_stays_whole() -> None:
    text = "说明文字在这里。" * 5 + "\n\n~~~python\n# 注释\n\nx = 1\n~~~\n\n后文。"
    found = chunks(text, 45)
    assert "~~~python\n# 注释\n\nx = 1\n~~~" in "\n".join(found)
    assert any("~~~python\n# 注释\n\nx = 1\n~~~" in chunk for chunk in found)
    assert all(span.headings == () for span in split_spans(text, 45))


def test_lists_and_tables_that_fit_stay_whole_with_the_line_that_introduces_them() -> None:
    found = chunks(HANDBOOK, 70)
    assert "请假流程如下：\n\n1. 提交申请；\n2. 主管审批（一天内完成。）\n3. 人事备案" in found
    table = "| 项目 | 上限 |\n| --- | --- |\n| 住宿 | 1,000 元 |\n| 餐饮 | 3.5 元 |"
    assert any(table in chunk for chunk in found)


def test_a_list_that_does_not_fit_is_cut_at_items_and_a_table_at_rows() -> None:
    items = [f"{number}. 第{number}步提交材料。等待。" for number in range(1, 9)]
    for chunk in chunks("\n".join(items), 40):
        assert set(chunk.split("\n")) <= set(items)
    rows = [f"| 员工{number} | 部门。{number} |" for number in range(20)]
    for chunk in chunks("\n".join(rows), 50):
        assert set(chunk.split("\n")) <= set(rows)


@pytest.mark.parametrize("marker", ["第二条 ", "二、", "（二）", "1.2 "])
def test_numbered_units_are_the_preferred_cut(marker: str) -> None:
    text = f"第一条的内容在这里写了一些。还有第二句话。\n{marker}另一条的内容。这里还有一句。再来一句。"
    first, second = chunks(text, 40)
    assert first.endswith("第二句话。")
    assert second.startswith(marker.strip())


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("他说：“好的。”然后走了。她没走。", 12, ["他说：“好的。”", "然后走了。她没走。"]),
        ("（详见附件。）请按时提交材料。", 8, ["（详见附件。）", "请按时提交材料。"]),
        ('他说"好的。"然后就走了。', 8, ['他说"好的。"', "然后就走了。"]),
        ("《你好吗？》一书很畅销。别的书不行。", 12, ["《你好吗？》一书很畅销。", "别的书不行。"]),
        ("等等……后来呢？！没有了。", 9, ["等等……后来呢？！", "没有了。"]),
        ("It works. Really good. 好的。", 12, ["It works.", "Really good.", "好的。"]),
        ("访问 a.cn/x?y=1 即可。好。", 17, ["访问 a.cn/x?y=1 即可。", "好。"]),
        ("甲乙丙丁；戊己庚辛，壬癸。", 6, ["甲乙丙丁；", "戊己庚辛，", "壬癸。"]),
        ("收入3.5亿，支出1,000元，版本v2.0", 9, ["收入3.5亿，", "支出1,000元，", "版本v2.0"]),
        ("时间是10：30，地点是二楼", 9, ["时间是10：30，", "地点是二楼"]),
        ("一二三四五六七八九十。", 4, ["一二三四", "五六七八", "九十。"]),
        ("一二三四五六七。八", 7, ["一二三四五六", "七。八"]),
    ],
)
def test_where_sentences_are_cut(text: str, size: int, expected: list[str]) -> None:
    assert chunks(text, size) == expected


def test_hard_wrapped_lines_do_not_end_a_sentence() -> None:
    text = "这一句话被编辑器折成\n了两行来显示。第二句。\n第三句话也同样被折成\n了两行。"
    assert chunks(text, 27) == ["这一句话被编辑器折成\n了两行来显示。第二句。", "第三句话也同样被折成\n了两行。"]


def test_overlap_is_whole_sentences_under_the_same_heading() -> None:
    text = "# 甲\n\n第一句话。第二句话。第三句话。第四句话。\n\n# 乙\n\n第五句话。"
    assert chunks(text, 16, 6) == [
        "# 甲\n\n第一句话。第二句话。",
        "第二句话。第三句话。第四句话。",
        "# 乙\n\n第五句话。",
    ]


def test_no_overlap_inside_a_sentence_that_was_cut() -> None:
    text = "一个很长很长的句子，" * 10 + "完。"
    assert "".join(chunks(text, 25, 12)) == text


def test_line_ends_of_other_systems_are_left_as_they_are() -> None:
    text = "# 标题\r\n\r\n第一段。\r\n第二段。\r\n"
    assert chunks(text, 100) == ["# 标题\r\n\r\n第一段。\r\n第二段。"]


def test_one_character_may_be_larger_than_a_chunk() -> None:
    spans = split_spans("骆驼", 2, 0, lambda texts: [len(text.encode()) for text in texts])
    assert [(span.start, span.end) for span in spans] == [(0, 1), (1, 2)]


MONOTONOUS = {
    "one line": "骆" * 200_000,
    "blank": "\n" * 200_000,
    "commas": "，" * 200_000,
    "stops": "。" * 50_000,
    "list": "- 甲\n" * 50_000,
    "headings": "# 甲\n" * 30_000,
    "fences": "```\n" * 40_001,
    "table": "甲 | 乙\n" * 40_000,
    "closed heading": "# " + " #" * 50_000,
    "chapters": "第一章 " * 50_000,
    "quotes": '"。' * 50_000,
    "open list": "- 甲\n" + "\n" * 200_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", MONOTONOUS)
def test_long_monotonous_texts_stay_linear(kind: str) -> None:
    """Each takes a second or less; a quadratic step would take hours and run into the time limit."""
    assert_covers(MONOTONOUS[kind], split_spans(MONOTONOUS[kind], 400, 60))


def test_blocks_cover_the_text() -> None:
    for seed in range(50):
        text = random_text(seed)
        found = blocks(text)
        assert [block.start for block in found[1:]] == [block.end for block in found[:-1]]
        assert not found or (found[-1].end == len(text) and not text[: found[0].start].strip())


def test_numbered_lines_between_empty_lines_are_titles() -> None:
    lines = (
        "须知",
        "一、账号",
        "（一）密码",
        "密码不少于十二位。",
        "（二）电脑",
        "硬盘须加密。",
        "二、网络",
        "不得自设热点。",
    )
    text = "\n\n".join(lines)
    spans = split_spans(text, 400, 0)
    assert [(text[span.start : span.end], span.headings) for span in spans] == [
        ("须知", ()),
        ("一、账号\n\n（一）密码\n\n密码不少于十二位。", ("一、账号", "（一）密码")),
        ("（二）电脑\n\n硬盘须加密。", ("一、账号", "（二）电脑")),
        ("二、网络\n\n不得自设热点。", ("二、网络",)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "一、苹果\n\n二、香蕉\n\n三、橙子",  # items, not titles
        "一、账号\n密码不少于十二位。",  # no empty line below
        "办法如下\n一、账号\n\n密码不少于十二位。",  # none above
        "一、员工应当保管好账号。\n\n密码不少于十二位。",  # a sentence
        "须知如下\n\n一、账号",  # nothing follows
    ],
)
def test_other_numbered_lines_are_no_titles(text: str) -> None:
    assert all(not span.headings for span in split_spans(text, 400, 0))
