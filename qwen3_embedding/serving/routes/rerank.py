"""``/v1/rerank``, ``/v2/rerank`` and ``/rerank``: Cohere v1 and v2, Jina, vLLM and, told by its ``texts``, TEI.

One answer serves them all: Jina's object with Cohere's ``id`` and ``meta`` beside. Documents are given back only on
``return_documents: true`` (Jina's own service gives them back by default, Cohere's does not).
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.dialects import Dialect
from qwen3_embedding.serving.queue import Lane
from qwen3_embedding.serving.requests import Call, endpoint, json_response, parse, read_json, unless_gone
from qwen3_embedding.serving.routes.cohere import meta
from qwen3_embedding.serving.routes.openai import usage
from qwen3_embedding.serving.routes.tei import TeiRerankRequest, tei_rerank
from qwen3_embedding.serving.routing import Doc, add_post, post
from qwen3_embedding.serving.schemas import Asked, document_texts
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import sigmoid
from qwen3_embedding.types import FloatArray


class RerankRequest(Asked):
    """Cohere v1 and v2, Jina and vLLM in one."""

    query: str
    documents: list[Any] = Field(
        json_schema_extra={
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
                ]
            },
        }
    )
    top_n: int | None = Field(None, ge=0, description="So many best documents; all by default, and for 0.")
    top_k: int | None = Field(None, ge=0, description="Same as top_n.")
    return_documents: bool | None = Field(None, description="Give the documents back.")
    rank_fields: list[str] | None = Field(None, description="Cohere v1: which keys of document objects to read.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Cut documents to so many tokens.")
    max_chunks_per_doc: int | None = Field(
        None, ge=1, description="Cohere v1; documents are never cut into chunks here."
    )
    priority: int | None = Field(None, ge=0, le=999, description="Cohere v2: above 0 the request rides the bulk lane.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def v1(call: Call, body: RerankRequest) -> Response:
        return json_response(await _answer(server, call, body, version="1"))

    async def v2(call: Call, body: RerankRequest) -> Response:
        return json_response(await _answer(server, call, body, version="2"))

    async def by_body(call: Call) -> Response:
        raw = await read_json(call)
        work: Awaitable[Response]
        if "texts" in raw:
            call.request.state.dialect = dialects.tei
            work = tei_rerank(server, call, parse(call, raw, TeiRerankRequest))
        else:
            call.request.state.dialect = dialects.jina if "documents" in raw else dialects.rerank
            work = v1(call, parse(call, raw, RerankRequest))
        return await unless_gone(call, work)

    doc = Doc("Rerank", "Order documents by their relevance to a query", _ANSWER)
    post(app, server, ("/v1/rerank",), dialects.jina, RerankRequest, v1, doc)
    post(app, server, ("/v2/rerank",), dialects.cohere, RerankRequest, v2, doc)
    either = Doc("Rerank", "The same, or TEI's when the body has texts", {"anyOf": [_ANSWER, {"type": "array"}]})
    run = endpoint(server, "/rerank", _by_body_dialect, by_body)
    add_post(app, "/rerank", run, (RerankRequest, TeiRerankRequest), either)


class _ByBody:
    """The dialect that the body showed; before it was read, one that every client can read."""

    by_call = True

    def __call__(self, call: Call) -> Dialect:
        return getattr(call.request.state, "dialect", dialects.rerank)


_by_body_dialect = _ByBody()


async def _answer(server: Server, call: Call, body: RerankRequest, version: str) -> dict[str, Any]:
    service = server.reranker(body.model)
    documents = document_texts(body.documents, "documents", server.settings, body.rank_fields)
    instruction = body.wanted_instruction()
    limit = body.limit(server.settings, "end" if version == "2" else "error")
    if body.max_tokens_per_doc is not None:
        limit = service.limit_per_document(body.query, instruction, body.max_tokens_per_doc, limit)
    if body.priority and call.work.lane is None:
        call.work.lane = Lane.BULK
    logits = await service.logits([body.query] * len(documents), documents, instruction, limit, call.work)
    scores, order = sigmoid(logits), best_first(logits, body.top_n or body.top_k)
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": float(scores[index])} for index in order]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    return {
        "id": call.id,
        "object": "list",
        "model": body.model or service.name,
        "results": results,
        "usage": usage(call.work),
        "meta": meta(call.work, version, search_units=1),
    }


def best_first(logits: FloatArray, top: int | None = None) -> list[int]:
    """Places of the scores, best first; equal ones keep the caller's order. ``top`` of ``None`` or 0 is all."""
    order: list[int] = np.argsort(-logits, kind="stable").tolist()
    return order[:top] if top else order


_ANSWER = {
    "type": "object",
    "required": ["id", "results", "meta"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "relevance_score"],
                "properties": {
                    "index": {"type": "integer"},
                    "relevance_score": {"type": "number", "minimum": 0, "maximum": 1},
                    "document": {"type": "object"},
                },
            },
        },
    },
}
