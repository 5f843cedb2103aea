"""What a run made, what was dropped and why: numbers for programs (JSON) and one page for people (HTML)."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen3_embedding.synthesis.filter import FILTERS, Verdict

_SAMPLES = 5
_BINS = 20


def make_report(verdicts: Sequence[Verdict], run: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, distributions and samples.

    Args:
        verdicts: of all pairs.
        run: facts about the run (model, tokens, cost …), taken over as they are.
    """
    kept = [verdict for verdict in verdicts if verdict.kept]
    return {
        "run": dict(run),
        "pairs": len(verdicts),
        "kept": len(kept),
        "filters": {name: _filter_counts(verdicts, name) for name in FILTERS},
        "by_kind": _kept_of(verdicts, lambda v: str(v.pair["provenance"]["kind"])),
        "by_language": _kept_of(verdicts, lambda v: str(v.pair["record"]["language"])),
        "by_type": _kept_of(verdicts, lambda v: _choice(v, "type")),
        "by_difficulty": _kept_of(verdicts, lambda v: _choice(v, "difficulty")),
        "cosine": _histogram([v.cosine for v in verdicts if v.cosine is not None], 0.0, 1.0),
        "rank": _ranks([v.rank for v in verdicts if v.rank is not None]),
        "query_words": _histogram([float(len(v.pair["record"]["query"].split())) for v in kept], 0.0, 100.0),
        "repairs": dict(Counter(r for v in verdicts for s in v.pair["provenance"]["steps"] for r in s["repairs"])),
        "samples": {
            "kept": [_sample(verdict) for verdict in _spread(kept, 2 * _SAMPLES)],
            **{name: [_sample(v) for v in _spread(_dropped(verdicts, name), _SAMPLES)] for name in FILTERS},
        },
    }


def to_html(report: Mapping[str, Any]) -> str:
    """The report as one page without anything to load."""
    title = f"{report['kept']:,} of {report['pairs']:,} pairs kept"
    rows = [(name, f"{c['dropped']:,}", f"{c['alone']:,}") for name, c in report["filters"].items()]
    parts = [
        f"<h1>{title}</h1>",
        _table(("", ""), [(str(key), str(value)) for key, value in report["run"].items()]),
        "<h2>Filters</h2>",
        _table(("filter", "pairs it objects to", "pairs that only it objects to"), rows),
    ]
    for name in ("by_kind", "by_language", "by_type", "by_difficulty"):
        counts = report[name]
        shown = [(key, f"{part['kept']:,}", f"{part['pairs']:,}") for key, part in counts.items()]
        parts += [f"<h2>{name.replace('_', ' ').capitalize()}</h2>", _table(("", "kept", "pairs"), shown)]
    for name in ("cosine", "query_words", "rank"):
        parts += [f"<h2>{name.replace('_', ' ').capitalize()}</h2>", _bars(report[name])]
    for name, samples in report["samples"].items():
        if samples:
            parts += [f"<h2>{'Kept' if name == 'kept' else f'Dropped: {name}'}</h2>", *map(_shown, samples)]
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ccc}"
        "blockquote{margin:.6rem 0;padding-left:1rem;border-left:3px solid #999}small{color:#666}"
    )
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _filter_counts(verdicts: Iterable[Verdict], name: str) -> dict[str, int]:
    against = [verdict for verdict in verdicts if name in verdict.reasons]
    return {"dropped": len(against), "alone": sum(len(verdict.reasons) == 1 for verdict in against)}


def _kept_of(verdicts: Iterable[Verdict], key: Any) -> dict[str, dict[str, int]]:
    pairs: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for verdict in verdicts:
        pairs[key(verdict)] += 1
        kept[key(verdict)] += verdict.kept
    return {name: {"pairs": count, "kept": kept[name]} for name, count in pairs.most_common()}


def _choice(verdict: Verdict, name: str) -> str:
    return str(verdict.pair["provenance"]["choices"].get(name, "–"))


def _histogram(values: list[float], low: float, high: float) -> dict[str, int]:
    width = (high - low) / _BINS
    counts = Counter(min(_BINS - 1, max(0, int((value - low) / width))) for value in values)
    return {f"{low + n * width:.4g}–{low + (n + 1) * width:.4g}": counts[n] for n in range(_BINS) if values}


def _ranks(values: list[int]) -> dict[str, int]:
    edges = [(1, 1), (2, 3), (4, 10), (11, 20), (21, 50), (51, 100), (101, 1000), (1001, 10**12)]
    names = [
        f"{low}" if low == high else f"{low}–{high}" if high < 10**12 else f"{low} and more" for low, high in edges
    ]
    return {
        name: sum(low <= value <= high for value in values)
        for name, (low, high) in zip(names, edges, strict=True)
        if values
    }


def _dropped(verdicts: Iterable[Verdict], name: str) -> list[Verdict]:
    return [verdict for verdict in verdicts if name in verdict.reasons]


def _spread(verdicts: list[Verdict], count: int) -> list[Verdict]:
    step = max(1, len(verdicts) // count)
    return verdicts[::step][:count]


def _sample(verdict: Verdict) -> dict[str, Any]:
    record = verdict.pair["record"]
    return {
        "kind": verdict.pair["provenance"]["kind"],
        "language": record["language"],
        "query": record["query"][:400],
        "positive": record["positives"][0][:400],
        "why": "; ".join(f"{name}: {reason}" for name, reason in verdict.reasons.items()),
        "cosine": verdict.cosine,
        "rank": verdict.rank,
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _bars(counts: Mapping[str, int]) -> str:
    if not counts:
        return "<p>not measured</p>"
    most, step = max(1, *counts.values()), 18
    lines = "".join(
        f"<text x='110' y='{n * step + 13}' text-anchor='end'>{html.escape(name)}</text>"
        f"<rect x='118' y='{n * step + 3}' width='{400 * count / most:.1f}' height='12' fill='#4a7ab5'/>"
        f"<text x='{124 + 400 * count / most:.1f}' y='{n * step + 13}'>{count:,}</text>"
        for n, (name, count) in enumerate(counts.items())
    )
    return f"<svg width='640' height='{len(counts) * step + 6}' font-size='12'>{lines}</svg>"


def _shown(sample: Mapping[str, Any]) -> str:
    facts = [str(sample["kind"]), str(sample["language"]), str(sample["why"])]
    if sample["cosine"] is not None:
        facts.append(f"cosine {sample['cosine']:.3f}")
    if sample["rank"] is not None:
        facts.append(f"rank {sample['rank']}")
    small = html.escape(" · ".join(fact for fact in facts if fact))
    query, positive = html.escape(str(sample["query"])), html.escape(str(sample["positive"]))
    return f"<blockquote><b>{query}</b><br>{positive}<br><small>{small}</small></blockquote>"
