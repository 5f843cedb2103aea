"""How many steps of a training run fit a time: a short try-out says what a step takes on this machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from qwen3_embedding.training.config import TrainingSettings

TRIED, SKIPPED = 24, 6
"""Steps of the try-out, and how many of them, the first, do not count: kernels are chosen and memory is taken there."""
FEWEST = 10


def fitting_steps(settings: TrainingSettings, seconds: float) -> int:
    """Steps of this run that take about ``seconds``, at least :data:`FEWEST`.

    The try-out's output is thrown away; the token stores that it made stay.
    """
    from qwen3_embedding.training.trainer import train

    output = settings.output.with_name(settings.output.name + ".pace")
    run = dataclasses.replace(settings.run, steps=TRIED, checkpoint_every=TRIED, log_every=1)
    tried = dataclasses.replace(settings, output=output, run_folder=None, run=run, held_out=None)
    _forget(tried)
    train(tried, show=False)
    lines = (tried.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    _forget(tried)
    taken: list[float] = [json.loads(line)["seconds"] for line in lines[SKIPPED:]]
    return max(FEWEST, int(seconds * len(taken) / sum(taken)))


def _forget(settings: TrainingSettings) -> None:
    for folder in (settings.output, settings.folder):
        shutil.rmtree(folder, ignore_errors=True)


class Steps:
    """How many steps each recipe takes, kept in a file, so that a run that goes on has as many as before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, recipe: str, settings: TrainingSettings, minutes: float | None, scale: float) -> int:
        """The recipe's own number, or the one that fits ``minutes``; a try-out takes ``scale`` of either."""
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        if recipe not in known:
            if minutes is None:
                known[recipe] = max(min(FEWEST, settings.run.steps), round(settings.run.steps * scale))
            else:
                known[recipe] = fitting_steps(settings, 60 * minutes * scale)
            self.path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        return int(known[recipe])
