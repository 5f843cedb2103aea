"""The demo: a real multilingual collection indexed, searched in four ways, measured, and shown on a page.

The collection is XQuAD-R, bundled with its licence: 240 paragraphs in each of eleven languages; every question has
eleven right paragraphs, one a language.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation import html
from qwen3_embedding.evaluation.collection import Collection, TaskInfo, read_collection, read_info
from qwen3_embedding.evaluation.environment import commit, hardware
from qwen3_embedding.evaluation.metrics import RankingScores, evaluate_run
from qwen3_embedding.evaluation.results import library_versions, now
from qwen3_embedding.evaluation.tasks import sample_queries
from qwen3_embedding.retrieval.fusion import Fusion
from qwen3_embedding.retrieval.index import SearchIndex
from qwen3_embedding.retrieval.search import Mode, Plan, rerank_hits
from qwen3_embedding.types import Encoder, Hit, Scorer
from qwen3_embedding.whole import write_text

COLLECTION = Path(__file__).resolve().parents[1] / "assets" / "demo" / "xquad-r"
METRICS = ("ndcg@10", "recall@100", "recall@20", "mrr@10")
HYBRID = Fusion(method="score")
WAYS = ("full text", "embedder", "hybrid", "embedder + reranker")
_DEPTH = 100


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How much the demo does."""

    queries: int = 110
    """A fixed sample of the collection's queries, as many in each language."""
    candidates: int = 20
    """Documents of the embedder that the reranker orders."""
    examples: int = 3
    """Queries shown with their first hits."""

    def __post_init__(self) -> None:
        for name in ("queries", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted 1 or more")
        if self.candidates > _DEPTH:
            raise ValueError(f"candidates={self.candidates}; the demo keeps {_DEPTH} documents a query")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer the queries, and how well and how fast it did."""

    name: str
    metrics: Mapping[str, float]
    per_language: Mapping[str, float]
    """nDCG@10 by the language of the query."""
    pairs: Mapping[str, Mapping[str, float]]
    """Language of the query → language of the paragraph → share of queries whose paragraph is among the first 20."""
    queries_per_s: float


@dataclass(frozen=True, slots=True)
class Example:
    """A query and the first hits of each way: (id, text, right?)."""

    query: str
    language: str
    hits: Mapping[str, Sequence[tuple[str, str, bool]]]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo measured."""

    collection: str
    licence: str
    documents: int
    queries: int
    languages: tuple[str, ...]
    embedder: str
    reranker: str
    candidates: int
    documents_per_s: float
    ways: tuple[Way, ...]
    examples: tuple[Example, ...]
    seconds: float
    environment: Mapping[str, Any]


def run_demo(
    embedder: Encoder,
    reranker: Scorer,
    out: str | Path,
    settings: DemoSettings | None = None,
    folder: str | Path = COLLECTION,
    log: Callable[[str], None] = lambda line: None,
) -> DemoReport:
    """Index the collection, answer its queries in four ways, measure; write ``report.json`` and ``report.html``.

    Args:
        embedder: any encoder.
        reranker: any scorer.
        out: folder of the results; the index stays in ``index`` beside them and is made anew every time.
        settings: how much to do.
        folder: a retrieval collection in BEIR's layout.
        log: takes lines of progress.

    Raises:
        DataError: a collection that cannot be read.
    """
    settings, out, started = settings or DemoSettings(), Path(out), time.perf_counter()
    info = read_info(Path(folder))
    if info.kind != "retrieval":
        raise DataError(f"{folder}: is a {info.kind} set; the demo wants a retrieval collection")
    collection = _sample(read_collection(Path(folder)), info, settings.queries)
    log(f"{info.name}: {len(collection.documents)} documents, {len(collection.queries)} queries")
    index, documents_per_s = _index(embedder, collection, out / "index", log)
    ways, answers = [], {}
    for name in WAYS:
        found, seconds = _answer(index, collection, name, reranker, info, settings)
        ways.append(_measure(name, found, collection, info, len(found) / seconds))
        answers[name] = found
        log(f"{name}: nDCG@10 {100 * ways[-1].metrics['ndcg@10']:.1f}, {ways[-1].queries_per_s:.0f} queries/s")
    report = DemoReport(
        collection=info.name,
        licence=info.licence,
        documents=len(collection.documents),
        queries=len(collection.queries),
        languages=info.languages,
        embedder=embedder.name,
        reranker=reranker.name,
        candidates=settings.candidates,
        documents_per_s=documents_per_s,
        ways=tuple(ways),
        examples=tuple(_examples(collection, answers, settings.examples)),
        seconds=time.perf_counter() - started,
        environment={"commit": commit(), "hardware": hardware(), "versions": library_versions(), "created": now()},
    )
    write_text(out / "report.json", json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n", shared=True)
    write_text(out / "report.html", to_html(report), shared=True)
    return report


def summary_rows(report: DemoReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the table that people see: a way a row."""
    headers = ("", "nDCG@10", "Recall@100", "MRR@10", "queries/s", "documents/s")
    rows = [
        (
            way.name,
            *(f"{100 * way.metrics[metric]:.1f}" for metric in ("ndcg@10", "recall@100", "mrr@10")),
            f"{way.queries_per_s:,.0f}" if way.queries_per_s >= 10 else f"{way.queries_per_s:.1f}",
            "" if way.name == WAYS[0] else f"{report.documents_per_s:,.0f}",
        )
        for way in report.ways
    ]
    return headers, rows


def _sample(collection: Collection, info: TaskInfo, count: int) -> Collection:
    """As many queries of each language, where ids begin with one; the same in every run."""
    groups: dict[str, list[str]] = {}
    for query in collection.queries:
        groups.setdefault(language_of(query, info.languages), []).append(query)
    if len(groups) < 2:
        return sample_queries(collection, count)
    each = max(1, count // len(groups))
    chosen = {
        query
        for queries in groups.values()
        for query in sorted(queries, key=lambda one: hashlib.sha256(one.encode()).digest())[:each]
    }
    queries = {query: text for query, text in collection.queries.items() if query in chosen}
    return Collection(collection.documents, queries, {query: collection.qrels[query] for query in queries})


def language_of(identity: str, languages: Sequence[str]) -> str:
    """The language that an id begins with (``de-p17``), or nothing."""
    first = identity.split("-")[0]
    return first if first in languages else ""


def _index(
    embedder: Encoder, collection: Collection, folder: Path, log: Callable[[str], None]
) -> tuple[SearchIndex, float]:
    shutil.rmtree(folder, ignore_errors=True)
    index = SearchIndex.create(folder, embedder)
    started = time.perf_counter()
    index.add([{"id": identity, "text": text} for identity, text in collection.documents.items()])
    rate = len(index) / (time.perf_counter() - started)
    index.optimize()
    log(f"indexed {len(index)} documents, {rate:.0f} documents/s")
    return index, rate


def _answer(
    index: SearchIndex, collection: Collection, name: str, reranker: Scorer, info: TaskInfo, settings: DemoSettings
) -> tuple[dict[str, list[Hit]], float]:
    modes: dict[str, Mode] = {"full text": "text", "hybrid": "hybrid"}
    plan = Plan(_DEPTH, _DEPTH, modes.get(name, "dense"), rerank=False, instruction=info.instruction, fusion=HYBRID)
    results = index.run(list(collection.queries.values()), plan)
    found = dict(zip(collection.queries, results.hits, strict=True))
    if name != "embedder + reranker":
        return found, results.timing.total_s
    started = time.perf_counter()
    for query, text in collection.queries.items():
        head, tail = found[query][: settings.candidates], found[query][settings.candidates :]
        found[query] = rerank_hits(reranker, text, head, info.instruction) + tail
    return found, results.timing.total_s + time.perf_counter() - started


def _measure(
    name: str, found: Mapping[str, Sequence[Hit]], collection: Collection, info: TaskInfo, queries_per_s: float
) -> Way:
    # ranks, not scores: a reranked list mixes the scores of two models
    run = {query: {hit.id: float(-place) for place, hit in enumerate(hits)} for query, hits in found.items()}
    scores = evaluate_run(collection.qrels, run, METRICS)
    return Way(name, scores.mean, _by_language(scores, info), _pairs(found, collection, info), queries_per_s)


def _by_language(scores: RankingScores, info: TaskInfo) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for query, value in scores.per_query["ndcg@10"].items():
        groups.setdefault(language_of(query, info.languages), []).append(value)
    return {language: math.fsum(values) / len(values) for language, values in groups.items() if language}


def _pairs(found: Mapping[str, Sequence[Hit]], collection: Collection, info: TaskInfo) -> dict[str, dict[str, float]]:
    right: dict[str, dict[str, list[bool]]] = {}
    for query, hits in found.items():
        first = {hit.id for hit in hits[:20]}
        row = right.setdefault(language_of(query, info.languages), {})
        for document in collection.qrels[query]:
            row.setdefault(language_of(document, info.languages), []).append(document in first)
    return {
        asked: {language: sum(values) / len(values) for language, values in sorted(row.items())}
        for asked, row in sorted(right.items())
    }


def _examples(collection: Collection, answers: Mapping[str, Mapping[str, Sequence[Hit]]], count: int) -> list[Example]:
    """Queries of different languages, English and Chinese first."""
    first = {"en": 0, "zh": 1}
    by_language: dict[str, list[str]] = {}
    for query in collection.queries:
        by_language.setdefault(query.split("-")[0], []).append(query)
    languages = sorted(by_language, key=lambda language: first.get(language, 2))
    rounds = zip_longest(*(by_language[language] for language in languages))
    chosen = [query for several in rounds for query in several if query is not None][:count]
    return [
        Example(
            query=collection.queries[query],
            language=query.split("-")[0],
            hits={
                name: [(hit.id, hit.text, collection.qrels[query].get(hit.id, 0) > 0) for hit in found[query][:3]]
                for name, found in answers.items()
            },
        )
        for query in chosen
    ]


def to_html(report: DemoReport) -> str:
    """The page."""
    headers, rows = summary_rows(report)
    best = {way.name: way.metrics["ndcg@10"] for way in report.ways}
    winner = max(best, key=lambda name: best[name])
    many = len(report.languages) > 1
    lead = (
        f"{report.queries} questions over {report.documents:,} paragraphs of {report.collection}"
        + (f" in {len(report.languages)} languages" if many else "")
        + f", answered in four ways. Best by nDCG@10: {winner}, {100 * best[winner]:.1f}"
        + (f"; full text alone: {100 * best[WAYS[0]]:.1f}." if winner != WAYS[0] else ".")
    )
    body = [
        f"<h1>Search, measured</h1>\n<p class='lead'>{escape(lead)}</p>",
        html.section(
            "Four ways to answer",
            html.table("Quality times 100; speed on this machine", headers, rows, best=(1, 2, 3))
            + html.bar_chart(
                "nDCG@10 and Recall@100 of the four ways",
                {
                    label: [way.metrics[metric] for way in report.ways]
                    for metric, label in (
                        ("ndcg@10", "nDCG@10"),
                        ("recall@20", "Recall@20"),
                        ("recall@100", "Recall@100"),
                    )
                },
                WAYS,
                "Higher is better.",
            ),
        ),
    ]
    if any(way.per_language for way in report.ways):
        body += _language_sections(report)
    body.append(html.section("Some questions and their first hits", "".join(_example(one) for one in report.examples)))
    body.append(html.section("How this was measured", _details(report)))
    footer = f"{escape(report.collection)}: {escape(report.licence)}. Texts are the collection's own."
    return html.page(f"Search demo: {report.collection}", "\n".join(body), footer)


def _language_sections(report: DemoReport) -> list[str]:
    languages = sorted(report.ways[0].per_language)
    groups = {language: [way.per_language[language] for way in report.ways] for language in languages}
    dense = report.ways[WAYS.index("embedder")]
    text = report.ways[WAYS.index("full text")]
    pair_note = "Share of questions whose paragraph in that language is among the first 20, times 100."
    return [
        html.section(
            "By the language of the question",
            html.bar_chart(
                "nDCG@10 by the language of the question",
                groups,
                WAYS,
                "Higher is better.",
            )
            + html.table(
                "nDCG@10 times 100",
                ("language", *WAYS),
                [(language, *(f"{100 * value:.1f}" for value in values)) for language, values in groups.items()],
            ),
        ),
        html.section(
            "Across languages",
            "<h3>Embedder</h3>"
            + html.heat_map("Embedder: recall@20 by language pair", dense.pairs, "asked", "found", pair_note)
            + "<h3>Full text</h3>"
            + html.heat_map("Full text: recall@20 by language pair", text.pairs, "asked", "found", pair_note),
        ),
    ]


def _example(example: Example) -> str:
    columns = []
    for name, hits in example.hits.items():
        items = "".join(
            f'<li class="{"right" if right else "wrong"}"><small>{"<b>right</b>" if right else "not judged right"} · '
            f'{escape(identity)}</small><br><span dir="auto">{escape(_short(text))}</span></li>'
            for identity, text, right in hits
        )
        columns.append(f"<div><h3>{escape(name)}</h3><ol class='hits'>{items or '<li>nothing found</li>'}</ol></div>")
    quoted = f'<blockquote dir="auto" lang="{escape(example.language)}">{escape(example.query)}</blockquote>'
    return f"{quoted}<div class='grid'>{''.join(columns)}</div>"


def _short(text: str, length: int = 150) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _details(report: DemoReport) -> str:
    versions = report.environment["versions"]
    return html.definition_list(
        {
            "embedder": report.embedder,
            "reranker": f"{report.reranker}, orders the embedder's first {report.candidates}",
            "full text": "BM25 over words, light English stems and character bigrams for scripts without spaces",
            "hybrid": "cosine plus BM25 over the query's best BM25",
            "metrics": "trec_eval's, over the first 100 documents of a query",
            "queries/s": "embedding, retrieval and reranking together",
            "whole demo": f"{report.seconds:.0f} s",
            "hardware": report.environment["hardware"],
            "commit": report.environment["commit"] or "not run from a checkout",
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "date": report.environment["created"],
        }
    )
