"""The leaderboard's averages: unweighted means over splits and subsets, over tasks, over types.

As in mteb: a task's score is the plain mean of its main score over all (split x subset) rows that the benchmark lists;
Mean(Task) is the mean of the tasks; Mean(Type) is the mean of the per-type means; a task that lacks makes the means
lack.  A task with 376 subsets counts as much as one with one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Literal

Rounding = Literal["half-up", "floor"]
_CENT = Decimal("0.01")


def mean(values: Iterable[float]) -> float:
    """Unweighted mean, summed exactly.

    Raises:
        ValueError: there are no values.
    """
    found = list(values)
    if not found:
        raise ValueError("the mean of no values does not exist")
    return math.fsum(found) / len(found)


def task_score(rows: Mapping[tuple[str, str], float], splits: Iterable[str], subsets: Iterable[str]) -> float:
    """Mean over every (split, subset) that the benchmark lists.

    Raises:
        ValueError: a row is missing; a part of a task does not stand for the task.
    """
    wanted = [(split, subset) for split in splits for subset in subsets]
    missing = [key for key in wanted if key not in rows]
    if missing:
        split, subset = missing[0]
        raise ValueError(
            f"{len(missing)} of {len(wanted)} rows are missing, such as split {split!r}, subset {subset!r}"
        )
    return mean(rows[key] for key in wanted)


def mean_task(scores: Mapping[str, float], types: Mapping[str, str]) -> float:
    """Mean(Task) over exactly the tasks of ``types`` (task -> type).

    Raises:
        ValueError: a task has no score.
    """
    _complete(scores, types)
    return mean(scores[task] for task in types)


def type_means(scores: Mapping[str, float], types: Mapping[str, str]) -> dict[str, float]:
    """Type -> mean of its tasks; types of which a task lacks are left out."""
    by_type: dict[str, list[str]] = {}
    for task, task_type in types.items():
        by_type.setdefault(task_type, []).append(task)
    return {
        task_type: mean(scores[task] for task in tasks)
        for task_type, tasks in by_type.items()
        if all(task in scores for task in tasks)
    }


def mean_type(scores: Mapping[str, float], types: Mapping[str, str]) -> float:
    """Mean(Type): the mean of the per-type means.

    Raises:
        ValueError: a task has no score.
    """
    _complete(scores, types)
    return mean(type_means(scores, types).values())


def to_cents(value: float, rounding: Rounding) -> float:
    """Two decimals, half upwards or cut off towards minus infinity.

    The value is first taken to nine decimals, so that 74.6050000001 of a sum of floats counts as 74.605.
    """
    exact = Decimal(repr(round(value, 9)))
    return float(exact.quantize(_CENT, ROUND_HALF_UP if rounding == "half-up" else ROUND_FLOOR))


def _complete(scores: Mapping[str, float], types: Mapping[str, str]) -> None:
    missing = [task for task in types if task not in scores]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(types)} tasks have no score, such as {missing[0]!r}; there is no mean over a part"
        )
