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
    assert judged.answers == (frozenset({"tail", "less"}),)  # 10 is the most, and more than a fourth
    assert judge([question], [tail]).unanswered == ("年假",)  # neither 20 characters nor a fourth
    whole = passage("whole", LEAVE)
    (judged,) = judge([question], [most, half, whole]).judged
    assert (judged.answers, judged.cut) == ((frozenset({"whole"}),), False)


def test_where_no_sentence_is_whole_clauses_decide() -> None:
    text = "申请须写明起止日期，由直属上级批准，再交人事部门备案。"
    parts = [passage("一", "申请须写明起止日期，由直属"), passage("二", "由直属上级批准，再交人事部门备案。")]
    (judged,) = judge([Question("怎么申请", text)], parts).judged
    assert judged.cut
    assert judged.answers == (frozenset({"一", "二"}),)  # 9 and 15 characters


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
