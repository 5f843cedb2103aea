"""``reproduce``: the published tables recomputed from published per-task results."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    table: Annotated[
        list[str] | None, typer.Option("--table", help="Table id: 2, 3, 4, 5, 7, 8, 8-readme, 9, announcement.")
    ] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw the bar pictures (PNG, SVG) into DIR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Recompute the published tables from per-task results; say of each figure whether it holds."""
    from qwen3_embedding.evaluation.published import load_published
    from qwen3_embedding.evaluation.reproduce import as_lines, not_trained_on, reproduce

    cells, unseen = reproduce(tables=table or None), not_trained_on()
    if as_json:
        published = load_published()
        out = {
            "sources": published.sources,
            "licence": published.licence,
            "figures": [asdict(cell) for cell in cells],
            "not_trained_on": [asdict(item) for item in unseen],
        }
        print(json.dumps(out, ensure_ascii=False, indent=1))
    else:
        print("\n".join(as_lines(cells, unseen)))
    if figure is not None:
        from qwen3_embedding.evaluation.figures import draw_announcement, draw_reranking

        every = reproduce()
        for path in (*draw_announcement(every, figure), *draw_reranking(every, figure)):
            print(f"wrote {path}", file=sys.stderr)
