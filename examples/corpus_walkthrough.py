"""A corpus from files to answers: encoded, indexed, searched, measured. Written to be read from top to bottom.

    python examples/corpus_walkthrough.py data/wiki_en.jsonl.xz data/arxiv_en.jsonl.xz --work walkthrough
    python examples/corpus_walkthrough.py DATA/*.jsonl --rows 2000 --queries 50 --work small      # a small one first

Input are training records (docs/training.md): a record's first positive is a document, its query is a question whose
answer is known.  Kill it at any moment and repeat the command: encoding goes on where it was, finished steps are kept.
docs/walkthrough.md explains each step and shows what it printed on 160,000 documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3_embedding import Embedder, Reranker, SearchIndex
from qwen3_embedding.corpus.encode import EncodeSettings, Result, VectorSettings, encode
from qwen3_embedding.corpus.manifest import read_manifest
from qwen3_embedding.corpus.progress import ProgressLine, summary
from qwen3_embedding.data.files import read_records
from qwen3_embedding.retrieval.explain import explanation
from qwen3_embedding.retrieval.fusion import Fusion
from qwen3_embedding.retrieval.manifest import IndexSettings
from qwen3_embedding.retrieval.search import Plan, SearchResults

SCORES = Fusion(method="score")
INSTRUCTION = "Given a title, retrieve the passage or abstract that it belongs to"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="Files of training records (JSONL, also .xz, .gz).")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=None, help="Records of each file; default: all.")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--model", default="nano-embedding")
    parser.add_argument("--reranker", default="nano-reranker")
    parser.add_argument("--dimensions", type=int, default=None)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    print("1. The corpus: one JSON object a line", file=sys.stderr)
    corpus, queries = write_corpus(options.records, options.rows, options.queries, options.work)

    print("2. Encode: shards of vectors and a manifest; a repeated text is computed once", file=sys.stderr)
    embedder = Embedder.from_pretrained(options.model)
    settings = EncodeSettings(VectorSettings(dimensions=options.dimensions))
    line = ProgressLine()
    encoded = encode(corpus, options.work / "vectors", embedder, settings, report=line)
    line.close()
    print(summary(encoded), file=sys.stderr)

    print("3. Index: the vectors come from the shards, nothing is computed again", file=sys.stderr)
    reranker = Reranker.from_pretrained(options.reranker)
    index, build_s = build_index(corpus, options.work, embedder, reranker)

    print("4. Recall of the first pass against the exact search", file=sys.stderr)
    recall = index.check(sample=200)
    print(recall, file=sys.stderr)

    print("5. Search: is the right passage among the first ten?", file=sys.stderr)
    modes: dict[str, Any] = {
        "dense": Plan(instruction=INSTRUCTION, rerank=False),
        "text": Plan(mode="text", rerank=False),
        "hybrid": Plan(mode="hybrid", instruction=INSTRUCTION, rerank=False),
        "hybrid, reranked in 1 s": Plan(mode="hybrid", instruction=INSTRUCTION, budget_ms=1000),
        "by scores": Plan(mode="hybrid", instruction=INSTRUCTION, fusion=SCORES, rerank=False),
        "by scores, share of 0.3": Plan(
            mode="hybrid", instruction=INSTRUCTION, fusion=SCORES, candidates=20, rerank_weight=0.3
        ),
    }
    quality = {name: measure(index, queries, plan) for name, plan in modes.items()}
    for name, found in quality.items():
        print(f"{name:<24} found in ten {found['recall_at_10']:.3f}   {found['ms_a_query']:.1f} ms", file=sys.stderr)

    print("6. Where the time of one search goes", file=sys.stderr)
    question, plan = queries[0][0], modes["hybrid, reranked in 1 s"]
    results = index.run([question], plan)
    print(question, file=sys.stderr)
    for hit in results.hits[0][:3]:
        print(f"   {hit.score:.3f}  {hit.text[:100]}", file=sys.stderr)
    print(explanation(index, plan, results), file=sys.stderr)

    print(json.dumps(report(encoded, build_s, index, recall.recall, quality, results)))


def write_corpus(files: list[Path], rows: int | None, n_queries: int, work: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Documents as JSONL, and (question, id of its document) spread evenly over them."""
    path = work / "corpus.jsonl"
    asked: list[tuple[str, str]] = []
    beside = path.with_suffix(".part")
    with beside.open("w", encoding="utf-8") as out:
        for file in files:
            name = file.name.split(".")[0]
            for number, record in enumerate(itertools.islice(read_records(file), rows)):
                identity = f"{name}-{number}"
                document = {"id": identity, "text": record.positives[0], "source": name, "language": record.language}
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
                asked.append((record.query, identity))
    if not path.exists() or path.read_bytes() != beside.read_bytes():
        beside.replace(path)  # an unchanged corpus keeps its time, so that encode need not look at it again
    else:
        beside.unlink()
    step = max(1, len(asked) // n_queries)
    return path, asked[::step][:n_queries]


def build_index(corpus: Path, work: Path, embedder: Embedder, reranker: Reranker) -> tuple[SearchIndex, float]:
    """The index of the encoded corpus; one that is complete is kept."""
    folder, manifest = work / "index", read_manifest(work / "vectors")
    began = time.perf_counter()
    if folder.exists():
        index = SearchIndex.open(folder, embedder, reranker)
    else:
        settings = IndexSettings(dimensions=manifest.width, first_pass="hnsw-sq", batch_size=8192)
        index = SearchIndex.create(folder, embedder, reranker, settings=settings)
    if len(index) != manifest.rows:
        documents = (json.loads(line) for line in corpus.open(encoding="utf-8"))
        for ids, vectors in manifest.vectors():  # the shards keep the order of the source
            part = list(itertools.islice(documents, len(ids)))
            assert [document["id"] for document in part] == ids
            index.upsert(part, vectors=vectors)
            print(f"\r{len(index):,} documents", end="", file=sys.stderr)
        index.optimize()
        print(file=sys.stderr)
    return index, time.perf_counter() - began


def measure(index: SearchIndex, queries: list[tuple[str, str]], plan: Plan) -> dict[str, float]:
    """How many questions find their document, and the time of one."""
    began = time.perf_counter()
    found = 0
    for question, identity in queries:
        found += identity in {hit.id for hit in index.run([question], plan).hits[0]}
    seconds = time.perf_counter() - began
    return {"recall_at_10": found / len(queries), "ms_a_query": seconds / len(queries) * 1e3}


def report(
    encoded: Result, build_s: float, index: SearchIndex, recall: float, quality: dict[str, Any], one: SearchResults
) -> dict[str, Any]:
    """What was measured, for programs."""
    size = sum(path.stat().st_size for path in _files(index.folder))
    return {
        "documents": len(index),
        "computed": encoded.manifest.raw["totals"]["computed"],
        "tokens": encoded.manifest.raw["totals"]["tokens"],
        "encode_tokens_per_s": round(encoded.progress.tokens_per_s),
        "index_build_s": round(build_s, 1),
        "index_bytes": size,
        "first_pass_recall_at_10": recall,
        "quality": quality,
        "one_search_ms": {stage: round(s * 1e3, 2) for stage, s in one.timing.stages().items()},
    }


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
