"""What a search did and where its time went, for people."""

from __future__ import annotations

from qwen3_embedding.retrieval.manifest import Manifest
from qwen3_embedding.retrieval.search import Plan, Searchable, SearchResults, Timing

_FIRST_PASSES = {
    "none": "every vector in float32",
    "int8": "every vector at a byte a dimension",
    "short": "the first dimensions of every vector",
    "binary": "every vector at a bit a dimension",
    "ivf-pq": "clusters of product-quantised vectors",
    "hnsw-sq": "a graph over vectors of a byte a dimension",
}


def summary(timing: Timing) -> str:
    """``41 ms: embed 3, retrieve 6, rerank 32``."""
    parts = {"embed": timing.embed_s, "retrieve": timing.retrieve_s, "rerank": timing.rerank_s}
    return f"{timing.total_s * 1e3:.0f} ms: " + ", ".join(f"{name} {s * 1e3:.0f}" for name, s in parts.items())


def explanation(index: Searchable, plan: Plan, results: SearchResults) -> str:
    """A line a stage: what it did, its milliseconds, its share of the whole."""
    seconds = results.timing.stages()
    total = results.timing.total_s or 1.0
    did = _did(index, plan, results)
    lines = [
        f"{name:<10} {spent * 1e3:>9.2f} ms {spent / total:>5.0%}  {did[name]}"
        for name, spent in seconds.items()
        if did[name]
    ]
    budget = "" if plan.budget_ms is None else f" of a budget of {plan.budget_ms:g} ms"
    return "\n".join([*lines, f"{'total':<10} {results.timing.total_s * 1e3:>9.2f} ms{budget}"])


def _did(index: Searchable, plan: Plan, results: SearchResults) -> dict[str, str]:
    """Stage to words; empty where the stage was not part of the plan."""
    manifest: Manifest | None = getattr(index, "manifest", None)
    kind = "none" if manifest is None or (plan.where and manifest.has_snapshot) else manifest.first_pass
    queries = len(results.hits)
    dense, first = plan.mode != "text", kind != "none"
    reranks = plan.rerank and index.reranker is not None
    wanted = plan.depth * manifest.oversample if manifest is not None and first else plan.depth
    how = "scores" if plan.fusion.method == "score" else "reciprocal ranks"
    text = "BM25" if plan.mode == "text" else f"BM25, fused by {how}"
    share = "" if plan.rerank_weight == 1 else f", with a share of {plan.rerank_weight:g} in their order"
    return {
        "embed": f"{queries} queries, {index.stored_dimensions} dimensions" if dense else "",
        "candidates": f"{_FIRST_PASSES[kind]}, of {len(index)} documents" if dense else "",
        "rescore": f"up to {wanted} candidates in float32, {plan.depth} kept" if dense and first else "",
        "text": text if plan.mode != "dense" else "",
        "fetch": "texts and metadata",
        "rerank": f"{sum(results.reranked)} documents{share}" if reranks else "",
    }
