"""The client against the running server, and against servers that refuse, fail and dawdle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qwen3_embedding.errors import RemoteError
from qwen3_embedding.serving.client import Client, ClientSettings, RemoteEmbedder, RemoteReranker
from qwen3_embedding.types import Encoder, Scorer

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

TEXTS = [f"text {i} {'word ' * (i % 7)}" for i in range(100)] + ["text 0 "] * 20
SMALL = ClientSettings(batch_texts=7, batch_characters=120, concurrency=4)
CLOSE = 2e-5


def test_a_remote_embedder_is_the_embedder(url: str, embedder: Embedder) -> None:
    seen: list[tuple[int, int]] = []
    with RemoteEmbedder(url, "tiny-embedding", settings=SMALL) as remote:
        assert isinstance(remote, Encoder)
        assert (remote.name, remote.dimensions) == ("tiny-embedding", 64)
        np.testing.assert_allclose(remote.embed_documents(TEXTS), embedder.embed_documents(TEXTS), atol=CLOSE)
        np.testing.assert_allclose(remote.embed_queries(TEXTS), embedder.embed_queries(TEXTS), atol=CLOSE)
        wanted = embedder.embed_queries(TEXTS, "Find it", dimensions=32)
        np.testing.assert_allclose(remote.embed_queries(TEXTS, "Find it", dimensions=32), wanted, atol=CLOSE)
        bare = embedder.embed_queries(TEXTS[:3], "")
        np.testing.assert_allclose(remote.embed_queries(TEXTS[:3], ""), bare, atol=CLOSE)
        assert remote.embed_documents(TEXTS[:2], precision="ubinary").shape == (2, 8)
        assert remote.embed_documents([]).shape == (0, 64)

    async def with_progress() -> None:
        async with Client(url, settings=SMALL) as client:
            await client.embed_documents(TEXTS, progress=lambda done, total: seen.append((done, total)))

    asyncio.run(with_progress())
    assert seen[-1] == (120, 120)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_remote_reranker_is_the_reranker(url: str, reranker: Reranker) -> None:
    with RemoteReranker(url, "tiny-reranker", settings=SMALL) as remote:
        assert isinstance(remote, Scorer)
        np.testing.assert_allclose(remote.score("q", TEXTS, "t"), reranker.score("q", TEXTS, "t"), atol=CLOSE)
        queries = [f"query {i % 3}" for i in range(len(TEXTS))]
        wanted = reranker.score_pairs(queries, TEXTS)
        np.testing.assert_allclose(remote.score_pairs(queries, TEXTS), wanted, atol=CLOSE)
        with pytest.raises(ValueError, match="pairs"):
            remote.score_pairs(["a"], [])


def test_what_the_server_refuses_is_told(url: str) -> None:
    with RemoteEmbedder(url, "other-model") as remote, pytest.raises(RemoteError, match="404"):
        remote.embed_documents(["x"])
    with RemoteEmbedder(url) as remote:
        with pytest.raises(TypeError, match="wanted a list"):
            remote.embed_documents("x")
        with pytest.raises(RemoteError, match="use 32 to 64"):
            remote.embed_documents(["x"], dimensions=5000)


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def scripted(answer: Callable[[int], Answer | None]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives ``answer(number)`` to each request; ``None`` closes the connection."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            times.append(time.monotonic())
            self.rfile.read(int(self.headers["content-length"]))
            given = answer(len(times) - 1)
            if given is None:
                self.close_connection = True
                return
            status, headers, body = given
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", times
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD: Answer = (200, {}, b'{"results": [{"index": 1, "relevance_score": 0.25}, {"index": 0, "relevance_score": 0.75}]}')


def test_retries_wait_as_long_as_they_are_asked_to() -> None:
    def answer(number: int) -> Answer | None:
        return [(429, {"retry-after": "1"}, b"full"), None, (503, {}, b"restarting"), GOOD][number]

    with scripted(answer) as (url, times), RemoteReranker(url) as remote:
        assert remote.score("q", ["a", "b"]).tolist() == [0.75, 0.25]
    assert len(times) == 4
    assert times[1] - times[0] >= 0.99


@pytest.mark.parametrize(
    ("given", "tries", "word"),
    [
        ((400, {}, b"no such field"), 1, "no such field"),
        ((500, {}, b"broken"), 3, "broken"),
        ((429, {"retry-after": "9999"}, b"come back tomorrow"), 1, "asks to wait 9999 s"),
        ((200, {}, b'{"results": []}'), 1, "usable rows"),
    ],
)
def test_giving_up(given: Answer, tries: int, word: str) -> None:
    settings = ClientSettings(retries=2)
    with scripted(lambda number: given) as (url, times):
        with RemoteReranker(url, settings=settings) as remote, pytest.raises(RemoteError, match=word):
            remote.score("q", ["a", "b"])
        assert len(times) == tries


def test_a_server_that_is_not_there() -> None:
    settings = ClientSettings(retries=1)
    with RemoteReranker("http://127.0.0.1:9", settings=settings) as remote, pytest.raises(RemoteError, match="Connect"):
        remote.score("q", ["a"])
