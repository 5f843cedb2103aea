"""Exact duplicates, by a hash of the normalised text."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwen3_embedding.data.record import Record


def normalise(text: str) -> str:
    """What of a text counts when texts are compared: NFKC, case folded, runs of space as one space.

    Punctuation stays: it is all that tells many commands and pieces of code apart.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(text: str) -> int:
    """64-bit hash of the normalised text, the same in every process (unlike ``hash``)."""
    return _hash(normalise(text))


def record_hash(record: Record) -> int:
    """64-bit hash of what a record teaches: task, query and positives."""
    return _hash("\0".join([record.task, normalise(record.query), *sorted(map(normalise, record.positives))]))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass
class DedupReport:
    """How many records came and how many were dropped."""

    seen: int = 0
    dropped: int = 0


def drop_duplicates(records: Iterable[Record], report: DedupReport | None = None) -> Iterator[Record]:
    """The records whose query, positives and task have not been seen before, in order; 8 bytes of memory a record."""
    seen: set[int] = set()
    report = report if report is not None else DedupReport()
    for record in records:
        report.seen += 1
        key = record_hash(record)
        if key in seen:
            report.dropped += 1
            continue
        seen.add(key)
        yield record
