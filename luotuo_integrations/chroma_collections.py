"""Chroma collections opened right: their names, the check of their model, metadata, writing in batches."""

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from luotuo_integrations._optional import require
from luotuo_integrations.chroma_function import LuotuoEmbeddingFunction, describe_model
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import StoreMismatchError
from luotuo_integrations.store.batch import check_documents, check_unicode
from luotuo_integrations.texts import Vectors

try:
    from chromadb.api import ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.errors import NotFoundError
except ModuleNotFoundError as missing:
    require(missing.name or "chromadb", extra="chroma")
    raise

logger = logging.getLogger(__name__)

_LARGEST_INTEGER = 2**63 - 1


def collection_slug(name: str) -> str:
    """Turn a collection's name into one that Chroma takes.

    Args:
        name: Any text that is not blank. Names that Chroma takes stay as they are: 3 to 512 of the characters
            ``a-z A-Z 0-9 . _ -``, a letter or digit at both ends, not an IP address.

    Returns:
        The name itself, or ``luotuo-`` and 32 hexadecimal digits: the same for the same name, everywhere.

    Raises:
        ValueError: If the name is blank, or cannot be written as UTF-8.
    """
    if not isinstance(name, str) or not name.strip():
        msg = f"collection_name={name!r}; give a name, for instance '员工手册'"
        raise ValueError(msg)
    if re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]", name) and not re.fullmatch(r"[0-9.]+", name):
        return name
    # Some systems write é as two characters: what looks the same is the same.
    composed = unicodedata.normalize("NFC", check_unicode(name, name="collection_name"))
    return f"luotuo-{hashlib.sha256(composed.encode()).hexdigest()[:32]}"


def model_metadata(name: str, embeddings: LuotuoEmbeddings) -> dict[str, Any]:
    """What is written beside a collection: its name as typed, and the model that its vectors are of."""
    return {
        "luotuo_name": name,
        "luotuo_model": embeddings.model,
        "luotuo_dimension": embeddings.dimension,
        "luotuo_fingerprint": embeddings.fingerprint,
    }


def cosine_configuration(
    embeddings: LuotuoEmbeddings, given: Mapping[str, Any] | None = None
) -> CreateCollectionConfiguration:
    """Complete a collection's configuration: cosine space, and the embedding function for plain chromadb.

    Args:
        embeddings: The model.
        given: The user's settings of the index, for instance ``{"hnsw": {"ef_search": 200}}``.

    Returns:
        A new configuration.

    Raises:
        ValueError: If another space or another embedding function is asked for.
    """
    configuration = dict(given or {})
    index = "spann" if configuration.get("spann") else "hnsw"
    settings = {"space": "cosine", **(configuration.get(index) or {})}
    if settings["space"] != "cosine" or configuration.get("embedding_function") is not None:
        msg = (
            f"collection_configuration={configuration!r}: the space is always 'cosine', and the embedding function"
            " always the model's; leave both out"
        )
        raise ValueError(msg)
    complete = {**configuration, index: settings, "embedding_function": LuotuoEmbeddingFunction(embeddings)}
    return cast("CreateCollectionConfiguration", complete)


def open_collection(client: ClientAPI, name: str, embeddings: LuotuoEmbeddings, *, create: bool = True) -> Collection:
    """Open a collection and check its model; the raw chromadb collection is returned.

    Args:
        client: A chromadb client.
        name: Any name; see ``collection_slug``.
        embeddings: The model of its vectors.
        create: Make the collection where it is not there; False makes that an error.

    Returns:
        The collection.

    Raises:
        StoreMismatchError: If another model made it, or it does not measure by cosine.
        chromadb.errors.NotFoundError: If it is not there and must not be made.
    """
    slug = collection_slug(name)
    if create:
        collection = client.get_or_create_collection(
            slug,
            embedding_function=None,  # the configuration holds it
            metadata=model_metadata(name, embeddings),
            configuration=cosine_configuration(embeddings),
        )
    else:
        try:
            collection = client.get_collection(slug, embedding_function=None)
        except NotFoundError as error:
            raise not_found(name, client) from error
    check_collection(collection, name, embeddings)
    return collection


def check_collection(collection: Collection, name: str, embeddings: LuotuoEmbeddings) -> None:
    """Refuse a collection whose vectors are not comparable with those of the embeddings.

    Args:
        collection: The opened collection.
        name: Its name as the user typed it.
        embeddings: The model that queries will be embedded with.

    Raises:
        StoreMismatchError: If another model made it, no model is recorded, or its space is not cosine.
    """
    recorded = _recorded_model(collection)
    ours = {"model": embeddings.model, "dimension": embeddings.dimension, "fingerprint": embeddings.fingerprint}
    configuration = collection.configuration_json
    space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
    if not recorded.get("fingerprint"):
        problem = "does not say which model made its vectors"
    elif recorded["fingerprint"] != ours["fingerprint"]:
        problem = f"holds vectors of {describe_model(recorded)}; asked for {describe_model(ours)}"
    elif space != "cosine":
        problem = f"measures by {space!r}; only 'cosine' gives right scores"
    else:
        return
    msg = (
        f"The collection {name!r} {problem}. Open it with the model that made it, or choose another collection_name"
        " and add the documents there"
    )
    raise StoreMismatchError(msg)


def _recorded_model(collection: Collection) -> dict[str, Any]:
    """Model, dimension and fingerprint of a collection's vectors, as far as they were written down."""
    metadata: Mapping[str, Any] = collection.metadata or {}
    function = collection.configuration_json.get("embedding_function") or {}
    config: Mapping[str, Any] = function.get("config", {}) if function.get("name") == "luotuo" else {}
    if not metadata.get("luotuo_fingerprint"):
        return dict(config)  # made by plain chromadb with LuotuoEmbeddingFunction
    if config.get("fingerprint") != metadata["luotuo_fingerprint"]:
        # collection.modify() stores another embedding function before it asks validate_config_update.
        logger.warning(
            "The collection %r now names another model for query_texts (%s) than made its vectors (%s)",
            metadata.get("luotuo_name"),
            config.get("model"),
            metadata.get("luotuo_model"),
        )
    return {key: metadata.get(f"luotuo_{key}") for key in ("model", "dimension", "fingerprint")}


def check_folder(folder: str | Path | None, name: str, *, create: bool) -> None:
    """Check the folder of a database before a client is made, which would make an empty one anywhere.

    Args:
        folder: The folder; None is a database in memory or on a server.
        name: Name of the collection, for messages.
        create: Whether the database may be made.

    Raises:
        ValueError: If the folder is "": Chroma would put half of the database there and lose the other half.
        NotADirectoryError: If it is a file.
        chromadb.errors.NotFoundError: If it holds no database and none must be made.
    """
    if folder is None:
        return
    if not str(folder):
        msg = "persist_directory=''; give a folder, '.' for the one that the program runs in, or None for memory"
        raise ValueError(msg)
    if Path(folder).is_file():
        msg = f"persist_directory={str(folder)!r} is a file; give a folder"
        raise NotADirectoryError(msg)
    if not create and not (Path(folder) / "chroma.sqlite3").is_file():
        msg = f"There is no collection {name!r}: the folder {str(folder)!r} holds no Chroma database. Check the path"
        raise NotFoundError(msg)


def not_found(name: str, client: ClientAPI) -> NotFoundError:
    """Make the error for a collection that is not there; it lists those that are."""
    collections = client.list_collections()
    names = sorted(str((collection.metadata or {}).get("luotuo_name", collection.name)) for collection in collections)
    there = ", ".join(map(repr, names)) or "none"
    return NotFoundError(f"There is no collection {name!r}; there are: {there}. Check the name, or let it be made")


class Records(NamedTuple):
    """Documents ready to be written.

    Args:
        given_ids: The id of each document given, in that order; new ones where none was given.
        kept: Positions of those to write: where an id was given twice, the last one counts.
        ids: Ids of those kept.
        texts: Texts of those kept.
        metadatas: Metadata of those kept, flattened.
    """

    given_ids: list[str]
    kept: list[int]
    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]


def check_records(
    texts: Iterable[str],
    metadatas: Iterable[dict[str, Any] | None] | None = None,
    ids: Iterable[str | None] | None = None,
) -> Records:
    """Check documents before any work is done on them; see ``store.batch.check_documents``.

    Raises:
        TypeError: If a text, an id or a metadata value has a type that cannot be stored; the message names it.
        ValueError: If the numbers differ, an id is empty, or metadata cannot be stored; see ``flatten_metadata``.
    """
    batch = check_documents(texts, metadatas, ids)
    flat = [flatten_metadata(json.loads(words)) for words in batch.metadatas]
    return Records(batch.ids, batch.kept, batch.kept_ids, batch.contents, flat)


def write_records(client: ClientAPI, collection: Collection, records: Records, vectors: Vectors) -> None:
    """Write documents in batches that the client takes; what was stored under the same ids is replaced.

    Args:
        client: The client that the collection was opened with.
        collection: The collection.
        records: N documents.
        vectors: float32 (N, D).
    """
    size = client.get_max_batch_size()
    for start in range(0, len(records.ids), size):
        part = slice(start, start + size)
        ids = records.ids[part]
        stored = collection.get(ids=ids, include=["metadatas"])
        former = dict(zip(stored["ids"], stored["metadatas"] or [], strict=True))
        pairs = zip(ids, records.metadatas[part], strict=True)
        # chromadb's types leave out what it takes: None for a document without metadata.
        metadatas: Any = [_replacing(former.get(id_), metadata) for id_, metadata in pairs]
        collection.upsert(ids=ids, embeddings=vectors[part], documents=records.texts[part], metadatas=metadatas)


def _replacing(former: Mapping[str, Any] | None, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Metadata that replaces what is there: Chroma keeps keys that are not named, and drops those given as None."""
    return {**dict.fromkeys(former or ()), **metadata} or None


def flatten_metadata(metadata: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn metadata into what Chroma stores and filters by.

    Args:
        metadata: JSON values.
        prefix: What is put before the keys.

    Returns:
        Strings, numbers, booleans, and lists of one of these kinds, as they are. A dict's entries stand at the top as
        ``"outer.inner"``; mixed and nested lists are JSON text; None, ``[]`` and ``{}`` are left out.

    Raises:
        ValueError: If two keys fall together, a key is empty or begins with ``#`` or ``$``, or a whole number needs
            more than 64 bits.
    """
    flat: dict[str, Any] = {}
    for key, value in metadata.items():
        name = f"{prefix}{key}"
        if not key or name[0] in "#$" or name == "chroma:document":
            msg = f"Chroma refuses the metadata key {name!r}: it must not be empty, begin with # or $, or be its own"
            raise ValueError(msg)
        if isinstance(value, Mapping):
            entries = flatten_metadata(value, f"{name}.")
        else:
            entries = {} if value is None or value == [] else {name: _stored_value(name, value)}
        if twice := flat.keys() & entries.keys():
            msg = f"The metadata key {min(twice)!r} is there twice once dicts are flattened; rename one"
            raise ValueError(msg)
        flat.update(entries)
    return flat


def _stored_value(name: str, value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
        return json.dumps(value, ensure_ascii=False)
    if kinds == {int} and any(abs(number) > _LARGEST_INTEGER for number in items):
        msg = f"The metadata value {name}={value} needs more than 64 bits; give it as a string"
        raise ValueError(msg)
    return value
