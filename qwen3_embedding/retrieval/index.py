"""A search index on disk: vectors, full text and metadata in one LanceDB table, and the model they belong to."""

from __future__ import annotations

import json
import os
import shutil
import time
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
from lancedb.index import FTS, BTree, IvfPq, IvfSq
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
    SNAPSHOT_PASSES,
    IndexSettings,
    Manifest,
    check_model,
    new_manifest,
    read_manifest,
    write_manifest,
)
from qwen3_embedding.retrieval.recall import Recall, measure_recall
from qwen3_embedding.retrieval.search import DenseQuery, Plan, Searchable, SearchResults, top_ranking, unit_vectors
from qwen3_embedding.retrieval.snapshot import Live, Part, Snapshot, SnapshotPass, newest, write_snapshot
from qwen3_embedding.types import Encoder, FloatArray, IntArray, Scorer, Vectors

_TABLE = "documents"
_BASE_COLUMNS = ("id", "text", "metadata", "tokens", "vector", "short", "number")
_OPTIONAL_COLUMNS = {"short": lambda m: m.first_pass == "short", "number": lambda m: m.has_snapshot}
_METADATA_TYPES = {"text": pa.string(), "number": pa.float64(), "boolean": pa.bool_(), "list": pa.list_(pa.string())}
_TRAINING_ROWS = {"int8": 256, "ivf-pq": 4096}
"""Rows from which codes are trained; below, every vector is compared in float32, which is as fast."""
_SNAPSHOT_ROWS = 256
_SNAPSHOT_STALE_SHARE = 0.25
"""Above this share of rows that a snapshot lacks, or has too much, adding writes a new one."""
_STALE_SHARE = 0.1
"""Rows not yet in the text and vector indices are searched one by one; above this share they are merged in."""
_ID_CHUNK = 1000
_PART_ROWS = 8192
_SAME_TIME_NS = 50_000_000
"""File systems stamp changes this near to each other with one time."""
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
        self._live: tuple[object, Live | None] = (None, None)
        self._watched = (str(folder), str(folder / f"{_TABLE}.lance" / "_versions"))

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

    def add(
        self, documents: Iterable[DocumentLike], progress: bool = False, *, vectors: Vectors | None = None
    ) -> list[str]:
        """Embed and store documents.

        Args:
            documents: strings, or mappings with ``text``, optionally ``id``, and any further keys as metadata.
                Documents without an id are numbered on from what the index has given out before.
            progress: let the encoder show its progress.
            vectors: (N, stored or more dimensions) the documents' vectors, where they are computed already (by
                ``encode``, say) with the index's model; cut and normalised here.

        Returns:
            Their ids, in order.

        Raises:
            TypeError, ValueError: a document that is not one, an id twice or in the index already; nothing is written.
            ValueError: the index was opened without an embedder.
        """
        checked = to_documents(documents, self._next_number())
        known = self._known([document.id for document in checked])
        if known:
            raise ValueError(f"{len(known)} ids are in the index already, such as {known[0]!r}; use upsert to replace")
        return self._write(checked, progress, vectors, replaces=False)

    def upsert(
        self, documents: Iterable[DocumentLike], progress: bool = False, *, vectors: Vectors | None = None
    ) -> list[str]:
        """Store documents, those of known ids in place of the old. Otherwise as :meth:`add`."""
        return self._write(to_documents(documents, self._next_number()), progress, vectors, replaces=True)

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

    def retrieve_dense(self, vectors_QD: FloatArray, query: DenseQuery) -> list[Ranking]:
        """The nearest documents by cosine similarity: a first pass over small vectors where the index keeps such.

        With conditions on metadata, an index whose first pass is a snapshot compares every document that meets them.
        """
        live = None if query.conditions else self._snapshot()
        if live is not None:
            return [self._by_snapshot(live, vector_D, query) for vector_D in vectors_QD]
        if not len(self):
            return [[] for _ in vectors_QD]
        if self.manifest.first_pass in ("none", *SNAPSHOT_PASSES):
            with query.timing.spent("candidates"):
                return [self.exact(vector_D, query.limit, query.conditions) for vector_D in vectors_QD]
        return [self._by_table(vector_D, query) for vector_D in vectors_QD]

    def exact(self, vector_D: FloatArray, limit: int, conditions: list[Condition] | None = None) -> Ranking:
        """The nearest documents, every vector compared in float32, whatever the first pass."""
        with _reading(self.folder):
            query = self._table.search(vector_D, vector_column_name="vector").distance_type("cosine")
            query = self._filtered(query.bypass_vector_index(), conditions or [])
            rows = query.select(["id", "_distance"]).limit(limit).to_arrow()
        ids, distances = rows["id"].to_pylist(), rows["_distance"].to_pylist()
        return best_first([(identity, 1.0 - distance) for identity, distance in zip(ids, distances, strict=True)])

    def check(self, vectors_QD: FloatArray | None = None, top_k: int = 10, sample: int = 200) -> Recall:
        """Recall of the vector leg against the exact search, and both their times.

        Args:
            vectors_QD: queries; ``None`` takes ``sample`` stored vectors, each of which leaves itself out.
            top_k: how many documents are compared.
            sample: see above.
        """
        return measure_recall(self, self._sample(sample) if vectors_QD is None else (vectors_QD, None), top_k)

    def retrieve_text(self, queries: Sequence[str], limit: int, conditions: list[Condition]) -> list[Ranking]:
        """BM25 over the analysed text (k1 = 1.2, b = 0.75, as LanceDB has them)."""
        if not len(self):
            return [[] for _ in queries]
        return [self._by_text(query, limit, conditions) for query in queries]

    def run(self, queries: Sequence[str], plan: Plan) -> SearchResults:
        """Answer many queries at once, with a breakdown of the time; see :meth:`search`."""
        if plan.instruction is None and self.manifest.instruction is not None:
            plan = replace(plan, instruction=self.manifest.instruction)
        return super().run(queries, plan)

    def optimize(self, keep: timedelta = _KEPT_VERSIONS) -> None:
        """Compact: merge what was added since into all indices, and drop old versions of the table.

        Args:
            keep: how old a version may be and stay on disk. Another process that still reads an older one than this
                finds files missing and must open the index anew; zero is for an index that nobody else reads.
        """
        with _reading(self.folder):
            self._table.create_index("id", config=BTree(), replace=True)
            self._train(replace=True)
            self._table.optimize(cleanup_older_than=keep)
        if self.manifest.has_snapshot and len(self):
            self._write_snapshot()

    def __repr__(self) -> str:
        model = f"{self.manifest.model!r}, {self.manifest.dimensions} dimensions"
        reranker = f", reranker {self.reranker.name!r}" if self.reranker else ""
        return f"SearchIndex({str(self.folder)!r}, {len(self)} documents, {model}{reranker})"

    def _write(self, documents: list[Document], progress: bool, vectors: Vectors | None, replaces: bool) -> list[str]:
        if self.embedder is None and vectors is None:
            raise ValueError("adding needs an embedder; open the index with the one it was made with")
        given_ND = None if vectors is None else self._given(vectors, len(documents))
        if not documents:
            return []
        self._ensure_columns(documents)
        # numbers are given out before documents carry them: a crash may skip some, never give one out twice
        number = self.manifest.next_id
        self.manifest = replace(self.manifest, next_id=number + len(documents))
        write_manifest(self.folder, self.manifest)
        for at in range(0, len(documents), self.manifest.batch_size):
            chunk = documents[at : at + self.manifest.batch_size]
            vectors_ND = self._embedded(chunk, progress) if given_ND is None else given_ND[at : at + len(chunk)]
            rows = self._rows(chunk, vectors_ND, number + at)
            with _reading(self.folder):
                if replaces:
                    self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
                else:
                    self._table.add(rows)
        self._refresh()
        return [document.id for document in documents]

    def _next_number(self) -> int:
        """Another process may have written since this one opened the index."""
        self.manifest = replace(self.manifest, next_id=max(self.manifest.next_id, read_manifest(self.folder).next_id))
        return self.manifest.next_id

    def _given(self, vectors: Vectors, count: int) -> FloatArray:
        """Vectors that a caller brings: floats, cut to the index's size and normalised."""
        found = np.asarray(vectors)
        dimensions = self.manifest.dimensions
        if found.dtype.kind != "f" or found.ndim != 2 or found.shape[0] != count or found.shape[1] < dimensions:
            raise ValueError(
                f"vectors have shape {found.shape} and type {found.dtype}; wanted {(count, dimensions)} (or wider) "
                "floats, one row a document"
            )
        return unit_vectors(found[:, :dimensions], count, dimensions, "the caller")

    def _embedded(self, documents: Sequence[Document], progress: bool) -> FloatArray:
        assert self.embedder is not None
        dimensions = self.manifest.dimensions
        vectors = self.embedder.embed_documents([d.text for d in documents], dimensions=dimensions, progress=progress)
        return unit_vectors(vectors, len(documents), dimensions, self.embedder.name)

    def _rows(self, documents: Sequence[Document], vectors_ND: FloatArray, number: int) -> Any:
        columns: dict[str, Any] = {
            "id": [d.id for d in documents],
            "text": [d.text for d in documents],
            "metadata": [dump_metadata(d.metadata) for d in documents],
            "tokens": [" ".join(analyze(d.text)) for d in documents],
            "vector": _vector_array(vectors_ND),
        }
        if self.manifest.first_pass == "short":
            columns["short"] = _vector_array(_shortened(vectors_ND, self.manifest.short_dimensions))
        if self.manifest.has_snapshot:
            columns["number"] = np.arange(number, number + len(documents))
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
            if self._table.index_stats("vector_idx") is None:
                self._train(replace=False)
        if self.manifest.has_snapshot and len(self) >= _SNAPSHOT_ROWS:
            live = self._snapshot()
            if live is None or live.changed_share > _SNAPSHOT_STALE_SHARE:
                self._write_snapshot()

    def _train(self, replace: bool) -> None:
        """Codes of the vectors in the table, where its first pass wants such and there are enough rows."""
        kind = self.manifest.first_pass
        if kind in _TRAINING_ROWS and len(self) >= _TRAINING_ROWS[kind]:
            config = IvfSq(distance_type="cosine") if kind == "int8" else _product_codes(self.manifest.dimensions)
            self._table.create_index("vector", config=config, replace=replace)

    def _snapshot(self) -> Live | None:
        """The newest snapshot and what has changed since; ``None`` where the index keeps none, or has none yet."""
        if not self.manifest.has_snapshot:
            return None
        state = self._state()
        if state is None or self._live[0] != state:
            self._live = (state, self._open_snapshot())
        return self._live[1]

    def _state(self) -> object | None:
        """What changes with every change of the table and every snapshot: the times of their folders.

        ``None`` just behind a change, when a further one might leave the same time on the folder.
        """
        times_ns = [os.stat(path).st_mtime_ns for path in self._watched]
        return None if time.time_ns() - max(times_ns) < _SAME_TIME_NS else times_ns

    def _open_snapshot(self) -> Live | None:
        while (path := newest(self.folder)) is not None:
            try:
                snapshot = Snapshot.open(path)
                break
            except IndexCorruptError:
                if path.exists():  # else a writer has put a newer one in its place
                    raise
        else:
            return None
        return Live.over(snapshot, self._numbers(), self._later(snapshot.about.next_number))

    def _write_snapshot(self) -> None:
        kind: SnapshotPass = "binary" if self.manifest.first_pass == "binary" else "hnsw-sq"
        write_snapshot(
            self.folder,
            kind,
            self.manifest.dimensions,
            self._next_number(),
            self._numbers(),
            lambda: self._parts(""),
            self._readable_snapshot(),
        )

    def _readable_snapshot(self) -> Live | None:
        """To grow from; one that is torn is no reason not to write a new one."""
        try:
            return self._snapshot()
        except IndexCorruptError:
            return None

    def _numbers(self) -> IntArray:
        """(N,) numbers of the rows in the table."""
        with _reading(self.folder):
            column = self._table.search().select(["number"]).limit(max(1, len(self))).to_arrow()["number"]
        return np.asarray(column.to_numpy(), dtype=np.int64)

    def _later(self, number: int) -> Part:
        """The rows whose numbers are not below one."""
        parts = list(self._parts(f"number >= {number}"))
        empty = np.empty((0, self.manifest.dimensions), dtype=np.float32)
        return (
            np.concatenate([np.empty(0, dtype=np.int64), *(numbers for numbers, _, _ in parts)]),
            [identity for _, ids, _ in parts for identity in ids],
            np.concatenate([empty, *(vectors for _, _, vectors in parts)]),
        )

    def _parts(self, where: str) -> Iterator[Part]:
        with _reading(self.folder):
            query = self._table.search().select(["number", "id", "vector"]).limit(max(1, len(self)))
            batches = (query.where(where) if where else query).to_batches(_PART_ROWS)
            for batch in batches:
                vectors_ND = batch["vector"].flatten().to_numpy().reshape(-1, self.manifest.dimensions)
                yield batch["number"].to_numpy(), batch["id"].to_pylist(), vectors_ND

    def _sample(self, count: int) -> tuple[FloatArray, list[str]]:
        """Stored vectors, spread over the whole table, and their ids."""
        with _reading(self.folder):
            wanted = np.unique(np.linspace(0, max(0, len(self) - 1), min(count, len(self)), dtype=np.int64))
            rows = self._table.take_offsets(wanted.tolist()).select(["id", "vector"]).to_arrow() if len(self) else None
        if rows is None:
            return np.empty((0, self.manifest.dimensions), dtype=np.float32), []
        return np.stack(rows["vector"].to_numpy()), rows["id"].to_pylist()

    def _known(self, ids: Sequence[str]) -> list[str]:
        found: set[str] = set()
        for chunk in _chunks(list(ids), _ID_CHUNK):
            where = f"id IN ({', '.join(map(quote, chunk))})"
            with _reading(self.folder):
                rows = self._table.search().where(where).select(["id"]).limit(len(chunk)).to_list()
            found.update(row["id"] for row in rows)
        return [identity for identity in ids if identity in found]

    def _by_snapshot(self, live: Live, vector_D: FloatArray, query: DenseQuery) -> Ranking:
        count, effort = query.limit * self.manifest.oversample, query.effort or self.manifest.effort
        if self.manifest.first_pass == "binary":  # signs are coarse: few candidates for few results would miss some
            count = max(count, effort)
        else:  # a graph finds no more than it follows, and int8 is nearly exact
            count = min(count, max(effort, query.limit))
        ranking, first, second = live.nearest(vector_D, query.limit, count, effort)
        query.timing.candidates_s += first
        query.timing.rescore_s += second
        return ranking

    def _by_table(self, vector_D: FloatArray, query: DenseQuery) -> Ranking:
        """A first pass inside the table, over codes or short vectors; then the candidates in float32."""
        kind = self.manifest.first_pass
        with query.timing.spent("candidates"), _reading(self.folder):
            asked = _shortened(vector_D[None, :], self.manifest.short_dimensions)[0] if kind == "short" else vector_D
            column = "short" if kind == "short" else "vector"
            search = self._table.search(asked, vector_column_name=column).distance_type("cosine")
            if kind != "short":
                probes = (query.effort or self.manifest.effort) if kind == "ivf-pq" else _ALL_PARTITIONS
                search = search.nprobes(probes)
            search = self._filtered(search, query.conditions).select(["id", "vector", "_distance"])
            count = query.limit * self.manifest.oversample
            if kind == "ivf-pq":  # coarse, as signs are
                count = max(count, self.manifest.effort)
            rows = search.limit(count).to_arrow()
        if not rows.num_rows:
            return []
        with query.timing.spent("rescore"):
            vectors_CD = np.stack(rows["vector"].to_numpy())
            scores_C = np.asarray(vectors_CD @ vector_D, dtype=np.float32)
            return top_ranking(rows["id"].to_pylist(), scores_C, query.limit)

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


def _product_codes(dimensions: int) -> IvfPq:
    """A byte for four dimensions where that divides (a 16th of float32); LanceDB's own 16 lose too much."""
    return IvfPq(distance_type="cosine", num_sub_vectors=dimensions // 4 if dimensions % 4 == 0 else None)


def _create_table(folder: Path, manifest: Manifest) -> None:
    fields = [pa.field(name, pa.string()) for name in ("id", "text", "metadata", "tokens")]
    fields.append(pa.field("vector", pa.list_(pa.float32(), manifest.dimensions)))
    if manifest.first_pass == "short":
        fields.append(pa.field("short", pa.list_(pa.float32(), manifest.short_dimensions)))
    if manifest.has_snapshot:
        fields.append(pa.field("number", pa.int64()))
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
    names = [name for name in _BASE_COLUMNS if name not in _OPTIONAL_COLUMNS or _OPTIONAL_COLUMNS[name](manifest)]
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
