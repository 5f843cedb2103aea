"""Evaluation texts are found in records: the same, in part, or nearly; and what is innocent stays."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from qwen3_embedding.data import Record
from qwen3_embedding.data.decontaminate import DecontaminationReport, DecontaminationSettings, Decontaminator
from qwen3_embedding.data.dedup import DedupReport
from qwen3_embedding.data.near_duplicates import (
    MinHashSettings,
    NearDuplicates,
    drop_near_duplicates,
    jaccard,
    shingles,
    words,
)

LONG = " ".join(f"word{n}" for n in range(40))
CHINESE = "长江是亚洲第一长河和世界第三长河发源于青藏高原的唐古拉山脉各拉丹冬峰西南侧"


def pair(query: str, *positives: str, negatives: tuple[str, ...] = ()) -> Record:
    return Record(query, positives, "retrieval", "made", negatives=negatives)


def checker(**changes: object) -> Decontaminator:
    made = Decontaminator(DecontaminationSettings(**changes))  # type: ignore[arg-type]
    made.add_sets({"first": ["What is the capital of France?", LONG, "Paris"], "second": [CHINESE]})
    return made


@pytest.mark.parametrize(
    ("record", "reason", "where", "evaluation_set"),
    [
        (pair("what is  the CAPITAL of france?", "x"), "same", "query", "first"),
        (pair("x", "y", LONG.upper()), "same", "positive", "first"),
        (pair("x", "y", negatives=("z", LONG)), "same", "negative", "first"),
        (pair("paris", "x"), "same", "query", "first"),
        (pair("x", "before " + " ".join(LONG.split()[5:20]) + " behind"), "run", "positive", "first"),
        (pair("x", "前言" + CHINESE[2:32]), "run", "positive", "second"),
        (pair("x", LONG.replace("word11 ", "").replace("word25 ", "")), "run", "positive", "first"),
        (pair("What is the capital of France now?", "x"), "near", "query", "first"),
    ],
)
def test_evaluation_texts_are_found(record: Record, reason: str, where: str, evaluation_set: str) -> None:
    near = MinHashSettings(threshold=0.6)
    match = checker(near=near).find(record)
    assert match is not None
    assert (match.reason, match.where, match.evaluation_set) == (reason, where, evaluation_set)


@pytest.mark.parametrize(
    "record",
    [
        pair("What is the capital of Spain?", "Madrid"),
        pair("Which city is it?", "Paris"),  # a short answer is nobody's secret
        pair("x", " ".join(LONG.split()[5:17])),  # twelve words of it
        pair("长江", "黄河是中国第二长河"),
    ],
)
def test_innocent_records_stay(record: Record) -> None:
    assert checker().find(record) is None


def test_the_report_counts_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    report = DecontaminationReport()
    records = [pair("a", "b"), *(pair(LONG, f"x{n}") for n in range(3)), pair("Paris", "y")]
    kept = list(checker(samples=2).clean(records, report))
    assert kept == records[:1]
    assert (report.seen, report.dropped) == (5, 4)
    assert report.by_reason == {"same": 4}
    assert report.by_set == {"first": 4}
    assert report.by_source == {"made": 4}
    assert len(report.samples) == 2
    assert report.to_mapping()["samples"][0]["evaluation_text"] == LONG[:300]


def test_parts_can_be_switched_off() -> None:
    record = pair("x", "before " + " ".join(LONG.split()[5:38]))
    assert checker(run_words=0, near=None).find(record) is None
    found = checker(run_words=0, near=MinHashSettings(threshold=0.7)).find(record)
    assert found is not None
    assert found.reason == "near"


def test_words_of_all_scripts() -> None:
    assert words("Hello, World_2!") == ["hello", "world", "2"]
    assert words("犬と cat") == ["犬", "と", "cat"]
    assert words("...") == []


def test_all_similar_pairs_are_found_and_no_other() -> None:
    """Against the exact Jaccard similarity of every pair."""
    rng = random.Random(0)
    texts = []
    for _ in range(18):
        base = [f"w{rng.randrange(200)}" for _ in range(60)]
        texts.append(" ".join(base))
        for _ in range(2):
            changed = list(base)
            for place in rng.sample(range(60), rng.choice([1, 2, 6, 15])):
                changed[place] = f"w{rng.randrange(200)}"
            texts.append(" ".join(changed))
    settings = MinHashSettings(threshold=0.8, bands=20, rows=4)
    exact = [shingles(text, settings.shingle) for text in texts]
    twins = {i for i, j in combinations(range(len(texts)), 2) if jaccard(exact[i], exact[j]) >= 0.8}
    twins |= {j for i, j in combinations(range(len(texts)), 2) if jaccard(exact[i], exact[j]) >= 0.8}
    assert 10 < len(twins) < len(texts)
    for number, text in enumerate(texts):
        others = NearDuplicates(settings)
        for other, candidate in enumerate(texts):
            if other != number:
                others.add(candidate)
        assert (others.find(text) is not None) == (number in twins)


def test_near_duplicates_are_dropped_and_counted() -> None:
    report = DedupReport()
    records = [pair(LONG, "x"), pair("other", "text"), pair(LONG + " more", "x"), pair("other", "text again")]
    kept = list(drop_near_duplicates(records, MinHashSettings(threshold=0.8), report))
    assert kept == [records[0], records[1], records[3]]
    assert (report.seen, report.dropped) == (4, 1)
