"""Question answering over a FAISS store: an answer with numbered sources, or "not found in the documents"."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from langchain_core.documents import Document

from luotuo_integrations.answerability import Answerability, Evidence
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.llm import LanguageModel, check_llm, reply, stream_reply
from luotuo_integrations.parsing.outline import sentence_cuts
from luotuo_integrations.store.filters import Filter
from luotuo_integrations.store.vector_math import unit_rows
from luotuo_integrations.vectorstores import FAISS

NOT_FOUND = "文档中没有找到与这个问题相关的内容。"
_LLM_NOT_FOUND = "资料中没有答案"  # seven characters, as the instructions say
_INSTRUCTIONS = f"""你根据资料回答问题。规则：
1. 只依据下面编了号的资料，不补充资料以外的内容。
2. 每句话后面用方括号注明依据的资料编号，例如：会议改到周三[2]。
3. 资料里找不到答案时，只回答这七个字：{_LLM_NOT_FOUND}。
4. 用提问者的语言，简明作答。"""
_END_OF_THOUGHTS = "</think>"  # what a reasoning model thought comes before, if its server does not cut it off
_CITATION = re.compile(r"[\[【](\d+(?:\s*[,，、]\s*\d+)*)[\]】]")

CANDIDATES = 8  # passages whose sentences are compared one by one
_QUOTES = 3  # most sentences of an answer that is given without a language model
_QUOTE_MARGIN = 0.01  # a further sentence is quoted if its score is this near to the best


def place(document: Document) -> str:
    """Where a passage stands: file, headings and page, as far as they are known."""
    metadata = document.metadata
    page = f"第 {metadata['page']} 页" if metadata.get("page") else ""
    return " · ".join(str(part) for part in (metadata.get("source"), metadata.get("headings"), page) if part)


@dataclass(frozen=True)
class Source:
    """One numbered source of an answer.

    Attributes:
        number: Its number in the answer, from 1.
        document: The passage; its metadata names the file, headings, page and offsets.
        score: Mean of the question's cosines with the passage and with its best sentence, in [-1, 1].
        quote: The sentence that is nearest to the question, verbatim.
    """

    number: int
    document: Document
    score: float
    quote: str

    @property
    def title(self) -> str:
        """Where it stands: file, headings and page, as far as they are known."""
        return place(self.document)


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        question: The question.
        text: The answer; citations such as [1] point to ``sources``.
        sources: What it rests on; empty when nothing was found.
        found: Whether the documents answer the question.
        relevance: How sure it is that they do, in [0, 1]; below the threshold (0.5) nothing is answered.
    """

    question: str
    text: str
    sources: Sequence[Source] = ()
    found: bool = True
    relevance: float = 1.0


@dataclass
class AnswerStream:
    """An answer that is being written. Iterate over its pieces; ``answer`` is complete after the last one.

    Attributes:
        sources: What the language model was given, known before the first piece.
    """

    answer: Answer
    _pieces: Iterator[str] = field(repr=False)
    _finished: bool = field(default=False, repr=False)

    @property
    def sources(self) -> Sequence[Source]:
        """The sources of the answer as it stands."""
        return self.answer.sources

    def __iter__(self) -> Iterator[str]:
        text = ""
        for piece in self._pieces:
            text += piece
            yield piece
        if not self._finished:  # a second iteration finds no more pieces
            self.answer, self._finished = _finished(self.answer, text), True


class QuestionAnswerer:
    """Answers questions from the documents of a store.

    Args:
        store: A FAISS store whose embeddings are ``LuotuoEmbeddings``.
        llm: A LangChain chat model or chain, a LlamaIndex LLM, or a function from str to str; None quotes the
            sentences that are nearest to the question.
        k: Most sources of an answer, 1 to 8.
        threshold: Relevance below which the answer is "not found", in [0, 1]; 0 answers always.
        cache_folder: A folder that keeps the vectors of the background texts (see ``Answerability``), which a model
            that is not bundled embeds before its first answer.

    Raises:
        TypeError: If the store's embeddings or the llm are of another kind.
        ValueError: If ``k`` or ``threshold`` is out of range.
    """

    def __init__(
        self,
        store: FAISS,
        llm: LanguageModel | None = None,
        *,
        k: int = 4,
        threshold: float = 0.5,
        cache_folder: Path | None = None,
    ) -> None:
        if not 1 <= k <= CANDIDATES:
            msg = f"k={k} is out of range: an answer can have 1 to {CANDIDATES} sources"
            raise ValueError(msg)
        if not 0 <= threshold <= 1:
            msg = f"threshold={threshold} is out of range: it must be in [0, 1]"
            raise ValueError(msg)
        if not isinstance(store.embeddings, LuotuoEmbeddings):
            msg = f"The store's embeddings are {type(store.embeddings).__name__}; questions need LuotuoEmbeddings"
            raise TypeError(msg)
        if llm is not None:
            check_llm(llm)
        self.store = store
        self.llm = llm
        self.k = k
        self.threshold = threshold
        self._embeddings: LuotuoEmbeddings = store.embeddings
        self._answerability = Answerability(self._embeddings, cache_folder)

    def ask(self, question: str, *, filter: Filter | None = None) -> Answer:  # noqa: A002 - LangChain's name
        """Answer a question.

        Args:
            question: One question; blank text is a ValueError.
            filter: Only documents whose metadata match, as in ``FAISS.similarity_search``.

        Returns:
            The answer. ``found`` is false where the documents do not answer, or the language model says so.
        """
        answer = self.find(question, filter=filter)
        if not answer.found or self.llm is None:
            return answer
        return _finished(answer, reply(self.llm, _INSTRUCTIONS, _prompt(answer)))

    def stream(self, question: str, *, filter: Filter | None = None) -> AnswerStream:  # noqa: A002
        """Answer a question piece by piece, as the language model writes.

        Args:
            question: One question.
            filter: As in ``ask``.

        Returns:
            An iterable of pieces of text, with the ``sources`` at once and the whole ``answer`` at the end.
        """
        answer = self.find(question, filter=filter)
        if not answer.found or self.llm is None:
            return AnswerStream(answer, iter([answer.text]))
        return AnswerStream(answer, stream_reply(self.llm, _INSTRUCTIONS, _prompt(answer)))

    def find(self, question: str, *, filter: Filter | None = None) -> Answer:  # noqa: A002
        """Find the sources of an answer, and answer in quotations, without a language model.

        Args:
            question: One question.
            filter: As in ``ask``.
        """
        found = self._retrieve(question, filter)
        if found is None:
            return Answer(question, NOT_FOUND, found=False, relevance=0.0)
        relevance = self._answerability.probability(found.evidence)
        if relevance < self.threshold:
            return Answer(question, NOT_FOUND, found=False, relevance=relevance)
        order = np.argsort(-found.scores, kind="stable")[: self.k]
        passages = [found.passages[i] for i in order]
        sources = [
            Source(number, passage.document, float(found.scores[i]), passage.best)
            for number, (i, passage) in enumerate(zip(order, passages, strict=True), start=1)
        ]
        return Answer(question, _quotations(passages), sources, relevance=relevance)

    def evidence(self, question: str, *, filter: Filter | None = None) -> Evidence | None:  # noqa: A002
        """What speaks for the documents answering a question; None where no document passes the filter."""
        found = self._retrieve(question, filter)
        return None if found is None else found.evidence

    def _retrieve(self, question: str, where: Filter | None) -> "_Retrieved | None":
        if not isinstance(question, str) or not question.strip():
            msg = f"question={question!r} holds no text; ask in words"
            raise ValueError(msg)
        query = unit_rows(self._embeddings.encode([question], "query", show_progress=False))[0]
        hits = self.store.similarity_search_with_score_by_vector(query.tolist(), k=CANDIDATES, filter=where)
        if not hits:
            return None
        passages = self._compare_sentences(query, hits)
        sentence = max(float(passage.cosines.max()) for passage in passages)
        evidence = self._answerability.evidence(query, max(passage.cosine for passage in passages), sentence)
        return _Retrieved(passages, np.array([passage.scores.max() for passage in passages]), evidence)

    def _compare_sentences(
        self, query: npt.NDArray[np.float32], hits: Sequence[tuple[Document, float]]
    ) -> list["_Passage"]:
        """The sentences of each passage with their cosines to the question, embedded in one call."""
        split = [_sentences(document) for document, _ in hits]
        flat = [sentence for sentences in split for sentence in sentences]
        vectors = unit_rows(self._embeddings.encode(flat, "passage", show_progress=False))
        cosines = vectors @ query  # (sentences,)
        passages, start = [], 0
        for (document, score), sentences in zip(hits, split, strict=True):
            passages.append(_Passage(document, score, sentences, cosines[start : start + len(sentences)]))
            start += len(sentences)
        return passages


@dataclass(frozen=True)
class _Passage:
    """A passage found, its sentences, and the cosines of both with the question."""

    document: Document
    cosine: float
    texts: Sequence[str]
    cosines: npt.NDArray[np.float32]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """What each sentence is worth: the mean of its own cosine and its passage's, which knows the context."""
        return (self.cosines.astype(np.float64) + self.cosine) / 2

    @property
    def best(self) -> str:
        return self.texts[int(self.cosines.argmax())]


@dataclass(frozen=True)
class _Retrieved:
    """Passages nearest to a question, what they score, and whether they speak for an answer."""

    passages: Sequence[_Passage]
    scores: npt.NDArray[np.float64]
    evidence: Evidence


def _sentences(document: Document) -> list[str]:
    """Cut a passage into its sentences; headings alone answer nothing and are left out where anything else is there."""
    titles = str(document.metadata.get("headings", "")).split(" > ")
    sentences = []
    for line in document.page_content.splitlines():
        starts = [0, *(cut for cut, _ in sentence_cuts(line, 0, len(line))), len(line)]
        sentences += [line[start:stop].strip() for start, stop in pairwise(starts)]
    sentences = [sentence for sentence in sentences if sentence]
    bodies = [sentence for sentence in sentences if not sentence.startswith("#") and sentence not in titles]
    return bodies or sentences or [document.page_content]


def _quotations(passages: Sequence[_Passage]) -> str:
    """Quote the sentences nearest to the question, each with the number of its source."""
    scored = sorted(
        (-score, number, text)
        for number, passage in enumerate(passages, start=1)
        for score, text in zip(passage.scores.tolist(), passage.texts, strict=True)
    )
    cited: dict[str, list[int]] = {}  # overlapping passages share sentences: each is quoted once
    for score, number, text in scored:
        if text in cited:
            cited[text].append(number)
        elif len(cited) < _QUOTES and score <= scored[0][0] + _QUOTE_MARGIN:
            cited[text] = [number]
    return "\n".join(f"{text}{_citation(numbers)}" for text, numbers in cited.items())


def _prompt(answer: Answer) -> str:
    passages = "\n".join(f"[{source.number}] {_described(source)}" for source in answer.sources)
    return f"资料：\n{passages}\n\n问题：{answer.question}"


def _described(source: Source) -> str:
    headings = source.document.metadata.get("headings")
    text = source.document.page_content.strip()
    return f"（{headings}）{text}" if headings else text


def _finished(answer: Answer, text: str) -> Answer:
    """Put a language model's words in, and keep the sources it cites (all of them where it cites none)."""
    text = text.rpartition(_END_OF_THOUGHTS)[2].strip()
    if not answer.found or text == answer.text:
        return answer
    cited = {int(number) for group in _CITATION.findall(text) for number in re.findall(r"\d+", group)}
    known = [source for source in answer.sources if source.number in cited]
    bare = _CITATION.sub("", text).strip(" 。.！!")
    if bare in ("", _LLM_NOT_FOUND) or (_LLM_NOT_FOUND in bare and not known):
        return replace(answer, text=NOT_FOUND, sources=(), found=False)
    text = _CITATION.sub(lambda match: _known_citation(match, known), text)
    return replace(answer, text=text, sources=known or answer.sources)


def _known_citation(match: "re.Match[str]", known: Sequence[Source]) -> str:
    """A citation without the numbers of sources that do not exist."""
    return _citation(sorted({int(number) for number in re.findall(r"\d+", match[1])} & {s.number for s in known}))


def _citation(numbers: Iterable[int]) -> str:
    return "".join(f"[{number}]" for number in dict.fromkeys(numbers))
