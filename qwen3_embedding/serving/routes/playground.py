"""The playground at ``/``, the exact prompt behind it, and the server's own documentation."""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import HTMLResponse, Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.requests import Call, json_response
from qwen3_embedding.serving.routing import Doc, get, post
from qwen3_embedding.serving.schemas import Asked
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import ModelService

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
SHOWN_TOKENS = 4_096


class PromptRequest(Asked):
    """``POST /prompt``: a text for the embedder, or a query with a document for the reranker."""

    text: str | None = Field(None, description="For the embedder.")
    query: str | None = Field(None, description="For the reranker, with document.")
    document: str | None = Field(None, description="For the reranker, with query.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def page(call: Call) -> Response:
        return HTMLResponse(_file("index.html"), headers=PAGE_HEADERS)

    async def docs(call: Call) -> Response:
        return HTMLResponse(_file("docs.html"), headers=PAGE_HEADERS)

    async def openapi(call: Call) -> Response:
        return json_response(app.openapi())

    async def metrics(call: Call) -> Response:
        return Response(server.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def prompt(call: Call, body: PromptRequest) -> Response:
        return json_response(rendered(server, body))

    asked = Doc("Playground", "The exact rendered input and its tokens", {"type": "object"})
    post(app, server, ("/prompt",), dialects.openai, PromptRequest, prompt, asked)
    html = {"type": "string"}
    get(app, server, ("/",), dialects.openai, page, Doc("Playground", "The playground", html), True, "text/html")
    get(app, server, ("/docs",), dialects.openai, docs, Doc("Playground", "The routes", html), True, "text/html")
    schema = Doc("Playground", "This document", {"type": "object"})
    get(app, server, ("/openapi.json",), dialects.openai, openapi, schema)
    text = Doc("Health", "Prometheus metrics", {"type": "string"})
    get(app, server, ("/metrics",), dialects.openai, metrics, text, media_type="text/plain")


def rendered(server: Server, body: PromptRequest) -> dict[str, Any]:
    """What the model reads, its token ids, and what would be cut."""
    limit = body.limit(server.settings, "end")
    if body.query is not None and body.document is not None:
        reranker = server.reranker(body.model)
        instruction = body.wanted_instruction()
        text = reranker.rendered(body.query, body.document, instruction)
        service: ModelService = reranker
        encode = partial(reranker.tokenizer.encode_pairs, [body.query], [body.document], instruction)
    elif body.text is not None:
        service, suffix = embedder, _ = server.embedder(body.model)
        prompt = body.prompt(suffix)
        text = embedder.rendered(body.text, prompt)
        if prompt.role == "query":
            encode = partial(service.tokenizer.encode_queries, [body.text], prompt.instruction)
        else:
            encode = partial(service.tokenizer.encode_documents, [body.text])
    else:
        raise BadRequestError("wanted `text` for the embedder, or `query` and `document` for the reranker")
    most = service.max_tokens if limit.max_tokens is None else min(limit.max_tokens, service.max_tokens)
    try:
        encoded = encode(max_tokens=most)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    ids = encoded.ids[0]
    pieces = service.tokenizer.token_strings(ids[:SHOWN_TOKENS])
    return {
        "model": service.name,
        "rendered": text,
        "count": len(ids),
        "cut": encoded.cut_tokens[0],
        "tokens": [{"id": token, "text": piece} for token, piece in zip(ids, pieces, strict=False)],
    }


@cache
def _file(name: str) -> str:
    return (files("qwen3_embedding.serving") / "playground" / name).read_text(encoding="utf-8")
