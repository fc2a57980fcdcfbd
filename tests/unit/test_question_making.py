"""Questions out of headings and first sentences: which are made and left out, and that each finds its passage."""

from collections import Counter
from pathlib import Path

import pytest

from luotuo_integrations import ChineseTextSplitter, load_documents
from luotuo_integrations.judgements import judge
from luotuo_integrations.pair_files import Question
from luotuo_integrations.passages import body_of, sentences_of
from luotuo_integrations.question_making import (
    MadeQuestion,
    QuestionMakingError,
    asked,
    questions_from_text,
    usable_passages,
)
from luotuo_integrations.store.table import StoredDocument

DATA = Path(__file__).parents[2] / "examples" / "data"


def passage(text: str, headings: str = "", source: str = "手册.md") -> StoredDocument:
    return StoredDocument(text, text, {"source": source, **({"headings": headings} if headings else {})})


def made(*passages: StoredDocument, kind: str = "", **options: int) -> list[tuple[str, str]]:
    rows = questions_from_text(list(passages), **{"per_passage": 2, **options}).rows
    return [(row.query, row.positive) for row in rows if kind in row.made_from]


def test_the_body_is_what_stands_below_the_headings() -> None:
    assert body_of("# 制度\n\n## 年假\n\n十五天。\n\n## 病假\n\n三天。") == "十五天。\n\n## 病假\n\n三天。"
    assert body_of("标题\n====\n\n十五天。") == "十五天。"
    assert body_of("# 只有标题") == "# 只有标题"
    assert body_of("  十五天。 ") == "十五天。"
    assert body_of("") == ""


def test_sentences_end_at_lines_too() -> None:
    assert sentences_of("十五天。须申请！\n逾期作废\n\n“好。”他说。") == [
        "十五天。",
        "须申请！",
        "逾期作废",
        "“好。”",
        "他说。",
    ]


def test_a_heading_and_a_first_sentence_become_questions() -> None:
    text = "## 年假天数\n\n正式员工每年有十五天年休假。年休假须提前三天申请，由上级批准。"
    rows = questions_from_text([passage(text, "休假制度 > 年假天数")], per_passage=2).rows
    body = "正式员工每年有十五天年休假。年休假须提前三天申请，由上级批准。"
    assert {row.made_from: row for row in rows} == {
        "heading": MadeQuestion("年假天数", body, "手册.md", "休假制度 > 年假天数", "heading"),
        "first sentence": MadeQuestion(
            "正式员工每年有十五天年休假。",
            "年休假须提前三天申请，由上级批准。",
            "手册.md",
            "休假制度 > 年假天数",
            "first sentence",
        ),
    }
    (one,) = questions_from_text([passage(text, "休假制度 > 年假天数")]).rows
    assert one in rows


def test_a_heading_of_several_passages_is_named_in_full_or_left_out() -> None:
    long = "主机自签收之日起保修三年，附件一年。"
    rows = made(
        passage(f"甲{long}", "野灯 600 > 保修期限"),
        passage(f"乙{long}", "野灯 1500 > 保修期限"),
        passage(f"丙{long}", "霜谷 > 冷藏须知"),
        passage(f"丁{long}", "霜谷 > 冷藏须知"),
        kind="heading",
    )
    assert rows == [("野灯 600 保修期限", f"甲{long}"), ("野灯 1500 保修期限", f"乙{long}")]


def test_a_first_sentence_that_another_passage_holds_is_left_out() -> None:
    rows = made(
        passage("出差须先申请。住宿标准每晚四百五十元，超出自理。"),
        passage("住宿标准每晚四百五十元，超出自理。餐费补贴每天一百元，按日历计算。"),
        kind="first",
    )
    assert rows == [("出差须先申请。", "住宿标准每晚四百五十元，超出自理。")]


@pytest.mark.parametrize(
    "text",
    [
        "太短了。",
        "只有一句，再没有别的话了，后面什么也没有。",
        "| 城市 | 标准 |\n|---|---|\n| 青梧 | 四百五十元每晚 |",
        "是。" + "后面" * 20,
    ],
)
def test_passages_that_make_no_pair_are_left_out_and_told(text: str) -> None:
    with pytest.raises(QuestionMakingError, match=r"No (passage has|question can be made).*"):
        questions_from_text([passage(text)])


def test_copies_are_asked_about_once() -> None:
    text = "出差须先申请。住宿标准每晚四百五十元，超出自理。"
    result = questions_from_text([passage(text, source="一.md"), passage(text + "\n", source="二.md")])
    assert [row.source for row in result.rows] == ["一.md"]
    assert result.skipped["passage is there twice"] == 1
    assert result.passages == 2
    assert asked("年假，几天？") == asked("年假几天?")


def test_the_seed_decides_and_the_limit_holds() -> None:
    passages = [
        passage(f"第{n}条规定如下。第{n}条的内容是这样的，请大家遵守。", f"总则 > 第{n}条的标题") for n in range(30)
    ]
    one = made(*passages, per_passage=1, seed=1)
    assert one == made(*passages, per_passage=1, seed=1) != made(*passages, per_passage=1, seed=2)
    assert len({query for query, _ in one}) == 30
    few = made(*passages, per_passage=1, limit=7, seed=1)
    assert len(few) == 7
    assert few == made(*passages, per_passage=1, limit=7, seed=1) != made(*passages, per_passage=1, limit=7, seed=2)
    kinds = Counter(row.made_from for row in questions_from_text(passages).rows)
    assert set(kinds) == {"heading", "first sentence"}
    for options in ({"per_passage": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="whole numbers from 1 on"):
            usable_passages(passages, Counter(), **{"per_passage": 1, "limit": None, "seed": 0, **options})


def test_every_question_of_the_example_data_finds_its_own_passage() -> None:
    splitter = ChineseTextSplitter(400)
    chunks = splitter.split_documents(load_documents(DATA).documents)
    passages = [StoredDocument(str(n), chunk.page_content, chunk.metadata) for n, chunk in enumerate(chunks)]
    rows = questions_from_text(passages, per_passage=2).rows
    assert len(rows) > 200
    judgements = judge([Question(row.query, row.positive, row.source) for row in rows], passages)
    assert not judgements.unanswered
    assert not any(one.cut for one in judgements.judged)
    by_body = {body_of(one.content): one.id for one in passages}
    for row, judgement in zip(rows, judgements.judged, strict=True):
        if row.made_from == "heading":
            assert by_body[row.positive] in judgement.answers[0]
