"""Kill an encode at random instants, resume it, and compare the end with an uninterrupted run, byte for byte.

    python benchmarks/corpus_kill.py SOURCE --model FOLDER --kills 20 --work DIR

Every run is the command line in a process group of its own, killed with SIGKILL. Exit code 1 where the ends differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def _start(arguments: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "qwen3_embedding", "encode", arguments.source, "--model", arguments.model]
    command += ["--out", str(out), "--window-rows", str(arguments.window_rows), "--json"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finish(arguments: argparse.Namespace, out: Path) -> float:
    began = time.monotonic()
    if code := _start(arguments, out).wait():
        raise SystemExit(f"encode ended with {code}")
    return time.monotonic() - began


def _rows(out: Path) -> int:
    path = out / "manifest.json"
    return int(json.loads(path.read_text())["totals"]["rows"]) if path.exists() else 0


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".parquet", ".json", ".jsonl")}


def _kill(arguments: argparse.Namespace, out: Path, after: float) -> bool:
    """Whether it was still running."""
    process = _start(arguments, out)
    time.sleep(after)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--window-rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    whole, out = arguments.work / "whole", arguments.work / "killed"
    seconds = _finish(arguments, whole)
    chance = random.Random(arguments.seed)
    kills = finished = 0
    while kills < arguments.kills:
        before = _rows(out)
        running = _kill(arguments, out, chance.uniform(0.0, 1.0) * seconds)
        after = _rows(out)
        if after < before:
            raise SystemExit(f"rows were lost: {before} before, {after} after a kill")
        kills += running
        print(f"kill {kills}: {before} -> {after} rows", file=sys.stderr)
        if not running:  # it came to its end: compare, and begin again
            finished += 1
            _compare(whole, out)
            shutil.rmtree(out)
    _finish(arguments, out)
    _compare(whole, out)
    print(json.dumps({"kills": kills, "ends_compared": finished + 1, "rows": _rows(out), "equal": True}))


def _compare(whole: Path, out: Path) -> None:
    if _files(whole) != _files(out):
        raise SystemExit(f"{out} differs from {whole}")


if __name__ == "__main__":
    main()
