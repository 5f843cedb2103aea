"""``index``: documents into a search index."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, Quiet, Revision, hub


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the index; made where there is none.")],
    source: Annotated[
        Path | None, typer.Argument(help="JSONL, CSV, TSV, Parquet, text file, or a folder of these.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Folder, hub id, or bundled name.")] = "nano-embedding",
    text: Annotated[list[str] | None, typer.Option(help="Column of the text; repeat to join several.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Vector size, 32 to the model's full size.")] = None,
    first_pass: Annotated[
        Literal["none", "int8", "short", "binary", "ivf-pq", "hnsw-sq"],
        typer.Option(help="Search smaller vectors first, then compare in float32 (docs/search.md says which when)."),
    ] = "none",
    instruction: Annotated[str | None, typer.Option(help="Task of searches that name none; kept in the index.")] = None,
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace documents whose id is in the index.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Only merge changes into the indices of OUT and drop old versions.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only print the recall of OUT's first pass against the exact search.")
    ] = False,
    min_recall: Annotated[float, typer.Option(help="--check: exit 1 below this recall@10.")] = 0.95,
    sample: Annotated[int, typer.Option(help="--check: how many stored vectors are the queries.")] = 200,
    device: Device = "auto",
    dtype: DType = "auto",
    revision: Revision = None,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Embed documents into a search index, a new one or one that is there; or look after one."""
    from qwen3_embedding.retrieval.index import SearchIndex

    if check:
        recall = SearchIndex.open(out).check(sample=sample)
        print(json.dumps(asdict(recall)) if as_json else recall)
        raise typer.Exit(0 if recall.recall >= min_recall else 1)
    if compact:
        SearchIndex.open(out).optimize()
        return
    if source is None:
        raise ValueError("no SOURCE; wanted a file or folder of documents (only --check and --compact do without)")

    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.retrieval.manifest import IndexSettings
    from qwen3_embedding.retrieval.source import read_documents

    embedder = Embedder.from_pretrained(model, device, dtype, revision, offline=offline, hub=hub(hub_name))
    if out.exists() and any(out.iterdir()):
        index = SearchIndex.open(out, embedder)
    else:
        settings = IndexSettings(dimensions=dimensions, first_pass=first_pass)
        index = SearchIndex.create(out, embedder, settings=settings, instruction=instruction)
    started, added = time.perf_counter(), 0
    documents = read_documents(source, text)
    while chunk := list(islice(documents, 10_000)):
        added += len(index.upsert(chunk) if upsert else index.add(chunk, progress=not quiet and sys.stderr.isatty()))
        if not quiet:
            print(f"{added} documents, {time.perf_counter() - started:.1f} s", file=sys.stderr)
    index.optimize()
    seconds = time.perf_counter() - started
    result = {"index": str(out), "added": added, "documents": len(index), "seconds": round(seconds, 3)}
    print(json.dumps(result) if as_json else f"{out}: {added} added, {len(index)} documents, {seconds:.1f} s")
