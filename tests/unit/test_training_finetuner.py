"""FineTuner: a few records of one's own make the model better at them, whatever their kind."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luotuo_integrations import Encoder
from luotuo_integrations.training.config import ConfigError, TrainConfig
from luotuo_integrations.training.finetuner import FineTuner
from luotuo_integrations.training.records import Pair, ScoredPair, Triplet
from luotuo_integrations.training.run_folder import RunError
from luotuo_integrations.training.trainer import Trainer
from luotuo_integrations.training.training_run import RunResult
from tests.training_parts import losses
from tests.training_runs import topics, without, words

MAIN = {"pair": "dev/ndcg@10", "triplet": "dev/accuracy", "scored": "dev/spearman"}
LOSS = {"pair": "softmax", "triplet": "softmax", "scored": "cosent"}


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without("matplotlib", "matplotlib.figure"):
        yield


def rows(kind: str, count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one kind: texts that share a topic's characters belong together.

    There are few topics, and those of dev are those of train: so there is something to learn.
    """
    generator = np.random.default_rng(seed)
    known = topics(8, seed=3)
    made: dict[tuple[str, str], dict[str, Any]] = {}
    while len(made) < count:
        own, other = generator.choice(len(known), 2, replace=False)
        first, second, stranger = (
            words(generator, known[own]),
            words(generator, known[own]),
            words(generator, known[other]),
        )
        if kind == "pair":
            row: dict[str, Any] = {"query": first, "positive": second}
        elif kind == "triplet":
            row = {"anchor": first, "positive": second, "negative": stranger}
        else:
            same = bool(generator.integers(2))
            row = {"sentence1": first, "sentence2": second if same else stranger, "label": 1.0 if same else 0.0}
        made[first, second] = row
    return list(made.values())


def tuned(tiny_folder: Path, out: Path, kind: str, **values: Any) -> FineTuner:
    """A tuner that is quick enough for the tiny model."""
    tuner = FineTuner.from_pretrained(tiny_folder, dataset=rows(kind), out=out)
    quick = {"optimizer.learning_rate": 2e-2, "optimizer.epochs": 8, "data.dev_share": 0.25, "run.device": "cpu"}
    tuner.config = tuner.config.with_values(quick | {name.replace("__", "."): value for name, value in values.items()})
    return tuner


@pytest.fixture(scope="module", params=list(MAIN))
def finished(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: Any) -> tuple[str, RunResult]:
    """A finished run of each kind, only to be read."""
    with without("matplotlib", "matplotlib.figure"):
        return request.param, tuned(tiny_folder, tmp_path_factory.mktemp("微调") / "run", request.param).run()


def test_each_kind_of_record_makes_the_model_better_at_it(finished: tuple[str, RunResult]) -> None:
    kind, result = finished
    assert result.after[MAIN[kind]] > result.before[MAIN[kind]] + 0.03
    metrics = json.loads((result.report.parent / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["main"] == MAIN[kind]
    assert result.teacher == {}


def test_loss_and_counts_are_those_of_the_kind(finished: tuple[str, RunResult]) -> None:
    kind, result = finished
    folder = result.report.parent
    assert set(TrainConfig.from_file(folder / "config.json").loss) == {LOSS[kind]}
    counts = json.loads((folder / "data.json").read_text(encoding="utf-8"))["counts"]
    assert counts["kind"] == {"pair": "Pair", "triplet": "Triplet", "scored": "ScoredPair"}[kind]
    assert counts["train"] + counts["dev"] == 120
    assert 20 <= counts["dev"] <= 30


def test_the_exported_model_loads_here_and_in_sentence_transformers(finished: tuple[str, RunResult]) -> None:
    from sentence_transformers import SentenceTransformer

    _, result = finished
    texts = ["试用期员工可以请年假吗", "每晚四百元"]
    own = Encoder(result.model, device="cpu").encode(texts)
    np.testing.assert_allclose(own, SentenceTransformer(str(result.model), device="cpu").encode(texts), atol=1e-5)
    assert not list(result.report.parent.glob("*.png"))
    assert "## Start, end and teacher" in result.report.read_text(encoding="utf-8")


# What is inferred


@pytest.mark.parametrize(
    ("kind", "record", "count", "size", "epochs"),
    [("pair", Pair, 120, 30, 10), ("triplet", Triplet, 20, 5, 10), ("scored", ScoredPair, 120, 30, 10)],
)
def test_kind_loss_and_numbers_are_inferred(
    tiny_folder: Path, kind: str, record: type, count: int, size: int, epochs: int
) -> None:
    tuner = FineTuner.from_pretrained(tiny_folder, dataset=rows(kind, count))
    assert tuner.kind is record
    assert set(tuner.config.loss) == {LOSS[kind]}
    assert (tuner.config.batch.size, tuner.config.optimizer.epochs) == (size, epochs)
    assert tuner.config.optimizer.learning_rate == pytest.approx(2e-5 * 768 / 16)


def test_many_records_are_passed_over_less_often(tiny_folder: Path) -> None:
    pairs = [Pair(f"问题{number}", f"答案{number}") for number in range(12_000)]
    tuner = FineTuner.from_pretrained(tiny_folder, dataset=pairs)
    assert (tuner.config.batch.size, tuner.config.optimizer.epochs) == (32, 1)


def test_a_wide_model_learns_at_the_common_rate_wherever_its_transformer_lies(
    tmp_path: Path, tiny_folder: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "0_Transformer").mkdir()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "0_Transformer" / "config.json").write_text(json.dumps(config | {"hidden_size": 1024}), encoding="utf-8")
    (folder / "config.json").unlink()
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    tuner = FineTuner.from_pretrained(folder, dataset=rows("pair", 8))
    assert tuner.config.optimizer.learning_rate == pytest.approx(2e-5)


def test_a_recipe_decides_what_it_names(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "对.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows("pair")), encoding="utf-8")
    config = TrainConfig().with_values(
        {
            "data.records": [str(path)],
            "student.base": str(tiny_folder),
            "loss.cse.weights": [1.0],
            "batch.size": 7,
            "optimizer.epochs": 1,
            "run.out": str(tmp_path / "run"),
            "run.device": "cpu",
        }
    )
    result = FineTuner(config).run()
    assert set(json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["loss"]) == {"cse"}
    assert len(losses(tmp_path / "run")) == -(-114 // 7)
    assert str(path) in (result.model / "README.md").read_text(encoding="utf-8")


# Where records come from


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    return path


def test_the_same_records_from_anywhere_are_the_same_records(tiny_folder: Path, tmp_path: Path) -> None:
    for kind in MAIN:
        made = rows(kind, 20)
        expected = FineTuner.from_pretrained(tiny_folder, dataset=made).records
        jsonl, table = write(tmp_path / f"{kind}.jsonl", made), write(tmp_path / f"{kind}.csv", made)
        halves = [write(tmp_path / f"{kind}-{n}.jsonl", made[n * 10 : n * 10 + 10]) for n in range(2)]
        for source in (jsonl, str(table), halves, expected, iter(made)):
            assert FineTuner.from_pretrained(tiny_folder, dataset=source).records == expected
        tuner = FineTuner.from_pretrained(tiny_folder, dataset=jsonl)
        assert tuner.config.data.records == (str(jsonl),)


def test_a_hugging_face_dataset_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(rows("scored", 24))
    result = FineTuner.from_pretrained(tiny_folder, dataset=dataset, out=tmp_path / "run").run(epochs=1)
    assert result.model.is_dir()


def test_epochs_can_be_given_to_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    tuner = FineTuner.from_pretrained(
        tiny_folder, dataset=write(tmp_path / "对.jsonl", rows("pair", 20)), out=tmp_path / "run"
    )
    tuner.run(epochs=1)
    assert len(losses(tmp_path / "run")) == 4
    assert TrainConfig.from_file(tmp_path / "run" / "config.json").optimizer.epochs == 1


def test_triplets_with_different_numbers_of_negatives_are_filled_up(tiny_folder: Path, tmp_path: Path) -> None:
    made = rows("triplet", 12)
    made[0]["negative"] = [f"试用期{number}" for number in range(11)]
    tuner = FineTuner.from_pretrained(tiny_folder, dataset=made, out=tmp_path / "run")
    assert [len(record.negatives) for record in tuner.records if isinstance(record, Triplet)] == [11] + [1] * 11
    assert tuner.run(epochs=1).model.is_dir()


# Bad records


@pytest.mark.parametrize(
    ("dataset", "error", "told"),
    [
        ([], ValueError, "has no records"),
        ([{"frage": "年假", "antwort": "十五天"}], ValueError, "the fields are frage, antwort; allowed are"),
        ([{"query": "年假", "positive": " "}], ValueError, "'positive' is blank"),
        ([{"query": "年假", "positive": None}], ValueError, "missing or null"),
        ([{"sentence1": "年假", "sentence2": "休假", "label": "很像"}], ValueError, "must be a finite number"),
        (
            [{"query": "年假", "positive": "十五天"}, {"query": "年假", "positive": "十天", "negative": "加班"}],
            ValueError,
            "All rows of one source must be of one kind",
        ),
        (
            [ScoredPair(f"年假{n}", "休假", 0.5) for n in range(9)],
            ConfigError,
            "all scores are 0.5: there is nothing to rank",
        ),
        ("没有.jsonl", FileNotFoundError, "There is no file '没有.jsonl'"),
        (7, ValueError, "A int cannot be read"),
    ],
)
def test_bad_records_are_named_when_the_tuner_is_made(
    tiny_folder: Path, tmp_path: Path, dataset: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        FineTuner.from_pretrained(tiny_folder, dataset=dataset, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_different_kinds_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{kind}.jsonl", rows(kind, 9)) for kind in ("pair", "scored")]
    with pytest.raises(ConfigError, match=r"there are: 9 Pair, 9 ScoredPair\. Give each kind its own run"):
        FineTuner.from_pretrained(tiny_folder, dataset=files)


def test_no_records_at_all_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="no records are given; type --pairs FILE"):
        FineTuner(TrainConfig())


def few(kind: str, count: int) -> list[dict[str, Any]]:
    """Rows of different texts; the scored ones have two scores."""
    given = rows(kind, 30)
    if kind == "scored":
        given.sort(key=lambda row: float(row["label"]))
        return [given[0], given[-1], *given[1:]][:count]
    return given[:count]


@pytest.mark.parametrize(
    ("kind", "count", "told"),
    [
        ("pair", 1, "share documents or texts"),
        ("pair", 2, "The 2 records give 1 to train on and 1 for evaluation, but at least 2 and 1 are needed"),
        ("triplet", 2, "The 2 records give 1 to train on and 1 for evaluation, but at least 2 and 1 are needed"),
        ("scored", 2, "The 2 records give 1 to train on and 1 for evaluation, but at least 2 and 2 are needed"),
        ("scored", 3, "The 3 records give 1 to train on and 2 for evaluation, but at least 2 and 2 are needed"),
    ],
)
def test_too_few_records_are_told_before_anything_is_built(
    tiny_folder: Path, tmp_path: Path, kind: str, count: int, told: str
) -> None:
    tuner = FineTuner.from_pretrained(tiny_folder, dataset=few(kind, count), out=tmp_path / "run")
    with pytest.raises(ValueError, match=told):
        tuner.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "count", "dev"), [("pair", 3, 1), ("triplet", 3, 1), ("scored", 4, 2), ("scored", 10, 2)]
)
def test_a_few_records_are_enough(tiny_folder: Path, tmp_path: Path, kind: str, count: int, dev: int) -> None:
    result = FineTuner.from_pretrained(tiny_folder, dataset=few(kind, count), out=tmp_path / "run").run(epochs=1)
    assert result.model.is_dir()
    counts = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))["counts"]
    assert (counts["train"], counts["dev"]) == (count - dev, dev)


def test_without_evaluation_no_run_is_begun(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"120 to train on and 0 for evaluation.*set data\.dev_count=1"):
        tuned(tiny_folder, tmp_path / "run", "pair", data__dev_share=0.0).run()
    assert not (tmp_path / "run").exists()


def test_a_loss_that_does_not_fit_the_records_is_told_before_any_work(tiny_folder: Path, tmp_path: Path) -> None:
    tuner = tuned(tiny_folder, tmp_path / "run", "pair", loss__cosent__weights=[1.0])
    with pytest.raises(ValueError, match="cosent"):
        tuner.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["accelerate", "peft"])
def test_a_missing_package_gives_the_line_to_type(tiny_folder: Path, tmp_path: Path, missing: str) -> None:
    tuner = tuned(tiny_folder, tmp_path / "run", "pair", strategy__name="lora")
    told = rf"'{missing}' is not installed\. Type: pip install 'luotuo-integrations\[train\]'"
    with without(missing), pytest.raises(ImportError, match=told):
        tuner.run()
    assert not (tmp_path / "run" / "model").exists()


# Going on


def test_a_run_that_was_cut_off_ends_as_it_would_have(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(Exception):
        pass

    values = {"optimizer__epochs": 2, "run__checkpoint_minutes": 0}
    whole = tuned(tiny_folder, tmp_path / "whole", "triplet", **values).run()
    step = Trainer._step

    def cut(self: Trainer, *arguments: Any) -> None:
        if self.state.step == 4:
            raise PowerCutError
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", cut)
    with pytest.raises(PowerCutError):
        tuned(tiny_folder, tmp_path / "run", "triplet", **values).run()
    monkeypatch.setattr(Trainer, "_step", step)
    result = tuned(tiny_folder, tmp_path / "run", "triplet", **values).run(resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (result.before, result.after) == (whole.before, whole.after)


def test_another_configuration_or_other_records_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tuned(tiny_folder, tmp_path / "run", "scored", optimizer__epochs=1).run()
    with pytest.raises(RunError, match="Add --resume"):
        tuned(tiny_folder, tmp_path / "run", "scored", optimizer__epochs=1).run()
    with pytest.raises(RunError, match=r"optimizer\.epochs: 1 then, 2 now"):
        tuned(tiny_folder, tmp_path / "run", "scored", optimizer__epochs=1).run(epochs=2, resume=True)
    tuner = tuned(tiny_folder, tmp_path / "run", "scored", optimizer__epochs=1)
    tuner.records = [replace(one, score=1 - one.score) for one in tuner.records if isinstance(one, ScoredPair)]
    with pytest.raises(RunError, match="The texts have changed"):
        tuner.run(resume=True)


# Which weights learn


@pytest.mark.parametrize(
    ("name", "options"),
    [("bias", {}), ("lora", {"strategy__lora_rank": 2}), ("prefix", {"strategy__prefix_tokens": 3})],
)
def test_every_strategy_ends_in_a_plain_folder(
    tiny_folder: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    from sentence_transformers import SentenceTransformer

    result = tuned(tiny_folder, tmp_path / "run", "pair", strategy__name=name, optimizer__epochs=2, **options).run()
    texts = ["试用期员工可以请年假吗", "每晚四百元"]
    own = Encoder(result.model, device="cpu").encode(texts, "query")
    other = SentenceTransformer(str(result.model), device="cpu").encode(texts, prompt_name="query")
    np.testing.assert_allclose(own, other, atol=1e-5)
    start = Encoder(tmp_path / "run" / "student", device="cpu").encode(texts, "query")
    assert np.abs(own - start).max() > 1e-4
    assert result.after != result.before


# The front of the package


def test_the_front_brings_no_torch_until_it_is_used() -> None:
    program = """
import sys
import luotuo_integrations.training as training
assert dir(training) == ["Distiller", "FineTuner", "TrainConfig"]
assert not {"torch", "numpy", "transformers", "accelerate"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    import luotuo_integrations.training as training

    with pytest.raises(AttributeError, match="has no attribute 'Trainer'; it has Distiller, FineTuner, TrainConfig"):
        _ = training.Trainer
    assert training.FineTuner is FineTuner
