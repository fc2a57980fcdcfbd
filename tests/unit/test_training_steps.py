"""StepRunner: the same gradient however a batch is cut, on one process or two, and when memory runs out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luotuo_integrations.training.config_sections import BatchConfig, StudentConfig
from luotuo_integrations.training.steps import tokens_in_memory
from luotuo_integrations.training.table import served
from luotuo_integrations.training.trainer import Trainer
from tests import two_processes
from tests.training_parts import losses, make_config, make_parts

ROOT = Path(__file__).parents[2]


def trainer_of(tiny_folder: Path, run: Path, batch: BatchConfig, dropout: float = 0.0) -> Trainer:
    config = make_config(batch=batch, student=StudentConfig(dropout=dropout))
    return make_parts(tiny_folder).trainer(config, run)


def gradients(trainer: Trainer, epoch: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    batch = trainer.sets[0].batch(trainer.plan(0)[0][0][1])
    trainer.optimizer.zero_grad()
    values = trainer.runner.backward(trainer.runner.prepare(batch), epoch, weight=1.0, draw=(7, 0))
    found = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    return found, {name: float(value) for name, value in values.items()}


def plain_gradients(trainer: Trainer, epoch: int = 1) -> dict[str, torch.Tensor]:
    """The oracle: one padded forward pass a column, nothing shared, nothing cut."""
    batch = trainer.sets[0].batch(trainer.plan(0)[0][0][1])
    trainer.optimizer.zero_grad()
    columns = [
        served(trainer.model, trainer.model(*trainer.tokens.batch(batch.numbers[:, column]))) for column in (0, 1)
    ]
    from luotuo_integrations.training.objective import StepVectors

    assert batch.teacher is not None
    vectors = StepVectors(tuple(columns), batch.teacher.unbind(1), None, batch.ignore)
    trainer.sets[0].objective(vectors, epoch)[0].backward()
    return {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("tokens_per_pass", [20, 64, 100_000])
@pytest.mark.parametrize("in_memory", [1, 100_000])
def test_the_gradient_does_not_depend_on_the_passes(
    tiny_folder: Path, tmp_path: Path, tokens_per_pass: int, in_memory: int
) -> None:
    """Cached gradients among them: with one token in memory every batch is computed in two rounds."""
    batch = BatchConfig(size=12, tokens_per_pass=tokens_per_pass, tokens_in_memory=in_memory)
    trainer = trainer_of(tiny_folder, tmp_path, batch)
    found, _ = gradients(trainer)
    expected = plain_gradients(trainer)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_dropout_is_the_same_in_both_rounds_of_cached_gradients(tiny_folder: Path, tmp_path: Path) -> None:
    kept, values = gradients(trainer_of(tiny_folder, tmp_path / "a", BatchConfig(12, tokens_per_pass=40), 0.3))
    batch = BatchConfig(12, tokens_per_pass=40, tokens_in_memory=1)
    twice, other = gradients(trainer_of(tiny_folder, tmp_path / "b", batch, 0.3))
    assert values == pytest.approx(other)
    for name, gradient in kept.items():
        torch.testing.assert_close(twice[name], gradient, atol=2e-5, rtol=1e-4, msg=name)
    without, _ = gradients(trainer_of(tiny_folder, tmp_path / "c", BatchConfig(12, tokens_per_pass=40)))
    assert any(not torch.allclose(without[name], gradient) for name, gradient in kept.items())


def test_the_random_state_of_the_caller_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_folder, tmp_path, BatchConfig(12), 0.3)
    before = torch.get_rng_state()
    gradients(trainer)
    assert torch.equal(torch.get_rng_state(), before)


def run_two_processes(model: Path, out: Path, pairs: int, tokens_in_memory: int) -> None:
    arguments = ["tests/two_processes.py", model, out, pairs, tokens_in_memory]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(one) for one in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_train_as_one_does(tiny_folder: Path, tmp_path: Path) -> None:
    """23 pairs in batches of 9: shares of 5 and 4 rows, and a last batch of 5; all of them with cached gradients."""
    two_processes.main(tiny_folder, tmp_path / "1", pairs=23, tokens_in_memory=1)
    run_two_processes(tiny_folder, tmp_path / "2", pairs=23, tokens_in_memory=1)
    for name in ("gradients", "weights"):
        one, two = (load_file(tmp_path / processes / f"{name}.safetensors") for processes in ("1", "2"))
        assert one.keys() == two.keys()
        for tensor in one:
            if tensor.endswith("key.bias"):
                continue  # softmax takes no notice of it: its gradient is rounding noise, which Adam scales up
            torch.testing.assert_close(one[tensor], two[tensor], atol=2e-4, rtol=1e-3, msg=f"{name} {tensor}")
    first, second = (losses(tmp_path / processes / "run") for processes in ("1", "2"))
    assert len(first) == 6
    assert [loss for _, loss in second] == pytest.approx([loss for _, loss in first], rel=1e-3)


def fail_when_large(trainer: Trainer, most: int) -> list[int]:
    """Let the model run out of memory on passes of more tokens than this; note the passes that went well."""
    forward = trainer.model.forward
    done: list[int] = []

    def limited(input_ids: Any, attention_mask: Any) -> Any:
        if input_ids.numel() > most:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB"
            raise RuntimeError(msg)
        done.append(input_ids.numel())
        return forward(input_ids, attention_mask)

    trainer.model.forward = limited  # type: ignore[method-assign]
    return done


def test_out_of_memory_goes_on_in_smaller_passes_with_the_same_gradient(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(tiny_folder, tmp_path, BatchConfig(size=12))
    expected, _ = gradients(trainer)
    done = fail_when_large(trainer, 60)
    found, _ = gradients(trainer)
    assert done
    assert trainer.runner.tokens_per_pass <= 60
    assert "Out of memory on cpu: batch.tokens_per_pass is now" in caplog.text
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_a_single_text_that_does_not_fit_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_folder, tmp_path, BatchConfig(size=12))
    fail_when_large(trainer, 0)
    with pytest.raises(MemoryError, match=r"for one text of .* tokens; lower student.max_tokens"):
        gradients(trainer)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_folder, tmp_path, BatchConfig(size=12))

    def broken(*_: Any) -> Any:
        msg = "something else"
        raise RuntimeError(msg)

    trainer.model.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="something else"):
        gradients(trainer)


def test_a_wider_model_keeps_fewer_tokens(tiny_folder: Path) -> None:
    from luotuo_integrations.modeling import EmbeddingModel

    model = EmbeddingModel.load(tiny_folder)
    narrow = tokens_in_memory(model, torch.device("cpu"))
    model.backbone.config.num_hidden_layers *= 4  # type: ignore[union-attr]
    assert tokens_in_memory(model, torch.device("cpu")) == pytest.approx(narrow / 4, rel=0.01)
