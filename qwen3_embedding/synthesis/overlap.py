"""Near-duplicates by MinHash, and overlap with texts that must stay unseen, over windows of characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from qwen3_embedding.data.dedup import normalise

Hashes = npt.NDArray[np.uint64]

SHINGLE = 5
"""Characters of a shingle."""
_BANDS, _ROWS = 20, 4
_BASE = np.uint64(0x9E3779B97F4A7C15)
_RANDOM = np.random.default_rng(20_251_124)
_FACTORS = _RANDOM.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RANDOM.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)


def windows(text: str, size: int) -> Hashes:
    """The hashes of all windows of ``size`` characters of the normalised text, each once."""
    points = np.frombuffer(normalise(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(points) == 0:
        return np.empty(0, np.uint64)
    size = min(size, len(points))
    hashes = np.zeros(len(points) - size + 1, np.uint64)
    with np.errstate(over="ignore"):
        for at in range(size):
            hashes = (hashes ^ points[at : at + len(hashes)]) * _BASE
            hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Share of the windows of two texts that are in both."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def signature(shingles: Hashes) -> Hashes:
    """MinHash of a set of shingles: 80 numbers."""
    with np.errstate(over="ignore"):
        mixed = shingles[:, None] * _FACTORS + _OFFSETS
        mixed ^= mixed >> np.uint64(31)
        mixed *= _BASE
    least: Hashes = mixed.min(axis=0)
    return least


class NearDuplicates:
    """Finds earlier texts that are alike.

    With 20 bands of 4 rows a pair of Jaccard likeness 0.8 is found with probability 0.9999, one of 0.6 with 0.94; what
    is found is then measured exactly, so nothing less alike than the threshold is ever returned.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; wanted more than 0, at most 1")
        self._threshold = threshold
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._shingles: list[Hashes] = []

    def add(self, text: str) -> list[int]:
        """Remember a text.

        Returns:
            The numbers (in the order of adding, from 0) of earlier texts at least as alike as the threshold.
        """
        shingles = windows(text, SHINGLE)
        number = len(self._shingles)
        self._shingles.append(shingles)
        if len(shingles) == 0:
            return []
        bands = signature(shingles).reshape(_BANDS, _ROWS)
        candidates: set[int] = set()
        for index, band in enumerate(bands):
            bucket = self._buckets.setdefault((index, band.tobytes()), [])
            candidates.update(bucket)
            bucket.append(number)
        return sorted(n for n in candidates if jaccard(self._shingles[n], shingles) >= self._threshold)


def group_alike(texts: Sequence[str], threshold: float) -> list[int]:
    """For every text the number of the first text of its group; a chain of likes makes one group."""
    finder = NearDuplicates(threshold)
    leader = list(range(len(texts)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for number, text in enumerate(texts):
        for other in finder.add(text):
            a, b = find(number), find(other)
            leader[max(a, b)] = min(a, b)
    return [find(number) for number in range(len(texts))]


class Unseen:
    """Texts that training must not see, and whether another text holds one of them.

    Args:
        texts: queries and documents of evaluation sets.
        size: characters of the windows that are compared; a text that is shorter has to be the same.
        share: of a text's windows, so many have to be in the unseen texts.
    """

    def __init__(self, texts: Iterable[str], size: int = 40, share: float = 0.3) -> None:
        self._size = size
        self._share = share
        parts = [windows(text, size) for text in texts]
        self._known = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def holds(self, text: str) -> bool:
        """Whether so much of a text is in the unseen ones."""
        own = windows(text, self._size)
        if len(own) == 0 or len(self._known) == 0:
            return False
        at = np.searchsorted(self._known, own)
        found = self._known[np.minimum(at, len(self._known) - 1)] == own
        return bool(found.mean() >= self._share)
