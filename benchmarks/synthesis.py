"""Synthesis against a scripted server in another process: throughput, and kills beside faults.

    python -m benchmarks.synthesis [--units 10000] [--requests 8000] [--only throughput|faults] [--out FILE.json]

Throughput: answers after 50 ms (and after 400 ms), 64 units at a time; ideal is 64 / 0.05 = 1,280 requests a second
(160).  The ceiling of server and machine is measured beside it, by a client that only sends and receives as many bytes
as synthesis does.  Server and client want a free core each.
Faults: 20 % of the answers are bad in one of 14 ways, the process is killed with -9 three times.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwen3_embedding.synthesis.client import ChatClient, EndpointSettings
from qwen3_embedding.synthesis.document import Document
from qwen3_embedding.synthesis.generate import Generator, RunSettings
from qwen3_embedding.synthesis.ledger import Ledger, decode_line
from qwen3_embedding.synthesis.personas import PersonaIndex, bundled_personas
from qwen3_embedding.synthesis.tasks import Craft
from qwen3_embedding.synthesis.template import load_templates
from tests.synthesis.support import served, serving, write_documents
from tests.synthesis.test_kill import RECIPE, command, kill_after

DELAY, CONCURRENCY = 0.05, 64
RESULTS = Path(__file__).resolve().parent / "results"


def throughput(folder: Path, units: int, delay: float) -> dict[str, Any]:
    """Requests a second from documents to ledger."""
    (folder / "t.ledger").unlink(missing_ok=True)
    lines = write_documents(folder / "t.jsonl", units).read_text().splitlines()
    documents = [Document(row["id"], row["text"], "en") for row in map(json.loads, lines)]

    async def run(url: str) -> tuple[float, float, int]:
        async with ChatClient(EndpointSettings("scripted", url, concurrency=CONCURRENCY)) as client:
            with Ledger(folder / "t.ledger", {}) as ledger:
                personas = PersonaIndex(bundled_personas(), None)
                craft = Craft(templates=load_templates())
                generator = Generator(RunSettings("s"), craft, personas, client, ledger)
                start, cpu = time.perf_counter(), time.process_time()
                progress = await generator.run(documents, CONCURRENCY)
                return time.perf_counter() - start, time.process_time() - cpu, progress.requests

    with serving("--delay", str(delay)) as url:
        seconds, cpu, requests = asyncio.run(run(url))
        ceiling = asyncio.run(bare(url, requests))
    ideal = CONCURRENCY / delay
    return {
        "requests": requests,
        "seconds": round(seconds, 2),
        "requests_per_second": round(requests / seconds, 1),
        "share_of_ideal": round(requests / seconds / ideal, 3),
        "ideal_requests_per_second": ideal,
        "client_cpu_ms_per_request": round(1000 * cpu / requests, 3),
        "bare_socket_client_requests_per_second": round(ceiling, 1),
        "share_of_bare_socket_client": round(requests / seconds / ceiling, 3),
    }


async def bare(url: str, count: int) -> float:
    """Requests a second of a client that only moves bytes: what server and machine allow."""
    host, port = url.split("/")[2].split(":")
    body = json.dumps({"messages": [{"content": "x" * 3000}], "response_format": {"type": "none"}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nX-Request-Id: %d\r\nContent-Length: {len(body)}\r\n\r\n"
    numbers = iter(range(count))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in numbers:
            writer.write((head % number).encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return count / (time.perf_counter() - start)


def faults(folder: Path, units: int) -> dict[str, Any]:
    """Kills and faults: what ended, what was paid for."""
    documents, out, log = write_documents(folder / "f.jsonl", units // 2), folder / "out", folder / "served"
    recipe, ledger = folder / "recipe.toml", folder / "out" / "ledger.jsonl"
    start = time.perf_counter()
    server = ("--log", str(log), "--faults", "0.2", "--delay", "0.01", "--retry-after", "0.05", "--slow", "1.5")
    with serving(*server) as url:
        values = {"documents": documents, "out": out, "url": url, "concurrency": CONCURRENCY}
        recipe.write_text(RECIPE.format(**values).replace("timeout = 30.0", "timeout = 1.0"))
        for share in (0.15, 0.5, 1.1):
            kill_after(recipe, ledger, int(units * share))
        subprocess.run(command(recipe, "--no-filter"), check=True, stderr=subprocess.DEVNULL)
    events = [decode_line(line) for line in ledger.read_bytes().splitlines(keepends=True)]
    ends = [event["unit"] for event in events if event and event["event"] == "end"]
    answers = [f"{e['unit']}-{e['step']}-{e['attempt']}" for e in events if e and e["event"] == "answer"]
    paid = served(log)
    return {
        "units": units,
        "units_ended": len(ends),
        "units_ended_twice": len(ends) - len(set(ends)),
        "units_with_pairs": sum(bool(e["pairs"]) for e in events if e and e["event"] == "end"),
        "answers_in_ledger": len(answers),
        "answers_in_ledger_twice": len(answers) - len(set(answers)),
        "answers_the_server_sent": paid.total(),
        "paid_and_not_in_ledger": paid.total() - len(answers),
        "in_flight_at_three_kills_at_most": 3 * CONCURRENCY,
        "damaged_lines": sum(event is None for event in events),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=8_000)
    parser.add_argument("--only", choices=("throughput", "faults"))
    parser.add_argument("--out", type=Path, default=RESULTS / f"{datetime.date.today().isoformat()}-synthesis.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = {
            "date": datetime.date.today().isoformat(),
            "command": f"python -m benchmarks.synthesis --units {options.units} --requests {options.requests}",
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "load_average_before": [round(value, 1) for value in os.getloadavg()],
        }
        if options.only != "faults":
            result["throughput_50_ms"] = throughput(Path(name), options.requests // 2, DELAY)
            result["throughput_400_ms"] = throughput(Path(name), options.requests // 8, 8 * DELAY)
        if options.only != "throughput":
            result["faults"] = faults(Path(name), options.units)
    text = json.dumps(result, indent=1) + "\n"
    print_table(result)
    print(json.dumps(result))
    options.out.write_text(text, encoding="utf-8")


def print_table(result: dict[str, Any]) -> None:
    """A line a figure."""
    for name, values in result.items():
        if isinstance(values, dict) and name != "machine":
            print(f"| {name} | |\n|---|---|")
            print("\n".join(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in values.items()) + "\n")


if __name__ == "__main__":
    main()
