"""Starting the scripted server and reading what it served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3_embedding.data import Record, write_records
from tests.support.tasks import write_task

ROOT = Path(__file__).resolve().parents[2]
TOPICS = (
    "The lighthouse on the northern reef was built in 1874 from granite that was shipped from the mainland.",
    "Mycorrhizal fungi trade phosphate for sugar with the roots of most trees in the forest.",
    "The treaty gave the upstream state the right to divert a third of the river in dry years.",
    "A sourdough starter holds yeasts and lactic acid bacteria that live from flour and water.",
)

NOUNS = ("river", "engine", "garden", "market", "letter", "window", "bridge", "planet")


def write_toy(
    folder: Path, passage: Callable[[str, str], str], places: Sequence[str], elsewhere: Sequence[str]
) -> Path:
    """A data folder for ``recipes/synthesis``: lessons about each noun elsewhere, and the task ``toy``.

    It has a document for each of so many nouns in as many places, and a question for each noun about the first place.
    """
    lessons = [
        Record(f"where is the {noun}", (passage(noun, place),), "retrieval", "lessons", language="en")
        for noun in NOUNS
        for place in elsewhere
    ]
    for name in ("nq_qed_en", "jaquad_ja", "medquad_en"):
        write_records(folder / "train" / f"{name}.jsonl.xz", lessons)
    nouns = NOUNS[: len(places)]
    documents = {f"d{n}{p}": passage(noun, place) for n, noun in enumerate(nouns) for p, place in enumerate(places)}
    queries = {f"q{n}": f"when to see the {noun} of {places[0]}?" for n, noun in enumerate(nouns)}
    write_task(folder / "eval" / "toy", documents, queries, {query: f"d{query[1:]}0" for query in queries})
    return folder


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
