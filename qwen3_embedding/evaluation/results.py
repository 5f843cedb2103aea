"""What an evaluation leaves behind: task -> metric -> value, with everything needed to judge and to repeat it.

Values are fractions as the metrics define them (nDCG@10 in [0, 1], Spearman and p-MRR in [-1, 1]); tables multiply by
100 when they print.  Higher is better for every metric here.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import DataError
from qwen3_embedding.whole import write_text

FORMAT = 1
"""Version of the JSON layout; a file of another version is refused."""

LIBRARIES = ("qwen3-embedding", "torch", "numpy", "tokenizers", "ir-measures", "mteb", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of one task.

    Raises:
        ValueError: the main metric is not among the metrics, or a value is not finite.
    """

    name: str
    type: str
    """``retrieval``, ``reranking``, ``instruction``, ``sts``, ``pair``, ``bitext``, ``classification`` …"""
    main_metric: str
    """The metric that stands for the task in averages, such as ``ndcg_at_10``."""
    metrics: Mapping[str, float]
    definition: str = ""
    """Fingerprint of what was asked: data, splits, subsets, metric. Two runs compare only where this is equal."""
    samples: int = 0
    """How many queries (pairs, texts …) the metrics are means over."""
    subsets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Subset or language -> metric -> value, where the task has several."""
    per_query: Mapping[str, float] = field(default_factory=dict)
    """Query id -> main metric, for confidence intervals and paired tests; empty where a task has none."""
    interval: tuple[float, ...] = ()
    """Low and high end of the main metric's 95 percent bootstrap interval where it has no values a query to draw."""
    instruction: str | None = None
    """The instruction that went before the queries; ``None``: the model's default."""
    seen_in_training: str = "unknown"
    """``yes``, ``no`` or ``unknown``: whether the model was trained on this task's training split or its like."""
    contamination: float | None = None
    """Share of the test queries found in the training data; ``None`` when nobody looked."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.main_metric not in self.metrics:
            raise ValueError(f"{self.name}: main metric {self.main_metric!r} is not among {sorted(self.metrics)}")
        for where, values in (("metrics", self.metrics), ("per_query", self.per_query), *self.subsets.items()):
            for key, value in values.items():
                if not math.isfinite(value):
                    raise ValueError(f"{self.name}: {where}[{key!r}] is {value}; scores are finite numbers")
        if self.seen_in_training not in ("yes", "no", "unknown"):
            raise ValueError(f"{self.name}: seen_in_training={self.seen_in_training!r}; use yes, no or unknown")

    @property
    def score(self) -> float:
        """The value of the main metric."""
        return self.metrics[self.main_metric]


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one model over some tasks.

    Raises:
        ValueError: two tasks of one name.
    """

    model: str
    tasks: tuple[TaskResult, ...]
    commit: str = ""
    """Commit of the code, or empty when it was not run from a checkout."""
    reranker: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: dimensions, precision, dtype, instruction policy, candidates …"""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    created: str = ""
    """UTC, ISO 8601."""
    seconds: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    """What it took, name with unit -> value, such as ``documents``, ``tokens``, ``peak_memory_gib``."""

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"report of {self.model}: tasks come twice: {', '.join(twice)}")

    def task(self, name: str) -> TaskResult:
        """The task of that name; ``KeyError`` when it was not run."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"{name!r} is not in the report of {self.model}; there are {[t.name for t in self.tasks]}")

    def scores(self) -> dict[str, dict[str, float]]:
        """Task -> metric -> value."""
        return {task.name: dict(task.metrics) for task in self.tasks}

    @property
    def mean_task(self) -> float:
        """Unweighted mean of the tasks' main metrics (the leaderboard's Mean(Task))."""
        if not self.tasks:
            raise ValueError(f"report of {self.model} holds no task; there is no mean")
        return math.fsum(task.score for task in self.tasks) / len(self.tasks)

    def to_json(self) -> str:
        """The report as JSON text, stable for equal reports."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write beside, then move into place."""
        write_text(path, self.to_json(), shared=True)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: no such file, not JSON, not a report, or a report of another format version.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); wanted the JSON file of an evaluation") from error
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); wanted the JSON file of an evaluation") from error
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise DataError(f"{path}: not an evaluation report of format {FORMAT}; write it anew with `evaluate`")
        try:
            tasks = tuple(task_from_mapping(task) for task in raw.pop("tasks"))
            return cls(tasks=tasks, **raw)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not an evaluation report: {error}") from error


def task_from_mapping(raw: Mapping[str, Any]) -> TaskResult:
    """A task's result from the plain values that ``dataclasses.asdict`` gave."""
    return TaskResult(**{**raw, "notes": tuple(raw.get("notes", ())), "interval": tuple(raw.get("interval", ()))})


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Version of Python and of each installed library of ``names``."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """This moment, UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
