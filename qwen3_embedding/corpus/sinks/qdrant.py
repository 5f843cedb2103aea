"""A Qdrant collection: a server, or a local folder through the client's own local mode."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from qwen3_embedding.corpus.sinks.sink import Shape, batches, check_width
from qwen3_embedding.optional import require
from qwen3_embedding.types import Precision, Vectors

_NAMESPACE = uuid.UUID("6f0d3a3e-6f3c-5c1a-9d52-0c9b2c1d7e55")
_CALL_ROWS = 256
_DATATYPES: dict[Precision, str] = {"float32": "FLOAT32", "float16": "FLOAT16", "uint8": "UINT8"}


def point_id(id_: str) -> str:
    """Qdrant's ids are UUIDs: the UUID of a row's id (version 5). The id itself is the payload field ``id``."""
    return str(uuid.uuid5(_NAMESPACE, id_))


class QdrantSink:
    """Collection with cosine distance; payload ``{"id": …}``."""

    keeps = True
    accepts: tuple[Precision, ...] = tuple(_DATATYPES)

    def __init__(self, where: str, collection: str, api_key: str | None = None) -> None:
        self.where = where
        self.collection = collection
        self._api_key = api_key
        self._client: Any = None
        self._models: Any = None

    @property
    def name(self) -> str:
        """``qdrant:URL#COLLECTION``."""
        return f"qdrant:{self.where}#{self.collection}"

    def begin(self, shape: Shape) -> None:
        """Open or make the collection."""
        module = require("qdrant_client", extra="sinks")
        self._models = module.models
        is_server = self.where.startswith(("http://", "https://"))
        self._client = (
            module.QdrantClient(url=self.where, api_key=self._api_key)
            if is_server
            else module.QdrantClient(path=self.where)
        )
        if self._client.collection_exists(self.collection):
            vectors = self._client.get_collection(self.collection).config.params.vectors
            check_width(self.name, vectors.size, shape.width)
            return
        self._client.create_collection(
            self.collection,
            vectors_config=self._models.VectorParams(
                size=shape.width,
                distance=self._models.Distance.COSINE,
                datatype=getattr(self._models.Datatype, _DATATYPES[shape.precision]),
            ),
        )

    def delete(self, ids: Sequence[str]) -> None:
        """Delete by id, and wait for it."""
        points = self._models.PointIdsList(points=[point_id(id_) for id_ in ids])
        self._client.delete(self.collection, points_selector=points, wait=True)

    def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Upsert by id, and wait for it."""
        for part_ids, part in batches(ids, vectors, _CALL_ROWS):
            batch = self._models.Batch(
                ids=[point_id(id_) for id_ in part_ids],
                vectors=part.tolist(),
                payloads=[{"id": id_} for id_ in part_ids],
            )
            self._client.upsert(self.collection, points=batch, wait=True)

    def finish(self) -> int:
        """Count."""
        return int(self._client.count(self.collection, exact=True).count)

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()
            self._client = None
