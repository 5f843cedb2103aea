"""What each of the processes of ``test_distributed`` runs: ``two_ranks.py FOLDER...``, a ``recipe.toml`` in each."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen3_embedding.training import distributed
from qwen3_embedding.training.config import TrainingSettings, load_settings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.trainer import Run, make_objective

STEPS = 4


def gradients(settings: TrainingSettings, ranks: Ranks, step: int) -> dict[str, torch.Tensor]:
    objective = make_objective(settings, torch.device("cpu"))
    report = objective.backward(step, settings.run, ranks)
    ranks.sum_gradients(objective.parameters.values())
    found = {name: p.grad for name, p in objective.parameters.items() if p.grad is not None}
    return {**found, "loss": torch.tensor(report.loss)}


def main() -> None:
    torch.set_num_threads(1)
    with distributed.joined() as ranks:
        for folder in map(Path, sys.argv[1:]):
            settings = load_settings(folder / "recipe.toml")
            for step in range(STEPS):
                found = gradients(settings, ranks, step)
                if ranks.first:
                    save_file(found, folder / f"gradients-{step}.safetensors")
            Run(settings, make_objective(settings, torch.device("cpu")), ranks).go(show=False)


if __name__ == "__main__":
    main()
