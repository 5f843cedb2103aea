"""``rerank``: documents in the order in which they answer a query."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import (
    Device,
    DType,
    HubName,
    Kernel,
    Offline,
    Reproducible,
    Revision,
    hub,
    importing,
    read_lines,
)


def command(
    query: Annotated[str, typer.Option("--query", help="The query.")],
    file: Annotated[Path | None, typer.Argument(help="Documents, one a line, or .jsonl; stdin without it.")] = None,
    model: Annotated[str, typer.Option("--model", help="Folder, hub id, or bundled name.")] = "nano-reranker",
    instruction: Annotated[str | None, typer.Option(help="The task; default: web search.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Print only the best so many.")] = None,
    format: Annotated[
        Literal["json", "jsonl", "text"], typer.Option(help="json, jsonl, or text for people.")
    ] = "jsonl",
    device: Device = "auto",
    dtype: DType = "auto",
    revision: Revision = None,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    kernel: Kernel = "auto",
    reproducible: Reproducible = False,
) -> None:
    """Rank documents by how well they answer a query; scores are probabilities of "yes"."""
    with importing():
        from qwen3_embedding.inference.reranker import Reranker

    documents = read_lines(file)
    reranker = Reranker.from_pretrained(
        model, device, dtype, revision, offline=offline, hub=hub(hub_name), kernel=kernel, reproducible=reproducible
    )
    hits = reranker.rank(query, documents, top_k, instruction)
    rows = [{"index": int(hit.id), "score": round(hit.score, 6), "text": hit.text} for hit in hits]
    if format == "json":
        print(json.dumps(rows, ensure_ascii=False))
    elif format == "jsonl":
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        sys.stdout.writelines(f"{row['score']:.4f}  {row['text']}\n" for row in rows)
