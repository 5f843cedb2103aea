"""What the world does to a server: clients that vanish or dawdle, floods, a worker that dies, SIGTERM under load."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from qwen3_embedding.serving.queue import QueueSettings, WorkerDiedError
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.types import FloatArray
from tests.serving.conftest import serving

if TYPE_CHECKING:
    from qwen3_embedding import Embedder


class Gate:
    """Between a queue and its model: holds batches, or raises what it is told to."""

    def __init__(self, server: Server) -> None:
        self.queue = server.embedders["tiny"].queue
        self.compute = self.queue._workers[0].compute
        self.queue._workers[0].compute = self
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.raises: list[BaseException] = []
        self.computed: list[int] = []

    def __call__(self, sequences: list[list[int]]) -> FloatArray:
        self.entered.set()
        assert self.open.wait(20)
        if self.raises:
            raise self.raises.pop()
        self.computed.append(len(sequences))
        return self.compute(sequences)


@contextmanager
def gated(embedder: Embedder, **options: Any) -> Iterator[tuple[str, Server, Gate]]:
    queue = options.pop("queue", QueueSettings())
    server = Server({"tiny": embedder}, None, ServerSettings(queue=queue, **options))
    gate = Gate(server)
    with serving(server) as url:
        try:
            yield url, server, gate
        finally:
            gate.open.set()


def until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def test_a_client_that_vanishes_leaves_the_queue(embedder: Embedder) -> None:
    with gated(embedder) as (url, _, gate):
        gate.open.clear()
        with httpx.Client(base_url=url) as client:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/embed", json={"inputs": "first"}, timeout=0.3)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/embed", json={"inputs": ["a", "b", "c"]}, timeout=0.3)
        until(lambda: gate.queue.stats().waiting_sequences == 0)
        gate.open.set()
        assert httpx.post(f"{url}/embed", json={"inputs": "after"}).status_code == 200
        assert gate.computed == [1, 1]  # the first was running already; the other three were never computed


def test_a_body_that_dawdles_is_refused(embedder: Embedder) -> None:
    with gated(embedder, body_timeout_s=0.3) as (url, _, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(b'POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{"inp')
            assert b" 408 " in slow.recv(4096)
        assert httpx.post(f"{url}/embed", json={"inputs": "x"}).status_code == 200


def test_headers_that_dawdle_are_not_waited_for(embedder: Embedder) -> None:
    with gated(embedder, body_timeout_s=0.3) as (url, _, _):
        host, port = url.removeprefix("http://").split(":")
        for begun in (b"", b"POST /embed HT", b"POST /embed HTTP/1.1\r\nhost: x\r\nx-a: "):
            with socket.create_connection((host, int(port)), timeout=5) as slow:
                slow.sendall(begun)
                assert slow.recv(4096) == b""
        with httpx.Client(base_url=url) as client:  # one that is kept alive may rest between its requests
            assert client.post("/embed", json={"inputs": "x"}).status_code == 200
            time.sleep(0.5)
            assert client.post("/embed", json={"inputs": "y"}).status_code == 200


def test_a_client_that_leaves_while_it_sends(embedder: Embedder) -> None:
    with gated(embedder) as (url, server, _):
        host, port = url.removeprefix("http://").split(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=5) as gone:
                gone.sendall(b'POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{"inp')
        until(lambda: server.metrics.requests.labels("/embed", "499")._value.get() == 5)
        assert httpx.post(f"{url}/embed", json={"inputs": "x"}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_giant_body_is_refused_before_it_is_read(embedder: Embedder, chunked: bool) -> None:
    with gated(embedder, max_body_bytes=100_000) as (url, _, _):

        def giant() -> Iterator[bytes]:
            for _ in range(1600):
                yield b" " * 65536

        content: Any = giant() if chunked else b" " * 100_000_000
        try:
            answer = httpx.post(f"{url}/v1/embeddings", content=content, timeout=20)
        except (httpx.WriteError, httpx.ReadError):
            pass  # the server answered and closed while the client was still sending
        else:
            assert answer.status_code == 413
            assert "100000" in answer.json()["error"]["message"]
        assert httpx.post(f"{url}/embed", json={"inputs": "x"}).status_code == 200


def test_overload_is_refused_with_retry_after_and_recovers_at_once(embedder: Embedder) -> None:
    bound = 150  # a tenth of what is asked for at once
    with gated(embedder, queue=QueueSettings(max_waiting_tokens=bound)) as (url, _, gate):
        gate.open.clear()
        peaks: list[int] = []

        async def flood() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=400)
            async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
                asks = [
                    asyncio.create_task(client.post("/v1/embeddings", json={"input": f"text {i} and more"}))
                    for i in range(300)
                ]
                while sum(ask.done() for ask in asks) < 200:
                    peaks.append(gate.queue.stats().waiting_tokens)
                    await asyncio.sleep(0.01)
                gate.open.set()
                return await asyncio.gather(*asks)

        answers = asyncio.run(flood())
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(429) >= 200
        assert max(peaks) <= bound
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
        assert httpx.post(f"{url}/embed", json={"inputs": "after"}).status_code == 200
        tei = httpx.post(f"{url}/embed", json={"inputs": ["word " * 300]})
        assert tei.status_code == 413  # more than the queue ever holds: no use to try again


@pytest.mark.parametrize("death", [SystemExit("killed"), WorkerDiedError("gone")])
def test_a_dead_worker_is_answered_with_503_and_replaced(embedder: Embedder, death: BaseException) -> None:
    with gated(embedder) as (url, _, gate):
        gate.raises.append(death)
        lost = httpx.post(f"{url}/v1/embeddings", json={"input": "x"})
        assert lost.status_code == 503
        assert lost.json()["error"]["type"] == "server_error"
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_failing_model_is_the_servers_fault_in_each_dialect(embedder: Embedder) -> None:
    with gated(embedder) as (url, _, gate):
        for path, body, status in (("/embed", {"inputs": "x"}, 424), ("/v1/embeddings", {"input": "x"}, 500)):
            gate.raises.append(RuntimeError("out of memory"))
            answer = httpx.post(url + path, json=body)
            assert answer.status_code == status
            assert "out of memory" in answer.text


def test_values_that_are_not_finite_are_never_sent(embedder: Embedder) -> None:
    with gated(embedder) as (url, _, gate):
        gate.compute = lambda sequences: np.full((len(sequences), 64), np.nan, dtype=np.float32)
        answer = httpx.post(f"{url}/embed", json={"inputs": "x"})
        assert answer.status_code == 424
        assert "not finite" in answer.json()["error"]


def test_shutting_down_under_load_answers_every_accepted_request(embedder: Embedder) -> None:
    answers: list[int] = []
    with gated(embedder) as (url, server, gate):
        gate.open.clear()

        def ask(number: int) -> None:
            answers.append(httpx.post(f"{url}/embed", json={"inputs": f"text {number}"}, timeout=30).status_code)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        until(lambda: server.metrics.in_flight == 40)
        server.draining = True
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.get(f"{url}/health/live").status_code == 200
        threading.Timer(0.3, gate.open.set).start()
    for thread in threads:
        thread.join(10)
    assert answers == [200] * 40


def test_liveness_fails_when_a_batch_never_ends(embedder: Embedder) -> None:
    with gated(embedder, stall_s=0.1) as (url, _, gate):
        assert httpx.get(f"{url}/health/live").status_code == 200
        gate.open.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/embed", json={"inputs": "x"}, timeout=0.4)
        answer = httpx.get(f"{url}/health/live")
        assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")


def test_a_request_that_takes_too_long_is_given_up(embedder: Embedder) -> None:
    with gated(embedder, request_timeout_s=0.2) as (url, _, gate):
        gate.open.clear()
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "x"})
        assert answer.status_code == 504


def test_logs_have_no_texts(embedder: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the secret of the text"
    with gated(embedder) as (url, _, gate), caplog.at_level(logging.DEBUG, "qwen3_embedding.serving"):
        httpx.post(f"{url}/v1/embeddings", json={"input": secret}, headers={"authorization": "Bearer not-for-logs"})
        httpx.post(f"{url}/v1/embeddings", json={"input": secret, "dimensions": 1, "model": "x"})
        gate.raises.append(RuntimeError("broken"))
        httpx.post(f"{url}/embed", json={"inputs": secret})
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "qwen3_embedding.serving"]
    assert [line["status"] for line in lines] == [200, 404, 424]
    assert lines[0]["tokens"] > 0
    assert {"request_id", "route", "caller", "total_ms", "queue_ms", "inference_ms"} <= set(lines[0])
    assert "secret" not in caplog.text
    assert "not-for-logs" not in caplog.text
