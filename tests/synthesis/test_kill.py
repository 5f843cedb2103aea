"""Killed again and again, beside a server that fails: every unit ends once, nothing is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from qwen3_embedding.data import read_records
from qwen3_embedding.synthesis.ledger import decode_line, read_pairs
from tests.synthesis.server import CONTENT, TRANSPORT
from tests.synthesis.support import ROOT, served, serving, write_documents

CONCURRENCY = 16
RECIPE = """
documents = "{documents}"
out = "{out}"

[endpoint]
model = "scripted"
url = "{url}"
concurrency = {concurrency}
backoff = 0.02
timeout = 30.0
retries = 12

[units]
retrieval = 2

[filter]
cosine = 0
rank = 0
"""


def command(recipe: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "qwen3_embedding", "synthesize", str(recipe), *options]


def kill_after(recipe: Path, ledger: Path, lines: int) -> None:
    """Start the command and kill -9 it as soon as the ledger has grown by so many lines."""

    def count() -> int:
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    goal = count() + lines
    process = subprocess.Popen(command(recipe, "--no-filter"), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while count() < goal and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()


def test_kill_nine_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    documents, out, log = write_documents(tmp_path / "d.jsonl", 100), tmp_path / "out", tmp_path / "served"
    recipe, ledger = tmp_path / "recipe.toml", out / "ledger.jsonl"
    # Without "slow": a client that gives up waiting pays twice by its own choice; test_client has that fault.
    kinds = [kind for kind in (*TRANSPORT, *CONTENT) if kind != "slow"]
    server = ("--log", str(log), "--faults", "0.2", "--delay", "0.01", "--retry-after", "0.05", "--kinds", *kinds)
    with serving(*server) as url:
        text = RECIPE.format(documents=documents, out=out, url=url, concurrency=CONCURRENCY)
        recipe.write_text(text, encoding="utf-8")
        for lines in (50, 100, 150):
            kill_after(recipe, ledger, lines)
        ended = subprocess.run(command(recipe, "--json"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    events = [decode_line(line) for line in ledger.read_bytes().splitlines(keepends=True)]
    assert all(events)
    units = [event["unit"] for event in events if event and event["event"] == "end"]
    assert len(units) == len(set(units)) == 200
    answers = [f"{e['unit']}-{e['step']}-{e['attempt']}" for e in events if e and e["event"] == "answer"]
    assert len(answers) == len(set(answers))
    paid = served(log)
    assert set(answers) <= set(paid)
    assert paid.total() - len(answers) <= 3 * CONCURRENCY
    report = json.loads(ended.stdout)
    pairs = list(read_pairs(ledger))
    assert report["pairs"] == len(pairs) >= 180
    assert len(list(read_records(out / "records.jsonl"))) == report["run"]["records"] > 0
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {"code_fence", "trailing_comma", "surrounding_text"} <= set(report["repairs"])
    assert len((out / "provenance.jsonl").read_text().splitlines()) == report["run"]["records"]
    assert len((out / "dropped.jsonl").read_text().splitlines()) == report["pairs"] - report["kept"]


def test_dry_run_asks_nobody_and_shows_the_prompts(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "d.jsonl", 5)
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(documents=documents, out=tmp_path / "out", url="http://127.0.0.1:9/v1", concurrency=2)
    recipe.write_text(text.replace("backoff", "input_price = 1000.0\nbackoff"), encoding="utf-8")
    shown = subprocess.run(command(recipe, "--dry-run"), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "5 documents, 10 units, 20 requests, about" in shown
    assert "The lighthouse on the northern reef" in shown
    assert not (tmp_path / "out").exists()
    answer = subprocess.run(command(recipe, "--dry-run", "--json"), cwd=ROOT, capture_output=True, check=True).stdout
    estimate = json.loads(answer)
    assert estimate["requests"] == 20
    assert estimate["cost"] * 1e6 == 1000.0 * estimate["input_tokens"]
    recipe.write_text(text.replace("retrieval", "retreival"), encoding="utf-8")
    wrong = subprocess.run(command(recipe), cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown key 'retreival'; did you mean 'retrieval'?" in wrong.stderr
