"""``demo``: the main job on real input with the bundled models."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qwen3_embedding.cli.common import Device, DType, Json, Quiet, print_table


def command(
    out: Annotated[Path, typer.Option(help="Results go here.")] = Path("runs/demo"),
    embedder: Annotated[str, typer.Option(help="Folder, hub id, or bundled name.")] = "nano-embedding",
    reranker: Annotated[str, typer.Option(help="Folder, hub id, or bundled name.")] = "nano-reranker",
    queries: Annotated[int, typer.Option(help="How many questions are asked.")] = 110,
    candidates: Annotated[int, typer.Option(help="Documents that the reranker orders.")] = 20,
    collection: Annotated[
        Path | None, typer.Option(help="Another retrieval collection in BEIR's layout; default: the bundled one.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Index a real collection, answer its questions in four ways, measure, and write an HTML report."""
    from qwen3_embedding.evaluation.demo import COLLECTION, DemoSettings, run_demo, summary_rows
    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.reranker import Reranker

    settings = DemoSettings(queries, candidates)
    models = Embedder.from_pretrained(embedder, device, dtype), Reranker.from_pretrained(reranker, device, dtype)
    log = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    report = run_demo(*models, out, settings, collection or COLLECTION, log)
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    headers, rows = summary_rows(report)
    print_table(rows, headers, title=f"{report.collection}: {report.documents} documents, {report.queries} queries")
    for example in report.examples:
        print(f"\n{example.query}")
        for way, hits in example.hits.items():
            for identity, text, right in hits[:2]:
                print(f"  {'+' if right else ' '} {way:20} {identity:8} {' '.join(text.split())[:90]}")
    print(f"\n{report.seconds:.0f} s; wrote {out / 'report.html'} and {out / 'report.json'}", file=sys.stderr)
