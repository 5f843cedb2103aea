"""A running server with the tiny models, for clients that need a socket, and an in-process one for the rest."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.run import uvicorn_config
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker


@contextmanager
def serving(server: Server, app: FastAPI | None = None) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1 in a thread; gives the URL."""
    listener = socket.socket(
        socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # named, so that TCP_NODELAY is set
    listener.bind(("127.0.0.1", 0))
    process = uvicorn.Server(uvicorn_config(app or create_app(server), server))
    thread = threading.Thread(target=lambda: asyncio.run(process.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not process.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        process.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(embedder: Embedder, reranker: Reranker) -> Server:
    return Server({"tiny-embedding": embedder}, {"tiny-reranker": reranker}, ServerSettings(max_items=64))


@pytest.fixture(scope="session")
def url(server: Server) -> Iterator[str]:
    with serving(server) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client
