"""What int8 or fp8 does to quality: nDCG@10 of float32 and of it on open retrieval sets, and how near vectors or
scores are.

    python -m benchmarks.int8_quality DATA/cranfield DATA/cisi DATA/xquad-en --model nano-embedding
    python -m benchmarks.int8_quality DATA/cranfield --model path/to/Qwen3-Embedding-0.6B --max-queries 50
    python -m benchmarks.int8_quality DATA/cranfield --shape 0.6B          # cosines only: the weights are random
    python -m benchmarks.int8_quality DATA/cranfield DATA/cisi --dtype fp8  # the GPU path's formula, on any machine
    python -m benchmarks.int8_quality DATA/cranfield --reranker nano-reranker   # the first 20 of BM25, in its order

fp8 is the arithmetic of ``model/fp8.py`` off a GPU: a bf16 model, e4m3 weights and activations scaled by row,
multiplied in float32. The guard: the mean nDCG@10 is at most 0.5% (relative) below float32's; exit code 1 where it is
not. A folder is a retrieval task as ``q3e evaluate`` reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SHAPES, machine, save, shape, write_embedder
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.evaluation.collection import read_collection
from qwen3_embedding.evaluation.run import evaluate
from qwen3_embedding.evaluation.tasks import TaskSettings
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.model.fp8 import quantize_fp8_

METRIC = "ndcg@10"
LARGEST_LOSS = 0.005
CANDIDATES = 20
"""Documents that a reranker orders."""
DTYPES = ("int8", "fp8")


def ndcg(folders: Sequence[Path], model: Embedder | Reranker, max_queries: int | None) -> dict[str, float]:
    """nDCG@10 of each retrieval task: of the whole corpus, or of a reranker's order of BM25's first documents."""
    embedder, reranker = (model, None) if isinstance(model, Embedder) else (None, model)
    column = "embedder" if reranker is None else "reranker"
    with tempfile.TemporaryDirectory() as scratch:
        settings = TaskSettings(
            max_queries=max_queries, candidates=CANDIDATES, first_stage="embedder" if reranker is None else "bm25"
        )
        out = Path(scratch) / "evaluation"
        found = evaluate(folders, embedder, reranker, settings, out, log=lambda line: print(line, file=sys.stderr))
    return {task.name: task.scores[column][METRIC] for task in found.tasks if METRIC in task.scores.get(column, {})}


def load(source: str | Path, options: argparse.Namespace, dtype: str, limit: int | None) -> Embedder | Reranker:
    """On the CPU; fp8 by its formula."""
    kind = Reranker if options.reranker else Embedder
    model = kind.from_pretrained(source, device="cpu", dtype="bfloat16" if dtype == "fp8" else dtype, max_tokens=limit)
    if dtype == "fp8":
        quantize_fp8_(model.backbone)
    return model


def compare(scores: dict[str, dict[str, float]], dtype: str) -> dict[str, Any]:
    """Mean of each type and the relative change; negative is a loss."""
    means = {dtype: sum(tasks.values()) / len(tasks) for dtype, tasks in scores.items()}
    change = means[dtype] / means["float32"] - 1
    return {"tasks": scores, "means": means, "change": change, "kept": change >= -LARGEST_LOSS}


def sample(folders: Sequence[Path], count: int) -> list[str]:
    """Documents evenly drawn from all sets."""
    texts = [text for folder in folders for text in read_collection(folder).documents.values() if text.strip()]
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def cosines(embedders: dict[str, Embedder], texts: list[str]) -> dict[str, float]:
    """How near the second's vectors of documents are to the first's."""
    exact_ND, rounded_ND = (np.asarray(embedder.embed_documents(texts)) for embedder in embedders.values())
    found = (exact_ND * rounded_ND).sum(1)
    order = np.corrcoef((exact_ND @ exact_ND.T).ravel(), (rounded_ND @ rounded_ND.T).ravel())
    return {
        **{"texts": len(texts), "mean": float(found.mean()), "lowest": float(found.min())},
        "first_percentile": float(np.percentile(found, 1)),
        "correlation_of_similarities": float(order[0, 1]),
    }


def score_distances(rerankers: dict[str, Reranker], folder: Path, count: int) -> dict[str, float]:
    """How near the second's scores (0 to 1) are to the first's, for queries with documents judged for them."""
    collection = read_collection(folder)
    pairs = [
        (collection.queries[query], collection.documents[next(iter(judged))])
        for query, judged in list(collection.qrels.items())[:count]
    ]
    queries, documents = zip(*pairs, strict=True)
    exact_N, rounded_N = (reranker.score_pairs(queries, documents) for reranker in rerankers.values())
    return {
        "pairs": len(pairs),
        "mean distance": float(np.abs(exact_N - rounded_N).mean()),
        "largest distance": float(np.abs(exact_N - rounded_N).max()),
        "spread of float32's": float(exact_N.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Retrieval tasks; texts for the cosines come from them.")
    parser.add_argument("--model", default="nano-embedding", help="Folder, hub id, or bundled name.")
    parser.add_argument("--reranker", default=None, help="Measure this reranker in place of an embedder.")
    parser.add_argument("--shape", choices=list(SHAPES), default=None, help="Random weights instead: cosines only.")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--max-queries", type=int, default=None)
    parser.add_argument("--texts", type=int, default=64, help="Documents whose vectors are compared.")
    parser.add_argument("--max-tokens", type=int, default=512, help="Of a document, for the cosines of a shape.")
    options = parser.parse_args()
    if options.reranker and options.shape:
        parser.error("--shape makes an embedder; leave out --reranker")
    with tempfile.TemporaryDirectory() as scratch:
        source: str | Path = options.reranker or options.model
        limit = None
        if options.shape is not None:
            source, limit = Path(scratch) / "model", options.max_tokens
            write_embedder(source, shape(options.shape, options.layers))
        models: dict[str, Any] = {dtype: load(source, options, dtype, limit) for dtype in ("float32", options.dtype)}
        if options.reranker:
            near = score_distances(models, options.folders[0], options.texts)
        else:
            near = cosines(models, sample(options.folders, options.texts))
        result: dict[str, Any] = {"model": options.shape or str(source), "distances": near}
        if options.shape is None:
            scores = {dtype: ndcg(options.folders, model, options.max_queries) for dtype, model in models.items()}
            result.update(compare(scores, options.dtype), max_queries=options.max_queries)
        else:
            result["layers"] = models["float32"].backbone.config.num_hidden_layers
    if options.shape is None:
        show(result, options.dtype)
    what = "scores beside float32's" if options.reranker else f"cosine of {options.dtype} to float32"
    print_table([(name, f"{value:,.5f}") for name, value in near.items()], (what, "value"))
    line = {**result, **machine()}
    print(json.dumps(line))
    print(save(f"{options.dtype}-quality-{Path(str(result['model'])).name}", line), file=sys.stderr)
    if not result.get("kept", True):
        sys.exit(1)


def show(result: dict[str, Any], dtype: str) -> None:
    """The table for people."""
    scores = result["tasks"]
    rows: list[tuple[str, ...]] = [
        (name, f"{before:.4f}", f"{scores[dtype][name]:.4f}", f"{scores[dtype][name] / before - 1:+.2%}")
        for name, before in scores["float32"].items()
    ]
    means = result["means"]
    rows.append(("mean", f"{means['float32']:.4f}", f"{means[dtype]:.4f}", f"{result['change']:+.2%}"))
    print_table(rows, (METRIC, "float32", dtype, "change"), f"{result['model']}: at most -{LARGEST_LOSS:.1%} is wanted")


if __name__ == "__main__":
    main()
