"""Answers written in one go: the same bytes as uvicorn's own, whatever the connection."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.protocol import write_whole
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from fastapi import FastAPI

    from qwen3_embedding import Embedder, Reranker

protocols = pytest.importorskip("uvicorn.protocols.http.httptools_impl")
VARYING = re.compile(rb"^(date|x-request-id|x-[a-z]+-time|content-length): .*?\r\n|\"created\":\d+", re.MULTILINE)


class Around:
    """The application behind a ``send`` that is not uvicorn's own."""

    middleware_stack = None

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def pass_on(message: Any) -> None:
            await send(message)

        await (self._app.middleware_stack or self._app)(scope, receive, pass_on)


def request(method: str, path: str, body: bytes = b"", *lines: bytes, version: bytes = b"1.1") -> bytes:
    head = [
        b"%b %b HTTP/%b" % (method.encode(), path.encode(), version),
        b"host: x",
        b"content-length: %d" % len(body),
        *lines,
    ]
    return b"\r\n".join([*head, b"", body])


def exchange(url: str, sent: bytes) -> bytes:
    """All that comes back until the server closes, or has been silent for a while."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port)) as link:
        link.settimeout(0.5)
        link.sendall(sent)
        got = b""
        try:
            while part := link.recv(65536):
                got += part
        except TimeoutError:
            return got + b"[open]"
        return got + b"[closed]"


EMBED = b'{"input": "a text", "encoding_format": "base64"}'
CASES = {
    "an answer": request("POST", "/v1/embeddings", EMBED),
    "numbers": request("POST", "/embed", b'{"inputs": ["a", "b c"]}', b"accept: application/x-npy"),
    "an error": request("POST", "/v1/embeddings", b"{"),
    "no route": request("GET", "/nothing"),
    "head": request("HEAD", "/health"),
    "no body": request("GET", "/health"),
    "close": request("POST", "/v1/embeddings", EMBED, b"connection: close"),
    "http 1.0": request("POST", "/v1/embeddings", EMBED, version=b"1.0"),
    "pipelined": request("POST", "/v1/embeddings", EMBED) * 3 + request("GET", "/v1/models", b"", b"connection: close"),
    "expect": request("POST", "/v1/embeddings", EMBED, b"expect: 100-continue"),
    "own id": request("POST", "/v1/embeddings", EMBED, b"x-request-id: mine"),
}


@pytest.fixture(scope="module")
def plain_url(embedder: Embedder, reranker: Reranker) -> Any:
    # A server of its own: an application that shuts down closes the server behind it.
    server = Server({"tiny-embedding": embedder}, {"tiny-reranker": reranker}, ServerSettings(max_items=64))
    with serving(server, Around(create_app(server))) as url:  # type: ignore[arg-type]
        yield url


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_uvicorns(url: str, plain_url: str, case: str) -> None:
    ours, theirs = exchange(url, CASES[case]), exchange(plain_url, CASES[case])
    assert ours.startswith(b"HTTP/1.1 ")
    assert sorted(VARYING.sub(b"", ours).split(b"\r\n")) == sorted(VARYING.sub(b"", theirs).split(b"\r\n"))
    assert VARYING.sub(b"", ours) == VARYING.sub(b"", theirs)


def test_one_connection_many_answers(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        answers = [client.post("/v1/embeddings", json={"input": f"text {number}"}) for number in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 20


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def cycle(**changes: Any) -> Any:
    async def make() -> Any:
        import logging

        from uvicorn.protocols.http.flow_control import FlowControl

        wire = Wire()
        about: dict[str, Any] = {
            "scope": {"type": "http", "method": "POST"},
            "transport": wire,
            "flow": FlowControl(wire),
            "logger": logging.getLogger("x"),
            "access_logger": logging.getLogger("x"),
            "access_log": False,
            "default_headers": [(b"date", b"today")],
            "message_event": asyncio.Event(),
            "expect_100_continue": False,
            "keep_alive": True,
            "on_response": lambda: None,
        }
        return protocols.RequestResponseCycle(**about | changes)

    return asyncio.run(make())


def test_what_is_not_for_one_go_is_left_to_uvicorn() -> None:
    good = Response(b"{}", media_type="application/json")
    one = cycle()
    assert write_whole(one.send, good)
    assert one.transport.written == [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
    ]
    assert not write_whole(one.send, good)  # an answer is written once
    assert not write_whole(cycle(access_log=True).send, good)
    assert not write_whole(cycle(scope={"type": "http", "method": "HEAD"}).send, good)
    assert not write_whole(cycle().send, Response(status_code=204))
    assert not write_whole(cycle().send, Response(b"x" * 100_000))

    async def not_uvicorns(message: Any) -> None:
        raise AssertionError(message)

    assert not write_whole(not_uvicorns, good)
    paused, left = cycle(), cycle()
    paused.flow.write_paused = True
    left.disconnected = True
    assert not write_whole(paused.send, good)
    assert not write_whole(left.send, good)
    assert paused.transport.written == left.transport.written == []


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\rb"])
def test_a_line_too_many_is_not_written(value: str) -> None:
    one = cycle()
    assert not write_whole(one.send, Response(b"{}", headers={"x-a": value}))
    assert one.transport.written == []
    assert not one.response_started


def test_headers_that_come_in_parts_are_waited_for(url: str) -> None:
    place = urlsplit(url)
    sent = CASES["an answer"]
    with socket.create_connection((place.hostname, place.port)) as link:
        link.settimeout(10)
        for at in range(0, len(sent), 40):
            link.sendall(sent[at : at + 40])
            time.sleep(0.01)
        assert link.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        link.sendall(sent)
        assert link.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
