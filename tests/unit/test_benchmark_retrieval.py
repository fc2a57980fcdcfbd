"""The retrieval benchmark: how it makes its sets, and that its table says what was measured."""

import numpy as np
import pytest

from benchmarks.retrieval import (
    Domain,
    Searches,
    differences,
    domain_of,
    draw,
    hard_domains,
    measure,
    never_worse,
    table,
)
from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.hybrid_search import HybridSettings, hybrid_search
from training.devsets import place, retrieval_set

ROWS = [
    {
        "query": f"第{number}条规定了什么内容",
        "positive": f"编号{number * 37 % 101}的条文规定，申请须在{number}个工作日内答复，逾期视为同意。",
    }
    for number in range(90)
]


@pytest.fixture
def embeddings(tiny_folder: str) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu", dtype="float32")


def test_questions_pairs_and_passages_are_taken_by_hash() -> None:
    rows = [*ROWS, {"query": "短", "positive": ROWS[0]["positive"]}, {"query": "太短的答案", "positive": "短"}]
    domain = domain_of(rows)
    assert domain == domain_of(rows[::-1])
    assert len(domain.questions) == 30  # a third
    assert domain.passages == sorted({row["positive"] for row in ROWS}, key=place)
    answers = {row["query"]: row["positive"] for row in ROWS}
    for question, positives in zip(domain.questions, domain.positives, strict=True):
        assert [domain.passages[number] for number in positives] == [answers[question]]
    asked = {domain.passages[number] for positives in domain.positives for number in positives}
    assert len(domain.pairs) == 60
    assert not asked & {answer for _, answer in domain.pairs}
    assert all(answers[question] == answer for question, answer in domain.pairs)


def test_the_questions_are_those_of_the_development_sets() -> None:
    rows = [
        {"query": f"问题{number}是什么", "positive": f"这一段文字回答的是第{number}个问题，别无其他内容。"}
        for number in range(2_400)
    ]
    assert domain_of(rows).questions == retrieval_set(rows).queries


def test_a_question_of_several_passages_is_answered_by_each() -> None:
    rows = [
        *ROWS,
        *({"query": ROWS[0]["query"], "positive": f"第{n}段不同的文字也回答了这个问题，请看仔细。"} for n in range(6)),
    ]
    domain = domain_of(rows)
    asked = dict(zip(domain.questions, domain.positives, strict=True))
    assert len(asked[ROWS[0]["query"]]) == 7
    assert not set(asked) & {question for question, _ in domain.pairs}


def test_every_search_is_measured_by_question(embeddings: LuotuoEmbeddings) -> None:
    domain = domain_of(ROWS)
    found, methods = measure(domain, embeddings)
    assert set(methods) == {"20", "100", "500", "2000"}
    assert all(values["recall@1"].shape == (30,) for values in found.values())
    searches = Searches(domain, embeddings)
    cosines = searches.vectors @ embeddings.encode(domain.passages, "passage").T
    right = [best in positives for best, positives in zip(cosines.argmax(1), domain.positives, strict=True)]
    assert found["vector"]["recall@1"].tolist() == pytest.approx(np.array(right, float).tolist())
    hits = hybrid_search(searches.core, searches.vectors[0], domain.questions[0], 1, settings=HybridSettings())
    assert found["hybrid"]["recall@1"][0] == (int(hits[0].id) in domain.positives[0])


def test_the_table_and_the_differences_say_what_was_measured(tmp_path) -> None:
    searches = ["vector", "BM25 words", "BM25 bigrams", "BM25 both", "hybrid"]
    searches += [f"{side} + mapper {size:,}" for size in (20, 100, 500, 2_000) for side in ("vector", "hybrid")]

    def values(level: float) -> dict[str, np.ndarray]:
        return {"recall@1": np.full(50, level), "ndcg@10": np.full(50, level)}

    easy = {search: values(0.97) for search in searches}
    hard = {search: values(0.5) for search in searches} | {"hybrid": values(0.6), "BM25 words": values(0.52)}
    results = {"easy": easy, "hard": hard}
    assert hard_domains(results) == ["hard"]
    lines = list(table(results, "ndcg@10"))
    assert lines[0] == "| ndcg@10 | easy | hard | mean | hard |"
    assert "| hybrid | 0.970 | 0.600 | 0.785 | 0.600 |" in lines
    compared = {what: one for measured, what, one in differences(results) if measured == "ndcg@10"}
    assert compared["hybrid - better of vector and BM25"]["difference"] == pytest.approx(0.08)
    assert {(name, size): one["difference"] for name, size, one in never_worse(results)}["hard", 20] == 0
    draw(results | {"third": hard}, tmp_path / "图" / "p.png")
    assert (tmp_path / "图" / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_domain_may_be_small(embeddings: LuotuoEmbeddings) -> None:
    domain = Domain(["试用期多久"], ["试用期为三个月。"], [[0]], [("年假几天", "年假五天。")])
    found, methods = measure(domain, embeddings)
    assert found["vector"]["recall@1"].tolist() == [1.0]
    assert set(methods.values()) == {"identity"}
