"""Searching a FaissCore: scores, relevance, filters, diversity, and how many are found."""

from typing import Any

import numpy as np
import pytest
from small_store import IDS, TEXTS, filled, ids_of, some_vectors

from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.vector_math import METRICS, relevance


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_right_and_relevance_keeps_their_order(metric: Any) -> None:
    core = FaissCore(metric=metric)
    vectors, query = some_vectors(200) * 3, some_vectors(1, seed=1)[0]
    core.add(vectors, ["文"] * 200, None, [str(i) for i in range(200)])
    hits = core.search(query[None], 200)[0]
    for hit in hits:
        vector = vectors[int(hit.id)]
        expected = {
            "cosine": query @ vector / np.linalg.norm(query) / np.linalg.norm(vector),
            "inner_product": query @ vector,
            "euclidean": np.linalg.norm(query - vector),
        }[metric]
        assert hit.score == pytest.approx(float(expected), abs=1e-4)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=metric != "euclidean")
    values = relevance(metric, scores).tolist()
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < values[0] <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_the_vector_itself_is_best_and_its_opposite_worst(metric: Any) -> None:
    core = FaissCore(metric=metric)
    vector = some_vectors(1)[0]
    core.add(np.stack([vector, -vector, vector + 0.5]), ["同", "反", "近"])
    hits = core.search(vector[None], 3)[0]
    assert hits[-1].content == "反"
    values = relevance(metric, [hit.score for hit in hits])
    assert values[0] > values[-1]
    if metric != "inner_product":
        assert hits[0].content == "同"
        assert values[0] == pytest.approx(1.0)


def test_cosine_scores_never_leave_their_range() -> None:
    core = FaissCore(dimension=100)
    vectors = some_vectors(300, dimension=100)
    core.add(vectors, ["文"] * 300)
    scores = [hit.score for hits in core.search(np.concatenate([vectors, -vectors]), 300) for hit in hits]
    assert max(scores) <= 1.0
    assert min(scores) >= -1.0
    core.add(np.zeros((1, 100)), ["零"], None, ["零"])
    zero = next(hit for hit in core.search(vectors[:1], 301)[0] if hit.id == "零")
    assert zero.score == 0.0


def test_a_rare_value_is_found_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    core = FaissCore()
    vectors = some_vectors(3000)
    core.add(vectors, ["文"] * 3000, [{"部门": "法务" if i in (7, 2900) else "财务"} for i in range(3000)])
    far = -vectors[7]  # the rare ones are among the last of 3000
    hits = core.search(far[None], 4, where={"部门": "法务"})[0]
    assert len(hits) == 2
    assert all(hit.metadata == {"部门": "法务"} for hit in hits)
    assert core.search(far[None], 4, where={"部门": "法务"})[0] == hits
    assert core.search(far[None], 4, where=lambda metadata: metadata["部门"] == "法务")[0] == hits


def test_filters_and_ids_limit_a_search_together() -> None:
    core = filled()
    query = some_vectors(1, seed=3)[0]
    assert set(ids_of(core, query, where={"部门": "财务"})) == {"三", "六"}
    assert set(ids_of(core, query, ids=["一", "三", "没有"])) == {"一", "三"}
    assert ids_of(core, query, ids=["一", "三"], where={"部门": "财务"}) == ["三"]
    assert ids_of(core, query, where={"部门": "没有"}) == []
    assert ids_of(core, query, ids=[]) == []
    assert len(ids_of(core, query, where={})) == 6
    with pytest.raises(ValueError, match="'\\$like'"):
        core.search(query[None], where={"部门": {"$like": "财"}})


def test_a_filter_sees_what_has_changed_since_it_was_last_asked() -> None:
    core = filled()
    query = some_vectors(1)[0]
    for _ in range(2):
        assert set(ids_of(core, query, where={"部门": "财务"})) == {"三", "六"}
    core.add(some_vectors(1), ["新"], [{"部门": "财务"}], ["七"])
    assert set(ids_of(core, query, where={"部门": "财务"})) == {"三", "六", "七"}
    core.delete(["三"])
    assert set(ids_of(core, query, where={"部门": "财务"})) == {"六", "七"}


def test_a_function_as_filter_may_ask_the_store() -> None:
    core = filled()
    found = ids_of(core, some_vectors(1)[0], where=lambda metadata: core.get(["三"])[0].metadata == metadata)
    assert found == ["三"]


def test_how_many() -> None:
    core = filled()
    query = some_vectors(1)
    assert len(core.search(query, 100)[0]) == 6
    assert len(core.search(query, 10**12)[0]) == 6
    assert core.search(np.zeros((0, 8)), 3) == []
    assert [len(hits) for hits in core.search(some_vectors(3), 2)] == [2, 2, 2]
    for wrong in (0, -1, 2.0, True, None, "3"):
        with pytest.raises(ValueError, match=r"k=.*must be a whole number, 1 or more"):
            core.search(query, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"queries have shape \(1, 3\)"):
        core.search([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="NaN"):
        core.search([[float("nan")] * 8])


def test_an_empty_store_answers() -> None:
    for core in (FaissCore(), FaissCore(8)):
        assert core.search(some_vectors(2), 3) == [[], []]
        assert core.search_diverse(some_vectors(1)[0]) == []
        assert core.get(["一"]) == []
        assert core.find() == []
        assert core.delete(["一"]) == 0
        assert core.add(np.zeros((0, 8)), []) == []
        assert len(core) == 0


def test_diverse_search_avoids_repeats() -> None:
    core = FaissCore()
    vectors = np.array([[1, 0.02, 0], [1, 0.01, 0], [1, 0, 0], [0.7, 0.7, 0], [0, 0, 1]], dtype=np.float32)
    core.add(vectors, TEXTS[:5], [{"号": i} for i in range(5)], IDS[:5])
    query = np.array([1, 0.1, 0], dtype=np.float32)
    assert [hit.id for hit in core.search_diverse(query, 2, lambda_mult=1.0)] == ["一", "二"]
    assert [hit.id for hit in core.search_diverse(query, 2, lambda_mult=0.5)] == ["一", "四"]
    assert [hit.id for hit in core.search_diverse(query, 2, fetch_k=3, lambda_mult=0.5)] == ["一", "二"]
    assert [hit.id for hit in core.search_diverse(query, 9, where={"号": {"$gte": 3}})] == ["四", "五"]
    assert core.search_diverse(query, 1)[0].score == pytest.approx(core.search(query[None], 1)[0][0].score)
