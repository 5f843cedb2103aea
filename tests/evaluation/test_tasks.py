"""Every kind of local task, by hand computed, and what broken data says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_embedding.errors import DataError, NumericalError
from qwen3_embedding.evaluation.cache import ArrayCache, CachedEncoder, CachedScorer
from qwen3_embedding.evaluation.collection import read_collection, read_info, read_pairs
from qwen3_embedding.evaluation.demo import COLLECTION
from qwen3_embedding.evaluation.metrics import evaluate_run, spearman
from qwen3_embedding.evaluation.tasks import TaskScores, TaskSettings, run_task
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.retrieval.exact import ExactIndex
from qwen3_embedding.retrieval.passages import passages
from tests.evaluation.collections import write_every_kind, write_info, write_retrieval
from tests.support.hashing import HashEncoder, OverlapScorer
from tests.support.tasks import write_task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_kind(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArrayCache]:
    with ArrayCache(tmp_path / "cache.sqlite") as cache:
        yield cache


def score(folder: Path, cache: ArrayCache, settings: TaskSettings | None = None, scorer: bool = False) -> TaskScores:
    encoder, reranker = CachedEncoder(HashEncoder(), cache), CachedScorer(OverlapScorer(), cache) if scorer else None
    return run_task(folder, encoder, reranker, settings or TaskSettings(), lambda line: None)[0]


def test_retrieval_columns_are_what_the_exact_index_finds(tasks: Path, cache: ArrayCache) -> None:
    found = score(tasks / "retrieval", cache)
    collection = read_collection(tasks / "retrieval")
    index = ExactIndex(HashEncoder())
    index.add([{"id": one, "text": text} for one, text in collection.documents.items()])
    for column, mode in (("bm25", "text"), ("embedder", "dense"), ("hybrid", "hybrid")):
        run = {
            query: {hit.id: hit.score for hit in index.search(text, 1000, 1000, mode)}  # type: ignore[arg-type]
            for query, text in collection.queries.items()
        }
        assert found.scores[column] == pytest.approx(
            evaluate_run(collection.qrels, run, list(found.scores[column])).mean
        )
    assert set(found.per_language["bm25"]) == {"de", "en", "zh"}
    assert found.counts == {"documents": 24, "queries": 24}
    assert found.speed["documents_per_s"] is not None


def test_documents_are_scored_by_their_passages_too(tmp_path: Path, cache: ArrayCache) -> None:
    """Against a loop over all passages; BM25 is as it was."""
    nouns = ("harbour", "glacier", "orchard", "violin", "lantern", "canyon")
    documents = {
        noun: " ".join([*nouns[i + 1 :], "a", noun, "stands", "alone", *nouns[:i], "here"]) * (i + 1)
        for i, noun in enumerate(nouns)
    }
    queries = {noun: f"which {noun} stands alone" for noun in nouns}
    task = write_task(tmp_path / "task", documents, queries, {noun: noun for noun in nouns})
    plain, found = score(task, cache), score(task, cache, TaskSettings(passage_words=4))
    encoder = HashEncoder()
    run: dict[str, dict[str, float]] = {}
    for query, text in queries.items():
        (query_D,) = encoder.embed_queries([text])
        run[query] = {}
        for one, document in documents.items():
            parts = passages(document, 4)
            assert len(parts) > 1
            whole, *others = (float(v) for v in encoder.embed_documents([document, *parts]) @ query_D)
            run[query][one] = (whole + max(others)) / 2
    wanted = evaluate_run(read_collection(task).qrels, run, list(found.scores["embedder"])).mean
    assert found.scores["embedder"] == pytest.approx(wanted)
    assert found.scores["embedder"]["ndcg@10"] > plain.scores["embedder"]["ndcg@10"]
    assert found.scores["bm25"] == plain.scores["bm25"]
    with pytest.raises(ValueError, match="wanted at least 4"):
        TaskSettings(passage_words=2)


def test_reranker_orders_the_first_candidates_and_leaves_the_rest(tasks: Path, cache: ArrayCache) -> None:
    settings = TaskSettings(candidates=4, first_stage="bm25")
    encoder, scorer = CachedEncoder(HashEncoder(), cache), CachedScorer(OverlapScorer(), cache)
    _, predictions = run_task(tasks / "retrieval", encoder, scorer, settings, lambda line: None)
    for query, ranking in predictions.rankings["reranker"].items():
        before = [document for document, _ in predictions.rankings["bm25"][query]]
        after = [document for document, _ in ranking]
        assert set(after[:4]) == set(before[:4])
        assert after[4:] == before[4:]
    assert scorer.scorer.instructions == ["Find the paragraph"] * 24  # type: ignore[attr-defined]


def test_a_reranker_with_a_share_orders_as_search_does(tasks: Path, cache: ArrayCache) -> None:
    settings = TaskSettings(candidates=6, first_stage="bm25", rerank_weight=0.3)
    encoder, scorer = CachedEncoder(HashEncoder(), cache), CachedScorer(OverlapScorer(), cache)
    _, predictions = run_task(tasks / "retrieval", encoder, scorer, settings, lambda line: None)
    collection = read_collection(tasks / "retrieval")
    index = ExactIndex(HashEncoder(), OverlapScorer())
    index.add([{"id": one, "text": text} for one, text in collection.documents.items()])
    for query, text in collection.queries.items():
        hits = index.search(text, 6, 6, "text", instruction="Find the paragraph", rerank_weight=0.3)
        assert [hit.id for hit in hits] == [one for one, _ in predictions.rankings["reranker"][query]][: len(hits)]


def test_reranking_orders_candidates_alone(tasks: Path, cache: ArrayCache) -> None:
    found = score(tasks / "reranking", cache, scorer=True)
    assert set(found.scores) == {"bm25", "embedder", "hybrid", "reranker"}
    assert "recall@100" not in found.scores["embedder"]


def test_sts_is_the_mean_of_languages_with_the_instruction_on_both_sides(tasks: Path, cache: ArrayCache) -> None:
    found = score(tasks / "sts", cache)
    pairs = read_pairs(tasks / "sts", "sts")
    encoder = HashEncoder()
    cosines = np.sum(encoder.embed_queries(pairs.left) * encoder.embed_queries(pairs.right), axis=1)
    wanted = {
        language: spearman(
            [c for c, other in zip(cosines, pairs.languages, strict=True) if other == language],
            [v for v, other in zip(pairs.values, pairs.languages, strict=True) if other == language],
        )
        for language in ("de", "en", "zh")
    }
    assert found.per_language["embedder"] == pytest.approx(wanted, abs=1e-6)
    assert found.scores["embedder"]["spearman"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "metric", "least"),
    [
        ("pair", "average_precision", 0.99),
        ("bitext", "accuracy", 0.9),
        ("classification", "accuracy", 0.9),
        ("clustering", "v_measure", 0.05),
    ],
)
def test_other_kinds(tasks: Path, cache: ArrayCache, kind: str, metric: str, least: float) -> None:
    found = score(tasks / kind, cache)
    assert found.main_metric == metric
    assert least <= found.scores["embedder"][metric] <= 1.0


def test_with_the_real_embedder(tasks: Path, cache: ArrayCache, embedder: Embedder) -> None:
    encoder = CachedEncoder(embedder, cache)
    found, _ = run_task(tasks / "retrieval", encoder, None, TaskSettings(dimensions=32), lambda line: None)
    assert 0 < found.scores["embedder"]["ndcg@10"] < 1
    with_task = embedder.embed_queries(["a"], "Find it", dimensions=32)
    assert np.array_equal(encoder.embed_queries(["a"], "Find it", dimensions=32), with_task)
    assert not np.array_equal(encoder.embed_queries(["a"], "Find that", dimensions=32), with_task)


def test_a_sample_of_queries_is_the_same_every_time(tasks: Path, cache: ArrayCache) -> None:
    settings = TaskSettings(max_queries=5)
    first, second = (score(tasks / "retrieval", cache, settings) for _ in range(2))
    assert first.counts["queries"] == 5
    assert first.scores == second.scores


def test_the_cache_computes_nothing_twice_and_keeps_models_apart(cache: ArrayCache) -> None:
    one = CachedEncoder(HashEncoder(), cache)
    vectors = one.embed_documents(["a", "b", "a"])
    assert one.documents.items == 2
    again = CachedEncoder(HashEncoder(), cache)
    assert np.array_equal(again.embed_documents(["a", "b", "a"]), vectors)
    assert again.documents.items == 0
    assert again.documents.rate is None
    again.embed_queries(["a"])
    again.embed_documents(["a"], dimensions=32)
    assert (again.queries.items, again.documents.items) == (1, 1)
    other = CachedEncoder(HashEncoder(name="other", seed=3), cache)
    assert not np.array_equal(other.embed_documents(["a", "b", "a"]), vectors)
    assert one.embed_documents([]).shape == (0, 64)


def test_a_torn_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(DataError, match=r"no usable cache.*delete it"):
        ArrayCache(tmp_path / "cache.sqlite")


class _NaN(HashEncoder):
    def _embed(self, texts: Any, dimensions: int | None) -> Any:
        return super()._embed(texts, dimensions) * np.nan


class _NaNScorer(OverlapScorer):
    def score_pairs(self, queries: Any, documents: Any, instruction: str | None = None) -> Any:
        return super().score_pairs(queries, documents, instruction) * np.nan


def test_vectors_and_scores_that_are_not_finite_are_an_error_not_a_zero(tasks: Path, cache: ArrayCache) -> None:
    def quiet(line: str) -> None: ...

    with pytest.raises(NumericalError, match="not finite"):
        run_task(tasks / "retrieval", CachedEncoder(_NaN(), cache), None, TaskSettings(), quiet)
    with pytest.raises(NumericalError, match="not finite"):
        run_task(tasks / "sts", CachedEncoder(_NaN(), cache), None, TaskSettings(), quiet)
    with pytest.raises(NumericalError, match="not finite"):
        run_task(tasks / "retrieval", None, CachedScorer(_NaNScorer(), cache), TaskSettings(), quiet)
    with pytest.raises(ValueError, match="needs an embedder"):
        run_task(tasks / "sts", None, None, TaskSettings(), quiet)


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[number] = line
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{", r"corpus.jsonl: line 2: not JSON"),
        ("corpus.jsonl", "7", r"line 2: is int; wanted an object"),
        ("corpus.jsonl", '{"_id": "x"}', r"line 2: wanted an object with '_id' and 'text'"),
        ("corpus.jsonl", '{"_id": "de-p0", "text": "x"}', r"line 2: the id 'de-p0' a second time"),
        ("corpus.jsonl", '{"_id": "fresh", "text": "x"}', r"names 1 unknown documents, such as 'de-p1'"),
        ("queries.jsonl", '{"_id": "fresh", "text": "x"}', r"names 1 unknown queries, such as 'de-q1'"),
        ("qrels/test.tsv", "de-q0\tde-p0", r"line 2: 2 tab-separated cells; wanted 3"),
        ("qrels/test.tsv", "de-q0\tde-p0\t1.5", r"line 2: grade '1.5'"),
        ("qrels/test.tsv", "de-q0\tnobody\t1", r"names 1 unknown documents, such as 'nobody'"),
        ("qrels/test.tsv", "nobody\tde-p0\t1", r"names 1 unknown queries, such as 'nobody'"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    folder = write_retrieval(tmp_path / "set")
    replace_line(folder / file, 1, line)
    with pytest.raises(DataError, match=message):
        read_collection(folder)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_and_empty_files_are_named(tmp_path: Path, file: str) -> None:
    folder = write_retrieval(tmp_path / "set")
    (folder / file).write_text("")
    with pytest.raises(DataError, match=r"is empty|holds no judgement"):
        read_collection(folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match="no such file"):
        read_collection(folder)


def test_a_query_without_judgement_or_relevant_document_is_named(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "set")
    with (folder / "queries.jsonl").open("a") as queries:
        queries.write('{"_id": "lonely", "text": "who?"}\n')
    with pytest.raises(DataError, match="1 queries have no judgement, such as 'lonely'"):
        read_collection(folder)
    with (folder / "qrels" / "test.tsv").open("a") as qrels:
        qrels.write("lonely\tde-p0\t0\n")
    with pytest.raises(DataError, match="'lonely' has judgements and no relevant document"):
        read_collection(folder)


def test_the_queries_of_another_split_are_left_out(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "set")
    with (folder / "queries.jsonl").open("a") as queries:
        queries.write('{"_id": "lonely", "text": "who?"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nlonely\tde-p0\t1\n")
    assert len(read_collection(folder).queries) == 24
    assert list(read_collection(folder, "train").queries) == ["lonely"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'score'"),
        ("score\tsentence1\n", "no column 'sentence2'"),
        ("score\tsentence1\tsentence2\n", "holds no pair"),
        ("score\tsentence1\tsentence2\nx\ta\tb\n", "line 2: 'x' is no number"),
        ("score\tsentence1\tsentence2\n1\ta\n", "line 2: 2 tab-separated cells; wanted 3"),
    ],
)
def test_broken_pairs_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path, "sts")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"kind": "poetry"})])
def test_a_broken_description_is_named(tmp_path: Path, text: str) -> None:
    write_info(tmp_path / "set", "sts", "spearman")
    (tmp_path / "set" / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_info(tmp_path / "set")


def test_bm25_on_the_bundled_collection_is_at_the_published_baseline(cache: ArrayCache) -> None:
    info = read_info(COLLECTION)
    found, _ = run_task(COLLECTION, None, None, TaskSettings(max_queries=330, depth=100), lambda line: None)
    assert found.scores["bm25"]["ndcg@10"] == pytest.approx(info.bm25["ndcg@10"], abs=0.02)
    assert (COLLECTION / "LICENCE").read_text().startswith("XQuAD-R")
