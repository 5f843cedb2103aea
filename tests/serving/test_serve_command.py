"""``serve`` as a process of its own: it starts, answers, and leaves properly on SIGTERM, also under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

SECRET = "a-secret-for-the-test"


@pytest.fixture
def process(embedder_folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "qwen3_embedding", "serve", "--embedder", f"tiny={embedder_folder}", "--port", "0",
               "--device", "cpu", "--log-level", "info"]  # fmt: skip
    environment = os.environ | {"QWEN3_EMBEDDING_API_KEYS": f"team={SECRET}", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        child = subprocess.Popen(command, stderr=file, text=True, env=environment)
    try:
        yield child, _address(child, log), log
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)


def _address(child: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert child.poll() is None, log.read_text()
        found = re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"not up in time: {log.read_text()}")


def test_sigterm_under_load_answers_every_accepted_request(process: tuple[subprocess.Popen[str], str, Path]) -> None:
    child, url, log = process
    headers = {"authorization": f"Bearer {SECRET}"}
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"] == "tiny"
    statuses: list[int] = []
    broken: list[Exception] = []
    sent = threading.Semaphore(0)

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            client.get("/health")  # connected
            sent.release()
            try:
                statuses.append(client.post("/embed", json={"inputs": ["word " * 400 + str(number)] * 4}).status_code)
            except httpx.HTTPError as error:
                broken.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert sent.acquire(timeout=20)
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert child.wait(30) in (0, -signal.SIGTERM)
    # A request that uvicorn had not begun to read may be turned away at the door; none may be dropped half-way.
    assert set(statuses) == {200}
    assert all(isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError) for error in broken)
    assert len(statuses) >= 12
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    answered = [line for line in lines if line.get("route") == "/embed"]
    assert len(answered) == len(statuses)
    assert {line["caller"] for line in answered} == {"team"}
    assert SECRET not in log.read_text()


def test_a_bad_option_is_the_callers_mistake(embedder_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "qwen3_embedding",
        "serve",
        "--embedder",
        str(embedder_folder),
        "--api-key",
        "short",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "at least 8" in done.stderr
    assert "Traceback" not in done.stderr
