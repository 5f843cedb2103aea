"""``qwen3-embedding encode``: a corpus into shards of vectors, resumable."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwen3_embedding.types import PRECISIONS


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the shards and manifest.json.")],
    source: Annotated[
        Path | None, typer.Argument(help="JSONL, CSV, TSV (.gz, .xz, .zst), Parquet, Arrow, or a folder.")
    ] = None,
    model: Annotated[str, typer.Option(help="Folder, hub id, or bundled name of the embedder.")] = "nano-embedding",
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column of the text (default: text); more are joined.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the id; default: id, _id, else file:row.")] = None,
    on_error: Annotated[
        str, typer.Option(help="raise or skip: what to do with a record that cannot be read.")
    ] = "raise",
    instruction: Annotated[str | None, typer.Option(help="Encode as queries of this task; default: documents.")] = None,
    dimensions: Annotated[int | None, typer.Option(help="Vector size, 32 to the model's own.")] = None,
    precision: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "float32",
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Cut longer documents into chunks of at most so many tokens.")
    ] = None,
    chunk_overlap: Annotated[int, typer.Option(help="Tokens that neighbouring chunks may share.")] = 0,
    window_rows: Annotated[int, typer.Option(help="Rows of a shard; what a kill can cost.")] = 8192,
    max_tokens: Annotated[int | None, typer.Option(help="Length limit below the model's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    sink: Annotated[
        list[str] | None,
        typer.Option(help="Load the result into KIND:PLACE[#TABLE] too (docs/corpus.md lists the kinds)."),
    ] = None,
    sink_key: Annotated[
        str | None, typer.Option(envvar="QWEN3_EMBEDDING_SINK_KEY", help="API key of the sinks' server.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Compute on the Ray cluster at this address (auto, HOST:PORT, or local).")
    ] = None,
    ray_workers: Annotated[int, typer.Option(help="Ray: actors that compute, each with a copy of the model.")] = 2,
    ray_gpus: Annotated[float, typer.Option(help="Ray: GPUs of each of them.")] = 0.0,
    ray_lance: Annotated[
        str | None, typer.Option(help="Ray: write all vectors into the Lance table URI#TABLE, every worker a part.")
    ] = None,
    ray_index: Annotated[
        str | None, typer.Option(help="Ray: build its vector index on the workers: IVF_PQ, IVF_RQ, IVF_HNSW_SQ.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Compute missing and torn shards again.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only verify every checksum of OUT; exit 1 if one is wrong.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Encode a corpus. Repeat the command to resume it, or to take in what is new, changed or gone."""
    from qwen3_embedding.corpus.manifest import read_manifest

    if check:
        faults = read_manifest(out).check(deep=True)
        print(json.dumps({"faults": faults}) if as_json else "\n".join(faults) or "every shard is whole")
        raise typer.Exit(1 if faults else 0)
    if source is None:
        raise ValueError("no SOURCE; wanted a file or folder of documents (only --check does without)")

    from qwen3_embedding.corpus.chunker import ChunkSettings
    from qwen3_embedding.corpus.encode import EncodeSettings, VectorSettings, encode
    from qwen3_embedding.corpus.progress import ProgressLine, summary
    from qwen3_embedding.corpus.reader import ReadOptions
    from qwen3_embedding.corpus.sinks.address import open_sink
    from qwen3_embedding.corpus.sinks.sink import load
    from qwen3_embedding.corpus.window import PlanSettings, WindowSettings
    from qwen3_embedding.inference.embedder import Embedder

    settings = EncodeSettings(
        VectorSettings(instruction, dimensions, precision),  # type: ignore[arg-type]  # checked by the embedder
        PlanSettings(
            ReadOptions(tuple(text_column or ["text"]), id_column, on_error),  # type: ignore[arg-type]  # checks itself
            ChunkSettings(chunk_tokens, chunk_overlap) if chunk_tokens else None,
            WindowSettings(rows=window_rows),
        ),
        repair,
    )
    sinks = [open_sink(address, sink_key) for address in sink or []]
    embedder = Embedder.from_pretrained(model, device, dtype, max_tokens=max_tokens)
    engine = None
    if ray is not None:
        from qwen3_embedding.corpus.ray import RayEngine, RaySettings

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this program sends nothing home
        reachable = None if Path(model).is_dir() else model  # a hub id or bundled name means the same on every machine
        engine = RayEngine(RaySettings(ray, ray_workers, ray_gpus, model=reachable, device=device, dtype=dtype))
    line = ProgressLine()
    try:
        result = encode(source, out, embedder, settings, report=line, engine=engine)
    finally:
        line.close()
    for name in result.ignored:
        print(f"not read (unknown format, or text beside records): {name}", file=sys.stderr)
    for target in sinks:
        loaded = load(out, target)
        told = f"{loaded.upserted:,} rows sent, {loaded.deleted:,} deleted, {loaded.rows:,} there"
        print(f"{target.name}: {told}", file=sys.stderr)
    if ray_lance is not None:
        from qwen3_embedding.corpus.ray_lance import build_index, write_lance

        table = write_lance(out, ray_lance, ray_workers, ray or "local")
        print(f"{table.uri}: {table.rows:,} rows in {table.fragments} fragments", file=sys.stderr)
        if ray_index is not None:
            indexed = build_index(ray_lance, ray_index, ray_workers, ray_address=ray or "local")
            print(f"{table.uri}: {indexed:,} rows in the {ray_index} index", file=sys.stderr)
    print(json.dumps(result.manifest.raw["totals"]) if as_json else summary(result))
