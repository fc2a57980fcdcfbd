"""Evaluation sets: what is encoded as what, which keys come out, and which set records make."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.evaluate import (
    MAIN_METRICS,
    PairEvaluation,
    RetrievalEvaluation,
    SimilarityEvaluation,
    TripletEvaluation,
    evaluate,
    evaluation_of,
    main_metric,
    teacher_metrics,
)
from luotuo_integrations.training.records import Pair, ScoredPair, Triplet, read_records

FRONTS = ["骆驼能在沙漠里走很远", "春天的茶叶最嫩", "高铁票可以在网上改签", "他每天早上跑五公里"]
BACKS = ["沙漠里的骆驼靠驼峰储存能量", "茶叶在春天采摘", "改签高铁票要在开车以前", "跑步五公里用了半个小时"]


class CharacterEncoder:
    """Counts characters: texts that share characters are near. Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], Kind]] = []

    def __call__(self, texts: Sequence[str], kind: Kind) -> Vectors:
        self.asked.append((tuple(texts), kind))
        vectors = np.zeros((len(texts), 4096), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for character in text:
                row[ord(character) % 4096] += 1
        return vectors


def cosine(first: str, second: str) -> float:
    a, b = CharacterEncoder()([first, second], "query").astype(float)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_a_pair_set_measures_accuracy_off_diagonal_and_gap() -> None:
    teacher = CharacterEncoder()
    one = PairEvaluation(
        "dev", FRONTS, BACKS, "query", "passage", teacher(FRONTS, "query"), teacher(BACKS, "passage"), candidates=3
    )
    student = CharacterEncoder()
    metrics = evaluate(student, [one])
    assert student.asked == [(tuple(FRONTS), "query"), (tuple(BACKS), "passage")]
    cosines = np.array([[cosine(front, back) for back in BACKS] for front in FRONTS])
    outside = cosines[~np.eye(4, dtype=bool)]
    assert metrics == {
        "dev/row@1": 1.0,
        "dev/column@1": 1.0,
        "dev/pair@1": 1.0,
        "dev/candidates": 3.0,
        "dev/off_diagonal_mean": pytest.approx(outside.mean()),
        "dev/off_diagonal_std": pytest.approx(outside.std()),
        "dev/diagonal_mean": pytest.approx(np.diagonal(cosines).mean()),
        "dev/spearman_to_teacher": pytest.approx(1),
        "dev/pair_spearman_to_teacher": pytest.approx(1),
        "dev/cosine_to_teacher": pytest.approx(1),
    }
    own = teacher_metrics([one])
    assert own == {key: value for key, value in metrics.items() if not key.endswith("to_teacher")}


def test_without_a_teacher_there_is_no_gap_and_nothing_of_the_teacher() -> None:
    one = PairEvaluation("dev", FRONTS, BACKS)
    student = CharacterEncoder()
    assert not [key for key in evaluate(student, [one]) if "teacher" in key]
    assert [kind for _, kind in student.asked] == ["passage", "passage"]
    assert teacher_metrics([one, SimilarityEvaluation("sts", FRONTS, BACKS, [0, 1, 2, 3])]) == {}


def test_a_teacher_of_another_dimension_has_no_cosine_with_the_student() -> None:
    teacher = CharacterEncoder()(FRONTS + BACKS, "passage")[:, :3000]
    keys = evaluate(
        CharacterEncoder(), [PairEvaluation("dev", FRONTS, BACKS, "passage", "passage", teacher[:4], teacher[4:])]
    )
    assert "dev/spearman_to_teacher" in keys
    assert "dev/cosine_to_teacher" not in keys


def test_a_retrieval_set_searches_passages_with_queries() -> None:
    passages = [*BACKS, "驼峰"]
    student = CharacterEncoder()
    metrics = evaluate(student, [RetrievalEvaluation("faq", FRONTS, passages, [{0}, {1}, {0}, {3}])])
    assert set(student.asked) == {(tuple(FRONTS), "query"), (tuple(passages), "passage")}
    ranks = []
    for front, wanted in zip(FRONTS, [0, 1, 0, 3], strict=True):
        scores = [cosine(front, passage) for passage in passages]
        ranks.append(1 + sum(score >= scores[wanted] for at, score in enumerate(scores) if at != wanted))
    assert ranks[:2] == [1, 1]
    assert ranks[2] > 1
    assert metrics == {
        "faq/recall@1": 0.75,
        "faq/recall@5": 1.0,
        "faq/recall@10": 1.0,
        "faq/mrr@10": pytest.approx(np.mean([1 / rank for rank in ranks])),
        "faq/ndcg@10": pytest.approx(np.mean([1 / math.log2(1 + rank) for rank in ranks])),
    }


def test_a_similarity_set_compares_the_order_of_cosines_with_the_scores() -> None:
    first, second = FRONTS[:3], [FRONTS[0], BACKS[1], "完全无关的句子呀"]
    student = CharacterEncoder()
    assert cosine(first[0], second[0]) > cosine(first[1], second[1]) > cosine(first[2], second[2])
    metrics = evaluate(student, [SimilarityEvaluation("sts", first, second, [5, 4.5, 0])])
    assert metrics["sts/spearman"] == pytest.approx(1)
    assert 0.5 < metrics["sts/pearson"] < 1
    assert {kind for _, kind in student.asked} == {"query"}
    assert evaluate(student, [SimilarityEvaluation("sts", first, second, [0, 4, 5])])["sts/spearman"] == pytest.approx(
        -1
    )


def test_a_triplet_set_counts_each_negative() -> None:
    negatives = [(BACKS[1], FRONTS[0]), (), (BACKS[0], BACKS[3], BACKS[1])]
    student = CharacterEncoder()
    metrics = evaluate(student, [TripletEvaluation("hard", FRONTS[:3], BACKS[:3], negatives)])
    assert metrics == {"hard/accuracy": pytest.approx(4 / 5)}  # only the text itself beats its positive
    assert {kind for texts, kind in student.asked if texts == tuple(FRONTS[:3])} == {"query"}
    assert {kind for texts, kind in student.asked if texts != tuple(FRONTS[:3])} == {"passage"}


def test_the_encoder_of_the_package_fits(tiny_folder: Path) -> None:
    encoder = Encoder(str(tiny_folder), device="cpu")
    sets = [PairEvaluation("dev", FRONTS, BACKS), RetrievalEvaluation("faq", FRONTS, BACKS, [{0}, {1}, {2}, {3}])]
    metrics = evaluate(encoder.encode, sets)
    assert set(metrics) >= {"dev/pair@1", "faq/ndcg@10"}
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_first_set_chooses_the_checkpoint() -> None:
    pairs, faq = PairEvaluation("dev", FRONTS, BACKS), RetrievalEvaluation("faq", FRONTS, BACKS, [{0}, {1}, {2}, {3}])
    assert main_metric([pairs, faq]) == "dev/pair@1"
    assert main_metric([faq, pairs]) == "faq/ndcg@10"
    assert main_metric([pairs, faq]) in evaluate(CharacterEncoder(), [pairs, faq])
    vectors = CharacterEncoder()(FRONTS, "passage")
    taught = PairEvaluation("dev", FRONTS, BACKS, teacher_left=vectors, teacher_right=vectors)
    assert main_metric([taught, faq]) == "dev/spearman_to_teacher"
    assert main_metric([taught, faq]) in evaluate(CharacterEncoder(), [taught, faq])
    assert MAIN_METRICS == ("pair@1", "ndcg@10", "spearman", "accuracy")
    with pytest.raises(ValueError, match="no evaluation set"):
        main_metric([])


def test_pairs_make_a_retrieval_set_with_every_positive_once() -> None:
    records = [Pair("年假几天", "年假五天"), Pair("年假", "年假五天"), Pair("年假几天", "满十年十天")]
    assert evaluation_of(records, "faq") == RetrievalEvaluation(
        "faq", ["年假几天", "年假"], ["年假五天", "满十年十天"], [{0, 1}, {0}]
    )


def test_negatives_among_pairs_are_passages_too() -> None:
    records = [Pair("年假几天", "年假五天"), Triplet("报销", "发票报销", ("年假五天", "出差住宿"))]
    assert evaluation_of(records, "faq") == RetrievalEvaluation(
        "faq", ["年假几天", "报销"], ["年假五天", "发票报销", "出差住宿"], [{0}, {1}]
    )


def test_triplets_and_scored_pairs_make_their_own_sets() -> None:
    assert evaluation_of([Triplet("报销", "发票报销", ("出差",))], "hard") == TripletEvaluation(
        "hard", ["报销"], ["发票报销"], [("出差",)]
    )
    scored = [ScoredPair("茶", "绿茶", 0.9), ScoredPair("茶", "火车", 0.1)]
    assert evaluation_of(scored, "sts", second_kind="passage") == SimilarityEvaluation(
        "sts", ["茶", "茶"], ["绿茶", "火车"], [0.9, 0.1], "query", "passage"
    )


def test_scored_pairs_do_not_mix_and_nothing_makes_nothing() -> None:
    with pytest.raises(ValueError, match="'dev' has 1 scored pairs and 1 others"):
        evaluation_of([ScoredPair("茶", "绿茶", 0.9), Pair("茶", "绿茶")], "dev")
    with pytest.raises(ValueError, match="'dev' has 0 scored pairs and 0 others"):
        evaluation_of([], "dev")


def test_files_of_records_make_sets(tmp_path: Path) -> None:
    faq, sts = tmp_path / "faq.jsonl", tmp_path / "sts.jsonl"
    rows = [{"query": "年假几天", "positive": ["年假五天", "满十年十天"]}, {"query": "报销", "positive": "发票报销"}]
    faq.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    rows = [
        {"sentence1": "茶", "sentence2": "绿茶", "label": 4},
        {"sentence1": "茶", "sentence2": "火车", "label": 0.5},
    ]
    sts.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert evaluation_of(read_records(faq), "faq") == RetrievalEvaluation(
        "faq", ["年假几天", "报销"], ["年假五天", "满十年十天", "发票报销"], [{0, 1}, {2}]
    )
    assert evaluation_of(read_records(sts), "sts") == SimilarityEvaluation(
        "sts", ["茶", "茶"], ["绿茶", "火车"], [4.0, 0.5]
    )


def test_sets_that_do_not_fit_are_refused_when_they_are_made() -> None:
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"'dev' needs 2 rows or more .* {'left': 4, 'right': 3}"):
        PairEvaluation("dev", FRONTS, BACKS[:3])
    with pytest.raises(ValueError, match="'dev' needs 2 rows or more"):
        PairEvaluation("dev", FRONTS[:1], BACKS[:1])
    for left, right in [(vectors, None), (vectors, vectors[:3])]:
        with pytest.raises(ValueError, match="'dev' has 4 pairs, but the teacher's vectors have the shapes"):
            PairEvaluation("dev", FRONTS, BACKS, teacher_left=left, teacher_right=right)
    with pytest.raises(ValueError, match=r"has the positives \{9\} of 4 passages"):
        RetrievalEvaluation("faq", FRONTS[:1], BACKS, [{9}])
    with pytest.raises(ValueError, match=r"has the positives set\(\)"):
        RetrievalEvaluation("faq", FRONTS[:1], BACKS, [set()])
    with pytest.raises(ValueError, match="'sts' needs 2 rows or more"):
        SimilarityEvaluation("sts", FRONTS, BACKS, [1.0])
    with pytest.raises(ValueError, match="'hard' has no negative"):
        TripletEvaluation("hard", FRONTS, BACKS, [(), (), (), ()])


def test_sets_of_one_name_are_refused() -> None:
    sets = [PairEvaluation("dev", FRONTS, BACKS), PairEvaluation("dev", BACKS, FRONTS)]
    for measure in (lambda: evaluate(CharacterEncoder(), sets), lambda: teacher_metrics(sets)):
        with pytest.raises(ValueError, match="more than one evaluation set is named 'dev'"):
            measure()


def test_distractors_are_further_passages_and_never_positives() -> None:
    records = [Pair(query, positive) for query, positive in zip(FRONTS, BACKS, strict=True)]
    found = evaluation_of(records, "dev", distractors=[BACKS[0], "骆驼走得慢，但走得远。"])
    assert isinstance(found, RetrievalEvaluation)
    assert found.passages == [*BACKS, "骆驼走得慢，但走得远。"]
    assert found.positives == [{0}, {1}, {2}, {3}]
