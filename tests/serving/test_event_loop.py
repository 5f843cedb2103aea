"""What keeps the event loop free: answers in turns, one wake-up for a batch, one look-out for clients that leave."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from qwen3_embedding.serving.answers import Encoding, json_rows
from qwen3_embedding.serving.auth import Caller
from qwen3_embedding.serving.errors import ComputeError
from qwen3_embedding.serving.metrics import _TOKENS, Metrics
from qwen3_embedding.serving.queue import QueueSettings, TokenQueue
from qwen3_embedding.serving.requests import Piecewise, json_response
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.services import Mailbox, Work
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.types import FloatArray

if TYPE_CHECKING:
    from qwen3_embedding import Embedder


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("count", [0, 1, 64, 65, 300])
def test_many_rows_are_written_as_few_are(encoding: Encoding, count: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    rows = asyncio.run(json_rows(vectors, encoding, lambda index, value: {"index": index, "embedding": value}))
    answer = json_response({"first": 1, "data": rows, "twice": [rows], "last": "\u00ff"})
    body = answer.body if count <= 64 else b"".join(cast(Piecewise, answer).pieces)
    assert answer.headers["content-length"] == str(len(body))
    whole = orjson.loads(body)
    data = whole["data"]
    assert (whole["first"], whole["twice"], whole["last"]) == (1, [data], "\u00ff")
    assert [row["index"] for row in data] == list(range(count))
    read = [
        np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") if encoding == "base64" else row["embedding"]
        for row in data
    ]
    np.testing.assert_array_equal(np.asarray(read, dtype=np.float32).reshape(count, 8), vectors)


def test_the_loop_turns_while_many_rows_are_written() -> None:
    async def turns() -> int:
        count, done = 0, False

        async def counting() -> None:
            nonlocal count
            while not done:
                count += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(counting())
        await json_rows(np.zeros((6400, 4), dtype=np.float32), "float")
        done = True
        await other
        return count

    assert asyncio.run(turns()) >= 99


def sums(sequences: list[list[int]]) -> FloatArray:
    if [13] in sequences:
        raise RuntimeError("thirteen")
    return np.asarray([[float(sum(ids))] for ids in sequences], dtype=np.float32)


def test_a_batch_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 tickets that finish together: every one gets its own row, and the loop is woken once, not 300 times."""
    gate = threading.Event()

    def compute(sequences: list[list[int]]) -> FloatArray:
        assert gate.wait(10)
        return sums(sequences)

    async def run(queue: TokenQueue) -> tuple[list[FloatArray], int]:
        loop = asyncio.get_running_loop()
        wakes = 0
        real = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return real(callback, *arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        tickets = [queue.submit([[number, 1000]]) for number in range(300)]
        waiting = [Mailbox.of_running_loop().delivered(ticket) for ticket in tickets]
        gate.set()
        for ticket in tickets:  # the loop stands still until all are done: how threads take turns changes nothing
            ticket.result(10)
        return list(await asyncio.gather(*waiting)), wakes

    queue = TokenQueue(compute, QueueSettings(batch_seconds=None))
    try:
        rows, wakes = asyncio.run(run(queue))
    finally:
        queue.close()
    assert [float(row[0, 0]) for row in rows] == [1000.0 + number for number in range(300)]
    assert 1 <= wakes <= 2  # twice where the last ticket's notice comes after its result


def test_errors_and_cancelled_tickets_come_through_the_mailbox() -> None:
    async def run(queue: TokenQueue) -> list[BaseException | FloatArray]:
        mailbox = Mailbox.of_running_loop()
        good, bad, gone = (queue.submit([[number]]) for number in (1, 13, 7))
        waiting = [mailbox.delivered(ticket) for ticket in (good, bad)]
        late = mailbox.delivered(gone)
        gone.cancel()
        return list(await asyncio.gather(*waiting, late, return_exceptions=True))

    queue = TokenQueue(sums)
    try:
        row, error, cancelled = asyncio.run(run(queue))
    finally:
        queue.close()
    assert isinstance(row, np.ndarray)
    assert float(row[0, 0]) == 1.0
    assert isinstance(error, ComputeError)
    assert isinstance(cancelled, asyncio.CancelledError | np.ndarray)


def test_a_mailbox_goes_with_its_loop() -> None:
    async def one() -> weakref.ref[Mailbox]:
        return weakref.ref(Mailbox.of_running_loop())

    left = asyncio.run(one())
    gc.collect()
    assert left() is None


def test_lengths_are_counted_as_the_library_counts_them() -> None:
    lengths = [1, 8, 9, 40, 4096, 70_000, 40]
    ours = Metrics()
    ours.inputs("m", "c", lengths[:3], 1)
    ours.inputs("m", "c", lengths[3:], 0)
    registry = CollectorRegistry()
    theirs = Histogram("te_request_input_length", "Tokens of an input.", registry=registry, buckets=_TOKENS)
    for length in lengths:
        theirs.observe(length)
    wanted = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    page = ours.render().decode().splitlines()
    assert [line for line in page if "te_request_input_length" in line and "_created" not in line] == wanted
    assert 'qwen3_tokens_total{caller="c",model="m"} 74194.0' in page
    assert 'qwen3_truncated_inputs_total{model="m"} 1.0' in page


def test_straight_routes_leave_the_rest_to_the_framework(http: httpx.Client) -> None:
    assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert http.get("/v1/embeddings").status_code == 405
    assert http.get("/v1/embeddings").headers["allow"] == "POST"
    assert http.post("/v1/embeddings/", json={"input": "a"}).status_code in (307, 404)
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/models/tiny-embedding").json()["id"] == "tiny-embedding"
    assert http.head("/health").status_code == http.request("OPTIONS", "/health").status_code == 405


def test_who_leaves_while_many_are_submitted_leaves_nothing_behind(embedder: Embedder) -> None:
    server = Server({"e": embedder}, settings=ServerSettings(tokenizer_threads=1))
    service = server.embedders["e"]

    async def leave() -> None:
        with service.queue._lock:  # so that submitting is under way and has to wait
            asking = asyncio.create_task(service._submit([[number, 1] for number in range(2, 102)], Work(Caller("c"))))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await asyncio.sleep(0.2)

    with server._computing:  # so that what is submitted stays in the queue
        blocker = service.queue.submit([[5, 5, 5]])
        while service.queue.stats().waiting_sequences:
            time.sleep(0.01)
        asyncio.run(leave())
        assert service.queue.stats().waiting_sequences == 0
    assert blocker.result(10).shape == (1, service.dimensions)
    server.close()
