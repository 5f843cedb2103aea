"""The application: all routes on one server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3_embedding import __version__
from qwen3_embedding.serving import dialects
from qwen3_embedding.serving.errors import NoSuchRouteError
from qwen3_embedding.serving.protocol import write_whole
from qwen3_embedding.serving.requests import json_response
from qwen3_embedding.serving.routes import cohere, openai, playground, rerank, tei, vllm
from qwen3_embedding.serving.routing import MODELS, Run, straight
from qwen3_embedding.serving.server import Server


def create_app(server: Server, rpc: tuple[str, int] | None = None) -> FastAPI:
    """The ASGI application of ``server``. When it shuts down, accepted requests are answered first.

    Args:
        server: the models.
        rpc: host and port on which gRPC listens as well, while the application runs; port 0 picks a free one
            (``app.state.rpc.port``).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if rpc is not None:
            from qwen3_embedding.serving.rpc.server import Rpc

            app.state.rpc = Rpc(server)
            await app.state.rpc.start(*rpc)
        yield
        if rpc is not None:
            await app.state.rpc.stop()
        await asyncio.to_thread(server.close)

    app = FastAPI(
        title="qwen3-embedding",
        version=__version__,
        description="Qwen3 Embedding and Reranker in the dialects of OpenAI, Cohere, Jina, TEI and vLLM.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are in tracing.py and metrics.py
        lifespan=lifespan,
    )
    app.state.server = server
    for dialect in (openai, cohere, rerank, tei, vllm, playground):
        dialect.add(app, server)
    app.add_exception_handler(HTTPException, _no_route)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.middleware_stack = Straight(app)
    return app


class Straight:
    """Takes requests whose method and path are a route's own to that route, and all others through the framework.

    A route answers its own errors (``serving/requests.py``), so what the framework's layers do around it, trying the
    patterns of all routes among it, would be a short request's time for nothing.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._around = app.build_middleware_stack()
        self._routes: dict[tuple[str, str], Run] = {
            (method, route.path): run
            for route in reversed(app.routes)  # of two the first counts, as it does in the framework
            if isinstance(route, APIRoute) and (run := straight(route)) is not None and "{" not in route.path
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        run = None
        if scope["type"] == "http" and not scope.get("root_path"):
            run = self._routes.get((scope["method"], scope["path"]))
        if run is None:
            scope["app"] = self._app  # as the application does, which need not stand before this
            await self._around(scope, receive, send)
            return
        response = await run(Request(scope, receive, send))
        if not write_whole(send, response):
            await response(scope, receive, send)


async def _no_route(request: Request, error: Exception) -> Response:
    """Paths and methods that do not exist, in OpenAI's words."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    wording = f"no route {request.method} {request.url.path[:80]}; see /docs"
    worded = dialects.openai(NoSuchRouteError(wording), "")
    response = json_response(worded.body, status)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the request models, which the routes read themselves, put in."""
    document = FastAPI.openapi(app)
    _, schemas = models_json_schema(
        [(model, "validation") for model in MODELS.values()], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    if app.state.server.keys.required:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
