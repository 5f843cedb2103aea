"""BM25 in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwen3_embedding.types import FloatArray


class Bm25:
    """BM25 over token lists, with Lucene's never-negative idf.

    ``score(q, d) = sum over t in q: idf(t) * tf(t, d) * (k1 + 1) / (tf(t, d) + k1 * (1 - b + b * |d| / mean|d|))`` with
    ``idf(t) = ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5))``; a token that stands twice in the query counts twice.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """

    def __init__(self, documents: Sequence[Sequence[str]], k1: float = 0.9, b: float = 0.4) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1={k1}, b={b}; wanted k1 from 0 up and b from 0 to 1")
        self.k1, self.b = k1, b
        self.size = len(documents)
        self._vocabulary: dict[str, int] = {}
        rows, columns, counts = self._count(documents)
        lengths = np.array([len(tokens) for tokens in documents], dtype=np.float64)
        self._fill(rows, columns, counts, lengths)

    def scores(self, tokens: Sequence[str]) -> FloatArray:
        """(N,) float32, one score per document; 0 where no token of the query occurs."""
        scores_N = np.zeros(self.size, dtype=np.float64)
        for token, count in Counter(tokens).items():
            column = self._vocabulary.get(token)
            if column is not None:
                start, end = self._starts[column], self._starts[column + 1]
                scores_N[self._rows[start:end]] += count * self._weights[start:end]
        return scores_N.astype(np.float32)

    def _count(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        rows: list[int] = []
        columns: list[int] = []
        counts: list[int] = []
        for row, tokens in enumerate(documents):
            for token, count in Counter(tokens).items():
                rows.append(row)
                columns.append(self._vocabulary.setdefault(token, len(self._vocabulary)))
                counts.append(count)
        return np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), np.array(counts, dtype=np.float64)

    def _fill(
        self,
        rows: npt.NDArray[np.int64],
        columns: npt.NDArray[np.int64],
        counts: npt.NDArray[np.float64],
        lengths: npt.NDArray[np.float64],
    ) -> None:
        """The postings, token by token: which rows hold it, and what it adds to their score."""
        frequency = np.bincount(columns, minlength=len(self._vocabulary))
        idf = np.log(1 + (self.size - frequency + 0.5) / (frequency + 0.5))
        mean = max(float(lengths.mean()), 1.0) if self.size else 1.0
        norm = self.k1 * (1 - self.b + self.b * lengths[rows] / mean)
        weights = idf[columns] * counts * (self.k1 + 1) / (counts + norm)
        order = np.argsort(columns, kind="stable")
        self._rows = rows[order]
        self._weights = weights[order]
        self._starts = np.concatenate([[0], np.cumsum(frequency)])
