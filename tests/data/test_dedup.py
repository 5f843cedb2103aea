"""Exact duplicates by normalised text."""

from __future__ import annotations

import subprocess
import sys

from qwen3_embedding.data import Record, drop_duplicates, text_hash
from qwen3_embedding.data.dedup import DedupReport, normalise, record_hash


def pair(query: str, *positives: str) -> Record:
    return Record(query, positives, "retrieval", "made")


def test_case_space_and_width_do_not_count() -> None:
    assert normalise("  Ｈello\u00a0 WORLD\n") == "hello world"
    assert text_hash("Hello world") == text_hash("hello  WORLD ")
    assert text_hash("ls -l") != text_hash("ls l")


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from qwen3_embedding.data import text_hash; print(text_hash('Straße'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == text_hash("STRASSE")


def test_the_bounds_between_the_texts_count() -> None:
    assert record_hash(pair("a b", "c")) != record_hash(pair("a", "b c"))
    assert record_hash(pair("a", "b", "c")) == record_hash(pair("a", "c", "b"))


def test_later_duplicates_are_dropped_and_counted() -> None:
    report = DedupReport()
    kept = list(drop_duplicates([pair("A", "x"), pair("b", "x"), pair("a", "X "), pair("a", "y")], report))
    assert [(r.query, r.positives) for r in kept] == [("A", ("x",)), ("b", ("x",)), ("a", ("y",))]
    assert (report.seen, report.dropped) == (4, 1)
