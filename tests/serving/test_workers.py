"""Worker processes: the offline vectors, ``kill -9`` under load, start-up errors, and what the framing carries."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.serving import framing
from qwen3_embedding.serving.errors import UnavailableError
from qwen3_embedding.serving.models import LoadSettings, find_models
from qwen3_embedding.serving.processes import WorkerPool, worker_devices
from qwen3_embedding.serving.queue import QueueSettings, TokenQueue
from qwen3_embedding.serving.server import Server
from qwen3_embedding.serving.settings import ServerSettings
from qwen3_embedding.serving.worker import is_broken
from qwen3_embedding.types import FloatArray
from tests.serving.conftest import serving
from tests.serving.test_faults import until

if TYPE_CHECKING:
    from qwen3_embedding import Embedder, Reranker

PATIENCE_S = 240
"""For a process to load torch and models, however busy the machine is."""
TEXTS = ["one text", "another, longer text", "größer 漢字 🦊"]


@pytest.fixture(scope="module")
def pooled(embedder_folder: Path, reranker_folder: Path) -> Iterator[tuple[str, Server, WorkerPool]]:
    specs = find_models([f"e={embedder_folder}"], [f"r={reranker_folder}"], [])
    pool = WorkerPool(specs, LoadSettings(device="cpu"), ["cpu", "cpu"])
    server = Server.over(pool, specs, ServerSettings(queue=QueueSettings(batch_seconds=0.02)))
    with serving(server) as url:
        yield url, server, pool
    assert all(not process.alive for process in pool.processes)


def test_both_kinds_give_the_offline_numbers(
    pooled: tuple[str, Server, WorkerPool], embedder: Embedder, reranker: Reranker
) -> None:
    url, server, _ = pooled
    with httpx.Client(base_url=url, timeout=60) as client:
        vectors = client.post("/embed", json={"inputs": TEXTS}).json()
        np.testing.assert_allclose(vectors, embedder.embed_documents(TEXTS), atol=2e-5)
        ranked = client.post("/rerank", json={"query": "q", "texts": TEXTS}).json()
        scores = [item["score"] for item in sorted(ranked, key=lambda item: int(item["index"]))]
        np.testing.assert_allclose(scores, reranker.score("q", TEXTS), atol=2e-5)
        every = client.post("/embed_all", json={"inputs": TEXTS}).json()
        lengths = [len(ids) for ids in embedder.tokenizer.encode_documents(TEXTS).ids]
        assert [len(states) for states in every] == lengths
        last = np.asarray([states[-1] for states in every])
        np.testing.assert_allclose(last / np.linalg.norm(last, axis=1, keepdims=True), vectors, atol=2e-5)
        info = client.get("/info").json()
        assert (info["embedders"][0]["workers"], info["embedders"][0]["workers_alive"]) == (2, 2)
        assert info["embedders"][0]["dimensions"] == embedder.dimensions
    assert server.services[0].max_tokens == embedder.max_tokens


def test_kill_9_under_load_costs_a_503_and_nothing_else(
    pooled: tuple[str, Server, WorkerPool], embedder: Embedder
) -> None:
    url, server, pool = pooled
    asked: dict[int, str] = {number: f"text {number} " * 10 for number in range(60)}
    answers: dict[int, httpx.Response] = {}
    stop = threading.Event()

    def ask(lane: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for number in range(lane, len(asked), 4):
                answers[number] = client.post("/v1/embeddings", json={"input": asked[number]})

    def busy(number: int) -> None:
        """A batch under way on the first worker when it dies."""
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                client.post("/v1/embeddings", json={"input": [f"{number} {i} " * 100 for i in range(4)]})

    threads = [threading.Thread(target=ask, args=(lane,)) for lane in range(4)]
    load = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in (*threads, *load):
        thread.start()
    until(lambda: len(answers) > 15, 60)
    first = pool.processes[0]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    stop.set()
    for thread in load:
        thread.join(60)
    statuses = [answers[number].status_code for number in asked]
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= 8  # a batch or two of the killed worker, never the rest
    for answer in answers.values():
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "server_error"
    numbers = [number for number in asked if statuses[number] == 200]
    got = [answers[number].json()["data"][0]["embedding"] for number in numbers]
    np.testing.assert_allclose(got, embedder.embed_documents([asked[number] for number in numbers]), atol=2e-5)
    until(lambda: first.alive and first.restarts == 1, PATIENCE_S)
    until(lambda: server.health().ready)
    metrics = httpx.get(f"{url}/metrics").text
    assert 'qwen3_worker_restarts_total{model="e"} 1.0' in metrics
    assert 'qwen3_workers_alive{model="r"} 2.0' in metrics


def test_a_worker_that_dies_idle_costs_nobody_anything(pooled: tuple[str, Server, WorkerPool]) -> None:
    url, _, pool = pooled
    until(lambda: all(process.alive for process in pool.processes), PATIENCE_S)
    for process in pool.processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(process.alive for process in pool.processes))
    assert httpx.get(f"{url}/health").status_code == 503
    assert httpx.get(f"{url}/health/live").status_code == 200
    # It waits for the new worker instead of failing with the old one.
    assert httpx.post(f"{url}/embed", json={"inputs": "x"}, timeout=PATIENCE_S).status_code == 200
    until(lambda: httpx.get(f"{url}/health").status_code == 200, PATIENCE_S)


def test_a_model_that_cannot_be_loaded_is_told_at_once(embedder_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in embedder_folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="no weights"):
        WorkerPool(find_models([str(broken)], [], []), LoadSettings(device="cpu"), ["cpu"])


class Unstartable:
    """A worker that was lost and cannot be started again."""

    alive = False
    restarts = 0

    def prepare(self) -> None:
        raise OSError("no memory")

    def __call__(self, sequences: list[list[int]]) -> FloatArray:
        raise AssertionError("never asked")


def test_without_any_startable_worker_nobody_is_kept_waiting() -> None:
    queue = TokenQueue([Unstartable()], name="m")
    waiting = queue.submit([[1]])
    with pytest.raises(UnavailableError, match="no memory"):
        waiting.result(10)
    with pytest.raises(UnavailableError, match="no worker of m") as caught:
        queue.submit([[2]])
    assert caught.value.retry_after_s
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 1


def test_what_waits_is_shared_out_between_idle_workers() -> None:
    gate, sizes = threading.Event(), []

    def work(sequences: list[list[int]]) -> FloatArray:
        sizes.append(len(sequences))
        assert gate.wait(10)
        return np.zeros(len(sequences), dtype=np.float32)

    queue = TokenQueue([work, work], QueueSettings(batch_seconds=None))
    ticket = queue.submit([[number] * 64 for number in range(1, 41)])
    until(lambda: len(sizes) == 2)
    gate.set()
    ticket.result(10)
    assert sizes == [20, 20]
    queue.close()


def test_frames_carry_what_was_put_in() -> None:
    here, there = socket.socketpair()
    with here, there:
        framing.send_request(here, framing.ROWS, [[1, 2, 3], [151643]])
        assert framing.receive_request(there) == (framing.ROWS, [[1, 2, 3], [151643]])
        for rows in (np.arange(6, dtype=np.float32).reshape(2, 3), np.asarray([1.5], dtype=np.float32)):
            framing.send_rows(there, rows)
            np.testing.assert_array_equal(framing.receive_rows(here), rows)
        framing.send_error(there, RuntimeError("out of memory"))
        with pytest.raises(framing.FailedThereError, match="RuntimeError: out of memory"):
            framing.receive_rows(here)
        there.close()
        with pytest.raises(EOFError):
            framing.receive_rows(here)


def test_errors_that_break_the_device_are_told_from_others() -> None:
    assert is_broken(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_broken(RuntimeError("CUDA error: out of memory"))
    assert not is_broken(ValueError("sequence 0 is empty"))


@pytest.mark.parametrize(
    ("device", "workers", "cuda", "wanted"),
    [
        ("auto", None, 0, ["auto"]),
        ("cpu", 3, 4, ["cpu", "cpu", "cpu"]),
        ("auto", None, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", None, 2, ["cuda:1"]),
    ],
)
def test_one_worker_a_gpu(device: str, workers: int | None, cuda: int, wanted: list[str]) -> None:
    assert worker_devices(device, workers, cuda) == wanted
