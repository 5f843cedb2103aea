"""Tasks that compare vectors with each other or with labels: STS, pairs, bitext, classification, clustering.

Scores come by language and are averaged over languages; for the intervals rows are drawn anew within each language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwen3_embedding.evaluation.cache import CachedEncoder
from qwen3_embedding.evaluation.collection import Pairs, TaskInfo, metric_name, read_labelled, read_pairs
from qwen3_embedding.evaluation.metrics import (
    average_precision,
    bitext_matches,
    clustering_scores,
    label_scores,
    predict_labels,
    spearman,
)
from qwen3_embedding.evaluation.statistics import (
    PAIR_RESAMPLES,
    FloatVector,
    bootstrap_interval,
    resampled_scores,
)
from qwen3_embedding.types import FloatArray

Embed = Callable[[Sequence[str]], FloatArray]


class Compared(NamedTuple):
    """What :class:`TaskScores` holds of such a task; its one column is the embedder."""

    counts: dict[str, int]
    scores: dict[str, dict[str, float]]
    per_language: dict[str, dict[str, float]]
    intervals: dict[str, list[float]]


def compare(
    folder: Path, info: TaskInfo, encoder: CachedEncoder, dimensions: int | None, instruction: str | None
) -> Compared:
    """Score the vectors of a task's texts.

    Args:
        folder: of the task.
        info: what it says of itself.
        encoder: of the texts.
        dimensions: size of the vectors; ``None`` the encoder's own.
        instruction: before every text (of a bitext: before the sources).

    Raises:
        DataError: data that cannot be read.
        NumericalError: vectors that are not finite.
    """

    def embed(texts: Sequence[str]) -> FloatArray:
        return encoder.embed_queries(texts, instruction, dimensions=dimensions)

    main = metric_name(info.main_metric)
    if info.kind == "clustering":
        test = read_labelled(folder / "test.jsonl")
        scores = clustering_scores(embed(test.texts), test.labels)
        return Compared({"texts": len(test.texts)}, {"embedder": scores}, {}, {})
    if info.kind == "classification":
        return _classify(folder, embed, main)
    pairs = read_pairs(folder, info.kind)
    left_ND = embed(pairs.left)
    if info.kind == "bitext":
        return _pairs(pairs, left_ND, encoder.embed_documents(pairs.right, dimensions), info.kind, main)
    return _pairs(pairs, left_ND, embed(pairs.right), info.kind, main)


def _classify(folder: Path, embed: Embed, main: str) -> Compared:
    train, test = read_labelled(folder / "train.jsonl"), read_labelled(folder / "test.jsonl")
    predicted = predict_labels(embed(train.texts), train.labels, embed(test.texts), test.labels)
    right = bootstrap_interval([float(one == wanted) for one, wanted in zip(predicted, test.labels, strict=True)])
    return Compared(
        {"train": len(train.texts), "texts": len(test.texts)},
        {"embedder": label_scores(predicted, test.labels)},
        {},
        {"embedder": [right.low, right.high]} if main == "accuracy" else {},
    )


def _pairs(pairs: Pairs, left_ND: FloatArray, right_ND: FloatArray, kind: str, main: str) -> Compared:
    groups = _groups(pairs.languages)
    values_N = np.array(pairs.values)
    per_group: dict[str, dict[str, float]] = {}
    means_R = np.zeros(PAIR_RESAMPLES)
    for language, rows in groups.items():
        if kind == "bitext":
            per_group[language], drawn_R = _translations(left_ND[rows], right_ND[rows])
        else:
            cosines_N = np.einsum("nd,nd->n", left_ND[rows], right_ND[rows])
            per_group[language], drawn_R = _similarities(cosines_N, values_N[rows], kind, main)
        means_R += drawn_R / len(groups)
    means = {
        name: math.fsum(found[name] for found in per_group.values()) / len(per_group)
        for name in next(iter(per_group.values()))
    }
    languages = {language: found[main] for language, found in per_group.items()} if len(groups) > 1 else {}
    return Compared(
        {"pairs": len(pairs.left)},
        {"embedder": means},
        {"embedder": languages} if languages else {},
        {} if main == "f1" else _interval(means_R),
    )


def _interval(means_R: FloatVector) -> dict[str, list[float]]:
    """Of the samples that have a metric; of too few rows none has."""
    finite_R = means_R[np.isfinite(means_R)]
    if not len(finite_R):
        return {}
    low, high = np.quantile(finite_R, [0.025, 0.975])
    return {"embedder": [float(low), float(high)]}


def _translations(left_ND: FloatArray, right_ND: FloatArray) -> tuple[dict[str, float], FloatVector]:
    right_N, scores = bitext_matches(left_ND, right_ND)
    return scores, resampled_scores(lambda rows_N: float(right_N[rows_N].mean()), len(right_N))


def _similarities(
    cosines_N: FloatArray, wanted_N: FloatVector, kind: str, main: str
) -> tuple[dict[str, float], FloatVector]:
    score = spearman if kind == "sts" else average_precision
    drawn_R = resampled_scores(lambda rows_N: score(cosines_N[rows_N], wanted_N[rows_N]), len(cosines_N))
    return {main: score(cosines_N, wanted_N)}, drawn_R


def _groups(languages: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, language in enumerate(languages):
        groups.setdefault(language, []).append(row)
    return groups
