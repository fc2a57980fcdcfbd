"""Snippets: what is marked is what was found, as the text spells it, and no stretch holds more of it."""

import random
from typing import Any

import pytest

from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.snippets import matched_spans, snippet

PAIRS, WORDS = KeywordTokenizer(), KeywordTokenizer("words", ("驼峰井",))
LONG = "公司概况。" * 30 + "新員工的試用期為三個月，試用期內可以請病假。" + "其他事项。" * 30


@pytest.mark.parametrize("tokenizer", [PAIRS, WORDS])
@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("新員工的試用期為三個月。", "试用期", "新員工的【試用期】為三個月。"),
        ("调用ＡＰＩ，再用api", "API", "调用【ＡＰＩ】，再用【api】"),
        ("驼峰井的产量", "駝峰井", "【驼峰井】的产量"),
        ("报销须附发票", "月球背面", "报销须附发票"),
        ("报销须附发票", "", "报销须附发票"),
        ("", "报销", ""),
        ("İ 第①步：İ", "1", None),
    ],
)
def test_words_are_marked_as_they_are_spelt(
    tokenizer: KeywordTokenizer, text: str, query: str, expected: str | None
) -> None:
    found = snippet(text, query, tokenizer)
    assert found == (text.replace("①", "【①】") if expected is None else expected)


def test_what_touches_is_one_span() -> None:
    assert matched_spans("请病假，试用期请病假", "病假请试用期", WORDS) == [(0, 3), (4, 10)]
    assert matched_spans("试用期内", "试用期", PAIRS) == [(0, 3)]
    assert matched_spans("驼峰井", "驼峰井和驼峰", KeywordTokenizer("bigrams", ("驼峰井",))) == [(0, 3)]
    assert matched_spans("试用期", "病假", PAIRS) == []


@pytest.mark.parametrize("tokenizer", [PAIRS, WORDS])
def test_a_long_text_is_cut_around_the_matches(tokenizer: KeywordTokenizer) -> None:
    found = snippet(LONG, "试用期 病假", tokenizer, width=30, marks=("<b>", "</b>"))
    plain = found.replace("<b>", "").replace("</b>", "")
    assert found.count("<b>試用期</b>") == 2
    assert "<b>病假</b>" in found
    assert plain.strip("…") in LONG
    assert plain[0] == plain[-1] == "…"
    assert len(plain) == 32
    before, behind = found.index("<b>"), len(found) - found.rindex("</b>") - len("</b>")
    assert abs(before - behind) <= 1


def test_a_text_without_matches_is_cut_to_its_beginning() -> None:
    assert snippet("公司概况与其他事项", "月球", PAIRS, width=4) == "公司概况…"
    assert snippet("公司概况", "月球", PAIRS, width=4) == "公司概况"


def test_more_words_go_before_more_repetitions() -> None:
    text = "发票发票，发票，发票" + "。" * 50 + "报销要发票" + "。" * 50 + "发票和报销"
    assert snippet(text, "报销发票", PAIRS, width=11) == "…。。。【报销】要【发票】。。。…"


def test_a_word_longer_than_the_width_is_cut() -> None:
    assert snippet("abcdefgh ijk", "abcdefgh", PAIRS, width=3) == "【abc】…"
    assert snippet("，，abcdefgh", "ABCDEFGH", WORDS, width=1) == "…【a】…"


def every_stretch(text: str, query: str, tokenizer: KeywordTokenizer, width: int) -> tuple[int, int]:
    """Most (different, all) tokens of the query that any stretch of the text holds."""
    matches = [token for token in tokenizer.tokens(text) if token[0] in set(tokenizer(query))]
    most = (0, 0)
    for start in range(len(text)):
        inside = [token for token, first, last in matches if start <= first and last <= start + width]
        most = max(most, (len(set(inside)), len(inside)))
    return most


@pytest.mark.parametrize("tokenizer", [PAIRS, WORDS, KeywordTokenizer("bigrams", ("年假三天", "天病假"))])
@pytest.mark.parametrize("width", [5, 9, 30])
def test_no_stretch_holds_more_and_the_text_is_kept(tokenizer: KeywordTokenizer, width: int) -> None:
    generator = random.Random(width)
    for _ in range(100):
        text = "".join(generator.choices("年假三天病 ，ａİ請期", k=generator.randint(0, 60)))
        query = "".join(generator.choices("年假三天病a", k=5))
        shown = snippet(text, query, tokenizer, width=width, marks=("<", ">"))
        plain = shown.replace("<", "").replace(">", "")
        start = (
            0
            if plain == text
            else next(
                place
                for place in range(len(text))
                if ("…" * (place > 0) + text[place : place + width] + "…" * (place + width < len(text))) == plain
                and marked(text, query, tokenizer, place, width) == shown
            )
        )
        inside = [
            token
            for token, first, last in tokenizer.tokens(text)
            if token in set(tokenizer(query)) and start <= first and last <= start + width
        ]
        assert (len(set(inside)), len(inside)) >= every_stretch(text, query, tokenizer, width)


def marked(text: str, query: str, tokenizer: KeywordTokenizer, start: int, width: int) -> str:
    """The stretch from a place on, marked character by character."""
    inside = {place for first, last in matched_spans(text, query, tokenizer) for place in range(first, last)}
    shown = "…" if start else ""
    end = min(len(text), start + width)
    for place in range(start, end):
        opens = place in inside and (place == start or place - 1 not in inside)
        closes = place in inside and (place == end - 1 or place + 1 not in inside)
        shown += "<" * opens + text[place] + ">" * closes
    return shown + "…" * (end < len(text))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, "年假", PAIRS), TypeError, "text is NoneType"),
        (("年假", ["年假"], PAIRS), TypeError, "text is list"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        snippet(*arguments)
    with pytest.raises(error, match=message):
        matched_spans(*arguments)
    with pytest.raises(ValueError, match="width=0 must be 1 or more"):
        snippet("年假", "年假", PAIRS, width=0)
