"""How much of the test texts of tasks stands in training records, all tasks in one pass over the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.data.files import read_folder
from qwen3_embedding.evaluation.collection import (
    RANKING_KINDS,
    TaskInfo,
    read_collection,
    read_labelled,
    read_pairs,
)


def training_overlap(
    tasks: Sequence[tuple[Path, TaskInfo]], training: Sequence[str | Path], split: str = "test"
) -> dict[str, float]:
    """Task name → share of its test texts found among queries and positives of the training records.

    Test texts are the queries of ranking tasks, the first texts of pairs, the test texts of labels. Exact after
    normalisation, as when duplicates are dropped: paraphrases are not found, so this is a lower bound.

    Args:
        tasks: folders and what they say of themselves.
        training: files of records, or folders of such files.
        split: of ranking tasks.

    Raises:
        DataError: a task or a record that cannot be read.
    """
    hashes = {info.name: [text_hash(text) for text in _test_texts(folder, info, split)] for folder, info in tasks}
    known = {one for several in hashes.values() for one in several}
    seen: set[int] = set()
    for path in training:
        for record in read_folder(path):
            seen |= known.intersection(map(text_hash, (record.query, *record.positives)))
    return _shares(hashes, seen)


def _test_texts(folder: Path, info: TaskInfo, split: str = "test") -> list[str]:
    """The texts of a task that a training set must not hold."""
    if info.kind in RANKING_KINDS:
        return list(read_collection(folder, split).queries.values())
    if info.kind in ("classification", "clustering"):
        return read_labelled(folder / "test.jsonl").texts
    return read_pairs(folder, info.kind).left


def _shares(hashes: Mapping[str, Sequence[int]], seen: set[int]) -> dict[str, float]:
    return {name: sum(one in seen for one in several) / len(several) for name, several in hashes.items()}
