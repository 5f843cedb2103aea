"""The demo on a small collection: its numbers, its page, its files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation import html
from qwen3_embedding.evaluation.collection import read_collection
from qwen3_embedding.evaluation.demo import COLLECTION, WAYS, DemoReport, DemoSettings, run_demo, summary_rows
from qwen3_embedding.evaluation.metrics import evaluate_run
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.retrieval.exact import ExactIndex
from tests.evaluation.collections import write_every_kind, write_retrieval
from tests.support.hashing import HashEncoder, OverlapScorer

SETTINGS = DemoSettings(queries=24, candidates=5, examples=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval(tmp_path_factory.mktemp("demo") / "set")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-out")


@pytest.fixture(scope="module")
def report(folder: Path, out: Path) -> DemoReport:
    return run_demo(HashEncoder(), OverlapScorer(), out, SETTINGS, folder)


def test_numbers_are_those_of_the_exact_index(report: DemoReport, folder: Path) -> None:
    collection = read_collection(folder)
    index = ExactIndex(HashEncoder(), k1=1.2, b=0.75)
    index.add([{"id": one, "text": text} for one, text in collection.documents.items()])
    for way, mode in zip(report.ways, ("text", "dense", "hybrid"), strict=False):
        run = {
            query: {hit.id: float(-place) for place, hit in enumerate(index.search(text, 100, 100, mode))}  # type: ignore[arg-type]
            for query, text in collection.queries.items()
        }
        assert way.metrics["ndcg@10"] == pytest.approx(evaluate_run(collection.qrels, run).mean["ndcg@10"], abs=1e-6)
    assert [way.name for way in report.ways] == list(WAYS)
    assert set(report.ways[0].per_language) == {"de", "en", "zh"}
    assert report.ways[0].pairs["de"]["de"] == 1.0
    assert all(way.queries_per_s > 0 for way in report.ways)


def test_the_same_numbers_every_time(report: DemoReport, folder: Path, tmp_path: Path) -> None:
    again = run_demo(HashEncoder(), OverlapScorer(), tmp_path, SETTINGS, folder)
    assert [way.metrics for way in again.ways] == [way.metrics for way in report.ways]
    assert again.examples == report.examples


class _Checker(HTMLParser):
    """Well-formed where it matters: every element that needs closing is closed, nothing comes from outside."""

    void = frozenset({"meta", "br", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        assert not {name for name, _ in attrs} & {"src", "href", "onclick"}
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(report: DemoReport, out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.counts
    assert checker.counts["svg"] == 4
    assert not re.search(r"https?://|url\(|@import", page)
    assert page.count('role="img"') == page.count("<desc>") == 4
    assert "prefers-color-scheme: dark" in page
    for way in report.ways:
        assert f"{100 * way.metrics['ndcg@10']:.1f}" in page


def test_texts_cannot_write_markup() -> None:
    page = html.page("<b>", html.table("<i>", ["<u>"], [["<script>"]]), "")
    assert "<script>" not in page
    assert "<b>" not in page
    assert html.bar_chart("t", {"<x>": [0.5]}, ["<y>"], "c").count("<x>") == 0


def test_report_json_holds_what_the_table_shows(report: DemoReport, out: Path) -> None:
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    headers, rows = summary_rows(report)
    assert len(headers) == len(rows[0])
    assert [f"{100 * way['metrics']['ndcg@10']:.1f}" for way in written["ways"]] == [row[1] for row in rows]
    assert written["environment"]["versions"]["python"]


def test_with_the_real_models(folder: Path, tmp_path: Path, embedder: Embedder, reranker: Reranker) -> None:
    report = run_demo(embedder, reranker, tmp_path, DemoSettings(queries=3, candidates=2, examples=1), folder)
    assert report.queries == 3
    assert all(0 <= way.metrics["ndcg@10"] <= 1 for way in report.ways)


def test_what_the_demo_cannot_do_is_refused(tmp_path: Path) -> None:
    write_every_kind(tmp_path)
    with pytest.raises(DataError, match="is a sts set"):
        run_demo(HashEncoder(), OverlapScorer(), tmp_path / "out", folder=tmp_path / "sts")
    with pytest.raises(ValueError, match="queries=0"):
        DemoSettings(queries=0)
    with pytest.raises(ValueError, match="candidates=101"):
        DemoSettings(candidates=101)


def test_the_bundled_collection_has_its_licence() -> None:
    assert len(read_collection(COLLECTION).documents) == 2640
    assert "Attribution-ShareAlike 4.0" in (COLLECTION / "LICENCE").read_text(encoding="utf-8")
