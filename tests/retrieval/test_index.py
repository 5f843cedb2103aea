"""The index on disk: against its exact twin, on bad input, after crashes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_embedding.errors import IndexCorruptError, NumericalError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.retrieval.exact import ExactIndex
from qwen3_embedding.retrieval.fusion import Fusion
from qwen3_embedding.retrieval.index import SearchIndex
from qwen3_embedding.retrieval.manifest import IndexSettings
from qwen3_embedding.retrieval.search import Mode, Plan, rerank_within
from tests.support.hashing import HashEncoder, OverlapScorer

WORDS = "river bridge water engine search vector index 机器 学习 語言 ประเทศ машина обучение weather music".split()  # noqa: SIM905
QUERIES = ["river bridge", "机器学习", "машина weather", "ประเทศ music engine"]


def make_documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "id": f"d{number:04}",
            "text": " ".join(chance.choices(WORDS, k=chance.randint(3, 20))),
            "language": chance.choice(["en", "zh"]),
            "year": 2000 + number % 20,
            "open": number % 2 == 0,
            "tags": chance.sample(["a", "b", "c"], k=2),
        }
        for number in range(count)
    ]


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder()


@pytest.fixture(scope="module")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prototype") / "index"
    SearchIndex.create(folder, HashEncoder()).add(make_documents(300))
    return folder


@pytest.fixture
def index(prototype: Path, tmp_path: Path, encoder: HashEncoder) -> SearchIndex:
    shutil.copytree(prototype, tmp_path / "index")
    return SearchIndex.open(tmp_path / "index", encoder)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchIndex, ExactIndex]:
    encoder = HashEncoder()
    index = SearchIndex.create(tmp_path_factory.mktemp("twins") / "index", encoder)
    exact = ExactIndex(encoder, k1=1.2, b=0.75)  # LanceDB's constants
    for part in range(3):  # rows merged into the text index and rows that are not yet
        documents = make_documents(330)[part * 110 : part * 110 + 110 - 20 * part]
        index.add(documents)
        exact.add(documents)
    return index, exact


@pytest.mark.parametrize("mode", ["dense", "text", "hybrid"])
@pytest.mark.parametrize("query", QUERIES)
def test_index_and_exact_twin_agree(twins: tuple[SearchIndex, ExactIndex], mode: Mode, query: str) -> None:
    index, exact = twins
    found = index.search(query, top_k=20, candidates=1000, mode=mode)
    wanted = exact.search(query, top_k=1000, candidates=1000, mode=mode)
    scores = {hit.id: hit.score for hit in wanted}
    assert len(found) == 20
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted[:20]], rel=1e-5, abs=1e-5)
    for hit in found:
        assert hit.score == pytest.approx(scores[hit.id], rel=1e-5, abs=1e-5)
        assert hit.origin == mode


WHERE: list[dict[str, Any]] = [
    {"language": "en"},
    {"language": {"ne": "en"}},
    {"language": ["en", "zh"], "year": {"gte": 2005, "lt": 2010}},
    {"year": 2003},
    {"year": {"in": [2001, 2002]}},
    {"open": True},
    {"open": {"ne": True}},
    {"tags": {"contains": "a"}, "language": "zh"},
]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mode", ["dense", "text", "hybrid"])
def test_filters_agree_with_the_twin(twins: tuple[SearchIndex, ExactIndex], mode: Mode, where: dict[str, Any]) -> None:
    index, exact = twins
    found = {hit.id for hit in index.search("river bridge", 1000, 1000, mode, where=where)}
    wanted = {hit.id for hit in exact.search("river bridge", 1000, 1000, mode, where=where)}
    assert found == wanted
    assert 0 < len(found) < 270 or where == {"language": ["en", "zh"]}


@pytest.mark.parametrize("first_pass", ["int8", "short", "binary", "hnsw-sq"])
def test_a_first_pass_over_small_vectors_is_rescored_in_float32(tmp_path: Path, first_pass: Any) -> None:
    encoder = HashEncoder(128)
    documents = make_documents(600)
    settings = IndexSettings(first_pass=first_pass, short_dimensions=64, oversample=8)
    index, exact = SearchIndex.create(tmp_path / "small", encoder, settings=settings), ExactIndex(encoder)
    index.add(documents)
    exact.add(documents)
    for query in QUERIES:
        found, wanted = index.search(query, 10), exact.search(query, 600)
        scores = {hit.id: hit.score for hit in wanted}
        assert [hit.score for hit in found] == pytest.approx([scores[hit.id] for hit in found], abs=1e-5)
        best = {hit.id for hit in wanted if hit.score >= wanted[9].score - 1e-6}
        assert len(best & {hit.id for hit in found}) >= 9


def test_fewer_dimensions_are_cut_then_normalised(tmp_path: Path, encoder: HashEncoder) -> None:
    index = SearchIndex.create(tmp_path / "i", encoder, settings=IndexSettings(dimensions=32))
    index.add(make_documents(20))
    query = encoder.embed_queries(["river"], dimensions=32)
    documents = encoder.embed_documents([d["text"] for d in make_documents(20)], dimensions=32)
    assert index.search("river", 1)[0].score == pytest.approx(float((documents @ query[0]).max()), abs=1e-5)


def test_reopened_index_gives_the_same_hits(index: SearchIndex, encoder: HashEncoder) -> None:
    before = index.search("river bridge", mode="hybrid")
    after = SearchIndex.open(index.folder, encoder).search("river bridge", mode="hybrid")
    assert before == after
    assert after[0].metadata.keys() == {"language", "year", "open", "tags"}
    assert isinstance(after[0].metadata["year"], int)


def test_strings_are_numbered_on_and_numbers_never_come_twice(tmp_path: Path, encoder: HashEncoder) -> None:
    index = SearchIndex.create(tmp_path / "i", encoder)
    assert index.add(["one", "two", "two"]) == ["0", "1", "2"]
    assert index.delete(["2"]) == 1
    again = SearchIndex.open(tmp_path / "i", encoder)
    assert again.add(["three"]) == ["3"]
    assert len(again) == 3
    assert again.search("three", 1)[0].id == "3"


def test_upsert_replaces_and_delete_removes(index: SearchIndex) -> None:
    index.upsert([{"id": "d0001", "text": "zebra crossing", "language": "sw"}, {"id": "new", "text": "a zebra"}])
    assert len(index) == 301
    assert {hit.id for hit in index.search("zebra", mode="text")} == {"d0001", "new"}
    assert index.search("zebra", mode="text", where={"language": "sw"})[0].metadata == {"language": "sw"}
    assert index.delete(["d0001", "new", "nobody", "new"]) == 2
    assert index.search("zebra", mode="text") == []
    assert len(index) == 299


def test_an_id_that_is_there_is_refused_and_nothing_is_written(index: SearchIndex) -> None:
    with pytest.raises(ValueError, match="'d0001'; use upsert"):
        index.add([{"id": "fresh", "text": "x"}, {"id": "d0001", "text": "y"}])
    assert len(index) == 300
    assert index.fetch(["fresh"]) == {}


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (None, TypeError, "documents is None"),
        ("one string", TypeError, "documents is str"),
        (7, TypeError, "documents is int"),
        ([None], TypeError, r"documents\[0\] is None"),
        (["fine", 3.5], TypeError, r"documents\[1\] is float"),
        ([{"id": "a"}], TypeError, "no 'text'"),
        ([{"text": None}], TypeError, r"\['text'\] is None"),
        ([{"id": ["a"], "text": "x"}], TypeError, r"\['id'\] is list"),
        ([{"id": "", "text": "x"}], ValueError, "is empty"),
        (["a\ud800b"], ValueError, "lone surrogate U\\+D800 at character 1"),
        ([{"id": "\udfff", "text": "x"}], ValueError, "lone surrogate"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], ValueError, "ids must differ"),
        ([{"text": "x", "when": object()}], TypeError, "JSON cannot hold"),
        ([{"text": "x", "n": float("nan")}], TypeError, "JSON cannot hold"),
        ([{"text": "x", "n": "\ud800"}], TypeError, "JSON cannot hold"),
    ],
)
def test_bad_documents_are_refused_and_nothing_is_written(
    index: SearchIndex, documents: Any, error: type[Exception], message: str
) -> None:
    for way in (index.add, index.upsert):
        with pytest.raises(error, match=message):
            way(documents)
    assert len(index) == 300
    assert index.search("river", 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query": None}, TypeError, "query is None"),
        ({"query": 3}, TypeError, "query is int"),
        ({"query": ["a"]}, TypeError, "query is list"),
        ({"query": "\ud800"}, ValueError, "lone surrogate"),
        ({"query": "a", "top_k": 0}, ValueError, "top_k=0"),
        ({"query": "a", "top_k": 2.5}, TypeError, "top_k is float"),
        ({"query": "a", "candidates": -1}, ValueError, "candidates=-1"),
        ({"query": "a", "mode": "bm25"}, ValueError, "wanted one of dense, text, hybrid"),
        ({"query": "a", "instruction": 5}, TypeError, "instruction is int"),
        ({"query": "a", "where": "x = 1"}, TypeError, "where is str"),
        ({"query": "a", "where": {"nobody": 1}}, ValueError, "no document has metadata 'nobody'"),
        ({"query": "a", "where": {"year": {"like": 1}}}, ValueError, "asks for 'like'"),
        ({"query": "a", "where": {"year": {"gt": None}}}, TypeError, "wanted text, a number or a boolean"),
        ({"query": "a", "where": {"year": float("inf")}}, ValueError, "finite"),
        ({"query": "a", "where": {"year": {"in": []}}}, ValueError, "at least one"),
        ({"query": "a", "where": {"language": {"in": ["en", 3]}}}, TypeError, "several kinds"),
    ],
)
def test_bad_queries_are_refused(
    index: SearchIndex, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        index.search(**options)


@pytest.mark.parametrize(
    "query",
    ["", " ", '"', '"unclosed', "river AND (bridge", "+river -bridge", "text:river", "river*", "a~9^3", "\\", "%'; --"],
)
def test_nothing_in_a_query_is_syntax(index: SearchIndex, query: str) -> None:
    for mode in ("text", "hybrid"):
        assert isinstance(index.search(query, mode=mode), list)
    operators = index.search("+river -bridge AND NOT", mode="text", top_k=300, candidates=300)
    assert {h.id for h in operators} == {h.id for h in index.search("river bridge", 300, 300, "text")}


def test_a_query_of_ten_megabytes_is_refused_and_a_long_one_is_not(index: SearchIndex) -> None:
    with pytest.raises(ValueError, match=r"full text takes up to 4096: shorten it"):
        index.search("河" * 3_400_000, mode="text")
    assert len(index.search("river bridge " * 2048, 300, 300, "text")) == len(
        index.search("river bridge", 300, 300, "text")
    )


def test_quotes_in_ids_and_filters_stay_text(index: SearchIndex) -> None:
    odd = "o'Brien\" OR 1=1 --"
    index.add([{"id": odd, "text": "odd one", "Näme `x`": odd}])
    assert index.fetch([odd])[odd].text == "odd one"
    assert [hit.id for hit in index.search("odd", where={"Näme `x`": odd})] == [odd]
    assert index.delete(["' OR '1'='1"]) == 0
    assert index.delete([odd]) == 1
    assert len(index) == 300


def test_empty_index_and_empty_additions(tmp_path: Path, encoder: HashEncoder) -> None:
    index = SearchIndex.create(tmp_path / "i", encoder, OverlapScorer())
    assert index.add([]) == []
    assert index.delete([]) == 0
    for mode in ("dense", "text", "hybrid"):
        assert index.search("anything", mode=mode) == []
    assert index.run([], Plan()).hits == []


def test_reranker_orders_the_candidates(tmp_path: Path, encoder: HashEncoder) -> None:
    scorer = OverlapScorer()
    index = SearchIndex.create(tmp_path / "i", encoder, scorer, instruction="the task")
    index.add(make_documents(50))
    hits = index.search("river bridge music", top_k=5, candidates=50)
    assert [hit.origin for hit in hits] == ["rerank"] * 5
    texts = [document["text"] for document in make_documents(50)]
    assert [hit.score for hit in hits] == sorted(scorer.score("river bridge music", texts), reverse=True)[:5]
    index.search("river", instruction="another")
    assert [told for told in scorer.instructions if told] == ["the task", "another"]
    assert index.search("river bridge music", rerank=False)[0].origin == "dense"


def test_with_the_real_embedder_and_reranker(tmp_path: Path, embedder: Embedder, reranker: Reranker) -> None:
    documents = [
        "Paris is the capital of France.",
        "水是生命之源。",
        "def add(a, b): return a + b",
        "Bridges cross rivers.",
    ]
    index = SearchIndex.create(tmp_path / "i", embedder, reranker)
    index.add(documents)
    found = index.search("Which river?", top_k=4, rerank=False, instruction="Find it")
    vectors = embedder.embed_queries(["Which river?"], instruction="Find it") @ embedder.embed_documents(documents).T
    assert [hit.score for hit in found] == pytest.approx(sorted(vectors[0], reverse=True), abs=1e-5)
    reranked = index.search("Which river?", top_k=4, mode="hybrid", instruction="Find it")
    scores = reranker.score("Which river?", documents, instruction="Find it")
    assert [hit.score for hit in reranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert len(SearchIndex.open(tmp_path / "i", embedder)) == 4


def test_another_model_is_refused(index: SearchIndex, embedder: Embedder) -> None:
    with pytest.raises(ValueError, match=r"made with 'hash' .* gives other vectors"):
        SearchIndex.open(index.folder, HashEncoder(seed=7))
    with pytest.raises(ValueError, match="has 16"):
        SearchIndex.open(index.folder, HashEncoder(16))
    with pytest.raises(ValueError, match="the model it was made with"):
        SearchIndex.open(index.folder, embedder)
    assert len(SearchIndex.open(index.folder, HashEncoder(name="the same under another name"))) == 300


def test_without_an_embedder_text_search_is_left(index: SearchIndex) -> None:
    opened = SearchIndex.open(index.folder)
    assert opened.search("river", mode="text")
    with pytest.raises(ValueError, match="mode='dense' needs an embedder"):
        opened.search("river")
    with pytest.raises(ValueError, match="adding needs an embedder"):
        opened.add(["x"])


def test_a_folder_in_use_is_not_overwritten(index: SearchIndex, encoder: HashEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        SearchIndex.create(index.folder, encoder)
    assert len(index) == 300
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        SearchIndex.create(tmp_path / "file", encoder)


@pytest.mark.parametrize("dimensions", [0, -1, 65, 1000])
def test_dimensions_out_of_range_are_refused(tmp_path: Path, encoder: HashEncoder, dimensions: int) -> None:
    with pytest.raises(ValueError, match="dimensions="):
        SearchIndex.create(tmp_path / "i", encoder, settings=IndexSettings(dimensions=dimensions))
    assert list(tmp_path.iterdir()) == []


class _Wrong(HashEncoder):
    """An encoder that begins to give something else."""

    answer: Any = None

    def _embed(self, texts: Any, dimensions: int | None) -> Any:
        return super()._embed(texts, dimensions) if self.answer is None else self.answer(len(texts), self.dimensions)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda n, d: np.full((n, d), np.nan, dtype=np.float32), NumericalError),
        (lambda n, d: np.zeros((n, d), dtype=np.float32), NumericalError),
        (lambda n, d: np.ones((n, d + 1), dtype=np.float32), ValueError),
        (lambda n, d: np.ones((n + 1, d), dtype=np.float32), ValueError),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path: Path, answer: Any, error: type[Exception]) -> None:
    encoder = _Wrong()
    index = SearchIndex.create(tmp_path / "i", encoder)
    index.add(["a good one"])
    encoder.answer = answer
    with pytest.raises(error, match="encoder 'hash'"):
        index.add(["a bad one"])
    with pytest.raises(error, match="encoder 'hash'"):
        index.search("x")
    assert len(index) == 1


def _break_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "not the manifest"),
        ('{"format": "other"}', "not the manifest"),
        ('{"format": "qwen3-embedding-index", "version": 99}', "another version"),
        ('{"format": "qwen3-embedding-index", "version": 1, "analysis": 1}', "missing key"),
    ],
)
def test_a_broken_manifest_is_named_and_the_documents_stay(index: SearchIndex, manifest: str, message: str) -> None:
    good = (index.folder / "manifest.json").read_text()
    _break_manifest(index.folder, manifest)
    with pytest.raises(IndexCorruptError, match=message):
        SearchIndex.open(index.folder)
    _break_manifest(index.folder, good)
    assert len(SearchIndex.open(index.folder)) == 300


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexCorruptError, match="no search index"):
        SearchIndex.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexCorruptError, match="no search index"):
        SearchIndex.open(tmp_path / "file")


def test_dimensions_that_contradict_the_table_are_named(index: SearchIndex) -> None:
    path = index.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "dimensions": 32, "probe": manifest["probe"][:32]}))
    with pytest.raises(IndexCorruptError, match="32 dimensions and the table has 64"):
        SearchIndex.open(index.folder)


@pytest.mark.parametrize("victim", ["_versions", "data", "everything"])
def test_torn_tables_are_corrupt_not_empty(index: SearchIndex, encoder: HashEncoder, victim: str) -> None:
    table = next(index.folder.glob("documents*"))
    for path in table.rglob("*"):
        if path.is_file() and (victim == "everything" or victim in path.relative_to(table).parts):
            path.write_bytes(path.read_bytes()[:7])

    def use() -> None:
        opened = SearchIndex.open(index.folder, encoder)
        opened.search("river bridge", mode="dense")

    with pytest.raises(IndexCorruptError, match="cannot be read"):
        use()


def test_a_process_killed_while_adding_loses_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from qwen3_embedding.retrieval.index import SearchIndex
        from qwen3_embedding.retrieval.manifest import IndexSettings
        from tests.support.hashing import HashEncoder

        class Dying(HashEncoder):
            def _embed(self, texts, dimensions):
                if "poison" in texts:
                    os._exit(9)
                return super()._embed(texts, dimensions)

        index = SearchIndex.create(sys.argv[1], Dying(), settings=IndexSettings(batch_size=10))
        index.add([f"text {i}" for i in range(25)])
        index.add([f"more {i}" for i in range(15)] + ["poison"])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "i")], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 9
    index = SearchIndex.open(tmp_path / "i", HashEncoder())
    assert len(index) == 35
    assert index.search("more 3", mode="text", top_k=1)[0].text == "more 3"
    assert index.add(["after"]) == ["41"]


def test_optimize_keeps_the_answers(index: SearchIndex) -> None:
    index.delete([f"d{number:04}" for number in range(100)])
    before = [index.search(query) for query in QUERIES]
    index.optimize()
    assert [index.search(query) for query in QUERIES] == before
    assert len(index) == 200
    assert all(hit.id >= "d0100" for query in QUERIES for hit in index.search(query, 300, 300, "text"))


@pytest.mark.filterwarnings("ignore:optimize.cleanup_older_than=0")
def test_optimize_frees_what_old_versions_hold(index: SearchIndex) -> None:
    for _ in range(4):
        index.upsert([{"id": f"d{number:04}", "text": WORDS[number % len(WORDS)]} for number in range(150)])
    before = [index.search(query) for query in QUERIES]
    index.optimize()
    kept = _bytes(index.folder)
    index.optimize(keep=timedelta(0))
    assert _bytes(index.folder) < 0.6 * kept
    assert [index.search(query) for query in QUERIES] == before


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_weights_of_the_legs(index: SearchIndex) -> None:
    text = [hit.id for hit in index.search("river bridge", mode="text", candidates=10)]
    only_text = index.search("river bridge", mode="hybrid", candidates=10, fusion=Fusion(dense_weight=0))
    assert [hit.id for hit in only_text] == text


def test_timing_adds_up(index: SearchIndex) -> None:
    results = index.run(QUERIES, Plan(mode="hybrid"))
    assert len(results.hits) == len(QUERIES)
    timing = results.timing
    assert timing.total_s == timing.embed_s + timing.retrieve_s + timing.rerank_s
    assert timing.embed_s > 0
    assert timing.retrieve_s > 0
    assert timing.stages().keys() == {"embed", "candidates", "rescore", "text", "fetch", "rerank"}
    assert sum(timing.stages().values()) == pytest.approx(timing.total_s)
    assert min(timing.candidates_s, timing.text_s, timing.fetch_s) > 0
    assert timing.rescore_s == timing.rerank_s == 0, "no first pass over smaller vectors, no reranker"


class _Slow(OverlapScorer):
    """A scorer that takes so many seconds a document."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.seen = 0

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> Any:
        time.sleep(self.seconds * len(documents))
        self.seen += len(documents)
        return super().score(query, documents, instruction)


def test_a_budget_ends_the_reranking_in_time(index: SearchIndex) -> None:
    query, seconds, each = "river bridge music", 0.6, 0.005
    found = index.search(query, 300, 300, rerank=False)
    scorer = _Slow(each)
    ordered, reranked = rerank_within(scorer, query, found, seconds)
    assert 8 <= reranked == scorer.seen < 300
    assert reranked * each <= seconds
    head, tail = ordered[:reranked], ordered[reranked:]
    assert {hit.id for hit in head} == {hit.id for hit in found[:reranked]}, "the best candidates first"
    assert [hit.score for hit in head] == sorted((hit.score for hit in head), reverse=True)
    assert {hit.origin for hit in head} == {"rerank"}
    assert tail == found[reranked:], "what there was no time for follows as it was found"


def test_the_first_stage_keeps_its_share_of_the_order(index: SearchIndex) -> None:
    query, index.reranker = "river bridge music", OverlapScorer()
    first = index.search(query, 100, rerank=False)
    alone = index.search(query, 100)
    scores = {hit.id: hit.score for hit in alone}
    stretched = [
        (values - values.min()) / np.ptp(values)
        for values in (np.array([hit.score for hit in first]), np.array([scores[hit.id] for hit in first]))
    ]
    expected = dict(zip([hit.id for hit in first], 0.75 * stretched[0] + 0.25 * stretched[1], strict=True))
    found = index.search(query, 100, rerank_weight=0.25)
    assert [hit.score for hit in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
    assert {hit.id: hit.score for hit in found} == pytest.approx(expected, abs=1e-5)
    assert [hit.id for hit in found] not in ([hit.id for hit in first], [hit.id for hit in alone])
    assert [hit.id for hit in index.search(query, 100, rerank_weight=0)] == [hit.id for hit in first]
    with_budget = index.run([query], Plan(100, rerank_weight=0.25, budget_ms=600_000))
    assert with_budget.hits == [found], "a budget takes the scores in parts and stretches them together"


def test_a_budget_that_suffices_changes_nothing(index: SearchIndex) -> None:
    index.reranker = OverlapScorer()
    results = index.run(QUERIES, Plan(budget_ms=600_000))
    assert results.reranked == [100] * len(QUERIES)
    assert results.hits == [index.search(query) for query in QUERIES]


def test_a_budget_that_is_spent_before_the_reranker_keeps_the_first_stage(index: SearchIndex) -> None:
    index.reranker = _Slow(0.01)
    results = index.run(QUERIES, Plan(budget_ms=1e-6))
    assert results.reranked == [0] * len(QUERIES)
    assert {hit.origin for hits in results.hits for hit in hits} == {"dense"}
    for bad in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="budget_ms="):
            index.search("river", budget_ms=bad)
