"""FolderSync: bring a store up to date with a folder of documents, file by file.

The store itself is the record of what is indexed: each passage says which state of its file it is from, so that a sync
which was interrupted simply goes on.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from langchain_core.documents import Document

from luotuo_integrations.batching import windows
from luotuo_integrations.documents import Problem, iter_files, load_file
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import DocumentError, StoreMismatchError
from luotuo_integrations.file_states import FileState, UnreadableFiles, sha256_of
from luotuo_integrations.parsing.spans import DEFAULT_CHUNK_SIZE
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.splitter import ChineseTextSplitter
from luotuo_integrations.store.files import MANIFEST, StoreFolder
from luotuo_integrations.vectorstores import FAISS

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0  # an interrupted sync loses little more than that, and saving costs a small share of it
BATCH_CHUNKS = 128  # passages put into the store together: enough to batch well, and files stay whole
SLICE_CHUNKS = 64  # passages embedded between two steps of the progress bar
_KEYWORDS = "keywords.safetensors"  # part of a saved store; see ``store.files``
_STATE = "file_state"  # metadata key of a passage: the state of its file
_PROMPT_TOKENS = 16  # room for the model's prompt and special tokens


@dataclass
class SyncReport:
    """What a sync did. All names are paths relative to the documents folder.

    Attributes:
        added: Files that were new.
        updated: Files that had changed.
        removed: Files that were indexed and are gone, or have no text any more.
        unchanged: How many files were as before.
        chunks: How many passages the store holds now.
        problems: Files or pages that could not be read, and why.
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    chunks: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether the store was changed."""
        return bool(self.added or self.updated or self.removed)


class _StaleFile(NamedTuple):
    """A file to read, and its state now."""

    source: str
    file: Path
    state: FileState


class FolderSync:
    """One sync of a store with a folder; make a new one for each.

    Args:
        folder: The documents.
        store_folder: Where the store is saved.
        vectorstore: The store.
        embeddings: Its model.
        encoding: Encoding of text and HTML files; None is what a file was indexed with.
        chunk_size: Largest passage in model tokens; None is what a file was indexed with.
        retry_unreadable: Try files again that had no text at the last sync.
    """

    def __init__(
        self,
        folder: Path,
        store_folder: Path,
        vectorstore: FAISS,
        embeddings: LuotuoEmbeddings,
        *,
        encoding: str | None = None,
        chunk_size: int | None = None,
        retry_unreadable: bool = True,
    ) -> None:
        self._folder, self._store_folder = folder, store_folder
        self._vectorstore, self._embeddings = vectorstore, embeddings
        self._encoding, self._chunk_size = encoding, chunk_size
        self._retry_unreadable = retry_unreadable
        self._report = SyncReport()
        self._unreadable = UnreadableFiles(store_folder)
        self._known = self._indexed_files()
        self._unsaved, self._saved_at = False, time.monotonic()

    def run(self, *, show_progress: bool) -> SyncReport:
        """Do it; see ``KnowledgeBase.sync``."""
        files = {file.relative_to(self._folder).as_posix(): file for file in iter_files(self._folder)}
        if not files:
            raise DocumentError(self._nothing_to_index())
        stale = self._stale(files)
        gone = sorted(self._known.keys() - files.keys())
        if stale or gone:
            self._check_writable()
            self._vectorstore.core.use_keywords(None)  # saved with the store: no search has to split all passages
        self._unreadable.keep_only(files)
        try:
            if gone:
                self._unsaved = True
                self._vectorstore.delete(filter={"source": {"$in": gone}})
                self._report.removed += gone
            with progress_bar("Indexing files", len(stale), enabled=show_progress and bool(stale)) as advance:
                for batch in self._batches(stale):
                    self._replace(batch, advance)
                    self._note(batch)
                    if time.monotonic() - self._saved_at > SAVE_SECONDS:
                        self._save()
        finally:
            self._save()
        self._report.chunks = len(self._vectorstore)
        if not self._report.chunks:
            raise DocumentError(self._nothing_to_index())
        self._add_keywords()
        return self._report

    # -- what is there ------------------------------------------------------------------------------------------------

    def _indexed_files(self) -> dict[str, FileState | None]:
        """State of each indexed file; None where passages of two states stand together, so that it is read again."""
        states: dict[str, str] = {}
        for metadata in self._vectorstore.core.metadata():
            try:
                source, state = metadata["source"], metadata[_STATE]
            except KeyError as error:
                msg = f"{str(self._store_folder)!r} holds a store that is no knowledge base's; give another folder"
                raise StoreMismatchError(msg) from error
            states[source] = state if states.get(source, state) == state else ""
        return {source: FileState.parse(state) if state else None for source, state in states.items()}

    def _stale(self, files: Mapping[str, Path]) -> list[_StaleFile]:
        """Files to read: those whose state is not the one that is indexed."""
        stale = []
        for source, file in files.items():
            old = self._known.get(source)
            state = FileState(
                sha256_of(file),
                self._chunk_size or (old.chunk_size if old else self._default_chunk_size()),
                self._encoding or (old.encoding if old else ""),
            )
            reason = None if self._retry_unreadable else self._unreadable.reason(source, state)
            if reason is not None:
                self._report.problems.append(Problem(source, reason))
            elif state.sha256 and state == old:
                self._report.unchanged += 1
            else:
                stale.append(_StaleFile(source, file, state))
        return stale

    def _default_chunk_size(self) -> int:
        return min(DEFAULT_CHUNK_SIZE, self._embeddings.max_tokens - _PROMPT_TOKENS)

    # -- what is done -------------------------------------------------------------------------------------------------

    def _batches(self, stale: Sequence[_StaleFile]) -> Iterator[dict[str, list[Document]]]:
        """Read and split files; yield their passages by source, about a hundred passages at a time."""
        batch: dict[str, list[Document]] = {}
        for source, file, state in stale:
            documents, problem = self._read(file, source, state)
            if problem is not None:
                logger.warning("Skipped: %s", problem.reason)
                self._report.problems.append(problem)
                if not state.sha256:
                    continue  # locked or forbidden just now: what is indexed of it stays
                self._unreadable.add(source, state, problem.reason)
            else:
                self._unreadable.discard(source)
            batch[source] = documents  # none of a file without text: what an older version said is no longer true
            if sum(map(len, batch.values())) >= BATCH_CHUNKS:
                yield batch
                batch = {}
        if batch:
            yield batch

    def _read(self, file: Path, source: str, state: FileState) -> tuple[list[Document], Problem | None]:
        """Passages of one file, or why there are none."""
        splitter = ChineseTextSplitter.from_embeddings(self._embeddings, state.chunk_size)
        try:
            chunks = splitter.split_documents(
                load_file(file, self._folder, state.encoding or None, on_problem=self._report.problems.append)
            )
        except DocumentError as error:
            return [], Problem(source, str(error))
        for chunk in chunks:
            chunk.metadata[_STATE] = str(state)
        return chunks, None if chunks else Problem(source, f"Cannot read {source}: it has no text")

    def _replace(self, batch: Mapping[str, Sequence[Document]], advance: Callable[[float], None]) -> None:
        """Put the passages of some files in place of what the store has of them.

        The ids are the files' names with a number, so that new passages take the place of old ones in one step.
        """
        chunks = {f"{source}#{i}": chunk for source, of_file in batch.items() for i, chunk in enumerate(of_file)}
        vectors = self._embedded(list(chunks.values()), len(batch), advance)
        old = self._vectorstore.documents(filter={"source": {"$in": list(batch)}})
        if not chunks and not old:
            return
        self._unsaved = True
        self._vectorstore.add_embeddings(
            zip([chunk.page_content for chunk in chunks.values()], vectors, strict=True),
            [chunk.metadata for chunk in chunks.values()],
            ids=list(chunks),
        )
        self._vectorstore.delete([document.id for document in old if document.id and document.id not in chunks])

    def _embedded(self, chunks: list[Document], files: int, advance: Callable[[float], None]) -> list[list[float]]:
        """Vectors of the passages of so many files."""
        if not chunks:
            advance(files)
        vectors: list[list[float]] = []
        for window in windows(chunks, SLICE_CHUNKS):
            texts = [embedded_text(chunk) for chunk in window]
            vectors += self._embeddings.encode(texts, show_progress=False).tolist()
            advance(files * len(window) / len(chunks))
        return vectors

    def _check_writable(self) -> None:
        """Find out now, not after an hour of work, that the index cannot be saved."""
        try:
            self._store_folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self._store_folder, os.W_OK)
        except OSError as error:
            msg = f"The index folder {str(self._store_folder)!r} cannot be made ({error.strerror}); give another store"
            raise type(error)(msg) from error
        if not writable:
            msg = f"The index folder {str(self._store_folder)!r} is not writable; give another store"
            raise PermissionError(msg)

    def _add_keywords(self) -> None:
        """Save a keyword index with a store that was saved without; where that cannot be, searches make their own."""
        folder = self._store_folder
        if not ((folder / MANIFEST).is_file() and os.access(folder, os.W_OK)):
            return
        if StoreFolder(folder).manifest().path(_KEYWORDS) is not None:
            return
        self._vectorstore.core.use_keywords(None)
        try:
            self._vectorstore.save_local(folder)
        except OSError as error:
            logger.warning("No keyword index was saved in %r: each search will make its own. %s", str(folder), error)

    def _note(self, batch: Mapping[str, Sequence[Document]]) -> None:
        """Note the files of a batch that is in the store now."""
        for source, chunks in batch.items():
            if source in self._known:
                (self._report.updated if chunks else self._report.removed).append(source)
            elif chunks:
                self._report.added.append(source)

    def _save(self) -> None:
        if self._unsaved:
            self._vectorstore.save_local(self._store_folder)
            self._unsaved, self._saved_at = False, time.monotonic()
        self._unreadable.save()

    def _nothing_to_index(self) -> str:
        folder = f"the documents folder {str(self._folder)!r}"
        if self._report.problems:
            return f"No file in {folder} has text: " + "; ".join(
                problem.reason for problem in self._report.problems[:3]
            )
        if self._known:
            return (
                f"All {len(self._known)} indexed files are gone from {folder}; the index was left as it is. If they "
                f"were deleted on purpose, delete the index too: {str(self._store_folder)!r}"
            )
        return f"There is nothing to index in {folder}. Put txt, md, html, pdf or docx files there"


def embedded_text(chunk: Document) -> str:
    """What is embedded of a passage: the titles above it, which often name its subject, then its own text."""
    headings = str(chunk.metadata.get("headings", ""))
    return f"{headings}\n{chunk.page_content}" if headings else chunk.page_content
