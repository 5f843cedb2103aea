"""Small recipes over small records, for tests."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from qwen3_embedding.data import Record, write_records
from qwen3_embedding.training.config import TrainingSettings, parse_settings

NOUNS = (
    *("river", "engine", "garden", "market", "letter", "window", "bridge", "planet"),
    *("doctor", "forest", "guitar", "castle", "ocean", "pepper", "rocket"),
)
FACTS = (
    *("is very old", "needs repair", "was painted green"),
    *("costs too much", "belongs to my aunt", "makes a loud noise"),
)


def pair_records(count: int = 90) -> list[Record]:
    pairs = itertools.product(NOUNS, FACTS)
    return [
        Record(
            query=f"what about the {noun}, number {number}",
            positives=(f"the {noun} {fact}", f"every {noun} {fact}") if number % 3 == 0 else (f"the {noun} {fact}",),
            negatives=tuple(f"the {other} {fact}" for other in NOUNS[number % 5 : number % 5 + 3] if other != noun),
            task="retrieval",
            source="made",
            language="en" if number % 2 else "xx",
        )
        for number, (noun, fact) in enumerate(itertools.islice(pairs, count))
    ]


def graded_records(count: int = 40) -> list[Record]:
    return [
        Record(
            f"a {NOUNS[n % 15]} here", (f"a {NOUNS[(n + n % 3) % 15]} there",), "sts", "graded", score=1 - (n % 3) / 2
        )
        for n in range(count)
    ]


def labelled_records(count: int = 40) -> list[Record]:
    labels = ["positive review", "negative review", "no review"]
    return [
        Record(
            f"text {n} about a {NOUNS[n % 15]}", (labels[n % 3],), "classification", "labels",
            negatives=tuple(label for label in labels if label != labels[n % 3]),
        )
        for n in range(count)
    ]  # fmt: skip


def write_sources(folder: Path) -> list[dict[str, Any]]:
    write_records(folder / "pairs.jsonl.xz", pair_records())
    write_records(folder / "graded.jsonl", graded_records())
    write_records(folder / "labels.jsonl.gz", labelled_records())
    return [
        {"path": str(folder / "pairs.jsonl.xz"), "weight": 2.0, "swap": 0.3, "crop": 0.2, "window": 0.5},
        {"path": str(folder / "graded.jsonl"), "weight": 1.0},
        {"path": str(folder / "labels.jsonl.gz"), "weight": 1.0},
    ]


def settings(folder: Path, model: Path, kind: str = "embedder", **changes: Any) -> TrainingSettings:
    """A small run; ``changes`` are merged a table deep."""
    raw: dict[str, Any] = {
        "kind": kind,
        "model": str(model),
        "output": str(folder / "out"),
        "data": {
            "batch_size": 16,
            "negatives": 2,
            "max_query_tokens": 64,
            "max_document_tokens": 24,
            "crop_tokens": [2, 4],
            "cache": str(folder / "cache"),
        },
        "loss": {"temperature": 0.05, "dimensions": [32], "dimension_weights": [0.5]},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "run": {"steps": 8, "checkpoint_every": 3, "seed": 5},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    if "sources" not in raw["data"]:
        raw["data"]["sources"] = write_sources(folder)
    return parse_settings(raw)
