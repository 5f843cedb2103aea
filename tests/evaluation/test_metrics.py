"""Metrics against pytrec_eval, scipy and scikit-learn, ties included."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import scipy.stats
import sklearn.metrics

from qwen3_embedding.evaluation.metrics import (
    average_precision,
    bitext_scores,
    classification_scores,
    clustering_scores,
    evaluate_run,
    spearman,
)

NAMES = {
    "ndcg@10": "ndcg_cut_10",
    "recall@100": "recall_100",
    "recall@5": "recall_5",
    "map": "map",
    "mrr": "recip_rank",
    "precision@3": "P_3",
    "ndcg": "ndcg",
    "map@10": "map_cut_10",
}


def random_run(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    chance = random.Random(seed)
    documents = [f"d{i}" for i in range(150)]
    qrels = {
        f"q{q}": {"d0": 1} | {d: chance.choice([0, 1, 2, 3]) for d in chance.sample(documents, 12)} for q in range(15)
    }
    for grades in qrels.values():
        grades["d1"] = 2
    run = {q: {d: float(chance.randint(0, 12)) for d in chance.sample(documents, 120)} for q in qrels}
    return qrels, run


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_are_pytrec_evals_on_runs_full_of_ties(seed: int) -> None:
    qrels, run = random_run(seed)
    found = evaluate_run(qrels, run, list(NAMES))
    measures = {"ndcg_cut.10", "recall.5,100", "map", "recip_rank", "P.3", "ndcg", "map_cut.10"}
    wanted = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for ours, theirs in NAMES.items():
        assert found.per_query[ours] == pytest.approx({q: wanted[q][theirs] for q in qrels}, abs=1e-9)
        assert found.mean[ours] == pytest.approx(np.mean([wanted[q][theirs] for q in qrels]), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mrr_at_k_is_mrr_of_the_first_k(seed: int) -> None:
    qrels, run = random_run(seed)
    plain = evaluate_run(qrels, run, ["mrr"]).per_query["mrr"]
    for cut in (1, 3, 10):
        found = evaluate_run(qrels, run, [f"mrr@{cut}"]).per_query[f"mrr@{cut}"]
        assert found == {q: value if round(1 / value) <= cut else 0.0 for q, value in plain.items()}


def test_known_values() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0}}
    scores = evaluate_run(qrels, {"q": {"c": 3.0, "a": 2.0, "x": 1.0, "b": 0.5}}).mean
    log2 = np.log2
    assert scores["ndcg@10"] == pytest.approx((2 / log2(3) + 1 / log2(5)) / (2 + 1 / log2(3)), abs=1e-9)
    assert scores["mrr@10"] == 0.5
    assert scores["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert scores["recall@100"] == 1.0


def test_nothing_found_is_zero_and_said() -> None:
    assert evaluate_run({"q": {"a": 1}}, {"q": {}}).mean["ndcg@10"] == 0.0


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ({}, {}, "no judgements"),
        ({"q": {}}, {"q": {}}, "no relevant document"),
        ({"q": {"a": 0}}, {"q": {"a": 1.0}}, "no relevant document"),
        ({"q": {"a": 1}, "r": {"a": 1}}, {"q": {}}, "1 queries are judged and not in the run .* such as 'r'"),
        ({"q": {"a": 1}}, {"q": {}, "r": {}}, "have no judgement, such as 'r'"),
        ({"q": {"a": 1}}, {"q": {"a": float("nan")}}, "'a' is nan"),
    ],
)
def test_what_cannot_be_scored_is_refused(qrels: Any, run: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_run(qrels, run)


@pytest.mark.parametrize("name", ["dcg@10", "ndcg@0", "precision", "ndcg@", "NDCG@10", ""])
def test_unknown_metrics_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown metric"):
        evaluate_run({"q": {"a": 1}}, {"q": {}}, [name])


def test_spearman_is_scipys_with_ties() -> None:
    chance = np.random.default_rng(0)
    for _ in range(10):
        left, right = chance.integers(0, 5, 40), chance.integers(0, 5, 40)
        assert spearman(left, right) == pytest.approx(scipy.stats.spearmanr(left, right).statistic, abs=1e-12)


@pytest.mark.parametrize(("left", "right"), [([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1, 2, 3]), ([1, np.nan], [1, 2])])
def test_spearman_of_nothing_is_refused(left: list[float], right: list[float]) -> None:
    with pytest.raises(ValueError, match=r"wanted|equal|finite"):
        spearman(left, right)


def test_average_precision_is_scikit_learns() -> None:
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 2, 200)
    scores = chance.integers(0, 20, 200) / 20
    assert average_precision(scores, labels) == sklearn.metrics.average_precision_score(labels, scores)
    with pytest.raises(ValueError, match="both"):
        average_precision([0.1, 0.2], [1, 1])


def unit(rows: int, seed: int, dimensions: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def test_bitext_accuracy_and_f1_are_scikit_learns() -> None:
    sources = unit(60, 3)
    targets = sources + 1.2 * unit(60, 4)
    targets = (targets / np.linalg.norm(targets, axis=1, keepdims=True)).astype(np.float32)
    found = bitext_scores(sources, targets)
    best = np.argmax(sources @ targets.T, axis=1)
    assert 0.3 < found["accuracy"] < 1.0
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(range(60), best))
    assert found["f1"] == pytest.approx(
        sklearn.metrics.f1_score(range(60), best, average="weighted", zero_division=0), abs=1e-9
    )


def test_bitext_with_twin_targets_counts_either() -> None:
    sources = unit(3, 0)
    targets = sources[[0, 0, 2]]
    assert bitext_scores(sources[[0, 0, 2]], targets)["accuracy"] == 1.0


def test_classification_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test = unit(60, 1), unit(40, 2)
    labels, truth = ["a" if v[0] > 0 else "b" for v in train], ["a" if v[0] > 0 else "b" for v in test]
    found = classification_scores(train, labels, test, truth)
    wanted = LogisticRegression(max_iter=100, random_state=42).fit(train, labels).score(test, truth)
    assert found["accuracy"] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="occur in the test only, such as 'c'"):
        classification_scores(train, labels, test, ["c"] * 40)
    with pytest.raises(ValueError, match="one label"):
        classification_scores(train, ["a"] * 60, test, ["a"] * 40)


def test_clustering_finds_clusters() -> None:
    centres = np.eye(4, 16, dtype=np.float32)
    labels = [i % 4 for i in range(40)]
    vectors = (centres[labels] + 0.01 * unit(40, 5)).astype(np.float32)
    assert clustering_scores(vectors, labels)["v_measure"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one label"):
        clustering_scores(vectors, [1] * 40)
