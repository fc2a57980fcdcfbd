"""Makes luotuo-mini and luotuo-tiny: from the bundled teacher and the data pack to a model folder, in two stages.

    python -m training.make_model align training/recipes/luotuo-mini.toml --pack runs/luotuo-mini/pack.jsonl.xz
    python -m training.make_model contrast training/recipes/luotuo-mini.toml --pack runs/luotuo-mini/pack.jsonl.xz

``align`` teaches a student of fewer layers the token states of its teacher on running text. ``contrast`` then trains on
pairs and scored pairs, source by source, while the teacher's vectors hold the student in its space. Both go on where
they were stopped. ``pack`` writes an aligned model that needs no second stage. The recipe says how much of each.
"""

import argparse
import json
import logging
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opencc import OpenCC

from luotuo_integrations.batching import CPU_BUDGET
from luotuo_integrations.model_folder import DenseSettings
from luotuo_integrations.modeling import EmbeddingModel, make_head
from luotuo_integrations.registry import resolve
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.alignment import Aligner
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.evaluate import RetrievalEvaluation
from luotuo_integrations.training.export import ModelDescription, export_model
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.run_folder import RunFolder
from luotuo_integrations.training.strategies import apply_strategy
from luotuo_integrations.training.students import build_student
from luotuo_integrations.training.table import TextTable, TokenTable, embed_numbers
from luotuo_integrations.training.teacher_cache import CachedTeacher
from luotuo_integrations.training.teachers import open_teacher
from luotuo_integrations.training.training_run import Matrix, TrainingRun, make_accelerator, unit
from luotuo_integrations.training.training_set import TeacherTable, TrainingSet
from training.devsets import DevSets
from training.pair_groups import Group, pair_groups, scored_groups

logger = logging.getLogger(__name__)

TEACHERS = {"luotuo-mini": "intfloat/multilingual-e5-small", "luotuo-tiny": "luotuo-mini"}
MOST_TOKENS = 512
ROTATION_TEXTS = 3_000
DEFAULT_PAIRS = 9_000
SCORED = 0.7  # scored pairs for each pair of a run; they are short


def pack_lines(pack: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """The lines of some kinds, in the order of the pack, which is random."""
    with lzma.open(pack, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["kind"] in kinds:
                yield row


def texts_of_line(line: dict[str, Any]) -> list[tuple[str, Kind]]:
    """Each text of a line, and as what it is embedded."""
    if line["kind"] == "text":
        return [(line["text"], line["as"])]
    if line["kind"] == "pair":
        return [(line["query"], "query"), (line["positive"], "passage")]
    return [(line["sentence1"], "query"), (line["sentence2"], "query")]


def align(config: TrainConfig, pack: Path, kinds: Sequence[str], *, show_progress: bool = True) -> Path:
    """Stage 1: make the student and align it on the lines of some kinds; gives the folder of the aligned model."""
    out, settings = Path(config.run.out), config.alignment
    table = TextTable()
    wanted = 1.2 * settings.tokens / settings.passes  # a text has a token for 1.3 to 2 characters, and four of its own
    for line in pack_lines(pack, *kinds):
        for text, kind in texts_of_line(line):
            table.add(text, kind)
            wanted -= len(text) / 2 + 4
        if wanted < 0:
            break
    folder = RunFolder(out / "alignment", config, resume=True)
    folder.begin(table.texts, {"texts": len(table)})
    if not folder.student.is_dir():
        build_student(config.student.build, folder.student, base=config.student.base)
    student = EmbeddingModel.load(folder.student)
    teacher = EmbeddingModel.load(resolve(config.teacher.model))
    apply_strategy(student, config.strategy)
    tokenizer = TextTokenizer(folder.student)
    most = config.student.max_tokens or MOST_TOKENS
    tokens = TokenTable.of(table, tokenizer, dict(student.settings.prompts), most, show_progress=show_progress)
    aligner = Aligner(
        student,
        teacher,
        tokens,
        config=settings,
        folder=folder.path,
        device="cuda" if torch.cuda.is_available() and config.run.device != "cpu" else "cpu",
        bfloat16={"auto": None, "no": False, "bf16": True}[config.run.precision],
        seed=config.seed,
        show_progress=show_progress,
    )
    logger.info("Aligning on %d of %d texts in %d steps", sum(map(len, aligner.steps)), len(table), len(aligner.steps))
    aligner.run()
    return student.to("cpu").save(out / "aligned", tokenizer.tokenizer, overwrite=True)


def rotate(aligned: Path, folder: Path, pack: Path) -> Path:
    """Give the aligned model a head that turns its vectors so that the first dimensions tell most.

    The head is orthogonal: no cosine changes. Its rows are the right singular vectors of the vectors of some texts, the
    largest first, so that a vector cut to its first dimensions keeps as much as a linear cut can.
    """
    model = EmbeddingModel.load(aligned)
    tokenizer = TextTokenizer(aligned)
    table = TextTable()
    for line in islice(pack_lines(pack, "text"), ROTATION_TEXTS):
        table.add(line["text"], line["as"])
    tokens = TokenTable.of(table, tokenizer, dict(model.settings.prompts), MOST_TOKENS)
    numbers = np.arange(len(table))
    vectors = unit(embed_numbers(model, tokens, numbers, budget=CPU_BUDGET, device=torch.device("cpu")))
    turn = np.linalg.svd(vectors, full_matrices=False)[2]  # (D, D)
    settings = replace(model.settings, heads=(DenseSettings("2_Dense"),))
    head = make_head(torch.from_numpy(turn).float(), torch.zeros(len(turn)))
    return EmbeddingModel(model.backbone, settings, [head]).save(folder, tokenizer.tokenizer)


def contrast(config: TrainConfig, pack: Path, devsets: Path, *, show_progress: bool = True) -> Path:
    """Stage 2: train the aligned model on pairs and scored pairs; gives the folder of the finished model."""
    out = Path(config.run.out)
    table = TextTable()
    count = config.data.max_pairs or DEFAULT_PAIRS
    lines = chain(pack_lines(pack, "pair"), islice(pack_lines(pack, "text"), 20 * count))
    groups = pair_groups(lines, table, count, OpenCC("s2t").convert)
    groups |= scored_groups(pack_lines(pack, "scored"), table, int(SCORED * count))
    config = replace(config, run=replace(config.run, out=str(out / "contrast")))
    folder = RunFolder(config.run.out, config, resume=True)
    folder.begin(table.texts, {name: len(group.rows) for name, group in groups.items()})
    if not folder.student.is_dir():
        rotate(out / "aligned", folder.student, pack)
    cached = CachedTeacher(
        open_teacher(config.teacher.model), Path(config.teacher.cache or out / "teacher"), show_progress=show_progress
    )
    sets_to_watch = DevSets.read(devsets)
    matrix = _matrix(sets_to_watch, cached)
    vectors, rows = cached.vectors(table.texts, table.kinds)
    del cached  # and the teacher with it
    teacher = TeacherTable(vectors @ turn_of(folder.student).T, rows)  # turned as the student was
    sets = [_training_set(name, group, config, teacher) for name, group in groups.items() if len(group.rows) > 1]
    run = TrainingRun(folder, config, folder.student, make_accelerator(config.run), show_progress=show_progress)
    result = run.train(
        table,
        sets,
        [_mixed(sets_to_watch)],
        teacher={},
        description=lambda after: _description(config, after),
        matrix=matrix,
    )
    return result.model


def turn_of(folder: Path) -> Vectors:
    """The matrix of the head that `rotate` gave a model: float32 (D, D)."""
    head: Any = EmbeddingModel.load(folder).heads[0]
    turn: Vectors = head[0].weight.detach().numpy()
    return turn


def _training_set(name: str, group: Group, config: TrainConfig, teacher: TeacherTable) -> TrainingSet:
    """Rows of one domain: scored pairs learn from their scores, the others by contrast."""
    scored = bool(group.labels)
    loss = {part: one for part, one in config.loss.items() if part != ("softmax" if scored else "cosent")}
    objective = Objective(loss, ["teacher", "labels"] if scored else ["teacher"], config.matryoshka)
    return TrainingSet(name, group.numbers(), objective, config.batch, teacher=teacher, labels=group.scores())


def _matrix(sets: DevSets, teacher: CachedTeacher) -> Matrix:
    """Thirty halves of news, stories and poems, for the picture of R beside S."""
    front = [text for one in sets.halves.values() for text in one.front[:10]]
    back = [text for one in sets.halves.values() for text in one.back[:10]]
    vectors, rows = teacher.vectors([*front, *back], "passage")
    found = unit(np.asarray(vectors[rows], np.float32))
    return Matrix(front, back, ("passage", "passage"), found[: len(front)] @ found[len(front) :].T)


def pack_aligned(config: TrainConfig) -> Path:
    """Write the aligned model as a finished one, for a student that needs no second stage; gives the packed folder."""
    out = Path(config.run.out)
    model, tokenizer = EmbeddingModel.load(out / "aligned"), TextTokenizer(out / "aligned").tokenizer
    card = _description(config, {})
    export_model(model, tokenizer, out / "model", card=card, overwrite=True)
    return export_model(model, tokenizer, out / "model-8bit", card=card, pack="8bit", overwrite=True)


def _mixed(sets: DevSets) -> RetrievalEvaluation:
    """A glance at retrieval while training: some questions of each domain, among each other's answers."""
    pairs = [
        (query, one.passages[places[0]])
        for one in sets.retrieval.values()
        for query, places in islice(zip(one.queries, one.positives, strict=True), 40)
    ]
    passages = list(dict.fromkeys(passage for _, passage in pairs))
    queries = [query for query, _ in pairs]
    return RetrievalEvaluation("mixed", queries, passages, [{passages.index(passage)} for _, passage in pairs])


def _description(config: TrainConfig, metrics: dict[str, float]) -> ModelDescription:
    name = config.run.name or config.run.out
    return ModelDescription(
        name=name,
        base=f"{config.student.build} of {config.student.base}",
        teacher=TEACHERS.get(name, config.teacher.model),
        teacher_licence="MIT",
        data="Chinese texts and pairs, by source and licence in MODEL_CARD.md of luotuo-mini",
        licence=config.run.licence,
        metrics=metrics,
    )


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["align", "contrast", "pack"])
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--pack", type=Path, default=Path("runs/luotuo-mini/pack.jsonl.xz"), help="what training.data_pack wrote"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=["text", "pair", "scored"], default=["text"], help="lines that align reads"
    )
    parser.add_argument("--devsets", type=Path, default=Path("runs/devsets/devsets.json"), help="for contrast")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="a setting, as batch.size=64")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig.from_file(arguments.recipe).with_overrides(arguments.overrides)
    if arguments.stage == "align":
        print(align(config, arguments.pack, arguments.kinds))
    elif arguments.stage == "contrast":
        print(contrast(config, arguments.pack, arguments.devsets))
    else:
        print(pack_aligned(config))


if __name__ == "__main__":
    main()
