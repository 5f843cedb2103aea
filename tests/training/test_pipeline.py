"""The whole recipe in its debug size: every stage improves on the last, on queries that none of them saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "pipeline"


def run(folder: Path) -> str:
    """The stages that ran."""
    command = [sys.executable, str(RECIPES / "run.py"), str(RECIPES / "debug"), "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--threads", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| full |" in done.stdout
    return done.stderr


@pytest.mark.timeout(900)  # 15 seconds of one processor; more on a busy machine
def test_every_stage_improves_on_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    run(folder)
    card = json.loads((folder / "ablation.json").read_text())
    rows = {row["name"]: row["mean"] for row in card["rows"]}
    mean = {name: row["value"] for name, row in rows.items()}
    assert rows["stage 1 only"]["low"] > rows["before training"]["high"]
    singles = [value for name, value in mean.items() if name.startswith("without merging")]
    assert len(singles) == 2
    assert min(singles) > rows["stage 1 only"]["high"]
    assert mean["full"] > max(singles)
    assert rows["full"]["low"] > rows["without stage 1"]["high"]
    rerankers = [value for name, value in mean.items() if name.startswith("full, reranked by reranker-")]
    assert len(rerankers) == 2
    assert min(rerankers) > mean["full, reranked before training"]
    assert mean["full, reranked by the merged reranker"] > sum(rerankers) / 2
    for row in card["rows"]:
        assert row["mean"]["low"] <= row["mean"]["value"] <= row["mean"]["high"]
        assert (row["difference"] is None) == (row["name"] == "full")

    # Again: all is there but what was taken away.
    (folder / "ablation.md").unlink()
    said = run(folder)
    assert said.count("is there") == len(json.loads((folder / "seconds.json").read_text())) - 1
    assert json.loads((folder / "ablation.json").read_text())["rows"] == card["rows"]
