"""Answers from documents: sources, quotations, citations that are checked, and honest refusals."""

import re
from collections.abc import Callable, Iterator

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from luotuo_integrations import FAISS, LuotuoEmbeddings
from luotuo_integrations.qa import CANDIDATES, NOT_FOUND, QuestionAnswerer, place

PASSAGES = [
    ("## 年休假\n\n正式员工每年有十五天年休假。年休假可以分三次休完。", "休假制度.md", "休假制度 > 年休假"),
    ("## 试用期\n\n试用期员工暂不享受年休假。转正以后按实际在岗天数折算。", "休假制度.md", "休假制度 > 试用期"),
    ("一线城市住宿标准为每晚不超过四百五十元。其他城市为每晚不超过三百二十元。", "差旅.pdf", ""),
    ("丢失笔记本电脑要在两小时内报告信息安全部。逾期报告扣当月绩效。", "信息安全.txt", ""),
    ("食堂早餐七点开始供应，午餐十一点半开始。", "行政.md", "食堂"),
    ("面试通过后三天内发放录用通知。", "招聘.md", ""),
]


def documents() -> list[Document]:
    made = []
    for number, (text, source, headings) in enumerate(PASSAGES):
        metadata: dict[str, object] = {"source": source}
        if headings:
            metadata["headings"] = headings
        if source.endswith(".pdf"):
            metadata["page"] = 12
        made.append(Document(text, metadata=metadata, id=str(number)))
    return made


@pytest.fixture(scope="module")
def store() -> FAISS:
    return FAISS.from_documents(documents(), LuotuoEmbeddings())


def answerer(store: FAISS, llm: object = None, **options: object) -> QuestionAnswerer:
    return QuestionAnswerer(store, llm, **{"threshold": 0.0, **options})


def says(text: str) -> Callable[[str], str]:
    return lambda _: text


def test_sources_are_numbered_best_first_and_quote_verbatim(store: FAISS) -> None:
    answer = answerer(store).ask("试用期可以请年假吗？")
    assert answer.found
    assert [source.number for source in answer.sources] == [1, 2, 3, 4]
    scores = [source.score for source in answer.sources]
    assert scores == sorted(scores, reverse=True)
    assert answer.sources[0].document.id == "1"
    for source in answer.sources:
        assert source.quote in source.document.page_content
        assert not source.quote.startswith("#")
    assert answer.sources[0].title == "休假制度.md · 休假制度 > 试用期"


def test_quotations_are_sentences_with_their_numbers(store: FAISS) -> None:
    answer = answerer(store).ask("出差住酒店一晚最多多少钱？")
    lines = answer.text.splitlines()
    assert 1 <= len(lines) <= 3
    for line in lines:
        text, numbers = re.fullmatch(r"(.+?)((?:\[\d+\])+)", line).groups()
        for number in re.findall(r"\d+", numbers):
            assert text in answer.sources[int(number) - 1].document.page_content
    assert "四百五十元" in lines[0]
    assert answer.sources[0].title == "差旅.pdf · 第 12 页"


def test_a_sentence_of_overlapping_passages_is_quoted_once() -> None:
    sentence = "试用期员工暂不享受年休假。"
    texts = [f"{sentence}转正后再折算。", f"入职三个月为试用期。{sentence}"]
    answer = answerer(FAISS.from_texts(texts, LuotuoEmbeddings())).ask("试用期员工有年休假吗")
    assert answer.text.count(sentence) == 1
    assert f"{sentence}[1][2]" in answer.text.splitlines()
    assert answer.text.startswith(sentence)


def test_headings_alone_are_quoted_only_if_nothing_else_is_there() -> None:
    answer = answerer(FAISS.from_texts(["# 年休假"], LuotuoEmbeddings())).ask("年休假")
    assert answer.text == "# 年休假[1]"


def test_language_model_gets_numbered_passages_with_their_headings(store: FAISS) -> None:
    prompts = []

    def llm(prompt: str) -> str:
        prompts.append(prompt)
        return "不可以[1]。"

    answer = answerer(store, llm, k=2).ask("试用期可以请年假吗？")
    assert answer.text == "不可以[1]。"
    assert [source.document.id for source in answer.sources] == ["1"]
    assert "[1] （休假制度 > 试用期）" in prompts[0]
    assert "\n[2] " in prompts[0]
    assert "\n[3] " not in prompts[0]
    assert prompts[0].endswith("问题：试用期可以请年假吗？")


@pytest.mark.parametrize(
    ("said", "text", "cited"),
    [
        ("可以[1]，每年十五天[2]。", "可以[1]，每年十五天[2]。", [1, 2]),
        ("可以[2][1]。", "可以[2][1]。", [1, 2]),
        ("可以【1】。", "可以[1]。", [1]),
        ("可以[1, 3]。", "可以[1][3]。", [1, 3]),
        ("可以[3、1]。", "可以[1][3]。", [1, 3]),
        ("可以[1，9]。", "可以[1]。", [1]),
        ("可以[2]，也许[77]。", "可以[2]，也许。", [2]),
        ("可以[0]。", "可以。", [1, 2, 3, 4]),
        ("可以。", "可以。", [1, 2, 3, 4]),
        ("  可以[4]。\n", "可以[4]。", [4]),
        ("<think>先看[3]，再看[2]。</think>\n可以[1]。", "可以[1]。", [1]),
        ("见[附件1]，可以[1]。", "见[附件1]，可以[1]。", [1]),
    ],
)
def test_citations_are_checked(store: FAISS, said: str, text: str, cited: list[int]) -> None:
    answer = answerer(store, says(said)).ask("年假怎么休？")
    assert answer.found
    assert answer.text == text
    assert [source.number for source in answer.sources] == cited


@pytest.mark.parametrize(
    "said", ["资料中没有答案", "资料中没有答案。", "很抱歉，资料中没有答案", "资料中没有答案[1]", "", " "]
)
def test_a_language_model_that_finds_nothing_is_believed(store: FAISS, said: str) -> None:
    answer = answerer(store, says(said)).ask("年假怎么休？")
    assert not answer.found
    assert answer.text == NOT_FOUND
    assert not answer.sources


def test_a_partial_answer_is_kept(store: FAISS) -> None:
    said = "正式员工有十五天年休假[1]。关于事假，资料中没有答案。"
    answer = answerer(store, says(said)).ask("年假和事假怎么休？")
    assert answer.found
    assert answer.text == said


def test_threshold_decides_and_the_language_model_is_not_asked(store: FAISS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luotuo_integrations.answerability.Answerability.probability", lambda *_: 0.4)
    refused = answerer(store, lambda _: pytest.fail("asked"), threshold=0.5).ask("宇宙有多大？")
    assert (refused.found, refused.text, refused.relevance) == (False, NOT_FOUND, 0.4)
    assert not refused.sources
    assert list(answerer(store, lambda _: pytest.fail("asked"), threshold=0.5).stream("宇宙有多大？")) == [NOT_FOUND]
    answered = answerer(store, threshold=0.4).ask("宇宙有多大？")
    assert answered.found
    assert answered.relevance == 0.4


def test_greetings_are_refused_and_questions_on_the_documents_are_not(store: FAISS) -> None:
    asked = QuestionAnswerer(store)
    for question in ("你好", "给我讲个笑话吧", "地球到月亮有多远？"):
        assert not asked.ask(question).found, question
    for question in ("一线城市住宿标准是多少？", "正式员工有几天年休假？", "丢了笔记本电脑怎么办？"):
        assert asked.ask(question).found, question


def test_filter_limits_the_sources(store: FAISS) -> None:
    where = {"source": "行政.md"}
    answer = answerer(store).ask("试用期可以请年假吗？", filter=where)
    assert [source.document.id for source in answer.sources] == ["4"]
    nothing = answerer(store).ask("试用期可以请年假吗？", filter={"source": "没有.md"})
    assert (nothing.found, nothing.text, nothing.relevance) == (False, NOT_FOUND, 0.0)
    assert [s.document.id for s in answerer(store).stream("年假", filter=where).sources] == ["4"]


def test_stream_adds_up(store: FAISS) -> None:
    def llm(_: str) -> Iterator[str]:
        yield from ("试用期", "不享受", "年休假", "[1]。")

    stream = answerer(store, llm).stream("试用期可以请年假吗？")
    assert [source.number for source in stream.sources] == [1, 2, 3, 4]
    pieces = list(stream)
    assert pieces == ["试用期", "不享受", "年休假", "[1]。"]
    assert stream.answer.text == "".join(pieces)
    assert stream.answer == answerer(store, llm).ask("试用期可以请年假吗？")
    assert [source.number for source in stream.sources] == [1]
    assert list(stream) == []  # it has been read
    assert stream.answer.found


def test_stream_without_language_model_is_the_quotations(store: FAISS) -> None:
    stream = answerer(store).stream("试用期可以请年假吗？")
    assert "".join(stream) == stream.answer.text == answerer(store).ask("试用期可以请年假吗？").text


def test_stream_of_a_language_model_that_finds_nothing(store: FAISS) -> None:
    stream = answerer(store, says("资料中没有答案")).stream("年假")
    assert "".join(stream) == "资料中没有答案"
    assert not stream.answer.found
    assert stream.answer.text == NOT_FOUND


def test_an_error_of_the_language_model_is_passed_on(store: FAISS) -> None:
    def llm(_: str) -> str:
        raise ConnectionError("http://localhost:1/v1 cannot be reached")

    with pytest.raises(ConnectionError, match="cannot be reached"):
        answerer(store, llm).ask("年假")
    stream = answerer(store, llm).stream("年假")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        list(stream)


@pytest.mark.parametrize("question", ["", "  \n", "　", None, 7, ["年假"]])
def test_questions_without_text_are_refused(store: FAISS, question: object) -> None:
    for ask in (answerer(store).ask, answerer(store).stream):
        with pytest.raises(ValueError, match="holds no text; ask in words"):
            ask(question)


def test_empty_store_finds_nothing() -> None:
    answer = answerer(FAISS(LuotuoEmbeddings())).ask("年假")
    assert (answer.found, answer.text, answer.relevance) == (False, NOT_FOUND, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 is out of range.*1 to 8"),
        ({"k": CANDIDATES + 1}, "k=9 is out of range"),
        ({"threshold": -0.1}, r"threshold=-0.1 is out of range.*\[0, 1\]"),
        ({"threshold": 1.5}, "threshold=1.5 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(store: FAISS, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuestionAnswerer(store, **options)


def test_wrong_parts_are_refused(store: FAISS) -> None:
    other = FAISS.from_texts(["年假"], DeterministicFakeEmbedding(size=8))
    with pytest.raises(TypeError, match="DeterministicFakeEmbedding; questions need LuotuoEmbeddings"):
        QuestionAnswerer(other)
    with pytest.raises(TypeError, match="llm is str"):
        QuestionAnswerer(store, "gpt")


@pytest.mark.parametrize("k", [1, CANDIDATES])
def test_k_is_the_most_sources(store: FAISS, k: int) -> None:
    assert len(answerer(store, k=k).ask("年假").sources) == min(k, len(PASSAGES))


def test_place_names_what_is_known() -> None:
    assert place(Document("x")) == ""
    metadata = {"source": "a.pdf", "headings": "总则 > 目的", "page": 3}
    assert place(Document("x", metadata=metadata)) == "a.pdf · 总则 > 目的 · 第 3 页"


def test_order_of_the_documents_does_not_matter(store: FAISS) -> None:
    turned = FAISS.from_documents(documents()[::-1], LuotuoEmbeddings())
    question = "丢了笔记本电脑怎么办？"
    first, second = answerer(store).ask(question), answerer(turned).ask(question)
    assert [source.document.id for source in first.sources] == [source.document.id for source in second.sources]
    assert first.text == second.text
    assert first.relevance == pytest.approx(second.relevance, abs=1e-3)


def test_numbered_titles_are_not_quoted() -> None:
    text = "一、账号\n\n（一）密码的长度\n\n密码不少于十二位，每九十天更换一次。"
    document = Document(text, metadata={"headings": "一、账号 > （一）密码的长度"})
    found = QuestionAnswerer(FAISS.from_documents([document], LuotuoEmbeddings()), threshold=0).find("密码的长度")
    assert found.sources[0].quote == "密码不少于十二位，每九十天更换一次。"
    assert found.text == "密码不少于十二位，每九十天更换一次。[1]"
