"""What mining is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen3_embedding.data.record import TASKS, Task


@dataclass(frozen=True)
class FilterSettings:
    """Which candidates are too good to be wrong answers. Scores are cosines; a bound of ``None`` is not applied.

    All bounds that look at the positive use the lowest score among the record's positives.
    """

    skip_first: int = 0
    """Best candidates to pass over: the likeliest unlabelled positives."""
    positive_share: float | None = 0.95
    """Drop above this share of the positive's score ``p``: above ``p - (1 - share) |p|``, as ``p`` may be negative."""
    margin: float | None = None
    """Drop above the positive's score less this."""
    max_score: float | None = None
    min_score: float | None = None
    """Drop below this: negatives that teach nothing."""
    below_bounds: bool = False
    """Retrieve the nearest texts *below* the bounds above, instead of dropping what is above them from the nearest.

    Every record then finds negatives, also one whose positive the encoder ranks behind ``depth`` texts.
    """

    def __post_init__(self) -> None:
        if self.skip_first < 0:
            raise ValueError(f"skip_first={self.skip_first}; wanted 0 or more")
        if self.positive_share is not None and not 0 < self.positive_share <= 1:
            raise ValueError(f"positive_share={self.positive_share}; wanted a value in (0, 1], 0.95 is usual")
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin={self.margin}; wanted 0 or more")
        if None not in (self.max_score, self.min_score) and self.min_score >= self.max_score:  # type: ignore[operator]
            raise ValueError(
                f"min_score={self.min_score} is not below max_score={self.max_score}; nothing would be left"
            )


@dataclass(frozen=True)
class VerifySettings:
    """Second opinion of a reranker, whose scores are in [0, 1]."""

    max_score: float | None = 0.5
    """Drop candidates that the reranker scores above this."""
    positive_share: float | None = None
    """Drop candidates above this share of the lowest score among the record's positives."""
    min_positive: float | None = None
    """Leave records out whose positives all score below this: their pair is wrong."""
    depth: int = 32
    """Candidates to verify for a record, best first; those behind are not used."""

    def __post_init__(self) -> None:
        for name in ("max_score", "positive_share", "min_positive"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}; wanted a value in [0, 1]")
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}; wanted at least 1")


@dataclass(frozen=True)
class MiningSettings:
    """How to mine."""

    negatives: int = 7
    """Negatives to add to a record."""
    depth: int = 100
    """Candidates to retrieve for a query."""
    sampling: Literal["top", "random"] = "top"
    """Which of the candidates that pass: the best, or any, drawn from ``seed`` and the record alone."""
    seed: int = 0
    filter: FilterSettings = FilterSettings()
    verify: VerifySettings | None = None
    keep_existing: bool = True
    """Keep the negatives that a record brings; the mined ones come behind them."""
    drop_below: int = 0
    """Leave records out that end with fewer negatives than this."""
    tasks: tuple[Task, ...] = ("retrieval", "bitext")
    """Tasks to mine for. Others pass unchanged: their wrong answers follow from labels, not from likeness."""
    dimensions: int | None = None
    """Cut vectors to this size."""
    query_block: int = 2048
    document_block: int = 8192
    device: str = "cpu"
    """Where scores are computed: ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        for name in ("negatives", "depth", "query_block", "document_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")
        if not 0 <= self.drop_below <= self.negatives:
            raise ValueError(f"drop_below={self.drop_below}; wanted 0 to negatives={self.negatives}")
        if self.filter.skip_first + self.negatives > self.depth:
            raise ValueError(
                f"depth={self.depth} leaves no room for skip_first={self.filter.skip_first} and "
                f"negatives={self.negatives}; wanted at least their sum"
            )
        if not self.tasks:
            raise ValueError(f"tasks is empty; wanted some of {', '.join(TASKS)}")
