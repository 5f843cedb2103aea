"""What every RPC does around its own work: key, deadline, the client that leaves, metadata, log line."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from qwen3_embedding.serving.auth import Caller
from qwen3_embedding.serving.errors import (
    BadRequestError,
    ComputeError,
    DeadlineError,
    OverloadedError,
    ServingError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnknownModelError,
)
from qwen3_embedding.serving.requests import account, as_serving_error, request_id
from qwen3_embedding.serving.rpc.messages import message
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import Work

WINDOW = 256
"""Requests of one stream that are under way at once; the stream is not read further meanwhile."""

_CODES: tuple[tuple[type[ServingError], grpc.StatusCode], ...] = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (UnauthorizedError, grpc.StatusCode.UNAUTHENTICATED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (ComputeError, grpc.StatusCode.INTERNAL),
    (TooLargeError, grpc.StatusCode.INVALID_ARGUMENT),
    (BadRequestError, grpc.StatusCode.INVALID_ARGUMENT),
)


class NotSupportedError(BadRequestError):
    """An RPC of the interface that this kind of model cannot answer."""

    status = 501
    kind = "not_supported"


def code_of(error: ServingError) -> grpc.StatusCode:
    """gRPC's status for an error."""
    if isinstance(error, NotSupportedError):
        return grpc.StatusCode.UNIMPLEMENTED
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class RpcCall:
    """One request, alone or in a stream, on its way through."""

    def __init__(self, host: Server, context: Any, route: str) -> None:
        self.host = host
        self.route = route
        self.began = time.monotonic()
        self.metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.id = request_id(self.metadata.get("x-request-id", ""))
        self.work = Work(Caller("unknown"))
        self._left: float | None = context.time_remaining()

    def admit(self) -> None:
        """Check the key, read the deadline.

        Raises:
            UnauthorizedError, UnavailableError: no key or an unknown one; the server is leaving.
        """
        self.work = Work(self.host.keys.admit(self.metadata))
        if self.host.draining:
            raise UnavailableError("the server is shutting down; try another replica", retry_after_s=5.0)
        most = self.host.settings.request_timeout_s
        self.work.deadline = self.began + (most if self._left is None else max(min(self._left, most), 0.0))

    def trailing(self, error: ServingError | None) -> tuple[tuple[str, str], ...]:
        """Metadata that goes with the answer."""
        pairs = [("x-request-id", self.id)]
        if self.work.items:
            pairs.append(("x-truncated-count", str(len(self.work.cuts))))
        if error is not None and error.retry_after_s is not None:
            pairs.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
        return tuple(pairs)

    def timing(self) -> Any:
        """TEI's ``Metadata`` message."""
        work = self.work
        return message("Metadata")(
            compute_chars=work.characters,
            compute_tokens=work.tokens,
            total_time_ns=_ns(time.monotonic() - self.began),
            tokenization_time_ns=_ns(work.tokenization_s),
            queue_time_ns=_ns(work.queue_s),
            inference_time_ns=_ns(work.inference_s),
        )


Handle = Callable[[RpcCall, Any], Awaitable[Any]]


def unary(host: Server, route: str, handle: Handle, open_to_all: bool = False) -> Callable[[Any, Any], Awaitable[Any]]:
    """One request, one answer."""

    async def run(request: Any, context: Any) -> Any:
        call = RpcCall(host, context, route)
        answer, error = await _finish(call, handle, request, open_to_all)
        if error is not None:
            await context.abort(code_of(error), error.message, call.trailing(error))
        context.set_trailing_metadata(call.trailing(None))
        return answer

    return run


def gathered(host: Server, route: str, handle: Handle) -> Callable[[Any, Any], Awaitable[Any]]:
    """A stream of requests that are parts of one, one answer."""
    one = unary(host, route, handle)

    async def run(requests: AsyncIterator[Any], context: Any) -> Any:
        parts = []
        async for request in requests:
            parts.append(request)
            if len(parts) > host.settings.max_items:
                text = f"more than {host.settings.max_items} texts, the most this server takes at once"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        return await one(parts, context)

    return run


def streamed(host: Server, route: str, handle: Handle) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """A stream of requests, computed together, answered in their order; the first that fails ends the stream."""

    async def run(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        under_way: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(WINDOW)

        async def read() -> None:
            try:
                async for request in requests:
                    call = RpcCall(host, context, route)
                    await under_way.put(asyncio.ensure_future(_finish(call, handle, request)))
            finally:
                await under_way.put(None)

        reader = asyncio.ensure_future(read())
        try:
            while (task := await under_way.get()) is not None:
                answer, error = await task
                if error is not None:
                    await context.abort(code_of(error), error.message)
                yield answer
        finally:
            reader.cancel()
            while not under_way.empty():
                left = under_way.get_nowait()
                if left is not None:
                    left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    return run


async def _finish(
    call: RpcCall, handle: Handle, request: Any, open_to_all: bool = False
) -> tuple[Any, ServingError | None]:
    """The answer, or the error that takes its place; counted and logged either way."""
    answer, error = None, None
    call.host.metrics.in_flight += 1
    try:
        if not open_to_all:
            call.admit()
        answer = await handle(call, request)
    except asyncio.CancelledError:
        account(call, "CANCELLED", None)
        raise
    except Exception as caught:
        error = as_serving_error(call, caught)
    finally:
        call.host.metrics.in_flight -= 1
    account(call, "OK" if error is None else code_of(error).name, error)
    return answer, error


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
