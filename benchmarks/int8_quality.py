"""What int8 does to quality: nDCG@10 of float32 and int8 on open retrieval sets, and cosines between their vectors.

    python -m benchmarks.int8_quality DATA/cranfield DATA/cisi DATA/xquad-en --model nano-embedding
    python -m benchmarks.int8_quality DATA/cranfield --model path/to/Qwen3-Embedding-0.6B --max-queries 50
    python -m benchmarks.int8_quality DATA/cranfield --shape 0.6B          # cosines only: the weights are random

The guard: int8's mean nDCG@10 is at most 0.5% (relative) below float32's; exit code 1 where it is not. A folder is a
retrieval task as ``q3e evaluate`` reads it.
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

METRIC = "ndcg@10"
LARGEST_LOSS = 0.005
DTYPES = ("float32", "int8")


def ndcg(folders: Sequence[Path], embedder: Embedder, max_queries: int | None) -> dict[str, float]:
    """nDCG@10 of each retrieval task."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = TaskSettings(max_queries=max_queries)
        out = Path(scratch) / "evaluation"
        found = evaluate(folders, embedder, None, settings, out, log=lambda line: print(line, file=sys.stderr))
    return {task.name: task.scores["embedder"][METRIC] for task in found.tasks if METRIC in task.scores["embedder"]}


def compare(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Mean of each type and the relative change; negative is a loss."""
    means = {dtype: sum(tasks.values()) / len(tasks) for dtype, tasks in scores.items()}
    change = means["int8"] / means["float32"] - 1
    return {"tasks": scores, "means": means, "change": change, "kept": change >= -LARGEST_LOSS}


def sample(folders: Sequence[Path], count: int) -> list[str]:
    """Documents evenly drawn from all sets."""
    texts = [text for folder in folders for text in read_collection(folder).documents.values() if text.strip()]
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def cosines(embedders: dict[str, Embedder], texts: list[str]) -> dict[str, float]:
    """How near int8's vectors of documents are to float32's."""
    vectors = {dtype: embedder.embed_documents(texts) for dtype, embedder in embedders.items()}
    found = (vectors["float32"] * vectors["int8"]).sum(1)
    order = np.corrcoef(
        (vectors["float32"] @ vectors["float32"].T).ravel(), (vectors["int8"] @ vectors["int8"].T).ravel()
    )
    return {
        **{"texts": len(texts), "mean": float(found.mean()), "lowest": float(found.min())},
        "first_percentile": float(np.percentile(found, 1)),
        "correlation_of_similarities": float(order[0, 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Retrieval tasks; texts for the cosines come from them.")
    parser.add_argument("--model", default="nano-embedding", help="Folder, hub id, or bundled name.")
    parser.add_argument("--shape", choices=list(SHAPES), default=None, help="Random weights instead: cosines only.")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--max-queries", type=int, default=None)
    parser.add_argument("--texts", type=int, default=64, help="Documents whose vectors are compared.")
    parser.add_argument("--max-tokens", type=int, default=512, help="Of a document, for the cosines of a shape.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source: str | Path = options.model
        limit = None
        if options.shape is not None:
            source, limit = Path(scratch) / "model", options.max_tokens
            write_embedder(source, shape(options.shape, options.layers))
        embedders = {
            dtype: Embedder.from_pretrained(source, device="cpu", dtype=dtype, max_tokens=limit) for dtype in DTYPES
        }
        near = cosines(embedders, sample(options.folders, options.texts))
        result: dict[str, Any] = {"model": options.shape or options.model, "cosines": near}
        if options.shape is None:
            scores = {dtype: ndcg(options.folders, embedders[dtype], options.max_queries) for dtype in DTYPES}
            result.update(compare(scores), max_queries=options.max_queries)
        else:
            result["layers"] = embedders["int8"].backbone.config.num_hidden_layers
    if options.shape is None:
        show(result)
    print_table([(name, f"{value:,.5f}") for name, value in near.items()], ("cosine of int8 to float32", "value"))
    line = {**result, **machine()}
    print(json.dumps(line))
    print(save(f"int8-quality-{Path(str(result['model'])).name}", line), file=sys.stderr)
    if not result.get("kept", True):
        sys.exit(1)


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    scores = result["tasks"]
    rows: list[tuple[str, ...]] = [
        (name, f"{before:.4f}", f"{scores['int8'][name]:.4f}", f"{scores['int8'][name] / before - 1:+.2%}")
        for name, before in scores["float32"].items()
    ]
    means = result["means"]
    rows.append(("mean", f"{means['float32']:.4f}", f"{means['int8']:.4f}", f"{result['change']:+.2%}"))
    print_table(
        rows, (METRIC, "float32", "int8", "change"), f"{result['model']}: at most -{LARGEST_LOSS:.1%} is wanted"
    )


if __name__ == "__main__":
    main()
