"""Protocols and values that cross rooms. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Vectors = npt.NDArray[Any]
"""(N, D) vectors; float32 unless another precision was asked for."""

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""The task of the published model cards, for queries and for the reranker."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a search or of a reranker, best first in every list."""

    id: str
    score: float
    text: str = ""
    origin: str = ""
    """Where the score came from: ``dense``, ``text``, ``hybrid`` or ``rerank``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Encoder(Protocol):
    """Texts to unit vectors. ``Embedder`` is one; so is a client of a remote server."""

    @property
    def name(self) -> str:
        """Name of the model, for reports and manifests."""
        ...

    @property
    def dimensions(self) -> int:
        """Full vector size D."""
        ...

    def embed_queries(
        self,
        texts: Sequence[str],
        instruction: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) unit vectors of the queries, in the caller's order."""
        ...

    def embed_documents(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> Vectors:
        """(N, dimensions) unit vectors of the documents, in the caller's order. Documents get no instruction."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Relevance of documents to a query, in [0, 1]. ``Reranker`` is one."""

    @property
    def name(self) -> str:
        """Name of the model, for reports."""
        ...

    def score(self, query: str, documents: Sequence[str], instruction: str | None = None) -> FloatArray:
        """(N,) float32 in [0, 1], in the caller's order."""
        ...

    def score_pairs(
        self, queries: Sequence[str], documents: Sequence[str], instruction: str | None = None
    ) -> FloatArray:
        """(N,) float32 in [0, 1] for the pairs ``(queries[i], documents[i])``."""
        ...


class TextGenerator(Protocol):
    """Prompts in, texts out: any language model."""

    @property
    def name(self) -> str:
        """Name of the model, for provenance."""
        ...

    def generate(self, prompt: str, *, system: str | None = None, seed: int | None = None) -> str:
        """One completion of ``prompt``."""
        ...
