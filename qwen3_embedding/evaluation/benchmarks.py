"""The benchmarks of the report as data: which tasks, splits, subsets, main scores and prompts they consist of.

The definitions are those of mteb (Apache-2.0), read from a file of the package: no mteb, no network needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

BENCHMARKS = ("MTEB(Multilingual, v2)", "MTEB(eng, v2)", "MTEB(cmn, v1)", "MTEB(Code, v1)", "MLDR", "FollowIR")


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """What a task asks, the same in every benchmark that has it."""

    name: str
    type: str
    """mteb's task type: ``Retrieval``, ``Reranking``, ``STS``, ``Clustering`` …"""
    main_score: str
    dataset: str
    revision: str
    prompt: str | Mapping[str, str] | None
    """mteb's metadata prompt: for all texts, or by side (``query``, ``document``), or none."""

    @property
    def asymmetric(self) -> bool:
        """Whether queries and documents are different things here."""
        return "Retrieval" in self.type or "Reranking" in self.type


@dataclass(frozen=True, slots=True)
class BenchmarkTask:
    """A task with the parts of it that a benchmark counts."""

    task: TaskDefinition
    splits: tuple[str, ...]
    subsets: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when data set, revision, splits, subsets or the main score change: 16 hex digits."""
        task = self.task
        parts = [task.name, task.main_score, task.dataset, task.revision, sorted(self.splits), sorted(self.subsets)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named list of tasks."""

    name: str
    tasks: tuple[BenchmarkTask, ...]
    note: str = ""

    def of_type(self, task_type: str) -> tuple[BenchmarkTask, ...]:
        """The tasks of one type, in the benchmark's order."""
        return tuple(item for item in self.tasks if item.task.type == task_type)

    @property
    def types(self) -> dict[str, str]:
        """Task name -> type."""
        return {item.task.name: item.task.type for item in self.tasks}


@cache
def load_benchmark(name: str, as_published: bool = False) -> Benchmark:
    """A benchmark by name.

    Args:
        name: one of :data:`BENCHMARKS`.
        as_published: the splits that the published figures of 2025 were made with, where they differ from today's.

    Raises:
        ValueError: no benchmark of that name.
    """
    raw = _data()
    if name not in raw["benchmarks"]:
        raise ValueError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    entry = raw["benchmarks"][name]
    splits = entry["published"] if as_published else {}
    tasks = tuple(
        BenchmarkTask(
            task=load_task(item["task"]),
            splits=tuple(splits.get(item["task"], item["splits"])),
            subsets=_subsets(item["subsets"]),
        )
        for item in entry["tasks"]
    )
    return Benchmark(name, tasks, entry["note"])


def load_task(name: str) -> TaskDefinition:
    """The definition of a task of any of the benchmarks.

    Raises:
        ValueError: no task of that name.
    """
    tasks = _data()["tasks"]
    if name not in tasks:
        raise ValueError(f"no task {name!r} in {', '.join(BENCHMARKS)}")
    return TaskDefinition(name=name, **tasks[name])


@cache
def _data() -> dict[str, Any]:
    return read_data("benchmarks.json")


def read_data(name: str) -> dict[str, Any]:
    """A JSON file of ``evaluation/data``."""
    text = files("qwen3_embedding.evaluation").joinpath("data", name).read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _subsets(raw: list[str] | dict[str, list[str]]) -> tuple[str, ...]:
    """The subsets, or, written short, every ordered pair of languages."""
    if isinstance(raw, list):
        return tuple(raw)
    languages = raw["pairs_of"]
    return tuple(f"{left}-{right}" for left in languages for right in languages if left != right)
