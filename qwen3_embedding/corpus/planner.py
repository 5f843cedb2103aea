"""Sizes and hours of a corpus on paper: bytes, GPU-hours and machines from measured rates.

Formulas (N documents, L mean tokens a document, r the share of repeats, c the mean number of chunks a document):

    rows              R = N · c
    tokens computed   T = N · (1 - r) · (L + overlap · (c - 1))
    vector bytes      R · dimensions · bits / 8
    worker-hours      T / (3600 · tokens a second of a worker · efficiency)
    workers           ceil(worker-hours / hours allowed)

The rate is what ``qwen3-embedding encode`` prints for the model on the machine in question; nothing here guesses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen3_embedding.types import PRECISIONS, Precision

BITS: dict[Precision, int] = {"float32": 32, "float16": 16, "int8": 8, "uint8": 8, "binary": 1, "ubinary": 1}

LEDGER_BYTES_PER_ROW = 98
"""Measured: 97.6 bytes a row in the ledger of a million rows, whatever the length of their ids."""


@dataclass(frozen=True)
class Corpus:
    """What is to be encoded."""

    documents: int
    tokens_per_document: float
    """Mean, end token included."""
    repeats: float = 0.0
    """Share of documents whose text came before, 0 to 1."""
    chunk_tokens: int | None = None
    """Longest chunk; ``None`` leaves documents whole."""
    chunk_overlap: int = 0
    id_bytes: float = 16.0
    """Mean length of an id."""

    def __post_init__(self) -> None:
        if self.documents < 0 or self.tokens_per_document <= 0:
            raise ValueError(
                f"documents={self.documents}, tokens_per_document={self.tokens_per_document}; "
                "wanted 0 or more, and above 0"
            )
        if not 0 <= self.repeats <= 1:
            raise ValueError(f"repeats={self.repeats}; wanted a share, 0 to 1")
        if self.chunk_tokens is not None and not 0 <= self.chunk_overlap < self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap={self.chunk_overlap}; wanted 0 to less than chunk_tokens={self.chunk_tokens}"
            )

    @property
    def chunks_per_document(self) -> float:
        """c, taking every document to have the mean length; chunks end at sentences, so the true number is higher."""
        if self.chunk_tokens is None or self.tokens_per_document <= self.chunk_tokens:
            return 1.0
        step = self.chunk_tokens - self.chunk_overlap
        return 1.0 + math.ceil((self.tokens_per_document - self.chunk_tokens) / step)

    @property
    def rows(self) -> int:
        """R."""
        return round(self.documents * self.chunks_per_document)

    @property
    def tokens(self) -> float:
        """T."""
        again = self.chunk_overlap * (self.chunks_per_document - 1)
        return self.documents * (1 - self.repeats) * (self.tokens_per_document + again)


@dataclass(frozen=True)
class Rates:
    """What was measured on a worker (one GPU, or one CPU machine)."""

    tokens_per_s: float
    efficiency: float = 1.0
    """Share of that rate which is left with many workers; 1 for one."""
    price_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens_per_s <= 0 or not 0 < self.efficiency <= 1:
            raise ValueError(
                f"tokens_per_s={self.tokens_per_s}, efficiency={self.efficiency}; wanted above 0, and above 0 to 1"
            )


@dataclass(frozen=True)
class Estimate:
    """What it takes."""

    rows: int
    tokens: float
    vector_bytes: int
    """Vectors alone: what an exact scan reads and a memory map holds."""
    shard_bytes: int
    """Vectors and ids: the Parquet shards."""
    ledger_bytes: int
    worker_hours: float
    cost: float

    def workers(self, hours: float) -> int:
        """How many workers finish in so many hours."""
        if hours <= 0:
            raise ValueError(f"hours={hours}; wanted above 0")
        return max(1, math.ceil(self.worker_hours / hours))

    def machines_in_memory(self, memory_bytes: int) -> int:
        """How many machines hold the vectors in memory, at this much usable memory each."""
        if memory_bytes <= 0:
            raise ValueError(f"memory_bytes={memory_bytes}; wanted above 0")
        return max(1, math.ceil(self.vector_bytes / memory_bytes))


def estimate(corpus: Corpus, rates: Rates, dimensions: int, precision: Precision = "float32") -> Estimate:
    """Bytes, hours and cost of encoding a corpus.

    Args:
        corpus: what is to be encoded.
        rates: what was measured.
        dimensions: size of the vectors.
        precision: how they are stored.
    """
    if precision not in PRECISIONS or dimensions < 1:
        raise ValueError(
            f"precision={precision!r}, dimensions={dimensions}; wanted one of {', '.join(PRECISIONS)} and above 0"
        )
    per_row = dimensions * BITS[precision] / 8
    hours = corpus.tokens / (3600 * rates.tokens_per_s * rates.efficiency)
    return Estimate(
        rows=corpus.rows,
        tokens=corpus.tokens,
        vector_bytes=math.ceil(corpus.rows * per_row),
        shard_bytes=math.ceil(corpus.rows * (per_row + corpus.id_bytes)),
        ledger_bytes=corpus.rows * LEDGER_BYTES_PER_ROW,
        worker_hours=hours,
        cost=hours * rates.price_per_hour,
    )
