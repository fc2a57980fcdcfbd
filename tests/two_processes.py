"""Run by torchrun in a test: the gradients and losses of a few steps, written by the main process.

Arguments: folder of the model, folder to write into, pairs, tokens in memory.
"""

import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from luotuo_integrations.training.checkpoints import trained_tensors
from luotuo_integrations.training.config_sections import BatchConfig
from tests.training_parts import make_config, make_parts


def main(model: Path, out: Path, pairs: int, tokens_in_memory: int) -> None:
    parts = make_parts(model, pairs)
    config = make_config(batch=BatchConfig(size=9, tokens_per_pass=60, tokens_in_memory=tokens_in_memory))
    trainer = parts.trainer(replace(config, seed=1), out / "run")
    batch = trainer.sets[0].batch(trainer.plan(0)[0][0][1])
    trainer.runner.backward(trainer.runner.prepare(batch), epoch=1, weight=1.0, draw=(0, 0))
    trainer.runner.sum_gradients()
    gradients = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    trainer.train()
    if trainer.accelerator.is_main_process:
        save_file(gradients, out / "gradients.safetensors")
        save_file(
            {name: one.clone() for name, one in trained_tensors(trainer.model).items()}, out / "weights.safetensors"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
