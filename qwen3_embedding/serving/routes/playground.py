"""The playground at ``/``, the exact prompt behind it, and the server's own documentation."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import HTMLResponse, Response

from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.errors import BadRequestError
from qwen3_embedding.serving.rendered import render_pair, render_text
from qwen3_embedding.serving.requests import Call, json_response
from qwen3_embedding.serving.routing import Doc, get, post
from qwen3_embedding.serving.schemas import Asked
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import ModelService

SCRIPTS = (
    "page.js",
    "vectors.js",
    "files.js",
    "rerank.js",
    "similarity.js",
    "search.js",
    "dimensions.js",
    "map.js",
    "prompt.js",
    "server.js",
    "code.js",
    "start.js",
)
"""In the order in which the page needs them."""


class PromptRequest(Asked):
    """``POST /prompt``: a text for the embedder, or a query with a document for the reranker."""

    text: str | None = Field(None, description="For the embedder.")
    query: str | None = Field(None, description="For the reranker, with document.")
    document: str | None = Field(None, description="For the reranker, with query.")


def add(app: FastAPI, server: Server) -> None:
    """Add the routes."""

    async def page(call: Call) -> Response:
        return _page("index.html")

    async def docs(call: Call) -> Response:
        return _page("docs.html")

    async def openapi(call: Call) -> Response:
        return json_response(app.openapi())

    async def metrics(call: Call) -> Response:
        return Response(server.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def prompt(call: Call, body: PromptRequest) -> Response:
        return json_response(rendered(server, body))

    asked = Doc("Playground", "The exact rendered input and its tokens", {"type": "object"})
    post(app, server, ("/prompt",), dialects.openai, PromptRequest, prompt, asked)
    words = {"type": "string"}
    get(app, server, ("/",), dialects.openai, page, Doc("Playground", "The playground", words), True, "text/html")
    get(app, server, ("/docs",), dialects.openai, docs, Doc("Playground", "The routes", words), True, "text/html")
    schema = Doc("Playground", "This document", {"type": "object"})
    get(app, server, ("/openapi.json",), dialects.openai, openapi, schema)
    text = Doc("Health", "Prometheus metrics", {"type": "string"})
    get(app, server, ("/metrics",), dialects.openai, metrics, text, media_type="text/plain")


def rendered(server: Server, body: PromptRequest) -> dict[str, Any]:
    """What the model reads, its token ids, and what would be cut."""
    limit = body.limit(server.settings, "end")
    if body.query is not None and body.document is not None:
        reranker = server.reranker(body.model)
        whole = render_pair(
            reranker, body.query, body.document, body.wanted_instruction(), _most(reranker, limit.max_tokens)
        )
        return {"model": reranker.name} | whole.as_dict(reranker.tokenizer)
    if body.text is not None:
        embedder, suffix = server.embedder(body.model)
        whole = render_text(embedder, body.text, body.prompt(suffix), _most(embedder, limit.max_tokens))
        return {"model": embedder.name} | whole.as_dict(embedder.tokenizer)
    raise BadRequestError("wanted `text` for the embedder, or `query` and `document` for the reranker")


def _most(service: ModelService, wanted: int | None) -> int:
    return service.max_tokens if wanted is None else min(wanted, service.max_tokens)


def _page(name: str) -> Response:
    text, headers = html(name)
    return HTMLResponse(text, headers=headers)


@cache
def html(name: str) -> tuple[str, dict[str, str]]:
    """A page with its style and scripts put in, and its headers: only these very scripts may run."""
    text = _file(name).replace("{{style}}", _file("style.css")).replace("{{script}}", "\n".join(map(_file, SCRIPTS)))
    hashes = [sha256(script.encode()).digest() for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)]
    sources = " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in hashes)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {sources}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return text, {"content-security-policy": policy} | headers


def _file(name: str) -> str:
    return (files("qwen3_embedding.serving") / "playground" / name).read_text(encoding="utf-8")
