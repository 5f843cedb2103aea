"""A FollowIR folder: p-MRR of every column, equal to mteb's, and what broken folders say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_embedding.errors import DataError
from qwen3_embedding.evaluation.cache import ArrayCache, CachedEncoder, CachedScorer
from qwen3_embedding.evaluation.collection import read_collection
from qwen3_embedding.evaluation.run import evaluate
from qwen3_embedding.evaluation.tasks import TaskSettings, run_task
from tests.evaluation.collections import write_following
from tests.support.hashing import HashEncoder, OverlapScorer


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArrayCache]:
    with ArrayCache(tmp_path / "cache.sqlite") as cache:
        yield cache


@pytest.mark.parametrize("candidates", [True, False], ids=["pool", "whole corpus"])
def test_every_column_has_mtebs_p_mrr(tmp_path: Path, cache: ArrayCache, candidates: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrieval_metrics = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    folder = write_following(tmp_path / "set", candidates)
    encoder, scorer = CachedEncoder(HashEncoder(), cache), CachedScorer(OverlapScorer(), cache)
    found, predictions = run_task(folder, encoder, scorer, TaskSettings(), lambda line: None)
    collection = read_collection(folder)
    assert collection.queries["q1-changed"] == "river bridge leave out documents about water"
    assert list(found.scores) == ["bm25", "embedder", "hybrid", "reranker"]
    for column, rankings in predictions.rankings.items():
        runs = {query: dict(ranking) for query, ranking in rankings.items()}
        qrels = {query: dict(grades) for query, grades in collection.qrels.items()}
        theirs = retrieval_metrics.evaluate_p_mrr_change(qrels, runs, collection.changed, [1, 5, 10])
        scores = found.scores[column]
        assert scores["p_mrr"] == pytest.approx(theirs["p-MRR"], abs=1e-9)
        assert scores["ndcg@5_original"] == pytest.approx(
            theirs["og"]["ndcg_at_5"], abs=1e-5
        )  # they keep five decimals
        assert scores["ndcg@5_changed"] == pytest.approx(theirs["changed"]["ndcg_at_5"], abs=1e-5)
        assert list(predictions.per_query[column]["p_mrr"]) == ["q1", "q2", "q3"]
    assert len({scores["p_mrr"] for scores in found.scores.values()}) > 1


def test_report_and_sample(tmp_path: Path) -> None:
    folder = write_following(tmp_path / "set")
    evaluation = evaluate([folder], HashEncoder(), None, TaskSettings(max_queries=2), tmp_path / "out")
    assert evaluation.tasks[0].counts["queries"] == 4
    task = evaluation.report("embedder").task("set")
    assert task.main_metric == "p_mrr"
    assert len(task.per_query) == 2
    assert task.score == pytest.approx(sum(task.per_query.values()) / 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "q1", "changed": []}', "query 'q1' has no changed documents"),
        ('{"_id": "q1", "changed": ["nobody"]}', "names 1 unknown documents, such as 'nobody'"),
        ('{"_id": "q1"}', "wanted an object with '_id' and a list 'changed'"),
    ],
)
def test_broken_changes_are_named(tmp_path: Path, line: str, message: str) -> None:
    folder = write_following(tmp_path / "set")
    lines = (folder / "changed.jsonl").read_text().split("\n")
    (folder / "changed.jsonl").write_text("\n".join([line, *lines[1:]]))
    with pytest.raises(DataError, match=message):
        read_collection(folder)


def test_queries_come_in_pairs(tmp_path: Path) -> None:
    folder = write_following(tmp_path / "set", candidates=False)
    queries, qrels = folder / "queries.jsonl", folder / "qrels" / "test.tsv"
    queries.write_text(queries.read_text() + json.dumps({"_id": "q9-changed", "text": "x"}) + "\n")
    qrels.write_text(qrels.read_text() + "q9-changed\td0\t1\n")
    with pytest.raises(DataError, match="'q9-changed' has no judged twin 'q9-og'"):
        read_collection(folder)
    queries.write_text(queries.read_text().replace("q9-changed", "q9"))
    qrels.write_text(qrels.read_text().replace("q9-changed", "q9"))
    with pytest.raises(DataError, match="'q9' is none of a pair"):
        read_collection(folder)


def test_without_a_list_of_changes_there_is_no_p_mrr(tmp_path: Path) -> None:
    folder = write_following(tmp_path / "set")
    (folder / "changed.jsonl").unlink()
    with pytest.raises(DataError, match=r"changed\.jsonl: no such file; p-MRR needs"):
        evaluate([folder], HashEncoder(), None, TaskSettings(), tmp_path / "out")
