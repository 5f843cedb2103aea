"""Progress of a run for people: one line that is rewritten on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from qwen3_embedding.corpus.encode import Progress, Result

_LOG_EVERY_S = 10.0


class ProgressLine:
    """Writes :class:`~qwen3_embedding.corpus.encode.Progress` to a stream; give it to ``encode(report=…)``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show a state, on a log not more often than every ten seconds."""
        now = time.monotonic()
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{render(progress)}")
        elif now - self._last < _LOG_EVERY_S:
            return
        else:
            self._stream.write(render(progress) + "\n")
        self._last = now
        self._stream.flush()

    def close(self) -> None:
        """End the line on a terminal."""
        if self._is_terminal and self._last:
            self._stream.write("\n")


def render(progress: Progress) -> str:
    """``62% · 81,920 rows (4,011 repeats, 0 unchanged) · 1,204 rows/s · 310,112 tokens/s · 41 s left``."""
    repeats = progress.rows - progress.computed
    parts = [
        f"{progress.fraction:.0%}",
        f"{progress.rows:,} rows ({repeats:,} repeats, {progress.unchanged:,} unchanged)",
        f"{progress.rows_per_s:,.0f} rows/s",
        f"{progress.tokens_per_s:,.0f} tokens/s",
    ]
    if progress.skipped:
        parts.append(f"{progress.skipped:,} skipped")
    if progress.cut:
        parts.append(f"{progress.cut:,} cut")
    if progress.seconds_left is not None:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return " · ".join(parts)


def summary(result: Result) -> str:
    """What a run has done and what the folder holds now, for people."""
    done, totals = result.progress, result.manifest.raw["totals"]
    lines = [
        f"{result.manifest.folder}: {totals['rows']:,} rows in {len(result.manifest.shards):,} shards",
        f"this run: {done.rows:,} written ({done.computed:,} computed, {done.rows - done.computed:,} repeats), "
        f"{done.unchanged:,} unchanged, {done.tokens:,} tokens in {done.seconds:.1f} s",
    ]
    if result.changed:
        lines.append(f"changed or gone since they were read: {', '.join(result.changed)}")
    if totals["cut"]:
        lines.append(
            f"longer than the model takes and cut at the end: {totals['cut']:,} texts; --chunk-tokens avoids that"
        )
    if totals["skipped"]:
        lines.append(f"skipped: {totals['skipped']:,} records, listed in skipped.jsonl")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
