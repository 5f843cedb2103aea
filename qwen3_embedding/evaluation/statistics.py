"""What a difference between two runs is worth: bootstrap intervals, paired randomisation tests, corrections.

Everything is seeded: the same reports give the same numbers.  The sample is the queries; another draw of queries is
what the intervals speak of, not another training run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.evaluation.published import load_published
from qwen3_embedding.evaluation.results import Report, TaskResult

FloatVector = npt.NDArray[np.float64]
_CHUNK = 4_000_000
_EXACT_UP_TO = 14
"""So many non-zero differences have at most 16,384 sign patterns: all are tried."""
PAIR_RESAMPLES = 1000
"""Draws where every one is a whole metric over pairs, such as a rank correlation."""
_SAME = 1e-12
"""Statistics nearer than this are equal: sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run B against run A on the same queries; positive: B is better."""

    task: str
    a: float
    b: float
    difference: Interval
    p_value: float
    """Two-sided, of the sign-flip randomisation test: how often chance alone gives a difference as large."""
    wins: int
    ties: int
    losses: int
    p_corrected: float = math.nan
    """Holm's correction over the tasks compared together; NaN before it was made."""


@dataclass(frozen=True, slots=True)
class Overall:
    """Run B against run A over all tasks."""

    difference: Interval
    """Of the mean over tasks, queries drawn anew within each task."""
    p_value: float
    """Signs flipped query by query within each task."""
    tasks_p_value: float
    """Signs flipped task by task: are the *tasks* a sample? Needs many tasks to be small."""
    tasks: int
    wins: int
    ties: int
    losses: int


def bootstrap_interval(
    values: Sequence[float] | FloatVector, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean, values drawn with replacement.

    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).
    """
    values_N = _values(values)
    means_R = _resampled_means(values_N, resamples, np.random.default_rng(seed))
    low, high = _percentiles(means_R, level)
    return Interval(float(values_N.mean()), low, high, len(values_N))


def resampled_scores(
    score: Callable[[npt.NDArray[np.int64]], float], count: int, resamples: int = PAIR_RESAMPLES, seed: int = 0
) -> FloatVector:
    """A metric on samples of ``count`` rows drawn with replacement: what a bootstrap interval is cut from.

    Args:
        score: row numbers of a sample → its metric.
        count: how many rows there are.
        resamples: how many samples.
        seed: of the draws.

    Returns:
        (resamples,) values; NaN where a sample has none (all its labels alike, say).
    """
    rng = np.random.default_rng(seed)
    values_R = np.empty(resamples)
    for number in range(resamples):
        try:
            values_R[number] = score(rng.integers(0, count, size=count))
        except ValueError:
            values_R[number] = np.nan
    return values_R


def mean_interval(samples: Sequence[Sequence[float]], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Interval of a mean over tasks: each task's queries are drawn anew within the task.

    Args:
        samples: values a query, task by task.
        resamples: how many draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    means_R = np.zeros(resamples)
    for values in samples:
        means_R += _resampled_means(_values(values), resamples, rng)
    low, high = _percentiles(means_R / len(samples), 0.95)
    value = math.fsum(math.fsum(values) / len(values) for values in samples) / len(samples)
    return Interval(value, low, high, len(samples))


def randomisation_p_value(differences: Sequence[float] | FloatVector, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided paired randomisation (sign-flip) test of the mean difference.

    Under the null hypothesis each difference is as likely with the other sign. Queries on which both runs are equal
    stay in the mean and flip to themselves; when all are, p is 1. Few differences are tried exhaustively; else the
    observed pattern counts as one of the random ones, so that p is never 0. Equal statistics count as extreme.
    """
    values_N = _values(differences)
    nonzero_N = values_N[values_N != 0]
    if nonzero_N.size == 0:
        return 1.0
    observed = abs(nonzero_N.sum())
    slack = _SAME * np.abs(nonzero_N).sum()
    if nonzero_N.size <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=nonzero_N.size)))
        return float((np.abs(signs @ nonzero_N) >= observed - slack).mean())
    sums_R = _flipped_sums(nonzero_N, resamples, np.random.default_rng(seed))
    return float(((np.abs(sums_R) >= observed - slack).sum() + 1) / (resamples + 1))


def compare_tasks(a: TaskResult, b: TaskResult, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Task for task, query by query.

    Raises:
        ValueError: different tasks, definitions or metrics; different queries; no values per query.
    """
    check_comparable(a, b)
    differences_N = _differences(a, b)
    return Comparison(
        task=a.name,
        a=a.score,
        b=b.score,
        difference=bootstrap_interval(differences_N, resamples=resamples, seed=seed),
        p_value=randomisation_p_value(differences_N, resamples, seed),
        wins=int((differences_N > 0).sum()),
        ties=int((differences_N == 0).sum()),
        losses=int((differences_N < 0).sum()),
    )


def compare_reports(a: Report, b: Report, resamples: int = 10_000, seed: int = 0) -> list[Comparison]:
    """Every task that has values per query, with Holm's correction over them.

    Raises:
        ValueError: the reports have different tasks, or definitions of one task that differ.
    """
    pairs = paired_tasks(a, b)
    found = [compare_tasks(x, y, resamples, seed) for x, y in pairs if x.per_query and y.per_query]
    corrected = holm([item.p_value for item in found])
    return [replace(item, p_corrected=p) for item, p in zip(found, corrected, strict=True)]


def compare_overall(a: Report, b: Report, resamples: int = 10_000, seed: int = 0) -> Overall:
    """The mean over tasks of B minus that of A; tasks without values per query stay as they are when drawing.

    Raises:
        ValueError: the reports have different tasks, or definitions of one task that differ.
    """
    pairs = paired_tasks(a, b)
    per_task = np.array([y.score - x.score for x, y in pairs])
    rng_means, rng_signs = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    means_R, flipped_R = np.zeros(resamples), np.zeros(resamples)
    observed = 0.0
    for (x, y), difference in zip(pairs, per_task, strict=True):
        if not (x.per_query and y.per_query):
            means_R += difference
            continue
        differences_N = _differences(x, y)
        observed += float(differences_N.mean())
        means_R += _resampled_means(differences_N, resamples, rng_means)
        flipped_R += _flipped_sums(differences_N, resamples, rng_signs) / len(differences_N)
    low, high = _percentiles(means_R / len(pairs), 0.95)
    extreme = np.abs(flipped_R) >= abs(observed) - _SAME * len(pairs)
    return Overall(
        difference=Interval(float(per_task.mean()), low, high, len(pairs)),
        p_value=float((extreme.sum() + 1) / (resamples + 1)),
        tasks_p_value=randomisation_p_value(per_task, resamples, seed),
        tasks=len(pairs),
        wins=int((per_task > 0).sum()),
        ties=int((per_task == 0).sum()),
        losses=int((per_task < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def paired_tasks(a: Report, b: Report) -> list[tuple[TaskResult, TaskResult]]:
    """The tasks of two reports side by side.

    Raises:
        ValueError: a report lacks a task of the other, or a task was defined otherwise.
    """
    names_a, names_b = [task.name for task in a.tasks], [task.name for task in b.tasks]
    only = sorted(set(names_a) ^ set(names_b))
    if only:
        holder, other = (a.model, b.model) if only[0] in names_a else (b.model, a.model)
        raise ValueError(
            f"{len(only)} tasks are in one report only, such as {only[0]!r} ({holder} has it, {other} has not); "
            "compare runs over the same tasks"
        )
    pairs = [(a.task(name), b.task(name)) for name in names_a]
    if not pairs:
        raise ValueError("the reports hold no task")
    for x, y in pairs:
        check_comparable(x, y)
    return pairs


def check_comparable(a: TaskResult, b: TaskResult) -> None:
    """See that two results answer the same question.

    Raises:
        ValueError: another task, definition or main metric.
    """
    if a.name != b.name:
        raise ValueError(f"{a.name} and {b.name} are different tasks")
    if a.definition != b.definition:
        raise ValueError(
            f"{a.name}: one run was on definition {a.definition or '(none)'}, the other on {b.definition or '(none)'}: "
            "data, splits, subsets or metric differ; evaluate both on the same definition"
        )
    if a.main_metric != b.main_metric:
        raise ValueError(f"{a.name}: the main metric is {a.main_metric} in one run and {b.main_metric} in the other")


def by_language(report: Report) -> dict[str, dict[str, float]]:
    """Language (or subset) -> task -> main metric, of the tasks that report them."""
    found: dict[str, dict[str, float]] = {}
    for task in report.tasks:
        for language, metrics in task.subsets.items():
            if task.main_metric in metrics:
                found.setdefault(language, {})[task.name] = metrics[task.main_metric]
    return dict(sorted(found.items()))


def contamination(test_texts: Iterable[str], training_texts: Iterable[str]) -> float:
    """Share of the test texts that occur in the training texts, compared as when duplicates are dropped.

    Exact after normalisation: paraphrases and near-duplicates are not found, so that this is a lower bound.

    Raises:
        ValueError: no test texts.
    """
    wanted = [text_hash(text) for text in test_texts]
    if not wanted:
        raise ValueError("there are no test texts")
    known = set(wanted)
    seen = {key for text in training_texts if (key := text_hash(text)) in known}
    return sum(key in seen for key in wanted) / len(wanted)


def with_provenance(
    report: Report, seen: Mapping[str, str] | None = None, contaminated: Mapping[str, float] | None = None
) -> Report:
    """The report with what is known of each task's place in training: task -> yes, no, unknown; task -> share.

    Raises:
        ValueError: a task that the report does not have.
    """
    seen, contaminated = seen or {}, contaminated or {}
    unknown = sorted({*seen, *contaminated} - {task.name for task in report.tasks})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not in the report of {report.model}")
    tasks = tuple(
        replace(
            task,
            seen_in_training=seen.get(task.name, task.seen_in_training),
            contamination=contaminated.get(task.name, task.contamination),
        )
        for task in report.tasks
    )
    return replace(report, tasks=tasks)


def declared_training(model: str, tasks: Iterable[str]) -> dict[str, str]:
    """Task -> ``yes``, ``no`` or ``unknown`` for tasks of the benchmarks, as the model's makers declared.

    Args:
        model: a name of the published tables, such as ``Qwen3-Embedding-0.6B``; others are unknown.
        tasks: names of benchmark tasks.
    """
    seen = load_published().trained_on.get(model)
    return {task: "unknown" if seen is None else "yes" if task in seen else "no" for task in tasks}


def _differences(a: TaskResult, b: TaskResult) -> FloatVector:
    if not a.per_query or not b.per_query:
        raise ValueError(f"{a.name}: no values per query, and a paired test needs them")
    if a.per_query.keys() != b.per_query.keys():
        only = sorted(a.per_query.keys() ^ b.per_query.keys())
        raise ValueError(f"{a.name}: {len(only)} queries are in one run only, such as {only[0]!r}")
    order = sorted(a.per_query)
    return np.array([b.per_query[query] - a.per_query[query] for query in order])


def _values(values: Sequence[float] | FloatVector) -> FloatVector:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0 or not np.isfinite(values_N).all():
        raise ValueError(f"wanted a row of one or more finite numbers; got shape {values_N.shape}")
    return values_N


def _percentiles(means_R: FloatVector, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level={level}; wanted a share between 0 and 1, such as 0.95")
    tail = (1 - level) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(values_N: FloatVector, resamples: int, rng: np.random.Generator) -> FloatVector:
    def draw(count: int) -> FloatVector:
        rows_RN = rng.integers(0, len(values_N), size=(count, len(values_N)))
        return np.asarray(values_N[rows_RN].mean(axis=1))

    return _in_chunks(draw, resamples, len(values_N))


def _flipped_sums(values_N: FloatVector, resamples: int, rng: np.random.Generator) -> FloatVector:
    def draw(count: int) -> FloatVector:
        signs_RN = rng.integers(0, 2, size=(count, len(values_N)), dtype=np.int8) * 2 - 1
        return np.asarray(signs_RN @ values_N)

    return _in_chunks(draw, resamples, len(values_N))


def _in_chunks(draw: Callable[[int], FloatVector], resamples: int, width: int) -> FloatVector:
    """So many rows at a time that memory stays bounded."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; wanted 1 or more, such as 10000")
    size = max(1, _CHUNK // width)
    return np.concatenate([draw(min(size, resamples - start)) for start in range(0, resamples, size)])
