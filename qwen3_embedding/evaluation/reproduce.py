"""Every published figure recomputed from per-task results, or said why not.

A figure is ``recomputed`` when the leaderboard's rule over stored per-task scores gives it, rounded half up or cut to
two decimals (Tables 3 and 4 are cut; 2, 7, 8 and 9 are rounded, save some means; each cell says which fits).  It
``differs`` when stored scores give another figure.  It ``contradicts its own cells`` when it is a mean that the very
cells of its row exclude.  Everything else is ``published only``, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qwen3_embedding.evaluation.averages import mean, mean_task, mean_type, to_cents, type_means
from qwen3_embedding.evaluation.benchmarks import load_benchmark
from qwen3_embedding.evaluation.published import Published, PublishedTable, load_published

Status = Literal["recomputed", "differs", "contradicts its own cells", "published only"]
STATUSES: tuple[Status, ...] = ("recomputed", "differs", "contradicts its own cells", "published only")

MULTILINGUAL, ENGLISH, CHINESE, CODE = "MTEB(Multilingual, v2)", "MTEB(eng, v2)", "MTEB(cmn, v1)", "MTEB(Code, v1)"
FLORES = "FloresBitextMining"

ROW_MODEL = {"final": "Qwen3-Embedding-0.6B", "BGE-M3": "bge-m3", "gemini-embedding-exp-03-07": "gemini-embedding-001"}
"""Rows whose stored results go under another name."""

_NOTES = {
    "gemini-embedding-exp-03-07": "stored results are of gemini-embedding-001, the released form of this model",
    "MLDR": "the results repository holds 2 of the 13 languages of the 0.6B model and 1 of the others'",
    "w/": "ablation checkpoints were never released, nor their per-task results",
    "code_2025": "made with an older task list of MTEB(Code); Table 9 and the stored results have the 12 tasks of v1",
}
_SLACK = 0.015
"""Furthest a printed mean can lie from the mean of its printed cells, whichever way either was rounded."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one table, in percent."""

    table: str
    row: str
    column: str
    published: float
    computed: float | None
    status: Status
    rounding: str
    """``half-up``, ``floor``, ``either`` when both give the figure, or empty when none does."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Mean(Task) over the tasks that the model was not trained on."""

    model: str
    benchmark: str
    mean: float | None
    """``None``: the training data were not declared."""
    tasks: int
    of: int
    seen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column's figure comes from: a benchmark, and what of it."""

    benchmark: str
    what: str
    """``mean_task``, ``mean_type``, or the name of a type or task."""


def reproduce(published: Published | None = None, tables: Iterable[str] | None = None) -> list[Cell]:
    """Recompute the tables.

    Raises:
        ValueError: no table of that id.
    """
    published = published or load_published()
    wanted = list(published.tables) if tables is None else list(tables)
    unknown = [key for key in wanted if key not in published.tables]
    if unknown:
        raise ValueError(f"no table {unknown[0]!r}; there are {', '.join(published.tables)}")
    return [cell for key in wanted for cell in _table_cells(published, published.tables[key])]


def not_trained_on(published: Published | None = None) -> list[Unseen]:
    """For every model with stored results, the mean of each benchmark without the tasks it was trained on."""
    published = published or load_published()
    found = []
    for model, benchmarks in published.stored.items():
        seen = published.trained_on.get(model)
        for benchmark in (MULTILINGUAL, ENGLISH, CHINESE, CODE):
            types = load_benchmark(benchmark, as_published=True).types
            scores = {task: score for task, score in benchmarks.get(benchmark, {}).items() if task in types}
            if len(scores) < len(types) - 1 or set(types) - set(scores) - {FLORES}:
                continue
            kept = [score for task, score in scores.items() if seen is not None and task not in seen]
            names = tuple(sorted(set(types) & (seen or frozenset())))
            average = mean(kept) if kept else None
            found.append(Unseen(model, benchmark, average, len(kept), len(types), names))
    return found


def _table_cells(published: Published, table: PublishedTable) -> list[Cell]:
    cells = []
    for row, values in table.rows.items():
        for column, value in zip(table.columns, values, strict=True):
            if value is not None:
                cells.append(_cell(published, table, row, column, value))
    return cells


def _cell(published: Published, table: PublishedTable, row: str, column: str, value: float) -> Cell:
    source = column_source(table, column)
    computed, note = _compute(published, row, source) if source else (None, _NOTES["MLDR"])
    rounding = "" if computed is None else _rounding(computed, value)
    own = own_mean(published, table, row, column)
    contradicts = own is not None and abs(own - value) >= _SLACK
    if rounding:
        status: Status = "recomputed"
    elif contradicts:
        assert own is not None
        status, note = "contradicts its own cells", f"the mean of the row's cells is {own:.2f}"
    elif computed is not None:
        status = "differs"
    else:
        status = "published only"
    if status != "recomputed" and source == Source(CODE, "mean_task") and table.id == "3":
        note = _NOTES["code_2025"]
    return Cell(table.id, row, column, value, computed, status, rounding, note)


def column_source(table: PublishedTable, column: str) -> Source | None:
    """What a column shows, or ``None`` for MLDR, of which no whole result is stored."""
    fixed = {
        "MTEB-R": Source(ENGLISH, "Retrieval"),
        "CMTEB-R": Source(CHINESE, "Retrieval"),
        "MMTEB-R": Source(MULTILINGUAL, "Retrieval"),
        "MTEB-Code": Source(CODE, "mean_task"),
        "FollowIR": Source("FollowIR", "mean_task"),
        "MMTEB": Source(MULTILINGUAL, "mean_task"),
        "CMTEB": Source(CHINESE, "mean_task"),
        ENGLISH: Source(ENGLISH, "mean_task"),
        CODE: Source(CODE, "mean_task"),
    }
    if column == "MLDR":
        return None
    if column in fixed:
        return fixed[column]
    prefix, _, rest = column.partition(" ")
    benchmark = table.benchmark or {"eng": ENGLISH, "cmn": CHINESE, "Code": CODE}[prefix]
    what = column if table.benchmark else rest
    return Source(benchmark, {"Mean(Task)": "mean_task", "Mean(Type)": "mean_type"}.get(what, what))


def own_mean(published: Published, table: PublishedTable, row: str, column: str) -> float | None:
    """The mean that the row's own printed cells give for this column, if they are the parts of it."""
    if column == "MTEB-Code" and row in published.tables["9"].rows:
        table, column = published.tables["9"], "Mean(Task)"
    whole = {"2": "Mean(Type)", "7": "Mean(Type)", "8": "Mean(Type)", "8-readme": "Mean(Type)", "9": "Mean(Task)"}
    if whole.get(table.id) != column:
        return None
    parts = [v for c, v in zip(table.columns, table.rows[row], strict=True) if not c.startswith("Mean(")]
    return mean(v for v in parts if v is not None)


def _compute(published: Published, row: str, source: Source) -> tuple[float | None, str]:
    """The figure by the leaderboard's rule, and how it came about; ``None`` and why not."""
    if row.startswith("w/"):
        return None, _NOTES["w/"]
    model = ROW_MODEL.get(row, row)
    note = _NOTES.get(row, "")
    stored = published.stored.get(model, {}).get(source.benchmark)
    if stored is None:
        return None, "no per-task results of this model are stored"
    types = load_benchmark(source.benchmark, as_published=True).types
    scores = {task: score for task, score in stored.items() if task in types}
    if source.what in scores:
        return scores[source.what], note
    missing = [task for task in types if task not in scores]
    if source.what in missing:
        return None, _lacking([source.what])
    if missing == [FLORES]:
        if source.what == "BitextMining":
            return None, f"{FLORES} is not stored; its score is solved from this figure"
        scores[FLORES] = implied_flores(published, row)
        if source.what in ("mean_task", "mean_type"):
            note = "; ".join(filter(None, [note, f"with {FLORES} = {scores[FLORES]:.2f}, solved from the Bitext mean"]))
        missing = []
    if source.what not in ("mean_task", "mean_type"):
        means = type_means(scores, types)
        lacking = [task for task in missing if types[task] == source.what]
        return means.get(source.what), note or _lacking(lacking)
    if missing:
        return None, _lacking(missing)
    return (mean_task if source.what == "mean_task" else mean_type)(scores, types), note


def implied_flores(published: Published, row: str) -> float:
    """The score of FloresBitextMining that makes the BitextMining mean of Table 2 what it is (known to 0.07)."""
    table = published.tables["2"]
    name = "Qwen3-Embedding-0.6B" if row == "final" else row
    printed = table.rows[name][table.columns.index("BitextMining")]
    assert printed is not None
    bitext = [item.task.name for item in load_benchmark(MULTILINGUAL).of_type("BitextMining")]
    stored = published.stored[ROW_MODEL.get(row, row)][MULTILINGUAL]
    return printed * len(bitext) - sum(stored[task] for task in bitext if task != FLORES)


def _lacking(tasks: list[str]) -> str:
    return f"the stored results lack {', '.join(tasks)}" if tasks else ""


def _rounding(computed: float, value: float) -> str:
    half_up, floor = to_cents(computed, "half-up") == value, to_cents(computed, "floor") == value
    return "either" if half_up and floor else "half-up" if half_up else "floor" if floor else ""


def as_lines(cells: Iterable[Cell], unseen: Iterable[Unseen] = ()) -> list[str]:
    """The result as text: each table with a mark a figure, what does not hold, and the means over unseen tasks."""
    cells = list(cells)
    marks = {"recomputed": " ", "differs": "≠", "contradicts its own cells": "!", "published only": "·"}
    lines = [
        "Marks: none = recomputed from per-task results, · = published only, ≠ = stored results give another figure,",
        "! = contradicts its own cells. Rounding: Tables 3 and 4 are cut to two decimals, 2, 7, 8 and 9 are rounded",
        "half up; means that were made the other way are named below.",
    ]
    for table in dict.fromkeys(cell.table for cell in cells):
        lines += ["", *_table_lines([cell for cell in cells if cell.table == table], marks)]
    lines += ["", "Figures that do not hold, or only when cut:"]
    lines += [f"  {line}" for cell in cells if (line := _remark(cell))]
    lines += ["", *(f"{len([c for c in cells if c.status == status]):4} {status}" for status in STATUSES)]
    rows = [_unseen_line(item) for item in unseen]
    return lines + (
        ["", "Mean(Task) over tasks the model was not trained on, as its makers declared:", *rows] if rows else []
    )


def _table_lines(cells: list[Cell], marks: dict[str, str]) -> list[str]:
    table = load_published().tables[cells[0].table]
    by_place = {(cell.row, cell.column): cell for cell in cells}
    width = max(map(len, table.rows))
    lines = [f"Table {table.id}: {table.title}", f"  {', '.join(table.columns)}"]
    for row in table.rows:
        found = [by_place.get((row, column)) for column in table.columns]
        values = "".join(f"{cell.published:8.2f}{marks[cell.status]}" if cell else f"{'–':>8} " for cell in found)
        lines.append(f"  {row:{width}}{values}")
    return lines


def _remark(cell: Cell) -> str:
    place = f"Table {cell.table}, {cell.row}, {cell.column}: {cell.published:.2f}"
    if cell.status == "differs":
        return f"{place}, stored results give {cell.computed:.4f}" + (f" ({cell.note})" if cell.note else "")
    if cell.status == "contradicts its own cells":
        return f"{place}, {cell.note}"
    expected = load_published().tables[cell.table].rounding
    if cell.status == "recomputed" and cell.column.startswith("Mean(") and cell.rounding not in (expected, "either"):
        return f"{place}, computed {cell.computed:.4f}: {cell.rounding}, not {expected}"
    return ""


def _unseen_line(item: Unseen) -> str:
    if item.mean is None:
        return f"  {item.model:32} {item.benchmark:24} training data not declared"
    removed = f" without {', '.join(item.seen)}" if item.seen else ""
    return f"  {item.model:32} {item.benchmark:24} {item.mean:6.2f} over {item.tasks} of {item.of}{removed}"
