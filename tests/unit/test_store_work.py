"""How much work the store does: calls, statements and bytes are counted, never seconds."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from character_embeddings import CharacterArrays
from llama_index.core.schema import TextNode

from luotuo_integrations import llama_stores
from luotuo_integrations.llama_stores import FaissVectorStore
from luotuo_integrations.store.core import FaissCore
from luotuo_integrations.store.vector_math import unit_rows
from luotuo_integrations.vectorstores import FAISS

pytest.importorskip("faiss")

COUNT, DIMENSION = 2_000, 1_024
TEXTS = [f"文{row}" for row in range(COUNT)]
METADATAS = [{"页": row} for row in range(COUNT)]


def some_vectors(count: int = COUNT) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, DIMENSION), dtype=np.float32)


def filled(count: int = COUNT) -> FaissCore:
    core = FaissCore()
    core.add(some_vectors(count), TEXTS[:count], METADATAS[:count], TEXTS[:count])
    return core


def statements(core: FaissCore) -> list[str]:
    """A list that fills with the SQL that the store runs from now on."""
    run: list[str] = []
    core._table._connection.set_trace_callback(run.append)
    return run


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """A list that fills with the arguments of each call."""
    calls: list[tuple[Any, ...]] = []
    method = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def most_bytes(work: Callable[[], Any]) -> int:
    """Most memory that Python and numpy held for some work at any moment; faiss' own is not seen."""
    work()  # what is loaded or made only once
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- searching --------------------------------------------------------------------------------------------------------


def test_many_queries_are_one_search_and_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled()
    searches, run = counted(monkeypatch, core._index, "_find"), statements(core)
    by_map = counted(monkeypatch, core._index._index, "search")
    assert [hits[0].id for hits in core.search(some_vectors()[:64], 10)] == TEXTS[:64]
    assert len(searches) == 1
    assert by_map == []  # it would wake all threads to number the results
    assert len(run) == 1


def test_many_questions_are_embedded_together_and_searched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = CharacterArrays()
    store = FAISS.from_texts(TEXTS[:50], embedding)
    searches = counted(monkeypatch, store.core._index, "_find")
    encoded = counted(monkeypatch, embedding, "encode")
    assert len(store.similarity_search_batch(TEXTS[:40], k=3)) == 40
    assert len(searches) == len(encoded) == 1


@pytest.mark.parametrize("options", [{}, {"where": {"页": {"$lt": 20}}}, {"where": {"页": {"$gte": 20}}}])
def test_a_search_does_not_copy_the_vectors_of_the_store(options: dict[str, Any]) -> None:
    core, query = filled(), some_vectors()[30:31]
    assert most_bytes(lambda: core.search(query, 10, **options)) < some_vectors().nbytes / 20


def test_few_rows_are_compared_without_a_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled()
    searches = counted(monkeypatch, core._index, "_find")
    found = core.search(some_vectors()[:3], 2, where={"页": {"$in": [7, 1, 99]}})
    assert {hit.id for hits in found for hit in hits} <= {"文1", "文7", "文99"}
    assert [hits[0].id for hits in found][1] == "文1"
    assert searches == []


def test_rows_for_many_queries_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled()
    searches = counted(monkeypatch, core._index, "_find")
    read = counted(monkeypatch, core._index._index, "reconstruct_batch")
    found = core.search(some_vectors()[:64], 5, where={"页": {"$lt": 1500}})
    assert [hits[0].id for hits in found] == TEXTS[:64]
    assert searches == []
    assert sum(len(rows) for (rows,) in read) == 1500


def test_what_was_removed_is_told_to_faiss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled()
    core.delete(TEXTS[:10])
    selectors = counted(monkeypatch, core._index._faiss, "IDSelectorBatch")
    for _ in range(3):
        assert core.search(some_vectors()[:1], 1)[0][0].id not in TEXTS[:10]
    assert len(selectors) == 1
    core.delete(["文10"])
    assert core.search(some_vectors()[10:11], 1)[0][0].id != "文10"
    assert len(selectors) == 2


def test_a_filter_is_evaluated_once_until_something_changes() -> None:
    core = filled()
    run = statements(core)
    for _ in range(3):
        core.search(some_vectors()[:1], 1, where={"页": {"$gte": 100}})
    assert sum("json_extract" in sql for sql in run) == 1


def test_the_number_of_documents_is_known_without_counting() -> None:
    core = filled()
    run = statements(core)
    assert len(core) == COUNT
    assert run == []


# -- adding -----------------------------------------------------------------------------------------------------------


def test_vectors_of_length_1_reach_faiss_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_rows(some_vectors())
    core = FaissCore(DIMENSION)
    added = counted(monkeypatch, core._index._index, "add_with_ids")
    core.add(vectors, TEXTS)
    assert len(added) == 1
    assert added[0][0] is vectors


def test_other_vectors_are_copied_once_while_they_are_scaled() -> None:
    vectors, units = some_vectors(), unit_rows(some_vectors())
    assert most_bytes(lambda: FaissCore().add(units, TEXTS)) < 0.5 * vectors.nbytes
    assert 1.0 * vectors.nbytes < most_bytes(lambda: FaissCore().add(vectors, TEXTS)) < 1.5 * vectors.nbytes


def test_documents_are_inserted_in_one_statement() -> None:
    core = filled(10)
    run = statements(core)
    core.add(some_vectors(1000), TEXTS[:1000])
    assert len({sql.split("(")[0] for sql in run if sql.startswith("INSERT")}) == 1
    assert sum(not sql.startswith("INSERT") for sql in run) <= 4  # begin, look for ids, delete those replaced, commit


def test_nodes_are_written_out_without_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [TextNode(id_=text, text=text, embedding=[1.0, 0.0]) for text in TEXTS[:5]]
    written = counted(monkeypatch, llama_stores, "node_to_metadata_dict")
    store = FaissVectorStore()
    store.add(nodes)
    assert [node.embedding for (node,) in written] == [None] * 5
    assert nodes[0].embedding == [1.0, 0.0]
    assert store.get_nodes(["文3"])[0].text == "文3"


# -- files ------------------------------------------------------------------------------------------------------------


def test_an_opened_store_reads_documents_in_place_until_the_first_change(tmp_path: Path) -> None:
    filled().save(tmp_path)
    opened = FaissCore.load(tmp_path)
    assert opened.search(some_vectors()[:1], 1, where={"页": {"$lt": 5}})[0][0].id == "文0"
    opened.save(tmp_path / "另存")
    assert opened._table._file is not None
    opened.delete(["文0"])
    assert opened._table._file is None
    assert len(opened) == COUNT - 1
    assert FaissCore.load(tmp_path / "另存", verify=True).find({"页": 0})[0].id == "文0"
    assert FaissCore.load(tmp_path, memory_map=False)._table._file is None


def test_rows_without_a_gap_are_not_read_one_by_one(tmp_path: Path) -> None:
    core = filled()
    run = statements(core)
    assert core._table.rows().tolist() == list(range(COUNT))
    assert not any(sql.startswith("SELECT row") for sql in run)
    core.delete(["文0", "文5"])
    assert core._table.rows().tolist() == [*range(1, 5), *range(6, COUNT)]
    assert any(sql.startswith("SELECT row") for sql in run)
