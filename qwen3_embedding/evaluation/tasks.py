"""One evaluation task on local data: a folder, an encoder and a scorer in, scores out.

The instruction of a task stands before its queries.  Tasks that have no query side (STS, pair classification,
classification, clustering) put it before every text, as the published Qwen3 Embedding results do.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.cache import CachedEncoder, CachedScorer
from qwen3_embedding.evaluation.collection import (
    RANKING_KINDS,
    Collection,
    TaskInfo,
    metric_name,
    read_collection,
    read_info,
)
from qwen3_embedding.evaluation.comparing import compare
from qwen3_embedding.evaluation.following import following_scores, halves
from qwen3_embedding.evaluation.metrics import (
    RANKING_METRICS,
    evaluate_run,
)
from qwen3_embedding.evaluation.statistics import bootstrap_interval
from qwen3_embedding.retrieval.analysis import analyze
from qwen3_embedding.retrieval.bm25 import Bm25
from qwen3_embedding.retrieval.fusion import Fusion, Ranking, best_first, check_rerank_weight, interpolate
from qwen3_embedding.retrieval.passages import best_passages, check_passage_words
from qwen3_embedding.retrieval.search import top_ranking
from qwen3_embedding.types import FloatArray

Column = Literal["bm25", "embedder", "hybrid", "reranker"]
COLUMNS: tuple[Column, ...] = get_args(Column)
Rankings = dict[str, Ranking]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What a score depends on beside models and data."""

    dimensions: int | None = None
    """Size of the vectors (cut, then normalised); ``None`` the encoder's own."""
    candidates: int = 100
    """How many documents of the first stage the reranker orders."""
    first_stage: Column = "embedder"
    """Whose ranking the reranker orders."""
    depth: int = 1000
    """Documents kept a query, as MTEB keeps them."""
    instruction: str | None = None
    """Instead of the task's own; ``""`` for none."""
    max_queries: int | None = None
    """A fixed random sample of the queries, for a quick look; scores of samples are no benchmark results."""
    rerank_queries: int | None = None
    """The reranker orders the documents of a fixed random sample of the queries only; its column is over those."""
    rerank_weight: float = 1.0
    """The reranker's share in the order of the candidates; the first stage's score has the rest."""
    split: str = "test"
    fusion: Fusion = field(default_factory=Fusion)
    passage_words: int | None = None
    """The embedder sees documents by their passages of so many words, too: its score is the mean of the whole's cosine
    and the best passage's."""

    def __post_init__(self) -> None:
        if self.passage_words is not None:
            check_passage_words(self.passage_words)
        for name in ("candidates", "depth", "max_queries", "rerank_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; wanted 1 or more")
        check_rerank_weight(self.rerank_weight)
        if self.first_stage not in ("bm25", "embedder", "hybrid"):
            raise ValueError(f"first_stage={self.first_stage!r}; wanted bm25, embedder or hybrid")


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The scores of one task: column → metric → value in [0, 1] (spearman in [-1, 1])."""

    name: str
    kind: str
    main_metric: str
    languages: list[str]
    instruction: str | None
    definition: str
    """SHA-256 of the data: scores of different definitions are not compared."""
    counts: dict[str, int]
    scores: dict[str, dict[str, float]]
    per_language: dict[str, dict[str, float]] = field(default_factory=dict)
    """Column → language → main metric."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """Column → low and high end of the main metric's 95 percent bootstrap interval; none for a clustering."""
    speed: dict[str, float | None] = field(default_factory=dict)
    """``documents_per_s`` and, a column, ``queries_per_s/…``; ``None`` where vectors came from the cache."""
    seconds: float = 0.0

    def sampled(self, column: str) -> bool:
        """Whether the column is over fewer queries than the others: no figure to set beside theirs."""
        return column == "reranker" and self.counts.get("reranked_queries", 0) < self.counts.get("queries", 0)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a ranking task ranked: column → query id → ranking, and the scores a query."""

    rankings: dict[str, Rankings] = field(default_factory=dict)
    per_query: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Column → metric → query id → value."""


def run_task(
    folder: Path, encoder: CachedEncoder | None, scorer: CachedScorer | None, settings: TaskSettings, log: Log
) -> tuple[TaskScores, Predictions]:
    """Score the models on the data of a folder.

    Args:
        folder: laid out as :mod:`qwen3_embedding.evaluation.collection` reads it.
        encoder: ``None`` leaves BM25 (and a reranker over it) in ranking tasks.
        scorer: ``None`` leaves the reranker's column out.
        settings: what the scores depend on.
        log: takes lines of progress.

    Raises:
        DataError: data that cannot be read or lacks something.
        NumericalError: vectors or scores that are not finite.
        ValueError: a task that needs vectors, and no encoder.
    """
    started = time.perf_counter()
    info = read_info(folder)
    definition = data_hash(folder)
    task = settings.instruction if settings.instruction is not None else info.instruction
    predictions = Predictions()
    if info.kind in RANKING_KINDS:
        collection = sample_queries(_collection(folder, info, settings.split), settings.max_queries)
        counts, scores, languages, speed, predictions = _rank(info, collection, encoder, scorer, settings, task, log)
        intervals = _query_intervals(predictions, metric_name(info.main_metric))
    elif encoder is None:
        raise ValueError(f"{info.name} is a {info.kind} task and needs an embedder")
    else:
        counts, scores, languages, intervals = compare(folder, info, encoder, settings.dimensions, task)
        speed = {"queries_per_s/embedder": encoder.queries.rate}
    result = TaskScores(
        info.name, info.kind, metric_name(info.main_metric), list(info.languages), task, definition, counts, scores,
        languages, intervals, speed, time.perf_counter() - started,
    )  # fmt: skip
    return result, predictions


def _collection(folder: Path, info: TaskInfo, split: str) -> Collection:
    collection = read_collection(folder, split)
    if info.kind != "instruction_following":
        return replace(collection, changed=None)
    if collection.changed is None:
        raise DataError(
            f"{folder / 'changed.jsonl'}: no such file; p-MRR needs to know what the changed instruction drops"
        )
    return collection


def data_hash(folder: Path) -> str:
    """SHA-256 over names and contents of a task's files, licence notes left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".tsv"):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def sample_queries(collection: Collection, count: int | None) -> Collection:
    """A random sample of the queries, the same in every run; all of them where ``count`` is ``None`` or more."""
    if count is None or count >= len(collection.changed or collection.queries):
        return collection
    by_hash = sorted(
        collection.changed or collection.queries, key=lambda query: hashlib.sha256(query.encode()).digest()
    )
    kept = by_hash[:count]
    chosen = set(kept if collection.changed is None else [f"{q}{end}" for q in kept for end in ("-og", "-changed")])
    queries = {query: text for query, text in collection.queries.items() if query in chosen}
    qrels = {query: grades for query, grades in collection.qrels.items() if query in chosen}
    changed = None if collection.changed is None else {query: collection.changed[query] for query in kept}
    return replace(collection, queries=queries, qrels=qrels, changed=changed)


class _Legs:
    """The two first-stage scorers of a collection: every document scored for a query."""

    def __init__(
        self,
        info: TaskInfo,
        collection: Collection,
        encoder: CachedEncoder | None,
        settings: TaskSettings,
        task: str | None,
        log: Log,
    ) -> None:
        self.collection, self.settings = collection, settings
        self.ids = list(collection.documents)
        self.rows = {identity: row for row, identity in enumerate(self.ids)}
        log(f"{info.name}: {len(self.ids)} documents, {len(collection.queries)} queries")
        texts = list(collection.documents.values())
        self.bm25 = Bm25([analyze(text) for text in texts])
        self.documents_ND: FloatArray | None = None
        self.queries_QD: FloatArray | None = None
        self.passages_NQ: FloatArray | None = None
        if encoder is not None:
            self.documents_ND = encoder.embed_documents(texts, dimensions=settings.dimensions)
            queries = list(collection.queries.values())
            self.queries_QD = encoder.embed_queries(queries, task, dimensions=settings.dimensions)
            if settings.passage_words is not None:
                log(f"{info.name}: passages of {settings.passage_words} words")
                embed = partial(encoder.embed_passages, dimensions=settings.dimensions)
                self.passages_NQ = best_passages(texts, settings.passage_words, self.queries_QD, embed)

    def text(self) -> Rankings:
        """BM25; in reranking tasks every candidate has a place, found or not."""
        above = -np.inf if self.collection.candidates else 0.0
        return {
            query: self._top(query, self.bm25.scores(analyze(text)), above)
            for query, text in self.collection.queries.items()
        }

    def dense(self, documents_ND: FloatArray, queries_QD: FloatArray) -> Rankings:
        """Cosine similarity, query by query as the exact index has it, so that equal scores stay equal."""
        rankings: Rankings = {}
        for number, (query, vector_D) in enumerate(zip(self.collection.queries, queries_QD, strict=True)):
            scores_N = np.asarray(documents_ND @ vector_D, dtype=np.float32)
            if self.passages_NQ is not None:
                scores_N = np.asarray((scores_N + self.passages_NQ[:, number]) / 2, dtype=np.float32)
            rankings[query] = self._top(query, scores_N, -np.inf)
        return rankings

    def _top(self, query: str, scores_N: FloatArray, above: float) -> Ranking:
        if self.collection.candidates is None:
            return top_ranking(self.ids, scores_N, self.settings.depth, above)
        return best_first([(one, float(scores_N[self.rows[one]])) for one in self.collection.candidates[query]])


def _rank(
    info: TaskInfo,
    collection: Collection,
    encoder: CachedEncoder | None,
    scorer: CachedScorer | None,
    settings: TaskSettings,
    task: str | None,
    log: Log,
) -> tuple[
    dict[str, int], dict[str, dict[str, float]], dict[str, dict[str, float]], dict[str, float | None], Predictions
]:
    legs = _Legs(info, collection, encoder, settings, task, log)
    rankings: dict[str, Rankings] = {}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    rankings["bm25"] = legs.text()
    seconds["bm25"] = time.perf_counter() - started
    if legs.documents_ND is not None and legs.queries_QD is not None:
        started = time.perf_counter()
        rankings["embedder"] = legs.dense(legs.documents_ND, legs.queries_QD)
        seconds["embedder"] = time.perf_counter() - started
        rankings["hybrid"] = _fuse(rankings["embedder"], rankings["bm25"], settings)
        seconds["hybrid"] = seconds["bm25"] + time.perf_counter() - started
    part, before = collection, None
    if scorer is not None:
        first = settings.first_stage if settings.first_stage in rankings else "bm25"
        part = sample_queries(collection, settings.rerank_queries)
        before = {query: rankings[first][query] for query in part.queries}
        rankings["reranker"] = _rerank(before, part, scorer, settings, task, log, info.name)
        seconds["reranker"] = seconds[first]
    scores: dict[str, dict[str, float]] = {}
    languages: dict[str, dict[str, float]] = {}
    per_query: dict[str, dict[str, dict[str, float]]] = {}
    main, metrics = metric_name(info.main_metric), _metrics(info)
    for column, ranking in rankings.items():
        scores[column], per_query[column] = _score(ranking, part if column == "reranker" else collection, metrics)
        languages[column] = _by_language(per_query[column], main, info)
    counts = {"documents": len(collection.documents), "queries": len(collection.queries)}
    if before is not None:
        scores["reranker"][f"{main}_before"] = _score(before, part, metrics)[0][main]
        counts["reranked_queries"] = len(before)
    speed = _speeds(seconds, len(collection.queries), encoder, scorer, settings)
    return counts, scores, languages, speed, Predictions(rankings, per_query)


def _fuse(dense: Rankings, text: Rankings, settings: TaskSettings) -> Rankings:
    return {query: settings.fusion.fuse(dense[query], text[query])[: settings.depth] for query in dense}


def _rerank(
    first: Rankings,
    collection: Collection,
    scorer: CachedScorer,
    settings: TaskSettings,
    task: str | None,
    log: Log,
    name: str,
) -> Rankings:
    """The best candidates in the scorer's order, the rest behind them as they were; equal scores keep their order."""
    reranked: Rankings = {}
    told = time.perf_counter()
    for done, (query, ranking) in enumerate(first.items()):
        head, tail = ranking[: settings.candidates], ranking[settings.candidates :]
        texts = [collection.documents[document] for document, _ in head]
        scores_C = scorer.score(collection.queries[query], texts, task) if texts else np.empty(0, dtype=np.float32)
        before_C = np.array([score for _, score in head], dtype=np.float32)
        scores_C = interpolate(before_C, scores_C, settings.rerank_weight)
        order = [head[i][0] for i in np.argsort(-scores_C, kind="stable")] + [document for document, _ in tail]
        reranked[query] = [(document, float(len(order) - place)) for place, document in enumerate(order)]
        if time.perf_counter() - told > 10:
            told = time.perf_counter()
            log(f"{name}: reranked {done + 1} of {len(first)} queries")
    return reranked


def _query_intervals(predictions: Predictions, main: str) -> dict[str, list[float]]:
    found = {}
    for column, metrics in predictions.per_query.items():
        interval = bootstrap_interval([value for _, value in sorted(metrics[main].items())])
        found[column] = [interval.low, interval.high]
    return found


def _groups(languages: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, language in enumerate(languages):
        groups.setdefault(language, []).append(row)
    return groups


def _score(
    rankings: Rankings, collection: Collection, metrics: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Means, and metric → query id → value."""
    found = evaluate_run(collection.qrels, _as_run(rankings), metrics)
    per_query = {metric: dict(values) for metric, values in found.per_query.items()}
    if collection.changed is None:
        return found.mean | _satisfied(rankings, collection), per_query
    per_query["p_mrr"] = following_scores(rankings, collection.changed)
    return _followed(per_query), per_query


def _as_run(rankings: Rankings) -> dict[str, dict[str, float]]:
    return {query: dict(ranking) for query, ranking in rankings.items()}


def _metrics(info: TaskInfo) -> list[str]:
    """The main one first. Recall says nothing where every candidate is ranked."""
    found = list(RANKING_METRICS)
    if info.kind == "reranking":
        found = [metric for metric in RANKING_METRICS if not metric.startswith("recall")]
    elif info.kind == "instruction_following":
        return ["ndcg@5", *found]
    elif len(info.languages) > 2:
        found.append("recall@20")
    return list(dict.fromkeys([metric_name(info.main_metric), *found]))


def _followed(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """p-MRR, and each ranking metric under the original and the changed instructions apart."""
    scores = {"p_mrr": math.fsum(per_query["p_mrr"].values()) / len(per_query["p_mrr"])}
    for metric, values in per_query.items():
        if metric != "p_mrr":
            scores |= {f"{metric}_{name}": value for name, value in halves(values).items()}
    return scores


def _by_language(per_query: Mapping[str, Mapping[str, float]], metric: str, info: TaskInfo) -> dict[str, float]:
    """Means by the language that the query's id begins with, where ids do."""
    groups: dict[str, list[float]] = {}
    for query, value in per_query[metric].items():
        groups.setdefault(query.split("-")[0], []).append(value)
    if len(groups) < 2 or not set(groups) <= set(info.languages):
        return {}
    return {language: math.fsum(values) / len(values) for language, values in groups.items()}


def _satisfied(rankings: Rankings, collection: Collection) -> dict[str, float]:
    """The share of queries whose best document stands above every one that says the opposite."""
    if not collection.violations:
        return {}
    right = 0
    opposites = {query: lists for query, lists in collection.violations.items() if query in rankings}
    for query, opposite in opposites.items():
        place = {document: number for number, (document, _) in enumerate(rankings[query])}
        grades = collection.qrels[query]
        best = [document for document, grade in grades.items() if grade == max(grades.values())]
        last = len(place)
        right += min(place.get(d, last) for d in best) < min((place.get(d, last) for d in opposite), default=last)
    return {"satisfied_above_violating": right / len(opposites)}


def _speeds(
    seconds: Mapping[str, float],
    queries: int,
    encoder: CachedEncoder | None,
    scorer: CachedScorer | None,
    settings: TaskSettings,
) -> dict[str, float | None]:
    """Queries a second of each column, embedding and reranking within; documents a second of the embedder."""
    speed: dict[str, float | None] = {}
    embedding = encoder.queries.rate if encoder else None
    for column, spent in seconds.items():
        per_query: float | None = spent / queries
        needs_vector = column in ("embedder", "hybrid") or (column == "reranker" and settings.first_stage != "bm25")
        if needs_vector and encoder is not None and per_query is not None:
            per_query = per_query + 1 / embedding if embedding else None
        if column == "reranker" and per_query is not None:
            pairs = scorer.pairs.rate if scorer else None
            per_query = per_query + settings.candidates / pairs if pairs else None
        speed[f"queries_per_s/{column}"] = 1 / per_query if per_query else None
    speed["documents_per_s"] = encoder.documents.rate if encoder else None
    return speed
