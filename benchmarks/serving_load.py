"""The server at saturation against the offline embedder, short queries under bulk, and memory over a long run.

    python -m benchmarks.serving_load --shape nano                     # the bundled embedder
    python -m benchmarks.serving_load --shape 0.6B --layers 4          # random weights of the published width
    python -m benchmarks.serving_load --shape nano --minutes 30 --only soak

The same texts, in turns: the offline ``Embedder``, requests of 32 texts, and 256 callers of one text each. Server,
client and offline embedder share the machine; the client is a bare HTTP/1.1 loop, and the processor seconds of every
part are told beside the wall clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import machine, save, shape, write_embedder
from qwen3_embedding import Embedder
from qwen3_embedding.inference.source import resolve

WORDS = ("alpha", "beta", "gamma", "delta", "river", "mountain", "coffee", "engine", "market", "theory", "winter")
WAYS = {"32 texts a request, 4 at once": (32, 4), "1 text a request, 256 at once": (1, 256)}
TICKS = os.sysconf("SC_CLK_TCK")


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Lengths as of mixed traffic: lognormal, 3 to 200 words."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(3.2, 0.7, count), 3, 200).astype(int)
    return [" ".join(generator.choice(WORDS, size=n)) + f" {seed} {i}" for i, n in enumerate(lengths)]


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time; knows no more of HTTP than this server's answers need."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0 or self._answer is None:
            return
        top = bytes(self._buffer[:head]).lower()
        at = top.index(b"content-length:") + 15
        length = int(top[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < head + 4 + length:
            return
        body = bytes(self._buffer[head + 4 : head + 4 + length])
        del self._buffer[: head + 4 + length]
        answer, self._answer = self._answer, None
        if top.split(b" ", 2)[1] == b"200":
            answer.set_result(body)
        else:
            answer.set_exception(RuntimeError(f"{top[:30]!r}: {body[:200]!r}"))

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The answer's body; anything but 200 is an error."""
        content = json.dumps(body).encode()
        self._answer = asyncio.get_running_loop().create_future()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
        self._transport.write(head.encode() + content)
        return await self._answer


async def connect(port: int) -> Connection:
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


async def saturate(port: int, texts: list[str], per_request: int, callers: int) -> tuple[float, list[float]]:
    """Seconds for all texts, and of each request; every caller sends its next request when it has its answer."""
    requests = iter([texts[i : i + per_request] for i in range(0, len(texts), per_request)])
    latencies: list[float] = []
    connections = [await connect(port) for _ in range(callers)]

    async def call(connection: Connection) -> None:
        for batch in requests:
            began = time.perf_counter()
            await connection.post("/v1/embeddings", {"input": batch, "encoding_format": "base64"})
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(call, connections))
    return time.perf_counter() - began, latencies


async def queries(connection: Connection, count: int, tag: str) -> list[float]:
    """Latencies of short queries, one after the other."""
    latencies = []
    for number in range(count):
        began = time.perf_counter()
        await connection.post("/v1/embeddings", {"input": f"{tag} query {number}"})
        latencies.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return latencies


@contextmanager
def bulk_load(port: int, texts: list[str], callers: int) -> Iterator[None]:
    """Callers that ask for all texts at once, again and again, in a process of their own.

    In the process that asks short queries, taking in their megabytes would be measured as the server's time.
    """
    method = multiprocessing.get_context("spawn")
    stop = method.Event()
    process = method.Process(target=_bulk, args=(port, texts, callers, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(120)


def _bulk(port: int, texts: list[str], callers: int, stop: Any) -> None:
    async def call(lane: int) -> None:
        connection, turn = await connect(port), 0
        while not stop.is_set():
            turn += 1
            await connection.post("/v1/embeddings", {"input": [f"{lane} {turn} {text}" for text in texts]})

    async def all_of_them() -> None:
        await asyncio.gather(*map(call, range(callers)))

    asyncio.run(all_of_them())


async def lanes(server: Running, texts: list[str], count: int) -> dict[str, Any]:
    """Short queries alone, then while bulk requests keep the server busy."""
    asker = await connect(server.port)
    await queries(asker, 10, "warm")
    alone = await queries(asker, count, "alone")
    with bulk_load(server.port, texts, 2):
        await asyncio.sleep(3)  # the process starts, and the first requests are under way
        before, began = server.batches(), time.perf_counter()
        under = await queries(asker, count, "under")
        after, took = server.batches(), time.perf_counter() - began
    batch_ms = 1000 * (after[0] - before[0]) / max(after[1] - before[1], 1)
    result: dict[str, Any] = {"alone": percentiles(alone), "under_bulk": percentiles(under)}
    result |= {"mean_batch_ms": round(batch_ms, 1), "tokens_per_second": round((after[2] - before[2]) / took)}
    bound = 3 * result["alone"]["p99_ms"] + batch_ms
    return result | {"bound_ms": round(bound, 1), "within_bound": result["under_bulk"]["p99_ms"] <= bound}


async def soak(server: Running, texts: list[str], minutes: float) -> dict[str, Any]:
    """Mixed load for so long; resident memory of server and workers, sampled through the run."""
    end = time.monotonic() + 60 * minutes
    samples: list[tuple[float, int]] = []
    served = 0

    async def singles(number: int) -> None:
        nonlocal served
        connection, turn = await connect(server.port), 0
        while time.monotonic() < end:
            turn += 1
            await connection.post("/v1/embeddings", {"input": f"{number} {turn} {texts[turn % len(texts)]}"})
            served += 1

    async def bulk() -> None:
        nonlocal served
        connection, turn = await connect(server.port), 0
        while time.monotonic() < end:
            turn += 1
            batch = [f"{turn} {text}" for text in texts[:64]]
            await connection.post("/embed", {"inputs": batch})
            served += len(batch)
            again = await connect(server.port)  # connections come and go as well
            again._transport.close()

    async def watch() -> None:
        began = time.monotonic()
        while time.monotonic() < end:
            await asyncio.sleep(max(1.0, 60 * minutes / 200))
            samples.append((time.monotonic() - began, server.resident()))

    await asyncio.gather(watch(), bulk(), *(singles(number) for number in range(16)))
    settled = samples[len(samples) // 5 :]  # the first fifth warms allocators up
    tenth = max(1, len(settled) // 10)
    first = statistics.median(size for _, size in settled[:tenth])
    last = statistics.median(size for _, size in settled[-tenth:])
    return {
        "minutes": minutes,
        "texts": served,
        "first_mib": round(first / 2**20, 1),
        "last_mib": round(last / 2**20, 1),
        "growth_percent": round(100 * (last / first - 1), 2),
        "samples_mib": [round(size / 2**20, 1) for _, size in samples[:: max(1, len(samples) // 40)]],
    }


class Running:
    """The server's process, its workers, and what they use."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def cpu(self) -> tuple[float, float]:
        """Processor seconds so far: of the server, and of its workers."""
        used = []
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used.append((int(fields[11]) + int(fields[12])) / TICKS)
        return used[0], sum(used[1:])

    def resident(self) -> int:
        """Bytes of memory, together."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids()]
        return sum(pages) * resource.getpagesize()

    def batches(self) -> tuple[float, float, float]:
        """Seconds in batches, how many, and tokens computed, from the metrics page."""
        import httpx

        found = {"qwen3_batch_duration_sum": 0.0, "qwen3_batch_duration_count": 0.0, "qwen3_computed_tokens_total": 0.0}
        for line in httpx.get(f"http://127.0.0.1:{self.port}/metrics").text.splitlines():
            name = line.partition("{")[0]
            if name in found:
                found[name] += float(line.split()[-1])
        seconds, count, tokens = found.values()
        return seconds, count, tokens


@contextmanager
def running(folder: Path, *options: str) -> Any:
    """The server as a user starts it, on a free port."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "qwen3_embedding", "serve", "--embedder", f"bench={folder}", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "warning", *options])
    try:
        for _ in range(3000):
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield Running(process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p95, p99 = np.percentile(np.asarray(seconds) * 1000, [50, 95, 99]).tolist()
    return {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "p99_ms": round(p99, 1)}


def measured(run: Callable[[], Any], server: Running) -> tuple[Any, dict[str, float]]:
    """What ``run`` gives, with the processor seconds of client, server and workers meanwhile."""
    client, (serving, working) = time.process_time(), server.cpu()
    result = run()
    after = server.cpu()
    return result, {"client": time.process_time() - client, "server": after[0] - serving, "workers": after[1] - working}


def saturation(server: Running, embedder: Embedder, texts: list[str], rounds: int) -> dict[str, Any]:
    """Offline and the ways of asking, in turns."""
    tokens = sum(map(len, embedder.tokenizer.encode_documents(texts).ids))
    embedder.embed_documents(texts[: len(texts) // 4])
    asyncio.run(saturate(server.port, texts[: len(texts) // 4], 32, 4))
    speeds: dict[str, list[float]] = {name: [] for name in ("offline", *WAYS)}
    cpu: dict[str, list[dict[str, float]]] = {name: [] for name in speeds}
    latencies: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        embedder.embed_documents(texts)
        speeds["offline"].append(tokens / (time.perf_counter() - began))
        cpu["offline"].append({"offline": time.process_time() - used})
        for name, way in WAYS.items():
            (seconds, took), parts = measured(lambda way=way: asyncio.run(saturate(server.port, texts, *way)), server)
            speeds[name].append(tokens / seconds)
            cpu[name].append(parts)
            latencies[name] += took
    median = {name: statistics.median(values) for name, values in speeds.items()}
    seconds = {name: {part: round(statistics.median(run[part] for run in runs), 3) for part in runs[0]}
               for name, runs in cpu.items()}  # fmt: skip
    offline = seconds["offline"]["offline"]
    return {
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_second": {name: round(value, 1) for name, value in median.items()},
        "share_of_offline": {name: round(median[name] / median["offline"], 3) for name in WAYS},
        "share_of_offline_each_round": {
            name: [round(a / b, 3) for a, b in zip(speeds[name], speeds["offline"], strict=True)] for name in WAYS
        },
        "cpu_seconds": seconds,
        "share_by_cpu_without_client": {
            name: round(offline / (seconds[name]["server"] + seconds[name]["workers"]), 3) for name in WAYS
        },
        "server_cpu_ms_per_request": {
            name: round(1000 * seconds[name]["server"] / -(-len(texts) // WAYS[name][0]), 3) for name in WAYS
        },
        "request_latency": {name: percentiles(values) for name, values in latencies.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="nano", help="nano (bundled), 0.6B, 4B or 8B (random weights)")
    parser.add_argument("--layers", type=int, help="fewer layers of a published shape")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200, help="short queries, alone and under bulk")
    parser.add_argument("--minutes", type=float, default=0.0, help="of mixed load for the growth of memory; 0: none")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=("saturation", "lanes", "soak"))
    options = parser.parse_args()
    texts = make_texts(options.texts)
    result: dict[str, Any] = {"shape": options.shape, "layers": options.layers, "workers": options.workers}
    with tempfile.TemporaryDirectory() as temporary:
        folder = resolve("nano-embedding") if options.shape == "nano" else Path(temporary)
        if options.shape != "nano":
            write_embedder(folder, shape(options.shape, options.layers))
        with running(folder, "--workers", str(options.workers)) as server:
            if options.only in (None, "saturation"):
                result["saturation"] = saturation(server, Embedder.from_pretrained(folder), texts, options.rounds)
            if options.only in (None, "lanes"):
                result["short_queries"] = asyncio.run(lanes(server, texts[:200], options.queries))
            if options.minutes and options.only in (None, "soak"):
                result["soak"] = asyncio.run(soak(server, texts, options.minutes))
    result = {"command": " ".join(sys.argv[1:]), "machine": machine(), "load": os.getloadavg(), **result}
    report(result)
    print(f"written to {save(f'serving-load-{options.shape}', result)}", file=sys.stderr)
    print(json.dumps(result))


def report(result: dict[str, Any]) -> None:
    """The table, on stderr."""
    show = lambda text: print(text, file=sys.stderr)  # noqa: E731
    if "saturation" in result:
        found = result["saturation"]
        show(f"{'':34}{'tokens/s':>10}{'of offline':>12}{'by CPU':>8}{'server ms/request':>19}")
        for name, value in found["tokens_per_second"].items():
            share, cpu, each = (found[key].get(name, "") for key in (
                "share_of_offline", "share_by_cpu_without_client", "server_cpu_ms_per_request"))  # fmt: skip
            show(f"{name:34}{value:>10.0f}{share:>12}{cpu:>8}{each:>19}")
    if "short_queries" in result:
        found = result["short_queries"]
        show(f"short query p99: {found['alone']['p99_ms']} ms alone, {found['under_bulk']['p99_ms']} ms under bulk "
             f"(bound {found['bound_ms']} ms)")  # fmt: skip
    if "soak" in result:
        found = result["soak"]
        show(f"memory over {found['minutes']} minutes: {found['first_mib']} to {found['last_mib']} MiB, "
             f"{found['growth_percent']}%")  # fmt: skip


if __name__ == "__main__":
    main()
