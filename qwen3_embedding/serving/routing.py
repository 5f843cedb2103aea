"""Puts a route and its documentation into the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import request_response

from qwen3_embedding.serving.dialects import Dialect
from qwen3_embedding.serving.requests import Body, Call, endpoint, parse, read_json, unless_gone
from qwen3_embedding.serving.server import Server

ERROR_STATUSES = {
    400: "The request is malformed.",
    401: "No key, or an unknown one.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "Too large.",
    422: "The request is not valid (text-embeddings-inference's status).",
    424: "The model failed (text-embeddings-inference's status).",
    429: "The queue is full or the quota spent; see Retry-After.",
    499: "The client left.",
    500: "The model failed.",
    503: "Starting, draining, or the worker was lost.",
    504: "The deadline passed.",
}
Run = Callable[[Request], Coroutine[Any, Any, Response]]
_STRAIGHT: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()
MODELS: dict[str, type[BaseModel]] = {}
"""Request models by the name under which the OpenAPI document has them."""


@dataclass(frozen=True)
class Doc:
    """What the OpenAPI document says of a route."""

    tag: str
    summary: str
    answer: dict[str, Any]
    """JSON schema of the answer; empty where the answer has no body."""
    binary: tuple[str, ...] = ()
    """Media types in which the answer also comes, by ``Accept``."""


def post(
    app: FastAPI,
    server: Server,
    paths: tuple[str, ...],
    dialect: Dialect,
    model: type[Body],
    handle: Callable[[Call, Body], Awaitable[Response]],
    doc: Doc,
) -> None:
    """Serve ``handle`` under each path: body read, checked, and given up when the client leaves."""

    async def whole(call: Call) -> Response:
        body = parse(call, await read_json(call), model)
        return await unless_gone(call, handle(call, body))

    for path in paths:
        add_post(app, path, endpoint(server, path, dialect, whole), (model,), doc)


def add_post(app: FastAPI, path: str, run: Any, models: tuple[type[BaseModel], ...], doc: Doc) -> None:
    """Register a ready endpoint with its documentation."""
    for model in models:
        MODELS[model.__name__] = model
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    app.add_api_route(
        path,
        run,
        methods=["POST"],
        response_model=None,
        summary=doc.summary,
        tags=[doc.tag],
        name=f"{doc.tag} {path}",
        responses={200: {"content": {"application/json": {"schema": doc.answer}} | _binary(doc)}, **_errors()},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    _call_straight(app, run)


def get(
    app: FastAPI,
    server: Server,
    paths: tuple[str, ...],
    dialect: Dialect,
    handle: Callable[[Call], Awaitable[Response]],
    doc: Doc,
    open_to_all: bool = False,
    media_type: str = "application/json",
) -> None:
    """Serve ``handle`` under each path; ``open_to_all`` needs no key."""
    good: dict[str, Any] = (
        {"content": {media_type: {"schema": doc.answer}}} if doc.answer else {"description": "Empty."}
    )
    for path in paths:
        app.add_api_route(
            path,
            endpoint(server, path, dialect, handle, open_to_all),
            methods=["GET"],
            response_model=None,
            response_class=JSONResponse if doc.answer else Response,
            summary=doc.summary,
            tags=[doc.tag],
            name=f"{doc.tag} {path}",
            responses={200: good, **_errors(401, 404, 500, 503)},
        )
        _call_straight(app, app.routes[-1].endpoint)  # type: ignore[attr-defined]


def _call_straight(app: FastAPI, run: Run) -> None:
    """Let the route added last call ``run`` itself: it takes the bare request, so FastAPI has nothing to prepare."""
    call = request_response(run)
    app.routes[-1].app = call  # type: ignore[attr-defined]
    _STRAIGHT[call] = run


def straight(route: APIRoute) -> Run | None:
    """What a route does with a request, where it needs nothing of FastAPI around it and answers its own errors."""
    return _STRAIGHT.get(route.app)


def _binary(doc: Doc) -> dict[str, Any]:
    return {media: {"schema": {"type": "string", "format": "binary"}} for media in doc.binary}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object"}
    return {
        status: {"description": text, "content": {"application/json": {"schema": schema}}}
        for status, text in ERROR_STATUSES.items()
        if not statuses or status in statuses
    }
