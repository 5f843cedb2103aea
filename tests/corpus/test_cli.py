from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from qwen3_embedding.corpus.encode import Progress
from qwen3_embedding.corpus.progress import ProgressLine, render
from tests.corpus.support import content, repeating, write_jsonl
from tests.support.command_line import CommandLine


def test_encode_resume_and_check(tmp_path: Path, embedder_folder: Path, q3e: CommandLine) -> None:
    source = str(write_jsonl(tmp_path / "c.jsonl", repeating(50, 40)))
    out = str(tmp_path / "out")
    common = (source, "--model", str(embedder_folder), "--out", out, "--device", "cpu", "--window-rows", "20")
    printed = q3e("encode", *common, "--dimensions", "32", "--json")
    assert printed.code == 0
    assert json.loads(printed.out)["rows"] == 50
    assert "rows/s" in printed.err
    assert {vector.shape for vector in content(tmp_path / "out").values()} == {(32,)}

    printed = q3e("encode", *common, "--dimensions", "32", "--sink", f"npy:{tmp_path / 'map'}")
    assert printed.code == 0
    assert "50 rows in 3 shards" in printed.out
    assert "50 rows sent" in printed.err
    assert np.load(tmp_path / "map" / "vectors.npy").shape == (50, 32)

    refused = q3e("encode", *common)
    assert refused.code == 2
    assert "encoding.dimensions there is 32, asked for is 64" in refused.err

    assert q3e("encode", "--out", out, "--check").code == 0
    shard = tmp_path / "out" / "shard-000001.parquet"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    checked = q3e("encode", "--out", out, "--check")
    assert checked.code == 1
    assert "shard-000001.parquet: the checksum is another one" in checked.out


def test_faults_have_exit_codes(tmp_path: Path, embedder_folder: Path, q3e: CommandLine) -> None:
    out, model = ("--out", str(tmp_path / "out")), ("--model", str(embedder_folder))
    assert q3e("encode", *out, *model).code == 2
    assert q3e("encode", str(tmp_path / "none.jsonl"), *out, *model).code == 3
    refused = q3e("encode", str(tmp_path), *out, *model, "--chunk-tokens", "5", "--chunk-overlap", "5")
    assert refused.code == 2
    assert "overlap=5" in refused.err


def test_progress_line() -> None:
    progress = Progress(rows=2000, computed=1500, unchanged=10, tokens=90_000, cut=1, fraction=0.25, seconds=10.0)
    line = render(progress)
    assert line == ("25% · 2,000 rows (500 repeats, 10 unchanged) · 201 rows/s · 9,000 tokens/s · 1 cut · 30 s left")
    log = io.StringIO()
    report = ProgressLine(log)
    report(progress)
    report(progress)
    assert log.getvalue() == line + "\n", "a log gets a line every ten seconds"
