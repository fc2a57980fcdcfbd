"""Which passages answer a question: hand-made cases of answers that are whole, cut, doubled, named by id, missing."""

import pytest

from luotuo_integrations.judgements import Judgement, judge
from luotuo_integrations.pair_files import Question
from luotuo_integrations.store.table import StoredDocument

LEAVE = "正式员工每年有十五天年休假。年休假须提前三天申请。\n逾期未休的作废。"


def passage(one: str, text: str, source: str | None = None) -> StoredDocument:
    return StoredDocument(one, text, {} if source is None else {"source": source})


def answers(question: Question, *passages: StoredDocument) -> tuple[frozenset[str], ...]:
    judged = judge([question], passages).judged
    return judged[0].answers if judged else ()


def test_a_passage_answers_that_holds_the_text_white_space_aside() -> None:
    passages = [
        passage("一", "# 休假\n\n正式员工每年 有十五天\n年休假。"),
        passage("二", "正式员工每年有十天年休假。"),
        passage("三", "先说别的。正式员工每年有十五天年休假。再说别的。"),
    ]
    assert answers(Question("年假几天", "正式员工每年有十五天年休假。"), *passages) == (frozenset({"一", "三"}),)


def test_a_text_does_not_reach_from_one_passage_into_the_next() -> None:
    assert (
        answers(Question("问", "甲乙丙丁戊己庚辛壬癸子丑寅卯"), passage("一", "甲乙丙"), passage("二", "丁戊己")) == ()
    )


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", {"a", "b", "c"}),
        ("员工手册/休假.md", {"a", "c"}),
        ("休假.md", {"a", "c"}),
        ("/data/员工手册/休假.md", {"a", "c"}),
        ("员工手册\\休假.md", {"a", "c"}),
        ("假.md", {"c"}),  # no folder ends there
        ("差旅/休假.md", {"b", "c"}),
    ],
)
def test_the_source_limits_and_a_passage_without_one_may_be_of_any(asked: str, found: set[str]) -> None:
    passages = [
        passage("a", "年假十五天。", "员工手册/休假.md"),
        passage("b", "年假十五天。", "差旅/休假.md"),
        passage("c", "年假十五天。"),
    ]
    if asked == "休假.md":
        found = found | {"b"}
    assert answers(Question("几天", "年假十五天。", asked), *passages) == (frozenset(found),)


def test_of_a_text_that_was_cut_the_passages_that_hold_most_count() -> None:
    # Characters of whole sentences, without the marks at their ends: 13, 10 and 7 of 33.
    first, second, third = "正式员工每年有十五天年休假。", "年休假须提前三天申请。", "逾期未休的作废。"
    most = passage("most", f"前文。{first}{second}")  # 23
    half = passage("half", f"{first}以下从略。")  # 13: more than half of 23
    less = passage("less", f"{second}{'别的'}")  # 10: less
    tail = passage("tail", third)  # 7
    question = Question("年假", first + second + "\n" + third)
    (judged,) = judge([question], [most, half, less, tail]).judged
    assert judged.cut
    assert judged.answers == (frozenset({"most", "half"}),)
    (judged,) = judge([question], [tail, less]).judged
    assert judged.answers == (frozenset({"less"}),)  # 10 is the most, and more than a fourth; 7 are too few
    assert judge([question], [tail]).unanswered == ("年假",)
    whole = passage("whole", LEAVE)
    (judged,) = judge([question], [most, half, whole]).judged
    assert (judged.answers, judged.cut) == ((frozenset({"whole"}),), False)


def test_where_no_sentence_is_whole_clauses_decide() -> None:
    text = "年假申请须写明起止日期，由直属上级批准，再交人事部门备案。"
    parts = [passage("一", "年假申请须写明起止日期，由直属"), passage("二", "由直属上级批准，再交人事部门备案。")]
    (judged,) = judge([Question("怎么申请", text)], parts).judged
    assert judged.cut
    assert judged.answers == (frozenset({"一", "二"}),)  # 11 characters; 7 and 8, one after the other


@pytest.mark.parametrize(
    "nonsense",
    [
        "可以，需审批。",
        "可以。",
        "不可以，由部门负责人批准。",
        "可以，由部门负责人批准，再报人事部。",
        "需审批，可以，另说。",
    ],
)
def test_a_short_answer_that_shares_a_phrase_with_passages_is_no_answer(nonsense: str) -> None:
    passages = [
        passage("一", "出差可以坐高铁，需审批，由部门负责人批准。超标的由财务另行核定。"),
        passage("二", "加班可以调休。调休由部门负责人批准，可以分次使用。"),
        passage("三", "会议室可以预订，需审批。"),
    ]
    assert judge([Question("能在家办公吗", nonsense)], passages).unanswered == ("能在家办公吗",)


def test_a_text_of_short_lines_is_found_by_those_that_stand_together() -> None:
    text = "早餐七点\n午餐十二点\n晚餐六点\n夜宵九点\n周末两餐\n节日照旧"
    first, second = (
        passage("一", "食堂时间\n早餐七点\n午餐十二点\n晚餐六点"),
        passage("二", "夜宵九点\n周末两餐\n节日照旧"),
    )
    other = passage("三", "北区食堂\n早餐七点\n下午茶三点\n夜宵九点")
    (judged,) = judge([Question("几点开饭", text)], [first, second, other]).judged
    assert judged.answers == (frozenset({"一", "二"}),)


def test_what_many_passages_hold_is_no_answer() -> None:
    common, text = "由部门负责人会同人事部门批准", "宠物可以带进办公室，由部门负责人会同人事部门批准。"
    passages = [passage(str(number), f"第{number}条 {common}。", "制度.md") for number in range(40)]
    others = [passage(f"别的{number}", f"第{number}款", "别的.md") for number in range(80)]
    for source in ("", "制度.md"):
        question = Question("能带狗吗", text, source)
        assert judge([question], passages + others).unanswered == ("能带狗吗",)
        assert judge([question], passages[:11] + others).unanswered == ("能带狗吗",)
        few = judge([question], passages[:3] + others[:2]).judged
        assert few[0].answers == (frozenset({"0", "1", "2"}),)
    # In another file it is as common.
    elsewhere = passage("它", f"说明：{common}。", "说明.md")
    assert judge([Question("能带狗吗", text, "说明.md")], [*passages, elsewhere]).unanswered == ("能带狗吗",)
    # Copies of a passage are one.
    copies = [passage(str(number), f"说明：{common}。", f"分公司{number}/制度.md") for number in range(20)]
    assert answers(Question("能带狗吗", text), *copies) == (frozenset(map(str, range(20))),)


def test_a_stray_short_sentence_is_no_answer() -> None:
    text = "可以。" + "试用期员工按月折算带薪假期，当月满勤的计一天，不满的不计，由部门助理登记。" * 3
    assert answers(Question("可以吗", text), passage("一", "可以。你好。")) == ()


def test_ids_count_as_answers_of_their_own() -> None:
    passages = [passage("1", "年假十五天。"), passage("2", "司龄满十年二十天。"), passage("3", "年假十五天。")]
    assert answers(Question("几天", ids=("2", "1")), *passages) == (frozenset({"2"}), frozenset({"1"}))
    # Passage 1 is named and holds the text, as 3 does: that is one answer.
    assert answers(Question("几天", "年假十五天。", ids=("1", "2")), *passages) == (
        frozenset({"2"}),
        frozenset({"1", "3"}),
    )
    assert judge([Question("几天", ids=("9",))], passages).unanswered == ("几天",)


def test_lines_with_the_same_query_are_one_question() -> None:
    passages = [passage("1", "年假十五天。"), passage("2", "司龄满十年二十天。")]
    rows = [Question("几天", "年假十五天。"), Question("谁", "总经理。"), Question("几天", "司龄满十年二十天。")]
    judgements = judge([*rows, Question("几天", "没有这句。")], passages)
    assert judgements.judged == (Judgement("几天", (frozenset({"1"}), frozenset({"2"}))),)
    assert judgements.unanswered == ("谁",)


def test_no_passages_answer_nothing() -> None:
    assert judge([Question("几天", "年假")], []).unanswered == ("几天",)
    assert judge([], []).judged == ()
