"""Every sink that runs without a server is loaded for real, killed between shards, and brought up to date."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from qwen3_embedding.corpus.encode import VectorSettings, encode
from qwen3_embedding.corpus.sinks.address import open_sink
from qwen3_embedding.corpus.sinks.pgvector import PgvectorSink
from qwen3_embedding.corpus.sinks.qdrant import point_id
from qwen3_embedding.corpus.sinks.sink import Shape, Sink, load
from qwen3_embedding.errors import DataError, IndexCorruptError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.types import Precision, Vectors
from tests.corpus.support import content, small, text_of, write_jsonl

IDS = [f"id'{i}\n" if i % 7 == 0 else f"d{i}" for i in range(50)]
"""Also ids that must be quoted."""

Read = Callable[[], dict[str, np.ndarray]]


@pytest.fixture
def encoded(tmp_path: Path, embedder: Embedder) -> Path:
    write_jsonl(tmp_path / "c.jsonl", ((id_, text_of(i)) for i, id_ in enumerate(IDS)))
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, small(rows=20))
    return tmp_path / "out"


def _npy(folder: Path) -> tuple[str, Read]:
    def read() -> dict[str, np.ndarray]:
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        ids = [json.loads(line) for line in (folder / "ids.jsonl").read_text().splitlines()]
        return dict(zip(ids, vectors, strict=True))

    return f"npy:{folder}", read


def _arrow(folder: Path) -> tuple[str, Read]:
    def read() -> dict[str, np.ndarray]:
        with pa.memory_map(str(folder / "v.arrow")) as mapped:
            rows = pa.ipc.open_file(mapped).read_all().to_pylist()
        return {row["id"]: np.asarray(row["vector"], dtype=np.float32) for row in rows}

    return f"arrow:{folder / 'v.arrow'}", read


def _lancedb(folder: Path) -> tuple[str, Read]:
    def read() -> dict[str, np.ndarray]:
        import lancedb

        rows = lancedb.connect(str(folder)).open_table("mine").to_arrow().to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: np.asarray(row["vector"], dtype=np.float32) for row in rows}

    return f"lancedb:{folder}#mine", read


def _qdrant(folder: Path) -> tuple[str, Read]:
    module = pytest.importorskip("qdrant_client")

    def read() -> dict[str, np.ndarray]:
        client = module.QdrantClient(path=str(folder))
        points, _ = client.scroll("corpus", limit=1000, with_vectors=True)
        client.close()
        assert all(point.id == point_id(point.payload["id"]) for point in points)
        return {point.payload["id"]: np.asarray(point.vector, dtype=np.float32) for point in points}

    return f"qdrant:{folder}", read


def _milvus(folder: Path) -> tuple[str, Read]:
    pytest.importorskip("milvus_lite")
    module = pytest.importorskip("pymilvus")
    folder.mkdir()
    uri = str(folder / "m.db")

    def read() -> dict[str, np.ndarray]:
        client = module.MilvusClient(uri)
        client.load_collection("corpus")
        rows = client.query("corpus", filter="", limit=1000, output_fields=["id", "vector"])
        client.close()
        return {row["id"]: np.asarray(row["vector"], dtype=np.float32) for row in rows}

    return f"milvus:{uri}", read


SINKS = {"npy": _npy, "arrow": _arrow, "lancedb": _lancedb, "qdrant": _qdrant, "milvus": _milvus}


class _Dies:
    """A sink whose connection breaks in the middle of the second shard."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        self._calls += 1
        if self._calls == 4:
            raise ConnectionError("the cable is out")
        self._sink.upsert(ids, vectors)


def _equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for id_ in wanted:
        np.testing.assert_allclose(got[id_], wanted[id_], atol=1e-6)  # Qdrant normalises once more


@pytest.mark.parametrize("kind", SINKS)
def test_each_row_is_there_once_also_after_a_break_and_a_change(
    kind: str, encoded: Path, tmp_path: Path, embedder: Embedder
) -> None:
    address, read = SINKS[kind](tmp_path / "sink")
    with pytest.raises(ConnectionError):
        load(encoded, _Dies(open_sink(address)), batch_rows=8)
    done = load(encoded, open_sink(address), batch_rows=8)
    assert done.rows == 50
    assert done.upserted == (30 if open_sink(address).keeps else 50)
    _equal(read(), content(encoded))
    if open_sink(address).keeps:
        assert load(encoded, open_sink(address)).upserted == 0

    changed = [(id_, text_of(i) if i != 30 else "new text") for i, id_ in enumerate(IDS) if i not in (7, 8)]
    write_jsonl(tmp_path / "c.jsonl", [*changed, ("added", "more")])
    encode(tmp_path / "c.jsonl", encoded, embedder, small(rows=20))
    done = load(encoded, open_sink(address), batch_rows=8)
    assert done.rows == 49
    assert done.deleted == (2 if open_sink(address).keeps else 0)
    _equal(read(), content(encoded))


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("npy", "ubinary"), ("arrow", "int8"), ("lancedb", "float16"), ("qdrant", "uint8")],
)
def test_other_precisions(kind: str, precision: Precision, tmp_path: Path, embedder: Embedder) -> None:
    write_jsonl(tmp_path / "c.jsonl", ((f"d{i}", text_of(i)) for i in range(30)))
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, small(vectors=VectorSettings(precision=precision)))
    address, read = SINKS[kind](tmp_path / "sink")
    assert load(tmp_path / "out", open_sink(address)).rows == 30
    got, wanted = read(), content(tmp_path / "out")
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[id_], wanted[id_]) for id_ in wanted)


def test_a_table_of_another_size_is_refused(encoded: Path, tmp_path: Path, embedder: Embedder) -> None:
    load(encoded, open_sink(f"lancedb:{tmp_path / 'lance'}"))
    encode(tmp_path / "c.jsonl", tmp_path / "narrow", embedder, small(vectors=VectorSettings(dimensions=32)))
    with pytest.raises(ValueError, match="vectors of 64 numbers, these have 32"):
        load(tmp_path / "narrow", open_sink(f"lancedb:{tmp_path / 'lance'}"))


def test_a_table_with_other_rows_is_noticed(encoded: Path, tmp_path: Path) -> None:
    import lancedb

    load(encoded, open_sink(f"lancedb:{tmp_path / 'lance'}"))
    lancedb.connect(str(tmp_path / "lance")).open_table("corpus").delete("id = 'd1'")
    with pytest.raises(IndexCorruptError, match="has 49 rows, the corpus 50"):
        load(encoded, open_sink(f"lancedb:{tmp_path / 'lance'}"))


def test_what_a_sink_cannot_store_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    write_jsonl(tmp_path / "c.jsonl", [("a", "b")])
    encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, small(vectors=VectorSettings(precision="binary")))
    with pytest.raises(ValueError, match="stores float32, float16, uint8; these vectors are binary"):
        load(tmp_path / "out", open_sink("qdrant:nowhere"))


def test_an_unfinished_corpus_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "a", "text": "b"}\n' * 1 + "{broken\n")
    with pytest.raises(DataError):
        encode(tmp_path / "c.jsonl", tmp_path / "out", embedder, small())
    with pytest.raises(DataError, match="not encoded to its end"):
        load(tmp_path / "out", open_sink(f"npy:{tmp_path / 'n'}"))


def test_addresses() -> None:
    assert open_sink("qdrant:http://localhost:6333#docs").name == "qdrant:http://localhost:6333#docs"
    assert open_sink("pgvector:postgresql://me:secret@host/db#docs").name == "pgvector:postgresql://me@host/db#docs"
    assert open_sink("lancedb:s3://bucket/path").name == "lancedb:s3://bucket/path#corpus"
    for bad in ("chroma:here", "npy", "npy:", "/a/folder"):
        with pytest.raises(ValueError, match="wanted KIND:PLACE"):
            open_sink(bad)
    with pytest.raises(ValueError, match="wanted a plain name"):
        PgvectorSink("", "x; DROP TABLE y")


class _Engine(BaseHTTPRequestHandler):
    """Enough of the REST interface that Elasticsearch and OpenSearch share to take in documents."""

    documents: dict[str, list[float]]
    mapping: dict[str, Any]

    def _answer(self, value: Any, code: int = 200) -> None:
        raw = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", self.headers.get("Accept", "application/json").split(",")[0])
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self._answer({}, 200 if self.mapping else 404)

    def do_PUT(self) -> None:
        if self.path.endswith("_bulk"):
            self.do_POST()
            return
        self.mapping.update(json.loads(self._body())["mappings"])
        self._answer({"acknowledged": True})

    def do_GET(self) -> None:
        self._answer({"docs": {"mappings": self.mapping}})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("_bulk"):
            self._answer({"errors": False, "items": self._bulk(body)})
        elif "_count" in self.path:
            self._answer({"count": len(self.documents)})
        else:
            self._answer({"_shards": {"total": 1, "successful": 1, "failed": 0}})

    def _bulk(self, body: bytes) -> list[dict[str, Any]]:
        lines = iter(json.loads(line) for line in body.splitlines() if line)
        items: list[dict[str, Any]] = []
        for line in lines:
            ((kind, about),) = line.items()
            status = 200
            if kind == "index":
                self.documents[about["_id"]] = next(lines)["vector"]
            elif self.documents.pop(about["_id"], None) is None:
                status = 404
            items.append({kind: {"_id": about["_id"], "status": status}})
        return items

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[tuple[str, type[_Engine]]]:
    handler = type("Handler", (_Engine,), {"documents": {}, "mapping": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("kind", "package", "field"),
    [
        ("elasticsearch", "elasticsearch", {"type": "dense_vector", "dims": 64}),
        ("opensearch", "opensearchpy", {"type": "knn_vector", "dimension": 64}),
    ],
)
def test_search_engines_speak_bulk(
    kind: str, package: str, field: dict[str, Any], engine: tuple[str, type[_Engine]], encoded: Path
) -> None:
    pytest.importorskip(package)
    url, handler = engine
    assert load(encoded, open_sink(f"{kind}:{url}#docs")).rows == 50
    assert field.items() <= handler.mapping["properties"]["vector"].items()
    _equal({id_: np.asarray(value) for id_, value in handler.documents.items()}, content(encoded))
    sink = open_sink(f"{kind}:{url}#docs")
    sink.begin(Shape(50, 64, "float32", "float32", 64))
    sink.delete(["d1", "never there"])
    assert sink.finish() == 49
    with pytest.raises(ValueError, match="vectors of 64 numbers, these have 32"):
        sink.begin(Shape(50, 32, "float32", "float32", 32))
    sink.close()
