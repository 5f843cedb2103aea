"""How much an approximate search finds of what the exact one finds, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen3_embedding.retrieval.fusion import Ranking
from qwen3_embedding.retrieval.search import DenseQuery
from qwen3_embedding.types import FloatArray

_SAME = 1e-6
"""A document whose score is this near to the last exact one's is as good: equal vectors have no order."""


class Approximate(Protocol):
    """An index that can search both ways."""

    def retrieve_dense(self, vectors_QD: FloatArray, query: DenseQuery) -> list[Ranking]:
        """With its first pass."""
        ...

    def exact(self, vector_D: FloatArray, limit: int) -> Ranking:
        """Every vector compared."""
        ...


@dataclass(frozen=True, slots=True)
class Recall:
    """Against the exact search."""

    queries: int
    top_k: int
    recall: float
    """Mean share of the exact ``top_k`` (or documents of the same score) that were found."""
    worst: float
    """The query with the least."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    exact_p50_ms: float

    def __str__(self) -> str:
        """``recall@10 0.987 (worst query 0.800) of 200 queries; p50 0.41, p95 0.62, p99 0.80 ms, exact 95.20 ms``."""
        return (
            f"recall@{self.top_k} {self.recall:.3f} (worst query {self.worst:.3f}) of {self.queries} queries; "
            f"p50 {self.p50_ms:.2f}, p95 {self.p95_ms:.2f}, p99 {self.p99_ms:.2f} ms, exact {self.exact_p50_ms:.2f} ms"
        )


def measure_recall(index: Approximate, queries: tuple[FloatArray, Sequence[str] | None], top_k: int) -> Recall:
    """Ask every query both ways.

    Args:
        index: what is measured.
        queries: (Q, D) vectors, and for each the id that is left out of its results, where it is a document's own.
        top_k: how many are compared.

    Raises:
        ValueError: no query, or no document.
    """
    vectors_QD, own = queries
    if not len(vectors_QD) or top_k < 1:
        raise ValueError(f"{len(vectors_QD)} queries, top_k={top_k}; wanted an index with documents, and 1 or more")
    shares, fast_ms, exact_ms = [], [], []
    depth = top_k + (own is not None)
    index.retrieve_dense(vectors_QD[:1], DenseQuery(depth))  # opens what is opened once
    for number, vector_D in enumerate(vectors_QD):
        out = None if own is None else own[number]
        found, spent = _timed(lambda: index.retrieve_dense(vector_D[None, :], DenseQuery(depth))[0])  # noqa: B023
        wanted, exact_spent = _timed(lambda: index.exact(vector_D, depth))  # noqa: B023
        shares.append(_share(_without(found, out, top_k), _without(wanted, out, top_k)))
        fast_ms.append(spent * 1e3)
        exact_ms.append(exact_spent * 1e3)
    p50, p95, p99 = (float(value) for value in np.percentile(fast_ms, [50, 95, 99]))
    return Recall(len(shares), top_k, float(np.mean(shares)), min(shares), p50, p95, p99, float(np.median(exact_ms)))


def _share(found: Ranking, wanted: Ranking) -> float:
    if not wanted:
        return 1.0
    ids, cut = {identity for identity, _ in wanted}, wanted[-1][1] - _SAME
    hits = sum(identity in ids or score >= cut for identity, score in found)
    return min(1.0, hits / len(wanted))


def _without(ranking: Ranking, identity: str | None, limit: int) -> Ranking:
    return [item for item in ranking if item[0] != identity][:limit]


def _timed(work: Callable[[], Ranking]) -> tuple[Ranking, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began
