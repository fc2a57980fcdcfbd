"""The kinds of faiss index that a store can use: each can select, remove and give back single rows."""

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from luotuo_integrations._optional import require
from luotuo_integrations.store.comparing import faiss_metric
from luotuo_integrations.store.vector_math import Metric

Family = Literal["flat", "pq", "hnsw", "ivf"]

_FAMILIES: dict[str, Family] = {
    "IndexFlat": "flat",
    "IndexFlatIP": "flat",
    "IndexFlatL2": "flat",
    "IndexScalarQuantizer": "flat",
    "IndexPQ": "pq",
    "IndexHNSWFlat": "hnsw",
    "IndexHNSWSQ": "hnsw",
    "IndexIVFFlat": "ivf",
    "IndexIVFPQ": "ivf",
    "IndexIVFScalarQuantizer": "ivf",
}
_EXAMPLES = (
    "'Flat' (exact), 'Int8', 'Binary', 'SQ8', 'PQ32', 'HNSW32', 'IVF256,Flat', 'IVF256,PQ16', 'PCA64,IVF256,Flat'"
)


class IndexKind(NamedTuple):
    """What to build.

    Args:
        dimension: Length D of a vector.
        metric: Metric of the store.
        factory: faiss factory string.
    """

    dimension: int
    metric: Metric
    factory: str

    def build(self) -> Any:
        """Make an empty faiss index that is keyed by row numbers.

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If faiss does not know the string, or the index could not select or remove rows.
        """
        faiss = require("faiss", extra="faiss")
        try:
            index = faiss.index_factory(self.dimension, self.factory, faiss_metric(self.metric))
        except RuntimeError as error:  # faiss raises nothing else
            msg = f"index_factory={self.factory!r} cannot be built for dimension {self.dimension}: {last_line(error)}. "
            raise ValueError(msg + f"Type for instance {_EXAMPLES}") from error
        if family_of(index) is None or isinstance(index, faiss.IndexIDMap):
            msg = (
                f"index_factory={self.factory!r} makes a {type(index).__name__}, which a store cannot use: single rows "
                f"must be selected, removed and read back. Type for instance {_EXAMPLES}"
            )
            raise ValueError(msg)
        if hasattr(innermost(index), "do_polysemous_training"):
            # Seconds for each part of a PQ code, to order its values for a kind of search that a store never makes.
            innermost(index).do_polysemous_training = False
        if family_of(index) != "ivf":
            return faiss.IndexIDMap2(index)
        # An IVF index keeps row numbers itself. Inside an IndexIDMap its rows get mixed up by the first removal,
        # because the map expects the numbers behind a removed row to move up. The table finds single rows.
        faiss.extract_index_ivf(index).set_direct_map_type(faiss.DirectMap.Hashtable)
        return index

    def matches(self, index: Any) -> bool:
        """Tell whether an index that was read from a file is of this kind."""
        expected = self.build()
        return (
            index.d == expected.d
            and index.metric_type == expected.metric_type
            and type(index) is type(expected)
            and family_of(index) == family_of(expected)
        )


def innermost(index: Any) -> Any:
    """The index that holds the vectors, without maps and transforms around it."""
    faiss = require("faiss", extra="faiss")
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        index = faiss.downcast_index(index.index)
    return index


def number_the_rest(index: Any, rows: npt.NDArray[np.int64]) -> None:
    """After an addition that failed: number the vectors that are in the graph, but not in the map around it.

    faiss looks for Ctrl-C while it links an HNSW graph. The vectors are in the graph then, some of them linked, and
    their rows are in no map. As nothing can be taken out of a graph, the caller has to pass over them.

    Args:
        index: A map by ``IndexKind.build``. Interrupted once more, this may be started again.
        rows: Those of the addition.
    """
    faiss, base = require("faiss", extra="faiss"), innermost(index)
    held = faiss.vector_to_array(index.id_map)
    rest = rows[len(rows) - (base.ntotal - len(held)) :]
    if len(rest):
        faiss.copy_array_to_vector(np.concatenate([held, rest]), index.id_map)
    around = index
    while around.ntotal != base.ntotal:  # the map, and what changes vectors on their way into the graph
        around.ntotal = base.ntotal
        around = faiss.downcast_index(around.index)
    index.construct_rev_map()


def family_of(index: Any) -> Family | None:
    """Family of an index, None for one that a store cannot use."""
    return _FAMILIES.get(type(innermost(index)).__name__)


def training_size(index: Any) -> int:
    """How many vectors faiss needs at least to train the index: one for each centroid."""
    inner = innermost(index)
    codebook = int(inner.pq.ksub) if hasattr(inner, "pq") else 1
    return max(int(getattr(inner, "nlist", 1)), codebook)


def last_line(error: BaseException) -> str:
    """The part of a faiss error that says what was wrong, without the C++ function's name."""
    text = str(error).strip().splitlines()[-1]
    return re.sub(r"^Error in .* at \S+:\d+: (?:Error: )?", "", text)
