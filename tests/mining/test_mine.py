"""Mining as a whole: against a plain loop, with real models, killed and resumed, counted to the last candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_embedding import Embedder, Reranker
from qwen3_embedding.data.dedup import text_hash
from qwen3_embedding.data.record import Record
from qwen3_embedding.mining.filters import Verdict
from qwen3_embedding.mining.mine import Miner, Models
from qwen3_embedding.mining.report import REASONS
from qwen3_embedding.mining.settings import FilterSettings, MiningSettings, VerifySettings
from qwen3_embedding.types import Encoder, FloatArray, Precision, Scorer, Vectors

NO_BOUND = FilterSettings(positive_share=None)


class Plane:
    """An encoder whose vectors a reader can see: ``"any words @30"`` lies at 30 degrees."""

    name = "plane"
    dimensions = 2

    def __init__(self, limit: int | None = None) -> None:
        self.seen: list[str] = []
        self._limit = limit

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """Instructions of the form ``@N`` turn the query by N degrees."""
        return self._vectors([f"{text}{(instruction or '@0').replace('@', '+')}" for text in texts])

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        return self._vectors(texts)

    def _vectors(self, texts: Sequence[str]) -> FloatArray:
        if self._limit is not None and len(self.seen) + len(texts) > self._limit:
            raise KeyboardInterrupt
        self.seen += texts
        angles = [sum(map(float, text.split("@")[1].split("+"))) for text in texts]
        return np.array([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles], np.float32)


class Judge:
    """A scorer that takes documents with the word ``answer`` for answers."""

    name = "judge"

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> FloatArray:
        self.pairs += [(query, document) for document in documents]
        return np.array([0.9 if "answer" in document else 0.1 for document in documents], np.float32)

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None
    ) -> FloatArray:
        return np.concatenate([self.score(q, [d], instruction) for q, d in zip(queries, documents, strict=True)])


def record(query: str, *positives: str, **changes: Any) -> Record:
    return Record(query=query, positives=positives, source="test", **{"task": "retrieval", **changes})


def miner(
    folder: Path, settings: MiningSettings, encoder: Encoder | None = None, scorer: Scorer | None = None
) -> Miner:
    encoder = encoder or Plane()
    return Miner(Models(encoder, encoder.name, scorer, scorer.name if scorer else ""), settings, folder)


def negatives(
    folder: Path, records: Sequence[Record], corpus: Sequence[str], settings: MiningSettings
) -> list[list[str]]:
    return [list(r.negatives) for r in miner(folder, settings).mine(records, corpus)]


def test_the_nearest_that_are_no_answers_come_first(tmp_path: Path) -> None:
    records = [record("q @0", "right @10")]
    corpus = ["e @50", "a @12", "d @40", "b @20", "c @-30"]
    settings = MiningSettings(negatives=3, depth=10, filter=NO_BOUND)
    assert negatives(tmp_path, records, corpus, settings) == [["a @12", "b @20", "c @-30"]]
    bound = replace(settings, filter=FilterSettings(positive_share=0.95))  # cos 10 * 0.95 = cos 20.7
    assert negatives(tmp_path, records, corpus, bound) == [["c @-30", "d @40", "e @50"]]
    skip = replace(settings, filter=replace(NO_BOUND, skip_first=2))
    assert negatives(tmp_path, records, corpus, skip) == [["c @-30", "d @40", "e @50"]]


def test_the_lowest_positive_sets_the_bound(tmp_path: Path) -> None:
    records = [record("q @0", "near @1", "far @60")]  # cos 60 * 0.95 = 0.475 = cos 61.6
    settings = MiningSettings(negatives=2, depth=10)
    assert negatives(tmp_path, records, ["between @30", "below @61", "past @62"], settings) == [["past @62"]]


def test_below_the_bounds_there_are_negatives_for_badly_ranked_positives_too(tmp_path: Path) -> None:
    records = [record("q @0", "far @60"), record("r @10", "near @15")]
    corpus = [f"better {i} @{i}" for i in range(20, 50)] + ["below @62", "behind @70"]
    dropping = MiningSettings(negatives=2, depth=10)
    assert negatives(tmp_path, records, corpus, dropping)[0] == []
    below = replace(dropping, filter=FilterSettings(below_bounds=True))
    run = miner(tmp_path, below)
    assert [r.negatives for r in run.mine(records, corpus)] == [
        ("below @62", "behind @70"),
        ("better 29 @29", "better 30 @30"),
    ]
    assert run.report.candidates[Verdict.POSITIVE_SHARE] == 0
    assert sum(run.report.candidates.values()) == 2 + 10  # no more than these two are below the first record's bound


def test_a_positive_on_the_far_side_still_bounds(tmp_path: Path) -> None:
    records = [record("q @0", "opposite @120")]  # cos 120 = -0.5; bound -0.525 = cos 121.7
    settings = MiningSettings(negatives=2, depth=10)
    assert negatives(tmp_path, records, ["better @119", "alike @121", "worse @123"], settings) == [["worse @123"]]


def test_positives_of_the_same_query_text_are_never_negatives(tmp_path: Path) -> None:
    records = [
        record("What is it? @0", "first @5"),
        record("what  IS it? @0", "second @6", instruction="@1"),
        record("other @0", "third @7"),
    ]
    settings = MiningSettings(negatives=5, depth=10, filter=NO_BOUND)
    found = negatives(tmp_path, records, ["SECOND  @6", "what is it? @0"], settings)
    assert found == [["third @7"], ["third @7"], ["what is it? @0", "first @5", "second @6"]]


def test_instructions_change_the_query(tmp_path: Path) -> None:
    records = [record("q @0", "p @180", instruction="@90"), record("q @0", "p @180")]
    settings = MiningSettings(negatives=1, depth=5, filter=NO_BOUND)
    assert negatives(tmp_path, records, ["up @90", "right @0"], settings) == [["up @90"], ["right @0"]]


def test_existing_negatives_are_kept_in_front_or_replaced(tmp_path: Path) -> None:
    records = [record("q @0", "p @1", negatives=("old @20",))]
    settings = MiningSettings(negatives=2, depth=10, filter=NO_BOUND)
    assert negatives(tmp_path, records, ["new @30"], settings) == [["old @20", "new @30"]]
    fresh = replace(settings, keep_existing=False)
    assert negatives(tmp_path, records, ["new @30"], fresh) == [["new @30"]]


def test_other_tasks_pass_unchanged_in_their_place_and_lend_no_texts(tmp_path: Path) -> None:
    labelled = record("text @0", "label @1", task="classification", negatives=("other label @2",))
    records = [record("a @0", "b @10"), labelled, record("c @0", "d @20")]
    run = miner(tmp_path, MiningSettings(negatives=3, depth=5, filter=NO_BOUND))
    out = list(run.mine(records))
    assert out[1] is labelled
    assert [r.query for r in out] == ["a @0", "text @0", "c @0"]
    assert out[0].negatives == ("d @20",)
    assert run.report.passed_through == {"classification": 1}


def test_records_left_with_too_few_negatives_are_left_out_on_request(tmp_path: Path) -> None:
    records = [record("a @0", "b @10"), record("c @0", "d @80")]
    run = miner(tmp_path, MiningSettings(negatives=2, depth=5, drop_below=1))
    assert [r.query for r in run.mine(records)] == ["a @0"]  # for c only b @10 is there, which is better than d
    assert run.report.dropped_few_negatives == 1
    assert run.report.negatives == {0: 1, 1: 1}


def test_the_reranker_takes_answers_out_and_wrong_pairs_too(tmp_path: Path) -> None:
    records = [record("q @0", "the answer @10"), record("wrong @0", "nothing @40")]
    corpus = ["another answer @20", "chaff @30", "late answer @50", "deep chaff @60", "deeper @70"]
    verify = VerifySettings(max_score=0.5, min_positive=0.5, depth=4)
    settings = MiningSettings(negatives=3, depth=10, filter=NO_BOUND, verify=verify)
    judge = Judge()
    run = miner(tmp_path, settings, scorer=judge)
    out = list(run.mine(records, corpus))
    assert [r.negatives for r in out] == [("chaff @30", "nothing @40")]
    assert run.report.dropped_weak_positive == 1
    assert run.report.candidates[Verdict.RERANKER] == 2
    assert run.report.scored_pairs == len(judge.pairs) == 10
    second = Judge()
    again = miner(tmp_path, settings, scorer=second)
    assert list(again.mine(records, corpus)) == out
    assert second.pairs == []
    assert again.report.scored_pairs == again.report.encoded == 0


def test_every_candidate_is_counted_under_one_reason(tmp_path: Path) -> None:
    records = [record(f"q{i} @{i}", f"p{i} @{i + 20}") for i in range(0, 40, 2)]
    corpus = [f"c{i} @{i}" for i in range(-90, 90, 3)]
    bounds = FilterSettings(skip_first=2, positive_share=0.98, max_score=0.99, min_score=0.75)
    run = miner(tmp_path, MiningSettings(negatives=4, depth=50, filter=bounds, query_block=7))
    out = list(run.mine(records, corpus))
    report = run.report
    assert sum(report.candidates.values()) == 20 * 50
    assert report.candidates[Verdict.KEPT] == sum(len(r.negatives) for r in out) == 20 * 4
    assert report.candidates[Verdict.SKIPPED] == 20 * 2
    assert report.records == report.mined == report.judged == 20
    stored = report.to_json()
    assert sum(stored["candidates"].values()) == 1000
    assert stored["mean_negative_score"] < stored["mean_positive_score"] == pytest.approx(math.cos(math.radians(20)))
    assert stored["samples"]["kept"][0]["query"] == "q0 @0"
    text = "\n".join(report.lines())
    assert all(REASONS[v] in text for v in (Verdict.KEPT, Verdict.SKIPPED, Verdict.MIN_SCORE))


def plain_loop(records: Sequence[Record], corpus: Sequence[str], encoder: Encoder, count: int) -> list[list[str]]:
    """Mining by sorting everything, one record at a time."""
    texts = list(dict.fromkeys([t for r in records for t in (*r.positives, *r.negatives)] + list(corpus)))
    matrix = encoder.embed_documents(texts)
    out = []
    for r in records:
        scores = matrix @ encoder.embed_queries([r.query], r.instruction)[0]
        bound = min(scores[texts.index(p)] for p in r.positives)
        bound -= 0.05 * abs(bound)
        banned = {text_hash(t) for t in (r.query, *r.positives, *r.negatives)}
        order = [
            i for i in np.argsort(-scores, kind="stable") if scores[i] <= bound and text_hash(texts[i]) not in banned
        ]
        out.append([*r.negatives, *(texts[i] for i in order[:count])])
    return out


WORDS = ("tide", "moon", "gravity", "river", "bank", "money", "loan", "credit", "code", "loop", "list", "leaf", "soil")


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 6)) + f" {seed}{i}" for i in range(count)]


@pytest.fixture(scope="module")
def some_records() -> list[Record]:
    queries, answers = sentences(30, 1), sentences(30, 2)
    tasks = [None, "Find the sentence that follows"]
    return [record(q, a, instruction=tasks[i % 2]) for i, (q, a) in enumerate(zip(queries, answers, strict=True))]


def test_the_whole_is_a_plain_loop(embedder: Embedder, some_records: list[Record], tmp_path: Path) -> None:
    corpus = sentences(100, 3)
    settings = MiningSettings(negatives=5, depth=130, query_block=8, document_block=17)
    run = miner(tmp_path, settings, embedder)
    found = [list(r.negatives) for r in run.mine(some_records, corpus)]
    assert found == plain_loop(some_records, corpus, embedder, 5)
    assert sum(map(len, found)) > 50  # the tiny random model puts many positives low; enough is left to compare


def test_a_real_reranker_verifies(
    embedder: Embedder, reranker: Reranker, some_records: list[Record], tmp_path: Path
) -> None:
    settings = MiningSettings(
        negatives=3, depth=40, filter=NO_BOUND, verify=VerifySettings(max_score=None, positive_share=1.0, depth=10)
    )
    out = list(miner(tmp_path, settings, embedder, reranker).mine(some_records[:6]))
    for before, after in zip(some_records, out, strict=False):
        positive = reranker.score(before.query, before.positives, before.instruction).min()
        for negative in after.negatives:
            assert reranker.score(before.query, [negative], before.instruction)[0] <= positive + 1e-6
    assert sum(len(r.negatives) for r in out) > 0


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_killed_while_encoding_and_resumed_gives_the_uninterrupted_result(
    sampling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3_embedding.mining.store.SEGMENT", 10)
    records = [record(f"q{i} @{i}", f"p{i} @{i + 20}") for i in range(0, 40, 2)]
    corpus = [f"c{i} @{i}" for i in range(-90, 90, 3)]
    settings = MiningSettings(negatives=3, depth=30, sampling=sampling, seed=4, query_block=5)
    whole = list(miner(tmp_path / "whole", settings).mine(records, corpus))
    first, second = Plane(limit=45), Plane()
    with pytest.raises(KeyboardInterrupt):
        list(miner(tmp_path / "cut", settings, first).mine(records, corpus))
    assert list(miner(tmp_path / "cut", settings, second).mine(records, corpus)) == whole
    again = miner(tmp_path / "cut", settings, Plane())
    assert list(again.mine(records, corpus)) == whole
    assert again.report.encoded == 0
    assert not list((tmp_path / "cut").glob("*.scratch"))


def test_another_model_does_not_get_this_ones_vectors(tmp_path: Path) -> None:
    records = [record("q @0", "p @10")]
    settings = MiningSettings(negatives=1, depth=8)
    one = Miner(Models(Plane(), "sha-1"), settings, tmp_path)
    list(one.mine(records, ["n @40"]))
    other = Miner(Models(Plane(), "sha-2"), settings, tmp_path)
    list(other.mine(records, ["n @40"]))
    assert one.report.encoded == other.report.encoded == 3


def test_callers_mistakes_are_said(tmp_path: Path) -> None:
    settings = MiningSettings(negatives=1, depth=8)
    with pytest.raises(TypeError, match="several times"):
        list(miner(tmp_path, settings).mine(iter([record("q @0", "p @1")])))
    with pytest.raises(ValueError, match="no scorer was given"):
        miner(tmp_path, replace(settings, verify=VerifySettings()))
    with pytest.raises(ValueError, match="corpus is empty"):
        list(miner(tmp_path, settings).mine([]))


def test_records_may_come_from_anything_that_starts_anew(tmp_path: Path) -> None:
    class File:
        def __iter__(self) -> Iterator[Record]:
            yield record("q @0", "p @10")
            yield record("r @0", "s @40")

    out = list(miner(tmp_path, MiningSettings(negatives=1, depth=8)).mine(File()))
    assert [r.negatives for r in out] == [("s @40",), ()]
