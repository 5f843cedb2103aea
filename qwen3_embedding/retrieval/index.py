"""A search index on disk: vectors, full text and metadata in one LanceDB table, and the model they belong to."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, BTree, IvfSq
from lancedb.query import MatchQuery

from qwen3_embedding.errors import IndexCorruptError, Qwen3EmbeddingError
from qwen3_embedding.retrieval.analysis import analyze
from qwen3_embedding.retrieval.documents import (
    Document,
    DocumentLike,
    check_text,
    check_texts,
    dump_metadata,
    to_documents,
)
from qwen3_embedding.retrieval.filters import Condition, column_name, kind_of, quote, to_sql
from qwen3_embedding.retrieval.fusion import Ranking, best_first
from qwen3_embedding.retrieval.manifest import (
    IndexSettings,
    Manifest,
    check_model,
    new_manifest,
    read_manifest,
    write_manifest,
)
from qwen3_embedding.retrieval.search import Plan, Searchable, SearchResults, top_ranking, unit_vectors
from qwen3_embedding.types import Encoder, FloatArray, Scorer

_TABLE = "documents"
_BASE_COLUMNS = ("id", "text", "metadata", "tokens", "vector", "short")
_METADATA_TYPES = {"text": pa.string(), "number": pa.float64(), "boolean": pa.bool_(), "list": pa.list_(pa.string())}
_INT8_ROWS = 256
"""Rows from which int8 codes are trained; below, every vector is compared in float32, which is as fast."""
_STALE_SHARE = 0.1
"""Rows not yet in the text and vector indices are searched one by one; above this share they are merged in."""
_ID_CHUNK = 1000
_QUERY_TOKENS = 4096
"""Of a full-text query: the engine takes 16 kB for each, and ends the process where memory does not suffice."""
_KEPT_VERSIONS = timedelta(minutes=10)
"""Readers in other processes may still be at a version of the table this old."""


class SearchIndex(Searchable):
    """Documents on disk, searched by vector, by full text (BM25) or by both, and reranked.

    Every change is one whole step on disk: a process that is killed leaves the index as it was before the step.
    Ids are unique; several processes may read while one writes.

    Make one with :meth:`create`, open one with :meth:`open`.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, table: Any, embedder: Encoder | None, reranker: Scorer | None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.embedder = embedder
        self.reranker = reranker
        self._table = table

    @classmethod
    def create(
        cls,
        path: str | Path,
        embedder: Encoder,
        reranker: Scorer | None = None,
        *,
        settings: IndexSettings | None = None,
        instruction: str | None = None,
    ) -> SearchIndex:
        """Make an empty index in a new folder.

        Args:
            path: the folder; it must not exist, or be empty.
            embedder: the encoder of documents and queries; the index remembers it and refuses others.
            reranker: orders the candidates of every search that does not say otherwise.
            settings: size and first pass of the stored vectors.
            instruction: the task of searches that name none; kept in the index.

        Raises:
            ValueError: the folder holds something already; dimensions that the encoder does not have.
        """
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists already; open it with SearchIndex.open, or choose a new folder")
        if instruction is not None:
            check_text(instruction, "instruction")
        manifest = new_manifest(embedder, settings or IndexSettings(), instruction)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            _create_table(beside, manifest)
            write_manifest(beside, manifest)
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls.open(folder, embedder, reranker)

    @classmethod
    def open(cls, path: str | Path, embedder: Encoder | None = None, reranker: Scorer | None = None) -> SearchIndex:
        """Open an index.

        Args:
            path: its folder.
            embedder: the encoder it was made with; ``None`` leaves text search, ``delete`` and ``len``.
            reranker: as in :meth:`create`.

        Raises:
            IndexCorruptError: no index there, or one that cannot be read.
            ValueError: the encoder is another model.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if embedder is not None:
            check_model(manifest, embedder, folder)
        with _reading(folder):
            table = lancedb.connect(folder, read_consistency_interval=timedelta(0)).open_table(_TABLE)
            schema = table.schema
        _check_schema(schema, manifest, folder)
        return cls(folder, manifest, table, embedder, reranker)

    def __len__(self) -> int:
        with _reading(self.folder):
            return int(self._table.count_rows())

    @property
    def stored_dimensions(self) -> int:
        """Size of the vectors in the index."""
        return self.manifest.dimensions

    def add(self, documents: Iterable[DocumentLike], progress: bool = False) -> list[str]:
        """Embed and store documents.

        Args:
            documents: strings, or mappings with ``text``, optionally ``id``, and any further keys as metadata.
                Documents without an id are numbered on from what the index has given out before.
            progress: let the encoder show its progress.

        Returns:
            Their ids, in order.

        Raises:
            TypeError, ValueError: a document that is not one, an id twice or in the index already; nothing is written.
            ValueError: the index was opened without an embedder.
        """
        checked = to_documents(documents, self.manifest.next_id)
        known = self._known([document.id for document in checked])
        if known:
            raise ValueError(f"{len(known)} ids are in the index already, such as {known[0]!r}; use upsert to replace")
        return self._write(checked, progress, replaces=False)

    def upsert(self, documents: Iterable[DocumentLike], progress: bool = False) -> list[str]:
        """Store documents, those of known ids in place of the old. Otherwise as :meth:`add`."""
        return self._write(to_documents(documents, self.manifest.next_id), progress, replaces=True)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the documents of these ids; how many of them were there."""
        known = self._known(list(dict.fromkeys(check_texts(ids, "ids"))))
        with _reading(self.folder):
            for chunk in _chunks(known, _ID_CHUNK):
                self._table.delete(f"id IN ({', '.join(map(quote, chunk))})")
        return len(known)

    def fetch(self, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these ids; ids that are not in the index are left out."""
        found: dict[str, Document] = {}
        for chunk in _chunks(list(ids), _ID_CHUNK):
            where = f"id IN ({', '.join(map(quote, chunk))})"
            with _reading(self.folder):
                rows = self._table.search().where(where).select(["id", "text", "metadata"]).limit(len(chunk)).to_list()
            found.update((row["id"], Document(row["id"], row["text"], json.loads(row["metadata"]))) for row in rows)
        return found

    def retrieve_dense(self, vectors_QD: FloatArray, limit: int, conditions: list[Condition]) -> list[Ranking]:
        """The nearest documents by cosine similarity: a first pass over small vectors where the index keeps such."""
        if self.manifest.first_pass == "short":
            return [self._by_short(vector_D, limit, conditions) for vector_D in vectors_QD]
        return [self._by_vector(vector_D, limit, conditions) for vector_D in vectors_QD]

    def retrieve_text(self, queries: Sequence[str], limit: int, conditions: list[Condition]) -> list[Ranking]:
        """BM25 over the analysed text (k1 = 1.2, b = 0.75, as LanceDB has them)."""
        return [self._by_text(query, limit, conditions) for query in queries]

    def run(self, queries: Sequence[str], plan: Plan) -> SearchResults:
        """Answer many queries at once, with a breakdown of the time; see :meth:`search`."""
        if plan.instruction is None and self.manifest.instruction is not None:
            plan = replace(plan, instruction=self.manifest.instruction)
        return super().run(queries, plan)

    def optimize(self) -> None:
        """Merge what was added since into the text and vector indices and drop versions older than ten minutes."""
        with _reading(self.folder):
            self._table.create_index("id", config=BTree(), replace=True)
            if self.manifest.first_pass == "int8" and len(self) >= _INT8_ROWS:
                self._table.create_index("vector", config=IvfSq(distance_type="cosine"), replace=True)
            self._table.optimize(cleanup_older_than=_KEPT_VERSIONS)

    def __repr__(self) -> str:
        model = f"{self.manifest.model!r}, {self.manifest.dimensions} dimensions"
        reranker = f", reranker {self.reranker.name!r}" if self.reranker else ""
        return f"SearchIndex({str(self.folder)!r}, {len(self)} documents, {model}{reranker})"

    def _write(self, documents: list[Document], progress: bool, replaces: bool) -> list[str]:
        if self.embedder is None:
            raise ValueError("adding needs an embedder; open the index with the one it was made with")
        if not documents:
            return []
        self._ensure_columns(documents)
        # numbers are given out before documents carry them: a crash may skip some, never give one out twice
        self.manifest = replace(self.manifest, next_id=self.manifest.next_id + len(documents))
        write_manifest(self.folder, self.manifest)
        for chunk in _chunks(documents, self.manifest.batch_size):
            rows = self._rows(chunk, self.embedder, progress)
            with _reading(self.folder):
                if replaces:
                    self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
                else:
                    self._table.add(rows)
        self._refresh()
        return [document.id for document in documents]

    def _rows(self, documents: Sequence[Document], embedder: Encoder, progress: bool) -> Any:
        dimensions = self.manifest.dimensions
        vectors = embedder.embed_documents([d.text for d in documents], dimensions=dimensions, progress=progress)
        vectors_ND = unit_vectors(vectors, len(documents), dimensions, embedder.name)
        columns: dict[str, Any] = {
            "id": [d.id for d in documents],
            "text": [d.text for d in documents],
            "metadata": [dump_metadata(d.metadata) for d in documents],
            "tokens": [" ".join(analyze(d.text)) for d in documents],
            "vector": _vector_array(vectors_ND),
        }
        if self.manifest.first_pass == "short":
            columns["short"] = _vector_array(_shortened(vectors_ND, self.manifest.short_dimensions))
        schema = self._table.schema
        typed = [_typed_metadata(d) for d in documents]
        for name in schema.names:
            if name not in _BASE_COLUMNS:
                columns[name] = [values.get(name) for values in typed]
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def _ensure_columns(self, documents: Sequence[Document]) -> None:
        """Columns for metadata keys that no document had before; older rows hold null there."""
        wanted: dict[str, Any] = {}
        for document in documents:
            for key, value in document.metadata.items():
                kind = kind_of(value)
                if kind is not None:
                    wanted[column_name(key, kind)] = _METADATA_TYPES[kind]
        missing = [pa.field(name, wanted[name]) for name in sorted(set(wanted) - set(self._table.schema.names))]
        if missing:
            with _reading(self.folder):
                self._table.add_columns(missing)

    def _refresh(self) -> None:
        """Merge new rows into the text and vector indices once they are many enough to slow a search down."""
        with _reading(self.folder):
            stats = self._table.index_stats("tokens_idx")
            stale = stats is None or stats.num_unindexed_rows > _STALE_SHARE * max(len(self), 1)
            if stale:
                self._table.optimize()
            untrained = self.manifest.first_pass == "int8" and self._table.index_stats("vector_idx") is None
            if untrained and len(self) >= _INT8_ROWS:
                self._table.create_index("vector", config=IvfSq(distance_type="cosine"))

    def _known(self, ids: Sequence[str]) -> list[str]:
        found: set[str] = set()
        for chunk in _chunks(list(ids), _ID_CHUNK):
            where = f"id IN ({', '.join(map(quote, chunk))})"
            with _reading(self.folder):
                rows = self._table.search().where(where).select(["id"]).limit(len(chunk)).to_list()
            found.update(row["id"] for row in rows)
        return [identity for identity in ids if identity in found]

    def _by_vector(self, vector_D: FloatArray, limit: int, conditions: list[Condition]) -> Ranking:
        with _reading(self.folder):
            query = self._table.search(vector_D, vector_column_name="vector").distance_type("cosine")
            if self.manifest.first_pass == "int8":
                query = query.nprobes(_ALL_PARTITIONS).refine_factor(self.manifest.oversample)
            rows = self._filtered(query, conditions).select(["id", "_distance"]).limit(limit).to_arrow()
        ids, distances = rows["id"].to_pylist(), rows["_distance"].to_pylist()
        return best_first([(identity, 1.0 - distance) for identity, distance in zip(ids, distances, strict=True)])

    def _by_short(self, vector_D: FloatArray, limit: int, conditions: list[Condition]) -> Ranking:
        short = _shortened(vector_D[None, :], self.manifest.short_dimensions)[0]
        with _reading(self.folder):
            query = self._table.search(short, vector_column_name="short").distance_type("cosine")
            query = self._filtered(query, conditions).select(["id", "vector", "_distance"])
            rows = query.limit(limit * self.manifest.oversample).to_arrow()
        if not rows.num_rows:
            return []
        vectors_CD = np.stack(rows["vector"].to_numpy())
        return top_ranking(rows["id"].to_pylist(), np.asarray(vectors_CD @ vector_D, dtype=np.float32), limit)

    def _by_text(self, text: str, limit: int, conditions: list[Condition]) -> Ranking:
        # tokens hold letters and digits only and MatchQuery is no query language: nothing a user types is syntax
        tokens = analyze(text)
        if not tokens:
            return []
        if len(tokens) > _QUERY_TOKENS:
            raise ValueError(
                f"the query has {len(tokens)} words and bigrams; full text takes up to {_QUERY_TOKENS}: shorten it, "
                "or search with mode='dense'"
            )
        with _reading(self.folder):
            query = self._filtered(self._table.search(MatchQuery(" ".join(tokens), "tokens")), conditions)
            rows = query.select(["id", "_score"]).limit(limit).to_arrow()
        return best_first(list(zip(rows["id"].to_pylist(), rows["_score"].to_pylist(), strict=True)))

    def _filtered(self, query: Any, conditions: list[Condition]) -> Any:
        if not conditions:
            return query
        names = set(self._table.schema.names)
        for condition in conditions:
            if column_name(condition.key, condition.kind) not in names:
                known = sorted(name for name in names if name not in _BASE_COLUMNS)
                raise ValueError(
                    f"no document has metadata {condition.key!r} that is a {condition.kind}; "
                    f"there is: {', '.join(known) or 'no metadata at all'}"
                )
        return query.where(to_sql(conditions), prefilter=True)


_ALL_PARTITIONS = 1_000_000
"""More than there are: the first pass over int8 codes leaves no partition out."""


def _create_table(folder: Path, manifest: Manifest) -> None:
    fields = [pa.field(name, pa.string()) for name in ("id", "text", "metadata", "tokens")]
    fields.append(pa.field("vector", pa.list_(pa.float32(), manifest.dimensions)))
    if manifest.first_pass == "short":
        fields.append(pa.field("short", pa.list_(pa.float32(), manifest.short_dimensions)))
    table = lancedb.connect(folder).create_table(_TABLE, schema=pa.schema(fields))
    # the text comes analysed: the engine is to split at white space and change nothing
    plain = FTS(
        base_tokenizer="whitespace",
        max_token_length=None,
        lower_case=False,
        stem=False,
        remove_stop_words=False,
        ascii_folding=False,
    )
    table.create_index("tokens", config=plain)


def _check_schema(schema: Any, manifest: Manifest, folder: Path) -> None:
    names = [name for name in _BASE_COLUMNS if name != "short" or manifest.first_pass == "short"]
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise IndexCorruptError(f"{folder}: the table lacks the columns {', '.join(missing)}; restore it from a copy")
    width = schema.field("vector").type.list_size
    if width != manifest.dimensions:
        raise IndexCorruptError(
            f"{folder}: manifest.json says {manifest.dimensions} dimensions and the table has {width}; "
            "the two do not belong together"
        )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn the engine's own exceptions into one that names the folder and what to do."""
    try:
        yield
    except (Qwen3EmbeddingError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # LanceDB raises RuntimeError, ValueError, OSError for torn or missing files alike
        if isinstance(error, Warning) or (
            isinstance(error, (TypeError, ValueError)) and "lance" not in str(error).lower()
        ):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise IndexCorruptError(
            f"{folder} cannot be read or written: {first}; restore it from a copy or index the documents anew"
        ) from error


def _typed_metadata(document: Document) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for key, value in document.metadata.items():
        kind = kind_of(value)
        if kind is not None:
            typed[column_name(key, kind)] = float(value) if kind == "number" else value
    return typed


def _vector_array(vectors_ND: FloatArray) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])


def _shortened(vectors_ND: FloatArray, dimensions: int) -> FloatArray:
    """Cut, then normalise; a vector with nothing in the first dimensions stays zero and is found last."""
    short = vectors_ND[:, :dimensions]
    norms_N = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(norms_N, np.finfo(np.float32).tiny), dtype=np.float32)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
