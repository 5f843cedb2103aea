"""Small self-contained HTML pages with tables and SVG charts: no script, no outside asset, light and dark.

Charts take their colours from CSS variables and carry a title and a description with all numbers for screen readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_CSS = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6577; --page: #f6f7f9; --card: #ffffff; --line: #dfe3ea;
  --c0: #8a93a3; --c1: #2b6cdf; --c2: #12908a; --c3: #d9720f; --good: #157f3b; --heat: 43, 108, 223; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf1; --soft: #9aa5b8; --page: #12151b; --card: #1a1f28;
  --line: #303845; --c0: #7d8798; --c1: #6aa0ff; --c2: #3fc4b8; --c3: #ffa14d; --good: #5fd38a;
  --heat: 106, 160, 255; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .4rem 0 .9rem; max-width: 75ch; }
.lead, figcaption, .note { color: var(--soft); }
.lead { font-size: 1.1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.4rem 1.5rem;
  margin-top: 1.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .88rem; }
th:first-child, td:first-child { text-align: left; }
tbody th { color: var(--ink); font-size: 1rem; }
td.best { font-weight: 700; color: var(--good); }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
figure { margin: 1.1rem 0 0; }
figcaption { font-size: .92rem; margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg text.soft { fill: var(--soft); }
svg line { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: 0 0 .6rem; padding: 0; list-style: none;
  font-size: .92rem; }
.legend i { display: inline-block; width: .85rem; height: .85rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -1px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 1rem; }
.hits { margin: 0; padding-left: 1.3rem; font-size: .92rem; }
.hits li { margin-bottom: .5rem; overflow-wrap: anywhere; }
.hits small { color: var(--soft); }
.right::marker { color: var(--good); font-weight: 700; }
.right b { color: var(--good); }
blockquote { margin: .2rem 0 1rem; padding: .5rem .9rem; border-left: 4px solid var(--c1); background: var(--page);
  border-radius: 0 8px 8px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { color: var(--soft); margin-top: 2rem; font-size: .88rem; }
"""

SERIES_COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")


def page(title: str, body: str, footer: str) -> str:
    """A whole document. ``title`` is text; ``body`` and ``footer`` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>{footer}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A card with a heading. ``title`` is text, ``body`` HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[int] = ()) -> str:
    """Rows of text with the highest number of each column in ``best`` marked."""
    marked = {column: _best_row(rows, column) for column in best}
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            f'<td class="best">{escape(cell)}</td>' if marked.get(column) == number else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(row[1:], start=1)
        )
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def legend(names: Sequence[str]) -> str:
    """Names beside their colours."""
    items = (f'<li><i style="background:{SERIES_COLOURS[i]}"></i>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend" aria-hidden="true">{"".join(items)}</ul>'


def bar_chart(title: str, groups: Mapping[str, Sequence[float]], series: Sequence[str], caption: str) -> str:
    """Groups of upright bars, one colour a series, the values (0 to 1) times 100 over them where there is room."""
    width, height, left, bottom = 1000, 300, 40, 30
    top = max((max(values) for values in groups.values()), default=0.0)
    scale = _round_up(top)
    inner_width, inner_height = width - left, height - bottom - 22
    step = inner_width / max(len(groups), 1)
    bar = min(step * 0.8 / max(len(series), 1), 60)
    parts = []
    for tick in range(5):
        y = 22 + inner_height * (1 - tick / 4)
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{100 * scale * tick / 4:.0f}"
        parts.append(f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for place, (group, values) in enumerate(groups.items()):
        start = left + step * place + (step - bar * len(series)) / 2
        for number, value in enumerate(values):
            tall = inner_height * value / scale if scale else 0.0
            x, y = start + bar * number, 22 + inner_height - tall
            hint = f"<title>{escape(group)}, {escape(series[number])}: {100 * value:.1f}</title>"
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{tall:.1f}" rx="2" '
                f'fill="{SERIES_COLOURS[number]}">{hint}</rect>'
            )
            if bar >= 30:
                parts.append(
                    f'<text x="{x + bar / 2:.1f}" y="{y - 5:.1f}" text-anchor="middle">{100 * value:.1f}</text>'
                )
        parts.append(
            f'<text x="{left + step * (place + 0.5):.1f}" y="{height - 8}" text-anchor="middle">{escape(group)}</text>'
        )
    told = "; ".join(
        f"{group}: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in zip(series, values, strict=True))
        for group, values in groups.items()
    )
    chart = _svg(title, told, width, height, parts)
    return f"<figure>{legend(series)}{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def heat_map(title: str, rows: Mapping[str, Mapping[str, float]], row_name: str, column_name: str, caption: str) -> str:
    """A grid of values from 0 to 1, written times 100 in cells that are the darker the higher."""
    columns = list(next(iter(rows.values())))
    size, left, top = 68, 60, 46
    width, height = left + size * len(columns), top + 34 * len(rows)
    parts = [f'<text class="soft" x="{left}" y="14">{escape(column_name)} →</text>']
    parts.append(f'<text class="soft" x="0" y="36">{escape(row_name)} ↓</text>')
    for place, column in enumerate(columns):
        parts.append(f'<text x="{left + size * (place + 0.5)}" y="36" text-anchor="middle">{escape(column)}</text>')
    for number, (row, values) in enumerate(rows.items()):
        y = top + 34 * number
        parts.append(f'<text x="{left - 12}" y="{y + 21}" text-anchor="end">{escape(row)}</text>')
        for place, column in enumerate(columns):
            value = values[column]
            x = left + size * place
            hint = f"<title>{escape(row)} → {escape(column)}: {100 * value:.0f}</title>"
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{size - 2}" height="32" rx="4" '
                f'style="fill: rgba(var(--heat), {0.05 + 0.6 * value:.3f})">{hint}</rect>'
                f'<text x="{x + size / 2}" y="{y + 21}" text-anchor="middle">{100 * value:.0f}</text>'
            )
    told = "; ".join(
        f"{row}: " + ", ".join(f"{c} {100 * v:.0f}" for c, v in values.items()) for row, values in rows.items()
    )
    return f"<figure>{_svg(title, told, width, height, parts)}<figcaption>{escape(caption)}</figcaption></figure>"


def definition_list(items: Mapping[str, str]) -> str:
    """Names and values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in items.items())}</dl>"


def _svg(title: str, told: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{''.join(parts)}</svg>"
    )


def _round_up(value: float) -> float:
    """The top of an axis over a value that gives four round ticks."""
    return next((top for top in (0.2, 0.4, 0.8) if value <= top), 1.0)


def _best_row(rows: Sequence[Sequence[str]], column: int) -> int | None:
    numbers: dict[int, float] = {}
    for number, row in enumerate(rows):
        try:
            numbers[number] = float(row[column].replace(",", ""))
        except ValueError:
            continue
    return max(numbers, key=lambda number: numbers[number]) if numbers else None
