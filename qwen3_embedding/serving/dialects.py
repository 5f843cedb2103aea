"""How each dialect words an error: status and body.

A dialect is told by the route that was called; the routes' own files say which is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from qwen3_embedding.serving.errors import (
    BadRequestError,
    ComputeError,
    EmptyInputError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnauthorizedError,
    UnknownModelError,
)


class Worded(NamedTuple):
    """An error as a client of some dialect expects it."""

    status: int
    body: dict[str, Any]


Dialect = Callable[[ServingError, str], Worded]
"""From an error and the request's id to status and body."""


def openai(error: ServingError, request_id: str) -> Worded:
    """``{"error": {"message", "type", "param", "code"}}``."""
    kind, code = "invalid_request_error", error.kind
    if isinstance(error, UnauthorizedError):
        code = "invalid_api_key"
    elif isinstance(error, OverloadedError):
        kind, code = "tokens", "rate_limit_exceeded"
    elif error.status >= 500:
        kind = "server_error"
    return Worded(error.status, {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}})


_VLLM_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}


def vllm(error: ServingError, request_id: str) -> Worded:
    """OpenAI's nesting with vLLM's type names and the status as the code."""
    kind = _VLLM_TYPES.get(error.status, "BadRequestError" if error.status < 500 else "InternalServerError")
    body = {"message": error.message, "type": kind, "param": error.param, "code": error.status}
    return Worded(error.status, {"error": body})


def cohere(error: ServingError, request_id: str) -> Worded:
    """``{"id", "message"}``."""
    return Worded(error.status, {"id": request_id, "message": error.message})


def jina(error: ServingError, request_id: str) -> Worded:
    """``{"detail"}`` as Jina words it, with Cohere's keys beside, as clients of both call ``/v1/rerank``."""
    detail = f"[RID: {request_id}] {error.message}"
    return Worded(error.status, {"detail": detail, "id": request_id, "message": error.message})


def tei(error: ServingError, request_id: str) -> Worded:
    """``{"error", "error_type"}`` with text-embeddings-inference's statuses: 422 validation, 424 backend, 400 empty."""
    status, kind = _tei_kind(error)
    return Worded(status, {"error": error.message, "error_type": kind})


def _tei_kind(error: ServingError) -> tuple[int, str]:
    if isinstance(error, EmptyInputError):
        return 400, "Empty"
    if isinstance(error, OverloadedError):
        return 429, "Overloaded"
    if isinstance(error, ComputeError):
        return 424, "Backend"
    if isinstance(error, UnauthorizedError):
        return 401, "Unauthorized"
    if isinstance(error, TooLargeError):
        return 413, "Validation"
    if isinstance(error, (BadRequestError, UnknownModelError)):
        return 422, "Validation"
    return (error.status, "Unhealthy") if error.status >= 500 else (error.status, "Validation")


def rerank(error: ServingError, request_id: str) -> Worded:
    """For ``/rerank`` when the body does not tell the dialect: every client finds its key."""
    return Worded(error.status, jina(error, request_id).body | tei(error, request_id).body)
