"""What a run shows and records: a bar on stderr, a line of ``log.jsonl`` a step, other places if asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwen3_embedding.optional import require
from qwen3_embedding.whole import write_text

FIGURES = ("loss", "masked_fraction", "saturated_fraction", "tokens_per_second", "learning_rate", "gradient_norm")


class Log:
    """A file of a run folder with one JSON object a line, each with its ``step``; there once it has a line."""

    def __init__(self, path: Path, steps_done: int) -> None:
        self.path = path
        self._cut(steps_done)

    def _cut(self, steps_done: int) -> None:
        """Drop lines of steps that a resumed run does again, and a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= steps_done:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        write_text(self.path, "".join(kept))

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line; it is with the system when this returns, so a process that is killed later leaves it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Logs:
    """The files of a run folder that get lines as it goes, cut to where a resumed run takes over.

    Lines of a step are written before its checkpoint, so that every step a checkpoint holds has its lines, once.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        self.steps, self.held_out, self.masked = (
            Log(folder / f"{name}.jsonl", steps_done) for name in ("log", "held_out", "masked")
        )
        self.steps.path.touch()


class Writer(Protocol):
    """A place that takes figures by step beside the log."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder; a resumed run hides the steps that it does again."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        module = require("torch.utils.tensorboard", extra="train")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run that a resumed training goes on with. Nothing is sent unless a project is named."""

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb = require("wandb", extra="wandb")
        # The same folder is the same run; texts and code are not sent.
        run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(disable_code=True, console="off"),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Display:
    """The progress bar, and the other places that take figures."""

    def __init__(self, steps: int, done: int, show: bool, writers: Sequence[Writer] = ()) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f} · {task.fields[watched]} · {task.fields[speed]:,.0f} tok/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not show, transient=False)
        self._task = self._bar.add_task("train", total=steps, completed=done, loss=float("nan"), watched="", speed=0.0)
        self._writers = writers

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for writer in self._writers:
            writer.close()

    def update(self, entry: dict[str, Any]) -> None:
        """Show a step."""
        self._bar.update(
            self._task,
            completed=entry["step"],
            loss=entry["loss"],
            watched=_watched(entry),
            speed=entry["tokens_per_second"],
        )
        self.write(entry["step"], {name: entry[name] for name in FIGURES})

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand figures of a step to the other places."""
        for writer in self._writers:
            writer.write(step, figures)


def _watched(entry: dict[str, Any]) -> str:
    """What the loss alone does not show: negatives that were masked, or a reranker's scores at their end."""
    if entry["saturated_fraction"]:
        return f"saturated {entry['saturated_fraction']:.2%}"
    return f"masked {entry['masked_fraction']:.2%}"
