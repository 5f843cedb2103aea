"""A Milvus collection: a server, or a local ``.db`` file through Milvus Lite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen3_embedding.corpus.sinks.sink import Shape, batches, check_width
from qwen3_embedding.optional import require
from qwen3_embedding.types import Precision, Vectors

_CALL_ROWS = 512


class MilvusSink:
    """Collection with the fields ``id`` (primary key) and ``vector``."""

    keeps = True
    accepts: tuple[Precision, ...] = ("float32",)

    def __init__(self, uri: str, collection: str, token: str | None = None) -> None:
        self.uri = uri
        self.collection = collection
        self._token = token
        self._client: Any = None

    @property
    def name(self) -> str:
        """``milvus:URI#COLLECTION``."""
        return f"milvus:{self.uri}#{self.collection}"

    def begin(self, shape: Shape) -> None:
        """Open or make the collection."""
        module = require("pymilvus", extra="sinks")
        self._client = module.MilvusClient(self.uri, token=self._token or "")
        if self._client.has_collection(self.collection):
            fields = self._client.describe_collection(self.collection)["fields"]
            found = next((field["params"].get("dim") for field in fields if field["name"] == "vector"), None)
            check_width(self.name, None if found is None else int(found), shape.width)
        else:
            self._create(module, shape)
        self._client.load_collection(self.collection)

    def _create(self, module: Any, shape: Shape) -> None:
        schema = module.MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", module.DataType.VARCHAR, is_primary=True, max_length=4096)
        schema.add_field("vector", module.DataType.FLOAT_VECTOR, dim=shape.width)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        self._client.create_collection(self.collection, schema=schema, index_params=index)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by id; a JSON list of strings is one in Milvus's filter language too."""
        self._client.delete(self.collection, filter=f"id in {json.dumps(list(ids), ensure_ascii=False)}")

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Upsert by id."""
        for part_ids, part in batches(ids, vectors, _CALL_ROWS):
            rows = [{"id": id_, "vector": row.tolist()} for id_, row in zip(part_ids, part, strict=True)]
            self._client.upsert(self.collection, data=rows)

    def finish(self) -> int:
        """Flush and count."""
        self._client.flush(self.collection)
        rows = self._client.query(self.collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()
            self._client = None
