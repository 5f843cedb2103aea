"""A first pass over an HNSW graph of int8 vectors (usearch), mapped from disk.

Source: Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs".  M is 24 and the breadth of construction 128: at a million vectors a search for
recall@10 of 0.95 takes 0.6 of the time that M = 16 and breadth 100 take, for 60 bytes more a vector (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.optional import require
from qwen3_embedding.types import FloatArray, IntArray

NEIGHBOURS = 24
BUILD_BREADTH = 128
_FILE = "graph.usearch"


class Graph:
    """An HNSW graph whose keys are the numbers of documents.

    Vectors are kept as int8, each scaled to its own largest component: the cosine does not depend on length.
    """

    def __init__(self, index: Any, numbers_N: IntArray) -> None:
        self._index = index
        self._numbers_N = numbers_N
        self._first = _first_of_run(numbers_N)

    @classmethod
    def write(
        cls,
        folder: Path,
        parts: Iterable[tuple[IntArray, FloatArray]],
        dimensions: int,
        base: Path | None = None,
        removed: IntArray | None = None,
    ) -> None:
        """Build a graph, or grow one.

        Args:
            folder: where the file is written.
            parts: numbers and vectors to add.
            dimensions: D.
            base: folder of a graph to start from.
            removed: numbers to take out of that.
        """
        index = _load(base, view=False) if base is not None else _new(dimensions)
        if removed is not None and removed.size:
            index.remove(removed.astype(np.uint64))
        for numbers_N, vectors_ND in parts:
            if len(numbers_N):
                index.add(numbers_N.astype(np.uint64), _to_int8(vectors_ND))
        index.save(str(folder / _FILE))

    @classmethod
    def open(cls, folder: Path, numbers_N: IntArray) -> Graph:
        """Map what :meth:`write` wrote; ``numbers_N`` are the numbers of the snapshot's rows, in order.

        Raises:
            IndexCorruptError: the file is missing, torn, or has other rows.
        """
        index = _load(folder, view=True)
        if len(index) != len(numbers_N):
            raise IndexCorruptError(f"{folder / _FILE} has {len(index)} rows, wanted {len(numbers_N)}; run optimize()")
        return cls(index, numbers_N)

    def nearest(self, vector_D: FloatArray, count: int, effort: int) -> IntArray:
        """At most ``count`` rows, the nearest that a search of breadth ``effort`` (at least ``count``) finds."""
        # Few steps: a search leaves nothing of the interpreter in the caches, and each step is fetched anew.
        self._index.expansion_search = max(effort, count)
        found = self._index.search(_one_to_int8(vector_D), min(count, len(self._numbers_N)), threads=1)
        numbers: IntArray = found.keys.view(np.int64)
        if self._first == 0:
            return numbers
        if self._first is not None:
            return numbers - self._first
        return np.searchsorted(self._numbers_N, numbers)


def _first_of_run(numbers_N: IntArray) -> int | None:
    """The first number where all follow one another, so that a row need not be searched for: nothing was deleted."""
    if len(numbers_N) and numbers_N[-1] - numbers_N[0] == len(numbers_N) - 1:
        return int(numbers_N[0])
    return None


def _new(dimensions: int) -> Any:
    usearch = require("usearch.index", extra="scale")
    return usearch.Index(
        ndim=dimensions, metric="cos", dtype="i8", connectivity=NEIGHBOURS, expansion_add=BUILD_BREADTH
    )


def _load(folder: Path, view: bool) -> Any:
    path = folder / _FILE
    usearch = require("usearch.index", extra="scale")
    try:
        index = usearch.Index.restore(str(path), view=view)
    except (OSError, ValueError, RuntimeError) as error:
        raise IndexCorruptError(f"{path} cannot be read: {error}; build it anew with optimize()") from None
    if index is None:
        raise IndexCorruptError(f"{path} is missing or torn; build it anew with optimize()")
    index.expansion_add = BUILD_BREADTH
    return index


def _to_int8(vectors_ND: FloatArray) -> npt.NDArray[np.int8]:
    largest = np.abs(vectors_ND).max(axis=-1, keepdims=True)
    scaled = vectors_ND * (127.0 / np.maximum(largest, np.finfo(np.float32).tiny))
    return np.asarray(np.rint(scaled), dtype=np.int8)


def _one_to_int8(vector_D: FloatArray) -> npt.NDArray[np.int8]:
    """A query, of which only the direction counts."""
    scaled = vector_D * (127.0 / max(float(np.maximum.reduce(np.abs(vector_D))), 1e-30))
    return np.asarray(np.rint(scaled, out=scaled), dtype=np.int8)
