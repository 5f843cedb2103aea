"""A LanceDB table, local or on object storage (``s3://``, ``gs://``, ``az://``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3_embedding.corpus.shards import vector_array
from qwen3_embedding.corpus.sinks.sink import Shape, check_width
from qwen3_embedding.optional import require
from qwen3_embedding.types import PRECISIONS, Precision, Vectors


class LanceSink:
    """Table with the columns ``id`` and ``vector``."""

    keeps = True
    accepts: tuple[Precision, ...] = PRECISIONS

    def __init__(self, uri: str, table: str) -> None:
        self.uri = uri
        self.table = table
        self._open: Any = None

    @property
    def name(self) -> str:
        """``lancedb:URI#TABLE``."""
        return f"lancedb:{self.uri}#{self.table}"

    def begin(self, shape: Shape) -> None:
        """Open or make the table."""
        database = require("lancedb", extra="scale").connect(self.uri)
        kind = vector_array(np.empty((0, shape.width), dtype=np.dtype(shape.dtype))).type
        schema = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", kind, nullable=False)])
        try:
            self._open = database.open_table(self.table)
        except ValueError:  # what LanceDB says where there is none
            self._open = database.create_table(self.table, schema=schema)
        check_width(self.name, self._open.schema.field("vector").type.list_size, shape.width)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by id."""
        quoted = ", ".join("'" + id_.replace("'", "''") + "'" for id_ in ids)
        self._open.delete(f"id IN ({quoted})")

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Merge by id."""
        rows = pa.table([pa.array(list(ids), pa.string()), vector_array(vectors)], schema=self._open.schema)
        self._open.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def finish(self) -> int:
        """Join the small files that the batches have made."""
        self._open.optimize()
        return int(self._open.count_rows())

    def close(self) -> None:
        """Let go of the table."""
        self._open = None
