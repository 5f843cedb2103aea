"""A PostgreSQL table with the pgvector extension."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_embedding.corpus.sinks.sink import Shape, check_width
from qwen3_embedding.optional import require
from qwen3_embedding.types import Precision, Vectors

_TYPES: dict[Precision, str] = {"float32": "vector", "float16": "halfvec", "ubinary": "bit"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class PgvectorSink:
    """Table ``(id text primary key, embedding vector(D))``; ``halfvec(D)`` for float16, ``bit(D)`` for ubinary."""

    keeps = True
    accepts: tuple[Precision, ...] = tuple(_TYPES)

    def __init__(self, conninfo: str, table: str) -> None:
        if not _NAME.fullmatch(table):
            raise ValueError(f"table {table!r}; wanted a plain name: letters, digits and _")
        self.conninfo = conninfo
        self.table = table
        self._connection: Any = None
        self._kind = "vector"

    @property
    def name(self) -> str:
        """``pgvector:CONNINFO#TABLE``, its password left out."""
        shown = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1@", self.conninfo)
        return f"pgvector:{re.sub(r'password=[^ ]*', '', shown)}#{self.table}"

    def begin(self, shape: Shape) -> None:
        """Open or make the table."""
        psycopg = require("psycopg", extra="sinks")
        self._kind = _TYPES[shape.precision]
        self._connection = psycopg.connect(self.conninfo)
        self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._run(
            f"CREATE TABLE IF NOT EXISTS {self.table} "
            f"(id text PRIMARY KEY, embedding {self._kind}({shape.dimensions}) NOT NULL)"
        )
        found = self._run(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'embedding'", (self.table,)
        ).fetchone()
        check_width(self.name, found[0] if found else None, shape.dimensions)
        self._connection.commit()

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by id, in a transaction."""
        self._run(f"DELETE FROM {self.table} WHERE id = ANY(%s)", (list(ids),))
        self._connection.commit()

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Insert or replace by id, in one transaction."""
        with self._connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {self.table} (id, embedding) VALUES (%s, %s::{self._kind}) "
                "ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding",
                list(zip(ids, (self.literal(row) for row in vectors), strict=True)),
            )
        self._connection.commit()

    def finish(self) -> int:
        """Count."""
        return int(self._run(f"SELECT count(*) FROM {self.table}").fetchone()[0])

    def close(self) -> None:
        """Disconnect; what was not committed is rolled back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def literal(self, row: Vectors) -> str:
        """A row as pgvector reads it: ``[0.1,0.2]``, or ``0101`` for bits."""
        if self._kind == "bit":
            return "".join(map(str, np.unpackbits(row).tolist()))
        return "[" + ",".join(map(repr, np.asarray(row, dtype=np.float32).tolist())) + "]"

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        return self._connection.execute(statement, values)
