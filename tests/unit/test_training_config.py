"""TrainConfig: files, overrides, and what it refuses."""

from pathlib import Path

import pytest

from luotuo_integrations.training import TrainConfig
from luotuo_integrations.training.config import BatchConfig, ConfigError, DataConfig, LossConfig, RunConfig

RECIPE = """
seed = 3
matryoshka = [64, 128]
[data]
corpus = "新闻"
[loss.feature]
distance = "l1"
[loss.kl]
weights = [0, 1]
temperature = 0.05
[batch]
size = 48
[optimizer]
learning_rate = 1
"""


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_read_with_its_types(tmp_path: Path) -> None:
    config = TrainConfig.from_file(write(tmp_path, RECIPE))
    assert config.data == DataConfig(corpus=("新闻",))  # one value will do for a list
    assert config.loss == {"feature": LossConfig(distance="l1"), "kl": LossConfig(weights=(0.0, 1.0), temperature=0.05)}
    assert config.matryoshka == (64, 128)
    assert config.batch == BatchConfig(size=48)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.seed == 3


def test_a_config_comes_back_from_its_own_file(tmp_path: Path) -> None:
    import json

    config = TrainConfig.from_file(write(tmp_path, RECIPE))
    path = write(tmp_path, json.dumps(config.to_dict()), "config.json")
    assert TrainConfig.from_file(path) == config


def test_overrides_have_the_types_of_toml_and_bare_words_are_strings() -> None:
    config = TrainConfig().with_overrides(
        [
            "batch.size=64",
            "run.out=runs/新的",
            'student.build="vocab:24000"',
            "loss.cse.weights=[0, 0.5]",
            "run.onnx=true",
        ]
    )
    assert config.batch.size == 64
    assert config.run == RunConfig(out="runs/新的", onnx=True)
    assert config.student.build == "vocab:24000"
    assert config.loss["cse"].weights == (0.0, 0.5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bach.size=64", r"'bach' at the top is unknown; known are data, teacher"),
        ("batch.sise=64", r"'sise' in \[batch\] is unknown; known are size, kind"),
        ("batch.size=many", r"batch.size = 'many'; a whole number is needed"),
        ("batch.size=1", r"batch.size=1 is out of range; allowed: 2 or more"),
        ("batch.kind=near", r"batch.kind = 'near'; one of 'random', 'neighbours' is needed"),
        ("batch.size=true", r"batch.size = True; a whole number"),
        ("batch=3", r"batch is 3; a table of settings is needed"),
        ("run.out.name=a", r"'out' is a value, not a section"),
        ("batch.size", r"write SECTION.NAME=VALUE"),
        ("loss.kl.weights=[]", r"a loss part without weights"),
        ("strategy.name=half", r"strategy.name = 'half'"),
        ("data.near_duplicates=0", r"near_duplicates=0"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig().with_overrides([text])


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"没有\.toml"):
        TrainConfig.from_file(tmp_path / "没有.toml")
    with pytest.raises(ConfigError, match="cannot be read as a configuration"):
        TrainConfig.from_file(write(tmp_path, "这不是 TOML"))


def test_a_default_loss_is_put_in_only_where_none_is_given() -> None:
    default = {"cse": LossConfig()}
    assert TrainConfig().with_default_loss(default).loss == default
    own = TrainConfig(loss={"kl": LossConfig()})
    assert own.with_default_loss(default) is own
