"""Ranking and similarity metrics, through the field's own libraries.

Rankings go through ``ir_measures`` to trec_eval's code: linear gain, and equal scores ordered by document id downwards.
Similarity and label metrics follow the definitions of MTEB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import AP, RR, P, R, nDCG

from qwen3_embedding.optional import require
from qwen3_embedding.types import FloatArray

Qrels = Mapping[str, Mapping[str, int]]
"""Query id → document id → grade; 0 is judged and not relevant."""
Run = Mapping[str, Mapping[str, float]]
"""Query id → document id → score."""

RANKING_METRICS = ("ndcg@10", "recall@100", "mrr@10", "map")
_NAME = re.compile(r"(ndcg|recall|mrr|map|precision)(?:@([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Scores of a run, 0 to 1: metric → query id → value."""

    per_query: Mapping[str, Mapping[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """Metric → mean over the judged queries."""
        return {metric: math.fsum(values.values()) / len(values) for metric, values in self.per_query.items()}


def evaluate_run(qrels: Qrels, run: Run, metrics: Sequence[str] = RANKING_METRICS) -> RankingScores:
    """Score a run.

    Args:
        qrels: judgements of every query that is to count.
        run: for every judged query its documents and scores; a search that found nothing has an empty mapping there.
        metrics: ``ndcg``, ``recall``, ``mrr``, ``map``, ``precision``, each with ``@k`` or (not precision) without.

    Raises:
        ValueError: no judgement; a query without a relevant document; queries that only one of both has; a score that
            is not finite; an unknown metric.
    """
    for name in metrics:
        _parse(name)
    _check_qrels(qrels)
    _check_run(qrels, run)
    measures = {_measure(name): name for name in metrics}
    values: dict[str, dict[str, float]] = {name: {} for name in metrics}
    plain_run = {query: dict(documents) for query, documents in run.items()}
    for found in ir_measures.iter_calc(list(measures), {q: dict(grades) for q, grades in qrels.items()}, plain_run):
        name = measures[found.measure]
        values[name][found.query_id] = _cut_reciprocal_rank(name, found.value)
    return RankingScores({name: {query: values[name].get(query, 0.0) for query in qrels} for name in metrics})


def spearman(predicted: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank.

    Raises:
        ValueError: fewer than two values, different lengths, or one side constant: there it does not exist.
    """
    left, right = _finite(predicted, "predicted"), _finite(wanted, "wanted")
    if left.shape != right.shape or left.size < 2:
        raise ValueError(f"{left.size} predicted and {right.size} wanted values; wanted the same number, at least 2")
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        raise ValueError("all values of one side are equal; a rank correlation does not exist")
    stats = require("scipy.stats", extra="eval")
    return float(np.corrcoef(stats.rankdata(left), stats.rankdata(right))[0, 1])


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the precision-recall steps, equal scores taken as one step.

    Raises:
        ValueError: labels other than 0 and 1, or only one of them.
    """
    found, truth = _finite(scores, "scores"), np.asarray(labels)
    if found.shape != truth.shape or set(np.unique(truth).tolist()) != {0, 1}:
        raise ValueError("wanted one label a score, 0 or 1, and both of them to occur")
    return float(require("sklearn.metrics", extra="eval").average_precision_score(truth, found))


def bitext_scores(sources_ND: FloatArray, targets_ND: FloatArray) -> dict[str, float]:
    """Match every source with the target of the highest cosine; row i belongs to row i.

    Returns:
        ``accuracy`` (a target with the same vector as the right one counts as right, whichever comes first) and ``f1``
        as MTEB has it (of each target, weighted by how often it is right).
    """
    return bitext_matches(sources_ND, targets_ND)[1]


def bitext_matches(sources_ND: FloatArray, targets_ND: FloatArray) -> tuple[npt.NDArray[np.bool_], dict[str, float]]:
    """Which sources found their target, and what :func:`bitext_scores` makes of it."""
    if sources_ND.shape != targets_ND.shape or not len(sources_ND):
        raise ValueError(f"sources {sources_ND.shape} and targets {targets_ND.shape}; wanted the same shape, not empty")
    best_N = np.concatenate(
        [np.argmax(block @ targets_ND.T, axis=1) for block in np.array_split(sources_ND, _blocks(sources_ND))]
    )
    truth_N = np.arange(len(best_N))
    sklearn = require("sklearn.metrics", extra="eval")
    same_N = best_N == truth_N
    same_N |= (targets_ND[best_N] == targets_ND).all(axis=1)
    f1 = sklearn.f1_score(truth_N, np.where(same_N, truth_N, best_N), average="weighted", zero_division=0)
    return same_N, {"accuracy": float(same_N.mean()), "f1": float(f1)}


def classification_scores(
    train_ND: FloatArray, train_labels: Sequence[Any], test_ND: FloatArray, test_labels: Sequence[Any], seed: int = 42
) -> dict[str, float]:
    """Accuracy and macro F1 of a logistic regression on frozen vectors. Errors as :func:`predict_labels`."""
    return label_scores(predict_labels(train_ND, train_labels, test_ND, test_labels, seed), test_labels)


def predict_labels(
    train_ND: FloatArray, train_labels: Sequence[Any], test_ND: FloatArray, test_labels: Sequence[Any], seed: int = 42
) -> list[Any]:
    """What a logistic regression on frozen vectors takes the test texts for.

    Raises:
        ValueError: fewer than two labels, or labels in the test that training does not have.
    """
    unknown = sorted({str(label) for label in test_labels} - {str(label) for label in train_labels})
    if unknown:
        raise ValueError(f"{len(unknown)} labels occur in the test only, such as {unknown[0]!r}")
    if len(set(train_labels)) < 2:
        raise ValueError("the training texts have one label; wanted two or more")
    linear = require("sklearn.linear_model", extra="eval")
    model = linear.LogisticRegression(max_iter=1000, random_state=seed).fit(train_ND, list(train_labels))
    return list(model.predict(test_ND))


def label_scores(predicted: Sequence[Any], wanted: Sequence[Any]) -> dict[str, float]:
    """Accuracy and macro F1 of labels."""
    metrics = require("sklearn.metrics", extra="eval")
    return {
        "accuracy": float(metrics.accuracy_score(list(wanted), list(predicted))),
        "f1": float(metrics.f1_score(list(wanted), list(predicted), average="macro")),
    }


def clustering_scores(vectors_ND: FloatArray, labels: Sequence[Any], seed: int = 42) -> dict[str, float]:
    """V-measure of a k-means with as many clusters as labels.

    Raises:
        ValueError: fewer than two labels.
    """
    if len(set(labels)) < 2:
        raise ValueError("the texts have one label; wanted two or more")
    cluster, metrics = require("sklearn.cluster", extra="eval"), require("sklearn.metrics", extra="eval")
    means = cluster.KMeans(n_clusters=len(set(labels)), n_init=4, random_state=seed).fit(vectors_ND)
    return {"v_measure": float(metrics.v_measure_score(list(labels), means.labels_))}


def _blocks(sources_ND: FloatArray) -> int:
    """Parts small enough that a block of similarities stays under 100 MB."""
    return max(1, math.ceil(len(sources_ND) ** 2 * 4 / 100e6))


def _parse(name: str) -> tuple[str, int | None]:
    match = _NAME.fullmatch(name)
    if match is None or name == "precision":
        raise ValueError(f"unknown metric {name!r}; wanted ndcg, recall, mrr, map or precision, such as 'ndcg@10'")
    return match.group(1), int(match.group(2)) if match.group(2) else None


def _measure(name: str) -> Any:
    kind, cut = _parse(name)
    if kind == "mrr":
        return RR  # ir_measures takes RR@k from another program, which orders equal scores otherwise; cut below
    measure = {"ndcg": nDCG, "recall": R, "map": AP, "precision": P}[kind]
    if kind == "recall" and cut is None:
        return R @ 1_000_000
    return measure if cut is None else measure @ cut


def _cut_reciprocal_rank(name: str, value: float) -> float:
    kind, cut = _parse(name)
    if kind == "mrr" and cut is not None and value * cut < 1 - 1e-9:
        return 0.0
    return float(value)


def _check_qrels(qrels: Qrels) -> None:
    if not qrels:
        raise ValueError("there are no judgements; an evaluation needs at least one")
    for query, grades in qrels.items():
        if not any(grade > 0 for grade in grades.values()):
            raise ValueError(f"query {query!r} has no relevant document; leave it out of the judgements")


def _check_run(qrels: Qrels, run: Run) -> None:
    for side, other, words in (
        (qrels, run, "are judged and not in the run (where nothing was found, put an empty mapping)"),
        (run, qrels, "are in the run and have no judgement"),
    ):
        missing = [query for query in side if query not in other]
        if missing:
            raise ValueError(f"{len(missing)} queries {words}, such as {missing[0]!r}")
    for query, documents in run.items():
        if math.isfinite(sum(documents.values())):  # a sum is finite where every part is, and much faster to look at
            continue
        bad = [document for document, score in documents.items() if not math.isfinite(score)]
        if bad:
            raise ValueError(f"query {query!r}: the score of {bad[0]!r} is {documents[bad[0]]}; wanted finite scores")


def _finite(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} is not a row of finite numbers")
    return found
