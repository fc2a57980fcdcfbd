"""KnowledgeBase: a folder of documents that can be searched and asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from langchain_core.documents import Document

from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.errors import DocumentError, StoreCorruptError, StoreMismatchError
from luotuo_integrations.folder_sync import FolderSync, SyncReport
from luotuo_integrations.hybrid_retriever import HybridRetriever
from luotuo_integrations.llm import LanguageModel
from luotuo_integrations.qa import Answer, AnswerStream, QuestionAnswerer, place
from luotuo_integrations.store.files import MANIFEST, StoreFolder
from luotuo_integrations.store.filters import Filter
from luotuo_integrations.vectorstores import FAISS

STORE_FOLDER = ".luotuo"

SearchMode = Literal["vector", "keyword", "hybrid"]
SCORES: dict[SearchMode, str] = {"vector": "cosine", "keyword": "BM25", "hybrid": "fused score"}


@dataclass(frozen=True)
class SearchResult:
    """One passage found.

    Attributes:
        document: The passage; metadata hold ``source``, ``title``, ``headings``, ``page``, ``start`` and ``end``.
        score: Higher is better; what it is depends on how it was found.
        relevance: A cosine as a relevance in [0, 1], comparable between models; None for other scores.
        score_name: ``"cosine"`` in [-1, 1], ``"BM25"`` above 0, or ``"fused score"`` up to 1, which compares
            passages found by one query and nothing else.
    """

    document: Document
    score: float
    relevance: float | None
    score_name: str = "cosine"

    @property
    def title(self) -> str:
        """Where it stands: file, headings and page, as far as they are known."""
        return place(self.document)


class KnowledgeBase:
    """Documents of a folder, indexed for search and questions.

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
        encoding: Encoding of text and HTML files; None is what a file was indexed with, at first detection of Unicode
            and GB18030.
        chunk_size: Largest passage in model tokens; None is what a file was indexed with, at first 400, or what the
            model takes if that is less.

    Raises:
        DocumentError: If the folder does not exist.
        StoreMismatchError: If the index was built by another model, or is no knowledge base's.
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
        self.store_folder = _store_folder(folder, store)
        self.embeddings = embeddings or LuotuoEmbeddings()
        self._encoding = encoding
        self._chunk_size = chunk_size
        self.vectorstore = self._opened()
        self._answerer = QuestionAnswerer(
            self.vectorstore, llm, k=k, threshold=threshold, cache_folder=self.store_folder
        )

    def __len__(self) -> int:
        """How many passages are indexed."""
        return len(self.vectorstore)

    def sync(self, *, retry_unreadable: bool = True, show_progress: bool = False) -> SyncReport:
        """Bring the index up to date with the folder: read new and changed files, drop those that are gone.

        Finished files survive an interruption (Ctrl-C saves before it is passed on), and a later sync goes on from
        there. A file that cannot be read is reported, not raised.

        Args:
            retry_unreadable: Try files again that had no text at the last sync and have not changed since.
            show_progress: Show a progress bar.

        Returns:
            What was done.

        Raises:
            DocumentError: If there is nothing to read in the folder. If all files of an index are gone, which happens
                when a drive is not mounted, the index is left as it is.
            OSError: If the index cannot be written.
            StoreMismatchError: If the index is no knowledge base's.
        """
        job = FolderSync(
            self.folder,
            self.store_folder,
            self.vectorstore,
            self.embeddings,
            encoding=self._encoding,
            chunk_size=self._chunk_size,
            retry_unreadable=retry_unreadable,
        )
        return job.run(show_progress=show_progress)

    def search(
        self,
        query: str,
        k: int = 4,
        *,
        mode: SearchMode = "vector",
        filter: Filter | None = None,  # noqa: A002
    ) -> list[SearchResult]:
        """Find the passages that fit a query best.

        Args:
            query: What is looked for.
            k: How many passages.
            mode: ``"vector"`` finds by meaning, ``"keyword"`` what shares words with the query (names, numbers, codes;
                maybe nothing), ``"hybrid"`` both, fused.
            filter: Only passages whose metadata match, for instance ``{"source": "员工手册/休假制度.md"}``.

        Returns:
            Passages, best first.

        Raises:
            ValueError: If the mode is unknown.
        """
        if mode not in SCORES:
            msg = f"mode={mode!r} is unknown; use one of {', '.join(map(repr, get_args(SearchMode)))}"
            raise ValueError(msg)
        if mode == "keyword":
            found = self.vectorstore.keyword_search(query, k, filter)
        elif mode == "hybrid":
            found = HybridRetriever.from_store(self.vectorstore, k=k, filter=filter).search_with_score(query)
        else:
            found = self.vectorstore.similarity_search_with_score(query, k=k, filter=filter)
        relevances = self.embeddings.relevance([score for _, score in found]).tolist() if mode == "vector" else None
        return [
            SearchResult(document, score, relevances[number] if relevances else None, SCORES[mode])
            for number, (document, score) in enumerate(found)
        ]

    def ask(self, question: str, *, filter: Filter | None = None) -> Answer:  # noqa: A002
        """Answer a question from the documents; see ``QuestionAnswerer.ask``."""
        return self._answerer.ask(question, filter=filter)

    def stream(self, question: str, *, filter: Filter | None = None) -> AnswerStream:  # noqa: A002
        """Answer a question piece by piece; see ``QuestionAnswerer.stream``."""
        return self._answerer.stream(question, filter=filter)

    def _opened(self) -> FAISS:
        if not (self.store_folder / MANIFEST).is_file():
            return FAISS(self.embeddings)
        try:
            return FAISS.load_local(self.store_folder, self.embeddings)
        except (StoreCorruptError, StoreMismatchError) as error:
            msg = f"{error}. To build the index again, delete the folder {str(self.store_folder)!r}"
            raise type(error)(msg) from error


def model_of_store(folder: str | Path, store: str | Path | None = None) -> str | None:
    """Name of the model that an index was built with; None where there is no index yet.

    Args:
        folder: The documents folder.
        store: Folder of the index, if it is not ``.luotuo`` in there.

    Raises:
        StoreCorruptError: If the index is damaged.
    """
    store_folder = _store_folder(folder, store)
    if not (store_folder / MANIFEST).is_file():
        return None
    return str(StoreFolder(store_folder).manifest().facts.get("model") or "") or None


def find_store(path: str | Path) -> Path:
    """Folder of the index that a path means: a folder of an index, or a documents folder with ``.luotuo`` inside.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If there is no index; the message says what to type.
    """
    folder = Path(path)
    for candidate in (folder, folder / STORE_FOLDER):
        if (candidate / MANIFEST).is_file():
            return candidate
    if (folder / "index.pkl").is_file():
        advice = (
            "it was saved by LangChain's own FAISS: import_langchain_faiss(folder, embedding).save_local(NEW_FOLDER)"
        )
    else:
        advice = f"to index its documents, type: luotuo index {folder}"
    msg = f"There is no index in {str(folder)!r}, nor in {STORE_FOLDER!r} inside it; {advice}"
    raise FileNotFoundError(msg)


def _store_folder(folder: str | Path, store: str | Path | None) -> Path:
    return Path(folder) / STORE_FOLDER if store is None else Path(store)
