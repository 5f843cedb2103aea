"""A first pass over an HNSW graph of vectors at a byte a dimension (faiss), mapped from disk.

Source: Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs".  M is 24 and the breadth of construction 128: at a million vectors a search for
recall@10 of 0.95 takes 0.6 of the time that M = 16 and breadth 100 take, for 60 bytes more a vector (docs/log.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.optional import require
from qwen3_embedding.types import FloatArray, IntArray

NEIGHBOURS = 24
BUILD_BREADTH = 128
_FILE, _NUMBERS, _ABOUT = "graph.faiss", "graph-numbers.npy", "graph.json"


class Graph:
    """An HNSW graph over G rows; those that are gone from the snapshot meanwhile lead on and are not found.

    Each dimension has 256 steps between its least and greatest value in the first part that was added.
    """

    def __init__(self, index: Any, rows_G: IntArray) -> None:
        self._faiss = _faiss()
        self._index = index
        self._rows_G = None if np.array_equal(rows_G, np.arange(len(rows_G))) else rows_G
        """Row of the snapshot by place in the graph, -1 for what is gone; ``None`` where they are the same."""
        self._selected = None
        """What of the graph may be found; ``None`` where all of it may."""
        if index is not None and self._rows_G is not None and (rows_G < 0).any():
            self._bits = np.packbits(rows_G >= 0, bitorder="little")  # the selector points at them
            self._selected = self._faiss.IDSelectorBitmap(len(rows_G), self._faiss.swig_ptr(self._bits))

    @classmethod
    def write(
        cls, folder: Path, parts: Iterable[tuple[IntArray, FloatArray]], dimensions: int, base: Path | None = None
    ) -> None:
        """Build a graph, or grow one.

        Args:
            folder: where the files are written.
            parts: numbers and unit vectors to add.
            dimensions: D.
            base: folder of a graph to start from.

        Raises:
            IndexCorruptError: the graph to start from cannot be read.
            OSError: the disk is full.
        """
        faiss = _faiss()
        index, known_G = (None, np.empty(0, np.int64)) if base is None else _load(base, mapped=False)
        numbers = [known_G]
        for numbers_N, vectors_ND in parts:
            if not len(numbers_N):
                continue
            if index is None:
                kind = faiss.ScalarQuantizer.QT_8bit
                index = faiss.IndexHNSWSQ(dimensions, kind, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
                index.hnsw.efConstruction = BUILD_BREADTH
                index.train(np.ascontiguousarray(vectors_ND))
            index.add(np.ascontiguousarray(vectors_ND))
            numbers.append(numbers_N)
        np.save(folder / _NUMBERS, np.concatenate(numbers).astype(np.int64))
        if index is not None:
            try:
                faiss.write_index(index, str(folder / _FILE))
            except RuntimeError as error:
                raise OSError(f"{folder / _FILE} cannot be written: {_first_line(error)}") from None
            size = (folder / _FILE).stat().st_size
            (folder / _ABOUT).write_text(json.dumps({"bytes": size}) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, numbers_N: IntArray) -> Graph:
        """Map what :meth:`write` wrote; ``numbers_N`` are the numbers of the snapshot's rows, in order.

        Raises:
            IndexCorruptError: a file is missing, torn, or lacks rows.
        """
        index, graph_G = _load(folder, mapped=True)
        rows_G = np.searchsorted(numbers_N, graph_G)
        there_G = rows_G < len(numbers_N)
        there_G[there_G] = numbers_N[rows_G[there_G]] == graph_G[there_G]
        if int(there_G.sum()) != len(numbers_N):
            raise IndexCorruptError(
                f"{folder / _FILE} has {int(there_G.sum())} of {len(numbers_N)} rows; build it anew with optimize()"
            )
        return cls(index, np.where(there_G, rows_G, -1))

    def nearest(self, vector_D: FloatArray, count: int, effort: int) -> IntArray:
        """At most ``count`` rows, the nearest that a search of breadth ``effort`` (at least ``count``) finds."""
        if self._index is None:
            return np.empty(0, np.int64)
        options = self._faiss.SearchParametersHNSW(efSearch=max(effort, count), sel=self._selected)
        places: IntArray = self._index.search(vector_D[None, :], count, params=options)[1][0]
        if places[-1] < 0:  # there were not so many
            places = places[places >= 0]
        return places if self._rows_G is None else self._rows_G[places]


def _load(folder: Path, mapped: bool) -> tuple[Any, IntArray]:
    """The index, ``None`` of no rows, and the numbers in its order."""
    faiss = _faiss()
    path = folder / _FILE
    try:
        numbers_G = np.load(folder / _NUMBERS)
        index = None
        if len(numbers_G):
            wanted, size = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["bytes"], path.stat().st_size
            if size != wanted:  # faiss maps what is there and reads beyond it
                raise ValueError(f"it has {size} bytes, not {wanted}")
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError) as error:
        raise IndexCorruptError(f"{path} cannot be read: {_first_line(error)}; build it anew with optimize()") from None
    if (0 if index is None else index.ntotal) != len(numbers_G):
        raise IndexCorruptError(f"{path} contradicts {_NUMBERS}; build it anew with optimize()")
    return index, numbers_G


def _faiss() -> Any:
    return require("faiss", extra="scale")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
