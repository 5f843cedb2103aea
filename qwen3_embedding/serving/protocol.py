"""Two things beside uvicorn's HTTP protocol: headers that dawdle are not waited for, and a short answer is written in
one go."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Send

try:
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
except ImportError:  # no httptools: uvicorn takes its own protocol in plain Python
    STATUS_LINE, HttpToolsProtocol, RequestResponseCycle = {}, None, None  # type: ignore[assignment,misc]

_LARGEST = 65_536
"""Bodies beyond this are not copied behind their headers."""


def write_whole(send: Send, response: Response) -> bool:
    """Write an answer in one go if ``send`` is uvicorn's own; false where it has to go out as ASGI messages.

    The same bytes as uvicorn would write, without a look at every letter of every header: ours are harmless, and a
    line too many is still seen.
    """
    cycle = getattr(send, "__self__", None)
    if RequestResponseCycle is None or type(cycle) is not RequestResponseCycle or cycle.access_log:
        return False
    if type(response) is not Response or response.background is not None or len(response.body) > _LARGEST:
        return False
    if response.status_code in (204, 304) or cycle.scope["method"] == "HEAD":
        return False
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
        return False
    headers = [*cycle.default_headers, *response.raw_headers]
    if not cycle.keep_alive:
        headers.append((b"connection", b"close"))
    head = b"%b%b\r\n" % (
        STATUS_LINE[response.status_code],
        b"".join([b"%b: %b\r\n" % header for header in headers]),
    )
    if head.count(b"\n") != len(headers) + 2 or head.count(b"\r") != len(headers) + 2:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.message_event.set()
    cycle.transport.write(head + response.body)
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


def protocol(patience_s: float) -> Any:
    """uvicorn's httptools protocol, or the word for its own choice where httptools is missing.

    Args:
        patience_s: seconds in which a connection that has begun, or been given, must finish a request's headers.
    """
    if HttpToolsProtocol is None:
        return "auto"

    class Patient(HttpToolsProtocol):
        """Closes a connection that has begun, or been given, and does not finish its headers in time."""

        _late: asyncio.TimerHandle | None = None
        _in_headers = True  # a connection that was made owes a request

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look_again()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_headers or self._late is not None:  # most headers come whole and need no timer
                self._look_again()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_headers = True
            self._stop_waiting()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _look_again(self) -> None:
            if not self._in_headers:
                self._stop_waiting()
            elif self._late is None and not self.transport.is_closing():
                self._late = self.loop.call_later(patience_s, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Patient
