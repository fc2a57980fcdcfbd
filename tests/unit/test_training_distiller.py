"""Distiller: from texts and a teacher to a folder that others load; what goes wrong is told before work is lost."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luotuo_integrations import FAISS, Encoder, LuotuoEmbeddings
from luotuo_integrations.errors import ModelNotFoundError
from luotuo_integrations.model_folder import read_settings
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.config import ConfigError, TrainConfig
from luotuo_integrations.training.distiller import Distiller
from luotuo_integrations.training.openai_teacher import OpenAICompatibleTeacher
from luotuo_integrations.training.run_folder import RunError
from luotuo_integrations.training.steps import Passes, StepRunner
from luotuo_integrations.training.teachers import Estimate, TeacherError
from luotuo_integrations.training.trainer import Trainer
from luotuo_integrations.training.training_run import RunResult, TrainingRun
from tests.embedding_stub import EmbeddingStub
from tests.training_parts import losses
from tests.training_runs import DOCUMENTS, articles, distillation, without

TEACHER_DIMENSION = 32
TEXTS = 2 * DOCUMENTS


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without("matplotlib", "matplotlib.figure"):
        yield


@pytest.fixture
def server() -> Iterator[EmbeddingStub]:
    with EmbeddingStub(TEACHER_DIMENSION, retry_after="0") as stub:
        yield stub


def from_server(server: EmbeddingStub, base: Path, out: Path, **values: Any) -> TrainConfig:
    return distillation(base, out, **{"teacher__model": "openai:stub", "teacher__base_url": server.base_url, **values})


@dataclass(frozen=True)
class Finished:
    """A run that ended, only to be read."""

    result: RunResult
    folder: Path
    estimates: list[Estimate]
    answered: dict[str, int]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("运行") / "蒸馏"
    estimates: list[Estimate] = []
    with EmbeddingStub(TEACHER_DIMENSION) as server:
        config = from_server(server, tiny_folder, folder, run__licence="Apache-2.0", run__pack="8bit")
        result = Distiller(config, documents=articles(), on_estimate=estimates.append).run()
    return Finished(result, folder, estimates, dict(server.answered))


def teacher_calls(server: EmbeddingStub) -> int:
    return len(server.requests)


# What a run leaves


def test_a_run_asks_each_half_once_and_tells_the_estimate(finished: Finished) -> None:
    assert len(finished.answered) == TEXTS
    assert set(finished.answered.values()) == {1}
    assert [(one.texts, one.requests) for one in finished.estimates] == [(TEXTS, 5)]


def test_a_run_leaves_model_report_pictures_and_metrics(finished: Finished) -> None:
    result, folder = finished.result, finished.folder
    assert (result.model, result.report) == (folder / "model", folder / "report.md")
    left = {one.name for one in folder.iterdir()}
    assert left >= {"config.json", "data.json", "environment.json", "log.jsonl", "metrics.json", "student", "teacher"}
    assert left >= {"model", "model-8bit", "report.md", "curves.png", "similarity.png", "checkpoints"}
    assert not [name for name in left if name.startswith(".")]
    for name in ("curves.png", "similarity.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    report = result.report.read_text(encoding="utf-8")
    assert "![Cosines of the student beside the teacher's](similarity.png)" in report
    assert f"LuotuoEmbeddings('{result.model.as_posix()}')" in report
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["before"], metrics["after"], metrics["teacher"]) == (result.before, result.after, result.teacher)
    assert metrics["main"] == "dev/spearman_to_teacher"
    assert (metrics["steps"], metrics["texts"]) == (4, 2 * 2 * 32)
    assert result.after != result.before
    assert set(result.teacher) < set(result.before)


def test_the_model_card_names_teacher_data_and_licence(finished: Finished) -> None:
    card = (finished.result.model / "README.md").read_text(encoding="utf-8")
    assert "openai:stub@127.0.0.1" in card
    assert "32 pairs of halves for training, 8 for evaluation" in card
    assert "Apache-2.0" in card.partition("\n---\n")[0].lower().replace("apache-2.0", "Apache-2.0")


def test_what_is_reported_is_what_the_exported_model_does(finished: Finished) -> None:
    """The metrics of the exported folder, measured anew by the encoder."""
    from luotuo_integrations.similarity_metrics import pair_accuracy

    pairs = Distiller(TrainConfig.from_file(finished.folder / "config.json"), documents=articles())._pairs()
    encoder = Encoder(finished.result.model, device="cpu")
    left, right = (
        encoder.encode(texts) for texts in zip(*((one.query, one.positive) for one in pairs.dev), strict=True)
    )
    measured = pair_accuracy(left, right, candidates=1000)
    assert {f"dev/{name}": value for name, value in measured.items()}.items() <= finished.result.after.items()


@pytest.mark.parametrize(("kind", "prompt"), [("query", "query"), ("passage", "document")])
def test_encoder_and_sentence_transformers_give_equal_vectors(finished: Finished, kind: Any, prompt: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["试用期员工可以请年假吗", "每晚四百元", *articles(3, seed=9)]
    own = Encoder(finished.result.model, device="cpu").encode(texts, kind)
    other = SentenceTransformer(str(finished.result.model), device="cpu").encode(texts, prompt_name=prompt)
    assert own.shape == (5, TEACHER_DIMENSION)
    np.testing.assert_allclose(own, other, atol=1e-5)


def test_the_model_serves_a_faiss_search(finished: Finished) -> None:
    embeddings = LuotuoEmbeddings(model=str(finished.result.model), device="cpu")
    texts = articles(20, seed=5)
    store = FAISS.from_texts(texts, embeddings)
    for text in texts:
        assert store.similarity_search_by_vector(embeddings.embed_documents([text])[0], k=1)[0].page_content == text
    assert len(store.similarity_search("试用期", k=3)) == 3


def test_the_packed_copy_is_nearly_the_same_model(finished: Finished) -> None:
    texts = articles(5, seed=7)
    own, packed = (Encoder(finished.folder / name, device="cpu").encode(texts) for name in ("model", "model-8bit"))
    assert (own * packed).sum(axis=1).min() > 0.999


def test_a_teacher_of_another_dimension_gives_a_head_and_one_of_the_same_none(
    finished: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    headed = EmbeddingModel.load(finished.folder / "student")
    assert (headed.dimension, headed.hidden_size, len(headed.heads)) == (TEACHER_DIMENSION, 16, 1)
    with EmbeddingStub(24) as server:
        Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=articles()).run()
    student, base = EmbeddingModel.load(tmp_path / "run" / "student"), EmbeddingModel.load(tiny_folder)
    for (name, weight), other in zip(student.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(weight, other), name


# Where texts and vectors come from


def test_a_student_learns_from_a_model_in_this_process(tiny_folder: Path, tmp_path: Path) -> None:
    config = distillation(
        tiny_folder,
        tmp_path / "run",
        teacher__model=str(tiny_folder),
        student__build="random:1x32",
        optimizer__epochs=15,
        data__dev_count=12,
    )
    result = Distiller(config, documents=articles(60)).run()
    for name in ("dev/spearman_to_teacher", "dev/cosine_to_teacher"):
        assert result.after[name] > result.before[name] + 0.1
    assert "local:" in (result.model / "README.md").read_text(encoding="utf-8")


def test_a_corpus_on_disk_is_read(server: EmbeddingStub, tiny_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "新闻"
    corpus.mkdir()
    for number, text in enumerate(articles(20)):
        (corpus / f"{number}.txt").write_text(text, encoding="utf-8")
    lines = (json.dumps({"content": text}, ensure_ascii=False) for text in articles(20, seed=1))
    (tmp_path / "更多.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = from_server(
        server, tiny_folder, tmp_path / "run", data__corpus=[str(corpus), str(tmp_path / "更多.jsonl")]
    )
    Distiller(config).run()
    halves = "".join(sorted(server.answered))
    assert len(server.answered) == TEXTS
    assert sorted(halves) == sorted("".join(articles(20) + articles(20, seed=1)))


def test_a_hugging_face_dataset_is_read(server: EmbeddingStub, tiny_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"text": text, "title": text[:5]} for text in articles()])
    result = Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=dataset).run()
    assert result.model.is_dir()
    assert len(server.answered) == TEXTS


def test_nothing_of_dev_is_trained_on(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    known: dict[str, Any] = {}
    train, backward = TrainingRun.train, StepRunner.backward

    def noted(self: TrainingRun, table: Any, sets: Any, evaluations: Any, **options: Any) -> RunResult:
        known.update(table=table, dev=evaluations[0])
        return train(self, table, sets, evaluations, **options)

    def counted(self: StepRunner, passes: Passes, *arguments: Any, **options: Any) -> Any:
        seen.update(passes.batch.numbers.ravel().tolist())
        return backward(self, passes, *arguments, **options)

    monkeypatch.setattr(TrainingRun, "train", noted)
    monkeypatch.setattr(StepRunner, "backward", counted)
    config = from_server(server, tiny_folder, tmp_path / "run", mining__negatives=1, data__dev_count=8)
    Distiller(
        config.with_values({"loss.margin.weights": [1.0], "loss.feature.weights": [1.0]}), documents=articles()
    ).run()
    trained = {known["table"].texts[number] for number in seen}
    dev = {*known["dev"].left, *known["dev"].right}
    assert len(dev) == 16
    assert len(trained) == TEXTS - 16
    assert not trained & dev


# A teacher that fails


@pytest.mark.parametrize("fault", ["429", "500", "hang up"])
def test_passing_faults_are_recovered_from(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, fault: str
) -> None:
    server.faults = ["", fault, fault, ""]
    teacher = OpenAICompatibleTeacher("stub", base_url=server.base_url, requests_at_once=1, sleep=lambda _: None)
    result = Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=articles(), teacher=teacher).run()
    assert result.model.is_dir()
    assert set(server.answered.values()) == {1}
    assert teacher_calls(server) == 7


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("dimension", "33 numbers in place of 32"),
        ("nan", "gave NaN or infinity for texts"),
        ("zero", "a vector of zeros"),
        ("fewer", "gave 15 vectors.* for 16 texts"),
        ("web page", "no JSON"),
        ("quota", "Add credit"),
        ("401", "refuses the key"),
        ("404", "It offers stub"),
    ],
)
def test_a_bad_answer_ends_the_run_and_what_was_answered_is_not_asked_again(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, fault: str, told: str
) -> None:
    server.faults = ["", "", fault]
    config = from_server(server, tiny_folder, tmp_path / "run")
    with pytest.raises(TeacherError, match=told):
        Distiller(config, documents=articles()).run()
    assert not (tmp_path / "run" / "student").exists()
    kept = len(server.answered)
    assert kept >= 32
    server.faults.clear()
    asked = teacher_calls(server)
    Distiller(config, documents=articles()).run(resume=True)
    assert teacher_calls(server) <= asked + (TEXTS - kept) / 16  # a call in flight may have been answered meanwhile
    assert len(server.answered) == TEXTS
    assert set(server.answered.values()) == {1}


def test_a_teacher_that_died_midway_is_gone_on_with(server: EmbeddingStub, tiny_folder: Path, tmp_path: Path) -> None:
    server.faults, server.always = ["", ""], "500"
    config = from_server(server, tiny_folder, tmp_path / "run")
    with pytest.raises(TeacherError, match="answered 500"):
        Distiller(config, documents=articles()).run()
    assert len(server.answered) == 32
    server.always, asked = "", teacher_calls(server)
    result = Distiller(config, documents=articles()).run(resume=True)
    assert set(server.answered.values()) == {1}
    assert (len(server.answered), teacher_calls(server)) == (TEXTS, asked + 3)
    whole = Distiller(
        from_server(server, tiny_folder, tmp_path / "whole", teacher__cache=str(tmp_path / "run" / "teacher")),
        documents=articles(),
    ).run()
    assert teacher_calls(server) == asked + 3  # all from the cache
    assert whole.after == result.after


def test_a_server_that_is_gone_is_named(server: EmbeddingStub, tiny_folder: Path, tmp_path: Path) -> None:
    server.on_request = lambda number: server.die() if number == 3 else None
    teacher = OpenAICompatibleTeacher(
        "stub", base_url=server.base_url, requests_at_once=1, attempts=2, sleep=lambda _: None
    )
    with pytest.raises(TeacherError, match="cannot be reached"):
        Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=articles(), teacher=teacher).run()
    keys = list((tmp_path / "run" / "teacher").glob("*/keys.bin"))
    assert keys[0].stat().st_size == 16 * len(server.answered)
    assert len(server.answered) in (32, 48)


def test_without_a_key_nothing_is_asked(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = distillation(tiny_folder, tmp_path / "run", teacher__model="openai:text-embedding-3-small")
    with pytest.raises(TeacherError, match="set the environment variable OPENAI_API_KEY"):
        Distiller(config, documents=articles()).run()
    assert not (tmp_path / "run" / "student").exists()


def test_the_key_is_in_no_file_of_the_run(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-stub-51ab88")
    server.api_key = "sk-stub-51ab88"
    teacher = OpenAICompatibleTeacher("stub", base_url=server.base_url, api_key_variable="OPENAI_API_KEY")
    Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=articles(), teacher=teacher).run()
    files = [one for one in (tmp_path / "run").rglob("*") if one.is_file()]
    assert len(files) > 15
    assert not [one for one in files if b"sk-stub-51ab88" in one.read_bytes()]


def test_a_cost_above_the_limit_is_refused_before_the_first_call(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path
) -> None:
    config = from_server(
        server, tiny_folder, tmp_path / "run", teacher__price_per_million_tokens=20.0, teacher__max_cost=0.01
    )
    with pytest.raises(TeacherError, match=r"would take 80 texts, 5 requests.* USD, above max_cost=0.01"):
        Distiller(config, documents=articles()).run()
    assert teacher_calls(server) == 0
    Distiller(config.with_values({"teacher.max_cost": 1.0}), documents=articles()).run(resume=True)
    assert len(server.answered) == TEXTS


# Texts that are too few, or none


def test_a_batch_larger_than_the_data_is_one_batch_and_warned_about(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Distiller(from_server(server, tiny_folder, tmp_path / "run", batch__size=500), documents=articles()).run()
    assert "batch.size=500, but there are 32 pairs to train on: all are one batch" in caplog.text
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([], "There are no documents"),
        (["", "　\n"], "No pair comes out of 2 documents: 2 have fewer than least=30 characters"),
        (["试用期员工可以请年假吗" * 5] * 3, "3 have no end of a sentence"),
        (articles(1), "All 1 pairs come from one document"),
        (articles(2), "1 pairs to train on and 1 for evaluation, but at least 2 of each are needed"),
        (articles(3), "needed. Give more documents, lower data.least_characters, or set data.dev_count=2"),
        ([None], "Index 0 is NoneType"),
    ],
)
def test_a_corpus_that_is_too_small_is_told_before_any_call(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, documents: list[Any], told: str
) -> None:
    config = from_server(server, tiny_folder, tmp_path / "run", data__dev_count=1)
    with pytest.raises(ValueError, match=told):
        Distiller(config, documents=documents).run()
    assert teacher_calls(server) == 0
    assert not (tmp_path / "run").exists()


def test_a_tiny_corpus_will_do(server: EmbeddingStub, tiny_folder: Path, tmp_path: Path) -> None:
    result = Distiller(
        from_server(server, tiny_folder, tmp_path / "run", data__dev_count=2), documents=articles(4)
    ).run()
    assert result.after["dev/candidates"] == 2
    assert len(server.answered) == 8


def test_files_that_are_no_text_are_refused_or_skipped(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "语料"
    corpus.mkdir()
    (corpus / "图.png").write_bytes(bytes(range(256)))
    config = from_server(server, tiny_folder, tmp_path / "run", data__corpus=[str(corpus)])
    with pytest.raises(ValueError, match=r"has no file that can be read: found 1 \.png; allowed are \.txt"):
        Distiller(config).run()
    (corpus / "坏.txt").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="None of the 1 text files is text"):
        Distiller(config).run()
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        Distiller(config.with_values({"data.corpus": ["没有"]})).run()
    assert not (tmp_path / "run").exists()
    (corpus / "好.jsonl").write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in articles()), encoding="utf-8"
    )
    Distiller(config).run()
    assert "Skipped 1 files that are no text" in caplog.text
    assert len(server.answered) == TEXTS


# What is wrong is told first


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        ({"student__build": "random:6"}, ValueError, "is no part of the grammar"),
        ({"student__base": "没有/这个"}, ModelNotFoundError, "No model '没有/这个'"),
        ({"evaluation__similarity": ["没有.jsonl"]}, FileNotFoundError, "There is no file '没有.jsonl'"),
        ({"run__out": __file__}, FileExistsError, "is a file"),
    ],
)
def test_a_bad_setting_is_told_before_any_call(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, values: dict[str, Any], error: type[Exception], told: str
) -> None:
    config = from_server(server, tiny_folder, tmp_path / "run", **values)
    with pytest.raises(error, match=told):
        Distiller(config, documents=articles()).run()
    assert teacher_calls(server) == 0
    assert not (tmp_path / "run" / "student").exists()


def test_a_bad_setting_may_be_corrected_and_the_run_resumed(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path
) -> None:
    config = from_server(server, tiny_folder, tmp_path / "run", student__build="bert-pruned:9")
    with pytest.raises(ValueError, match="9"):
        Distiller(config, documents=articles()).run()
    asked = teacher_calls(server)
    result = Distiller(config.with_values({"student.build": "bert-pruned:1"}), documents=articles()).run(resume=True)
    assert teacher_calls(server) == asked
    assert EmbeddingModel.load(result.model).backbone.config.num_hidden_layers == 1


def test_neither_corpus_nor_teacher_nor_a_right_loss_is_told_when_the_distiller_is_made(tiny_folder: Path) -> None:
    config = distillation(tiny_folder, Path("没有"))
    with pytest.raises(ConfigError, match="type --corpus FOLDER"):
        Distiller(config.with_values({"teacher.model": "openai:x"}))
    with pytest.raises(ConfigError, match="type --teacher openai:MODEL"):
        Distiller(config, documents=articles())
    with pytest.raises(ValueError, match="'like'"):
        Distiller(config.with_values({"teacher.model": "openai:x", "loss.like.weights": [1.0]}), documents=articles())


@pytest.mark.parametrize("missing", ["accelerate", "openai", "tenacity", "rensa"])
def test_a_missing_package_gives_the_line_to_type(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, missing: str
) -> None:
    config = from_server(server, tiny_folder, tmp_path / "run", data__near_duplicates=0.9)
    told = rf"'{missing}' is not installed\. Type: pip install 'luotuo-integrations\[train\]'"
    with without(missing), pytest.raises(ImportError, match=told):
        Distiller(config, documents=articles()).run()
    assert teacher_calls(server) == 0
    assert not (tmp_path / "run" / "student").exists()


def test_without_matplotlib_the_report_has_no_pictures(
    server: EmbeddingStub, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = Distiller(from_server(server, tiny_folder, tmp_path / "run"), documents=articles()).run()
    assert "The report has no pictures" in caplog.text
    assert "pip install 'luotuo-integrations[train]'" in caplog.text
    assert "![" not in result.report.read_text(encoding="utf-8")


# Going on


def test_a_finished_run_is_not_begun_again_and_resuming_it_trains_no_more(finished: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    config = TrainConfig.from_file(folder / "config.json").with_values({"run.out": str(folder)})
    with pytest.raises(RunError, match="Add --resume"):
        Distiller(config, documents=articles()).run()
    log = (folder / "log.jsonl").read_text(encoding="utf-8")
    again = Distiller(config, documents=articles()).run(resume=True)  # its server is gone: nothing is asked
    assert (again.before, again.after) == (finished.result.before, finished.result.after)
    assert (folder / "log.jsonl").read_text(encoding="utf-8") == log


def test_a_run_that_was_cut_off_in_training_ends_as_it_would_have(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(Exception):
        pass

    step = Trainer._step

    def cut(self: Trainer, *arguments: Any) -> None:
        if self.state.step == 3:
            raise PowerCutError
        step(self, *arguments)

    config = TrainConfig.from_file(finished.folder / "config.json").with_values(
        {
            "run.out": str(tmp_path / "run"),
            "run.checkpoint_minutes": 0,
            "teacher.cache": str(finished.folder / "teacher"),
        }
    )
    monkeypatch.setattr(Trainer, "_step", cut)
    with pytest.raises(PowerCutError):
        Distiller(config, documents=articles()).run()
    monkeypatch.setattr(Trainer, "_step", step)
    result = Distiller(config, documents=articles()).run(resume=True)
    assert losses(tmp_path / "run") == losses(finished.folder)
    assert (result.before, result.after) == (finished.result.before, finished.result.after)


def test_another_configuration_or_corpus_is_refused(finished: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    config = TrainConfig.from_file(folder / "config.json").with_values({"run.out": str(folder)})
    other = config.with_values({"optimizer.epochs": 9})
    with pytest.raises(RunError, match=r"optimizer.epochs: 2 then, 9 now"):
        Distiller(other, documents=articles()).run(resume=True)
    more = r"The texts have changed.*then: .*train 32 dev 8; now: .*train 33 dev 8"
    with pytest.raises(RunError, match=more):
        Distiller(config, documents=[*articles(), articles(1, seed=3)[0]]).run(resume=True)
    dev = Distiller(config, documents=articles())._pairs().dev[0]
    changed = [text.replace("。", "！") if text == dev.query + dev.positive else text for text in articles()]
    with pytest.raises(RunError, match="The texts have changed"):
        Distiller(config, documents=changed).run(resume=True)


def test_the_default_loss_is_feature_and_kl(tiny_folder: Path) -> None:
    config = distillation(tiny_folder, Path("没有"), teacher__model="openai:x")
    assert set(Distiller(config, documents=[]).config.loss) == {"feature", "kl"}


# Queries and passages


def test_a_teacher_that_knows_one_kind_gives_a_student_with_one_prompt(finished: Finished) -> None:
    """Else the prompt of queries would stand before texts that the student never learnt with it."""
    settings = read_settings(finished.result.model, None)
    assert settings.prompts == {"query": "", "passage": ""}  # the base's: "query: " and ""
    encoder = Encoder(finished.result.model, device="cpu")
    np.testing.assert_array_equal(encoder.encode(["年假"], "query"), encoder.encode(["年假"], "passage"))


@pytest.mark.parametrize("local", [True, False])
def test_of_a_teacher_that_knows_queries_front_halves_are_learnt_as_queries(
    tiny_folder: Path, tmp_path: Path, server: EmbeddingStub, local: bool
) -> None:
    if local:
        config = distillation(tiny_folder, tmp_path / "run", teacher__model=str(tiny_folder))
    else:
        config = from_server(server, tiny_folder, tmp_path / "run", teacher__input_types=True)
    result = Distiller(config, documents=articles()).run()
    assert read_settings(result.model, None).prompts == {"query": "query: ", "passage": ""}
    if not local:
        kinds = [request["input_type"] for request in server.requests]
        assert set(kinds) == {"query", "passage"}
        fronts = {text for request in server.requests if request["input_type"] == "query" for text in request["input"]}
        pairs = Distiller(config, documents=articles())._pairs()
        assert fronts == {pair.query for pair in (*pairs.train, *pairs.dev)}
