"""Two rankings into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from qwen3_embedding.types import FloatArray

Method = Literal["rank", "score"]
Ranking = list[tuple[str, float]]
"""Ids with scores, best first."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two rankings, by vectors and by full text, become one."""

    dense_weight: float = 1.0
    text_weight: float = 1.0
    k: int = 60
    """Of reciprocal rank fusion."""
    method: Method = "rank"
    """``rank``: reciprocal rank fusion. ``score``: a weighted sum of cosine and BM25 over the query's best BM25."""

    def __post_init__(self) -> None:
        for name in ("dense_weight", "text_weight"):
            weight = getattr(self, name)
            if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"{name}={weight!r}; wanted a number from 0 up")
        if self.dense_weight == self.text_weight == 0:
            raise ValueError("dense_weight and text_weight are both 0; one leg must count")
        if self.k < 1:
            raise ValueError(f"k={self.k}; wanted 1 or more (60 is the usual constant)")
        if self.method not in get_args(Method):
            raise ValueError(f"method={self.method!r}; wanted one of {', '.join(get_args(Method))}")

    def fuse(self, dense: Ranking, text: Ranking) -> Ranking:
        """One ranking of the documents of both, best first."""
        if self.method == "score":
            return score_fusion(dense, text, self.dense_weight, self.text_weight)
        return reciprocal_rank_fusion([dense, text], (self.dense_weight, self.text_weight), self.k)


def check_rerank_weight(weight: float) -> None:
    """Raises ``ValueError`` for what is no share."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise ValueError(f"rerank_weight={weight!r}; wanted a number from 0 (the first stage) to 1 (the reranker)")


def interpolate(first_N: FloatArray, reranker_N: FloatArray, weight: float) -> FloatArray:
    """(N,) ``(1 - weight) * first + weight * reranker``: what orders candidates when the first stage keeps a say.

    Both are stretched to 0..1 over the candidates first, for their scales have nothing to do with each other; scores
    that are all equal count as 0.  N may be 0.  A weight of 1 gives the reranker's own scores back, as they are.

    Source: interpolation of first-stage and reranker scores, as in Wang, Zhuang and Zuccon 2021, "BERT-based Dense
    Retrievers Require Interpolation with BM25 for Effective Passage Retrieval".
    """
    if weight == 1:
        return reranker_N
    return (1 - weight) * _stretched(first_N) + weight * _stretched(reranker_N)


def _stretched(scores_N: FloatArray) -> FloatArray:
    if not scores_N.size or scores_N.min() == scores_N.max():
        return np.zeros(len(scores_N), dtype=np.float32)
    return np.asarray((scores_N - scores_N.min()) / np.ptp(scores_N), dtype=np.float32)


def best_first(ranking: Ranking) -> Ranking:
    """Sorted by score downwards; equal scores by id, so that a ranking never depends on storage order."""
    return sorted(ranking, key=lambda item: (-item[1], item[0]))


def reciprocal_rank_fusion(rankings: Sequence[Ranking], weights: Sequence[float], k: int = 60) -> Ranking:
    """Weighted reciprocal rank fusion: a document's score is the sum of ``weight / (k + rank)``, ranks from 1.

    Source: Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods", where k = 60.
    """
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight:
            for rank, (identity, _) in enumerate(ranking, start=1):
                scores[identity] = scores.get(identity, 0.0) + weight / (k + rank)
    return best_first(list(scores.items()))


def score_fusion(dense: Ranking, text: Ranking, dense_weight: float = 1.0, text_weight: float = 1.0) -> Ranking:
    """A document's score is ``dense_weight * cosine + text_weight * bm25 / best bm25``.

    What the dense ranking does not hold has its lowest cosine, the most that it can be; what the text ranking does not
    hold has 0.  Against ranks, this keeps how far apart the scores are: a query whose words all stand in one document
    stays with it.

    Source: a convex combination with theoretical bounds for BM25, after Bruch, Gai and Ingber 2023, "An Analysis of
    Fusion Functions for Hybrid Retrieval" (arXiv 2210.11934).
    """
    cosines, lexical = dict(dense), dict(text)
    lowest = min(cosines.values(), default=0.0)
    best = max(lexical.values(), default=0.0) or 1.0
    return best_first(
        [
            (identity, dense_weight * cosines.get(identity, lowest) + text_weight * lexical.get(identity, 0.0) / best)
            for identity in cosines | lexical
            if (dense_weight and identity in cosines) or (text_weight and identity in lexical)
        ]
    )
