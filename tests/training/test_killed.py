"""kill -9 at three random moments: the end is that of the run that nobody stopped, byte for byte, with two threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3_embedding.config import dump_toml
from tests.training import killed_runs
from tests.training.support import settings

ADAPTER = {"rank": 4, "alpha": 16.0, "dropout": 0.1}


def lines(run_folder: Path) -> list[tuple[int, float, float]]:
    found = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in found]


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_runs_killed_anywhere_go_on_bit_for_bit(tmp_path: Path, embedder_folder: Path, reranker_folder: Path) -> None:
    """An embedder with adapters and dropout, and a reranker in full, whose pairs share prefixes."""
    short: dict[str, Any] = {"run": {"steps": 7, "checkpoint_every": 2}, "data": {"batch_size": 16}}
    embedder = settings(folder(tmp_path, "embedder"), embedder_folder, lora=ADAPTER, **short)
    reranker = settings(folder(tmp_path, "reranker"), reranker_folder, "reranker", **short)
    reranker = replace(reranker, data=replace(reranker.data, sources=reranker.data.sources[:1]))
    for made in (embedder, reranker):
        (made.output.parent / "recipe.toml").write_text(dump_toml(made))
    kinds = ("embedder", "reranker")
    done = subprocess.run(
        [sys.executable, killed_runs.__file__, *(str(tmp_path / name) for name in kinds)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(Path(killed_runs.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for name in kinds:
        alone, killed = tmp_path / name / "alone", tmp_path / name / "killed"
        assert lines(alone.with_suffix(".run")) == lines(killed.with_suffix(".run")), done.stdout
        files = sorted(path.relative_to(alone) for path in alone.rglob("*.safetensors"))
        assert files
        for file in files:
            assert (alone / file).read_bytes() == (killed / file).read_bytes(), (file, done.stdout)
