"""``search``: ask a search index."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen3_embedding.cli.common import Device, DType, HubName, Json, Offline, hub, importing


def command(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    query: Annotated[str, typer.Argument(help="What to look for; nothing in it is query syntax.")],
    top_k: Annotated[int, typer.Option("--top-k", help="How many hits.")] = 10,
    mode: Annotated[
        Literal["dense", "text", "hybrid"], typer.Option(help="Vectors, full text (BM25), or both.")
    ] = "dense",
    fusion: Annotated[
        Literal["rank", "score"], typer.Option(help="Hybrid by reciprocal ranks, or by cosine plus scaled BM25.")
    ] = "rank",
    candidates: Annotated[int, typer.Option(help="Documents that each leg brings to fusion and reranker.")] = 100,
    reranker: Annotated[str | None, typer.Option(help="Reranker: folder, hub id, or bundled name.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Embedder, where it is not where it was.")] = None,
    instruction: Annotated[str | None, typer.Option(help="The task; default: the index's own, or web search.")] = None,
    where: Annotated[
        str | None, typer.Option(help='Conditions, JSON: \'{"language": "de", "year": {"gte": 2020}}\'')
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option("--budget-ms", help="Milliseconds to answer in; the reranker ends in time.")
    ] = None,
    rerank_weight: Annotated[
        float, typer.Option(help="The reranker's share in the final order, the first stage having the rest.")
    ] = 1.0,
    effort: Annotated[int | None, typer.Option(help="How broadly an approximate index is searched.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", "--timing", help="Print the plan and where the time went, on stderr.")
    ] = False,
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Search an index and print the hits, best first."""
    with importing():
        from qwen3_embedding.retrieval.explain import explanation, summary
        from qwen3_embedding.retrieval.fusion import Fusion
        from qwen3_embedding.retrieval.index import SearchIndex
        from qwen3_embedding.retrieval.manifest import model_source, read_manifest
        from qwen3_embedding.retrieval.search import Plan

    conditions = None if where is None else json.loads(where)
    plan = Plan(
        top_k,
        candidates,
        mode,
        reranker is not None,
        instruction,
        conditions,
        Fusion(method=fusion),
        budget_ms=budget_ms,
        effort=effort,
        rerank_weight=rerank_weight,
    )
    source = model or model_source(read_manifest(index))
    embedder = scorer = None  # full text alone needs no model, and not the second that importing torch takes
    if mode != "text":
        with importing():
            from qwen3_embedding.inference.embedder import Embedder

        embedder = Embedder.from_pretrained(source, device, dtype, offline=offline, hub=hub(hub_name))
    if reranker:
        with importing():
            from qwen3_embedding.inference.reranker import Reranker

        scorer = Reranker.from_pretrained(reranker, device, dtype, offline=offline, hub=hub(hub_name))
    opened = SearchIndex.open(index, embedder, scorer)
    results = opened.run([query], plan)
    if as_json:
        timing = {**asdict(results.timing), "total_s": results.timing.total_s}
        timing["reranked"] = results.reranked[0]
        hits = [asdict(hit) for hit in results.hits[0]]
        print(json.dumps({"query": query, "hits": hits, "timing": timing}, ensure_ascii=False))
        return
    for hit in results.hits[0]:
        print(f"{hit.score:.4f}  {hit.id}  {' '.join(hit.text.split())[:160]}")
    print(explanation(opened, plan, results) if explain else summary(results.timing), file=sys.stderr)
