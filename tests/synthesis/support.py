"""Starting the scripted server and reading what it served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOPICS = (
    "The lighthouse on the northern reef was built in 1874 from granite that was shipped from the mainland.",
    "Mycorrhizal fungi trade phosphate for sugar with the roots of most trees in the forest.",
    "The treaty gave the upstream state the right to divert a third of the river in dry years.",
    "A sourdough starter holds yeasts and lactic acid bacteria that live from flour and water.",
)


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The address of a scripted server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.synthesis.server", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def served(log: Path) -> Counter[str]:
    """How often each request key was answered whole."""
    return Counter(json.loads(line)["key"] for line in log.read_text().splitlines())


def write_documents(path: Path, count: int) -> Path:
    """A JSONL corpus of so many different documents."""
    rows = (
        {"id": f"d{n}", "text": f"Note {n}. {TOPICS[n % len(TOPICS)]} Copy {n * 7919} of the series."}
        for n in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
