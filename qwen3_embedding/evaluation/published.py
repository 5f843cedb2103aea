"""The published figures, and the per-task results they can be recomputed from.

Shipped inside the package as ``data/published.json``; its ``sources`` and ``licence`` say where each part is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from qwen3_embedding.evaluation.averages import Rounding
from qwen3_embedding.evaluation.benchmarks import read_data

TABLES = ("2", "3", "4", "5", "7", "8", "8-readme", "9", "announcement")


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table as printed, in percent."""

    id: str
    title: str
    benchmark: str | None
    """The one benchmark that all columns are of, if there is one."""
    rounding: Rounding
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    """Row name -> a figure a column; ``None`` where the table has none."""


@dataclass(frozen=True, slots=True)
class Published:
    """All of it."""

    tables: Mapping[str, PublishedTable]
    stored: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Model -> benchmark -> task -> score in percent, as submitted to the leaderboard."""
    trained_on: Mapping[str, frozenset[str] | None]
    """Model -> the benchmark tasks whose training data it was trained on, as declared; ``None``: not declared."""
    sources: tuple[str, ...]
    licence: str
    not_stored: Mapping[str, str] = field(default_factory=dict)
    """Task -> why no stored result has it."""


@cache
def load_published() -> Published:
    """The published figures of the package."""
    raw: dict[str, Any] = read_data("published.json")
    return Published(
        tables={key: _table(key, table) for key, table in raw["tables"].items()},
        stored=raw["stored"],
        trained_on={model: None if names is None else frozenset(names) for model, names in raw["trained_on"].items()},
        sources=tuple(raw["sources"]),
        licence=raw["licence"],
        not_stored=raw["not_stored"],
    )


def _table(key: str, raw: dict[str, Any]) -> PublishedTable:
    return PublishedTable(
        id=key,
        title=raw["title"],
        benchmark=raw["benchmark"],
        rounding=raw["rounding"],
        columns=tuple(raw["columns"]),
        rows={name: tuple(values) for name, values in raw["rows"].items()},
    )
