"""SearchIndex beside faiss HNSW and usearch on the same vectors: build time, bytes, latency at equal recall.

    python -m benchmarks.vector_index --rows 100000
    python -m benchmarks.vector_index --rows 1000000 --queries 1000
    python -m benchmarks.vector_index --vectors vectors.npy --rows 1000000      # your own, (N, D) float32

Every graph has the same M and breadth of construction.  Every engine is asked one query at a time, on one thread, at
rising search breadths; the table shows the least breadth at which its recall@10 against the exact search reaches the
target, with the latency there, for which the engines take turns.  Without ``--vectors`` they are a mixture of
Gaussians: clusters of very different sizes, each spread along a few directions more than along others.  Queries are
held out of the same source.  Needs faiss-cpu and usearch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import machine, save
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.retrieval.graph import BUILD_BREADTH, NEIGHBOURS
from qwen3_embedding.retrieval.index import SearchIndex
from qwen3_embedding.retrieval.manifest import IndexSettings
from qwen3_embedding.retrieval.search import DenseQuery

TOP = 10
BREADTHS = (16, 32, 48, 64, 80, 96, 112, 128, 136, 144, 152, 160, 176, 192, 224, 256, 320, 384, 512, 1024)
OURS = ("ours-hnsw-sq", "ours-binary", "ours-ivf-pq")
ENGINES = (*OURS, "faiss-hnsw", "usearch-float32", "usearch-int8", "lancedb-hnsw-sq")

Search = Callable[[np.ndarray, int], Sequence[int]]


@dataclass
class Built:
    """An engine over the vectors."""

    search: Search
    """A query and a breadth to the row numbers found."""
    breadths: Sequence[int]
    bytes: int
    seconds: float


def mixture(rows: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters whose sizes fall off as 1 / rank, each with a spectrum that falls off."""
    rng = np.random.default_rng(seed)
    clusters = max(50, rows // 500)
    share = 1 / np.arange(1, clusters + 1)
    centres = rng.standard_normal((clusters, dimensions), dtype=np.float32)
    scales = (1.6 / np.sqrt(np.arange(1, dimensions + 1) / 8 + 1)).astype(np.float32)
    found = np.empty((rows, dimensions), dtype=np.float32)
    for at in range(0, rows, 100_000):
        part = found[at : at + 100_000]
        which = rng.choice(clusters, len(part), p=share / share.sum())
        noise = rng.standard_normal(part.shape, dtype=np.float32) * scales
        rolled = (np.arange(dimensions)[None, :] + (which * 37 % dimensions)[:, None]) % dimensions
        part[:] = centres[which] + np.take_along_axis(noise, rolled, axis=1)
    return _unit(found)


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, TOP) rows of the nearest, by comparing all."""
    best = np.full((len(queries), TOP), -np.inf, dtype=np.float32)
    rows = np.zeros((len(queries), TOP), dtype=np.int64)
    for at in range(0, len(vectors), 50_000):
        scores = np.concatenate([best, queries @ vectors[at : at + 50_000].T], axis=1)
        numbers = np.concatenate(
            [rows, np.broadcast_to(np.arange(at, at + scores.shape[1] - TOP), (len(queries), scores.shape[1] - TOP))],
            axis=1,
        )
        keep = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        best, rows = np.take_along_axis(scores, keep, axis=1), np.take_along_axis(numbers, keep, axis=1)
    return rows


class Given:
    """Stands in for the model: the benchmark brings its vectors."""

    name = "given"

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def embed_documents(self, texts: Sequence[str], dimensions: int | None = None, **_: Any) -> np.ndarray:
        return np.full((len(texts), dimensions or self.dimensions), self.dimensions**-0.5, dtype=np.float32)

    embed_queries = embed_documents


def build_ours(kind: str, vectors: np.ndarray, work: Path) -> Built:
    folder = work / kind
    settings = IndexSettings(first_pass=kind, batch_size=50_000)  # type: ignore[arg-type]
    index = SearchIndex.create(folder, Given(vectors.shape[1]), settings=settings)
    began = time.perf_counter()
    for at in range(0, len(vectors), 50_000):
        part = vectors[at : at + 50_000]
        index.add([{"id": str(at + n), "text": f"document {at + n}"} for n in range(len(part))], vectors=part)
        print(f"{kind}: {at + len(part):,} rows, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    index.optimize(keep=timedelta(0))  # the bytes are those at rest
    seconds = time.perf_counter() - began

    def search(query: np.ndarray, breadth: int) -> list[int]:
        (ranking,) = index.retrieve_dense(query[None, :], DenseQuery(TOP, effort=breadth))
        return [int(identity) for identity, _ in ranking]

    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    breadths = (4, 8, 16, 32, 64, 128, 256, 512) if kind == "ivf-pq" else (*BREADTHS, 2048, 4096)
    return Built(search, breadths, used, seconds)


def build_faiss(vectors: np.ndarray, work: Path, threads: int) -> Built:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_BREADTH
    began = time.perf_counter()
    index.add(vectors)
    seconds = time.perf_counter() - began
    faiss.omp_set_num_threads(1)
    path = work / "faiss"
    faiss.write_index(index, str(path))
    used = path.stat().st_size
    path.unlink()

    def search(query: np.ndarray, breadth: int) -> list[int]:
        index.hnsw.efSearch = breadth
        return list(index.search(query[None, :], TOP)[1][0])

    return Built(search, BREADTHS, used, seconds)


def build_usearch(dtype: str, vectors: np.ndarray, threads: int) -> Built:
    from usearch.index import Index

    metric = "ip" if dtype == "f32" else "cos"
    index = Index(
        ndim=vectors.shape[1], metric=metric, dtype=dtype, connectivity=NEIGHBOURS, expansion_add=BUILD_BREADTH
    )
    began = time.perf_counter()
    for at in range(0, len(vectors), 100_000):
        part = vectors[at : at + 100_000]
        index.add(np.arange(at, at + len(part)), part, threads=threads)
    seconds = time.perf_counter() - began

    def search(query: np.ndarray, breadth: int) -> list[int]:
        index.expansion_search = breadth
        return list(index.search(query, TOP, threads=1).keys)

    return Built(search, BREADTHS, index.serialized_length, seconds)


def build_lancedb(vectors: np.ndarray, work: Path) -> Built:
    import lancedb
    import pyarrow as pa
    from lancedb.index import HnswSq

    schema = pa.schema([pa.field("row", pa.int64()), pa.field("vector", pa.list_(pa.float32(), vectors.shape[1]))])
    table = lancedb.connect(work / "lance").create_table("t", schema=schema)
    began = time.perf_counter()
    for at in range(0, len(vectors), 100_000):
        part = vectors[at : at + 100_000]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), vectors.shape[1])
        table.add(pa.table([pa.array(np.arange(at, at + len(part))), column], schema=schema))
    config = HnswSq(distance_type="dot", num_partitions=1, m=NEIGHBOURS, ef_construction=BUILD_BREADTH)
    table.create_index("vector", config=config)
    seconds = time.perf_counter() - began

    def search(query: np.ndarray, breadth: int) -> list[int]:
        found = (
            table.search(query)
            .distance_type("dot")
            .ef(breadth)
            .refine_factor(2)
            .select(["row", "_distance"])
            .limit(TOP)
        )
        return list(found.to_arrow()["row"].to_pylist())

    used = sum(path.stat().st_size for path in (work / "lance").rglob("*") if path.is_file())
    return Built(search, BREADTHS[2:], used, seconds)  # it refuses fewer than the rows it rescores


def build(name: str, vectors: np.ndarray, work: Path, threads: int) -> Built:
    if name.startswith("ours-"):
        return build_ours(name.removeprefix("ours-"), vectors, work)
    if name == "faiss-hnsw":
        return build_faiss(vectors, work, threads)
    if name.startswith("usearch-"):
        return build_usearch({"float32": "f32", "int8": "i8"}[name.removeprefix("usearch-")], vectors, threads)
    return build_lancedb(vectors, work)


def measure(built: Built, queries: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Recall and milliseconds at every breadth, until recall is near 1."""
    curve = []
    for query in queries[:20]:
        built.search(query, built.breadths[0])  # what is opened once
    for breadth in built.breadths:
        spent, right = [], 0
        for query, wanted in zip(queries, truth, strict=True):
            began = time.perf_counter()
            found = built.search(query, breadth)
            spent.append((time.perf_counter() - began) * 1e3)
            right += len(set(found) & set(wanted.tolist()))
        p50, p99 = np.percentile(spent, [50, 99])
        recall = right / truth.size
        curve.append({"breadth": breadth, "recall": round(recall, 4), "p50_ms": float(p50), "p99_ms": float(p99)})
        if recall > 0.995:
            break
    return curve


def in_turns(reached: dict[str, Built], results: dict[str, Any], queries: np.ndarray, rounds: int = 5) -> None:
    """Measure the engines once more, each at its breadth of ``at_recall``, by turns: what disturbs one disturbs all."""
    spent: dict[str, list[list[float]]] = {name: [[] for _ in range(rounds)] for name in reached}
    for number in range(rounds):
        for name, built in reached.items():
            breadth = results[name]["at_recall"]["breadth"]
            for query in queries[:20]:
                built.search(query, breadth)
            for query in queries:
                began = time.perf_counter()
                built.search(query, breadth)
                spent[name][number].append((time.perf_counter() - began) * 1e3)
    for name, times in spent.items():
        p50s = [round(float(np.median(part)), 4) for part in times]
        p99 = float(np.percentile(np.concatenate([np.asarray(part) for part in times]), 99))
        results[name]["at_recall"] |= {"p50_ms": float(np.median(p50s)), "p99_ms": p99, "p50_ms_each_round": p50s}


def at_recall(curve: Sequence[dict[str, float]], target: float) -> dict[str, float] | None:
    """The least breadth that reaches a recall."""
    return next((dict(point) for point in curve if point["recall"] >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--vectors", type=Path, help="(N, D) npy, D cut to --dimensions.")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=0, help="Of building; 0 is every core.")
    parser.add_argument("--work", type=Path, help="A folder for the indices; default: a temporary one.")
    options = parser.parse_args()
    if options.vectors is None:
        everything = mixture(options.rows + options.queries, options.dimensions)
    else:
        everything = np.load(options.vectors, mmap_mode="r")[: options.rows + options.queries, : options.dimensions]
        everything = _unit(np.array(everything, dtype=np.float32))
    picked = np.random.default_rng(1).permutation(len(everything))[: options.queries]
    queries, vectors = everything[picked], np.delete(everything, picked, axis=0)
    del everything
    truth = exact(vectors, queries)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        reached: dict[str, Built] = {}
        for name in options.engines:
            built = build(name, vectors, Path(scratch), options.threads)
            curve = measure(built, queries, truth)
            results[name] = {"build_s": round(built.seconds, 1), "bytes": built.bytes, "curve": curve}
            results[name]["at_recall"] = at_recall(curve, options.recall)
            print(f"{name}: {results[name]['at_recall']}", file=sys.stderr)
            if results[name]["at_recall"] is not None:
                reached[name] = built
            else:
                del built
                shutil.rmtree(Path(scratch) / name.removeprefix("ours-"), ignore_errors=True)
        in_turns(reached, results, queries)
    _show(results, len(vectors), options.recall)
    source = str(options.vectors) if options.vectors else "mixture of Gaussians"
    line = {"rows": len(vectors), "dimensions": vectors.shape[1], "queries": len(queries), "vectors": source}
    line |= {"recall": options.recall, "engines": results, **machine()}
    print(json.dumps(line))
    print(save(f"vector-index-{options.rows}", line), file=sys.stderr)


def _show(results: dict[str, Any], rows: int, target: float) -> None:
    reached = [r["at_recall"]["p50_ms"] for r in results.values() if r["at_recall"]]
    table = []
    for name, found in results.items():
        point = found["at_recall"]
        cells = ("–",) * 5 if point is None else (
            str(point["breadth"]), f"{point['recall']:.3f}", f"{point['p50_ms']:.2f}", f"{point['p99_ms']:.2f}",
            f"{point['p50_ms'] / min(reached):.2f}",
        )  # fmt: skip
        table.append((name, f"{found['build_s']:.0f}", f"{found['bytes'] / 1e6:,.0f}", *cells))
    columns = ("engine", "build s", "MB", "breadth", "recall@10", "p50 ms", "p99 ms", "x best")
    print_table(table, columns, f"{rows:,} vectors, recall@{TOP} >= {target}")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


if __name__ == "__main__":
    main()
