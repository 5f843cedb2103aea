"""A script of ``test_killed``: ``killed_runs.py FOLDER...``, a ``recipe.toml`` in each.

Of each recipe it makes a run that nobody stops, in ``alone``, and one that is killed at three random moments and then
goes on to its end, in ``killed``.  Every part is a process of its own with two threads, forked before torch has started
any, so that torch is imported once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import peft  # noqa: F401  # before the forks: it takes longer to import than a run to train
import torch

from qwen3_embedding.training.config import TrainingSettings, load_settings
from qwen3_embedding.training.trainer import Run, train

KILLS = 3


def part(settings: TrainingSettings) -> tuple[int, int]:
    """Fork a process that trains, and gives the number of each step it begins to the returned file descriptor."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    code = 1
    try:
        torch.set_num_threads(2)
        real = Run._step

        def announced(self: Run, step: int) -> None:
            os.write(write, bytes([step]))
            real(self, step)

        Run._step = announced  # type: ignore[method-assign]
        train(settings, show=False)
        code = 0
    finally:
        os._exit(code)


def whole(settings: TrainingSettings) -> float:
    """Seconds a step of a run that nobody stops."""
    process, read = part(settings)
    os.read(read, 1)
    began = time.monotonic()
    while os.read(read, 64):
        pass
    assert os.waitpid(process, 0)[1] == 0
    os.close(read)
    return (time.monotonic() - began) / settings.run.steps


def killed(settings: TrainingSettings, at: int, after: float) -> None:
    """Kill a run some time after it has begun a step, or the first one behind it."""
    process, read = part(settings)
    # The run killed before may have finished that step already, so this one may begin behind it.
    while (begun := os.read(read, 1)) and begun[0] < at:
        pass
    assert begun, f"the run ended before step {at}"
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    os.close(read)
    assert not settings.output.exists()


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        settings = load_settings(folder / "recipe.toml")
        seconds = whole(replace(settings, output=folder / "alone"))
        settings = replace(settings, output=folder / "killed")
        for at in sorted(random.sample(range(1, settings.run.steps - 3), KILLS)):
            after = random.uniform(0, 1.5) * seconds
            print(folder.name, "killed", after, "s after the begin of step", at, flush=True)
            killed(settings, at, after)
        whole(settings)


if __name__ == "__main__":
    main()
