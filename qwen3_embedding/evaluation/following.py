"""p-MRR: does a ranking follow when the instruction changes? The measure of FollowIR (Weller et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Run = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""


def p_mrr(original: Run, changed: Run, changed_documents: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """p-MRR of each query, in [-1, 1]; the task's score is their mean.

    For each document that the changed instruction makes irrelevant, with rank r under the original and s under the
    changed instruction: 1 - r / s when it fell (s > r), s / r - 1 when it rose. Right is falling, so that a model that
    follows is above 0.

    Equal scores are ranked by document id downwards, as trec_eval does, never by the order of insertion: the measure
    weighs ranks as 1 / r and would else move with the order in which a program happened to fill a dictionary.

    Args:
        original: run under the original instruction.
        changed: run under the changed instruction, the same query ids.
        changed_documents: query id -> the documents whose relevance the change takes away.

    Raises:
        ValueError: a query that one of the runs lacks; a query without changed documents; a score that is not finite.
    """
    if not changed_documents:
        raise ValueError("no query has changed documents; p-MRR does not exist")
    found: dict[str, float] = {}
    for query, documents in changed_documents.items():
        for name, run in (("original", original), ("changed", changed)):
            if query not in run:
                raise ValueError(f"query {query!r} is not in the {name} run")
        if not documents:
            raise ValueError(f"query {query!r} has no changed document; leave it out")
        before, after = _ranks(query, original[query]), _ranks(query, changed[query])
        values = [_change(before.get(d, len(before) + 1), after.get(d, len(after) + 1)) for d in documents]
        found[query] = math.fsum(values) / len(values)
    return found


def following_scores(
    rankings: Mapping[str, Sequence[tuple[str, float]]], changed: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """p-MRR of each query from rankings of ``QUERY-og`` and ``QUERY-changed``.

    Args:
        rankings: query id -> documents with scores.
        changed: query -> documents that the changed instruction makes irrelevant.
    """
    original = {query: dict(rankings[f"{query}-og"]) for query in changed}
    after = {query: dict(rankings[f"{query}-changed"]) for query in changed}
    return p_mrr(original, after, changed)


def halves(per_query: Mapping[str, float]) -> dict[str, float]:
    """A metric's mean under the original and under the changed instructions: ``original``, ``changed``."""
    found = {}
    for name, ending in (("original", "-og"), ("changed", "-changed")):
        values = [value for query, value in per_query.items() if query.endswith(ending)]
        found[name] = math.fsum(values) / len(values)
    return found


def _change(before: int, after: int) -> float:
    return after / before - 1 if before >= after else 1 - before / after


def _ranks(query: str, scores: Mapping[str, float]) -> dict[str, int]:
    bad = [document for document, score in scores.items() if not math.isfinite(score)]
    if bad:
        raise ValueError(f"query {query!r}: the score of {bad[0]!r} is {scores[bad[0]]}; wanted finite scores")
    ordered = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return {document: rank for rank, (document, _) in enumerate(ordered, start=1)}
