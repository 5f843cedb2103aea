"""Shards: Parquet files of ids and vectors, written beside and renamed, readable row by row.

Vectors do not compress, so float columns are stored plain and uncompressed, one page a row group: a row's vector then
lies at a known byte of the file and a repeat of it is copied without reading the rest.  Integer vectors, which Parquet
widens to 32 bits, are stored as a dictionary, which is one byte a value again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from qwen3_embedding.errors import IndexCorruptError
from qwen3_embedding.types import IntArray, Vectors
from qwen3_embedding.whole import force_to_disk, whole_file

_GROUP_ROWS_FLOAT, _GROUP_ROWS_INTEGER = 2048, 256


@dataclass(frozen=True)
class ShardRows:
    """The columns of a shard. ``parents``, ``starts`` and ``ends`` are there where documents were cut into chunks."""

    ids: list[str]
    vectors: Vectors
    """(N, width) of any precision."""
    parents: list[str] | None = None
    starts: list[int] | None = None
    """First character of the chunk in its document."""
    ends: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is in place."""

    bytes: int
    sha256: str


def write_shard(path: Path, rows: ShardRows) -> Written:
    """Write a shard beside its place, force it to disk, and rename it."""
    with whole_file(path) as beside:
        _write(beside, rows)
        with beside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = beside.stat().st_size
    force_to_disk(path.parent)  # the rename outlives a power cut too
    return Written(size, digest)


def read_shard(path: Path) -> ShardRows:
    """A whole shard."""
    with _parquet(path) as parquet:
        table = parquet.read()
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "vector"}
    return ShardRows(
        columns["id"], _matrix(table.column("vector")), columns.get("parent"), columns.get("start"), columns.get("end")
    )


def read_batches(path: Path, rows: int = 4096) -> Iterator[tuple[list[str], Vectors]]:
    """Ids and vectors of a shard, in parts of at most ``rows``."""
    with _parquet(path) as parquet:
        for batch in parquet.iter_batches(rows, columns=["id", "vector"]):
            yield batch.column("id").to_pylist(), _matrix(batch.column("vector"))


def read_rows(path: Path, rows: IntArray) -> Vectors:
    """(len(rows), width) vectors of some rows of a shard, in the order asked."""
    status = path.stat()
    shard = _layout(path, status.st_size, status.st_mtime_ns)
    out = np.empty((len(rows), shard.width), dtype=shard.dtype)
    groups = np.searchsorted(shard.first_rows, rows, side="right") - 1
    for group in np.unique(groups):
        wanted = np.flatnonzero(groups == group)
        out[wanted] = shard.group(int(group))[rows[wanted] - shard.first_rows[group]]
    return out


def check_shard(path: Path, size: int, sha256: str | None) -> str | None:
    """What is wrong with a shard, or ``None``. Without a digest only the size is compared."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    if found != size:
        return f"{found} bytes, wanted {size}"
    if sha256 is not None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return "the checksum is another one"
    return None


@dataclass(frozen=True, eq=False)
class _Layout:
    path: Path
    dtype: np.dtype[Any]
    width: int
    first_rows: IntArray
    """(G + 1,) first row of each row group."""
    values_at: list[int] | None
    """Byte at which the plain values of each row group begin; ``None`` where they are not plain."""

    def group(self, number: int) -> Vectors:
        """The vectors of a row group; mapped, not read, where they are plain."""
        rows = int(self.first_rows[number + 1] - self.first_rows[number])
        if self.values_at is not None:
            at = self.values_at[number]
            return np.memmap(self.path, dtype=self.dtype, mode="r", offset=at, shape=(rows, self.width))
        with _parquet(self.path) as parquet:
            return _matrix(parquet.read_row_group(number, columns=["vector"]).column("vector"))


@lru_cache(maxsize=64)
def _layout(path: Path, size: int, mtime_ns: int) -> _Layout:
    del size, mtime_ns  # part of the key: a shard that was replaced is looked at anew
    with _parquet(path) as parquet:  # nothing stays open: a shard that was replaced gives its space back
        metadata, schema = parquet.metadata, parquet.schema_arrow
    vector = schema.field("vector").type
    dtype = np.dtype(vector.value_type.to_pandas_dtype())
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    first = np.cumsum([0, *(group.num_rows for group in groups)])
    values_at: list[int] | None = None
    if dtype.kind == "f":
        column = schema.get_field_index("vector")
        chunks = [group.column(column) for group in groups]
        values_at = [
            chunk.data_page_offset + chunk.total_compressed_size - chunk.num_values * dtype.itemsize for chunk in chunks
        ]
    return _Layout(path, dtype, vector.list_size, first.astype(np.int64), values_at)


def _parquet(path: Path) -> Any:
    try:
        return pa.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise IndexCorruptError(f"{path}: missing or torn: {error}; repeat the command with --repair") from error


def _matrix(column: Any) -> Vectors:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # what combining gives for no or one chunk differs by version
            column = column.chunk(0)
    values: Vectors = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def _write(path: Path, rows: ShardRows) -> None:
    table = _table(rows)
    integer = rows.vectors.dtype.kind != "f"
    group_rows = _GROUP_ROWS_INTEGER if integer else _GROUP_ROWS_FLOAT
    with pa.parquet.ParquetWriter(
        path,
        table.schema,
        compression={name: "none" if name.startswith("vector") else "zstd" for name in _leaves(table.schema)},
        use_dictionary=["vector.list.element"] if integer else False,
        data_page_size=1 << 30,  # one page a row group
        write_statistics=False,
        store_schema=True,
    ) as writer:
        writer.write_table(table, row_group_size=group_rows)


def _leaves(schema: Any) -> list[str]:
    return ["vector.list.element" if name == "vector" else name for name in schema.names]


def vector_array(vectors: Vectors) -> Any:
    """(N, width) as an Arrow array of fixed-size lists without nulls."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    kind = pa.list_(pa.field("element", flat.type, nullable=False), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _table(rows: ShardRows) -> Any:
    vector = vector_array(rows.vectors)
    columns = {"id": (pa.array(rows.ids, pa.string()), pa.string()), "vector": (vector, vector.type)}
    if rows.parents is not None:
        columns["parent"] = (pa.array(rows.parents, pa.string()), pa.string())
        columns["start"] = (pa.array(rows.starts, pa.int64()), pa.int64())
        columns["end"] = (pa.array(rows.ends, pa.int64()), pa.int64())
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, (_, kind) in columns.items()])
    return pa.table([array for array, _ in columns.values()], schema=schema)
