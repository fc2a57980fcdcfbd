"""The development sets that models are chosen by: fixed once, carved out of the development data by document.

    python -m training.devsets DATA --out runs/devsets

``DATA`` is a folder with ``pairs/``, ``corpus/``, ``sts/`` and ``classification/`` of ``*.jsonl.xz``. Documents are
chosen by the hash of their text, so that the same data gives the same sets. What is written holds texts of the data and
is not for the repository. `DevSets.sentences` says what training texts must not share.
"""

import argparse
import hashlib
import json
import lzma
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SEED = "luotuo-dev-1"
CANDIDATES = 1_000
QUERIES = 300
LONGEST = 400  # characters of a passage: the sets are read by every model of every ablation, on a laptop
LEAST_SENTENCE = 12  # characters; shorter sentences are common property

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries that search passages.

    Attributes:
        queries: Q queries.
        passages: The candidates. The first ``held`` of them are held out of the training; the rest, the beginnings of
            longer texts, are there to be told from the right ones.
        positives: For each query the positions of the candidates that answer it, all below ``held``.
        held: How many passages are held out.
    """

    queries: list[str]
    passages: list[str]
    positives: list[list[int]]
    held: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Pairs of sentences with a human label: higher is more alike."""

    first: list[str]
    second: list[str]
    labels: list[float]


@dataclass(frozen=True, slots=True)
class Halves:
    """Front and back halves of the same text, row by row."""

    front: list[str]
    back: list[str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts with a class; the first ``train`` of them fit the probe, the rest judge it."""

    texts: list[str]
    labels: list[str]
    train: int


@dataclass(slots=True)
class DevSets:
    """All development sets, by task and name."""

    retrieval: dict[str, Retrieval] = field(default_factory=dict)
    sts: dict[str, Scored] = field(default_factory=dict)
    halves: dict[str, Halves] = field(default_factory=dict)
    classification: dict[str, Labelled] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write all sets as one JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> "DevSets":
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"retrieval": Retrieval, "sts": Scored, "halves": Halves, "classification": Labelled}
        return cls(**{task: {name: kinds[task](**one) for name, one in found[task].items()} for task in kinds})

    def sentences(self) -> set[str]:
        """Hashes of all sentences of retrieval passages, queries, scored sentences and halves, for `shares_sentence`.

        The texts of the classification probes are left out: they carry no answer that an embedding could learn.
        """
        texts: list[str] = []
        for retrieval in self.retrieval.values():
            texts += [*retrieval.queries, *retrieval.passages[: retrieval.held]]
        for scored in self.sts.values():
            texts += [*scored.first, *scored.second]
        for halves in self.halves.values():
            texts += [*halves.front, *halves.back]
        return {one for text in texts for one in sentence_hashes(text)}


def sentence_hashes(text: str) -> Iterator[str]:
    """A hash of each sentence of 12 characters or more, punctuation aside; of a shorter text, of the whole."""
    folded = unicodedata.normalize("NFKC", text).lower()
    letters = [re.sub(r"[\W_]+", "", part) for part in re.split(r"[。!?;\n]", folded)]
    long_ones = [one for one in letters if len(one) >= LEAST_SENTENCE]
    for one in long_ones or ["".join(letters)]:
        yield hashlib.sha256(one.encode()).hexdigest()[:16]


def shares_sentence(text: str, known: set[str]) -> bool:
    """Whether a text has a sentence in common with the development sets."""
    return any(one in known for one in sentence_hashes(text))


def rows_of(path: Path) -> Iterator[Row]:
    """The lines of a ``.jsonl.xz`` file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def place(text: str) -> str:
    """Where a text stands in an order that has nothing to do with its content."""
    return hashlib.sha256(f"{SEED}|{text}".encode()).hexdigest()


def retrieval_set(
    rows: Iterable[Row], candidates: int = CANDIDATES, queries: int = QUERIES, shortest: int = 20
) -> Retrieval:
    """Choose documents by hash, half of those that there are at most, and one question of each.

    The other half is left to train on; where a question is that of several candidates, each of them answers it. Where
    there are fewer candidates than asked for, the beginnings of longer passages join them.
    """
    of_passage: dict[str, set[str]] = {}
    longer: set[str] = set()
    for row in rows:
        query, passage = row["query"].strip(), row["positive"].strip()
        if len(passage) > LONGEST:
            longer.add(passage[:LONGEST])
        elif shortest <= len(passage) and 2 <= len(query) <= 200 and query not in passage[: len(query) + 4]:
            of_passage.setdefault(passage, set()).add(query)
    passages = sorted(of_passage, key=place)[: min(candidates, len(of_passage) // 2)]
    answers: dict[str, list[int]] = {}
    for position, passage in enumerate(passages):
        for query in of_passage[passage]:
            answers.setdefault(query, []).append(position)
    chosen = list(dict.fromkeys(min(of_passage[passage], key=place) for passage in passages))[:queries]
    others = sorted(longer, key=place)[: candidates - len(passages)]
    return Retrieval(chosen, [*passages, *others], [answers[query] for query in chosen], len(passages))


def scored_set(rows: Iterable[Row], count: int = 1_000) -> Scored:
    """Choose pairs by hash."""
    ordered = sorted(rows, key=lambda row: place(row["sentence1"] + "|" + row["sentence2"]))[:count]
    return Scored(
        [row["sentence1"] for row in ordered],
        [row["sentence2"] for row in ordered],
        [float(row["label"]) for row in ordered],
    )


def cut_in_half(text: str) -> tuple[str, str] | None:
    """Cut at the mark nearest the middle; None where there is none in the middle half."""
    marks = [match.end() for match in re.finditer(r"[。！？；，\n]", text[:-1])]
    middle = len(text) / 2
    near = min(marks, key=lambda mark: abs(mark - middle), default=0)
    if abs(near - middle) > len(text) / 4:
        return None
    return text[:near].strip(), text[near:].strip()


def halves_set(rows: Iterable[Row], shortest: int, longest: int, count: int = CANDIDATES) -> Halves:
    """Choose texts of a length by hash, and cut each in half."""
    texts = {row["text"].strip() for row in rows}
    pairs: dict[str, str] = {}
    for text in sorted((one for one in texts if shortest <= len(one) <= longest), key=place):
        cut = cut_in_half(text)
        if cut is not None and min(map(len, cut)) >= 8:
            pairs.setdefault(*cut)
        if len(pairs) == count:
            break
    return Halves(list(pairs), list(pairs.values()))


def labelled_set(rows: Iterable[Row], train: int = 1_000, test: int = 1_000) -> Labelled:
    """Choose texts by hash; classes with fewer than ten texts are left out."""
    label_of = {row["text"].strip()[:200]: str(row["label"]) for row in rows}
    counts: dict[str, int] = {}
    for label in label_of.values():
        counts[label] = counts.get(label, 0) + 1
    texts = [text for text in sorted(label_of, key=place) if counts[label_of[text]] >= 10][: train + test]
    return Labelled(texts, [label_of[text] for text in texts], min(train, len(texts) // 2))


def build(data: Path) -> DevSets:
    """Build all development sets."""

    def rows(name: str, keep: Callable[[str], bool] = bool) -> Iterator[Row]:
        return (row for row in rows_of(data / f"{name}.jsonl.xz") if keep(row.get("source", name)))

    return DevSets(
        retrieval={
            "law": retrieval_set(rows("pairs/law_qa", lambda one: one in ("lawyer-llama/advice", "LegalQA"))),
            "medicine": retrieval_set(rows("pairs/medical_qa", lambda one: one != "Huatuo/literature")),
            "encyclopaedia": retrieval_set(rows("pairs/mrc_question_passage", lambda one: one.startswith("cmrc2018"))),
            "traditional": retrieval_set(rows("pairs/mrc_question_passage", lambda one: one == "DRCD/dev")),
            "technology": retrieval_set(rows("pairs/tech_title_body", lambda one: one.startswith("LCTT"))),
            "finance": retrieval_set(rows("pairs/finance_title_body")),
            "news": retrieval_set(rows("pairs/news_title_body")),
            "web": retrieval_set(rows("pairs/web_query_title", lambda one: one == "QBQTC/dev"), shortest=8),
            "classical": retrieval_set(rows("pairs/classical_modern")),
        },
        sts={
            name: scored_set(rows(f"sts/{file}"))
            for name, file in {
                "lcqmc": "lcqmc_dev",
                "bq": "bq_dev",
                "atec": "atec_ccks_dev",
                "afqmc": "afqmc_train",
                "stsb": "stsb_dev",
                "xiaobu": "oppo_xiaobu_dev",
                "pawsx": "pawsx_dev",
            }.items()
        },
        halves={
            "news": halves_set(rows("corpus/news_pd1998"), 120, 400),
            "stories": halves_set(rows("corpus/stories", lambda one: not one.startswith("c3")), 120, 400),
            "poems": halves_set(rows("corpus/poetry_classical"), 40, 160),
        },
        classification={
            name: labelled_set(rows(f"classification/{file}"))
            for name, file in {
                "headlines": "tnews",
                "news": "thucnews_title",
                "intents": "smp2019_intent",
                "takeaway": "waimai_10k",
                "shopping": "online_shopping",
            }.items()
        },
    )


def main() -> None:
    """Build and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the development data")
    parser.add_argument("--out", type=Path, default=Path("runs/devsets"), help="folder to write to")
    arguments = parser.parse_args()
    sets = build(arguments.data)
    sets.write(arguments.out / "devsets.json")
    for name, one in sets.retrieval.items():
        length = sum(map(len, one.passages)) // len(one.passages)
        print(f"retrieval/{name}: {len(one.queries)} queries, {len(one.passages)} candidates of {length} characters")
    for name, scored in sets.sts.items():
        print(f"sts/{name}: {len(scored.labels)} pairs")
    for name, halves in sets.halves.items():
        print(f"halves/{name}: {len(halves.front)} pairs")
    for name, labelled in sets.classification.items():
        print(f"classification/{name}: {len(labelled.texts)} texts, {len(set(labelled.labels))} classes")


if __name__ == "__main__":
    main()
