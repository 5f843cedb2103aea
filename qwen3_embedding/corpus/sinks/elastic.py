"""An index of Elasticsearch or of OpenSearch: the same documents, two clients, two words for a vector field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen3_embedding.corpus.sinks.sink import Shape, check_width
from qwen3_embedding.optional import require
from qwen3_embedding.types import Precision, Vectors

_BULK_BYTES = 16 * 1024 * 1024


class _SearchEngineSink:
    """What the two have in common. Documents are ``{"vector": […]}`` with the row's id as ``_id``."""

    keeps = True
    accepts: tuple[Precision, ...] = ("float32", "float16", "int8")
    _kind: str

    def __init__(self, url: str, index: str, api_key: str | None = None) -> None:
        self.url = url
        self.index = index
        self._api_key = api_key
        self._client: Any = None
        self._is_whole = False

    @property
    def name(self) -> str:
        """``KIND:URL#INDEX``."""
        return f"{self._kind}:{self.url}#{self.index}"

    def begin(self, shape: Shape) -> None:
        """Open or make the index."""
        self._client = self._connect()
        self._is_whole = shape.precision == "int8"
        if self._client.indices.exists(index=self.index):
            check_width(self.name, self._found_width(), shape.width)
        else:
            self._client.indices.create(index=self.index, body=self._definition(shape))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by id; ids that are not there are no error."""
        self._bulk({"_op_type": "delete", "_index": self.index, "_id": id_} for id_ in ids)

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Index by id, which replaces."""
        self._bulk(
            {"_op_type": "index", "_index": self.index, "_id": id_, "_source": {"vector": self._value(row)}}
            for id_, row in zip(ids, vectors, strict=True)
        )

    def finish(self) -> int:
        """Make everything searchable, and count."""
        self._client.indices.refresh(index=self.index)
        return int(self._client.count(index=self.index)["count"])

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _value(self, row: Vectors) -> list[float] | list[int]:
        values: list[float] | list[int] = (row if self._is_whole else np.asarray(row, dtype=np.float32)).tolist()
        return values

    def _bulk(self, actions: Iterator[dict[str, Any]]) -> None:
        bulk = self._helpers().bulk
        bulk(self._client, actions, max_chunk_bytes=_BULK_BYTES, ignore_status=(404,))

    def _found_width(self) -> int | None:
        mapping = self._client.indices.get_mapping(index=self.index)[self.index]["mappings"]
        field = mapping.get("properties", {}).get("vector", {})
        found = field.get("dims") or field.get("dimension")
        return None if found is None else int(found)

    def _connect(self) -> Any:
        raise NotImplementedError

    def _helpers(self) -> Any:
        raise NotImplementedError

    def _definition(self, shape: Shape) -> dict[str, Any]:
        raise NotImplementedError


class ElasticsearchSink(_SearchEngineSink):
    """Field ``vector`` of type ``dense_vector`` with cosine similarity."""

    _kind = "elasticsearch"

    def _connect(self) -> Any:
        return require("elasticsearch", extra="sinks").Elasticsearch(self.url, api_key=self._api_key)

    def _helpers(self) -> Any:
        return require("elasticsearch.helpers", extra="sinks")

    def _definition(self, shape: Shape) -> dict[str, Any]:
        element = "byte" if shape.precision == "int8" else "float"
        vector = {
            "type": "dense_vector", "dims": shape.width, "element_type": element, "index": True, "similarity": "cosine",
        }  # fmt: skip
        return {"mappings": {"properties": {"vector": vector}}}


class OpenSearchSink(_SearchEngineSink):
    """Field ``vector`` of type ``knn_vector`` with cosine similarity."""

    _kind = "opensearch"

    def _connect(self) -> Any:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else None
        return require("opensearchpy", extra="sinks").OpenSearch(self.url, headers=headers)

    def _helpers(self) -> Any:
        return require("opensearchpy.helpers", extra="sinks")

    def _definition(self, shape: Shape) -> dict[str, Any]:
        data = "byte" if shape.precision == "int8" else "float"
        vector = {"type": "knn_vector", "dimension": shape.width, "data_type": data, "space_type": "cosinesimil"}
        return {"settings": {"index": {"knn": True}}, "mappings": {"properties": {"vector": vector}}}
