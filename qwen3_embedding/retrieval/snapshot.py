"""The vectors of an index at one moment, mapped from disk, with a first pass over them, and what has changed since.

The table is the truth.  Every row of it has a number that no other row ever had, not even one of the same id before
an upsert, so what a snapshot lacks is the rows whose numbers are not below its own, and what it has too much is the
numbers that are no longer in the table.  A snapshot is a folder written beside its place and renamed; any number of
processes map it, and a kill leaves the old one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.retrieval.binary import BinaryCodes
from qwen3_embedding.retrieval.fusion import Ranking, best_first
from qwen3_embedding.retrieval.graph import Graph
from qwen3_embedding.retrieval.mapped import new_array
from qwen3_embedding.retrieval.search import top_ranking
from qwen3_embedding.types import FloatArray, IntArray
from qwen3_embedding.whole import PARTIAL, whole_folder

SnapshotPass = Literal["binary", "hnsw-sq"]

_PREFIX = "snapshot-"
_VECTORS, _ROWS, _ABOUT = "vectors.npy", "rows.arrow", "snapshot.json"
_REBUILD_SHARE = 0.2
"""A graph that has lost more of its rows than this is built anew: those that are gone still cost their steps."""

Part = tuple[IntArray, list[str], FloatArray]
"""Numbers, ids and vectors of some rows."""


class FirstPass(Protocol):
    """Finds candidates among the rows of a snapshot."""

    def nearest(self, vector_D: FloatArray, count: int, effort: int) -> IntArray:
        """About ``count`` rows that are probably nearest."""
        ...


@dataclass(frozen=True)
class About:
    """The contents of ``snapshot.json``."""

    kind: SnapshotPass
    rows: int
    dimensions: int
    next_number: int
    """Numbers below this one that are not in the snapshot were not in the table."""
    removed: int
    """Rows of the graph that are gone from the table since it was built from nothing."""


class Ids:
    """N strings of an Arrow column, read from its buffers: a query wants ten of them, and quickly."""

    def __init__(self, column: pa.LargeStringArray) -> None:
        _, ends, text = column.buffers()
        self._ends_N1 = memoryview(ends).cast("b").cast("q")[column.offset :]
        self._text = memoryview(text or b"")

    def __getitem__(self, row: int) -> str:
        return str(self._text[self._ends_N1[row] : self._ends_N1[row + 1]], "utf-8")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An open snapshot of N rows."""

    folder: Path
    about: About
    numbers_N: IntArray
    """Ascending."""
    ids: Ids
    vectors_ND: FloatArray
    first_pass: FirstPass

    @classmethod
    def open(cls, folder: Path) -> Snapshot:
        """Map a snapshot.

        Raises:
            IndexCorruptError: a file of it is missing or torn.
        """
        try:
            about = About(**json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
            with pa.memory_map(str(folder / _ROWS)) as mapped:
                rows = pa.ipc.open_file(mapped).read_all().combine_chunks()
            vectors_ND = np.asarray(np.load(folder / _VECTORS, mmap_mode="r"))  # a plain array: quicker to pick from
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            raise IndexCorruptError(f"{folder} cannot be read: {error}; build it anew with optimize()") from None
        numbers_N = rows["number"].to_numpy()
        if vectors_ND.shape != (about.rows, about.dimensions) or len(numbers_N) != about.rows:
            raise IndexCorruptError(f"{folder} contradicts itself; build it anew with optimize()")
        first_pass: FirstPass
        if about.kind == "binary":
            first_pass = BinaryCodes.open(folder, about.rows, about.dimensions)
        else:
            first_pass = Graph.open(folder, numbers_N)
        ids = rows["id"].chunk(0) if about.rows else pa.array([""], pa.large_string())[:0]
        return cls(folder, about, numbers_N, Ids(ids), vectors_ND, first_pass)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


@dataclass(frozen=True, eq=False)
class Live:
    """A snapshot, and what the table has changed since."""

    snapshot: Snapshot
    alive_N: npt.NDArray[np.bool_] | None
    """``None`` where every row of the snapshot is still in the table."""
    ids: list[str]
    """Of rows that came later."""
    vectors_MD: FloatArray

    @classmethod
    def over(cls, snapshot: Snapshot, numbers: IntArray, later: Part) -> Live:
        """A snapshot under the table as it is: all its ``numbers``, and the rows that the snapshot lacks."""
        alive_N = np.isin(snapshot.numbers_N, numbers)
        return cls(snapshot, None if alive_N.all() else alive_N, later[1], later[2])

    @property
    def changed_share(self) -> float:
        """Rows that came or went since the snapshot, as a share of it."""
        gone = 0 if self.alive_N is None else int(np.count_nonzero(~self.alive_N))
        return (gone + len(self.ids)) / max(1, self.snapshot.about.rows)

    def nearest(self, vector_D: FloatArray, limit: int, count: int, effort: int) -> tuple[Ranking, float, float]:
        """The ``limit`` best by cosine, with the seconds of the first pass and of comparing in float32.

        Args:
            vector_D: unit length.
            limit: how many are wanted.
            count: how many the first pass is to bring.
            effort: how broadly a graph is searched.
        """
        began = time.perf_counter()
        rows = self.snapshot.first_pass.nearest(vector_D, count, effort)
        if self.alive_N is not None:
            rows = rows[self.alive_N[rows]]
        found = time.perf_counter()
        ranking = self._best(rows.tolist(), (self.snapshot.vectors_ND.take(rows, axis=0) @ vector_D).tolist(), limit)
        if self.ids:
            ranking += top_ranking(self.ids, self.vectors_MD @ vector_D, limit)
        return best_first(ranking)[:limit], found - began, time.perf_counter() - found

    def _best(self, rows: list[int], scores: list[float], limit: int) -> Ranking:
        """Ids are looked up for those rows only whose score is among the best."""
        least = sorted(scores)[-limit] if len(scores) > limit else -math.inf
        ids = self.snapshot.ids
        return [(ids[row], score) for row, score in zip(rows, scores, strict=True) if score >= least]


def newest(folder: Path) -> Path | None:
    """The newest whole snapshot in an index folder."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.suffix not in (PARTIAL, ".part")]
    return max(found, key=lambda path: path.name, default=None)


def write_snapshot(
    folder: Path,
    kind: SnapshotPass,
    dimensions: int,
    next_number: int,
    numbers: IntArray,
    read: Callable[[], Iterable[Part]],
    base: Live | None = None,
) -> Path:
    """Write a snapshot of the table and make it the newest; older ones go.

    Args:
        folder: of the index.
        kind: its first pass.
        dimensions: D.
        next_number: the number that the next new row will have.
        numbers: (N,) of all rows, in any order.
        read: gives all rows, in parts, in any order.
        base: what is there already; a graph grows from it.

    Raises:
        OSError: the disk is full; what was there stays.
    """
    ordered_N = np.sort(numbers)
    serial = 1 + max((int(path.name[len(_PREFIX) :]) for path in folder.glob(f"{_PREFIX}*[0-9]")), default=-1)
    target = folder / f"{_PREFIX}{serial:06d}"
    with whole_folder(target) as beside:
        vectors_ND = _write_rows(beside, ordered_N, dimensions, read())
        removed = _write_pass(beside, kind, ordered_N, vectors_ND, base)
        about = About(kind, len(ordered_N), dimensions, next_number, removed)
        (beside / _ABOUT).write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")
    for path in folder.glob(f"{_PREFIX}*"):
        if path != target:  # who has it mapped keeps it until he lets go
            shutil.rmtree(path, ignore_errors=True)
    return target


def _write_rows(folder: Path, ordered_N: IntArray, dimensions: int, parts: Iterable[Part]) -> FloatArray:
    """Vectors and ids, in the order of the numbers; gives the vectors, mapped."""
    vectors_ND = new_array(folder / _VECTORS, np.float32, (len(ordered_N), dimensions))
    ids = np.empty(len(ordered_N), dtype=object)
    for numbers, some, vectors in parts:
        rows = np.searchsorted(ordered_N, numbers)
        vectors_ND[rows] = vectors
        ids[rows] = some
    table = pa.table({"number": pa.array(ordered_N, pa.int64()), "id": pa.array(ids, pa.large_string())})
    with pa.ipc.new_file(str(folder / _ROWS), table.schema) as file:
        file.write_table(table)
    return vectors_ND


def _write_pass(
    folder: Path, kind: SnapshotPass, ordered_N: IntArray, vectors_ND: FloatArray, base: Live | None
) -> int:
    """Gives how many rows the graph has lost since it was built from nothing."""
    if kind == "binary":
        BinaryCodes.write(folder, _slices(vectors_ND), *vectors_ND.shape)
        return 0
    gone = _gone(base, ordered_N)
    if base is None or gone is None:
        Graph.write(folder, _numbered(ordered_N, vectors_ND), vectors_ND.shape[1])
        return 0
    first = int(np.searchsorted(ordered_N, base.snapshot.about.next_number))
    parts = _numbered(ordered_N[first:], vectors_ND[first:])
    Graph.write(folder, parts, vectors_ND.shape[1], base.snapshot.folder)
    return base.snapshot.about.removed + len(gone)


def _gone(base: Live | None, ordered_N: IntArray) -> IntArray | None:
    """Numbers of the base that are no longer there; ``None`` where they are so many that the graph must be new."""
    if base is None or base.snapshot.about.kind != "hnsw-sq":
        return None
    gone = np.setdiff1d(base.snapshot.numbers_N, ordered_N, assume_unique=True)
    lost = base.snapshot.about.removed + len(gone)
    return gone if lost <= _REBUILD_SHARE * max(1, base.snapshot.about.rows) else None


def _slices(vectors_ND: FloatArray, rows: int = 65_536) -> Iterator[FloatArray]:
    for at in range(0, len(vectors_ND), rows):
        yield np.asarray(vectors_ND[at : at + rows])


def _numbered(numbers_N: IntArray, vectors_ND: FloatArray) -> Iterator[tuple[IntArray, FloatArray]]:
    at = 0
    for part in _slices(vectors_ND):
        yield numbers_N[at : at + len(part)], part
        at += len(part)
