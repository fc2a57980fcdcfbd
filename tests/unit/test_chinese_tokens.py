"""Folding, character by character; words and pairs, with their places in the text as it was written."""

import pickle
import random
import subprocess
import sys
import unicodedata

import pytest
from opencc import OpenCC

from luotuo_integrations.chinese_tokens import KeywordTokenizer, character_bigrams, fold, words

KINDS = [KeywordTokenizer("words"), KeywordTokenizer("bigrams")]
ALPHABET = list("试用期三个月病假報銷單發票驼峰井年假ABcde１２ＧＬ①İΣ𠮷〇 ，。\n_-.!\ud800🙂ﬁ㈠")


# Folding


def test_every_character_is_folded_to_one_and_stays_there() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    folded = [fold(character) for character in every]
    assert {len(character) for character in folded} == {1}
    assert [fold(character) for character in folded] == folded
    text = "".join(every)
    assert len(fold(text)) == len(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ＧＬＭ－６Ｂ！　", "glm-6b! "),
        ("①②⑨❸²٣𝟜", "1293234"),
        ("一二三〇", "一二三〇"),  # words, not digits
        ("⑩㈠Ⅲ", "⑩㈠ⅲ"),  # more than one character in plain
        ("報銷單須附發票", "报销单须附发票"),
        ("頭髮與發展", "头发与发展"),
        ("臺灣體驗", "台湾体验"),
        ("薴苧", "苎苎"),
        ("⽤戶", "用户"),  # a radical, as PDF files have it
        ("İSTANBUL", "istanbul"),
        ("试\ud800用", "试 用"),
        ("", ""),
    ],
)
def test_folding(given: str, expected: str) -> None:
    assert fold(given) == expected


def test_traditional_characters_become_what_opencc_makes_of_each() -> None:
    simplified = OpenCC("t2s")
    for code in range(0x4E00, 0xA000):
        assert fold(chr(code)) == simplified.convert(simplified.convert(chr(code)))


def test_every_digit_becomes_its_value() -> None:
    for code in range(sys.maxunicode + 1):
        value = unicodedata.digit(chr(code), None)
        if value is not None:
            assert fold(chr(code)) == str(value)


@pytest.mark.parametrize("what", [None, 3, b"text", ["试用期"]])
def test_what_is_no_text_is_refused(what: object) -> None:
    for tokenize in (fold, words, character_bigrams, *KINDS):
        with pytest.raises(TypeError, match=r"text is .*must be one string"):
            tokenize(what)  # type: ignore[arg-type]


# Tokens


def test_words_follow_the_dictionary_and_drop_punctuation() -> None:
    assert words("试用期可以请病假吗？") == ["试用期", "可以", "请", "病假", "吗"]
    assert words(" \n，。！——… ") == []
    assert words("") == []


@pytest.mark.parametrize("tokenize", [words, character_bigrams, *KINDS])
@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        ("ＡＰＩ", "api"),
        ("２０２４年", "2024年"),
        ("ChatGLM", "CHATGLM"),
        ("Ｖ２．０", "v2.0"),
        ("请　假", "请 假"),
        ("試用期能請病假嗎", "试用期能请病假吗"),
        ("第①步", "第1步"),
    ],
)
def test_both_sides_are_folded_alike(tokenize, given: str, same_as: str) -> None:
    assert tokenize(given) == tokenize(same_as)
    assert tokenize(given) != []


def test_words_keep_model_names_and_numbers_whole() -> None:
    assert words("ChatGLM-6B要3.5亿元") == ["chatglm-6b", "要", "3.5", "亿元"]


def test_words_take_a_lone_surrogate_for_a_space() -> None:
    assert words("试用期\ud800病假") == ["试用期", "病假"]


def test_bigrams() -> None:
    assert character_bigrams("试用期三个月") == ["试用", "用期", "期三", "三个", "个月"]
    assert character_bigrams("茶，咖啡") == ["茶", "咖啡"]
    assert character_bigrams("用GPU训练2天") == ["用", "gpu", "训练", "2", "天"]
    assert character_bigrams("𠮷野家〇二") == ["𠮷野", "野家", "家〇", "〇二"]
    assert character_bigrams("naïve_café") == ["naïve", "café"]
    assert character_bigrams("……　\t") == []


def test_the_kinds_are_the_functions() -> None:
    text = "试用期三个月，ChatGLM-6B請病假①次"
    assert KeywordTokenizer("words")(text) == words(text)
    assert KeywordTokenizer("bigrams")(text) == character_bigrams(text)
    assert KeywordTokenizer()(text) == [*character_bigrams(text), *words(text)]


@pytest.mark.parametrize("user_words", [(), ("试用期三", "驼峰井", "ABc", "年假 ，")])
@pytest.mark.parametrize("kind", ["words", "bigrams", "both"])
def test_a_token_is_what_stands_at_its_place(kind, user_words: tuple[str, ...]) -> None:
    tokenizer, generator = KeywordTokenizer(kind, user_words), random.Random(kind)
    for length in range(60):
        text = "".join(generator.choices(ALPHABET, k=length))
        tokens = tokenizer.tokens(text)
        assert [token for token, _, _ in tokens] == tokenizer(text)
        assert all(fold(text[start:end]) == token for token, start, end in tokens)
        covered = {place for _, start, end in tokens for place in range(start, end)}
        assert {place for place, character in enumerate(fold(text)) if character.isalnum()} <= covered


# The user's words


def test_the_users_words_stay_whole_wherever_they_stand() -> None:
    assert words("灵犀三号驼峰井可以开采") != ["灵犀三号", "驼峰井", "可以", "开采"]
    tokenizer = KeywordTokenizer("words", ("驼峰井", "靈犀三號", "灵犀", "ＧＬＭ", "用期可", "骆驼 向量"))
    assert tokenizer("灵犀三号驼峰井可以开采") == ["灵犀三号", "驼峰井", "可以", "开采"]
    assert tokenizer("灵犀，病假，驼峰井") == ["灵犀", "病假", "驼峰井"]
    assert tokenizer("试用期可以") == ["试", "用期可", "以"]
    assert tokenizer("用骆驼　向量训练") == ["用", "骆驼 向量", "训练"]
    assert "glm" in tokenizer("用GLM训练")
    assert "glm" not in tokenizer("chatglm训练 glm2")


def test_pairs_get_the_users_words_beside_them() -> None:
    tokenizer = KeywordTokenizer("bigrams", ("驼峰井", "年假", "glm", "GLM-6B", "茶"))
    assert tokenizer("驼峰井茶") == ["驼峰", "峰井", "井茶", "驼峰井"]
    assert tokenizer("年假") == ["年假"]  # a pair already
    assert tokenizer("用glm-6b") == ["用", "glm", "6b", "glm-6b"]
    assert tokenizer("用chatglm-6b") == ["用", "chatglm", "6b"]


def test_both_kinds_keep_the_users_words_whole_among_the_words() -> None:
    both, dictionary = KeywordTokenizer("both", ("驼峰井", "年假")), KeywordTokenizer("words", ("驼峰井", "年假"))
    text = "驼峰井的年假"
    assert both(text) == [*character_bigrams(text), *dictionary(text)]
    assert both("年假") == ["年假", "年假"]  # a pair and a word
    assert KeywordTokenizer.from_dict(both.to_dict()) == both


@pytest.mark.parametrize("kind", ["words", "bigrams", "both"])
def test_users_words_are_found_as_a_naive_search_finds_them(kind) -> None:
    generator = random.Random(kind)
    letters = "甲乙丙丁"
    for _ in range(200):
        own = tuple("".join(generator.choices(letters, k=generator.randint(3, 5))) for _ in range(3))
        text = "".join(generator.choices(letters, k=20))
        expected, rest = [], text
        while rest:
            fitting = max((word for word in own if rest.startswith(word)), key=len, default="")
            expected += [fitting] if fitting else []
            rest = rest[max(1, len(fitting)) :]
        assert [token for token in KeywordTokenizer(kind, own)(text) if token in own] == expected


def test_no_other_tokenizer_is_changed() -> None:
    before = words("灵犀三号驼峰井")
    KeywordTokenizer("words", ("灵犀三号驼峰井",))("灵犀三号驼峰井")
    assert words("灵犀三号驼峰井") == KeywordTokenizer("words")("灵犀三号驼峰井") == before


# Settings


def test_settings_come_back() -> None:
    tokenizer = KeywordTokenizer("words", ("驼峰井", "GLM-6B"))
    tokenizer("驼峰井")
    assert tokenizer.to_dict() == {"kind": "words", "user_words": ["驼峰井", "GLM-6B"]}
    assert KeywordTokenizer.from_dict(tokenizer.to_dict()) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer))("驼峰井") == ["驼峰井"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeywordTokenizer("jieba"), ValueError, "'words', 'bigrams'"),
        (lambda: KeywordTokenizer("words", "驼峰井"), TypeError, "user_words is str.*give a tuple"),
        (lambda: KeywordTokenizer("words", (3,)), TypeError, "text is int"),
        (lambda: KeywordTokenizer("words", ("年假", "　")), ValueError, "blank word"),
        (lambda: KeywordTokenizer.from_dict({"kind": "words"}), ValueError, "kind and user_words"),
        (lambda: KeywordTokenizer.from_dict({"kind": "words", "user_words": "年假"}), TypeError, "user_words is str"),
    ],
)
def test_bad_settings_are_refused(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_importing_the_file_loads_no_dictionary() -> None:
    code = (
        "import sys, luotuo_integrations.retrieval as r, luotuo_integrations.chinese_tokens as c; c.fold('abc'); "
        "print(sorted({'rjieba', 'bm25s', 'opencc'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
