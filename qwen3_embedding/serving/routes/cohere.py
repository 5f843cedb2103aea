"""Cohere: ``/v2/embed``. Its rerank routes are in ``rerank.py``, which they share with Jina's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.answers import BINARY, check_vectors, json_rows, matrix_response, vectors_soon
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.queue import Lane
from qwen3_embedding.serving.requests import Call, json_response
from qwen3_embedding.serving.routing import Doc, post
from qwen3_embedding.serving.schemas import TEXTS_SCHEMA, Asked, texts_of
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import Limit, Work
from qwen3_embedding.types import FloatArray, Precision

KINDS: dict[str, Precision] = {
    "float": "float32",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
    "base64": "float32",
}
REPORTED_WARNINGS = 20


class CohereEmbedRequest(Asked):
    """``POST /v2/embed``."""

    texts: Any = Field(None, json_schema_extra=TEXTS_SCHEMA)
    images: list[Any] | None = Field(None, description="Not supported.")
    inputs: list[Any] | None = Field(None, description="Not supported; use texts.")
    embedding_types: list[str] | None = Field(None, description="float, int8, uint8, binary, ubinary, base64.")
    output_dimension: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="Cut texts to so many tokens.")
    priority: int | None = Field(None, ge=0, le=999, description="Above 0 the request rides the bulk lane.")


def add(app: FastAPI, server: Server) -> None:
    """Add the route."""

    async def embed(call: Call, body: CohereEmbedRequest) -> Response:
        for field in ("images", "inputs"):
            if getattr(body, field):
                raise BadRequestError(f"`{field}` is not supported: this model reads text; use `texts`", param=field)
        service, suffix = server.embedder(body.model)
        texts = texts_of(body.texts, "texts", server.settings)
        kinds = body.embedding_types or ["float"]
        _check_kinds(kinds, body.output_dimension, service.dimensions)
        limit = body.limit(server.settings, "end")
        if body.max_tokens is not None:
            limit = Limit(limit.policy, body.max_tokens)
        if body.priority and call.work.lane is None:
            call.work.lane = Lane.BULK
        rows = await service.embed(texts, body.prompt(suffix), limit, call.work)
        whole = matrix_response(await vectors_soon(rows, body.output_dimension, KINDS[kinds[0]]), call.wants)
        if whole is not None:
            return whole
        return json_response(
            {
                "id": call.id,
                "response_type": "embeddings_by_type",
                "embeddings": {kind: await _embeddings(rows, body.output_dimension, kind) for kind in kinds},
                "texts": texts,
                "meta": meta(call.work, "2", input_tokens=call.work.tokens),
            }
        )

    answer = {"type": "object", "required": ["id", "embeddings", "texts", "meta"]}
    doc = Doc("Cohere", "Embed texts", answer, BINARY)
    post(app, server, ("/v2/embed",), dialects.cohere, CohereEmbedRequest, embed, doc)


def meta(work: Work, version: str, **billed: int) -> dict[str, Any]:
    """Cohere's ``meta``; texts that were cut are named in ``warnings``."""
    answer: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": billed,
        "tokens": {"input_tokens": work.tokens},
    }
    if work.cuts:
        warnings = [f"text {cut.index} was cut from {cut.tokens} to {cut.kept} tokens" for cut in work.cuts]
        if len(warnings) > REPORTED_WARNINGS:
            warnings = [*warnings[:REPORTED_WARNINGS], f"and {len(warnings) - REPORTED_WARNINGS} more texts were cut"]
        answer["warnings"] = warnings
    return answer


def _check_kinds(kinds: list[str], dimension: int | None, full: int) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise BadRequestError(f"embedding_types has {kind!r:.40}; use {', '.join(KINDS)}", param="embedding_types")
        check_vectors(dimension, KINDS[kind], full)


async def _embeddings(rows_ND: FloatArray, dimension: int | None, kind: str) -> Any:
    vectors = await vectors_soon(rows_ND, dimension, KINDS[kind])
    return await json_rows(vectors, "base64" if kind == "base64" else "float")
