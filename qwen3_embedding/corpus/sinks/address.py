"""A sink from one word of a command line: ``KIND:PLACE`` or ``KIND:PLACE#TABLE``."""

from __future__ import annotations

from collections.abc import Callable

from qwen3_embedding.corpus.sinks.elastic import ElasticsearchSink, OpenSearchSink
from qwen3_embedding.corpus.sinks.files import ArrowSink, NpySink
from qwen3_embedding.corpus.sinks.lance import LanceSink
from qwen3_embedding.corpus.sinks.milvus import MilvusSink
from qwen3_embedding.corpus.sinks.pgvector import PgvectorSink
from qwen3_embedding.corpus.sinks.qdrant import QdrantSink
from qwen3_embedding.corpus.sinks.sink import Sink

_FILES: dict[str, Callable[[str], Sink]] = {"npy": NpySink, "arrow": ArrowSink}
_TABLES: dict[str, Callable[[str, str, str | None], Sink]] = {
    "lancedb": lambda place, table, key: LanceSink(place, table),
    "qdrant": QdrantSink,
    "milvus": MilvusSink,
    "pgvector": lambda place, table, key: PgvectorSink(place, table),
    "elasticsearch": ElasticsearchSink,
    "opensearch": OpenSearchSink,
}
DEFAULT_TABLE = "corpus"


def open_sink(address: str, api_key: str | None = None) -> Sink:
    """The sink of an address; nothing is connected yet.

    Args:
        address: ``npy:FOLDER``, ``arrow:FILE``, ``lancedb:URI#TABLE``, ``qdrant:URL-or-folder#COLLECTION``,
            ``milvus:URI#COLLECTION``, ``pgvector:CONNINFO#TABLE``, ``elasticsearch:URL#INDEX`` or
            ``opensearch:URL#INDEX``; the table is ``corpus`` where none is named.
        api_key: for servers that want one.
    """
    kind, colon, rest = address.partition(":")
    if not colon or not rest or kind not in (*_FILES, *_TABLES):
        raise ValueError(f"sink {address!r}; wanted KIND:PLACE[#TABLE] with a kind of {', '.join((*_FILES, *_TABLES))}")
    if kind in _FILES:
        return _FILES[kind](rest)
    place, _, table = rest.rpartition("#") if "#" in rest else (rest, "", "")
    return _TABLES[kind](place, table or DEFAULT_TABLE, api_key)
