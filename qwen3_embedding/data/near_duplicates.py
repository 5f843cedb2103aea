"""Near duplicates: MinHash signatures of word runs, banded so that similar texts meet in a bucket.

Texts without spaces between words (Chinese, Japanese) are compared by characters.  The estimate of a pair that met is
checked against the exact Jaccard similarity of the two texts, so nothing is dropped on an estimate.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data.dedup import DedupReport, normalise
from qwen3_embedding.data.record import Record

_WORDS = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")

Signature = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class MinHashSettings:
    """How alike two texts must be, and how surely they are found."""

    threshold: float = 0.8
    """Jaccard similarity of their shingles from which texts are near duplicates."""
    shingle: int = 3
    """Words, or characters of unspaced scripts, of a shingle."""
    bands: int = 16
    rows: int = 4
    """Texts of similarity s meet with probability 1 - (1 - s^rows)^bands: 0.9998 at 0.8."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}; wanted above 0 and at most 1")
        if min(self.shingle, self.bands, self.rows) < 1:
            raise ValueError("shingle, bands and rows are at least 1")


def words(text: str) -> list[str]:
    """Words of a normalised text without punctuation; characters one by one in scripts without spaces."""
    out: list[str] = []
    for word in _WORDS.findall(normalise(text)):
        out += list(word) if _UNSPACED.search(word) else [word]
    return out


def shingles(text: str, size: int) -> frozenset[int]:
    """64-bit hashes of all runs of ``size`` words; of the whole text where it is shorter."""
    items = words(text) or [text]
    runs = [items[at : at + size] for at in range(max(1, len(items) - size + 1))]
    return frozenset(
        int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "little") for run in runs
    )


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared shingles over all."""
    return len(one & other) / max(1, len(one | other))


class NearDuplicates:
    """Texts to look for, found again by texts that are nearly the same."""

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        rng = np.random.default_rng(settings.seed)
        count = settings.bands * settings.rows
        # Odd factors and 32 high bits of each shingle: products stay within 64 bits and wrap around, as wanted.
        self._factors = rng.integers(1, 1 << 61, count, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 1 << 61, count, dtype=np.uint64)
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(settings.bands)]
        self._shingles: list[frozenset[int]] = []

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, text: str) -> int:
        """Remember a text; returns its number."""
        number = len(self._shingles)
        found = shingles(text, self.settings.shingle)
        self._shingles.append(found)
        for bucket, key in zip(self._buckets, self._keys(found), strict=True):
            bucket.setdefault(key, []).append(number)
        return number

    def find(self, text: str) -> tuple[int, float] | None:
        """The number and similarity of the most similar text remembered, from the threshold on; else ``None``."""
        wanted = shingles(text, self.settings.shingle)
        met = {n for bucket, key in zip(self._buckets, self._keys(wanted), strict=True) for n in bucket.get(key, ())}
        best = max(((jaccard(wanted, self._shingles[n]), -n) for n in met), default=(0.0, 0))
        return (-best[1], best[0]) if met and best[0] >= self.settings.threshold else None

    def _keys(self, found: frozenset[int]) -> list[bytes]:
        values = np.fromiter(found, dtype=np.uint64, count=len(found))
        mixed = values[:, None] * self._factors[None, :] + self._offsets[None, :]
        lowest = (mixed ^ (mixed >> np.uint64(31))).min(axis=0)
        return [band.tobytes() for band in lowest.reshape(self.settings.bands, self.settings.rows)]


def drop_near_duplicates(
    records: Iterable[Record], settings: MinHashSettings, report: DedupReport | None = None
) -> Iterator[Record]:
    """The records in order, without those whose query and first positive are nearly those of an earlier one."""
    index = NearDuplicates(settings)
    report = report if report is not None else DedupReport()
    for record in records:
        report.seen += 1
        text = f"{record.query} {record.positives[0]}"
        if index.find(text) is not None:
            report.dropped += 1
            continue
        index.add(text)
        yield record
