"""What each of the processes of ``test_sharded`` runs: ``sharded_ranks.py FOLDER...``, a ``recipe.toml`` in each.

Where the run was not begun, it writes the gradients of the first step, stops at the checkpoint after two steps, keeps
it in ``stopped.run``, and goes on from there as a new run; else it goes on.  The model is in parts all the time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen3_embedding.training import distributed
from qwen3_embedding.training.config import TrainingSettings, load_settings
from qwen3_embedding.training.distributed import Ranks, sharding
from qwen3_embedding.training.trainer import Run, make_objective

STOPPED = 2


def begin(settings: TrainingSettings, ranks: Ranks) -> Run:
    run = Run(settings, make_objective(settings, torch.device("cpu")), ranks)
    held = sum(p.to_local().numel() for p in run.parameters.values())  # type: ignore[attr-defined]
    assert held < 0.6 * sum(p.numel() for p in run.parameters.values())
    return run


def main() -> None:
    torch.set_num_threads(1)
    with distributed.joined() as ranks:
        for folder in map(Path, sys.argv[1:]):
            settings = load_settings(folder / "recipe.toml")
            if not settings.folder.exists():
                run = begin(settings, ranks)
                run.objective.backward(0, settings.run, ranks)
                gradients = {name: p.grad for name, p in run.parameters.items() if p.grad is not None}
                whole = sharding.whole(gradients, ranks.first)
                for step in range(STOPPED):
                    run._step(step)
                if ranks.first:
                    save_file(whole, folder / "gradients.safetensors")
                    shutil.copytree(settings.folder, folder / "stopped.run")
                ranks.wait()
            begin(settings, ranks).go(show=False)


if __name__ == "__main__":
    main()
