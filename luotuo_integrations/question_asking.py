"""Questions with the passages that answer them, asked of a language model; what is finished is never lost."""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.llm import LanguageModel, check_llm, reply
from luotuo_integrations.passages import squeezed
from luotuo_integrations.progress import Advance, progress_bar
from luotuo_integrations.question_making import (
    MadeQuestions,
    Material,
    QuestionMakingError,
    asked,
    usable_passages,
)
from luotuo_integrations.store.table import StoredDocument

_INSTRUCTIONS = """你替一个文档检索系统出测试题。
下面给你一段资料，请写出{count}个用户可能会问、而这段资料正好能回答的问题。要求：
1. 用户没有看过这段资料。用他自己的日常说法来问，尽量换词，不要照抄资料里的句子。
2. 答案只在这段资料里，看这一段就能答全。问得具体：问题里要有产品、制度、人群、场合等必要的信息，单独看也知道在问什么。
3. 不要出现“本文”“上文”“这段资料”“文中”“根据材料”一类的说法。
4. 每行写一个以问号结尾的问题，不写编号、答案和解释。
如果这段资料出不了这样的题（例如只有目录、表头或签名），只写一个字：无"""
_PROMPT_VERSION = 1
_END_OF_THOUGHTS = "</think>"
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_BULLETS = r"(?:[\s>*•·]|[\-#](?!\d))*"
# One number alone, and none that goes on in digits: "3.5万元", "12:30" and "10.1假期" are part of the question.
_LEAD = re.compile(
    rf"^{_BULLETS}(?:\d{{1,2}}\s*(?:[)）]|[.．、:：](?!\d))|[(（]\d{{1,2}}[)）])?"
    rf"{_BULLETS}(?:(?:问题|提问|问|Q)\s*\d{{0,2}}\s*[:：.])?{_BULLETS}",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’「」『』*` ,，"
_REFERS = re.compile(
    r"本文|上文|下文|前文|文中|全文|该文|原文|上述|[这本该]一?[段篇份](?:文字|资料|材料|文档|文本|内容|话)?"
    r"|(?:根据|按照|依据|从|以上|上面的?|下面的?|给定的?|所给|这些)(?:资料|材料|文档|文本|文章|段落|内容|信息)"
    r"|(?:资料|材料|文档|文本|文章|段落)(?:里|中|内|所|提到|指出)"
)
_ANSWERED = re.compile(r"^(?:答案|回答|答|A)\s*\d{0,2}\s*[:：]", re.IGNORECASE)
_LONGEST = 120
_SHORTEST = 4
_FIRST_KEY = "settings"
_BEGINNING = f'{{"{_FIRST_KEY}": '.encode()


class PartialFileError(LuotuoError, ValueError):
    """A partial file was begun in another way, or is something else."""


def ask_questions(
    passages: Sequence[StoredDocument],
    llm: LanguageModel,
    partial: str | Path,
    *,
    model_name: str = "",
    per_passage: int = 1,
    limit: int | None = None,
    seed: int = 0,
    concurrency: int = 4,
    show_progress: bool = False,
) -> MadeQuestions:
    """Have a language model ask what passages answer.

    Each finished passage is written to a file at once. After an error or Ctrl-C the same call goes on from there.

    Args:
        passages: Those of a store.
        llm: As for ``QuestionAnswerer``: a LangChain or LlamaIndex model, or a function from str to str.
        partial: The file of what is finished; the caller removes it when the questions are safe elsewhere.
        model_name: Name of the language model: a partial file of another one is refused.
        per_passage: The most questions of one passage, from 1.
        limit: The most questions; passages are then drawn at random, and asked about until there are enough.
        seed: Of the draw.
        concurrency: How many passages are asked about at once, from 1.
        show_progress: Show a progress bar.

    Returns:
        The questions, no two of them alike. Replies that hold no usable question are counted in ``skipped``.

    Raises:
        PartialFileError: If the file was begun with another model or number of questions, or is something else.
        QuestionMakingError: If there is no passage, or no reply was usable.
        ValueError: If a number is out of range.
    """
    check_llm(llm)
    if concurrency < 1:
        msg = f"concurrency={concurrency} must be a whole number from 1 on"
        raise ValueError(msg)
    counted = MadeQuestions()
    materials = usable_passages(passages, counted.skipped, limit=limit, per_passage=per_passage, seed=seed)
    settings = {"model": model_name, "per_passage": per_passage, "prompt": _PROMPT_VERSION}
    finished = _PartialFile(Path(partial), settings)
    total = len(materials) if limit is None else None
    with progress_bar("Asking about passages", total, enabled=show_progress) as advance:
        advance(sum(_key(one) in finished.done for one in materials))
        while True:
            made = _gathered(materials, finished.done, per_passage, limit)
            waiting = [one for one in materials if _key(one) not in finished.done]
            if limit is not None:  # as many as are needed if each reply is usable
                waiting = waiting[: math.ceil((limit - len(made.rows)) / per_passage)]
            if not waiting:
                break
            _ask_all(waiting, llm, per_passage, concurrency, finished, advance)
    made.passages = len(passages)
    made.skipped += counted.skipped
    if not made.rows:
        msg = (
            f"The language model gave no usable question for {len(finished.done)} passages "
            f"({_counts(made.skipped)}); give another model, and another --out or no {finished.path.name!r}"
        )
        raise QuestionMakingError(msg)
    return made


def holds_replies(partial: str | Path) -> bool:
    """Whether a partial file of ``ask_questions`` is there, with at least one passage that is finished."""
    path = Path(partial)
    return path.is_file() and path.read_bytes().count(b"\n") > 1  # the first line says how it was begun


def parse_questions(text: str, body: str, count: int) -> tuple[list[str], int]:
    """Read the questions in a language model's reply.

    Args:
        text: The reply: a question a line, numbered or not, or a JSON list; what a reasoning model thought is cut off.
        body: The passage; a question that is copied from it is not usable.
        count: The most questions to take.

    Returns:
        The questions, and how many more lines looked like one but were not usable.
    """
    usable: list[str] = []
    refused = 0
    for line in _candidates(text.rpartition(_END_OF_THOUGHTS)[2]):
        query = _LEAD.sub("", line).strip(_QUOTES)
        if not query or _ANSWERED.match(query) or query[-1] not in "？?":
            continue  # an explanation, an answer, 无
        copied = squeezed(query).rstrip("？?") in squeezed(body)
        if not _SHORTEST <= len(query) <= _LONGEST or _REFERS.search(query) or copied or not _is_unicode(query):
            refused += 1
        elif asked(query) not in map(asked, usable):
            usable.append(query)
    return usable[:count], refused


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: not with half of an emoji, as a reply in JSON may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _candidates(text: str) -> list[str]:
    """The lines of a reply, or the texts of the JSON list in it."""
    if found := _LIST.search(text):
        try:
            items = json.loads(found[0])
        except ValueError:
            items = []
        texts = [next(iter(one.values()), "") if isinstance(one, dict) else one for one in items]
        if texts and all(isinstance(one, str) for one in texts):
            return texts
    return text.splitlines()


def _ask_all(
    materials: Sequence[Material],
    llm: LanguageModel,
    per_passage: int,
    concurrency: int,
    finished: "_PartialFile",
    advance: Advance,
) -> None:
    """Ask about passages, several at once; each is written down when its reply is there."""
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="luotuo-questions")
    waiting = {pool.submit(_ask, material, llm, per_passage): material for material in materials}
    try:
        for future in as_completed(waiting):
            finished.add(_key(waiting[future]), *future.result())
            del waiting[future]
            advance(1)
    finally:  # after an error or Ctrl-C nothing new is begun, and what is being answered is kept
        pool.shutdown(wait=True, cancel_futures=True)
        for future, material in waiting.items():
            if not future.cancelled() and future.exception() is None:
                finished.add(_key(material), *future.result())


def _ask(material: Material, llm: LanguageModel, count: int) -> tuple[list[str], int]:
    where = "，".join(part for part in (material.source, material.section) if part)
    user = f"出处：{where or '不详'}\n资料：\n{material.body}"
    return parse_questions(reply(llm, _INSTRUCTIONS.format(count=count), user), material.body, count)


def _gathered(
    materials: Sequence[Material], done: Mapping[str, "_ReadReply"], per_passage: int, limit: int | None
) -> MadeQuestions:
    """The questions of the passages that are finished, in the passages' order."""
    made = MadeQuestions()
    seen: set[str] = set()
    for material in materials:
        if (reply_read := done.get(_key(material))) is None:
            continue
        for query in reply_read.queries[:per_passage]:
            if limit is None or len(made.rows) < limit:
                made.add(material.question(query, material.body, "language model"), seen)
        made.skipped["question not usable"] += reply_read.refused
        made.skipped["reply without a question"] += not reply_read.queries and not reply_read.refused
    made.skipped = +made.skipped  # without those that are 0
    return made


def _key(material: Material) -> str:
    content = json.dumps(asdict(material), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in skipped.items())


class _ReadReply(NamedTuple):
    """What was read in the reply about one passage."""

    queries: list[str]
    refused: int


class _PartialFile:
    """Replies that were read, by passage: a line says how the file was begun, then each passage has a line.

    What was written when the disk was full or the process killed is no line: it is passed over, and written again.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self.path = path
        self.done: dict[str, _ReadReply] = {}
        self._settings = dict(settings)
        self._begun = False
        if path.exists():
            self._read()

    def add(self, key: str, queries: list[str], refused: int) -> None:
        """Write down a passage that is finished."""
        lines: list[dict[str, object]] = [] if self._begun else [{_FIRST_KEY: self._settings}]
        lines += [{"passage": key, "queries": queries, "refused": refused}]
        _append("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(), self.path)
        self._begun = True
        self.done[key] = _ReadReply(queries, refused)

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and (_BEGINNING.startswith(content) or content.startswith(_BEGINNING)):
            self.path.unlink()  # empty, or a first line that was cut off
            return
        try:
            first, *others = [json.loads(line) for line in whole.splitlines()]
            begun = dict(first[_FIRST_KEY])
            self.done = {one["passage"]: _ReadReply(list(one["queries"]), int(one["refused"])) for one in others}
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{self.path} is no file of finished questions ({error}); move it, or give another --out"
            raise PartialFileError(msg) from error
        if begun != self._settings:
            differing = ", ".join(
                f"{key} {begun.get(key)!r}" for key in self._settings if begun.get(key) != self._settings[key]
            )
            msg = f"{self.path} was begun with {differing}; give the same, delete that file, or give another --out"
            raise PartialFileError(msg)
        if len(whole) < len(content):  # a last line that was cut off
            os.truncate(self.path, len(whole))
        self._begun = True


def _append(content: bytes, path: Path) -> None:
    """Write bytes at the end of a file, all or none, so that a later line never follows half of one."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
    except BaseException:
        with suppress(OSError):
            if before:
                os.truncate(path, before)
            else:
                path.unlink(missing_ok=True)
        raise
