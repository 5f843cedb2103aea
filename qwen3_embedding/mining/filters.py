"""Which candidates may be negatives: pure functions on scores and content hashes.

Each candidate gets one verdict: the first rule that it breaks, in the order below.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qwen3_embedding.mining.settings import FilterSettings, VerifySettings
from qwen3_embedding.types import FloatArray, IntArray

Verdicts = npt.NDArray[np.int8]


class Verdict(IntEnum):
    """What became of a candidate."""

    PASSED = 0
    """Not dropped by any rule so far."""
    SELF = 1
    """Same content as the query."""
    POSITIVE = 2
    """Same content as a positive of any record with this query."""
    EXISTING = 3
    """The record has it as a negative already."""
    SKIPPED = 4
    """Among the best ``skip_first``."""
    MAX_SCORE = 5
    POSITIVE_SHARE = 6
    MARGIN = 7
    MIN_SCORE = 8
    RERANKER = 9
    """The reranker takes it for an answer."""
    UNUSED = 10
    """Passed, and not needed."""
    KEPT = 11


def share_bound(positive: float, share: float) -> float:
    """Highest score that a negative may have beside a positive: ``p - (1 - share) |p|``.

    For ``p >= 0`` this is ``share * p``. For ``p < 0`` that product would lie above ``p`` and let everything pass that
    scores better than the positive.
    """
    return positive - (1.0 - share) * abs(positive)


def ceiling(positive: float, settings: FilterSettings) -> float:
    """Highest score that passes all of ``max_score``, ``positive_share`` and ``margin``."""
    bounds = [math.inf if settings.max_score is None else settings.max_score]
    if settings.positive_share is not None:
        bounds.append(share_bound(positive, settings.positive_share))
    if settings.margin is not None:
        bounds.append(positive - settings.margin)
    return min(bounds)


def judge(
    scores_K: FloatArray,
    hashes_K: IntArray,
    query_hash: int,
    positives: set[int],
    existing: set[int],
    positive_score: float,
    settings: FilterSettings,
) -> Verdicts:
    """Verdicts of the rules that need no reranker.

    Args:
        scores_K: cosines of the candidates, best first.
        hashes_K: their content hashes.
        query_hash: content hash of the query.
        positives: content hashes of all positives known for this query.
        existing: content hashes of the record's own negatives.
        positive_score: lowest cosine among the record's positives.
        settings: the bounds.
    """
    verdicts = np.zeros(len(scores_K), np.int8)

    def mark(broken_K: npt.NDArray[np.bool_], verdict: Verdict) -> None:
        verdicts[broken_K & (verdicts == Verdict.PASSED)] = verdict

    mark(hashes_K == query_hash, Verdict.SELF)
    mark(_is_in(hashes_K, positives), Verdict.POSITIVE)
    mark(_is_in(hashes_K, existing), Verdict.EXISTING)
    if settings.skip_first:
        left_K = verdicts == Verdict.PASSED
        mark(left_K & (np.cumsum(left_K) <= settings.skip_first), Verdict.SKIPPED)
    if settings.max_score is not None:
        mark(scores_K > settings.max_score, Verdict.MAX_SCORE)
    if settings.positive_share is not None:
        mark(scores_K > share_bound(positive_score, settings.positive_share), Verdict.POSITIVE_SHARE)
    if settings.margin is not None:
        mark(scores_K > positive_score - settings.margin, Verdict.MARGIN)
    if settings.min_score is not None:
        mark(scores_K < settings.min_score, Verdict.MIN_SCORE)
    return verdicts


def verify(
    verdicts_K: Verdicts, places_V: IntArray, scores_V: FloatArray, positive: float, settings: VerifySettings
) -> None:
    """Mark what the reranker takes for an answer, in place.

    Args:
        verdicts_K: verdicts so far.
        places_V: candidates that were scored.
        scores_V: the reranker's scores of these.
        positive: the reranker's lowest score among the record's positives.
        settings: the bounds.
    """
    broken_V = np.zeros(len(scores_V), bool)
    if settings.max_score is not None:
        broken_V |= scores_V > settings.max_score
    if settings.positive_share is not None:
        broken_V |= scores_V > settings.positive_share * positive
    verdicts_K[places_V[broken_V]] = Verdict.RERANKER


def choose(places_P: IntArray, count: int, sampling: str, seed: int, record_key: int) -> IntArray:
    """``count`` of the places that passed, in order of rank: the first, or a draw by seed and record alone."""
    if sampling == "top" or len(places_P) <= count:
        return places_P[:count]
    generator = np.random.default_rng([seed, record_key % 2**64])
    return np.sort(generator.choice(places_P, count, replace=False))


def _is_in(hashes_K: IntArray, known: set[int]) -> npt.NDArray[np.bool_]:
    return np.fromiter((int(value) in known for value in hashes_K), bool, len(hashes_K))
