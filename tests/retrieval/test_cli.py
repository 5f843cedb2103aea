"""``index`` and ``search`` on the command line: looking after an index, and saying where the time goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_embedding import Embedder
from qwen3_embedding.retrieval.index import SearchIndex
from qwen3_embedding.retrieval.snapshot import newest
from tests.support.command_line import CommandLine


def test_index_check_compact_and_explain(
    tmp_path: Path, embedder_folder: Path, reranker_folder: Path, q3e: CommandLine
) -> None:
    source = tmp_path / "c.jsonl"
    source.write_text("".join(json.dumps({"id": f"d{n}", "text": f"Number {n * n} of {n}"}) + "\n" for n in range(300)))
    out = str(tmp_path / "index")
    model = ("--model", str(embedder_folder), "--device", "cpu")
    assert q3e("index", str(source), "--out", out, *model, "--first-pass", "hnsw-sq", "--quiet").code == 0
    before = newest(tmp_path / "index")
    assert q3e("index", "--out", out, "--compact").code == 0
    assert newest(tmp_path / "index") != before
    assert q3e("index", "--out", out).code == 2, "neither a source nor something to look after"

    checked = q3e("index", "--out", out, "--check", "--sample", "20", "--json")
    assert checked.code == 0
    recall = json.loads(checked.out)
    assert (recall["queries"], recall["top_k"]) == (20, 10)
    assert recall["recall"] >= 0.95
    checked = q3e("index", "--out", out, "--check", "--sample", "20", "--min-recall", "1.01")
    assert checked.code == 1
    assert "recall@10" in checked.out

    search = ("search", out, "Number 16", *model, "--reranker", str(reranker_folder), "--budget-ms", "60000")
    done = q3e(*search, "--explain", "--candidates", "12")
    assert done.code == 0
    told = done.err
    stages = [line.split()[0] for line in told.splitlines() if " ms" in line]
    assert stages == ["embed", "candidates", "rescore", "fetch", "rerank", "total"]
    assert "a graph over vectors of a byte a dimension, of 300 documents" in told
    assert "12 documents" in told
    assert "budget of 60000 ms" in told
    mixed = ("--explain", "--mode", "hybrid", "--fusion", "score", "--rerank-weight", "0.3", "--candidates", "12")
    done = q3e(*search, *mixed)
    assert done.code == 0
    assert "BM25, fused by scores" in done.err
    assert "documents, with a share of 0.3 in their order" in done.err
    done = q3e(*search, "--json")
    assert done.code == 0
    timing = json.loads(done.out)["timing"]
    parts = sum(timing[f"{stage}_s"] for stage in ("embed", "candidates", "rescore", "text", "fetch", "rerank"))
    assert timing["total_s"] == pytest.approx(parts)
    assert timing["reranked"] == 100


def test_full_text_alone_needs_no_torch(tmp_path: Path, embedder_folder: Path) -> None:
    index = SearchIndex.create(tmp_path / "index", Embedder.from_pretrained(embedder_folder))
    index.add([{"id": "a", "text": "the river of Oslo"}, {"id": "b", "text": "a bridge"}])
    code = (
        "import sys; from qwen3_embedding.cli import app; app(standalone_mode=False); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    command = [sys.executable, "-c", code, "search", str(tmp_path / "index"), "river", "--mode", "text"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["a"]
