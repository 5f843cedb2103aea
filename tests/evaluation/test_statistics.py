"""Intervals and tests against scipy, on data with ties, and on worlds where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qwen3_embedding.evaluation.following import p_mrr
from qwen3_embedding.evaluation.metrics import average_precision, spearman
from qwen3_embedding.evaluation.results import Report, TaskResult
from qwen3_embedding.evaluation.statistics import (
    bootstrap_interval,
    by_language,
    compare_overall,
    compare_reports,
    compare_tasks,
    contamination,
    declared_training,
    holm,
    mean_interval,
    randomisation_p_value,
    resampled_scores,
    with_provenance,
)


def _task(name: str, values: np.ndarray, definition: str = "d", metric: str = "ndcg_at_10") -> TaskResult:
    per_query = {f"q{i}": float(value) for i, value in enumerate(values)}
    mean = float(np.mean(values))
    return TaskResult(name, "retrieval", metric, {metric: mean}, definition, len(values), per_query=per_query)


def test_bootstrap_agrees_with_scipy_and_is_seeded() -> None:
    values = np.random.default_rng(3).beta(2, 5, size=200)
    found = bootstrap_interval(values, resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.low, abs=1e-3)
    assert found.high == pytest.approx(theirs.high, abs=1e-3)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval([0.5] * 7).low == bootstrap_interval([0.5] * 7).high == 0.5


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        found = bootstrap_interval(rng.random(80), level=0.9, resamples=500, seed=trial)
        inside += found.low <= 0.5 <= found.high
    assert 0.84 <= inside / 300 <= 0.95  # 90 percent, less 80 values' small-sample loss, give or take three sigma


@pytest.mark.parametrize("size", [5, 10])
def test_exact_p_value_equals_scipy_with_ties(size: int) -> None:
    """Few values from a coarse grid: equal statistics, zero differences and all."""
    rng = np.random.default_rng(size)
    for _ in range(20):
        differences = rng.integers(-2, 4, size=size) / 4
        if not differences.any():
            continue
        theirs = stats.permutation_test(
            (differences, np.zeros(size)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
        )
        assert randomisation_p_value(differences) == pytest.approx(min(theirs.pvalue, 1.0), abs=1e-9)


def test_random_p_value_agrees_with_scipy() -> None:
    differences = np.random.default_rng(5).normal(0.1, 1.0, size=150)
    theirs = stats.permutation_test(
        (differences, np.zeros(150)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert randomisation_p_value(differences, resamples=20_000) == pytest.approx(theirs.pvalue, abs=0.015)


def test_all_ties_and_one_sided_worlds() -> None:
    assert randomisation_p_value(np.zeros(50)) == 1.0
    assert randomisation_p_value([0.1]) == 1.0  # one query proves nothing
    assert randomisation_p_value([0.1] * 5) == 2 / 32
    assert randomisation_p_value([0.1] * 100, resamples=999) == 1 / 1000  # never 0
    # float noise must not tell equal statistics apart: 0.1 + 0.2 against 0.3
    assert randomisation_p_value([0.1, 0.2, -0.3]) == 1.0


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(8)
    found = [randomisation_p_value(rng.normal(size=40), resamples=400, seed=i) for i in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_comparison_of_a_task() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(120)
    better = base + 0.05
    better[:30] = base[:30]
    found = compare_tasks(_task("t", base), _task("t", better))
    assert (found.wins, found.ties, found.losses) == (90, 30, 0)
    assert found.difference.value == pytest.approx(0.0375)
    assert found.difference.low > 0
    assert found.p_value < 0.001
    back = compare_tasks(_task("t", better), _task("t", base))
    assert back.difference.value == pytest.approx(-0.0375)
    assert back.p_value == found.p_value


def test_reports_compared_with_correction_and_overall() -> None:
    rng = np.random.default_rng(4)
    values = {name: rng.random(60) for name in "abcd"}
    noise = {name: rng.normal(0, 0.1, 60) for name in "abcd"}
    first = Report("A", tuple(_task(name, v) for name, v in values.items()))
    second = Report("B", tuple(_task(name, v + noise[name] + 0.05 * (name == "a")) for name, v in values.items()))
    found = compare_reports(first, second)
    assert [item.task for item in found] == list("abcd")
    assert [item.p_corrected for item in found] == pytest.approx(holm([item.p_value for item in found]))
    overall = compare_overall(first, second)
    assert overall.difference.value == pytest.approx(second.mean_task - first.mean_task)
    assert overall.difference.low < overall.difference.value < overall.difference.high
    assert overall.tasks == 4
    assert overall.tasks_p_value == pytest.approx(
        randomisation_p_value([y.score - x.score for x, y in zip(first.tasks, second.tasks, strict=True)])
    )
    same = compare_overall(first, first)
    assert (same.difference.value, same.p_value, same.tasks_p_value, same.ties) == (0, 1.0, 1.0, 4)
    shifted = Report("C", tuple(_task(name, v + 0.1) for name, v in values.items()))
    assert compare_overall(first, shifted).p_value < 0.001


def test_what_cannot_be_compared() -> None:
    a, b = _task("t", np.ones(3)), _task("t", np.ones(4))
    with pytest.raises(ValueError, match="1 queries are in one run only, such as 'q3'"):
        compare_tasks(a, b)
    with pytest.raises(ValueError, match="one run was on definition d, the other on e"):
        compare_tasks(a, _task("t", np.ones(3), definition="e"))
    with pytest.raises(ValueError, match="main metric is ndcg_at_10 in one run and map"):
        compare_tasks(a, _task("t", np.ones(3), metric="map"))
    with pytest.raises(ValueError, match="1 tasks are in one report only, such as 'u' \\(N has it, M has not\\)"):
        compare_reports(Report("M", (a,)), Report("N", (a, _task("u", np.ones(3)))))
    with pytest.raises(ValueError, match="no values per query"):
        compare_tasks(TaskResult("t", "sts", "m", {"m": 0.1}), TaskResult("t", "sts", "m", {"m": 0.1}))
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_interval([math.nan])
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_interval([0.1, 0.2], level=95)


def test_provenance_and_languages() -> None:
    task = TaskResult("t", "sts", "m", {"m": 0.5}, subsets={"de": {"m": 0.4}, "ar": {"m": 0.6, "other": 0.1}})
    report = Report("M", (task, TaskResult("u", "sts", "m", {"m": 0.5}, subsets={"de": {"m": 0.7}})))
    assert by_language(report) == {"ar": {"t": 0.6}, "de": {"t": 0.4, "u": 0.7}}
    known = with_provenance(report, seen={"t": "yes"}, contaminated={"t": 0.25})
    assert (known.task("t").seen_in_training, known.task("t").contamination) == ("yes", 0.25)
    assert known.task("u") == report.task("u")
    with pytest.raises(ValueError, match="'x' is not in the report of M"):
        with_provenance(report, seen={"x": "yes"})
    assert declared_training("Qwen3-Embedding-0.6B", ["T2Retrieval", "SCIDOCS"]) == {
        "T2Retrieval": "yes",
        "SCIDOCS": "no",
    }
    assert declared_training("someone's", ["SCIDOCS"]) == {"SCIDOCS": "unknown"}


def test_contamination() -> None:
    training = ["What is  an Owl?", "nothing", "Straße"]
    assert contamination(["what is an owl?", "what is an owl?", "else", "STRASSE"], training) == 0.75
    with pytest.raises(ValueError, match="no test texts"):
        contamination([], training)


def test_p_mrr_by_hand() -> None:
    original = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    fell = {"q": {"a": 1.0, "b": 3.0, "c": 2.0}}
    assert p_mrr(original, fell, {"q": ["a"]}) == {"q": pytest.approx(1 - 1 / 3)}
    assert p_mrr(fell, original, {"q": ["a"]}) == {"q": pytest.approx(1 / 3 - 1)}
    assert p_mrr(original, original, {"q": ["a", "b"]}) == {"q": 0.0}
    assert p_mrr(original, fell, {"q": ["missing"]}) == {"q": 0.0}


def test_p_mrr_does_not_move_with_the_order_of_insertion() -> None:
    scores = {f"d{i}": round(float(v), 1) for i, v in enumerate(np.random.default_rng(1).random(30))}
    backwards = dict(reversed(scores.items()))
    assert p_mrr({"q": scores}, {"q": backwards}, {"q": list(scores)}) == {"q": 0.0}


@pytest.mark.parametrize(
    ("original", "changed", "documents", "words"),
    [
        ({}, {"q": {"a": 1.0}}, {"q": ["a"]}, "'q' is not in the original run"),
        ({"q": {"a": 1.0}}, {}, {"q": ["a"]}, "'q' is not in the changed run"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1.0}}, {"q": []}, "no changed document"),
        ({"q": {"a": math.nan}}, {"q": {"a": 1.0}}, {"q": ["a"]}, "the score of 'a' is nan"),
        ({}, {}, {}, "p-MRR does not exist"),
    ],
)
def test_p_mrr_refuses(original: dict, changed: dict, documents: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        p_mrr(original, changed, documents)


def test_intervals_of_whole_metrics_agree_with_scipy() -> None:
    """Spearman's correlation over pairs drawn anew, against scipy's paired bootstrap."""
    rng = np.random.default_rng(2)
    left = rng.normal(size=150)
    right = left + rng.normal(size=150)
    values = resampled_scores(lambda rows: spearman(left[rows], right[rows]), 150, seed=5)
    low, high = np.quantile(values, [0.025, 0.975])
    theirs = stats.bootstrap(
        (left, right),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(8),
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.02)
    assert high == pytest.approx(theirs.high, abs=0.02)
    assert np.array_equal(values, resampled_scores(lambda rows: spearman(left[rows], right[rows]), 150, seed=5))


def test_samples_without_a_metric_are_nan() -> None:
    labels = np.array([1, 0, 0, 0])
    values = resampled_scores(lambda rows: average_precision(labels[rows] * 1.0, labels[rows]), 4, resamples=200)
    assert 0.2 < np.isnan(values).mean() < 0.5  # no 1 in four draws: 0.75 ** 4 = 0.32
    assert set(values[~np.isnan(values)]) == {1.0}


def test_mean_over_tasks_has_narrower_intervals_than_its_parts() -> None:
    rng = np.random.default_rng(4)
    samples = [rng.random(80).tolist() for _ in range(6)]
    whole = mean_interval(samples)
    assert whole.value == pytest.approx(np.mean([np.mean(values) for values in samples]))
    assert whole.low < whole.value < whole.high
    part = bootstrap_interval(samples[0])
    assert (part.high - part.low) / (whole.high - whole.low) == pytest.approx(math.sqrt(6), rel=0.25)
    assert mean_interval(samples[:1]).low == pytest.approx(part.low, abs=2e-3)
