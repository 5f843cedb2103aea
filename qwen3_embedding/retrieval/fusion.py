"""Several rankings into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ranking = list[tuple[str, float]]
"""Ids with scores, best first."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """Settings of reciprocal rank fusion."""

    dense_weight: float = 1.0
    text_weight: float = 1.0
    k: int = 60

    def __post_init__(self) -> None:
        for name in ("dense_weight", "text_weight"):
            weight = getattr(self, name)
            if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"{name}={weight!r}; wanted a number from 0 up")
        if self.dense_weight == self.text_weight == 0:
            raise ValueError("dense_weight and text_weight are both 0; one leg must count")
        if self.k < 1:
            raise ValueError(f"k={self.k}; wanted 1 or more (60 is the usual constant)")


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
