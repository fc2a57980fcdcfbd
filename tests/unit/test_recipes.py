"""Every recipe is a configuration that can begin, and the README explains each of its lines; the ablation's table."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from luotuo_integrations.training import TrainConfig
from luotuo_integrations.training.config import DISTILLATION_LOSS
from luotuo_integrations.training.distiller import Distiller
from luotuo_integrations.training.finetuner import FineTuner
from luotuo_integrations.training.student_spec import StudentSpec
from training import ablation

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
README = (ROOT / "training" / "recipes" / "README.md").read_text(encoding="utf-8")


def test_the_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} == {
        "domain-adaptation",
        "finetune-faq",
        "luotuo-bert",
        "luotuo-bert-medium",
        "local-teacher",
        "luotuo-glm",
        "luotuo-mini",
        "luotuo-tiny",
    }
    assert all(f"`{path.name}`" in README for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name files from the root of the repository
    config = TrainConfig.from_file(path)
    first = path.read_text(encoding="utf-8")
    StudentSpec.parse(config.student.build)
    if config.alignment.tokens:
        assert "training/make_model.py" in first.partition("[")[0]
        return
    if config.data.records:
        assert FineTuner(config).config.loss
    else:
        assert Distiller(config).config.loss
    assert re.search(rf"luotuo \w+ training/recipes/{path.name} --resume", first)


def test_the_readme_explains_every_setting() -> None:
    explained = set(re.findall(r"`(\w+)`", README))
    hidden = {"kind"}  # of a loss: told in words above its table
    for section in fields(TrainConfig):
        default = getattr(TrainConfig(), section.name)
        names = DISTILLATION_LOSS["kl"] if section.name == "loss" else default
        if hasattr(names, "__dataclass_fields__"):
            missing = {one.name for one in fields(names)} - explained - hidden
            assert not missing, section.name
            assert f"[{section.name}" in README
    for path in RECIPES:
        for section in re.findall(r"^\[(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"[{section}" in README


def test_the_table_of_the_ablation_holds_what_is_finished(tmp_path: Path) -> None:
    for name, value in (("feature and KL", 0.9), ("without KL", 0.8)):
        run = tmp_path / ablation.slug(name)
        run.mkdir()
        keys = dict.fromkeys(ablation.COLUMNS, value)
        metrics = {"before": dict.fromkeys(keys, 0.5), "after": keys, "teacher": {"dev/pair@1": 0.99}}
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    rows = ablation.table(tmp_path, list(ablation.VARIANTS)).splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [
        "before",
        "teacher",
        "feature and KL",
        "without KL",
    ]
    assert rows[2].count("0.5000") == 4
    assert rows[3].count("|  |") + rows[3].count("0.9900") == 3
    assert rows[5].count("0.8000") == 4


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_every_variant_of_the_ablation_is_a_configuration(name: str) -> None:
    config = TrainConfig().with_overrides([*ablation.BASE, *ablation.VARIANTS[name]])
    assert Distiller(config.with_overrides(["data.corpus=x", "teacher.model=y"])).objective.parts
