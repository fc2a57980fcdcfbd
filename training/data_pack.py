"""The texts that luotuo-mini and luotuo-tiny learn from: what is allowed, filtered, cut and packed into one file.

    python -m training.data_pack DATA --devsets runs/devsets/devsets.json --out runs/luotuo-mini/pack.jsonl.xz

A line is ``{"kind": "text", "text", "as": "query" | "passage", "source"}``, ``{"kind": "pair", "query", "positive",
"source"}`` or ``{"kind": "scored", "sentence1", "sentence2", "label", "source"}``; lines are shuffled. Nothing gets in
that shares a sentence with the development sets of retrieval, similarity and halves; texts of the classification probes
may, without their labels. The pack is to stay below 40 MB, so that it can travel to a machine with a GPU; it is not for
the repository.
"""

import argparse
import hashlib
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.devsets import DevSets, cut_in_half, rows_of, sentence_hashes, shares_sentence

SEED = 1
LONGEST = 900  # characters: what 512 tokens hold
TRADITIONAL_SHARE = 0.12  # of modern texts that are converted

# Left out of a model that is given away, wherever they occur. Their licence forbids it or may: non-commercial (c3,
# CAIL2019, hello-algo, ctf-wiki, d2l-zh, growth-ebook, fucking-algorithm), weekly columns and translations of articles
# whose licence is not stated (ruanyf-weekly, gold-miner), texts still under copyright whatever their repository says
# (poetry_modern, the news programme xin-wen-lian-bo), and instruction sets derived from a non-commercial one (alpaca,
# BELLE). Otherwise the licence counts that the origin states; answers written by language models that it gives away
# (lawyer-llama, Huatuo, Med-ChatGLM, smile) are in.
FORBIDDEN = re.compile(
    r"^c3\b|^CAIL|hello-algo|ctf-wiki|d2l-zh|growth-ebook|fucking-algorithm|ruanyf|gold-miner|"
    r"modern-chinese-poetry|xin-wen-lian-bo|alpaca|\bbelle",
    re.IGNORECASE,
)
OCNLI = "sts/nli_ocnli_train"  # its licence forbids commercial use, and a few of its sentences stand in SimCLUE too


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the data and how much of it is taken.

    Attributes:
        file: Its name, without ``.jsonl.xz``.
        most: Lines at most.
        modern: Whether it is modern Chinese in Simplified characters, some of which is turned Traditional.
    """

    file: str
    most: int = 1_000_000
    modern: bool = True


TEXTS = (
    Source("corpus/abstracts"),
    Source("corpus/app_descriptions"),
    Source("corpus/dialogue", 16_000),
    Source("corpus/finance", 16_000),
    Source("corpus/history_modern_translation", 5_000),
    Source("corpus/law", 16_000),
    Source("corpus/life"),
    Source("corpus/literature_notes"),
    Source("corpus/news_pd1998"),
    Source("corpus/reviews", 24_000),
    Source("corpus/short_utterances", 45_000),
    Source("corpus/software_manuals"),
    Source("corpus/stories"),
    Source("corpus/tech_books", 18_000),
    Source("corpus/tech_lctt", 22_000),
    Source("corpus/tech_pydocs"),
    Source("corpus/wiki_mrc"),
    Source("corpus/queries_ecom", 20_000),
    Source("corpus/queries_video", 20_000),
    Source("corpus/classical_prose", 3_000, modern=False),
    Source("corpus/novels_classical", 3_000, modern=False),
    Source("corpus/poetry_classical", 9_000, modern=False),
)
PAIRS = (
    Source("pairs/law_qa"),
    Source("pairs/medical_qa"),
    Source("pairs/mrc_question_passage"),
    Source("pairs/tech_title_body"),
    Source("pairs/finance_title_body"),
    Source("pairs/web_query_title"),
    Source("pairs/paper_keywords_abstract"),
    Source("pairs/psychology_smile", 3_000),
    Source("pairs/gushiwen", modern=False),
    Source("pairs/classical_modern", 8_000, modern=False),
    Source("pairs/xiehouyu", 1_500),
)
SCORED = (
    Source("sts/atec_train"),
    Source("sts/afqmc_train"),
    Source("sts/chinese_sts_simtrain"),
    Source("sts/stsb_train"),
    Source("sts/simclue_pairs"),
)
QUERY_FILES = ("corpus/queries_ecom", "corpus/queries_video", "corpus/short_utterances")

Line = dict[str, Any]


class Pack:
    """Collects lines, each text once, none from the development sets.

    Args:
        known: Sentence hashes of what must stay out: the development sets.
        convert: Simplified to Traditional; None leaves all texts as they are.
    """

    def __init__(self, known: set[str], convert: Any = None) -> None:
        self.known = known
        self.convert = convert
        self.counts: Counter[str] = Counter()
        self.random = random.Random(SEED)
        self._seen: set[str] = set()

    def lines(self, data: Path) -> Iterator[Line]:
        """All lines of the pack, file by file."""
        for kind, sources, read in (
            ("text", TEXTS, self._texts),
            ("pair", PAIRS, self._pairs),
            ("scored", SCORED, self._scored),
        ):
            for source in sources:
                taken = 0
                for row in rows_of(data / f"{source.file}.jsonl.xz"):
                    if taken >= source.most:
                        break
                    origin = str(row.get("source", source.file.rpartition("/")[2]))
                    if FORBIDDEN.search(origin):
                        self.counts[f"{source.file} {origin}: left out"] += 1
                        continue
                    turn = source.modern and self.convert is not None and self.random.random() < TRADITIONAL_SHARE
                    for line in read(row, source, self.convert.convert if turn else str):
                        taken += 1
                        self.counts[f"{source.file} {origin}"] += 1
                        yield {"kind": kind, **line, "source": origin}

    def _new(self, *texts: str) -> bool:
        key = hashlib.sha256("|".join(texts).encode()).hexdigest()[:16]
        if key in self._seen:
            return False
        if any(shares_sentence(text, self.known) for text in texts):
            self.counts["shares a sentence with what is held out"] += 1
            return False
        self._seen.add(key)
        return True

    def _texts(self, row: Line, source: Source, turned: Any) -> Iterator[Line]:
        text = row["text"].strip()
        if len(text) < 4 or not self._new(text):
            return
        if source.file in QUERY_FILES:
            yield {"text": turned(text), "as": "query" if self.random.random() < 0.7 else "passage"}
            return
        for piece in self._pieces(text[:LONGEST]):
            as_query = self.random.random() < (0.4 if len(piece) <= 60 else 0.1)
            yield {"text": turned(piece), "as": "query" if as_query else "passage"}

    def _pieces(self, text: str) -> list[str]:
        """The whole, or its halves, or its sentences: lengths from a few characters to all that fits."""
        draw = self.random.random()
        cut = cut_in_half(text)
        if len(text) < 40 or draw < 0.3 or cut is None:
            return [text]
        if draw < 0.65:
            return [half for half in cut if len(half) >= 4]
        sentences = [one.strip() for one in re.split(r"(?<=[。！？\n])", text)]
        return [one for one in sentences if len(one) >= 6] or [text]

    def _pairs(self, row: Line, _source: Source, turned: Any) -> Iterator[Line]:
        query, positive = row["query"].strip(), row["positive"].strip()[:LONGEST]
        if len(query) >= 2 and len(positive) >= 4 and self._new(query, positive):
            yield {"query": turned(query[:LONGEST]), "positive": turned(positive)}

    def _scored(self, row: Line, source: Source, turned: Any) -> Iterator[Line]:
        first, second = row["sentence1"].strip(), row["sentence2"].strip()
        if first and second and self._new(first, second):
            scale = 5.0 if re.search("stsb|chinese_sts", source.file) else 1.0
            yield {"sentence1": turned(first), "sentence2": turned(second), "label": float(row["label"]) / scale}


def write_pack(lines: list[Line], path: Path) -> None:
    """Write lines to a ``.jsonl.xz``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with lzma.open(temporary, "wt", encoding="utf-8", preset=9) as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    temporary.replace(path)


def main() -> None:
    """Build the pack and tell what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the training and development data")
    parser.add_argument("--devsets", type=Path, default=Path("runs/devsets/devsets.json"))
    parser.add_argument("--out", type=Path, default=Path("runs/luotuo-mini/pack.jsonl.xz"))
    arguments = parser.parse_args()
    from opencc import OpenCC

    known = DevSets.read(arguments.devsets).sentences()
    for row in rows_of(arguments.data / f"{OCNLI}.jsonl.xz"):
        known.update(sentence_hashes(row["sentence1"]), sentence_hashes(row["sentence2"]))
    pack = Pack(known, OpenCC("s2t"))
    lines = list(pack.lines(arguments.data))
    random.Random(SEED).shuffle(lines)
    write_pack(lines, arguments.out)
    counts = dict(sorted(pack.counts.items()))
    arguments.out.with_suffix(".counts.json").write_text(json.dumps(counts, ensure_ascii=False, indent=1), "utf-8")
    kinds = Counter(line["kind"] for line in lines)
    print(f"{arguments.out}: {dict(kinds)}, {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
