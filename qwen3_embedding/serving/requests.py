"""What every route does around its own work: key, body, limits, the client that leaves, headers, log line."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3_embedding.serving.auth import Caller, Keys
from qwen3_embedding.serving.dialects import Dialect
from qwen3_embedding.serving.errors import (
    BadRequestError,
    ClientGoneError,
    ComputeError,
    DeadlineError,
    RequestTimeoutError,
    ServingError,
    TooLargeError,
)
from qwen3_embedding.serving.loops import PerLoop
from qwen3_embedding.serving.metrics import Metrics
from qwen3_embedding.serving.queue import Lane
from qwen3_embedding.serving.services import Work
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.serving.tracing import Traces

log = logging.getLogger("qwen3_embedding.serving")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LANES = {"query": Lane.QUERY, "bulk": Lane.BULK}
_PROCESS_ID, _NUMBERS = uuid.uuid4().hex[:24], itertools.count()
"""What ids are made of: no two servers, and no two requests of one, have the same."""
UNTRACED = ("/health", "/health/ready", "/health/live", "/ping", "/metrics", "/Check")
REPORTED_CUTS = 100
"""So many cut texts are named in the header; all are counted."""

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")


class Host(Protocol):
    """What this module needs of the server."""

    settings: ServerSettings
    keys: Keys
    metrics: Metrics
    traces: Traces | None


class Served(Protocol):
    """What accounting needs of a request, over HTTP or gRPC."""

    @property
    def host(self) -> Host:
        """The server."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Headers of the request."""
        ...

    id: str
    route: str
    began: float
    work: Work


class Call:
    """One request on its way through: its id, who asks, and what it took."""

    def __init__(self, host: Host, request: Request, route: str) -> None:
        self.host = host
        self.request = request
        self.route = route
        self.began = time.monotonic()
        self._headers = _headers_of(request)
        self.id = request_id(self._headers.get("x-request-id", ""))
        self.work = Work(Caller("unknown"))
        self.ignored: list[str] = []

    @property
    def metadata(self) -> Mapping[str, str]:
        """Headers of the request, names in lower case; of one that came twice the first."""
        return self._headers

    @property
    def wants(self) -> str:
        """The ``Accept`` header, lower case."""
        return self._headers.get("accept", "").lower()

    def admit(self) -> None:
        """Check the key, read deadline and lane.

        Raises:
            UnauthorizedError: no key or an unknown one.
            BadRequestError: a deadline or a lane that is none.
        """
        headers = self._headers
        self.work = Work(self.host.keys.admit(headers))
        self.work.deadline = self.began + self._allowed_s(headers.get("x-deadline-ms"))
        lane = headers.get("x-priority")
        if lane is not None:
            if lane not in _LANES:
                raise BadRequestError(f"X-Priority: {lane[:20]!r} is not known; use query or bulk")
            self.work.lane = _LANES[lane]

    def _allowed_s(self, deadline_ms: str | None) -> float:
        most = self.host.settings.request_timeout_s
        if deadline_ms is None:
            return most
        if not deadline_ms.isascii() or not deadline_ms.isdigit() or int(deadline_ms[:12]) < 1:
            raise BadRequestError(f"X-Deadline-Ms: {deadline_ms[:20]!r}; wanted a whole number of milliseconds from 1")
        return min(int(deadline_ms[:12]) / 1000, most)

    def headers(self) -> dict[str, str]:
        """Timing and truncation, in the names of text-embeddings-inference where it has them (milliseconds)."""
        work = self.work
        headers = {"x-request-id": self.id}
        if work.items:
            total = time.monotonic() - self.began
            headers |= {
                "x-compute-type": work.compute_type,
                "x-compute-characters": str(work.characters),
                "x-compute-tokens": str(work.tokens),
                "x-compute-time": _ms(work.inference_s),
                "x-total-time": _ms(total),
                "x-tokenization-time": _ms(work.tokenization_s),
                "x-queue-time": _ms(work.queue_s),
                "x-inference-time": _ms(work.inference_s),
                "x-truncated-count": str(len(work.cuts)),
            }
        if work.cuts:
            headers["x-truncated"] = ",".join(str(cut.index) for cut in work.cuts[:REPORTED_CUTS])
        if self.ignored:
            headers["x-ignored-fields"] = ",".join(self.ignored)
        return headers


def _headers_of(request: Request) -> dict[str, str]:
    """Read once: Starlette's own mapping decodes all of them for every look-up."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]
    return dict(reversed(pairs))


def request_id(given: str) -> str:
    """The client's own, if it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"{_PROCESS_ID}{next(_NUMBERS):08x}"


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


Handler = Callable[[Call], Awaitable[Response]]


def endpoint(
    host: Host, route: str, dialect: Dialect | Callable[[Call], Dialect], handle: Handler, open_to_all: bool = False
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """A route: everything around ``handle``, which gets the call and gives the answer or raises a ServingError."""

    async def run(request: Request) -> Response:
        call = Call(host, request, route)
        host.metrics.in_flight += 1
        error: ServingError | None = None
        try:
            if not open_to_all:
                call.admit()
            response = await handle(call)
        except asyncio.CancelledError:
            raise
        except Exception as caught:
            error = as_serving_error(call, caught)
            response = _worded(call, error, dialect)
        finally:
            host.metrics.in_flight -= 1
        # Straight into the list: setting each by name would search all of them each time.
        response.raw_headers += [(name.encode(), value.encode()) for name, value in call.headers().items()]
        account(call, str(response.status_code), error)
        return response

    return run


def as_serving_error(call: Served, error: Exception) -> ServingError:
    """The error as one of ours; a bug of ours is logged with its trace."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, ClientDisconnect):
        return ClientGoneError("the client left while it sent the body")
    log.error(json.dumps({"event": "bug", "request_id": call.id, "route": call.route}), exc_info=error)
    return ComputeError(f"the server failed on this request ({type(error).__name__}); its log has request id {call.id}")


def _worded(call: Call, error: ServingError, dialect: Any) -> Response:
    chosen: Dialect = dialect(call) if getattr(dialect, "by_call", False) else dialect
    worded = chosen(error, call.id)
    response = json_response(worded.body, worded.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def account(call: Served, status: str, error: ServingError | None) -> None:
    """Metrics, spans and one log line; none has a text in it."""
    if call.host.traces is not None and not call.route.endswith(UNTRACED):
        call.host.traces.record(call, status, error, call.metadata)
    work, metrics, total = call.work, call.host.metrics, time.monotonic() - call.began
    metrics.request(call.route, status)
    if work.items:
        metrics.count(f"te_{work.kind}_count", work.items)
    if work.items or error is not None:
        metrics.request_duration.observe(total)
        kind = "batch" if work.items > 1 else "single"
        metrics.count("te_request_count", method=kind)
        if error is None:
            metrics.count("te_request_success", method=kind)
        else:
            metrics.count("te_request_failure", err=error.kind)
    if work.items and error is None:
        metrics.count(f"te_{work.kind}_success", work.items)
        metrics.tokenization_duration.observe(work.tokenization_s)
        metrics.queue_duration.observe(work.queue_s)
        metrics.inference_duration.observe(work.inference_s)
        metrics.inputs(work.model, work.caller.name, work.lengths, len(work.cuts))
    if not log.isEnabledFor(logging.INFO):
        return
    line: dict[str, Any] = {
        "event": "request",
        "request_id": call.id,
        "route": call.route,
        "status": int(status) if status.isdigit() else status,
        "caller": work.caller.name,
        "total_ms": round(total * 1000, 2),
    }
    if work.items:
        line |= {
            "model": work.model,
            "items": work.items,
            "tokens": work.tokens,
            "truncated": len(work.cuts),
            "tokenization_ms": round(work.tokenization_s * 1000, 2),
            "queue_ms": round(work.queue_s * 1000, 2),
            "inference_ms": round(work.inference_s * 1000, 2),
        }
    if error is not None:
        line["error"] = error.kind
    log.info(json.dumps(line))


async def read_json(call: Call) -> dict[str, Any]:
    """The request's body as a JSON object, whatever content type it claims.

    Raises:
        TooLargeError, RequestTimeoutError, BadRequestError: too large, too slow, or not a JSON object.
    """
    most, patience = call.host.settings.max_body_bytes, call.host.settings.body_timeout_s
    length = call.metadata.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:19]) > most:
        raise TooLargeError(f"the body has {length[:19]} bytes, and this server takes {most} at most")
    with Lookout.of_running_loop().over_this_task(None, time.monotonic() + patience) as watched:
        try:
            raw = await _collect(call.request, most)
        except asyncio.CancelledError:
            watched.stopped(RequestTimeoutError(f"the body did not arrive within {patience:g} seconds"))
            raise
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadRequestError(f"the body is a JSON {_json_name(parsed)}; wanted an object")
    return parsed


async def _collect(request: Request, most: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > most:
            raise TooLargeError(f"the body is larger than the {most} bytes that this server takes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(call: Call, raw: dict[str, Any], model: type[Body]) -> Body:
    """The body as typed fields; what the dialect does not know is named in ``X-Ignored-Fields``.

    Raises:
        BadRequestError: a field is missing or of the wrong type.
    """
    try:
        body = model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:1])) or "body"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadRequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}{more}", param=place) from None
    call.ignored = [name for name in (body.model_extra or {}) if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII)][:32]
    return body


async def unless_gone(call: Call, work: Awaitable[T]) -> T:
    """Do the work; give it up when the client leaves or the time is over. Call it when the body has been read.

    Raises:
        ClientGoneError, DeadlineError: given up.
    """
    with Lookout.of_running_loop().over_this_task(call.request, call.work.deadline) as watched:
        try:
            return await work
        except asyncio.CancelledError:
            watched.stopped(
                DeadlineError("the answer was not there in time; ask for less at once, or allow more time"),
                ClientGoneError("the client left before the answer was there"),
            )
            raise


class Watched:
    """A task under the look-out: until when, and for which client."""

    __slots__ = ("_lookout", "_task", "deadline", "gone", "late", "request")

    def __init__(self, lookout: Lookout, request: Request | None, deadline: float | None) -> None:
        self._lookout = lookout
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.request, self.deadline = request, deadline
        self.late = self.gone = False

    def __enter__(self) -> Watched:
        self._lookout.watched.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._lookout.watched.discard(self)

    def stop(self, *, late: bool = False) -> None:
        """Cancel the task, once: its time is over, or its client left."""
        if not self.late and not self.gone:
            self.late, self.gone = late, not late
            self._task.cancel()

    def stopped(self, if_late: ServingError, if_gone: ServingError | None = None) -> None:
        """Turn the task's cancellation into the error that says why.

        Raises:
            ServingError: if the look-out cancelled it; else somebody else did, and that goes on.
        """
        error = if_late if self.late else if_gone if self.gone else None
        if error is not None:
            self._task.uncancel()
            raise error from None


class Lookout(PerLoop):
    """Cancels the work whose client left or whose time is over: one task looks at the requests of an event loop, a few
    times a second.

    A task and a timer for each request would cost more than most requests take. Waiting for rows has its own timer.
    """

    EVERY_S = 0.2

    def __init__(self) -> None:
        self.watched: set[Watched] = set()
        self._looking: asyncio.Task[None] | None = None

    def over_this_task(self, request: Request | None, deadline: float | None) -> Watched:
        """While the context is open, cancel the running task after ``deadline`` (``time.monotonic()``), or when the
        client of ``request``, whose body has been read, leaves."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return Watched(self, request, deadline)

    async def _look(self) -> None:
        known: set[Watched] = set()
        idle = 0
        try:
            while idle < 2:
                await asyncio.sleep(self.EVERY_S)
                idle = 0 if self.watched else idle + 1
                now = time.monotonic()
                for watched in list(self.watched):
                    if watched.deadline is not None and watched.deadline <= now:
                        watched.stop(late=True)
                # Looking costs a tenth of a short request: those that came since the last time are left until the next.
                old = self.watched & known
                known = set(self.watched)
                for watched in old:
                    left = watched.request is not None and await watched.request.is_disconnected()
                    if left and watched in self.watched:
                        watched.stop()
        finally:
            self._looking = None


class JsonArray:
    """An array that is JSON already, in parts: its elements, separated by commas within each part."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts


class Piecewise(Response):
    """An answer of megabytes: its pieces are sent one by one, as fast as the client takes them."""

    def __init__(self, pieces: list[bytes], status: int, media_type: str) -> None:
        length = {"content-length": str(sum(map(len, pieces)))}
        super().__init__(status_code=status, headers=length, media_type=media_type)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


_PLACE = b"\xff"
"""Where an array's parts go; no byte of UTF-8."""


def json_response(body: Any, status: int = 200) -> Response:
    """JSON, numpy arrays included. What has a :class:`JsonArray` in it is sent in pieces."""
    arrays: list[JsonArray] = []

    def put_off(value: Any) -> orjson.Fragment:
        if not isinstance(value, JsonArray):
            raise TypeError(f"{type(value).__name__} is not JSON")
        arrays.append(value)
        return orjson.Fragment(_PLACE)

    text = to_json(body, put_off)
    if not arrays:
        return Response(text, status, media_type="application/json")
    first, *others = text.split(_PLACE)
    pieces = [first]
    for array, behind in zip(arrays, others, strict=True):
        pieces += [b"," + part for part in array.parts]
        pieces[-len(array.parts)] = b"[" + array.parts[0]
        pieces.append(b"]" + behind)
    return Piecewise(pieces, status, "application/json")


def to_json(body: Any, otherwise: Callable[[Any], Any] | None = None) -> bytes:
    """UTF-8, numpy arrays included; ``otherwise`` gives what stands for a value that JSON does not know."""
    return orjson.dumps(body, default=otherwise, option=orjson.OPT_SERIALIZE_NUMPY)


def _json_name(value: Any) -> str:
    names = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
    return names[type(value)]
