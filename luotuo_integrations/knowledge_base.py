"""KnowledgeBase: a folder of documents that can be searched and asked, kept up to date file by file."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from langchain_core.documents import Document

from luotuo_integrations.documents import Problem, iter_files, load_file
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import DocumentError
from luotuo_integrations.llm import LanguageModel
from luotuo_integrations.progress import progress_bar
from luotuo_integrations.qa import Answer, AnswerStream, QuestionAnswerer
from luotuo_integrations.splitter import ChineseTextSplitter
from luotuo_integrations.store_files import StoreFolder
from luotuo_integrations.store_filters import Filter
from luotuo_integrations.vectorstores import FAISS

logger = logging.getLogger(__name__)

STORE_FOLDER = ".luotuo"
_SAVE_SECONDS = 30.0  # an interrupted sync loses at most so much work, and saving costs a small share of it
_BATCH_CHUNKS = 512  # chunks embedded together: enough to batch well, and files stay whole


@dataclass(frozen=True)
class SearchResult:
    """One passage found.

    Attributes:
        document: The passage; metadata hold ``source``, ``title``, ``headings``, ``page``, ``start`` and ``end``.
        score: Cosine with the query, in [-1, 1].
        relevance: The same as a relevance in [0, 1], comparable between models.
    """

    document: Document
    score: float
    relevance: float


@dataclass
class SyncReport:
    """What a sync did. All names are paths relative to the documents folder.

    Attributes:
        added: Files that were new.
        updated: Files that had changed.
        removed: Files that are gone.
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


class KnowledgeBase:
    """Documents of a folder, indexed for search and questions.

    The store itself is the record of what is indexed: each passage carries the hash of its file, so that a sync which
    was interrupted simply goes on.

    Example:
        >>> knowledge_base = KnowledgeBase("员工手册")  # doctest: +SKIP
        >>> knowledge_base.sync()  # doctest: +SKIP
        >>> print(knowledge_base.ask("试用期可以请年假吗？").text)  # doctest: +SKIP

    Args:
        folder: The documents: txt, md, html, pdf and docx files, in subfolders too.
        store: Folder of the index; None is ``.luotuo`` inside the documents folder.
        embeddings: The embedding model; None is the bundled one.
        llm: A language model for ``ask`` (see ``QuestionAnswerer``); None answers in quotations.
        k: Most sources of an answer.
        threshold: Relevance below which the answer is "not found".
        encoding: Encoding of text and HTML files; None detects Unicode and GB18030.
        chunk_size: Largest passage in model tokens; None is 400, or what the model takes if that is less.

    Raises:
        DocumentError: If the folder does not exist.
        StoreMismatchError: If the index was built by another model.
        StoreCorruptError: If the index is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        store: str | Path | None = None,
        embeddings: LuotuoEmbeddings | None = None,
        llm: LanguageModel | None = None,
        k: int = 4,
        threshold: float = 0.5,
        encoding: str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is a file; give the folder it lies in" if self.folder.exists() else "does not exist"
            msg = f"The documents folder {str(folder)!r} {what}"
            raise DocumentError(msg)
        self.store_folder = self.folder / STORE_FOLDER if store is None else Path(store)
        self.embeddings = embeddings or LuotuoEmbeddings()
        self._encoding = encoding
        self._chunk_size = chunk_size
        exists = (self.store_folder / "manifest.json").is_file()
        self.vectorstore = FAISS.load_local(self.store_folder, self.embeddings) if exists else FAISS(self.embeddings)
        self._answerer = QuestionAnswerer(self.vectorstore, llm, k=k, threshold=threshold)

    def __len__(self) -> int:
        """How many passages are indexed."""
        return len(self.vectorstore)

    def sync(self, *, show_progress: bool = False) -> SyncReport:
        """Bring the index up to date with the folder: read new and changed files, drop those that are gone.

        Finished files survive an interruption (Ctrl-C saves before it is passed on), and a later sync goes on from
        there. A file that cannot be read is reported, not raised.

        Args:
            show_progress: Show a progress bar.

        Returns:
            What was done.

        Raises:
            DocumentError: If there is nothing to read in the folder and nothing was indexed before.
        """
        report = SyncReport()
        known = self._indexed_files()
        files = {file.relative_to(self.folder).as_posix(): file for file in iter_files(self.folder)}
        hashes = {source: _sha256(file) for source, file in files.items()}
        report.unchanged = sum(known.get(source) == digest for source, digest in hashes.items())
        stale = [source for source, digest in hashes.items() if known.get(source) != digest]
        report.removed = sorted(known.keys() - files.keys())
        if report.removed:
            self.vectorstore.delete(filter={"source": {"$in": report.removed}})
        saved = time.monotonic()
        unsaved = bool(report.removed)
        try:
            with progress_bar("Indexing files", len(stale), enabled=show_progress) as advance:
                for batch in self._batches([(source, files[source], hashes[source]) for source in stale], report):
                    self._replace(batch)
                    for source in batch:
                        (report.updated if source in known else report.added).append(source)
                    unsaved = True
                    advance(len(batch))
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        self._save()
                        saved, unsaved = time.monotonic(), False
        finally:
            if unsaved:
                self._save()
        report.chunks = len(self.vectorstore)
        if not report.chunks:
            raise DocumentError(self._nothing_indexed(report))
        return report

    def search(self, query: str, k: int = 4, *, filter: Filter | None = None) -> list[SearchResult]:  # noqa: A002
        """Find the passages nearest to a query.

        Args:
            query: What is looked for.
            k: How many passages.
            filter: Only passages whose metadata match, for instance ``{"source": "员工手册/休假制度.md"}``.

        Returns:
            Passages, best first.
        """
        found = self.vectorstore.similarity_search_with_score(query, k=k, filter=filter)
        relevances = self.embeddings.relevance([score for _, score in found])
        return [
            SearchResult(document, score, float(relevance))
            for (document, score), relevance in zip(found, relevances, strict=True)
        ]

    def ask(self, question: str, *, filter: Filter | None = None) -> Answer:  # noqa: A002
        """Answer a question from the documents; see ``QuestionAnswerer.ask``."""
        return self._answerer.ask(question, filter=filter)

    def stream(self, question: str, *, filter: Filter | None = None) -> AnswerStream:  # noqa: A002
        """Answer a question piece by piece; see ``QuestionAnswerer.stream``."""
        return self._answerer.stream(question, filter=filter)

    def _indexed_files(self) -> dict[str, str]:
        """Hash of each indexed file; "" where passages of two versions stand together, so that it is read again."""
        hashes: dict[str, str] = {}
        for document in self.vectorstore.documents():
            source, digest = document.metadata["source"], document.metadata["file_sha256"]
            hashes[source] = digest if hashes.get(source, digest) == digest else ""
        return hashes

    def _batches(
        self, stale: Sequence[tuple[str, Path, str]], report: SyncReport
    ) -> Iterator[dict[str, list[Document]]]:
        """Read and split files; yield their passages by source, some hundred passages at a time."""
        if not stale:
            return
        size = self._chunk_size or min(400, self.embeddings.max_tokens - 16)
        splitter = ChineseTextSplitter.from_embeddings(self.embeddings, size)
        batch: dict[str, list[Document]] = {}
        for source, file, digest in stale:
            try:
                documents = load_file(file, self.folder, self._encoding, on_problem=report.problems.append)
            except DocumentError as error:
                logger.warning("Skipped: %s", error)
                report.problems.append(Problem(source, str(error)))
                documents = []  # what an older version of the file said is no longer true
            batch[source] = splitter.split_documents(documents)
            for chunk in batch[source]:
                chunk.metadata["file_sha256"] = digest
            if sum(map(len, batch.values())) >= _BATCH_CHUNKS:
                yield batch
                batch = {}
        if batch:
            yield batch

    def _replace(self, batch: dict[str, list[Document]]) -> None:
        """Put the passages of some files in place of what the store has of them."""
        chunks = [chunk for documents in batch.values() for chunk in documents]
        vectors = self.embeddings.encode([embedded_text(chunk) for chunk in chunks], show_progress=False)
        self.vectorstore.delete(filter={"source": {"$in": list(batch)}})
        self.vectorstore.core.add(
            vectors, [chunk.page_content for chunk in chunks], [chunk.metadata for chunk in chunks]
        )

    def _save(self) -> None:
        self.vectorstore.save_local(self.store_folder)

    def _nothing_indexed(self, report: SyncReport) -> str:
        reasons = "; ".join(problem.reason for problem in report.problems[:3])
        return f"There is nothing to index in {str(self.folder)!r}. Put txt, md, html, pdf or docx files there. " + (
            f"What could not be read: {reasons}" if reasons else ""
        )


def embedded_text(chunk: Document) -> str:
    """What is embedded of a passage: the titles above it, which often name its subject, then its own text."""
    headings = str(chunk.metadata.get("headings", ""))
    return f"{headings}\n{chunk.page_content}" if headings else chunk.page_content


def _sha256(file: Path) -> str:
    try:
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError:
        return ""  # load_file will say why


def model_of_store(folder: str | Path, store: str | Path | None = None) -> str | None:
    """Name of the model that an index was built with; None where there is no index yet.

    Args:
        folder: The documents folder.
        store: Folder of the index, if it is not ``.luotuo`` in there.

    Raises:
        StoreCorruptError: If the index is damaged.
    """
    store_folder = Path(folder) / STORE_FOLDER if store is None else Path(store)
    if not (store_folder / "manifest.json").is_file():
        return None
    return str(StoreFolder(store_folder).manifest().facts.get("model") or "") or None
