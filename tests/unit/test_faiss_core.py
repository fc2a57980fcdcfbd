"""FaissCore: adding, replacing, deleting, failing half-way, merging, many threads at once, files."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_store import TEXTS, filled, ids_of, is_in_step, some_vectors

from luotuo_integrations.errors import StoreCorruptError, StoreMismatchError
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.index import VectorIndex
from luotuo_integrations.store.merge import merge_stores

# -- adding and replacing ---------------------------------------------------------------------------------------------


def test_the_same_id_replaces_the_document_and_its_vector() -> None:
    core = filled()
    assert core.add(some_vectors(2, seed=5), ["新年假", "新项"], [{"版": 2}, {}], ["一", "七"]) == ["一", "七"]
    assert len(core) == 7
    assert core.get(["一"])[0] == ("一", "新年假", {"版": 2})
    assert ids_of(core, some_vectors(2, seed=5)[0], 1) == ["一"]
    assert is_in_step(core)


def test_of_an_id_given_twice_in_one_call_the_last_counts() -> None:
    core = FaissCore()
    vectors = some_vectors(3)
    assert core.add(vectors, ["旧", "另", "新"], None, ["甲", "乙", "甲"]) == ["甲", "乙", "甲"]
    assert [document.content for document in core.find()] == ["另", "新"]
    assert ids_of(core, vectors[2], 1) == ["甲"]
    assert np.allclose(core.vectors(["甲"])[0], vectors[2] / np.linalg.norm(vectors[2]))


def test_ids_stay_apart_after_deletes() -> None:
    core = filled()
    core.delete(["二", "六"])
    new = core.add(some_vectors(3, seed=2), ["甲", "乙", "丙"])
    assert len(core) == 7
    assert ids_of(core, some_vectors(3, seed=2)[1], 1) == [new[1]]
    assert [document.content for document in core.get(["一", *new])] == ["年假十五天", "甲", "乙", "丙"]
    assert is_in_step(core)


def test_inputs_are_not_changed() -> None:
    vectors, metadatas, ids = some_vectors(2), [{"页": 1}, {"页": 2}], ["甲", "乙"]
    before = vectors.copy()
    core = FaissCore()
    core.add(vectors, ["一", "二"], metadatas, ids)
    query = vectors[:1].copy()
    core.search(query)[0][0].metadata["页"] = 99
    assert (vectors == before).all()
    assert (query == before[:1]).all()
    assert metadatas == [{"页": 1}, {"页": 2}]
    assert core.get(["甲"])[0].metadata == {"页": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((some_vectors(2, dimension=9), ["甲", "乙"]), ValueError, r"shape \(2, 9\); it must be \(N, 8\)"),
        ((some_vectors(3), ["甲", "乙"]), ValueError, "3 vectors were given for 2 texts"),
        (([[float("nan")] * 8], ["甲"]), ValueError, "NaN"),
        ((some_vectors(1), ["甲"], [{"日": object()}]), TypeError, r"metadatas\[0\]\['日'\]"),
        ((some_vectors(2), ["甲", "乙"], [{}, {"数": float("inf")}]), ValueError, "inf"),
        ((some_vectors(1), ["甲"], None, [3]), TypeError, r"ids\[0\]"),
        ((some_vectors(1), "甲"), TypeError, "give a list"),
    ],
)
def test_bad_documents_change_nothing(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    core = filled()
    with pytest.raises(error, match=words):
        core.add(*arguments)
    assert len(core) == 6
    assert is_in_step(core)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF2,Flat"])
@pytest.mark.parametrize("moment", ["before", "half-way", "commit"])
def test_a_failure_while_adding_leaves_everything_as_it_was(
    factory: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = filled(index_factory=factory)
    before = core.export()
    add = VectorIndex.add

    def failing(self: VectorIndex, vectors: Any, rows: Any) -> None:
        if moment == "half-way":
            add(self, vectors[:1], rows[:1])
        if moment == "commit":
            add(self, vectors, rows)
        raise MemoryError

    monkeypatch.setattr(VectorIndex, "add", failing)
    with pytest.raises(MemoryError):
        core.add(some_vectors(3, seed=8), ["甲", "乙", "丙"], None, ["一", "七", "八"])
    monkeypatch.undo()
    after = core.export()
    assert after[0] == before[0]
    assert np.array_equal(after[1], before[1])
    assert is_in_step(core)
    core.add(some_vectors(1, seed=8), ["甲"], None, ["一"])
    assert core.get(["一"])[0].content == "甲"
    assert is_in_step(core)


def test_a_failed_first_add_does_not_fix_the_dimension() -> None:
    core = FaissCore(index_factory="IVF4,Flat")
    with pytest.raises(ValueError, match="at least 4 vectors"):
        core.add(some_vectors(2), ["甲", "乙"])
    assert core.dimension is None
    core.add(some_vectors(6, dimension=5), TEXTS)
    assert core.dimension == 5


def test_training_beforehand_lets_small_batches_in() -> None:
    core = FaissCore(8, index_factory="IVF4,Flat")
    with pytest.raises(ValueError, match="at least 4"):
        core.check_room(2)
    core.train(some_vectors(50))
    core.check_room(2)
    core.add(some_vectors(2), ["甲", "乙"], None, ["一", "二"])
    assert ids_of(core, some_vectors(2)[0]) == ["一", "二"] or ids_of(core, some_vectors(2)[0]) == ["一", "二"][::-1]


def test_wrong_arguments_of_the_store() -> None:
    with pytest.raises(ValueError, match=r"metric='cos'.*'cosine', 'inner_product', 'euclidean'"):
        FaissCore(metric="cos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Type for instance"):
        FaissCore(8, index_factory="Flaat")
    with pytest.raises(ValueError, match="search_effort=0"):
        FaissCore(search_effort=0)
    with pytest.raises(ValueError, match="device='gpu'"):
        FaissCore(device="gpu")


# -- deleting and looking up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF2,Flat", "Int8", "Binary"])
def test_delete_and_rebuild(factory: str) -> None:
    core = filled(index_factory=factory)
    assert core.delete(["一", "没有", "一"]) == 1
    assert core.delete(["一"]) == 0
    assert core.delete_where({"部门": "财务"}) == 2
    assert core.delete_where(lambda metadata: metadata["页"] == 1) == 1
    assert {document.id for document in core.find()} == {"四", "五"}
    assert is_in_step(core)
    core.rebuild()
    assert is_in_step(core)
    with pytest.raises(ValueError, match=r"clear\(\)"):
        core.delete_where({})
    with pytest.raises(TypeError, match="give a list"):
        core.delete("四")
    core.clear()
    assert len(core) == 0
    core.add(some_vectors(), TEXTS)
    assert is_in_step(core)


def test_look_up_by_id_and_by_filter() -> None:
    core = filled()
    assert [document.id for document in core.get(["六", "没有", "二"])] == ["六", "二"]
    assert [document.id for document in core.find({"部门": "财务"})] == ["三", "六"]
    assert [document.id for document in core.find(lambda metadata: metadata["页"] > 3)] == ["五", "六"]
    assert len(core.find()) == 6
    units = some_vectors() / np.linalg.norm(some_vectors(), axis=1, keepdims=True)
    assert np.allclose(core.vectors(["六", "二"]), units[[5, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="1 ids are not in the store, for instance '没有'"):
        core.vectors(["一", "没有"])


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merging_leaves_the_source_usable_and_keeps_vectors() -> None:
    target, source = filled(), FaissCore()
    source.add(some_vectors(2, seed=4), ["甲", "乙"], [{"源": 1}, {}], ["七", "八"])
    assert merge_stores(target, source) == ["七", "八"]
    assert len(target) == 8
    assert len(source) == 2
    assert is_in_step(target)
    assert is_in_step(source)
    assert np.allclose(target.vectors(["七", "八"]), source.vectors(["七", "八"]), atol=1e-6)
    assert target.get(["七"]) == source.get(["七"])


@pytest.mark.parametrize(
    ("policy", "count", "content"), [("replace", 7, "新"), ("skip", 7, "年假十五天"), ("new_id", 8, "年假十五天")]
)
def test_merging_the_same_ids(policy: Any, count: int, content: str) -> None:
    target, source = filled(), FaissCore()
    source.add(some_vectors(2, seed=4), ["新", "乙"], None, ["一", "八"])
    assert "八" in merge_stores(target, source, on_conflict=policy)
    assert len(target) == count
    assert target.get(["一"])[0].content == content
    assert is_in_step(target)


def test_merging_what_does_not_fit_is_refused() -> None:
    target, source = filled(), FaissCore()
    source.add(some_vectors(1), ["新"], None, ["一"])
    with pytest.raises(ValueError, match=r"1 ids are in both stores, for instance '一'.*on_conflict"):
        merge_stores(target, source)
    with pytest.raises(ValueError, match="on_conflict='merge'"):
        merge_stores(target, source, on_conflict="merge")  # type: ignore[arg-type]
    with pytest.raises(StoreMismatchError, match="metric"):
        merge_stores(target, filled(metric="euclidean"))
    with pytest.raises(StoreMismatchError, match="8 numbers"):
        merge_stores(target, FaissCore(5, model="别的"))
    with pytest.raises(StoreMismatchError, match=r"'甲'.*'乙'"):
        merge_stores(filled(fingerprint="1", model="甲"), filled(fingerprint="2", model="乙"))
    assert len(target) == 6


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "Binary"])
def test_adding_deleting_and_searching_at_once(factory: str, tmp_path: Path) -> None:
    core = FaissCore(index_factory=factory)
    vectors = some_vectors(400)
    core.add(vectors[:100], ["文"] * 100, [{"批": 0}] * 100, [f"d{i}" for i in range(100)])
    done = threading.Event()

    def write(part: int) -> None:
        for start in range(100 + part, 400, 3):
            core.add(vectors[start : start + 1], [f"文{start}"], [{"批": part}], [f"d{start}"])
            core.add(vectors[start : start + 1], [f"文{start}"], [{"批": part}], [f"d{start}"])
            if start % 2:
                core.delete([f"d{start}"])

    def read(seed: int) -> int:
        asked = 0
        while not done.is_set() or asked == 0:
            options: list[dict[str, Any]] = [
                {},
                {"where": {"批": 1}},
                {"where": lambda m: m["批"] == 2},
                {"ids": ["d5"]},
            ]
            for hits in core.search(vectors[seed : seed + 3], 20, **options[asked % 4]):
                # Everything found fits together, and the first 100 documents are always there.
                assert len({hit.id for hit in hits}) == len(hits)
                assert asked % 4 or len(hits) == 20
            assert core.get([f"d{seed}"])[0].content == "文"
            if seed == 0:
                core.save(tmp_path / "库")
            asked += 1
        return asked

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, seed) for seed in range(4)]
        for writer in [pool.submit(write, part) for part in range(3)]:
            writer.result()
        done.set()
        assert all(reader.result() > 0 for reader in readers)
    assert {document.id for document in core.find()} == {f"d{i}" for i in range(400) if i < 100 or i % 2 == 0}
    assert is_in_step(core)
    assert is_in_step(FaissCore.load(tmp_path / "库", verify=True))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF2,Flat", "SQ8", "Int8", "Binary"])
def test_a_store_comes_back_as_it_was(factory: str, memory_map: bool, tmp_path: Path) -> None:
    folder = tmp_path / "知识库 二〇二六"
    core = filled(metric="euclidean", index_factory=factory, search_effort=5, fingerprint="abc", model="骆驼")
    core.delete(["二"])
    core.save(folder)
    opened = FaissCore.load(folder, verify=True, memory_map=memory_map)
    assert repr(opened) == repr(core)
    assert opened.fingerprint == "abc"
    assert opened.export()[0] == core.export()[0]
    assert np.array_equal(opened.export()[1], core.export()[1])
    assert opened.search(some_vectors(3, seed=1), 5) == core.search(some_vectors(3, seed=1), 5)
    new = opened.add(some_vectors(2, seed=6), ["甲", "乙"])
    opened.delete([new[0], "一"])
    assert is_in_step(opened)
    opened.save(folder)
    assert FaissCore.load(folder).find() == opened.find()


def test_empty_stores_come_back(tmp_path: Path) -> None:
    for number, core in enumerate([FaissCore(), FaissCore(8, metric="euclidean"), filled()]):
        core.clear()
        core.save(tmp_path / str(number))
        opened = FaissCore.load(tmp_path / str(number))
        assert (len(opened), opened.dimension, opened.metric) == (0, core.dimension, core.metric)
        opened.add(some_vectors(), TEXTS)
        assert is_in_step(opened)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    core = filled()
    core.save(tmp_path)
    documents = next(tmp_path.glob("documents-*")).read_bytes()
    core.delete(["一"])
    core.save(tmp_path)
    next(tmp_path.glob("documents-*")).write_bytes(documents)  # same size, older content
    with pytest.raises(StoreCorruptError, match="do not belong together"):
        FaissCore.load(tmp_path)
    with pytest.raises(StoreCorruptError, match="checksum"):
        FaissCore.load(tmp_path, verify=True)
