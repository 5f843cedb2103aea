"""From the start of a process to the first vector: ``q3e embed`` of one line, and what of it is torch's own import.

Whole processes in turns: an empty Python, ``import torch`` alone, the same without the garbage collector (as ``embed``
imports it), and ``embed``; then one process that times its own
steps. CPU seconds are of the process and steadier on a machine that others use too.

    python -m benchmarks.cold_start --rounds 10
    python -m benchmarks.cold_start --model path/to/Qwen3-Embedding-0.6B --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import machine, save
from qwen3_embedding.cli.common import print_table

LIMIT_SECONDS = 1.5
BARE = "import torch, no collector"
STEPS = """
import gc, json, sys, time
gc.disable()
steps, begin = {}, time.process_time()
def step(name):
    global begin
    now = time.process_time()
    steps[name], begin = now - begin, time.process_time()
import qwen3_embedding.cli, qwen3_embedding.cli.embed
step("command line")
import numpy, tokenizers
step("numpy and tokenizers")
import torch
step("torch")
from qwen3_embedding.inference.embedder import Embedder
gc.freeze()
gc.enable()
step("our modules")
embedder = Embedder.from_pretrained(sys.argv[1], device="cpu", dtype=sys.argv[2])
step("load tokenizer and weights")
embedder.embed_documents(["one line of text"])
step("embed")
heavy = ("torch._dynamo", "sympy", "lancedb", "pyarrow", "rich", "transformers")
heavy = [name for name in heavy if name in sys.modules]
print(json.dumps({"steps": steps, "heavy": heavy}))
"""


def commands(model: str, dtype: str, text: Path) -> dict[str, list[str]]:
    """What is started."""
    embed = ["-m", "qwen3_embedding", "embed", str(text), "--model", model, "--dtype", dtype, "--device", "cpu"]
    return {
        "empty Python": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        BARE: [sys.executable, "-c", "import gc; gc.disable(); import torch; gc.freeze()"],
        "embed": [sys.executable, *embed],
    }


def start(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process from start to end.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command[:4])} ended with {process.returncode}: {words.strip().splitlines()[-1:]}"
        )
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def measure(model: str, dtype: str, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of each kind of process, and of the steps inside one."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "line.txt"
        text.write_text("one line of text\n")
        for number in range(rounds + 1):
            for name, command in commands(model, dtype, text).items():
                wall, cpu = start(command, environment)
                row = found.setdefault(name, {"seconds": [], "cpu_seconds": []})
                if number:  # the first round fills the page cache
                    row["seconds"].append(round(wall, 4))
                    row["cpu_seconds"].append(round(cpu, 4))
    inside = [sys.executable, "-c", STEPS, model, dtype]
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, check=True)
    return {"processes": found, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-embedding")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = measure(options.model, options.dtype, options.rounds, options.threads)
    medians = {
        name: {kind: statistics.median(values) for kind, values in row.items()}
        for name, row in found["processes"].items()
    }
    rows: list[tuple[str, ...]] = [
        (name, *(f"{row[kind]:.2f}" for kind in ("seconds", "cpu_seconds"))) for name, row in medians.items()
    ]
    own = {kind: medians["embed"][kind] - medians[BARE][kind] for kind in ("seconds", "cpu_seconds")}
    rows.append(("embed without torch's import", f"{own['seconds']:.2f}", f"{own['cpu_seconds']:.2f}"))
    print_table(rows, ("process", "wall s", "CPU s"), f"{options.model}: one line, wanted under {LIMIT_SECONDS} s")
    steps: list[tuple[str, ...]] = [(name, f"{seconds * 1000:.0f}") for name, seconds in found["steps"].items()]
    print_table(steps, ("step of one process", "CPU ms"))
    line = {**{"model": options.model, "dtype": options.dtype, "own": own}, **found, **machine()}
    print(json.dumps(line))
    print(save("cold-start", line), file=sys.stderr)


if __name__ == "__main__":
    main()
