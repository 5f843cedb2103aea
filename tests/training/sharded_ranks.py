"""What each of the processes of ``test_sharded`` runs: ``sharded_ranks.py STEPS FOLDER...``, a ``recipe.toml`` in each.

The run of each recipe goes on in parts, to the end, or for so many steps if ``STEPS`` is not 0; the gradients of its
first step, put together, are written beside.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen3_embedding.training import distributed
from qwen3_embedding.training.config import load_settings
from qwen3_embedding.training.distributed import sharding
from qwen3_embedding.training.trainer import Run, make_objective


def main() -> None:
    torch.set_num_threads(1)
    stop, folders = int(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    with distributed.joined() as ranks:
        for folder in folders:
            settings = load_settings(folder / "recipe.toml")
            run = Run(settings, make_objective(settings, torch.device("cpu")), ranks)
            held = sum(p.to_local().numel() for p in run.parameters.values())  # type: ignore[operator]
            assert held < 0.6 * sum(p.numel() for p in run.parameters.values())
            if stop:
                run.objective.backward(0, settings.run, ranks)
                found = sharding.whole(
                    {n: p.grad for n, p in run.parameters.items() if p.grad is not None}, ranks.first
                )
                if ranks.first:
                    save_file(found, folder / "gradients.safetensors")
                for step in range(stop):
                    run._step(step)
            else:
                run.go(show=False)


if __name__ == "__main__":
    main()
