"""Pictures: the announcement's bars drawn from the data, and the plots of the reports; PNG and SVG, no display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_embedding.evaluation.reproduce import Cell
from qwen3_embedding.optional import require
from qwen3_embedding.whole import write_bytes

OURS, OTHERS, INK, MUTED, GRID = "#5b3df5", "#c3c7d3", "#1c1e26", "#6b7080", "#e7e9ef"
SERIES = ("#5b3df5", "#e4572e", "#17a398", "#f0a202", "#3a86c8", "#8d5a97")
FONT_SIZE = 9
LEGEND = "Solid: recomputed from per-task results. Hatched: published only, or contradicted by the table's own cells."


@dataclass(frozen=True, slots=True)
class Panel:
    """One column of one table as bars."""

    title: str
    table: str
    column: str


ANNOUNCEMENT = (
    Panel("MTEB Multilingual v2", "2", "Mean(Task)"),
    Panel("MTEB English v2", "7", "Mean(Task)"),
    Panel("MTEB Chinese v1", "8", "Mean(Task)"),
    Panel("MTEB Code v1", "9", "Mean(Task)"),
)
RERANKING = tuple(
    Panel(column, "4", column) for column in ("MTEB-R", "CMTEB-R", "MMTEB-R", "MLDR", "MTEB-Code", "FollowIR")
)


def draw_announcement(cells: Sequence[Cell], folder: str | Path) -> list[Path]:
    """``announcement.png`` and ``.svg``: the embedding models on the four benchmarks, Mean(Task)."""
    figure = _bars(
        [cell for cell in cells if "Reranker" not in cell.row],
        ANNOUNCEMENT,
        2,
        "Qwen3 Embedding: mean over tasks",
        LEGEND,
    )
    return save_figure(figure, Path(folder), "announcement")


def draw_reranking(cells: Sequence[Cell], folder: str | Path) -> list[Path]:
    """``reranking.png`` and ``.svg``: the announcement's reranking table."""
    figure = _bars(
        cells,
        RERANKING,
        3,
        "Qwen3 Reranker: top 100 of Qwen3-Embedding-0.6B reranked",
        f"nDCG@10 (FollowIR: p-MRR), in percent. {LEGEND}",
    )
    return save_figure(figure, Path(folder), "reranking")


def line_plot(
    series: Mapping[str, Mapping[float, float]], title: str, x_label: str, y_label: str, log_x: bool = False
) -> Any:
    """A line with points for each of ``series`` (name -> x -> y), labelled in a legend.

    Earlier lines are wider, so that one under another still shows.
    """
    figure = _figure(6.4, 3.8)
    axes = figure.add_subplot()
    step = min(1.8, 5 / max(len(series) - 1, 1))
    for place, ((name, points), color) in enumerate(zip(series.items(), _colors(len(series)), strict=True)):
        xs, wider = sorted(points), step * (len(series) - 1 - place)
        width, size = 1.6 + wider, 4.0 + 1.2 * wider
        axes.plot(xs, [points[x] for x in xs], marker="o", markersize=size, linewidth=width, color=color, label=name)
    ticks = sorted({x for points in series.values() for x in points})
    if log_x:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _dress(axes, "both")
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel(y_label, color=MUTED)
    axes.set_title(title, loc="left", fontweight="bold", color=INK)
    axes.legend(frameon=False, fontsize=FONT_SIZE - 1)
    return figure


def interval_plot(rows: Sequence[tuple[str, str, float, float, float]], title: str, x_label: str) -> Any:
    """Points with intervals: ``(row, series, value, low, high)``, rows downwards, one colour a series."""
    names = list(dict.fromkeys(row for row, *_ in rows))
    series = list(dict.fromkeys(name for _, name, *_ in rows))
    colors = dict(zip(series, _colors(len(series)), strict=True))
    step = 0.6 / max(len(series), 1)
    figure = _figure(7.2, 1.2 + 0.34 * len(names) * max(1.0, 0.6 * len(series)))
    axes = figure.add_subplot()
    for name in series:
        chosen = [(names.index(row), value, low, high) for row, which, value, low, high in rows if which == name]
        offset = (series.index(name) - (len(series) - 1) / 2) * step
        axes.errorbar(
            [value for _, value, _, _ in chosen],
            [place + offset for place, *_ in chosen],
            xerr=[[v - low for _, v, low, _ in chosen], [high - v for _, v, _, high in chosen]],
            fmt="o",
            markersize=4,
            color=colors[name],
            elinewidth=1.4,
            capsize=2.5,
            label=name,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _dress(axes, "x")
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_title(title, loc="left", fontweight="bold", color=INK)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=FONT_SIZE - 1, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def figure_svg(figure: Any) -> str:
    """The figure as an SVG element, the same bytes for the same figure, to stand inside a page."""
    text = _rendered(figure, "svg").decode("utf-8")
    return text[text.index("<svg") :]


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.svg``, each beside and then moved into place."""
    paths = []
    for kind in ("png", "svg"):
        path = folder / f"{name}.{kind}"
        write_bytes(path, _rendered(figure, kind), shared=True)
        paths.append(path)
    return paths


def _bars(cells: Sequence[Cell], panels: Sequence[Panel], columns: int, title: str, legend: str) -> Any:
    found = [[cell for cell in cells if (cell.table, cell.column) == (panel.table, panel.column)] for panel in panels]
    empty = [panel for panel, group in zip(panels, found, strict=True) if not group]
    if empty:
        raise ValueError(f"no figures of table {empty[0].table}, column {empty[0].column}; reproduce that table too")
    places = [max(map(len, found[start : start + columns])) for start in range(0, len(found), columns)]
    figure = _figure(11.0, 0.27 * sum(places) + 0.75 * len(places) + 1.1)
    grid = figure.add_gridspec(len(places), columns, height_ratios=[place + 0.6 for place in places])
    for number, (panel, group) in enumerate(zip(panels, found, strict=True)):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(grid[row, column])
        _bar_panel(axes, panel.title, group, places[row], own_order=columns == 2, names=columns == 2 or column == 0)
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    figure.supxlabel(legend, x=0.012, ha="left", fontsize=FONT_SIZE - 0.5, color=MUTED)
    return figure


def _bar_panel(axes: Any, title: str, cells: Sequence[Cell], places: int, own_order: bool, names: bool) -> None:
    """Best on top where every panel has its own order; in the table's order where panels share the names."""
    ordered = sorted(cells, key=lambda cell: -cell.published) if own_order else list(cells)
    values = [cell.published for cell in ordered]
    low = min(0.0, min(values) * 1.6)
    bars = axes.barh(range(len(ordered)), values, height=0.72)
    for bar, cell in zip(bars, ordered, strict=True):
        bar.set_facecolor(OURS if cell.row.startswith("Qwen3") else OTHERS)
        if cell.status != "recomputed":
            bar.set(hatch="////", edgecolor="white", linewidth=0)
        gap = 0.012 * (max(values) - low)
        axes.text(
            max(cell.published, 0) + gap,
            bar.get_y() + bar.get_height() / 2,
            f"{cell.published:.2f}",
            va="center",
            fontsize=FONT_SIZE - 0.5,
            fontweight="bold" if cell.published == max(values) else "normal",
            color=INK,
        )
    axes.set_yticks(range(len(ordered)), [cell.row for cell in ordered] if names else [""] * len(ordered))
    for label, cell in zip(axes.get_yticklabels(), ordered, strict=True):
        label.set(color=OURS if cell.row.startswith("Qwen3") else INK)
    axes.set_ylim(places - 0.4, -0.6)
    axes.set_xlim(low, max(values) * 1.14)
    _dress(axes, "x")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)


def _dress(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=FONT_SIZE, colors=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _colors(count: int) -> list[str]:
    return [SERIES[number % len(SERIES)] for number in range(count)]


def _figure(width: float, height: float) -> Any:
    module = require("matplotlib.figure", extra="eval")
    return module.Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _rendered(figure: Any, kind: str) -> bytes:
    matplotlib = require("matplotlib", extra="eval")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "qwen3-embedding", "svg.fonttype": "none", "hatch.linewidth": 0.7}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()
