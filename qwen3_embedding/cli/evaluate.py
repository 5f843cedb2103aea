"""``evaluate``: scores of an embedder and a reranker on local tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, Quiet, Revision, hub, print_table

if TYPE_CHECKING:
    from qwen3_embedding.types import Encoder, Scorer


def command(
    folders: Annotated[list[Path], typer.Argument(help="Tasks (docs/evaluation.md), or folders of tasks.")],
    embedder: Annotated[str, typer.Option(help="Folder, hub id, bundled name, or URL of a server.")] = "nano-embedding",
    reranker: Annotated[str | None, typer.Option(help="Folder, hub id, bundled name, or URL of a server.")] = None,
    out: Annotated[Path, typer.Option(help="Results go here; the same command again resumes.")] = Path("runs/evaluate"),
    candidates: Annotated[int, typer.Option(help="Documents that the reranker orders.")] = 100,
    first_stage: Annotated[
        Literal["bm25", "embedder", "hybrid"], typer.Option(help="Whose ranking the reranker orders.")
    ] = "embedder",
    dense_weight: Annotated[
        float, typer.Option(help="Weight of the embedder beside BM25 (1) in the hybrid ranking.")
    ] = 1.0,
    fusion: Annotated[
        Literal["rank", "score"], typer.Option(help="Hybrid by reciprocal ranks, or by cosine plus scaled BM25.")
    ] = "rank",
    dimensions: Annotated[int | None, typer.Option(help="Vector size, 32 to the model's full size.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instead of each task's own; '' for none.")] = None,
    max_queries: Annotated[int | None, typer.Option(help="A fixed sample of so many queries a task.")] = None,
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")] = "test",
    cache: Annotated[
        Path | None, typer.Option(help="File of kept vectors; default: cache.sqlite beside --out.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="QWEN3_EMBEDDING_API_KEY", help="For servers.")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    revision: Revision = None,
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score BM25, embedder, hybrid and embedder + reranker on every task in the folders."""
    from qwen3_embedding.evaluation.run import evaluate
    from qwen3_embedding.evaluation.tables import score_rows
    from qwen3_embedding.evaluation.tasks import TaskSettings
    from qwen3_embedding.retrieval.fusion import Fusion

    settings = TaskSettings(
        fusion=Fusion(dense_weight=dense_weight, method=fusion),
        dimensions=dimensions,
        candidates=candidates,
        first_stage=first_stage,
        instruction=instruction,
        max_queries=max_queries,
        split=split,
    )
    encoder = _embedder(embedder, api_key, device, dtype, revision, offline=offline, hub=hub(hub_name))
    scorer = _reranker(reranker, api_key, device, dtype, offline=offline, hub=hub(hub_name)) if reranker else None
    log = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    evaluation = evaluate(folders, encoder, scorer, settings, out, cache, log)
    if as_json:
        print(json.dumps(evaluation.to_mapping(), ensure_ascii=False))
        return
    headers, rows = score_rows(evaluation)
    print_table(
        rows, headers, title=f"{evaluation.embedder}{' + ' + evaluation.reranker if evaluation.reranker else ''}"
    )
    print(f"wrote {out / 'report.json'}", file=sys.stderr)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _embedder(name: str, api_key: str | None, *where: Any, **more: Any) -> Encoder:
    if _is_url(name):
        from qwen3_embedding.serving.client import RemoteEmbedder

        return RemoteEmbedder(name, api_key=api_key)
    from qwen3_embedding.inference.embedder import Embedder

    return Embedder.from_pretrained(name, *where, **more)


def _reranker(name: str, api_key: str | None, *where: Any, **more: Any) -> Scorer:
    if _is_url(name):
        from qwen3_embedding.serving.client import RemoteReranker

        return RemoteReranker(name, api_key=api_key)
    from qwen3_embedding.inference.reranker import Reranker

    return Reranker.from_pretrained(name, *where, **more)
