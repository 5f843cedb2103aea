"""The server at saturation against the offline embedder, and short queries under bulk; same texts, same machine.

    python benchmarks/serving_load.py MODEL [--texts 400] [--rounds 3] > benchmarks/results/DATE-serving-load.json

Server, client and offline embedder share the machine's cores, so the client's own work counts against the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx
import numpy as np

from qwen3_embedding import Embedder

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "river",
    "mountain",
    "coffee",
    "engine",
    "market",
    "theory",
    "winter",
    "garden",
]


def make_texts(count: int) -> list[str]:
    """Lengths as of mixed traffic: lognormal, 3 to 200 words."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3.2, 0.7, count), 3, 200).astype(int)
    return [" ".join(generator.choice(WORDS, size=n)) + f" {i}" for i, n in enumerate(lengths)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p95, p99 = np.percentile(np.asarray(seconds) * 1000, [50, 95, 99])
    return {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "p99_ms": round(p99, 1)}


async def saturate(url: str, texts: list[str], per_request: int, concurrency: int) -> tuple[float, list[float]]:
    """Seconds for all texts, and of each request."""
    gate, latencies = asyncio.Semaphore(concurrency), []
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask(batch: list[str]) -> None:
            async with gate:
                began = time.perf_counter()
                answer = await client.post("/v1/embeddings", json={"input": batch, "encoding_format": "base64"})
                answer.raise_for_status()
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(ask(texts[i : i + per_request]) for i in range(0, len(texts), per_request)))
        return time.perf_counter() - began, latencies


async def queries(client: httpx.AsyncClient, count: int, tag: str) -> list[float]:
    """Latencies of short queries, one after the other."""
    latencies = []
    for number in range(count):
        began = time.perf_counter()
        (await client.post("/v1/embeddings", json={"input": f"{tag} query {number}"})).raise_for_status()
        latencies.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return latencies


async def lanes(url: str, texts: list[str]) -> dict[str, Any]:
    """Short queries alone, then while bulk requests keep the server busy."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        alone = await queries(client, 60, "alone")
        stop = asyncio.Event()

        async def bulk(lane: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                body = {"input": [f"{lane} {turn} {text}" for text in texts]}
                (await client.post("/v1/embeddings", json=body)).raise_for_status()

        load = [asyncio.create_task(bulk(lane)) for lane in range(2)]
        await asyncio.sleep(0.5)
        under = await queries(client, 60, "under")
        stop.set()
        await asyncio.gather(*load)
        batches = [line for line in (await client.get("/metrics")).text.splitlines() if "qwen3_batch_duration_" in line]
        total = sum(float(line.split()[-1]) for line in batches if "_sum" in line)
        count = sum(float(line.split()[-1]) for line in batches if "_count" in line)
    mean_batch = round(1000 * total / max(count, 1), 1)
    return {"alone": percentiles(alone), "under_bulk": percentiles(under), "mean_batch_ms": mean_batch}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server was not up within two minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = make_texts(options.texts)
    embedder = Embedder.from_pretrained(options.model)
    tokens = sum(map(len, embedder.tokenizer.encode_documents(texts).ids))
    embedder.embed_documents(texts[:50])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "qwen3_embedding", "serve", "--embedder", options.model, "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        wait_for(url, process)
        asyncio.run(saturate(url, texts, 32, 4))
        cases = {"32 texts a request, 4 at once": (32, 4), "1 text a request, 256 at once": (1, 256)}
        speeds: dict[str, list[float]] = {name: [] for name in ("offline", *cases)}
        latencies: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            began = time.perf_counter()
            embedder.embed_documents(texts)
            speeds["offline"].append(tokens / (time.perf_counter() - began))
            for name, (per_request, concurrency) in cases.items():
                seconds, took = asyncio.run(saturate(url, texts, per_request, concurrency))
                speeds[name].append(tokens / seconds)
                latencies[name] += took
        short = asyncio.run(lanes(url, texts[:200]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    median = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    report = {
        "command": " ".join(sys.argv),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_second": median,
        "all_rounds": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "share_of_offline": {name: round(median[name] / median["offline"], 3) for name in cases},
        "request_latency": {name: percentiles(values) for name, values in latencies.items()},
        "short_queries": short,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
