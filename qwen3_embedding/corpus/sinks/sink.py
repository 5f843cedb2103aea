"""What a sink is, and how shards are loaded into one so that a kill neither loses nor doubles a row.

A database sink is told to *upsert* by id, which may be repeated safely.  Which shards it has is kept in a cursor beside
them, written after each shard: a killed load goes on there, and an incremental encode sends only the shards that are
new, and the ids that are gone.  A file sink is small work and is written anew, beside its place, and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qwen3_embedding.corpus.ledger import Ledger
from qwen3_embedding.corpus.manifest import Manifest, read_manifest
from qwen3_embedding.corpus.shards import read_batches
from qwen3_embedding.errors import DataError, IndexCorruptError
from qwen3_embedding.types import Precision, Vectors
from qwen3_embedding.whole import write_text

CURSORS = "sinks"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is coming."""

    rows: int
    width: int
    """Numbers a row."""
    dtype: str
    precision: Precision
    dimensions: int


class Sink(Protocol):
    """A place for vectors. Calls come in the order begin, delete, upsert …, finish, close."""

    @property
    def name(self) -> str:
        """What and where it is, without secrets: the key of its cursor."""
        ...

    @property
    def keeps(self) -> bool:
        """It keeps what earlier loads gave it (a database); ``False`` where each load writes it anew (a file)."""
        ...

    @property
    def accepts(self) -> tuple[Precision, ...]:
        """Precisions that it can store."""
        ...

    def begin(self, shape: Shape) -> None:
        """Connect; make the table where there is none.

        Raises:
            ValueError: a table of that name has vectors of another size.
        """
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows; unknown ids are no error."""
        ...

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Add rows, replacing those that have the same id."""
        ...

    def finish(self) -> int:
        """Make everything visible.

        Returns:
            Rows that are in it now.
        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load has done."""

    upserted: int
    deleted: int
    rows: int
    """Rows in the sink now."""


def load(
    folder: str | Path, sink: Sink, batch_rows: int = 1024, report: Callable[[int, int], None] | None = None
) -> Loaded:
    """Bring a sink to the state of an encoded corpus.

    Args:
        folder: output folder of ``encode``, complete.
        sink: where to; it should hold nothing but this corpus.
        batch_rows: rows of a call to the sink.
        report: called with rows done and rows to do.

    Raises:
        DataError: the corpus is not encoded to its end.
        ValueError: the sink cannot store vectors of this precision.
        IndexCorruptError: the sink has another number of rows afterwards than the corpus.
    """
    manifest = read_manifest(folder)
    shape = _shape(manifest)
    if not manifest.complete:
        raise DataError(f"{folder}: not encoded to its end; repeat the encode command first")
    if shape.precision not in sink.accepts:
        raise ValueError(f"{sink.name} stores {', '.join(sink.accepts)}; these vectors are {shape.precision}")
    cursor = _Cursor.open(manifest.folder, sink)
    try:
        sink.begin(shape)
        deleted = _delete(manifest.folder, sink, cursor)
        upserted = _upsert(manifest, sink, cursor, batch_rows, report)
        rows = sink.finish()
    finally:
        sink.close()
    if rows != manifest.rows:
        raise IndexCorruptError(
            f"{sink.name} has {rows:,} rows, the corpus {manifest.rows:,}; if it was emptied or holds other rows, "
            f"give it a table of its own and remove {cursor.path}"
        )
    return Loaded(upserted, deleted, rows)


def batches(ids: Sequence[str], vectors: Vectors, rows: int) -> Iterator[tuple[Sequence[str], Vectors]]:
    """Cut into parts of at most ``rows``."""
    for at in range(0, len(ids), rows):
        yield ids[at : at + rows], vectors[at : at + rows]


def _delete(folder: Path, sink: Sink, cursor: _Cursor) -> int:
    if not sink.keeps:
        return 0
    ledger = Ledger.open(folder, read_only=True)
    try:
        gone = ledger.removed_after(cursor.removed)
    finally:
        ledger.close()
    for at in range(0, len(gone), 1024):
        part = gone[at : at + 1024]
        sink.delete([id_ for _, id_ in part])
        cursor.save(removed=part[-1][0])
    return len(gone)


def _upsert(
    manifest: Manifest, sink: Sink, cursor: _Cursor, batch_rows: int, report: Callable[[int, int], None] | None
) -> int:
    wanted = [shard for shard in manifest.shards if cursor.shards.get(shard.file) != shard.sha256]
    total = sum(shard.rows for shard in wanted)
    done = 0
    for shard in wanted:
        for ids, vectors in read_batches(manifest.folder / shard.file, batch_rows):
            sink.upsert(ids, vectors)
            done += len(ids)
            if report is not None:
                report(done, total)
        cursor.save(shard=(shard.file, shard.sha256))
    return done


@dataclass
class _Cursor:
    """Which shards and removals a sink has."""

    path: Path
    sink: str
    keeps: bool
    removed: int
    shards: dict[str, str]

    @classmethod
    def open(cls, folder: Path, sink: Sink) -> _Cursor:
        path = folder / CURSORS / f"{hashlib.sha256(sink.name.encode()).hexdigest()[:16]}.json"
        raw: dict[str, Any] = {}
        if sink.keeps and path.exists():
            try:
                raw = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise IndexCorruptError(f"{path}: not valid: {error}; remove it to load everything again") from None
        return cls(path, sink.name, sink.keeps, int(raw.get("removed", 0)), dict(raw.get("shards", {})))

    def save(self, shard: tuple[str, str] | None = None, removed: int | None = None) -> None:
        if shard is not None:
            self.shards[shard[0]] = shard[1]
        if removed is not None:
            self.removed = removed
        if not self.keeps:
            return
        state = {"sink": self.sink, "removed": self.removed, "shards": self.shards}
        write_text(self.path, json.dumps(state, indent=1))


def _shape(manifest: Manifest) -> Shape:
    encoding = manifest.raw["encoding"]
    return Shape(manifest.rows, manifest.width, manifest.dtype, encoding["precision"], encoding["dimensions"])


def check_width(what: str, found: int | None, wanted: int) -> None:
    """Refuse a table that was made for other vectors."""
    if found is not None and found != wanted:
        raise ValueError(f"{what} has vectors of {found} numbers, these have {wanted}; give a table of its own")
