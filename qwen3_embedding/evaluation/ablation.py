"""What each stage of training is worth: rows of reports in the shape of the Qwen3 Embedding report's Table 5.

Every row is one model over the same tasks: its mean, with a bootstrap interval over the queries, and its difference to
the row that all are compared with, with an interval and the p-value of a paired randomisation test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwen3_embedding.evaluation.results import Report, TaskResult
from qwen3_embedding.evaluation.statistics import Interval, compare_overall

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Row:
    """One model of an ablation."""

    name: str
    mean: Interval
    """Of the main metrics over the tasks, queries drawn anew within each."""
    tasks: Mapping[str, float]
    difference: Interval | None
    """To the reference; ``None`` in its own row."""
    p_value: float | None


@dataclass(frozen=True, slots=True)
class AblationCard:
    """The rows, and what they are compared with."""

    reference: str
    rows: tuple[Row, ...]
    notes: Mapping[str, str]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """The card as a page: figures times 100."""
        tasks = list(self.rows[0].tasks)
        names = " | ".join(tasks)
        lines = [
            f"| run | mean [95%] | against {self.reference} [95%] | p | {names} |",
            "|---|---|---|---|" + "---|" * len(tasks),
        ]
        for row in self.rows:
            p = "" if row.p_value is None else f"{row.p_value:.3f}"
            scores = " | ".join(f"{100 * row.tasks[task]:.1f}" for task in tasks)
            lines.append(f"| {row.name} | {_show(row.mean)} | {_show(row.difference, '+')} | {p} | {scores} |")
        notes = [f"- {name}: {text}" for name, text in self.notes.items()]
        return "\n".join([*lines, "", *notes]) + "\n"


def ablation_card(
    reports: Mapping[str, Report], reference: str, notes: Mapping[str, str] | None = None, resamples: int = RESAMPLES
) -> AblationCard:
    """Compare reports over the same tasks.

    Args:
        reports: row name to report, in the order of the card; all with values per query.
        reference: name of the row that the others are compared with.
        notes: facts to print below.
        resamples: of the bootstrap and of the randomisation test.

    Raises:
        ValueError: no such reference; reports over different tasks, definitions or queries.
    """
    if reference not in reports:
        raise ValueError(f"reference={reference!r} is no row; there are {', '.join(reports)}")
    rows = []
    for name, report in reports.items():
        mean = compare_overall(_nothing(report), report, resamples).difference
        apart = None if name == reference else compare_overall(reports[reference], report, resamples)
        rows.append(
            Row(
                name,
                mean,
                {task.name: task.score for task in report.tasks},
                None if apart is None else apart.difference,
                None if apart is None else apart.p_value,
            )
        )
    return AblationCard(reference, tuple(rows), dict(notes or {}))


def _nothing(report: Report) -> Report:
    """The report with 0 for every query: the difference to it is the report's own mean."""
    return replace(report, tasks=tuple(_zeros(task) for task in report.tasks))


def _zeros(task: TaskResult) -> TaskResult:
    metrics = {**task.metrics, task.main_metric: 0.0}
    return replace(task, metrics=metrics, per_query=dict.fromkeys(task.per_query, 0.0))


def _show(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
