"""mteb's way to score labels from vectors: few-shot classification and resampled clustering, seed for seed.

The leaderboard's Classification and Clustering figures are means over ten small draws; a score on the full training
set or on one k-means is another measure.  These functions follow mteb's draws exactly, so that the same vectors give
the same figure.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from qwen3_embedding.evaluation.averages import mean
from qwen3_embedding.optional import require
from qwen3_embedding.types import FloatArray

SEED = 42


def few_shot_classification(
    train_ND: FloatArray,
    train_labels: Sequence[Hashable],
    test_ND: FloatArray,
    test_labels: Sequence[Hashable],
    samples_per_label: int = 8,
    experiments: int = 10,
) -> dict[str, float]:
    """Mean ``accuracy``, ``f1`` (macro) and ``f1_weighted`` of logistic regressions on a few samples a label.

    Each experiment shuffles the order that the last one left, with the same seed, and takes the first
    ``samples_per_label`` of every label.

    Raises:
        ValueError: another number of labels than vectors, or fewer than two labels.
    """
    _check(train_ND, train_labels, "training")
    _check(test_ND, test_labels, "test")
    linear, metrics = require("sklearn.linear_model", extra="eval"), require("sklearn.metrics", extra="eval")
    model = linear.LogisticRegression(max_iter=100, random_state=SEED)
    scores: dict[str, list[float]] = {"accuracy": [], "f1": [], "f1_weighted": []}
    order = list(range(len(train_labels)))
    for _ in range(experiments):
        np.random.RandomState(SEED).shuffle(order)
        chosen = _first_of_each(order, train_labels, samples_per_label)
        model.fit(train_ND[chosen], [train_labels[row] for row in chosen])
        predicted = model.predict(test_ND)
        truth = list(test_labels)
        scores["accuracy"].append(metrics.accuracy_score(truth, predicted))
        scores["f1"].append(metrics.f1_score(truth, predicted, average="macro"))
        scores["f1_weighted"].append(metrics.f1_score(truth, predicted, average="weighted"))
    return {name: mean(map(float, values)) for name, values in scores.items()}


def resampled_clustering(
    vectors_ND: FloatArray,
    labels: Sequence[Hashable],
    fraction: float | None = 0.04,
    sample: int = 16_384,
    experiments: int = 10,
    batch_size: int = 512,
) -> dict[str, float]:
    """Mean ``v_measure`` of mini-batch k-means on samples drawn with replacement.

    Args:
        vectors_ND: one row a text.
        labels: of the texts, one level.
        fraction: of the texts that is embedded at all, drawn first; ``None`` for all (most tasks set their own).
        sample: texts an experiment clusters.
        experiments: how many.
        batch_size: of the k-means.

    Raises:
        ValueError: another number of labels than vectors, or fewer than two labels.
    """
    _check(vectors_ND, labels, "texts")
    cluster, metrics = require("sklearn.cluster", extra="eval"), require("sklearn.metrics", extra="eval")
    rng = random.Random(SEED)
    if fraction is not None:
        rows = rng.sample(range(len(labels)), k=min(len(labels), int(fraction * len(labels))))
        vectors_ND, labels = vectors_ND[rows], [labels[row] for row in rows]
        _check(vectors_ND, labels, f"{fraction:.0%} of the texts")
    truth_N = np.array(labels)
    model = cluster.MiniBatchKMeans(
        n_clusters=len(set(labels)), batch_size=batch_size, init="k-means++", n_init=1, random_state=SEED
    )
    values = []
    for _ in range(experiments):
        drawn = rng.choices(range(len(labels)), k=sample)
        values.append(float(metrics.v_measure_score(truth_N[drawn], model.fit_predict(vectors_ND[drawn]))))
    return {"v_measure": mean(values)}


def _first_of_each(order: Sequence[int], labels: Sequence[Hashable], count: int) -> list[int]:
    taken: dict[Any, int] = {}
    chosen = []
    for row in order:
        if taken.get(labels[row], 0) < count:
            taken[labels[row]] = taken.get(labels[row], 0) + 1
            chosen.append(row)
    return chosen


def _check(vectors_ND: FloatArray, labels: Sequence[Hashable], what: str) -> None:
    if len(vectors_ND) != len(labels):
        raise ValueError(f"{what}: {len(vectors_ND)} vectors and {len(labels)} labels; wanted one label a vector")
    if len(set(labels)) < 2:
        raise ValueError(f"{what}: {len(set(labels))} different labels; wanted two or more")
