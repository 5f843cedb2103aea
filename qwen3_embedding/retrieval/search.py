"""Two-stage search: embed the query, retrieve candidates, rerank them; and how long each took."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import numpy as np

from qwen3_embedding.errors import NumericalError
from qwen3_embedding.retrieval.documents import Document, check_text, check_texts
from qwen3_embedding.retrieval.filters import Condition, Filter, parse_filter
from qwen3_embedding.retrieval.fusion import Fusion, Ranking, best_first, check_rerank_weight, interpolate
from qwen3_embedding.types import Encoder, FloatArray, Hit, Scorer, Vectors

Mode = Literal["dense", "text", "hybrid"]

_TRIAL, _CAUTION = 8, 0.9
"""Candidates that tell a reranker's rate, and the share of the time left that is filled at that rate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to answer a query."""

    top_k: int = 10
    candidates: int = 100
    """How many documents each leg brings to fusion and to the reranker."""
    mode: Mode = "dense"
    rerank: bool = True
    """Rerank the candidates where there is a reranker."""
    instruction: str | None = None
    """The task for query vectors and reranker; ``None`` is the web-search task of the model cards."""
    where: Filter | None = None
    fusion: Fusion = field(default_factory=Fusion)
    budget_ms: float | None = None
    """Milliseconds a query may take: reranking takes the best candidates first and ends in time. ``None``: all."""
    effort: int | None = None
    """How broadly an approximate index is searched; ``None`` is what the index was made with."""
    rerank_weight: float = 1.0
    """The reranker's share in the order of the candidates, the first stage having the rest; 1: its scores alone."""

    def __post_init__(self) -> None:
        for name in ("top_k", "candidates", *(["effort"] if self.effort is not None else [])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} is {type(value).__name__}; wanted a whole number from 1 up")
            if value < 1:
                raise ValueError(f"{name}={value}; wanted 1 or more")
        if self.budget_ms is not None and not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise ValueError(f"budget_ms={self.budget_ms}; wanted milliseconds above 0, or None for no limit")
        check_rerank_weight(self.rerank_weight)
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode={self.mode!r}; wanted one of {', '.join(get_args(Mode))}")
        if self.instruction is not None:
            check_text(self.instruction, "instruction")

    @property
    def depth(self) -> int:
        """How many candidates are retrieved: never fewer than are asked for."""
        return max(self.top_k, self.candidates)


@dataclass(slots=True)
class Timing:
    """Seconds spent on a call of search, all its queries together, by what they were spent on."""

    embed_s: float = 0.0
    candidates_s: float = 0.0
    """First pass of the vectors. Where the index keeps no smaller vectors, the exact search."""
    rescore_s: float = 0.0
    """Comparing the candidates of a first pass in float32."""
    text_s: float = 0.0
    """Full text, and fusing it with the vectors."""
    fetch_s: float = 0.0
    """Reading texts and metadata of what was found."""
    rerank_s: float = 0.0

    @property
    def retrieve_s(self) -> float:
        """From vectors to documents: everything between embedding and reranking."""
        return self.candidates_s + self.rescore_s + self.text_s + self.fetch_s

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.embed_s + self.retrieve_s + self.rerank_s

    def stages(self) -> dict[str, float]:
        """Stage to seconds, in the order in which they happen."""
        return {item.name.removesuffix("_s"): getattr(self, item.name) for item in fields(self)}

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        setattr(self, f"{stage}_s", getattr(self, f"{stage}_s") + seconds)


@dataclass(frozen=True, slots=True)
class SearchResults:
    """The hits of each query, in the caller's order, and the time they took."""

    hits: list[list[Hit]]
    timing: Timing
    reranked: list[int] = field(default_factory=list)
    """How many candidates of each query the reranker saw: with a budget, perhaps not all."""


@dataclass(frozen=True, slots=True)
class DenseQuery:
    """What the vector leg is asked."""

    limit: int
    conditions: list[Condition] = field(default_factory=list)
    effort: int | None = None
    timing: Timing = field(default_factory=Timing)
    """Where the leg adds what it spends."""


class Searchable(ABC):
    """What an index on disk and its twin in memory have in common: search over two legs and a reranker."""

    embedder: Encoder | None
    reranker: Scorer | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents."""

    @property
    @abstractmethod
    def stored_dimensions(self) -> int:
        """Size of the vectors in the index."""

    @abstractmethod
    def retrieve_dense(self, vectors_QD: FloatArray, query: DenseQuery) -> list[Ranking]:
        """For each query vector the nearest documents by cosine similarity, best first."""

    @abstractmethod
    def retrieve_text(self, queries: Sequence[str], limit: int, conditions: list[Condition]) -> list[Ranking]:
        """For each query the best documents by BM25, best first; documents without a common token are left out."""

    @abstractmethod
    def fetch(self, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these ids; ids that are not in the index are left out."""

    def search(
        self,
        query: str,
        top_k: int = 10,
        candidates: int = 100,
        mode: Mode = "dense",
        rerank: bool = True,
        instruction: str | None = None,
        *,
        where: Filter | None = None,
        fusion: Fusion | None = None,
        budget_ms: float | None = None,
        effort: int | None = None,
        rerank_weight: float = 1.0,
    ) -> list[Hit]:
        """The best documents for a query, best first.

        Args:
            query: any text; nothing in it is read as query syntax.
            top_k: how many hits.
            candidates: how many documents each leg brings to fusion and to the reranker.
            mode: ``dense`` (vectors), ``text`` (BM25) or ``hybrid`` (both).
            rerank: let the index's reranker order the candidates, where it has one.
            instruction: the task in one English sentence, for vectors and reranker; ``None`` is the web-search task.
            where: conditions on metadata, see :mod:`qwen3_embedding.retrieval.filters`.
            fusion: how hybrid search joins its two legs: by rank (the default) or by score, and their weights.
            budget_ms: milliseconds that the search may take: the reranker takes the best candidates first and ends in
                time; those that it did not see follow in the order of the first stage.
            effort: how broadly an approximate index is searched, for this query.
            rerank_weight: the reranker's share in the order of the candidates. Below 1 the first stage keeps a say:
                both scores are stretched to 0..1 over the candidates and added, weighted (:func:`interpolate`).

        Raises:
            TypeError, ValueError: a query or an option that is not what it should be.
            IndexCorruptError: the index on disk cannot be read.
        """
        check_text(query, "query")
        joined = fusion or Fusion()
        plan = Plan(
            top_k, candidates, mode, rerank, instruction, where, joined, budget_ms, effort, rerank_weight=rerank_weight
        )
        return self.run([query], plan).hits[0]

    def run(self, queries: Sequence[str], plan: Plan) -> SearchResults:
        """Answer many queries at once, with a breakdown of the time. Errors as :meth:`search`."""
        texts = check_texts(queries, "queries")
        conditions = parse_filter(plan.where)
        timing = Timing()
        with timing.spent("embed"):
            vectors_QD = self._embed(texts, plan) if plan.mode != "text" and texts else None
        rankings = self._retrieve(texts, vectors_QD, plan, conditions, timing)
        with timing.spent("fetch"):
            hits = self._to_hits(rankings, plan)
        reranked = [0] * len(texts)
        if plan.rerank and self.reranker is not None:
            with timing.spent("rerank"):
                hits, reranked = self._rerank(self.reranker, texts, hits, plan, timing)
        return SearchResults([found[: plan.top_k] for found in hits], timing, reranked)

    def _rerank(
        self, reranker: Scorer, texts: list[str], hits: list[list[Hit]], plan: Plan, timing: Timing
    ) -> tuple[list[list[Hit]], list[int]]:
        if plan.budget_ms is None:
            ordered = [
                rerank_hits(reranker, query, found, plan.instruction, plan.rerank_weight)
                for query, found in zip(texts, hits, strict=True)
            ]
            return ordered, [len(found) for found in hits]
        left = plan.budget_ms / 1000 - timing.total_s / max(1, len(texts))
        done = [
            rerank_within(reranker, query, found, left, plan.instruction, plan.rerank_weight)
            for query, found in zip(texts, hits, strict=True)
        ]
        return [found for found, _ in done], [count for _, count in done]

    def _embed(self, texts: list[str], plan: Plan) -> FloatArray:
        if self.embedder is None:
            raise ValueError(
                f"mode={plan.mode!r} needs an embedder; the index was opened without one (mode='text' needs none)"
            )
        found = self.embedder.embed_queries(texts, instruction=plan.instruction, dimensions=self.stored_dimensions)
        return unit_vectors(found, len(texts), self.stored_dimensions, self.embedder.name)

    def _retrieve(
        self,
        texts: list[str],
        vectors_QD: FloatArray | None,
        plan: Plan,
        conditions: list[Condition],
        timing: Timing,
    ) -> list[Ranking]:
        dense: list[Ranking] = []
        if vectors_QD is not None:
            dense = self.retrieve_dense(vectors_QD, DenseQuery(plan.depth, conditions, plan.effort, timing))
        if plan.mode == "dense":
            return dense
        with timing.spent("text"):
            lexical = self.retrieve_text(texts, plan.depth, conditions)
            if plan.mode == "text":
                return lexical
            return [plan.fusion.fuse(*legs)[: plan.depth] for legs in zip(dense, lexical, strict=True)]

    def _to_hits(self, rankings: list[Ranking], plan: Plan) -> list[list[Hit]]:
        reranks = plan.rerank and self.reranker is not None
        wanted = [ranking if reranks else ranking[: plan.top_k] for ranking in rankings]
        documents = self.fetch(list({identity: None for ranking in wanted for identity, _ in ranking}))
        return [
            [
                Hit(identity, score, documents[identity].text, plan.mode, documents[identity].metadata)
                for identity, score in ranking
                if identity in documents
            ]
            for ranking in wanted
        ]


def rerank_hits(
    reranker: Scorer, query: str, hits: Sequence[Hit], instruction: str | None = None, weight: float = 1.0
) -> list[Hit]:
    """The hits in the reranker's order, with its scores; equal scores keep their order.

    With a ``weight`` below 1 the first stage has the rest of the say, see :func:`interpolate`.

    Raises:
        NumericalError: the reranker gave a score that is not finite.
    """
    return _ordered(hits, _scores(reranker, query, hits, instruction), weight)


def rerank_within(
    reranker: Scorer,
    query: str,
    hits: Sequence[Hit],
    seconds: float,
    instruction: str | None = None,
    weight: float = 1.0,
) -> tuple[list[Hit], int]:
    """As :func:`rerank_hits`, the best candidates first, ending in time.

    A few candidates tell the rate, and the next call has as many as fit into what is left, so a call that is slower
    than those before can end late by its own surplus.

    Returns:
        The reranked hits in the reranker's order, behind them the others in theirs; and how many were reranked.
    """
    began = time.perf_counter()
    parts = [np.empty(0, dtype=np.float32)]
    done, step = 0, _TRIAL
    while done < len(hits):
        spent = time.perf_counter() - began
        if done:
            step = int(_CAUTION * (seconds - spent) * done / spent)
        if step < 1 or spent >= seconds:
            break
        parts.append(_scores(reranker, query, hits[done : done + step], instruction))
        done += len(parts[-1])
    return _ordered(hits[:done], np.concatenate(parts), weight) + list(hits[done:]), done


def _scores(reranker: Scorer, query: str, hits: Sequence[Hit], instruction: str | None) -> FloatArray:
    """(N,) finite, or words about what the reranker did wrong."""
    if not hits:
        return np.empty(0, dtype=np.float32)
    scores_N = np.asarray(reranker.score(query, [hit.text for hit in hits], instruction=instruction))
    if scores_N.shape != (len(hits),):
        raise ValueError(f"reranker {reranker.name!r} gave scores of shape {scores_N.shape} for {len(hits)} documents")
    if not np.isfinite(scores_N).all():
        raise NumericalError(f"reranker {reranker.name!r} gave scores that are not finite; load it at a wider dtype")
    return scores_N


def _ordered(hits: Sequence[Hit], reranker_N: FloatArray, weight: float) -> list[Hit]:
    """Best first; equal scores keep their order."""
    scores_N = interpolate(np.array([hit.score for hit in hits], dtype=np.float32), reranker_N, weight)
    return [replace(hits[i], score=float(scores_N[i]), origin="rerank") for i in np.argsort(-scores_N, kind="stable")]


def unit_vectors(vectors: Vectors, count: int, dimensions: int, name: str) -> FloatArray:
    """(count, dimensions) float32 of length one, or words about what an encoder did wrong.

    What has length one already, up to rounding, stays as it is to the last bit.

    Raises:
        ValueError: another shape.
        NumericalError: a vector that is not finite, or zero.
    """
    found = np.asarray(vectors, dtype=np.float32)
    if found.shape != (count, dimensions):
        raise ValueError(f"encoder {name!r} gave vectors of shape {found.shape}; wanted {(count, dimensions)}")
    norms_N = np.linalg.norm(found, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms_N) | (norms_N == 0))
    if bad.size:
        raise NumericalError(
            f"encoder {name!r} gave {bad.size} of {count} vectors that are zero or not finite (the first: number "
            f"{bad[0]}); load it at a wider dtype"
        )
    norms_N[np.abs(norms_N - 1) <= 1e-6] = 1.0
    return np.asarray(found / norms_N[:, None], dtype=np.float32)


def top_ranking(ids: Sequence[str], scores_N: FloatArray, limit: int, above: float = -np.inf) -> Ranking:
    """The ``limit`` best ids with a score over ``above``, best first; equal scores by id, also at the cut."""
    rows = np.flatnonzero(scores_N > above)
    if rows.size > limit:
        cut = np.partition(scores_N[rows], rows.size - limit)[rows.size - limit]
        rows = rows[scores_N[rows] >= cut]
    return best_first([(ids[int(row)], float(scores_N[row])) for row in rows])[:limit]
