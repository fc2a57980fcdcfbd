"""The randomization test against the count of all signs, and its interval against the bootstrap of the differences."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from luotuo_integrations.evaluation import bootstrap_interval
from luotuo_integrations.significance import paired_significance


def exact_p(first: list[float], second: list[float]) -> float:
    """The share of all 2**Q signs whose mean difference is as far from 0, in whole tenths: without rounding."""
    differences = [round(10 * (a - b)) for a, b in zip(first, second, strict=True)]
    observed = abs(sum(differences))
    far = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) >= observed
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(far) / len(far)


@pytest.mark.parametrize("seed", range(6))
def test_p_is_that_of_all_signs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = (generator.integers(0, 11, size=9) / 10).tolist()  # tenths: many draws tie with the observed difference
    second = (generator.integers(0, 8, size=9) / 10).tolist()
    expected = exact_p(first, second)
    error = math.sqrt(expected * (1 - expected) / 10_000)
    assert paired_significance(first, second, seed=seed)["p"] == pytest.approx(expected, abs=4 * error + 1e-4)


def test_a_draw_that_equals_the_observed_difference_counts_whatever_the_rounding() -> None:
    first, second = [0.3, 0.1, 0.7], [0.2, 0.3, 0.1]  # 0.1 - 0.2 + 0.6: in other orders, other last bits
    assert exact_p(first, second) == 0.75
    assert paired_significance(first, second)["p"] == pytest.approx(0.75, abs=0.02)


def test_identical_systems_give_one_and_their_interval_is_a_point() -> None:
    values = np.random.default_rng(0).random(50)
    found = paired_significance(values, values, resamples=100)
    assert found == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_a_clear_difference_gives_the_least_p_there_is() -> None:
    second = np.random.default_rng(1).random(200) * 0.5
    found = paired_significance(second + 0.3, second, resamples=999)
    assert found["p"] == 1 / 1000
    assert found["difference"] == pytest.approx(0.3)
    assert found["low"] <= found["difference"] <= found["high"]


def test_noise_alone_is_found_significant_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    small = [paired_significance(*generator.random((2, 12)), resamples=199)["p"] <= 0.1 for _ in range(300)]
    assert np.mean(small) == pytest.approx(0.1, abs=0.06)


def test_the_systems_may_change_places() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random((2, 40))
    one, other = (paired_significance(*pair, resamples=500) for pair in ((first, second), (second, first)))
    assert one["p"] == other["p"]
    assert [one["difference"], one["low"], one["high"]] == pytest.approx(
        [-other["difference"], -other["high"], -other["low"]]
    )


def test_the_interval_is_the_bootstrap_of_the_differences() -> None:
    first, second = np.random.default_rng(4).random((2, 30))
    found = paired_significance(first, second, confidence=0.8, resamples=300, seed=5)
    expected = bootstrap_interval(first - second, confidence=0.8, resamples=300, seed=5)
    assert [found["difference"], found["low"], found["high"]] == [expected["mean"], expected["low"], expected["high"]]


def test_queries_that_one_system_lacks_are_left_out() -> None:
    first, second = [0.1, math.nan, 0.9, 0.4], [0.3, 0.2, math.nan, 0.1]
    assert paired_significance(first, second) == paired_significance([0.1, 0.4], [0.3, 0.1])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.1, 0.2], [0.1], r"the shapes are \(2,\), \(1,\)"),
        ([[0.1]], [[0.1]], r"the shapes are \(1, 1\)"),
        ([math.inf], [0.1], "none infinite"),
        ([0.1], [-math.inf], "none infinite"),
        ([math.nan, 0.1], [0.1, math.nan], "none of the 2 queries"),
        ([], [], "none of the 0 queries"),
    ],
)
def test_bad_values(first: list, second: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_significance(first, second)


def test_bad_settings() -> None:
    for settings in ({"resamples": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1 and resamples at least 1"):
            paired_significance([0.1], [0.2], **settings)


def test_the_comparison_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    found: dict[str, np.ndarray] = {}
    exec(code, found)
    assert found["first"].tolist() == [1.0, 1.0]
    printed = capsys.readouterr().out
    assert printed.startswith("{'mean': 1.0, 'low': 1.0, 'high': 1.0}\n{'difference': ")
