"""A load as a picture: one HTML page without scripts, or a PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path

from qwen3_embedding.serving.load import Load, Run

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 320, 70, 90, 24, 46
COLOURS = ("#4353d8", "#0b7a43", "#b3401c", "#8a5bd6", "#b5891b", "#2a93b8")
Axis = tuple[str, Callable[[Run], float]]
CHARTS: tuple[tuple[str, Axis, Axis], ...] = (
    ("Rate by concurrency", ("concurrency", lambda run: run.concurrency), ("tokens/s", lambda run: run.tokens_per_s)),
    ("p95 by rate", ("requests/s", lambda run: run.requests_per_s), ("p95, ms", lambda run: run.p95_ms)),
)


def write_plot(load: Load, file: Path) -> None:
    """Write ``file``, HTML or PNG by its ending.

    Raises:
        ValueError: another ending, or nothing to draw.
        MissingExtraError: PNG without matplotlib.
    """
    if not any(run.requests for run in load.runs):
        raise ValueError("no request was answered well, so there is nothing to draw")
    if file.suffix == ".html":
        file.write_text(page(load), encoding="utf-8")
    elif file.suffix == ".png":
        _png(load, file)
    else:
        raise ValueError(f"{file}: wanted a name that ends with .html or .png")


def page(load: Load) -> str:
    """The load as one page: two charts and the table."""
    title = html.escape(f"{load.url}{load.route}" + (f", {load.model}" if load.model else ""))
    charts = "".join(_chart(load, name, x, y) for name, x, y in CHARTS)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>{load.per_request} texts a request; a filled ring marks the knee of each length.</p>"
        f"<div class='charts'>{charts}</div>{_table(load)}</html>\n"
    )


_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:24px auto;"
    "padding:0 16px}h1{font-size:18px}.charts{display:flex;flex-wrap:wrap;gap:16px}svg{max-width:100%;height:auto}"
    "text{fill:currentColor;font-size:12px}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:4px 12px;text-align:right;border-bottom:1px solid #8884}tr.knee{font-weight:700}"
)


def _lines(load: Load) -> dict[int, list[Run]]:
    lines: dict[int, list[Run]] = {}
    for run in sorted(load.runs, key=lambda run: run.concurrency):
        if run.requests:
            lines.setdefault(run.tokens, []).append(run)
    return lines


def _chart(load: Load, title: str, x: Axis, y: Axis) -> str:
    runs = [run for run in load.runs if run.requests]
    place_x = _scale([x[1](run) for run in runs], LEFT, WIDTH - RIGHT)
    place_y = _scale([y[1](run) for run in runs], HEIGHT - BOTTOM, TOP)
    parts = [f"<text x='{LEFT}' y='15' font-weight='bold'>{title}</text>"]
    parts.append(f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{x[0]}</text>")
    parts.append(f"<text x='4' y='{TOP - 9}'>{y[0]}</text>")
    for value in _ticks([y[1](run) for run in runs]):
        at = place_y(value)
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{at:.1f}' y2='{at:.1f}' stroke='#8884'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{at + 4:.1f}' text-anchor='end'>{value:,.0f}</text>")
    for value in _ticks([x[1](run) for run in runs]):
        parts.append(f"<text x='{place_x(value):.1f}' y='{HEIGHT - 26}' text-anchor='middle'>{value:,.0f}</text>")
    for number, (tokens, line) in enumerate(_lines(load).items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(place_x(x[1](run)), place_y(y[1](run))) for run in line]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for run, (a, b) in zip(line, points, strict=True):
            size = 7 if run.knee else 3
            parts.append(f"<circle cx='{a:.1f}' cy='{b:.1f}' r='{size}' fill='{colour}'/>")
        a, b = points[-1]
        parts.append(f"<text x='{a + 10:.1f}' y='{b + 4:.1f}' style='fill:{colour}'>{tokens} tokens</text>")
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' aria-label='{title}'>{''.join(parts)}</svg>"


def _scale(values: list[float], low: float, high: float) -> Callable[[float], float]:
    """Logarithmic places between ``low`` and ``high``."""
    first, last = math.log(max(min(values), 1e-9)), math.log(max(max(values), 1e-9))
    return lambda value: low + (high - low) * ((math.log(max(value, 1e-9)) - first) / (last - first or 1.0))


def _ticks(values: list[float], most: int = 6) -> list[float]:
    """1, 2 and 5 times powers of ten within the values, few enough to read; the ends where there are none."""
    low, high = min(values), max(values)
    start = math.floor(math.log10(max(low, 1e-3)))
    steps = [digit * 10.0**power for power in range(start, start + 12) for digit in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    if len(inside) < 2:
        return [low, high] if high > low else [low]
    return inside[:: math.ceil(len(inside) / most)]


def _table(load: Load) -> str:
    names = ("tokens", "concurrency", "requests/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "errors")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for run in load.runs:
        cells = (run.tokens, run.concurrency, f"{run.requests_per_s:,.1f}", f"{run.tokens_per_s:,.0f}")
        times = (f"{run.p50_ms:,.1f}", f"{run.p95_ms:,.1f}", f"{run.p99_ms:,.1f}", sum(run.errors.values()))
        mark = " class='knee'" if run.knee else ""
        body += f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in (*cells, *times)) + "</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _png(load: Load, file: Path) -> None:
    from qwen3_embedding.optional import require

    require("matplotlib", extra="eval")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (title, x, y) in zip(figure.subplots(1, 2), CHARTS, strict=True):
        for number, (tokens, line) in enumerate(_lines(load).items()):
            colour = COLOURS[number % len(COLOURS)]
            xs, ys = [x[1](run) for run in line], [y[1](run) for run in line]
            axes.plot(xs, ys, marker="o", markersize=4, color=colour, label=f"{tokens} tokens")
            knees = [place for place, run in enumerate(line) if run.knee]
            axes.plot([xs[i] for i in knees], [ys[i] for i in knees], "o", markersize=10, color=colour)
        axes.set(title=title, xlabel=x[0], ylabel=y[0], xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{load.url}{load.route}")
    figure.savefig(file, dpi=120)
