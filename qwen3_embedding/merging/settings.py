"""What a merge recipe says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_embedding.merging.methods import Magnitude
from qwen3_embedding.model.weights import SHARD_BYTES

Method = Literal["linear", "slerp", "spherical-mean", "task-vector"]
Dtype = Literal["same", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Source:
    """One checkpoint and its weight."""

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of {self.path}; wanted a finite number")


@dataclass(frozen=True)
class MergeSettings:
    """A merge. Weights are relative (divided by their sum), but for ``task-vector``, which takes them as they are."""

    method: Method
    sources: tuple[Source, ...]
    output: Path
    base: Path | None = None
    """The checkpoint that the sources were trained from; ``task-vector`` only."""
    scale: float = 1.0
    """Factor on the sum of task vectors; ``task-vector`` only."""
    magnitude: Magnitude | None = None
    """Length of a spherical result; ``None``: ``raw`` for slerp, ``mean`` for the spherical mean."""
    one_dimensional: Literal["linear", "same"] = "linear"
    """How norms' gains are merged by the spherical methods. They are scales, not directions: linear."""
    lerp_above_cosine: float | None = None
    """Slerp becomes linear above this cosine; 0.9995 reproduces other tools, ``None`` is exact at any angle."""
    dtype: Dtype = "same"
    """Type of the merged weights; ``same``: of the first checkpoint. The arithmetic is float64 in any case."""
    vocab_rows: int | None = None
    """Cut the token tables to this many rows; ``None`` refuses tables of different lengths."""
    head: Literal["keep", "drop"] = "keep"
    """``drop`` leaves ``lm_head``/``score`` out: embedders do not use it."""
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_sources(self)
        if self.lerp_above_cosine is not None and not 0 < self.lerp_above_cosine <= 1:
            raise ValueError(f"lerp_above_cosine={self.lerp_above_cosine}; wanted a value in (0, 1]")
        if self.vocab_rows is not None and self.vocab_rows < 1:
            raise ValueError(f"vocab_rows={self.vocab_rows}; wanted at least 1")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes={self.shard_bytes}; wanted at least 1")
        _check_options(self)

    @property
    def weights(self) -> tuple[float, ...]:
        """The sources' weights."""
        return tuple(source.weight for source in self.sources)

    @property
    def models(self) -> tuple[Path, ...]:
        """Every checkpoint that is read: the base first where there is one."""
        paths = tuple(source.path for source in self.sources)
        return (self.base, *paths) if self.base is not None else paths


def _check_sources(settings: MergeSettings) -> None:
    count = len(settings.sources)
    if settings.method == "slerp" and count != 2:
        raise ValueError(f"slerp takes 2 sources, got {count}; 'spherical-mean' is its generalisation to n")
    if settings.method == "task-vector":
        if settings.base is None or not count:
            raise ValueError(
                "task-vector needs 'base' (the checkpoint that the sources were trained from) and a source"
            )
    elif settings.base is not None:
        raise ValueError(
            f"'base' belongs to task-vector, not to {settings.method}; list it under sources to average it in"
        )
    elif count < 2:
        raise ValueError(f"{settings.method} takes at least 2 sources, got {count}")
    if settings.method in ("slerp", "spherical-mean") and min(settings.weights) < 0:
        raise ValueError(f"weights={list(settings.weights)}; a spherical merge takes no negative weight")
    if settings.method != "task-vector" and sum(settings.weights) <= 0:
        raise ValueError(f"weights={list(settings.weights)} sum to {sum(settings.weights)}; wanted a positive sum")


def _check_options(settings: MergeSettings) -> None:
    if settings.magnitude == "raw" and settings.method != "slerp":
        raise ValueError("magnitude='raw' belongs to slerp; wanted 'mean', 'geometric' or 'first'")
    misplaced = {
        "magnitude": settings.magnitude is not None and settings.method not in ("slerp", "spherical-mean"),
        "lerp_above_cosine": settings.lerp_above_cosine is not None and settings.method != "slerp",
        "scale": settings.scale != 1.0 and settings.method != "task-vector",
    }
    for name, wrong in misplaced.items():
        if wrong:
            raise ValueError(f"{name!r} has no meaning for method {settings.method!r}; remove it")
    if not math.isfinite(settings.scale):
        raise ValueError(f"scale={settings.scale}; wanted a finite number")


@dataclass(frozen=True)
class MergedFrom:
    """One source as the merged checkpoint's ``training.toml`` records it."""

    path: str
    weight: float
    sha256: str
    """Fingerprint of weights, configuration and tokenizer."""


@dataclass(frozen=True)
class MergeRecord:
    """How a merged checkpoint came about, for its ``training.toml``."""

    version: str
    method: Method
    one_dimensional: str
    dtype: str
    head: str
    scale: float
    sources: tuple[MergedFrom, ...]
    base: MergedFrom | None = None
    magnitude: str | None = None
    lerp_above_cosine: float | None = None
    vocab_rows: int | None = None


@dataclass(frozen=True)
class TrainingFile:
    """The one table of a merged checkpoint's ``training.toml``."""

    merge: MergeRecord
