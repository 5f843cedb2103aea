from __future__ import annotations

from pathlib import Path

import pytest

from qwen3_embedding.corpus.encode import encode
from qwen3_embedding.corpus.planner import Corpus, Rates, estimate
from qwen3_embedding.inference.embedder import Embedder
from tests.corpus.support import repeating, small, write_jsonl


def test_the_formulas() -> None:
    got = estimate(Corpus(1_000_000, 200, repeats=0.37), Rates(50_000, price_per_hour=2.0), 1024, "float32")
    assert got.rows == 1_000_000
    assert got.tokens == 126_000_000
    assert got.vector_bytes == 4_096_000_000
    assert got.worker_hours == pytest.approx(0.7)
    assert got.cost == pytest.approx(1.4)
    assert got.workers(0.1) == 7
    assert got.machines_in_memory(3_000_000_000) == 2


@pytest.mark.parametrize(("precision", "size"), [("float16", 2048), ("int8", 1024), ("ubinary", 128)])
def test_bytes_by_precision(precision: str, size: int) -> None:
    got = estimate(Corpus(1000, 200), Rates(1000), 1024, precision)  # type: ignore[arg-type]
    assert got.vector_bytes == 1000 * size


def test_chunks() -> None:
    corpus = Corpus(100, 1000, chunk_tokens=400, chunk_overlap=100)
    assert corpus.chunks_per_document == 3  # 0-400, 300-700, 600-1000
    assert corpus.rows == 300
    assert corpus.tokens == 100 * 1200
    assert Corpus(100, 300, chunk_tokens=400).rows == 100


def test_efficiency_costs_hours() -> None:
    one, many = (estimate(Corpus(10**9, 200), Rates(50_000, efficiency), 1024) for efficiency in (1.0, 0.8))
    assert many.worker_hours == pytest.approx(one.worker_hours / 0.8)
    assert one.worker_hours == pytest.approx(1111.11, abs=0.01)
    assert one.workers(24) == 47


def test_what_makes_no_sense_is_refused() -> None:
    for bad in (
        {"documents": -1},
        {"tokens_per_document": 0.0},
        {"repeats": 1.5},
        {"chunk_tokens": 5, "chunk_overlap": 5},
    ):
        with pytest.raises(ValueError, match="wanted"):
            Corpus(**{"documents": 1, "tokens_per_document": 1.0, **bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted"):
        Rates(0)
    with pytest.raises(ValueError, match="wanted"):
        estimate(Corpus(1, 1), Rates(1), 0)
    with pytest.raises(ValueError, match="hours=0"):
        estimate(Corpus(1, 1), Rates(1), 32).workers(0)


def test_it_agrees_with_a_real_run(tmp_path: Path, embedder: Embedder) -> None:
    """Tokens, rows and vector bytes of the plan are those of the encoder; shards add headers, less than 20 kB here."""
    source = write_jsonl(tmp_path / "c.jsonl", repeating(200, 120))
    manifest = encode(source, tmp_path / "out", embedder, small(rows=100)).manifest
    tokens = manifest.raw["totals"]["tokens"]
    plan = estimate(Corpus(200, tokens / 120, repeats=0.4, id_bytes=4), Rates(1000), 64)
    assert plan.rows == manifest.rows
    assert plan.tokens == pytest.approx(tokens)
    written = sum(shard.bytes for shard in manifest.shards)
    assert plan.vector_bytes < written < plan.shard_bytes + 20_000
