"""``encode`` beside the bare engine on the same texts; dedupe; peak memory by corpus size; Ray workers.

    python -m benchmarks.corpus_throughput --rows 20000                                # nano, synthetic texts
    python -m benchmarks.corpus_throughput corpus.jsonl --rows 20000 --repeats 0.37    # your own texts
    python -m benchmarks.corpus_throughput --shape 0.6B --rows 24 --window-rows 12     # 0.6B's shape, random weights
    python -m benchmarks.corpus_throughput --memory 10000 100000 1000000 --window-rows 1024
    python -m benchmarks.corpus_throughput --ray 1 2 --rows 20000

Throughput takes turns: engine, encode, engine, encode …, and prints medians of two ratios, in wall and in CPU time:
to the bare engine on the same *texts* (``embed_documents``, window by window: tokenising and computing), which is what
``encode`` adds reading, hashing, the ledger and writing to; and to computing alone (``embed_tokens``).  ``--repeats``
counts what dedupe saves.  Memory runs a fresh process a size, on a model of two layers and 64 dimensions unless
``--model`` is given.  Ray compares worker counts on a cluster of its own, one thread a worker, and the outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import machine, save, shape, write_embedder
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.corpus.encode import EncodeSettings, encode
from qwen3_embedding.corpus.reader import Document, ReadOptions, read_file
from qwen3_embedding.corpus.source import open_source
from qwen3_embedding.corpus.window import PlanSettings, WindowSettings
from qwen3_embedding.inference.embedder import Embedder

WORDS = ("the", "of", "river", "engine", "vector", "search", "bridge", "water", "music", "history", "model", "city")


def _texts(arguments: argparse.Namespace) -> list[str]:
    """Different texts: of a corpus, or drawn word by word with lengths as passages have them (mean about 90 words)."""
    if arguments.source is None:
        return list(islice(_synthetic(), arguments.rows))
    files = open_source(arguments.source).files
    items = (item for file in files for item in read_file(file, ReadOptions((arguments.text_column,))))
    texts = (item.text for item in islice(items, arguments.rows * 3) if isinstance(item, Document))
    return list(dict.fromkeys(texts))[: arguments.rows]


def _synthetic() -> Iterator[str]:
    rng = np.random.default_rng(0)
    number = 0
    while True:
        words = rng.integers(0, len(WORDS), min(400, max(3, int(rng.lognormal(4.3, 0.6)))))
        yield " ".join(WORDS[word] for word in words) + f" {number}"
        number += 1


def _write(path: Path, texts: list[str], repeats: float) -> int:
    """The texts, and behind them repeats of them, so that ``repeats`` of all documents are repeats."""
    again = round(len(texts) * repeats / (1 - repeats))
    with path.open("w", encoding="utf-8") as file:
        for number in range(len(texts) + again):
            text = texts[number] if number < len(texts) else texts[number * 7919 % len(texts)]
            file.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
    return len(texts) + again


def _measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, CPU seconds, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def throughput(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    embedder = Embedder.from_pretrained(model)
    texts = _texts(arguments)
    documents = _write(arguments.work / "corpus.jsonl", texts, arguments.repeats)
    settings = EncodeSettings(plan=PlanSettings(window=WindowSettings(rows=arguments.window_rows)))
    windows = [texts[at : at + arguments.window_rows] for at in range(0, len(texts), arguments.window_rows)]
    out = arguments.work / "out"

    def tokenise() -> list[Any]:
        return [embedder.tokenizer.encode_documents(window, embedder.max_tokens).ids for window in windows]

    def whole() -> Any:
        shutil.rmtree(out, ignore_errors=True)
        return encode(arguments.work / "corpus.jsonl", out, embedder, settings)

    embedder.embed_documents(texts[:8])
    rounds = []
    for _ in range(arguments.rounds):
        tokenising = _measured(tokenise)
        computing = _measured(lambda: [embedder.embed_tokens(ids) for ids in tokenising[2]])  # noqa: B023
        rounds.append((tokenising, computing, _measured(whole)))
    result = rounds[-1][2][2]
    tokens = sum(len(ids) for window in rounds[-1][0][2] for ids in window)
    found: dict[str, Any] = {"documents": documents, "different": len(texts), "computed": result.progress.computed}
    found |= {"tokens": tokens, "tokens_computed": result.progress.tokens, "rounds": arguments.rounds}
    for clock, name in enumerate(("wall_time", "cpu_time")):
        engine = [tokenising[clock] + computing[clock] for tokenising, computing, _ in rounds]
        alone = [computing[clock] for _, computing, _ in rounds]
        encoded = [encoding[clock] for *_, encoding in rounds]
        found[name] = {
            "engine_tokens_per_s": round(tokens / statistics.median(engine)),
            "computing_tokens_per_s": round(tokens / statistics.median(alone)),
            "encode_tokens_per_s": round(tokens / statistics.median(encoded)),
            "ratio": round(statistics.median(a / b for a, b in zip(engine, encoded, strict=True)), 3),
            "ratio_to_computing": round(statistics.median(a / b for a, b in zip(alone, encoded, strict=True)), 3),
        }
    rows = [(clock, *(f"{value:,}" for value in found[clock].values())) for clock in ("wall_time", "cpu_time")]
    columns = ("clock", "engine tokens/s", "computing alone", "encode tokens/s", "ratio", "to computing alone")
    saved = 1 - result.progress.computed / documents
    print_table(rows, columns, f"{documents:,} documents, {saved:.1%} not computed: repeats")
    return found


def memory(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Peak resident megabytes of an encode, by documents."""
    sizes: dict[str, Any] = {}
    for size in arguments.memory:
        source = arguments.work / f"{size}.jsonl"
        with source.open("w") as file:
            file.writelines(f'{{"id": "{i}", "text": "document {i} of many, and no two alike"}}\n' for i in range(size))
        sizes[str(size)] = _fresh(arguments, model, source)
        source.unlink()
    peaks = [found["peak_mb"] for found in sizes.values()]
    rows = [(f"{int(size):,}", f"{f['peak_mb']:,}", f"{f['rows_per_s']:,}") for size, f in sizes.items()]
    print_table(rows, ("documents", "peak MB", "documents/s"), f"largest over smallest: {max(peaks) / min(peaks):.3f}")
    return {"memory": sizes, "largest_over_smallest": round(max(peaks) / min(peaks), 3)}


def _fresh(arguments: argparse.Namespace, model: str, source: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.corpus_throughput", "--one", str(source), "--model", model]
    command += ["--work", str(arguments.work), "--window-rows", str(arguments.window_rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    target = arguments.work / "memory"
    shutil.rmtree(target, ignore_errors=True)
    settings = EncodeSettings(plan=PlanSettings(window=WindowSettings(rows=arguments.window_rows)))
    progress = encode(arguments.one, target, Embedder.from_pretrained(arguments.model), settings).progress
    shutil.rmtree(target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": round(peak), "rows_per_s": round(progress.rows_per_s)}


def ray_workers(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Seconds of an encode by Ray workers, the start of the cluster and of the workers left out; equal outputs."""
    import ray

    from qwen3_embedding.corpus.ray import RayEngine, RaySettings

    _write(arguments.work / "corpus.jsonl", _texts(arguments), arguments.repeats)
    settings = EncodeSettings(plan=PlanSettings(window=WindowSettings(rows=arguments.window_rows)))
    embedder = Embedder.from_pretrained(model)
    ray.init(num_cpus=max(arguments.ray) + 1, include_dashboard=False, log_to_driver=False)
    outputs, rates = [], {}
    for workers in arguments.ray:
        out = arguments.work / f"ray-{workers}"
        shutil.rmtree(out, ignore_errors=True)
        stamps: list[tuple[float, int]] = []
        engine = RayEngine(RaySettings(workers=workers, device="cpu", model=model))
        encode(
            arguments.work / "corpus.jsonl",
            out,
            embedder,
            settings,
            report=lambda progress: stamps.append((time.perf_counter(), progress.tokens)),  # noqa: B023
            engine=engine,
        )
        first, last = stamps[min(workers, len(stamps) - 2)], stamps[-1]  # behind the first window of each worker
        rates[str(workers)] = round((last[1] - first[1]) / (last[0] - first[0]))
        outputs.append({path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".parquet", ".json")})
    ray.shutdown()
    equal = all(output == outputs[0] for output in outputs)
    speedup = rates[str(arguments.ray[-1])] / rates[str(arguments.ray[0])]
    rows = [(workers, f"{rate:,}") for workers, rate in rates.items()]
    print_table(rows, ("workers", "tokens/s"), f"{speedup:.2f} times; outputs equal: {equal}; cores: {os.cpu_count()}")
    return {"tokens_per_s": rates, "speedup": round(speedup, 3), "outputs_equal": equal, "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="A corpus; default: synthetic texts.")
    parser.add_argument("--model", help="Folder, hub id or bundled name.")
    parser.add_argument("--shape", help="A published shape with random weights, in place of a model.")
    parser.add_argument("--work", type=Path, help="Default: a temporary folder.")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--rows", type=int, default=5000, help="Different texts.")
    parser.add_argument("--repeats", type=float, default=0.0, help="Share of all documents that are repeats.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-rows", type=int, default=8192)
    parser.add_argument("--memory", type=int, nargs="+", metavar="DOCUMENTS")
    parser.add_argument("--ray", type=int, nargs="+", metavar="WORKERS")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments)))
        return
    kind, measure = "throughput", throughput
    if arguments.memory or arguments.ray:
        kind, measure = ("memory", memory) if arguments.memory else ("ray", ray_workers)
    with tempfile.TemporaryDirectory() as scratch:
        arguments.work = arguments.work or Path(scratch)
        arguments.work.mkdir(parents=True, exist_ok=True)
        model = _model(arguments, Path(scratch) / "model")
        result = measure(arguments, model)
    line = {"model": arguments.model or arguments.shape or Path(model).name, "command": " ".join(sys.argv[1:])}
    line |= {**result, **machine()}
    print(json.dumps(line))
    print(save(f"corpus-{kind}-{arguments.shape or 'nano'}", line), file=sys.stderr)


def _model(arguments: argparse.Namespace, folder: Path) -> str:
    if arguments.model:
        return str(arguments.model)
    if arguments.shape:
        write_embedder(folder, shape(arguments.shape))
        return str(folder)
    if arguments.memory:  # a real model, so small that a million documents take minutes
        from tests.support.checkpoints import make_embedder_folder

        folder.mkdir()
        return str(make_embedder_folder(folder))
    return "nano-embedding"


if __name__ == "__main__":
    main()
