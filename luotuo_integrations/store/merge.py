"""Merging one store into another."""

from typing import Literal, get_args

from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.store.core import FaissCore

OnConflict = Literal["error", "replace", "skip", "new_id"]


def merge_stores(target: FaissCore, source: FaissCore, *, on_conflict: OnConflict = "error") -> list[str]:
    """Add the documents of one store to another.

    Args:
        target: The store that grows.
        source: A store of the same metric, dimension and model. It stays as it is.
        on_conflict: What to do with a document whose id is in both: ``"error"`` refuses the whole merge,
            ``"replace"`` takes the source's, ``"skip"`` keeps the target's, ``"new_id"`` keeps both.

    Returns:
        Ids under which documents were added to the target.

    Raises:
        StoreMismatchError: If metric, dimension or model differ.
        ValueError: If ids conflict and ``on_conflict`` is ``"error"``.
    """
    if on_conflict not in get_args(OnConflict):
        msg = f"on_conflict={on_conflict!r} is not known; type one of {', '.join(map(repr, get_args(OnConflict)))}"
        raise ValueError(msg)
    if source.metric != target.metric:
        msg = f"A store of metric {source.metric!r} cannot be merged into one of metric {target.metric!r}"
        raise StoreMismatchError(msg)
    target.check_model(source.fingerprint, source.model, source.dimension)
    if not len(target):
        target.fingerprint, target.model = source.fingerprint, source.model
    documents, vectors = source.export()
    shared = {document.id for document in target.get([document.id for document in documents])}
    if shared and on_conflict == "error":
        msg = f"{len(shared)} ids are in both stores, for instance {min(shared)!r}; type on_conflict='replace', "
        raise ValueError(msg + "'skip' or 'new_id'")
    if on_conflict == "skip":
        chosen = [position for position, document in enumerate(documents) if document.id not in shared]
        documents, vectors = [documents[position] for position in chosen], vectors[chosen]
    ids = [None if on_conflict == "new_id" and document.id in shared else document.id for document in documents]
    texts = [document.content for document in documents]
    return target.add(vectors, texts, [document.metadata for document in documents], ids)
