"""A first pass over one bit a dimension: the Hamming distance of signs, to every document."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.retrieval.mapped import new_array
from qwen3_embedding.types import FloatArray, IntArray

_CHUNK_ROWS = 65_536
"""Rows compared at a time: their words and distances stay in the cache."""
_FILE = "signs.npy"

Words = npt.NDArray[np.uint64]


class BinaryCodes:
    """Signs of N vectors, packed into W words of 64 bits and kept word by word: (W, N), mapped from disk.

    A scan reads D/8 bytes a document, a 32nd of what float32 takes.
    """

    def __init__(self, words_WN: Words) -> None:
        self._words_WN = words_WN

    @classmethod
    def write(cls, folder: Path, parts: Iterable[FloatArray], rows: int, dimensions: int) -> None:
        """Pack vectors that come in parts, in order; ``rows`` of them in all."""
        shape = (-(-dimensions // 64), rows)
        words_WN = new_array(folder / _FILE, np.uint64, shape)
        at = 0
        for vectors_ND in parts:
            words_WN[:, at : at + len(vectors_ND)] = _pack(vectors_ND).T
            at += len(vectors_ND)

    @classmethod
    def open(cls, folder: Path, rows: int, dimensions: int) -> BinaryCodes:
        """Map what :meth:`write` wrote.

        Raises:
            IndexCorruptError: the file is missing, torn, or has other rows.
        """
        wanted = (-(-dimensions // 64), rows)
        try:
            words_WN = np.asarray(np.load(folder / _FILE, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise IndexCorruptError(
                f"{folder / _FILE} cannot be read: {error}; build it anew with optimize()"
            ) from None
        if words_WN.shape != wanted:
            raise IndexCorruptError(f"{folder / _FILE} has shape {words_WN.shape}, wanted {wanted}; run optimize()")
        return cls(words_WN)

    def nearest(self, vector_D: FloatArray, count: int, effort: int) -> IntArray:
        """At least ``count`` rows (all, where there are fewer) of the smallest distances, with ties at the cut."""
        del effort  # every row is compared
        distances_N = self._distances(vector_D)
        if count >= len(distances_N):
            return np.arange(len(distances_N))
        below = np.cumsum(np.bincount(distances_N))
        cut = int(np.searchsorted(below, count))
        return np.flatnonzero(distances_N <= cut)

    def _distances(self, vector_D: FloatArray) -> npt.NDArray[np.uint16]:
        query_W = _pack(vector_D[None, :])[0]
        rows = self._words_WN.shape[1]
        distances_N = np.zeros(rows, dtype=np.uint16)
        for begin in range(0, rows, _CHUNK_ROWS):
            part = slice(begin, begin + _CHUNK_ROWS)
            for words_N, word in zip(self._words_WN, query_W, strict=True):
                distances_N[part] += np.bitwise_count(words_N[part] ^ word)
        return distances_N


def _pack(vectors_ND: FloatArray) -> Words:
    """(N, W) signs, padded with zeros to whole words."""
    bits = np.packbits(vectors_ND > 0, axis=1)
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)
