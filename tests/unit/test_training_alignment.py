"""The Aligner: its plan, its losses against double loops, what it learns, and that it resumes exactly."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from luotuo_integrations.model_folder import ModelSettings
from luotuo_integrations.modeling import EmbeddingModel
from luotuo_integrations.training.alignment import Aligner, LayerPair, layer_pairs, plan_steps
from luotuo_integrations.training.backbones import keep_layers
from luotuo_integrations.training.checkpoints import CheckpointError
from luotuo_integrations.training.config_sections import AlignmentConfig
from luotuo_integrations.training.losses import neighbourhood_kl, token_state_loss
from luotuo_integrations.training.schedule import warm_then_cosine
from luotuo_integrations.training.table import TokenTable

CONFIG = AlignmentConfig(tokens=6_000, tokens_per_step=200, learning_rate=5e-3)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(layers: int, width: int = 16) -> EmbeddingModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return EmbeddingModel(BertModel(config, add_pooling_layer=False), ModelSettings(pooling="mean")).eval()


def student_of(teacher: EmbeddingModel) -> EmbeddingModel:
    return EmbeddingModel(keep_layers(teacher.backbone, [1, 3]), teacher.settings)


def tokens(count: int = 400) -> TokenTable:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 24, count)
    ids = generator.integers(1, 50, lengths.sum()).astype(np.int32)
    return TokenTable(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), 0)


def distance(student: EmbeddingModel, teacher: EmbeddingModel, table: TokenTable) -> float:
    ids, mask = table.batch(np.arange(350, 400))
    with torch.no_grad():
        return float(1 - torch.nn.functional.cosine_similarity(student(ids, mask), teacher(ids, mask)).mean())


def test_token_states_against_a_loop() -> None:
    student, teacher = numbers(2, 3, 4, seed=1), numbers(2, 3, 4, seed=2)
    scale, mask = numbers(4, seed=3).abs() + 0.1, torch.tensor([[1, 1, 0], [1, 0, 0]])
    squares = [
        ((student[n, t, d] - teacher[n, t, d]) / scale[d]).item() ** 2
        for n in range(2)
        for t in range(3)
        if mask[n, t]
        for d in range(4)
    ]
    assert float(token_state_loss(student, teacher, scale, mask)) == pytest.approx(sum(squares) / len(squares))
    assert float(token_state_loss(student, student, scale, mask)) == 0


def test_neighbourhoods_against_a_loop() -> None:
    student, teacher, temperature = numbers(4, 3, seed=1), numbers(4, 5, seed=2), 0.2

    def row(vectors: Tensor, i: int) -> list[float]:
        cosines = [float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for j in range(4) if j != i]
        powers = [math.exp(one / temperature) for one in cosines]
        return [one / sum(powers) for one in powers]

    expected = sum(p * math.log(p / q) for i in range(4) for p, q in zip(row(teacher, i), row(student, i), strict=True))
    assert float(neighbourhood_kl(student, teacher, temperature)) == pytest.approx(expected / 4)
    assert float(neighbourhood_kl(3 * teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (numbers(2, 3, 4, seed=seed).requires_grad_() for seed in (1, 2))
    loss = token_state_loss(student, teacher, torch.ones(4), torch.ones(2, 3))
    loss = loss + neighbourhood_kl(student[0], teacher[0], 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    assert bool(student.grad.abs().sum() > 0)


def test_losses_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(N, T, H\) twice"):
        token_state_loss(numbers(2, 3, 4), numbers(2, 3, 5), torch.ones(4), torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 or more of each"):
        neighbourhood_kl(numbers(1, 3), numbers(1, 3), 0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        neighbourhood_kl(numbers(2, 3), numbers(2, 3), 0)


def test_layers_are_paired_by_depth() -> None:
    assert layer_pairs(3, 12) == [LayerPair(1, 4), LayerPair(2, 8), LayerPair(3, 12)]
    assert layer_pairs(2, 2) == [LayerPair(1, 1), LayerPair(2, 2)]
    with pytest.raises(ValueError, match="3 layers cannot be aligned with a teacher of 2"):
        layer_pairs(3, 2)


def test_the_plan_meets_each_text_once_and_keeps_to_the_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500)
    steps = plan_steps(lengths, 3_000, 100, seed=1)
    used = np.concatenate(steps)
    assert len(set(used.tolist())) == len(used)
    assert 2_800 <= lengths[used].sum() <= 3_000
    assert all(60 <= lengths[one].sum() <= 140 for one in steps[:-1])
    assert [one.tolist() for one in plan_steps(lengths, 3_000, 100, seed=1)] == [one.tolist() for one in steps]
    assert sum(map(len, plan_steps(lengths, 10**9, 100, seed=1))) >= 499
    assert plan_steps(lengths, 0, 100, seed=1) == []
    twice = np.concatenate(plan_steps(lengths, 10**9, 100, seed=1, passes=2))
    assert set(np.bincount(twice).tolist()) <= {1, 2}
    assert len(twice) >= 998


def test_the_rate_warms_up_and_falls() -> None:
    shares = [warm_then_cosine(step, 100, 0.1, 0.02) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11)
    assert shares[10] == 1
    assert shares[:10] == sorted(shares[:10])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert 0.02 < shares[-1] < 0.03
    assert warm_then_cosine(100, 100, 0.1, 0.02) == warm_then_cosine(120, 100, 0.1, 0.02) == pytest.approx(0.02)


def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    teacher, table = model(4), tokens()
    student = student_of(teacher)
    before = distance(student, teacher, table)
    Aligner(student, teacher, table, config=CONFIG, folder=tmp_path).run()
    assert distance(student, teacher, table) < 0.5 * before


def test_only_what_may_learn_learns(tmp_path: Path) -> None:
    teacher = model(4)
    student = student_of(teacher)
    student.backbone.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[operator]
    words = student.backbone.get_input_embeddings().weight.clone()  # type: ignore[operator]
    taught = {name: one.clone() for name, one in teacher.state_dict().items()}
    Aligner(student, teacher, tokens(), config=replace(CONFIG, tokens=600), folder=tmp_path).run()
    assert torch.equal(student.backbone.get_input_embeddings().weight, words)  # type: ignore[operator]
    assert all(torch.equal(taught[name], one) for name, one in teacher.state_dict().items())


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, table = model(4), tokens()
    whole = student_of(teacher)
    Aligner(whole, teacher, table, config=CONFIG, folder=tmp_path / "whole").run()

    cut = Aligner(student_of(teacher), teacher, table, config=CONFIG, folder=tmp_path / "cut")
    step = cut._step
    taken = []

    def interrupted(*arguments: object) -> dict[str, float]:
        taken.append(1)
        if len(taken) == 7:
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cut, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Interrupted at step 7"):
        cut.run()
    again = student_of(teacher)
    Aligner(again, teacher, table, config=CONFIG, folder=tmp_path / "cut").run()
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in whole.state_dict().items())
    for changed in ({"learning_rate": 1e-4}, {"tokens": 3_000}):
        other = replace(CONFIG, **changed)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="other settings, texts or seed"):
            Aligner(student_of(teacher), teacher, table, config=other, folder=tmp_path / "cut").run()
    lines = (tmp_path / "cut" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(cut.steps)


def test_other_widths_and_a_loss_that_is_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the student is 16 wide and the teacher 32"):
        Aligner(model(2), model(4, width=32), tokens(), config=CONFIG, folder=tmp_path)
    teacher = model(4)
    other = model(2)
    other.backbone.config.vocab_size = 49  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="knows 49 words and the teacher 50"):
        Aligner(other, teacher, tokens(), config=CONFIG, folder=tmp_path)
    student = student_of(teacher)
    with torch.no_grad():
        next(iter(student.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"lower alignment.learning_rate"):
        Aligner(student, teacher, tokens(), config=CONFIG, folder=tmp_path).run()
