"""What a run shows and records: a bar on stderr, a line of ``log.jsonl`` a step, TensorBoard if asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwen3_embedding.optional import require


class Log:
    """``log.jsonl`` of a run folder: one JSON object a line."""

    def __init__(self, path: Path, steps_done: int) -> None:
        self.path = path
        self._cut(steps_done)
        self._file = path.open("a", encoding="utf-8")

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
        beside = self.path.with_name(self.path.name + ".partial")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(self.path)

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line."""
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Display:
    """The progress bar, and TensorBoard's event file."""

    def __init__(self, steps: int, done: int, folder: Path, tensorboard: bool, show: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f} · masked {task.fields[masked]:.2%} · {task.fields[speed]:,.0f} tok/s"
            ),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not show, transient=False)
        self._task = self._bar.add_task("train", total=steps, completed=done, loss=float("nan"), masked=0.0, speed=0.0)
        self._writer: Any = None
        if tensorboard:
            self._writer = require("torch.utils.tensorboard", extra="train").SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def update(self, entry: dict[str, Any]) -> None:
        """Show a step."""
        self._bar.update(
            self._task,
            completed=entry["step"],
            loss=entry["loss"],
            masked=entry["masked_fraction"],
            speed=entry["tokens_per_second"],
        )
        if self._writer is not None:
            for name in ("loss", "masked_fraction", "tokens_per_second", "learning_rate", "gradient_norm"):
                self._writer.add_scalar(name, entry[name], entry["step"])
