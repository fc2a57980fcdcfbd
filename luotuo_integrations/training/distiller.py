"""Distiller: a corpus and a teacher in, a small model in the teacher's vector space out."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luotuo_integrations.glm_encoder import find_glm
from luotuo_integrations.registry import resolve
from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.cleaning import PairSet, make_pairs
from luotuo_integrations.training.config import DISTILLATION_LOSS, ConfigError, TrainConfig
from luotuo_integrations.training.config_sections import BatchConfig
from luotuo_integrations.training.corpora import read_documents
from luotuo_integrations.training.evaluate import (
    EvaluationSet,
    PairEvaluation,
    evaluation_of,
    teacher_metrics,
)
from luotuo_integrations.training.export import ModelDescription
from luotuo_integrations.training.objective import Objective
from luotuo_integrations.training.records import Pair, read_records, texts_of
from luotuo_integrations.training.run_folder import RunFolder
from luotuo_integrations.training.student_spec import StudentSpec
from luotuo_integrations.training.students import build_student
from luotuo_integrations.training.table import Ids, TextTable
from luotuo_integrations.training.teacher_cache import CachedTeacher
from luotuo_integrations.training.teachers import Estimate, Teacher, open_teacher
from luotuo_integrations.training.trainer import Metrics
from luotuo_integrations.training.training_run import MATRIX_ROWS, Matrix, RunResult, TrainingRun, make_accelerator
from luotuo_integrations.training.training_set import TeacherTable, TrainingSet

logger = logging.getLogger(__name__)

SPLIT_SEED = 0  # runs of different seeds are compared on the same texts


class Distiller:
    """Distils a teacher into a student, by the method of Luotuo Embedding.

    Articles are cut in halves; the teacher embeds both; the student learns the vectors, and the similarities between
    left and right halves.

    Args:
        config: A recipe. ``config.loss`` may be empty: then the default of the method is used.
        documents: Texts, mappings, Documents or a Hugging Face dataset, in place of ``config.data.corpus``.
        teacher: In place of ``config.teacher``.
        on_estimate: Is told requests, tokens, cost and time before the first call.
        show_progress: Show progress bars.

    Raises:
        ConfigError: If there is neither a corpus nor documents, or neither kind of teacher.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        documents: Iterable[Any] | None = None,
        teacher: Teacher | None = None,
        on_estimate: Callable[[Estimate], None] | None = None,
        show_progress: bool = False,
    ) -> None:
        if documents is None and not config.data.corpus:
            msg = "no corpus is given; type --corpus FOLDER, or set data.corpus in the recipe"
            raise ConfigError(msg)
        if teacher is None and not config.teacher.model:
            msg = "no teacher is given; type --teacher openai:MODEL (or a model folder), or set teacher.model"
            raise ConfigError(msg)
        self.config = config.with_default_loss(DISTILLATION_LOSS)
        has = ["teacher", *(["negatives"] if config.mining.negatives else [])]
        self.objective = Objective(self.config.loss, has, config.matryoshka)  # a bad loss is told before any work
        self.documents = documents
        self.teacher = teacher
        self.on_estimate = on_estimate
        self.show_progress = show_progress

    def run(self, *, resume: bool = False) -> RunResult:
        """Read, embed, build, train, evaluate, export and report.

        Args:
            resume: Go on with the run in ``config.run.out``; without one there, begin.

        Raises:
            RunError: If the folder holds a run and ``resume`` is false, or the configuration or texts have changed.
            TeacherError: If the teacher fails for good; what it gave so far is kept.
            TrainingDivergedError: If the loss is not finite.
            KeyboardInterrupt: After Ctrl-C; nothing finished is lost.
        """
        config = self.config
        accelerator = make_accelerator(config.run)
        further = self._further_evaluations()
        with accelerator.main_process_first():
            folder = RunFolder(config.run.out, config, resume=resume or not accelerator.is_main_process)
            pairs = self._pairs()
            texts = (text for pair in (*pairs.train, *pairs.dev) for text in texts_of(pair))
            folder.begin(texts, pairs.counts, write=accelerator.is_main_process)
            if not folder.student.is_dir():
                self._find_base()  # before the teacher is paid
            source = self.teacher or self._open_teacher()
            kinds, name, licence = _kinds(source), source.name, source.licence
            table = TextTable()
            train_numbers, dev_numbers = (_numbers(table, rows, kinds) for rows in (pairs.train, pairs.dev))
            teacher = self._teacher_table(folder.path, source, table)
            del source  # a model in this process would stay in memory
            student = self._student(folder.student, table, kinds, teacher.vectors.shape[1])
        run = TrainingRun(folder, config, student, accelerator, show_progress=self.show_progress)
        batch = self._batch(len(pairs.train))
        train = TrainingSet("corpus", train_numbers, self.objective, batch, teacher=teacher, mining=config.mining)
        dev = self._pair_evaluation(pairs.dev, kinds, teacher.of(dev_numbers))
        evaluations = [dev, *further]
        left, right = (list(side[:MATRIX_ROWS]) for side in (dev.left, dev.right))
        halves = teacher.of(dev_numbers[:MATRIX_ROWS])
        return run.train(
            table,
            [train],
            evaluations,
            teacher=teacher_metrics([dev]),
            description=lambda after: self._description(after, name, licence, pairs.counts),
            matrix=Matrix(left, right, kinds, halves[:, 0] @ halves[:, 1].T),
        )

    def _pairs(self) -> PairSet:
        data = self.config.data
        documents = self.documents if self.documents is not None else [Path(one) for one in data.corpus]
        source = read_documents(documents, text_field=data.text_field, encoding=data.encoding)
        pairs = make_pairs(
            source,
            least=data.least_characters,
            most=data.most_characters,
            max_pairs=data.max_pairs,
            dev_share=data.dev_share,
            dev_count=data.dev_count,
            near_duplicates=data.near_duplicates,
            seed=SPLIT_SEED,
            show_progress=self.show_progress,
        )
        if min(len(pairs.train), len(pairs.dev)) < 2:
            msg = (
                f"The corpus gives {len(pairs.train)} pairs to train on and {len(pairs.dev)} for evaluation, but at "
                "least 2 of each are needed. Give more documents, lower data.least_characters, or set data.dev_count=2"
            )
            raise ConfigError(msg)
        return pairs

    def _open_teacher(self) -> Teacher:
        settings = self.config.teacher
        return open_teacher(
            settings.model,
            base_url=settings.base_url,
            device=settings.device,
            requests_at_once=settings.requests_at_once,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            price_per_million_tokens=settings.price_per_million_tokens,
            dimensions=settings.dimensions,
            input_types=settings.input_types,
        )

    def _teacher_table(self, run: Path, teacher: Teacher, table: TextTable) -> TeacherTable:
        settings = self.config.teacher
        cached = CachedTeacher(
            teacher,
            Path(settings.cache) if settings.cache else run / "teacher",
            max_cost=settings.max_cost,
            show_progress=self.show_progress,
            on_estimate=self.on_estimate,
        )
        vectors, rows = cached.vectors(table.texts, table.kinds)
        return TeacherTable(vectors, rows)

    def _find_base(self) -> None:
        """See that the student can be built, as far as that is known without the teacher's vectors."""
        spec = StudentSpec.parse(self.config.student.build)
        if spec.glm is not None:
            find_glm(spec.glm[0])
        else:
            resolve(self.config.student.base if spec.base is None else spec.base)

    def _student(self, folder: Path, table: TextTable, kinds: tuple[Kind, Kind], dimension: int) -> Path:
        if not folder.is_dir():
            build_student(
                self.config.student.build,
                folder,
                base=self.config.student.base,
                teacher_dimension=dimension,
                texts=table.texts,
                max_tokens=self.config.student.max_tokens,
                one_prompt=kinds[0] == kinds[1],
                prefix_tokens=self.config.strategy.prefix_tokens,
                seed=self.config.seed,
            )
        return folder

    def _batch(self, rows: int) -> BatchConfig:
        batch = self.config.batch
        if batch.size > rows:
            logger.warning("batch.size=%d, but there are %d pairs to train on: all are one batch", batch.size, rows)
        return batch

    def _pair_evaluation(self, pairs: Sequence[Pair], kinds: tuple[Kind, Kind], vectors: Vectors) -> PairEvaluation:
        return PairEvaluation(
            "dev",
            [pair.query for pair in pairs],
            [pair.positive for pair in pairs],
            left_kind=kinds[0],
            right_kind=kinds[1],
            teacher_left=vectors[:, 0],
            teacher_right=vectors[:, 1],
            candidates=self.config.evaluation.candidates,
        )

    def _further_evaluations(self) -> list[EvaluationSet]:
        files = [*self.config.evaluation.retrieval, *self.config.evaluation.similarity]
        return [evaluation_of(read_records(Path(one)), Path(one).stem) for one in files]

    def _description(self, metrics: Metrics, teacher: str, licence: str, counts: Mapping[str, int]) -> ModelDescription:
        corpus = ", ".join(self.config.data.corpus) or "texts given in Python"
        return ModelDescription(
            name=self.config.run.name or f"{self.config.run.out}/model",
            base=f"{self.config.student.base} ({self.config.student.build})",
            teacher=teacher,
            teacher_licence=licence,
            data=f"{counts['train']} pairs of halves for training, {counts['dev']} for evaluation: {corpus}",
            licence=self.config.run.licence,
            metrics=metrics,
        )


def _kinds(teacher: Teacher) -> tuple[Kind, Kind]:
    """How front and back halves are embedded: both prompts of the student must be trained, or there must be one."""
    return ("query", "passage") if teacher.distinguishes_kinds else ("passage", "passage")


def _numbers(table: TextTable, pairs: Sequence[Pair], kinds: tuple[Kind, Kind]) -> Ids:
    """Text numbers of the halves: int64 (N, 2)."""
    columns = [pair.query for pair in pairs], [pair.positive for pair in pairs]
    return np.stack([table.add_all(texts, kind) for texts, kind in zip(columns, kinds, strict=True)], axis=1)
