"""``report``: saved evaluation runs as one page, compared where they are several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="JSON files of `evaluate`; the others are compared with the first.")
    ],
    out: Annotated[
        list[Path] | None, typer.Option("--out", help="Write .html or .md (repeat for both); else Markdown on stdout.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Evaluation",
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the randomisation tests.")] = 0,
) -> None:
    """Make one page of evaluation runs: scores with intervals, paired tests, plots, settings, costs."""
    from qwen3_embedding.evaluation.report import build_page, to_markdown, write_page
    from qwen3_embedding.evaluation.results import Report

    reports = [Report.load(path) for path in runs]
    plots = any(path.suffix == ".html" for path in out or [])
    page = build_page(reports, title, seed, plots)
    for path in out or []:
        write_page(page, path)
        print(f"wrote {path}", file=sys.stderr)
    if not out:
        print(to_markdown(page), end="")
