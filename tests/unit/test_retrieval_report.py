"""Searches measured on questions: numbers worked out by hand, and that nothing is embedded twice or changed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from luotuo_integrations import FAISS, LuotuoEmbeddings
from luotuo_integrations.hybrid_search import HybridSettings
from luotuo_integrations.mapper import LinearQueryMapper, MapperError
from luotuo_integrations.pair_files import Question
from luotuo_integrations.retrieval_report import EvaluationError, evaluate_retrieval
from tests.character_embeddings import CharacterArrays

TEXTS = ["年假十五天", "病假要证明", "出差住宿五百元", "加班可调休", "试用期三个月", "报销要发票"]
QUESTIONS = [
    Question("年假", "年假十五天"),
    Question("住宿", "住宿五百元"),
    Question("发票", "不在这里的话语，谁也没有说过。"),
]


class Table(CharacterArrays):
    """Gives each text the vector that the test says."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        super().__init__(len(next(iter(vectors.values()))))
        self.vectors = vectors

    def encode(self, texts: list[str], kind: str = "passage") -> npt.NDArray[np.float32]:
        self.encoded += len(texts)
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


class LastFirst:
    """A reranker that likes what comes late in a list of texts."""

    def __init__(self, order: Sequence[str]) -> None:
        self.order = list(order)
        self.pairs: list[tuple[str, str]] = []

    def scores(self, pairs: Sequence[tuple[str, str]], show_progress: bool = False) -> npt.NDArray[np.float64]:
        self.pairs += pairs
        return np.array([self.order.index(text) for _, text in pairs], dtype=np.float64)


def numbered(count: int) -> tuple[FAISS, list[str]]:
    """Passages 0, 1, 2 ... in the order of their nearness to the query 问."""
    texts = [f"段落{number}号" for number in range(count)]
    angles = {text: (math.cos(number / count), math.sin(number / count)) for number, text in enumerate(texts)}
    return FAISS.from_texts(texts, Table({**angles, "问": (1.0, 0.0), "另问": (1.0, 0.0)}), ids=texts), texts


@pytest.mark.parametrize(("place", "first", "fifth"), [(1, 1.0, 1.0), (3, 0.0, 1.0), (7, 0.0, 0.0), (11, 0.0, 0.0)])
def test_measures_of_one_answer_follow_from_its_rank(place: int, first: float, fifth: float) -> None:
    store, texts = numbered(12)
    report = evaluate_retrieval(store, [Question("问", texts[place - 1])], cutoffs=[1, 5, 12])
    values = {measure: column.tolist() for measure, column in report.values["vector"].items()}
    inside = place <= 10
    assert values == {
        "recall@1": [first],
        "recall@5": [fifth],
        "recall@12": [1.0],
        "mrr@10": [1 / place if inside else 0.0],
        "ndcg@10": [pytest.approx(1 / math.log2(1 + place)) if inside else 0.0],
    }
    assert report.ranks["vector"] == (place,)


def test_several_answers_are_counted_each_and_copies_once() -> None:
    store, texts = numbered(12)
    twice = [Question("问", texts[1]), Question("问", ids=(texts[5], texts[11]))]
    values = evaluate_retrieval(store, twice, cutoffs=[1, 2, 10]).values["vector"]
    assert values["recall@1"].tolist() == [0.0]
    assert values["recall@2"].tolist() == pytest.approx([1 / 3])
    assert values["recall@10"].tolist() == pytest.approx([2 / 3])
    assert values["mrr@10"].tolist() == [0.5]
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["ndcg@10"].tolist() == pytest.approx([(1 / math.log2(3) + 1 / math.log2(7)) / best])


def test_copies_of_an_answer_are_one_answer() -> None:
    vectors = {"甲文": (1.0, 0.0), "甲文。": (0.9, 0.1), "乙文": (0.8, 0.2), "问": (1.0, 0.0)}
    store = FAISS.from_texts(["甲文", "甲文。", "乙文"], Table(vectors))
    values = evaluate_retrieval(store, [Question("问", "甲文")]).values["vector"]
    assert [values[measure].tolist() for measure in ("recall@1", "recall@5", "ndcg@10")] == [[1.0]] * 3


def test_searches_side_by_side_and_the_index_as_it_was(tmp_path: Path) -> None:
    FAISS.from_texts(TEXTS, CharacterArrays()).save_local(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    embeddings = CharacterArrays()
    store = FAISS.load_local(tmp_path, embeddings)
    report = evaluate_retrieval(store, QUESTIONS)
    assert list(report.values) == ["vector", "keyword", "hybrid"]
    assert report.queries == ("年假", "住宿")
    assert report.unanswered == ("发票",)
    assert report.passages == 6
    assert embeddings.encoded == 2  # each query once, for all searches
    assert report.values["keyword"]["recall@1"].tolist() == [1.0, 1.0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert report.measures == ["recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10"]
    assert report.means["keyword"]["mrr@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    difference = report.differences["keyword"]
    expected = (report.values["keyword"]["ndcg@10"] - report.values["vector"]["ndcg@10"]).mean()
    assert difference["difference"] == pytest.approx(expected)
    assert set(report.differences) == {"keyword", "hybrid"}
    content = json.loads(json.dumps(report.to_dict(), ensure_ascii=False))
    assert content["ranks"][0] == {
        "query": "年假",
        "ranks": {search: report.ranks[search][0] for search in report.ranks},
    }
    assert content["questions"] == 2


def test_weights_reach_the_hybrid_search() -> None:
    store = FAISS.from_texts(TEXTS, CharacterArrays())
    questions = [Question(text[:2], text) for text in TEXTS]
    keywords_alone = evaluate_retrieval(store, questions, settings=HybridSettings(weights=(0.0, 1.0))).ranks
    assert keywords_alone["hybrid"] == keywords_alone["keyword"]


def test_a_mapper_is_measured_beside_the_plain_vectors(tiny_folder: Path) -> None:
    embeddings = LuotuoEmbeddings(str(tiny_folder))
    store = FAISS.from_texts(TEXTS, embeddings)
    plain = evaluate_retrieval(store, QUESTIONS)
    embeddings.mapper = LinearQueryMapper(
        -2 * np.eye(24, dtype=np.float32), np.zeros(24, np.float32), embeddings.model, embeddings.fingerprint
    )
    mapped = evaluate_retrieval(store, QUESTIONS)
    assert list(mapped.values) == ["vector", "keyword", "hybrid", "vector + mapper", "hybrid + mapper"]
    assert mapped.ranks["vector"] == plain.ranks["vector"]
    # -x turns the order of all six passages around.
    assert mapped.ranks["vector + mapper"] == tuple(7 - place for place in plain.ranks["vector"] if place)
    assert embeddings.mapper is not None


def test_a_mapper_of_another_model_is_refused_before_any_work(tiny_folder: Path) -> None:
    embeddings = LuotuoEmbeddings(str(tiny_folder))
    store = FAISS.from_texts(TEXTS, embeddings)
    embeddings.mapper = LinearQueryMapper.identity(24, model="另一个", fingerprint="0123")
    with pytest.raises(MapperError, match="fitted for '另一个'"):
        evaluate_retrieval(store, QUESTIONS)


def test_a_reranker_orders_the_best_anew_and_reads_each_pair_once() -> None:
    store, texts = numbered(40)
    reranker = LastFirst(texts)
    report = evaluate_retrieval(store, [Question("问", texts[18]), Question("另问", texts[20])], reranker=reranker)
    assert list(report.values) == ["vector", "keyword", "hybrid", "hybrid + rerank"]
    assert report.ranks["hybrid + rerank"] == (2, None)  # of places 1 to 20 the last but one; the 21st is not given
    assert len(reranker.pairs) == len(set(reranker.pairs)) == 40
    assert {text for query, text in reranker.pairs if query == "问"} == set(texts[:20])
    few = LastFirst(texts)
    evaluate_retrieval(store, [Question("问", texts[3])], reranker=few, rerank_k=3)
    assert len(few.pairs) == 10  # as many as are looked at


def test_nothing_to_measure_is_an_error_that_says_what_to_do() -> None:
    store = FAISS.from_texts(TEXTS, CharacterArrays())
    with pytest.raises(EvaluationError, match=r"None of the 1 questions .*`luotuo questions FOLDER"):
        evaluate_retrieval(store, QUESTIONS[2:])
    with pytest.raises(EvaluationError, match="holds no passages"):
        evaluate_retrieval(FAISS(CharacterArrays()), QUESTIONS)
    for options in ({"cutoffs": []}, {"cutoffs": [0]}, {"rerank_k": 0}):
        with pytest.raises(ValueError, match="whole numbers from 1 on"):
            evaluate_retrieval(store, QUESTIONS, **options)  # type: ignore[arg-type]
