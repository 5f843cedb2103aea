"""A deterministic encoder and scorer without weights: what rooms that take any Encoder or Scorer are tried with."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from qwen3_embedding.types import FloatArray, Precision, Vectors


class HashEncoder:
    """Character trigrams hashed into D signed buckets: texts that share trigrams point the same way."""

    def __init__(self, dimensions: int = 64, name: str = "hash", seed: int = 0) -> None:
        self.name, self.dimensions, self.seed = name, dimensions, seed
        self.calls: list[tuple[str, int]] = []

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        self.calls.append(("queries", len(texts)))
        return self._embed(texts, dimensions)

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        self.calls.append(("documents", len(texts)))
        return self._embed(texts, dimensions)

    def _embed(self, texts: Sequence[str], dimensions: int | None) -> FloatArray:
        vectors_ND = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            padded = f" {text.lower()} "
            for start in range(len(padded) - 1):
                code = zlib.crc32(padded[start : start + 3].encode(), self.seed)
                vectors_ND[row, code % self.dimensions] += 1 if code & 0x10000 else -1
        vectors_ND[:, 0] += 0.5
        vectors_ND = vectors_ND[:, : dimensions or self.dimensions]
        return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), dtype=np.float32)


class OverlapScorer:
    """The share of a query's words that stand in the document."""

    name = "overlap"

    def __init__(self) -> None:
        self.instructions: list[str | None] = []

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> FloatArray:
        self.instructions.append(instruction)
        return self.score_pairs([query] * len(documents), documents, instruction)

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None
    ) -> FloatArray:
        pairs = zip(queries, documents, strict=True)
        return np.array([_overlap(query, document) for query, document in pairs], dtype=np.float32)


def _overlap(query: str, document: str) -> float:
    words = set(query.lower().split())
    return len(words & set(document.lower().split())) / max(len(words), 1)
