"""A store of six short documents, for the tests of the store's parts."""

from typing import Any

import numpy as np
import numpy.typing as npt

from luotuo_integrations.store.core import FaissCore

TEXTS = ["年假十五天", "病假要证明", "出差住宿五百元", "加班可调休", "试用期三个月", "报销要发票"]
DEPARTMENTS = ["人事", "人事", "财务", "人事", "人事", "财务"]
IDS = ["一", "二", "三", "四", "五", "六"]


def some_vectors(count: int = 6, seed: int = 0, dimension: int = 8) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def filled(**options: Any) -> FaissCore:
    core = FaissCore(**options)
    metadatas = [{"部门": department, "页": page} for page, department in enumerate(DEPARTMENTS)]
    assert core.add(some_vectors(), TEXTS, metadatas, IDS) == IDS
    return core


def ids_of(core: FaissCore, query: Any, k: int = 10, **options: Any) -> list[str]:
    return [hit.id for hit in core.search(np.asarray(query)[None], k, **options)[0]]


def is_in_step(core: FaissCore) -> bool:
    """Vectors and documents agree: every document has its vector and can be found by it, and nothing else is there."""
    documents, vectors = core.export()
    everything = set(ids_of(core, some_vectors(1)[0], 10_000))
    return everything == {document.id for document in documents} and len(vectors) == len(documents) == len(core)
