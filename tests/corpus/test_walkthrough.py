"""The walk-through runs as it stands, on a corpus of a few hundred records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _records(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"The passage of number {number} says that its square is {number * number}."
            record = {"instruction": None, "query": f"square of number {number}", "positives": [text], "negatives": []}
            record |= {"task": "retrieval", "language": "en", "source": "squares", "score": None}
            file.write(json.dumps(record) + "\n")
    return path


def test_walkthrough(tmp_path: Path) -> None:
    records = _records(tmp_path / "squares.jsonl", 300)
    command = [sys.executable, str(ROOT / "examples" / "corpus_walkthrough.py"), str(records), "--queries", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "w")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["documents"], found["computed"]) == (300, 300)
    assert found["first_pass_recall_at_10"] > 0.9
    modes = {"dense", "text", "hybrid", "hybrid, reranked in 1 s", "by scores", "by scores, share of 0.3"}
    assert found["quality"].keys() == modes
    assert found["quality"]["text"]["recall_at_10"] > 0.5
    assert found["one_search_ms"]["rerank"] > 0
    assert "a graph over vectors" in done.stderr
