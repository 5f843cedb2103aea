"""Saved runs as one page, in one HTML file or Markdown: tables, intervals, tests, plots, settings and costs.

Runs are compared only where they answered the same question: the same tasks by the same definitions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from qwen3_embedding.evaluation.figures import figure_svg, interval_plot
from qwen3_embedding.evaluation.results import Report, TaskResult
from qwen3_embedding.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    by_language,
    compare_overall,
    compare_reports,
    paired_tasks,
)
from qwen3_embedding.whole import write_text

SIGNIFICANT = 0.05
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, column names, rows of cells as text, and a remark below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown, before it is HTML or Markdown."""

    title: str
    tables: tuple[Table, ...]
    plots: tuple[tuple[str, str], ...]
    """Caption and SVG."""


def build_page(reports: Sequence[Report], title: str = "Evaluation", seed: int = 0, plots: bool = True) -> Page:
    """The page of one run, or of several over the same tasks.

    Args:
        reports: the first is what the others are compared with.
        title: of the page.
        seed: of bootstrap and tests.
        plots: draw the scores with their intervals (needs matplotlib).

    Raises:
        ValueError: no report; two of one name and settings alike; other tasks or definitions than the first has.
    """
    if not reports:
        raise ValueError("no report; give at least one saved run")
    names = run_names(reports)
    for other in reports[1:]:
        paired_tasks(reports[0], other)
    tables = [_scores(reports, names, seed)]
    tables += [
        _comparison(reports[0], names[0], other, name, seed) for other, name in zip(reports[1:], names[1:], strict=True)
    ]
    tables += _languages(reports, names)
    tables += [_provenance(reports, names), *_settings(reports, names), _costs(reports, names)]
    drawn = ((_CAPTION, figure_svg(_plot(reports, names, seed))),) if plots else ()
    return Page(title, tuple(table for table in tables if table.rows), drawn)


def run_names(reports: Sequence[Report]) -> list[str]:
    """A name a run: the model, with the reranker, and with the settings that differ where models are the same.

    Raises:
        ValueError: two runs that nothing tells apart.
    """
    plain = [f"{report.model} + {report.reranker}" if report.reranker else report.model for report in reports]
    names = []
    for report, name in zip(reports, plain, strict=True):
        twins = [other for other, twin in zip(reports, plain, strict=True) if twin == name]
        keys = sorted({key for twin in twins for key in twin.settings})
        differing = [key for key in keys if len({repr(twin.settings.get(key)) for twin in twins}) > 1]
        marks = [f"{key}={report.settings.get(key)}" for key in differing]
        if len(twins) > 1 and len({twin.commit for twin in twins}) > 1:
            marks.append(f"commit={report.commit[:10] or 'none'}")
        names.append(f"{name} ({', '.join(marks)})" if marks else name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two runs are both {twice[0]!r} with the same settings and commit; give each run once")
    return names


def to_markdown(page: Page) -> str:
    """The page as Markdown; plots are in the HTML only."""
    parts = [f"# {page.title}"]
    for table in page.tables:
        parts += [f"## {table.title}", _markdown_table(table)]
        if table.remark:
            parts.append(table.remark)
    return "\n\n".join(parts) + "\n"


def to_html(page: Page) -> str:
    """The page as one HTML file: no script, no other file, no network."""
    parts = [f"<h1>{escape(page.title)}</h1>"]
    for number, table in enumerate(page.tables):
        parts.append(_html_table(table))
        if number == 0:
            parts += [
                f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in page.plots
            ]
    return _HTML.format(title=escape(page.title), style=_STYLE, body="\n".join(parts))


def write_page(page: Page, path: str | Path) -> None:
    """Write ``.html`` or ``.md``, by the path's ending: beside, then moved into place.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    render: Callable[[Page], str] | None = {".html": to_html, ".md": to_markdown}.get(path.suffix)
    if render is None:
        raise ValueError(f"{path}: a report is .html or .md")
    write_text(path, render(page), shared=True)


_CAPTION = "Points: scores. Bars: 95 percent bootstrap intervals over the queries or pairs, where a task has one."


def _scores(reports: Sequence[Report], names: Sequence[str], seed: int) -> Table:
    columns = ("Task", "Type", "Metric", "n", *names)
    rows = []
    for task in reports[0].tasks:
        values = tuple(_with_interval(report.task(task.name), seed) for report in reports)
        rows.append((task.name, task.type, task.main_metric, str(task.samples or "–"), *values))
    for task_type in dict.fromkeys(task.type for task in reports[0].tasks):
        same = [task.name for task in reports[0].tasks if task.type == task_type]
        if len(same) not in (1, len(reports[0].tasks)):
            means = tuple(_percent(sum(report.task(n).score for n in same) / len(same)) for report in reports)
            rows.append((f"Mean of {task_type}", task_type, "", str(len(same)), *means))
    rows.append(("Mean(Task)", "", "", str(len(reports[0].tasks)), *(_percent(r.mean_task) for r in reports)))
    remark = (
        "In percent, with the 95 percent bootstrap interval over queries (pairs, texts). "
        "Mean(Task) is the unweighted mean over tasks."
    )
    return Table("Scores", columns, tuple(rows), remark)


def _comparison(base: Report, base_name: str, other: Report, name: str, seed: int) -> Table:
    rows = []
    for item in compare_reports(base, other, seed=seed):
        verdict = (
            "no difference shown"
            if item.p_corrected >= SIGNIFICANT
            else "better"
            if item.difference.value > 0
            else "worse"
        )
        rows.append(
            (
                item.task,
                _percent(item.a),
                _percent(item.b),
                _signed(item.difference),
                f"{item.wins}/{item.ties}/{item.losses}",
                _p(item.p_value),
                _p(item.p_corrected),
                verdict,
            )
        )
    whole = compare_overall(base, other, seed=seed)
    overall = (
        "Mean(Task)",
        _percent(base.mean_task),
        _percent(other.mean_task),
        _signed(whole.difference),
        f"{whole.wins}/{whole.ties}/{whole.losses}",
        _p(whole.p_value) if rows else "–",
        "–",
        f"over tasks: p = {_p(whole.tasks_p_value)}",
    )
    columns = ("Task", base_name, name, "Difference", "Won/tied/lost", "p", "p (Holm)", "Verdict")
    remark = (
        "Paired randomisation test over queries, two-sided, corrected by Holm over the tasks; intervals by paired "
        "bootstrap. The last row flips queries within tasks (p) and whole tasks (over tasks)."
    )
    return Table(f"{name} against {base_name}", columns, (*rows, overall), remark)


def _languages(reports: Sequence[Report], names: Sequence[str]) -> list[Table]:
    found = [by_language(report) for report in reports]
    languages = sorted({language for one in found for language in one})
    tasks = sorted({task for one in found for scores in one.values() for task in scores})
    rows = []
    for task in tasks:
        for language in languages:
            values = [one.get(language, {}).get(task) for one in found]
            if any(value is not None for value in values):
                rows.append((task, language, *("–" if value is None else _percent(value) for value in values)))
    return [Table("By language", ("Task", "Language", *names), tuple(rows), "Main metric of each task, in percent.")]


def _provenance(reports: Sequence[Report], names: Sequence[str]) -> Table:
    rows = []
    for task in reports[0].tasks:
        cells = []
        for report in reports:
            one = report.task(task.name)
            share = "not checked" if one.contamination is None else f"{100 * one.contamination:.2f} %"
            cells.append(f"{one.seen_in_training}; {share}")
        rows.append((task.name, task.definition[:16] or "–", _instruction(task), *cells))
    columns = ("Task", "Definition", "Instruction", *(f"Seen in training; contamination, {name}" for name in names))
    remark = (
        "Contamination: share of the test queries found, after normalisation, in the training texts (a lower bound)."
    )
    return Table("What the tasks are, and what the models knew", columns, tuple(rows), remark)


def _settings(reports: Sequence[Report], names: Sequence[str]) -> list[Table]:
    """What differs, a column a run; and once what all runs have alike."""
    keys = sorted({key for report in reports for key in report.settings})
    rows = [(key, *(_plain(report.settings.get(key)) for report in reports)) for key in keys]
    rows += [
        ("commit", *(report.commit or "–" for report in reports)),
        ("hardware", *(report.hardware or "–" for report in reports)),
        ("created", *(report.created or "–" for report in reports)),
    ]
    libraries = sorted({name for report in reports for name in report.versions})
    rows += [(f"version of {name}", *(report.versions.get(name, "–") for report in reports)) for name in libraries]
    if len(reports) == 1:
        return [Table("Settings", ("", *names), tuple(rows))]
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    same = tuple(row[:2] for row in rows if len(set(row[1:])) == 1)
    return [
        Table("Settings that differ", ("", *names), differing),
        Table("Settings alike", ("", "all runs"), same),
    ]


def _costs(reports: Sequence[Report], names: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = [("seconds, all tasks", *(f"{report.seconds:.1f}" for report in reports))]
    for task in reports[0].tasks:
        rows.append((f"seconds, {task.name}", *(f"{report.task(task.name).seconds:.1f}" for report in reports)))
    keys = sorted({key for report in reports for key in report.costs})
    rows += [(key, *(_plain(report.costs.get(key)) for report in reports)) for key in keys]
    remark = "Seconds of a run of `evaluate` are those of all its columns together, cached vectors not computed again."
    return Table("Costs", ("", *names), tuple(rows), remark)


def _plot(reports: Sequence[Report], names: Sequence[str], seed: int) -> Any:
    rows = []
    for task in reports[0].tasks:
        for report, name in zip(reports, names, strict=True):
            one = report.task(task.name)
            low, high = one.score, one.score
            if ends := _ends(one, seed):
                low, high = min(ends[0], one.score), max(ends[1], one.score)
            rows.append((task.name, name, 100 * one.score, 100 * low, 100 * high))
    return interval_plot(rows, "Main metric of each task", "percent")


def _with_interval(task: TaskResult, seed: int) -> str:
    ends = _ends(task, seed)
    return f"{_percent(task.score)} [{_percent(ends[0])}, {_percent(ends[1])}]" if ends else _percent(task.score)


def _ends(task: TaskResult, seed: int) -> tuple[float, ...]:
    """Low and high end of the interval, or nothing where a task has none."""
    if not task.per_query:
        return task.interval
    found = bootstrap_interval([task.per_query[query] for query in sorted(task.per_query)], seed=seed)
    return found.low, found.high


def _signed(found: Interval) -> str:
    return f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _instruction(task: TaskResult) -> str:
    text = task.instruction if task.instruction is not None else "the model's default"
    return "; ".join([text, *task.notes])


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.00005 else "< 0.0001"


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value[:16]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _markdown_table(table: Table) -> str:
    lines = [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
    return "\n".join([*lines, *(_markdown_row(row) for row in table.rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    clean = [" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells]
    return f"| {' | '.join(clean)} |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    remark = f"<p>{escape(table.remark)}</p>" if table.remark else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>{remark}"
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e26; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #e7e9ef; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #5b3df5; } td { font-variant-numeric: tabular-nums; }
tbody tr:hover { background: #f6f5ff; } p, figcaption { color: #5a5f6e; font-size: .85rem; }
figure { margin: 1rem 0; overflow-x: auto; } svg { max-width: 100%; height: auto; }
"""

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
