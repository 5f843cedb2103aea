"""An encoded corpus into one Lance dataset from many workers, and its vector index built by many (lance-ray).

The sink ``lancedb:`` sends rows through one process, by id.  Here every worker of a Ray cluster writes fragments of
its own, and one commit makes them a version of the dataset: all of it or nothing, so a kill leaves the version before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet

from qwen3_embedding.corpus.manifest import Manifest, read_manifest
from qwen3_embedding.errors import DataError, IndexCorruptError
from qwen3_embedding.optional import require

IndexKind = Literal["IVF_PQ", "IVF_RQ", "IVF_HNSW_SQ", "IVF_HNSW_PQ"]

_ROWS_OF_A_FILE = 262_144
_ROWS_OF_A_PARTITION = 256


@dataclass(frozen=True, slots=True)
class LanceTable:
    """What was written."""

    uri: str
    """A folder that LanceDB opens as a table, too."""
    rows: int
    fragments: int


def table_uri(address: str) -> str:
    """``URI#TABLE``, as in the sink ``lancedb:``, to the address of the dataset; the default table is ``corpus``."""
    place, _, table = address.rpartition("#") if "#" in address else (address, "", "")
    if not place:
        raise ValueError(f"address {address!r}; wanted URI#TABLE, such as s3://bucket/index#documents")
    return f"{place.rstrip('/')}/{table or 'corpus'}.lance"


def write_lance(folder: str | Path, address: str, workers: int = 2, ray_address: str = "auto") -> LanceTable:
    """Write the shards of an encoded corpus into one Lance dataset, from many workers.

    The dataset is written whole, as a new version of what was there; the shards must be at the same path on all
    machines.

    Args:
        folder: output folder of ``encode``, complete.
        address: ``URI#TABLE``, local or on object storage.
        workers: tasks that write at the same time.
        ray_address: the cluster; ``local`` starts one for this call.

    Raises:
        DataError: the corpus is not encoded to its end.
        IndexCorruptError: other rows arrived than the corpus has.
        MissingExtraError: Ray or lance-ray is not installed.
    """
    manifest, uri = _whole(folder), table_uri(address)
    lance_ray, lance = require("lance_ray", extra="scale"), require("lance", extra="scale")
    with cluster(ray_address) as ray:
        paths = [str(manifest.folder.absolute() / shard.file) for shard in manifest.shards]
        # A task a shard: Ray's own reader of Parquet would join small shards into the work of one.
        shards = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
        vectors = shards.map_batches(_read_shard, batch_size=1, batch_format="pyarrow")
        lance_ray.write_lance(
            vectors,
            uri,
            mode="overwrite",
            min_rows_per_file=1,
            max_rows_per_file=_ROWS_OF_A_FILE,
            concurrency=min(workers, len(paths)),
        )
    dataset = lance.dataset(uri)
    rows = int(dataset.count_rows())
    if rows != manifest.rows:
        raise IndexCorruptError(f"{uri} has {rows:,} rows, the corpus {manifest.rows:,}; write it again")
    return LanceTable(uri, rows, len(dataset.get_fragments()))


def build_index(
    address: str,
    kind: str = "IVF_PQ",
    workers: int = 2,
    partitions: int | None = None,
    ray_address: str = "auto",
) -> int:
    """Build the vector index of a Lance dataset on many workers, each over fragments of its own.

    Args:
        address: as in :func:`write_lance`.
        kind: product quantisation (``IVF_PQ``), one bit a dimension (``IVF_RQ``), or graphs in the clusters.
        workers: that build at the same time.
        partitions: clusters; ``None``: the square root of the rows, and not so many that one could not be trained.
        ray_address: the cluster.

    Returns:
        Rows that are in the index.

    Raises:
        ValueError: an unknown kind, or too few rows to train on.
        MissingExtraError: Ray or lance-ray is not installed.
    """
    if kind not in get_args(IndexKind):
        raise ValueError(f"index kind {kind!r}; wanted one of {', '.join(get_args(IndexKind))}")
    lance_ray, lance = require("lance_ray", extra="scale"), require("lance", extra="scale")
    uri = table_uri(address)
    dataset = lance.dataset(uri)
    rows, width = int(dataset.count_rows()), int(dataset.schema.field("vector").type.list_size)
    if rows < _ROWS_OF_A_PARTITION:
        raise ValueError(
            f"{uri} has {rows} rows; wanted at least {_ROWS_OF_A_PARTITION}, fewer are compared one by one"
        )
    sub_vectors = {"num_sub_vectors": width // 4 if width % 4 == 0 else width} if kind.endswith("PQ") else {}
    with cluster(ray_address):
        built = lance_ray.create_index(
            uri,
            column="vector",
            index_type=kind,
            metric="cosine",
            num_workers=workers,
            num_partitions=partitions or max(1, min(round(rows**0.5), rows // _ROWS_OF_A_PARTITION)),
            sample_rate=min(256, rows // 256),  # codebooks of 256 entries are trained on so many rows each
            **sub_vectors,
        )
    (name,) = {index["name"] for index in built.list_indices() if index["fields"] == ["vector"]}
    return int(built.stats.index_stats(name)["num_indexed_rows"])


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected; let go of afterwards where it was this call that connected."""
    ray = require("ray", extra="scale")
    require("ray.data", extra="scale")
    started = not ray.is_initialized()
    if started:
        where = None if address == "local" else address
        ray.init(address=where, include_dashboard=False if where is None else None, log_to_driver=False)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _read_shard(batch: Any) -> Any:
    """The ids and vectors of a shard whose path is the one row of ``batch``."""
    (path,) = batch["path"].to_pylist()
    return pa.parquet.read_table(path, columns=["id", "vector"])


def _whole(folder: str | Path) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(f"{folder}: not encoded to its end; repeat the encode command first")
    return manifest
