"""VectorIndex: every kind of faiss index against brute force, with removals, filters, files and training."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.index_kinds import IndexKind, innermost
from luotuo_integrations.store.vector_math import METRICS, Metric

faiss = pytest.importorskip("faiss")

EXACT = ["Flat", "HNSW16", "IVF4,Flat"]
APPROXIMATE = ["SQ8", "PQ4x4", "PCA8,PQ4x4", "IVF4,PQ4x4", "IVF4,SQ8", "PCA8,IVF4,Flat", "PCA8,Flat", "HNSW16_SQ8"]
DIMENSION = 16


def some_vectors(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def brute_force(
    queries: Any, vectors: Any, rows: Any, k: int, metric: Metric
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores and rows by comparing everything with everything in float64."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "euclidean":
        scores = np.linalg.norm(queries[:, None] - vectors[None], axis=2)
        order = np.argsort(scores, axis=1)[:, :k]
    else:
        if metric == "cosine":
            queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = queries @ vectors.T
        order = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.asarray(rows)[order]


def filled(factory: str, metric: Metric = "cosine", count: int = 300, **options: Any) -> VectorIndex:
    index = VectorIndex(IndexKind(DIMENSION, metric, factory), **options)
    index.add(some_vectors(count), np.arange(10, 10 + count))
    return index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", EXACT)
def test_search_equals_brute_force(factory: str, metric: Metric) -> None:
    index = filled(factory, metric, search_effort=400)  # every list, the whole graph
    scores, rows = index.search(some_vectors(30, seed=1), 7)
    expected, expected_rows = brute_force(some_vectors(30, seed=1), some_vectors(300), np.arange(10, 310), 7, metric)
    assert (rows == expected_rows).mean() > 0.99
    assert np.allclose(scores, expected, atol=2e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", EXACT)
def test_a_filtered_search_misses_nothing_whatever_the_effort(factory: str, metric: Metric) -> None:
    index = filled(factory, metric, search_effort=1)
    allowed = np.arange(10, 310, 37)
    _, rows = index.search(some_vectors(5, seed=1), 100, allowed)
    _, expected = brute_force(some_vectors(5, seed=1), some_vectors(300)[allowed - 10], allowed, 100, metric)
    assert rows.tolist() == expected.tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["PQ4x4", "OPQ4,PQ4x4"])
def test_a_pq_index_finds_the_nearest_of_the_vectors_it_kept_with_and_without_a_filter(
    factory: str, metric: Metric
) -> None:
    index = filled(factory, metric)
    kept = index.vectors(np.arange(10, 310))
    assert not np.allclose(kept, some_vectors(300), atol=0.05)  # approximate indeed
    queries = some_vectors(20, seed=1)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    # A vector of length 1 is no longer quite so long as it was kept.
    compared: Metric = "inner_product" if metric == "cosine" else metric
    for allowed in (None, np.arange(10, 310, 7)):
        rows = np.arange(10, 310) if allowed is None else allowed
        scores, found = index.search(queries, 9, allowed)
        expected, _ = brute_force(queries, kept[rows - 10], rows, 9, compared)
        assert np.allclose(scores, np.clip(expected, -1, 1) if metric == "cosine" else expected, atol=1e-4)
        assert np.isin(found, rows).all()


@pytest.mark.parametrize("factory", [*EXACT, *APPROXIMATE])
def test_removed_rows_are_gone_and_the_others_keep_their_vectors(factory: str) -> None:
    index = filled(factory, "euclidean")
    before = index.vectors(np.arange(11, 310))
    for gone in (np.array([10]), np.arange(20, 200), np.array([10, 20, 9999])):
        index.discard(gone)
    held = np.array([*range(11, 20), *range(200, 310)])
    assert len(index) == len(held)
    assert index.rows.tolist() == held.tolist()
    assert (index.vectors(held) == before[held - 11]).all()
    _, rows = index.search(some_vectors(8, seed=1), 500)
    assert rows.shape == (8, len(held))
    assert all(sorted(found) == held.tolist() for found in rows.tolist())
    # A row's own vector must find that row: removal has not shifted labels.
    nearest = index.search(index.vectors(held), 1)[1][:, 0]
    assert (nearest == held).mean() > 0.95


@pytest.mark.parametrize("factory", [*EXACT, *APPROXIMATE])
def test_rebuild_and_files_keep_rows_and_vectors(factory: str, tmp_path: Path) -> None:
    index = filled(factory, "inner_product")
    index.discard(np.arange(10, 310, 2))
    held = index.rows
    path = tmp_path / "索引 一.faiss"
    index.write(path)
    for memory_map in (True, False):
        opened = VectorIndex(IndexKind(DIMENSION, "inner_product", factory))
        opened.read(path, held, memory_map=memory_map)
        assert opened.rows.tolist() == held.tolist()
        assert np.allclose(opened.vectors(held), index.vectors(held))
        opened.add(some_vectors(2, seed=4), np.array([1000, 1001]))  # faiss would abort if this were still mapped
        opened.discard(held[:100])
        assert opened.rows.tolist() == [*held[100:].tolist(), 1000, 1001]
    vectors = index.vectors(held)
    index.rebuild()
    assert index.rows.tolist() == held.tolist()
    # A compressed index is trained anew on vectors that were approximate already.
    assert np.abs(index.vectors(held) - vectors).mean() <= (0.3 if factory in APPROXIMATE else 0)


def test_many_single_removals_do_not_move_the_memory_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled("Flat", count=1000)
    compactions = []
    remove = index._index.remove_ids
    monkeypatch.setattr(index._index, "remove_ids", lambda selector: compactions.append(1) or remove(selector))
    for row in range(10, 910):
        index.discard(np.array([row]))
    assert index.rows.tolist() == list(range(910, 1010))
    assert 0 < len(compactions) < 40


def test_an_index_that_visits_too_little_looks_further_until_it_has_k() -> None:
    index = VectorIndex(IndexKind(DIMENSION, "cosine", "IVF16,Flat"), search_effort=1)
    index.add(some_vectors(64), np.arange(64))
    assert (index.search(some_vectors(4, seed=1), 60)[1] >= 0).all()


def test_training_says_what_it_needs_and_leaves_no_trace() -> None:
    index = VectorIndex(IndexKind(DIMENSION, "cosine", "IVF32,Flat"))
    with pytest.raises(ValueError, match=r"at least 32 vectors and was given 5.*index_factory='Flat'"):
        index.add(some_vectors(5), np.arange(5))
    assert len(index) == 0
    index.train(some_vectors(64))
    index.add(some_vectors(5), np.arange(5))
    assert len(index) == 5
    with pytest.raises(ValueError, match="at least 256 vectors"):
        VectorIndex(IndexKind(DIMENSION, "cosine", "IVF4,PQ4")).add(some_vectors(100), np.arange(100))


@pytest.mark.parametrize("factory", ["PQ4x4fs", "Flat,RFlat", "HNSW16_PQ4", "IDMap2,Flat", "IVF4,PQ4x4fs"])
def test_kinds_that_cannot_select_or_remove_rows_are_refused(factory: str) -> None:
    with pytest.raises(ValueError, match=r"cannot use.*'IVF256,Flat'"):
        VectorIndex(IndexKind(DIMENSION, "cosine", factory))


def test_lsh_is_refused_as_it_knows_distances_of_bits_only() -> None:
    with pytest.raises(ValueError, match="makes a IndexLSH, which a store cannot use"):
        VectorIndex(IndexKind(DIMENSION, "euclidean", "LSH"))


@pytest.mark.parametrize("factory", ["PQ4x4", "OPQ4,PQ4x4", "IVF4,PQ4x4"])
def test_codes_are_not_put_in_an_order_that_no_search_uses(factory: str) -> None:
    index = IndexKind(DIMENSION, "cosine", factory).build()
    assert innermost(index).do_polysemous_training is False


def test_a_factory_string_that_faiss_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"index_factory='Falt'.*Type for instance 'Flat'"):
        VectorIndex(IndexKind(DIMENSION, "cosine", "Falt"))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    index = filled("Flat")
    path = tmp_path / "a.faiss"
    index.write(path)
    for broken, words in ((path.read_bytes()[:2000], "damaged"), (b"", "damaged"), (b"x" * 500, "damaged")):
        path.write_bytes(broken)
        for memory_map in (True, False):
            with pytest.raises(StoreCorruptError, match=words):
                VectorIndex(IndexKind(DIMENSION, "cosine", "Flat")).read(path, index.rows, memory_map=memory_map)
    path.unlink()
    index.write(path)
    for kind in (IndexKind(8, "cosine", "Flat"), IndexKind(16, "euclidean", "Flat"), IndexKind(16, "cosine", "HNSW16")):
        with pytest.raises(StoreCorruptError, match="kind of index"):
            VectorIndex(kind).read(path, index.rows, memory_map=False)
    with pytest.raises(StoreCorruptError, match="lacks the vectors of 1 documents"):
        VectorIndex(IndexKind(16, "cosine", "Flat")).read(path, np.array([10, 9999]), memory_map=False)


def test_a_full_disk_while_writing_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: Any) -> Any:
        return FullDisk()

    class FullDisk:
        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    index = filled("Flat")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        index.write(tmp_path / "a.faiss")


# -- GPU: only the road is tested here, with a stand-in for faiss' GPU functions --------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    class Copy:
        def __init__(self, index: Any) -> None:
            self._index = faiss.clone_index(index)

        def search(self, queries: Any, k: int) -> Any:
            calls.append("search")
            return self._index.search(queries, k)

    def copied(_resources: object, _number: int, index: Any) -> Copy:
        calls.append("copy")
        return Copy(index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copied, raising=False)
    return calls


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_the_gpu_answers_searches_and_files_stay_those_of_the_cpu(factory: str, gpu: list[str], tmp_path: Path) -> None:
    index = filled(factory, "euclidean", device="cuda")
    queries = some_vectors(6, seed=1)
    expected = filled(factory, "euclidean", search_effort=1).search(queries, 1)[1]
    assert (index.search(queries, 1)[1] == expected).mean() > 0.5
    index.search(queries, 3)
    assert gpu == ["copy", "search", "search"]
    index.search(queries, 3, np.arange(10, 50))  # filtered: in main memory
    assert gpu == ["copy", "search", "search"]
    index.add(some_vectors(1, seed=9), np.array([500]))
    assert index.search(some_vectors(1, seed=9), 1)[1].tolist() == [[500]]
    assert gpu.count("copy") == 2  # the copy was out of date
    index.write(tmp_path / "a.faiss")
    opened = VectorIndex(IndexKind(DIMENSION, "euclidean", factory))
    opened.read(tmp_path / "a.faiss", index.rows, memory_map=False)
    assert len(opened) == 301


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, gpu: list[str]) -> None:
    kind = IndexKind(DIMENSION, "cosine", "Flat")
    with pytest.raises(ValueError, match="sees 1 GPUs"):
        VectorIndex(kind, device="cuda:1")
    with pytest.raises(ValueError, match="'cpu', 'cuda'"):
        VectorIndex(kind, device="gpu")
    for factory in ("HNSW16", "PQ4x4"):
        with pytest.raises(ValueError, match="Flat and IVF"):
            VectorIndex(IndexKind(DIMENSION, "cosine", factory), device="cuda")
    monkeypatch.delattr(faiss, "StandardGpuResources")
    with pytest.raises(ValueError, match=r"luotuo-integrations\[faiss-gpu\]"):
        VectorIndex(kind, device="cuda")
