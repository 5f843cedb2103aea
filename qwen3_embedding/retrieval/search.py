"""Two-stage search: embed the query, retrieve candidates, rerank them; and how long each took."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from qwen3_embedding.errors import NumericalError
from qwen3_embedding.retrieval.documents import Document, check_text, check_texts
from qwen3_embedding.retrieval.filters import Condition, Filter, parse_filter
from qwen3_embedding.retrieval.fusion import Fusion, Ranking, best_first
from qwen3_embedding.types import Encoder, FloatArray, Hit, Scorer, Vectors

Mode = Literal["dense", "text", "hybrid"]


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

    def __post_init__(self) -> None:
        for name in ("top_k", "candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} is {type(value).__name__}; wanted a whole number from 1 up")
            if value < 1:
                raise ValueError(f"{name}={value}; wanted 1 or more")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode={self.mode!r}; wanted one of {', '.join(get_args(Mode))}")
        if self.instruction is not None:
            check_text(self.instruction, "instruction")

    @property
    def depth(self) -> int:
        """How many candidates are retrieved: never fewer than are asked for."""
        return max(self.top_k, self.candidates)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent on a call of search, all its queries together."""

    embed_s: float = 0.0
    retrieve_s: float = 0.0
    rerank_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.embed_s + self.retrieve_s + self.rerank_s


@dataclass(frozen=True, slots=True)
class SearchResults:
    """The hits of each query, in the caller's order, and the time they took."""

    hits: list[list[Hit]]
    timing: Timing


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
    def retrieve_dense(self, vectors_QD: FloatArray, limit: int, conditions: list[Condition]) -> list[Ranking]:
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

        Raises:
            TypeError, ValueError: a query or an option that is not what it should be.
            IndexCorruptError: the index on disk cannot be read.
        """
        check_text(query, "query")
        plan = Plan(top_k, candidates, mode, rerank, instruction, where, fusion or Fusion())
        return self.run([query], plan).hits[0]

    def run(self, queries: Sequence[str], plan: Plan) -> SearchResults:
        """Answer many queries at once, with a breakdown of the time. Errors as :meth:`search`."""
        texts = check_texts(queries, "queries")
        conditions = parse_filter(plan.where)
        started = time.perf_counter()
        vectors_QD = self._embed(texts, plan) if plan.mode != "text" and texts else None
        embedded = time.perf_counter()
        rankings = self._retrieve(texts, vectors_QD, plan, conditions)
        hits = self._to_hits(rankings, plan)
        retrieved = time.perf_counter()
        if plan.rerank and self.reranker is not None:
            hits = [
                rerank_hits(self.reranker, query, found, plan.instruction)
                for query, found in zip(texts, hits, strict=True)
            ]
        timing = Timing(embedded - started, retrieved - embedded, time.perf_counter() - retrieved)
        return SearchResults([found[: plan.top_k] for found in hits], timing)

    def _embed(self, texts: list[str], plan: Plan) -> FloatArray:
        if self.embedder is None:
            raise ValueError(
                f"mode={plan.mode!r} needs an embedder; the index was opened without one (mode='text' needs none)"
            )
        found = self.embedder.embed_queries(texts, instruction=plan.instruction, dimensions=self.stored_dimensions)
        return unit_vectors(found, len(texts), self.stored_dimensions, self.embedder.name)

    def _retrieve(
        self, texts: list[str], vectors_QD: FloatArray | None, plan: Plan, conditions: list[Condition]
    ) -> list[Ranking]:
        if not len(self):
            return [[] for _ in texts]
        dense = [] if vectors_QD is None else self.retrieve_dense(vectors_QD, plan.depth, conditions)
        if plan.mode == "dense":
            return dense
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


def rerank_hits(reranker: Scorer, query: str, hits: Sequence[Hit], instruction: str | None = None) -> list[Hit]:
    """The hits in the reranker's order, with its scores; equal scores keep their order.

    Raises:
        NumericalError: the reranker gave a score that is not finite.
    """
    if not hits:
        return []
    scores_N = np.asarray(reranker.score(query, [hit.text for hit in hits], instruction=instruction))
    if scores_N.shape != (len(hits),):
        raise ValueError(f"reranker {reranker.name!r} gave scores of shape {scores_N.shape} for {len(hits)} documents")
    if not np.isfinite(scores_N).all():
        raise NumericalError(f"reranker {reranker.name!r} gave scores that are not finite; load it at a wider dtype")
    order = np.argsort(-scores_N, kind="stable")
    return [replace(hits[i], score=float(scores_N[i]), origin="rerank") for i in order]


def unit_vectors(vectors: Vectors, count: int, dimensions: int, name: str) -> FloatArray:
    """(count, dimensions) float32 of length one, or words about what an encoder did wrong.

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
    return np.asarray(found / norms_N[:, None], dtype=np.float32)


def top_ranking(ids: Sequence[str], scores_N: FloatArray, limit: int, above: float = -np.inf) -> Ranking:
    """The ``limit`` best ids with a score over ``above``, best first; equal scores by id, also at the cut."""
    rows = np.flatnonzero(scores_N > above)
    if rows.size > limit:
        cut = np.partition(scores_N[rows], rows.size - limit)[rows.size - limit]
        rows = rows[scores_N[rows] >= cut]
    return best_first([(ids[int(row)], float(scores_N[row])) for row in rows])[:limit]
