"""The BM25 index against a naive loop, and the retriever's edges."""

import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document

from luotuo_integrations.retrieval import BM25Retriever, KeywordIndex, words

HANDBOOK = [
    "新员工的试用期为三个月，试用期内可以请病假。",
    "年假从入职满一年起计算，每年十天。",
    "出差须提前三天申请，机票由行政部统一预订。",
    "报销单须附发票原件，三十天内交到财务部。",
    "骆驼Luotuo-6B模型的ＡＰＩ地址是内网专用的。",
]


# The index


def naive_bm25(corpus: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    mean_length = sum(len(tokens) for tokens in corpus) / len(corpus)
    scores = []
    for tokens in corpus:
        counts, score = Counter(tokens), 0.0
        for token in query:
            holders = sum(token in other for other in corpus)
            if holders and counts[token]:
                rarity = math.log(1 + (len(corpus) - holders + 0.5) / (holders + 0.5))
                length_factor = 1 - b + b * len(tokens) / mean_length
                score += rarity * counts[token] / (counts[token] + k1 * length_factor)
        scores.append(score)
    return scores


@pytest.mark.parametrize("seed", range(8))
def test_search_equals_the_naive_loop(seed: int) -> None:
    generator = random.Random(seed)
    alphabet = list("天地玄黄宇宙洪荒")
    corpus = [generator.choices(alphabet, k=generator.randint(0, 9)) for _ in range(40)]
    k1, b = generator.choice([(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (0.0, 1.0)])
    index = KeywordIndex(corpus, k1=k1, b=b)
    for _ in range(10):
        query = generator.choices([*alphabet, "无"], k=generator.randint(1, 4))
        k = generator.choice([1, 3, 7, 40, 100])
        expected = naive_bm25(corpus, query, k1, b)
        hits = index.search(query, k)
        assert len(hits) == min(k, sum(score > 0 for score in expected))
        assert all(score == pytest.approx(expected[position], rel=1e-5) for position, score in hits)
        assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
        left_out = set(range(len(corpus))) - {position for position, _ in hits}
        assert all(expected[position] <= hits[-1][1] * (1 + 1e-5) for position in left_out if hits)


@pytest.mark.parametrize("k", range(1, 12))
def test_equal_scores_come_in_corpus_order(k: int) -> None:
    index = KeywordIndex([["甲"], ["乙", "乙"]] * 10)
    assert [position for position, _ in index.search(["甲"], k)] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18][:k]


def test_only_texts_that_share_a_token_are_hits() -> None:
    index = KeywordIndex([words(text) for text in HANDBOOK])
    assert [position for position, _ in index.search(words("发票交给谁"), 5)] == [3]
    assert index.search(words("月球背面"), 5) == []
    assert index.search([], 5) == []


@pytest.mark.parametrize("corpus", [[], [[]], [[], []]])
def test_a_corpus_without_tokens_finds_nothing(corpus: list[list[str]]) -> None:
    index = KeywordIndex(corpus)
    assert len(index) == len(corpus)
    assert index.search(["年假"], 3) == []


def test_a_text_without_tokens_is_never_found() -> None:
    assert KeywordIndex([[], ["年假"], []]).search(["年假"], 9)[0][0] == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    KeywordIndex([words(text) for text in HANDBOOK]).search(words("年假"), 2)
    assert capfd.readouterr() == ("", "")


def test_threads_get_the_same_answers() -> None:
    index = KeywordIndex([words(text) for text in HANDBOOK * 50])
    queries = [words(text) for text in HANDBOOK] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: index.search(query, 5), queries)) == [index.search(q, 5) for q in queries]


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"corpus\[1\] is the string '年假'.*list of tokens"):
        KeywordIndex([["年假"], "年假"])
    with pytest.raises(TypeError, match="the query is the string"):
        KeywordIndex([["年假"]]).search("年假", 1)
    with pytest.raises(ValueError, match="k must be at least 1, but is 0"):
        KeywordIndex([["年假"]]).search(["年假"], 0)
    with pytest.raises(ValueError, match="k1=-1"):
        KeywordIndex([["年假"]], k1=-1)
    with pytest.raises(ValueError, match=r"b=1\.5"):
        KeywordIndex([["年假"]], b=1.5)


# The retriever


@pytest.mark.parametrize("tokenizer", ["words", "bigrams"])
def test_retriever_finds_the_section(tokenizer) -> None:
    retriever = BM25Retriever.from_documents([Document(text) for text in HANDBOOK], k=2, tokenizer=tokenizer)
    assert retriever.invoke("试用期请病假")[0].page_content == HANDBOOK[0]
    assert retriever.invoke("api")[0].page_content == HANDBOOK[4]
    assert retriever.invoke("🙂？！") == []
    assert retriever.invoke("") == []


@pytest.mark.parametrize("tokenizer", ["words", "bigrams"])
def test_retriever_reads_both_scripts_and_the_words_of_a_trade(tokenizer) -> None:
    documents = [Document(text) for text in [*HANDBOOK, "灵犀三号驼峰井的产量", "灵犀井和三号驼峰"]]
    retriever = BM25Retriever.from_documents(documents, tokenizer=tokenizer, user_words=["灵犀三号"])
    assert retriever.invoke("靈犀三號")[0].page_content == documents[5].page_content
    assert retriever.invoke("試用期請病假")[0].page_content == HANDBOOK[0]
    with pytest.raises(ValueError, match="blank word"):
        BM25Retriever.from_documents(documents, user_words=[" "])


def test_k_larger_than_the_documents() -> None:
    retriever = BM25Retriever.from_documents([Document(text) for text in HANDBOOK], k=100)
    assert len(retriever.invoke("三天三个月三十天，试用期")) <= len(HANDBOOK)


def test_no_documents() -> None:
    assert BM25Retriever.from_documents([]).invoke("年假") == []


def test_the_caller_s_documents_are_left_alone() -> None:
    document = Document(HANDBOOK[0], metadata={"来源": "员工手册.md", "页": [1]}, id="甲")
    retriever = BM25Retriever.from_documents([document])
    found = retriever.invoke("试用期")[0]
    assert found == document
    found.metadata["页"].append(2)
    assert document.metadata == {"来源": "员工手册.md", "页": [1]}
    assert retriever.invoke("试用期")[0] == document


def test_unknown_and_wrong_arguments_are_refused() -> None:
    documents = [Document(text) for text in HANDBOOK]
    with pytest.raises(ValueError, match="tokeniser"):
        BM25Retriever(documents=documents, tokeniser="words")
    with pytest.raises(ValueError, match="'words', 'bigrams' or 'both'"):
        BM25Retriever.from_documents(documents, tokenizer="jieba")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        BM25Retriever.from_documents(documents, k=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        BM25Retriever.from_documents(documents).invoke("年假", k=0)
