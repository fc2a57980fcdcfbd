"""Int8 and Binary: candidates by short codes, the best by whole vectors; against brute force and a plain dict."""

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from character_embeddings import CharacterArrays
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from small_store import some_vectors

from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.llama_stores import FaissVectorStore
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.files import StoreFolder
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind
from luotuo_integrations.store.merge import merge_stores
from luotuo_integrations.store.rescoring import RESCORED, RescoredIndex, new_index
from luotuo_integrations.store.vector_math import METRICS, Metric
from luotuo_integrations.store.whole_vectors import WholeVectors
from luotuo_integrations.vectorstores import FAISS

faiss = pytest.importorskip("faiss")

KINDS = list(RESCORED)
COUNT, DIMENSION = 600, 20  # a dimension that does not fill the last byte of signs
EVERYTHING = 100_000  # a search_effort that makes a candidate of every row


def vectors_of(count: int = COUNT, seed: int = 0) -> npt.NDArray[np.float32]:
    """Vectors away from zero, as those of a model lie: signs alone would tell little."""
    return some_vectors(count, seed, DIMENSION) + np.float32(0.5)


def scores_of(queries: Any, vectors: Any, metric: Metric) -> npt.NDArray[np.float64]:
    """Every score (Q, N) in float64."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "euclidean":
        distances: npt.NDArray[np.float64] = np.linalg.norm(queries[:, None] - vectors[None], axis=2)
        return distances
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    products: npt.NDArray[np.float64] = queries @ vectors.T
    return products


def best_of(scores: npt.NDArray[np.float64], k: int, metric: Metric) -> npt.NDArray[np.int64]:
    return np.argsort(scores if metric == "euclidean" else -scores, axis=1, kind="stable")[:, :k]


def filled(factory: str, metric: Metric = "cosine", count: int = COUNT, **options: Any) -> RescoredIndex:
    index = RescoredIndex(IndexKind(DIMENSION, metric, factory), **options)
    index.add(vectors_of(count), np.arange(10, 10 + count))
    return index


def written(index: RescoredIndex, folder: Path) -> dict[str, Path]:
    paths = {part: folder / part for part in index.parts()}
    for part, write in index.parts().items():
        write(paths[part])
    return paths


def opened(factory: str, metric: Metric, paths: dict[str, Path], rows: Any, facts: Any = None) -> RescoredIndex:
    index = RescoredIndex(IndexKind(DIMENSION, metric, factory))
    index.restore(paths, rows, memory_map=True, facts=facts)
    return index


# -- searching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", KINDS)
def test_search_with_every_row_a_candidate_is_brute_force(factory: str, metric: Metric) -> None:
    index, queries = filled(factory, metric, search_effort=EVERYTHING), vectors_of(30, seed=1)
    for allowed in (None, np.arange(10, 610, 7), np.array([400])):
        rows = np.arange(10, 610) if allowed is None else allowed
        scores, found = index.search(queries, 9, allowed)
        expected = scores_of(queries, vectors_of()[rows - 10], metric)
        best = best_of(expected, 9, metric)
        assert (found == rows[best]).mean() > 0.99
        assert np.allclose(scores, np.take_along_axis(expected, best, 1), atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", KINDS)
def test_by_its_own_effort_it_finds_nearly_all_and_scores_are_exact(factory: str, metric: Metric) -> None:
    index, queries = filled(factory, metric), vectors_of(50, seed=1)
    expected = scores_of(queries, vectors_of(), metric)
    for allowed in (None, np.arange(10, 610, 2), np.setdiff1d(np.arange(10, 610), [20, 300])):
        rows = np.arange(10, 610) if allowed is None else allowed
        scores, found = index.search(queries, 6, allowed)
        best = rows[best_of(expected[:, rows - 10], 6, metric)]
        assert np.mean([len({*a} & {*b}) / 6 for a, b in zip(found.tolist(), best.tolist(), strict=True)]) > 0.93
        assert np.isin(found, rows).all()
        assert np.allclose(scores, np.take_along_axis(expected, found - 10, 1), atol=1e-3)
        assert (np.diff(scores if metric == "euclidean" else -scores, axis=1) >= 0).all()


@pytest.mark.parametrize("factory", KINDS)
def test_more_effort_finds_more_and_whole_vectors_beat_codes(factory: str) -> None:
    queries = vectors_of(100, seed=1)
    best = best_of(scores_of(queries, vectors_of(), "cosine"), 10, "cosine") + 10
    recalls = []
    for effort in (1, 2, 8):
        found = filled(factory, search_effort=effort).search(queries, 10)[1]
        recalls.append(np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), best.tolist(), strict=True)]))
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[2]
    assert recalls[2] > 0.9


@pytest.mark.parametrize("factory", KINDS)
def test_codes_alone_decide_who_is_a_candidate(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(factory, search_effort=5)
    read: list[int] = []
    take = WholeVectors.take
    monkeypatch.setattr(WholeVectors, "take", lambda self, places: read.append(len(places)) or take(self, places))
    index.search(vectors_of(3, seed=1), 8)
    assert read == [40, 40, 40]
    read.clear()
    index.search(vectors_of(2, seed=1), 1)  # for one result as for four: one code may well mislead
    assert read == [20, 20]
    read.clear()
    index.search(vectors_of(2, seed=1), 2, np.arange(10, 30))  # no more than candidates: exact, read once for all
    assert read == [20]


@pytest.mark.parametrize("factory", KINDS)
def test_k_is_at_most_what_there_is(factory: str) -> None:
    index = filled(factory, count=5)
    for k, allowed, width in ((9, None, 5), (9, np.array([11, 14]), 2), (1, np.zeros(0, dtype=np.int64), 0)):
        scores, rows = index.search(vectors_of(3, seed=1), k, allowed)
        assert scores.shape == rows.shape == (3, width)
    assert index.search(np.zeros((0, DIMENSION), dtype=np.float32), 2)[1].shape == (0, 2)
    empty = RescoredIndex(IndexKind(DIMENSION, "cosine", factory))
    assert empty.search(vectors_of(2), 4)[1].shape == (2, 0)
    assert len(empty.rows) == len(empty.vectors(np.zeros(0, dtype=np.int64))) == 0


@pytest.mark.parametrize("factory", KINDS)
def test_the_same_vectors_zeros_and_huge_numbers_are_found(factory: str) -> None:
    index = RescoredIndex(IndexKind(DIMENSION, "cosine", factory))
    index.add(np.zeros((300, DIMENSION), dtype=np.float32), np.arange(300))
    scores, rows = index.search(vectors_of(2), 5)
    assert (scores == 0).all()
    assert all(len(set(found)) == 5 for found in rows.tolist())
    large = RescoredIndex(IndexKind(DIMENSION, "inner_product", factory))
    large.add(vectors_of(300) * np.float32(1e25), np.arange(300))  # squares are infinite in float32
    rows = large.search(vectors_of(4, seed=1), 5)[1]
    assert all(len(set(found)) == 5 and min(found) >= 0 for found in rows.tolist())


# -- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("factory", KINDS)
def test_removed_rows_are_gone_and_the_others_keep_codes_and_vectors(
    factory: str, from_file: bool, tmp_path: Path
) -> None:
    index = filled(factory, "euclidean")
    if from_file:
        index = opened(factory, "euclidean", written(index, tmp_path), index.rows)
        index.add(vectors_of(700)[600:], np.arange(610, 710))
    else:
        index.add(vectors_of(700)[600:], np.arange(610, 710))
    for gone in (np.array([10]), np.arange(20, 60), np.array([9999]), np.arange(100, 400), np.array([10, 650])):
        index.discard(gone)
    held = np.setdiff1d(np.arange(10, 710), [10, *range(20, 60), *range(100, 400), 650])
    assert len(index) == len(held)
    assert index.rows.tolist() == held.tolist()
    assert (index.vectors(held[::-1]) == vectors_of(700)[held[::-1] - 10]).all()
    assert len(held) > 64  # so that codes decide below
    assert index.search(vectors_of(700)[held - 10], 1)[1][:, 0].tolist() == held.tolist()
    assert sorted(index.search(vectors_of(1, seed=1), 1_000)[1][0].tolist()) == held.tolist()
    index.rebuild()
    assert index.rows.tolist() == held.tolist()
    assert index._held.codes.ntotal == len(held)
    assert index.search(vectors_of(700)[held - 10], 1)[1][:, 0].tolist() == held.tolist()


@pytest.mark.parametrize("factory", KINDS)
def test_many_single_removals_move_the_codes_now_and_then(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(factory)
    moved: list[int] = []
    take_out = RescoredIndex._take_out_marked
    monkeypatch.setattr(RescoredIndex, "_take_out_marked", lambda self: moved.append(1) or take_out(self))
    for row in range(10, 560):
        index.discard(np.array([row]))
    assert index.rows.tolist() == list(range(560, 610))
    assert 0 < len(moved) < 40


@pytest.mark.parametrize("factory", KINDS)
def test_codes_are_fitted_anew_while_a_store_grows_from_single_texts(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    anew = RescoredIndex._coded_anew

    def counted(self: RescoredIndex, more: Any) -> Any:
        fitted.append(len(self) + len(more))
        return anew(self, more)

    monkeypatch.setattr(RescoredIndex, "_coded_anew", counted)
    index = RescoredIndex(IndexKind(DIMENSION, "cosine", factory))
    for row, vector in enumerate(vectors_of()):
        index.add(vector[None], np.array([row]))
    assert fitted == [1, 4, 16, 64, 256]
    queries = vectors_of(100, seed=1)
    best = best_of(scores_of(queries, vectors_of(), "cosine"), 5, "cosine")
    found = index.search(queries, 5)[1]
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(found.tolist(), best.tolist(), strict=True)]) > 0.93


@pytest.mark.parametrize("factory", KINDS)
def test_training_beforehand_is_kept_and_never_needed(factory: str) -> None:
    index = RescoredIndex(IndexKind(DIMENSION, "cosine", factory))
    index.check_training(1)
    index.train(vectors_of(200, seed=3))
    codes = index._held.codes
    index.train(vectors_of(3))
    index.add(vectors_of(5), np.arange(5))
    assert index._held.codes is codes
    assert index.search(vectors_of(5), 1)[1].tolist() == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("factory", KINDS)
def test_a_store_that_grows_over_many_sessions_is_fitted_anew_too(factory: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((60, 128), dtype=np.float32)
    vectors = centres[generator.integers(60, size=2_000)] + generator.standard_normal((2_000, 128)).astype(np.float32)
    core, count = FaissCore(index_factory=factory), 1
    while count < 2_000:
        start = len(core)
        core.add(vectors[start:count], ["文"] * (count - start), None, [str(row) for row in range(start, count)])
        core.save(tmp_path)
        core, count = FaissCore.load(tmp_path), 3 * count  # never fourfold in one session
    assert len(core) == 729
    queries = vectors[:100] + generator.standard_normal((100, 128)).astype(np.float32) / 2
    best = best_of(scores_of(queries, vectors[:729], "cosine"), 4, "cosine")
    found = [[int(hit.id) for hit in hits] for hits in core.search(queries, 4)]
    assert np.mean([len({*a} & {*b}) / 4 for a, b in zip(found, best.tolist(), strict=True)]) > 0.97


@pytest.mark.parametrize("factory", KINDS)
def test_what_codes_were_fitted_to_is_saved_and_shrinks_with_it(factory: str, tmp_path: Path) -> None:
    index = filled(factory, count=200)
    index.add(vectors_of(600)[200:], np.arange(210, 610))
    assert index.facts() == {"fitted_to": 200}
    index.discard(np.arange(10, 60))  # marked only
    assert index.facts() == {"fitted_to": 150}
    again = opened(factory, "cosine", written(index, tmp_path), index.rows, facts=index.facts())
    again.add(vectors_of(1), np.array([700]))
    assert again.facts() == {"fitted_to": 150}  # 551 of them are less than fourfold
    again.discard(np.arange(60, 200))
    assert again.facts() == {"fitted_to": 10}
    again.add(vectors_of(1), np.array([701]))
    assert again.facts() == {"fitted_to": 412}
    again.discard(again.rows)
    assert again.facts() == {"fitted_to": 0}  # so the next addition fits them
    again.add(vectors_of(3), np.arange(800, 803))
    assert again.facts() == {"fitted_to": 3}


@pytest.mark.parametrize("factory", KINDS)
def test_a_folder_that_does_not_tell_is_fitted_anew_by_the_next_addition(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = StoreFolder.save

    def as_before(self: StoreFolder, facts: Any, parts: Any) -> None:
        saved(self, {name: value for name, value in facts.items() if name != "index"}, parts)

    core = FaissCore(index_factory=factory)
    core.add(vectors_of(), ["文"] * COUNT, None, [str(row) for row in range(COUNT)])
    monkeypatch.setattr(StoreFolder, "save", as_before)
    core.save(tmp_path)
    again: Any = FaissCore.load(tmp_path)
    codes = again._index._held.codes
    again.train(vectors_of(10))  # would be codes of nothing
    assert again._index._held.codes is codes
    assert [hits[0].id for hits in again.search(vectors_of()[:50], 1)] == [str(row) for row in range(50)]
    again.add(vectors_of(1, seed=5), ["新"])
    assert again._index.facts() == {"fitted_to": COUNT + 1}
    assert again._index._held.codes is not codes


@pytest.mark.parametrize("moment", ["room", "codes", "first codes"])
@pytest.mark.parametrize("factory", KINDS)
def test_a_failure_while_adding_leaves_everything_as_it_was(
    factory: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = FaissCore(index_factory=factory)
    core.add(
        some_vectors(3 if moment == "first codes" else 9), list("一二三四五六七八九")[: 3 if moment[0] == "f" else 9]
    )
    before = core.export()

    def failing(*_: Any) -> Any:
        raise MemoryError

    if moment == "room":
        monkeypatch.setattr(WholeVectors, "reserve", failing)
    elif moment == "codes":
        monkeypatch.setattr(core._index._held.codes, "add", failing)  # type: ignore[union-attr]
    else:
        monkeypatch.setattr(RescoredIndex, "_coded_anew", failing)
    with pytest.raises(MemoryError):
        core.add(some_vectors(12, seed=8), ["新"] * 12)
    monkeypatch.undo()
    after = core.export()
    assert after[0] == before[0]
    assert (after[1] == before[1]).all()
    core.add(some_vectors(12, seed=8), ["新"] * 12)
    assert len(core) == len(before[0]) + 12
    assert core.search(some_vectors(12, seed=8)[3:4], 1)[0][0].score == pytest.approx(1)


# -- against a plain dict ---------------------------------------------------------------------------------------------


def assert_same(core: FaissCore, oracle: dict[str, tuple[Any, int]], seed: int) -> None:
    """Unlimited, filtered by metadata and by ids: what a look at every document finds."""
    queries = vectors_of(3, seed=1_000 + seed)
    ids = sorted(oracle)[::3]
    for options, named in (
        ({}, list(oracle)),
        ({"where": {"组": 1}}, [id_ for id_, (_, group) in oracle.items() if group == 1]),
        ({"where": {"组": {"$ne": 1}}}, [id_ for id_, (_, group) in oracle.items() if group != 1]),
        ({"ids": ids}, ids),
    ):
        found: Any = core.search(queries, 5, **options)  # type: ignore[arg-type]
        if not named:
            assert found == [[], [], []]
            continue
        expected = scores_of(queries, np.stack([oracle[id_][0] for id_ in named]), core.metric)
        best = np.take_along_axis(expected, best_of(expected, 5, core.metric), 1)
        for number, hits in enumerate(found):
            assert [hit.score for hit in hits] == pytest.approx(best[number].tolist(), abs=2e-3)
            assert all(expected[number, named.index(hit.id)] == pytest.approx(hit.score, abs=2e-3) for hit in hits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factory", KINDS)
def test_random_changes_and_files_against_a_dict(factory: str, seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    core = FaissCore(metric=METRICS[seed], index_factory=factory, search_effort=EVERYTHING)
    oracle: dict[str, tuple[Any, int]] = {}
    for step in range(40):
        action = generator.choice(["add", "add", "add", "delete", "delete where", "save", "rebuild"])
        if action == "add":
            count = int(generator.integers(1, 30))
            ids = [f"文{number}" for number in generator.integers(150, size=count)]
            groups = [int(number) for number in generator.integers(3, size=count)]
            vectors = vectors_of(count, seed=10_000 * seed + step)
            core.add(vectors, ids, [{"组": group} for group in groups], ids)
            oracle.update({id_: (vectors[place], groups[place]) for place, id_ in enumerate(ids)})
        elif action == "delete":
            ids = [f"文{number}" for number in generator.integers(150, size=int(generator.integers(1, 40)))]
            assert core.delete(ids) == len(set(ids) & set(oracle))
            oracle = {id_: value for id_, value in oracle.items() if id_ not in ids}
        elif action == "delete where" and generator.random() < 0.5:
            core.delete_where({"组": 2})
            oracle = {id_: value for id_, value in oracle.items() if value[1] != 2}
        elif action == "save":
            core.save(tmp_path / "库")
            core = FaissCore.load(tmp_path / "库", memory_map=bool(generator.random() < 0.7), verify=True)
        else:
            core.rebuild()
        assert len(core) == len(oracle)
        if oracle:
            assert_same(core, oracle, step)
    stored = core.vectors(sorted(oracle))
    whole = np.stack([oracle[id_][0] for id_ in sorted(oracle)])
    if core.metric == "cosine":
        whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    assert np.allclose(stored, whole, atol=1e-6)


# -- memory and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", KINDS)
def test_whole_vectors_stay_on_the_disk_once_the_store_is_opened(factory: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((2_000, 512), dtype=np.float32)
    core = FaissCore(index_factory=factory)
    core.add(vectors, ["文"] * 2_000, None, [str(row) for row in range(2_000)])
    core.save(tmp_path)
    tracemalloc.start()
    try:
        again = FaissCore.load(tmp_path)
        assert [hits[0].id for hits in again.search(vectors[:20], 4)] == [str(row) for row in range(20)]
        # Neither a new document nor a deletion brings them into memory.
        again.add(vectors[:1], ["新"], None, ["新"])
        again.delete([str(row) for row in range(1_000)])
        assert again.search(vectors[1_500:1_501], 1)[0][0].id == "1500"
        assert tracemalloc.get_traced_memory()[1] < vectors.nbytes / 3  # an opened Flat store would copy them all
    finally:
        tracemalloc.stop()
    sizes = {path.suffix: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes[".npy"] == vectors.nbytes + 128
    assert sizes[".faiss"] < vectors.nbytes / {"Int8": 3.9, "Binary": 27}[factory]
    assert isinstance(np.load(next(tmp_path.glob("*.npy")), allow_pickle=False), np.ndarray)  # anybody can read them
    again.save(tmp_path)
    assert len(list(tmp_path.glob("vectors-*"))) == 1
    assert {document.id for document in FaissCore.load(tmp_path, verify=True).find()} == {
        "新",
        *map(str, range(1_000, 2_000)),
    }


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", KINDS)
def test_files_bring_back_the_same_answers(factory: str, metric: Metric, memory_map: bool, tmp_path: Path) -> None:
    index = filled(factory, metric)
    index.discard(np.arange(10, 60))  # marked only: the files are without them all the same
    assert index._held.marked
    before = index.search(vectors_of(20, seed=1), 6)
    paths = written(index, tmp_path)
    again = RescoredIndex(IndexKind(DIMENSION, metric, factory))
    again.restore(paths, index.rows, memory_map=memory_map)
    after = again.search(vectors_of(20, seed=1), 6)
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    assert (again.vectors(again.rows) == index.vectors(index.rows)).all()
    assert again._held.codes.ntotal == 550
    assert index._held.marked  # writing changed nothing


@pytest.mark.parametrize("factory", KINDS)
def test_an_empty_store_comes_back_and_grows(factory: str, tmp_path: Path) -> None:
    for number, core in enumerate([FaissCore(index_factory=factory), FaissCore(8, index_factory=factory)]):
        core.add(some_vectors(), list("一二三四五六"))
        core.clear()
        core.save(tmp_path / str(number))
        again = FaissCore.load(tmp_path / str(number))
        assert (len(again), again.dimension, again.index_factory) == (0, 8, factory)
        again.add(some_vectors(), list("一二三四五六"))
        assert again.search(some_vectors()[2:3], 1)[0][0].content == "三"


@pytest.mark.parametrize("factory", KINDS)
def test_damaged_and_foreign_files_are_refused(factory: str, tmp_path: Path) -> None:
    index = filled(factory)
    paths = written(index, tmp_path)
    whole, codes = paths["vectors.npy"].read_bytes(), paths["index.faiss"].read_bytes()
    for content, words in (
        (whole[:1_000], "damaged"),
        (whole[:50], "damaged"),
        (b"", "damaged"),
        (b"x" * 500, "damaged"),
        (codes, "damaged"),
    ):
        paths["vectors.npy"].write_bytes(content)
        for memory_map in (True, False):
            with pytest.raises(StoreCorruptError, match=rf"vectors\.npy is {words}.*Restore the folder"):
                RescoredIndex(IndexKind(DIMENSION, "cosine", factory)).restore(paths, index.rows, memory_map=memory_map)
    for array in (vectors_of(599), vectors_of().astype(np.float64), vectors_of()[:, :8], vectors_of().T):
        np.save(paths["vectors.npy"], array)
        with pytest.raises(StoreCorruptError, match="does not hold 600 vectors of 20 float32 numbers"):
            opened(factory, "cosine", paths, index.rows)
    paths["vectors.npy"].write_bytes(whole)
    with pytest.raises(StoreCorruptError, match="600 codes for 599 documents"):
        opened(factory, "cosine", paths, index.rows[1:])
    other = next(kind for kind in KINDS if kind != factory)
    for kind, metric in ((other, "cosine"), (factory, "euclidean")):
        with pytest.raises(StoreCorruptError, match="not the kind of index"):
            opened(kind, metric, paths, index.rows)  # type: ignore[arg-type]
    paths["index.faiss"].write_bytes(codes[:300])
    with pytest.raises(StoreCorruptError, match="damaged"):
        opened(factory, "cosine", paths, index.rows)


def test_a_store_that_lost_its_whole_vectors_is_refused(tmp_path: Path) -> None:
    core = FaissCore(index_factory="Binary")
    core.add(some_vectors(), list("一二三四五六"))
    core.save(tmp_path)
    path = next(tmp_path.glob("vectors-*"))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-1])
    with pytest.raises(StoreCorruptError, match="bytes instead of"):
        FaissCore.load(tmp_path)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="checksum"):
        FaissCore.load(tmp_path, verify=True)
    path.unlink()
    with pytest.raises(StoreCorruptError, match=r"vectors-000001\.npy is missing"):
        FaissCore.load(tmp_path)


@pytest.mark.parametrize("part", ["_write_codes", "_write_whole"])
def test_a_full_disk_leaves_the_store_before(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = FaissCore(index_factory="Binary")
    core.add(some_vectors(), list("一二三四五六"))
    core.save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(_: RescoredIndex, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RescoredIndex, part, full)
    core.add(some_vectors(1, seed=5), ["新"])
    with pytest.raises(OSError, match="No space left"):
        core.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(FaissCore.load(tmp_path, verify=True)) == 6


# -- as it is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", KINDS)
def test_langchain_filters_diversity_updates_and_merges(factory: str, tmp_path: Path) -> None:
    documents = [
        Document(f"第{row}条：{chr(0x4E00 + 37 * row)}{chr(0x5E00 + row)}", metadata={"页": row}, id=str(row))
        for row in range(120)
    ]
    store = FAISS.from_documents(documents, CharacterArrays(), index_factory=factory)
    flat = FAISS.from_documents(documents, CharacterArrays())
    text = documents[70].page_content
    assert store.similarity_search_with_score(text, k=1)[0][0].id == "70"
    assert store.similarity_search_with_score(text, k=1)[0][1] == pytest.approx(1, abs=1e-5)
    for options in ({"filter": {"页": 33}}, {"filter": {"页": {"$ne": 70}}}, {"filter": {"页": {"$lt": 30}}}):
        found = store.similarity_search_with_score(text, k=3, **options)
        expected = flat.similarity_search_with_score(text, k=3, **options)
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    diverse = store.max_marginal_relevance_search(text, k=4, fetch_k=20)
    assert len({document.id for document in diverse}) == 4
    store.add_documents([Document("完全不同", metadata={"页": 999}, id="70")])
    assert store.similarity_search("完全不同", k=1)[0].metadata == {"页": 999}
    store.delete(["71"])
    other = FAISS.from_texts(["另一家"], CharacterArrays(), ids=["另"])
    merge_stores(store.core, other.core)
    assert store.similarity_search("另一家", k=1)[0].id == "另"
    store.save_local(str(tmp_path / "库"))
    again = FAISS.load_local(str(tmp_path / "库"), CharacterArrays())
    assert len(again) == 120
    assert again.similarity_search("完全不同", k=1)[0].id == "70"
    merge_stores(other.core, again.core, on_conflict="skip")  # and into a Flat store
    assert len(other) == 120


def test_llama_index_takes_the_same_names() -> None:
    store = FaissVectorStore(index_factory="Binary", search_effort=8)
    store.add(
        [TextNode(id_=str(row), text=f"文{row}", embedding=vector.tolist()) for row, vector in enumerate(vectors_of())]
    )
    assert store._core.search(vectors_of()[33:34], 1)[0][0].id == "33"
    assert math.isclose(store._core.search(vectors_of()[33:34], 1)[0][0].score, 1, abs_tol=1e-5)


@pytest.mark.parametrize("factory", KINDS)
def test_a_gpu_is_refused_when_the_store_is_made(factory: str) -> None:
    for dimension in (None, 8):
        with pytest.raises(ValueError, match=rf"'cuda'.*'{factory}'. Type device='cpu' or index_factory='Flat'"):
            FaissCore(dimension, index_factory=factory, device="cuda")


def test_other_spellings_are_answered_with_the_names_that_are_known() -> None:
    for factory in ("binary", "int8", "INT8", "Binary,Flat"):
        with pytest.raises(ValueError, match=rf"index_factory='{factory}'.*Type for instance.*'Int8', 'Binary'"):
            FaissCore(8, index_factory=factory)
    assert isinstance(new_index(IndexKind(8, "cosine", "SQ8")), VectorIndex)
    assert isinstance(new_index(IndexKind(8, "cosine", "Int8")), RescoredIndex)
