"""Named workloads on whole engines, called as users call them: ours, sentence-transformers and others, side by side.

Each engine is a process of its own; rounds take turns, so that a busy minute hits all of them. Prints a table for
people, then one JSON line, and leaves a dated file in ``benchmarks/results/``.

    python -m benchmarks.peers --venv PATH        # once: OpenVINO, ONNX Runtime, llama.cpp in their own environment
    python -m benchmarks.runner --peers PATH      # the decisive one: 0.6B shape, 512 texts of mixed lengths, 2 rounds
    python -m benchmarks.runner --peers PATH --layers 7 --rounds 3 --engines all
    python -m benchmarks.runner --cases mixed 512 2048 one-word --engines ours-float32 ours-int8 --layers 7
    python -m benchmarks.runner --model nano-embedding --cases mixed short one-word single
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SHAPES, Case, Work, cases, machine, save, shape, write_embedder
from benchmarks.peers import ENGINES, HERE_INSTALLED, EngineError, Process, exported, why_missing
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.inference.source import resolve
from qwen3_embedding.inference.speed import Clock, matrix_operations
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.config import BackboneConfig, read_config
from qwen3_embedding.whole import whole_folder

TABLE_WIDTH = 150
DEFAULT_ENGINES = ("ours-int8", "ours-float32", "sentence-transformers", "openvino-int8", "onnxruntime-int8")
TARGETS = (
    ("int8 against sentence-transformers", 4.5),
    ("int8 against the best other engine", 1.5),
    ("float32 against sentence-transformers", 1.3),
    ("int8 share of the library's rate", 0.70),
    ("float32 share of the library's rate", 0.85),
    ("float32 at 2,048 tokens against 512", 0.75),
    ("int8 at 2,048 tokens against 512", 0.55),
    ("float32 one-word texts against mixed", 0.5),
    ("int8 one-word texts against mixed", 0.5),
)
"""What this project wants at the 0.6B shape; shown beside what was found."""


def start(
    engines: list[str], folder: Path, venv: Path | None, threads: int
) -> tuple[dict[str, Process], dict[str, str]]:
    """The engines that run here, loaded, and why the others do not."""
    running: dict[str, Process] = {}
    left_out: dict[str, str] = {}
    for name in engines:
        reason = why_missing(name, venv)
        if reason is None:
            try:
                model = None
                if name not in HERE_INSTALLED:
                    assert venv is not None
                    model = exported(name, folder, venv, venv / "exported")
                running[name] = Process(name, folder, model, venv, threads)
            except EngineError as error:
                reason = str(error)
        if reason is not None:
            left_out[name] = reason
            print(f"left out: {name}: {reason}", file=sys.stderr)
    return running, left_out


def run(case: Case, work: Work, engines: dict[str, Process], rounds: int, clock: Clock = "wall") -> dict[str, Any]:
    """One case on every engine, in turns; an engine that fails is left out of the table with its reason."""
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    best = {"float32": 0.0, "int8": 0.0}
    for name, engine in engines.items():
        ours = name.startswith("ours-")
        details = {"kind": work.kind, "query": work.query, "instruction": work.instruction}
        try:
            engine.ask("case", texts=work.texts if ours else work.prompts, **details)
            found[name] = {"batches": engine.ask("warm_up")["batches"], "seconds": [], "cpu_seconds": []}
        except EngineError as error:
            failed[name] = str(error)
    for number in range(rounds):
        print(f"{case.name}: round {number + 1} of {rounds}", file=sys.stderr)
        for name, row in list(found.items()):
            try:
                answer = engines[name].ask("run", repeats=case.repeats)
                rates = engines[name].ask("rates") if name.startswith("ours-") else {}
            except EngineError as error:
                failed[name] = str(error)
                del found[name]
                continue
            for kind in ("seconds", "cpu_seconds"):
                row[kind] += [round(value, 6) for value in answer[kind]]
            row["peak_mib"] = answer["peak_mib"]
            best.update({kind: max(best[kind], rate) for kind, rate in rates.items()})
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    vectors = {name: rows(engines[name]) for name in found}
    for name, row in found.items():
        row.update(figures(row, name, work, clock))
        row["lowest_cosine"] = agreement(vectors, name, work)
    return {
        **{"case": case.name, "texts": len(work.texts), "tokens": work.tokens, "longest": max(map(len, work.ids))},
        "gemm_gops": {kind: rate / 1e9 for kind, rate in best.items()},
        "engines": found,
        "failed": failed,
    }


def rows(engine: Process) -> np.ndarray:
    """The vectors or scores of the last run."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.npy"
        engine.ask("save", file=str(file))
        return np.asarray(np.load(file, allow_pickle=False))


def figures(row: dict[str, Any], name: str, work: Work, clock: Clock) -> dict[str, Any]:
    """Median, spread and rates of an engine's runs."""
    seconds = row["seconds"] if clock == "wall" else row["cpu_seconds"]
    median = statistics.median(seconds)
    return {
        "median": median,
        "spread": (max(seconds) - min(seconds)) / median,
        "tokens_per_second": work.tokens / median,
        "texts_per_second": len(work.texts) / median,
    }


def agreement(vectors: dict[str, np.ndarray], name: str, work: Work) -> float | None:
    """Lowest cosine to our float32 vectors (or to the first engine's); ``None`` where there are scores."""
    reference = vectors.get("ours-float32", next(iter(vectors.values())))
    if work.kind == "pairs" or reference.ndim != 2:
        return None
    return float((vectors[name] * reference).sum(1).min())


def add_shares(result: dict[str, Any], config: BackboneConfig) -> None:
    """Matrix products done (those of tokens that sharing saves count as done), against the library's best rate."""
    operations = matrix_operations(config)
    for name, row in result["engines"].items():
        rate = result["gemm_gops"]["int8" if name.endswith(("int8", "q8")) else "float32"] * 1e9
        row["share_of_gemm"] = row["tokens_per_second"] * operations / rate if rate else None


def at_all_layers(seconds: float, config: BackboneConfig, layers: int) -> float:
    """Seconds at the whole depth, if all of them were spent in the layers: an estimate, rough for short work."""
    return seconds * layers / config.num_hidden_layers


def targets(results: list[dict[str, Any]]) -> dict[str, float]:
    """Those of :data:`TARGETS` that these results answer."""
    speed = {r["case"]: {name: row["tokens_per_second"] for name, row in r["engines"].items()} for r in results}
    found: dict[str, float] = {}
    mixed = speed.get("mixed", {})
    share = {name: row["share_of_gemm"] for r in results if r["case"] == "mixed" for name, row in r["engines"].items()}
    others = [rate for name, rate in mixed.items() if not name.startswith("ours-")]
    for kind in ("int8", "float32"):
        ours = f"ours-{kind}"
        if ours in mixed:
            if "sentence-transformers" in mixed:
                found[f"{kind} against sentence-transformers"] = mixed[ours] / mixed["sentence-transformers"]
            if others and kind == "int8":
                found["int8 against the best other engine"] = mixed[ours] / max(others)
            found[f"{kind} share of the library's rate"] = share[ours]
        for case, against, title in (
            ("2048", "512", "at 2,048 tokens against 512"),
            ("one-word", "mixed", "one-word texts against mixed"),
        ):
            if ours in speed.get(case, {}) and ours in speed.get(against, {}):
                found[f"{kind} {title}"] = speed[case][ours] / speed[against][ours]
    return found


def show(result: dict[str, Any], config: BackboneConfig, whole_depth: int) -> None:
    """The table for people."""
    slowest = max(row["median"] for row in result["engines"].values())
    part = config.num_hidden_layers != whole_depth
    columns = [
        "engine",
        "median ms",
        "spread",
        "tokens/s",
        "x slowest",
        "of GEMM rate",
        "peak MiB",
        "cosine",
        "batches",
    ]
    if part:
        columns.insert(4, f"est. tokens/s, {whole_depth} layers")
    table = []
    for name, row in result["engines"].items():
        cells = [
            name,
            f"{row['median'] * 1000:,.1f}",
            f"{row['spread']:.0%}",
            f"{row['tokens_per_second']:,.0f}",
            f"{slowest / row['median']:.2f}",
            "-" if row["share_of_gemm"] is None else f"{row['share_of_gemm']:.0%}",
            f"{row['peak_mib']:,}",
            "-" if row["lowest_cosine"] is None else f"{row['lowest_cosine']:.5f}",
            row["batches"],
        ]
        if part:
            cells.insert(4, f"{result['tokens'] / at_all_layers(row['median'], config, whole_depth):,.0f}")
        table.append(tuple(cells))
    rates = ", ".join(f"{kind} {rate:,.0f}" for kind, rate in result["gemm_gops"].items())
    title = f"{result['case']}: {result['texts']} texts, {result['tokens']:,} tokens; library GOP/s: {rates}"
    print_table(table, tuple(columns), title, TABLE_WIDTH)


def show_targets(found: dict[str, float]) -> None:
    """What was wanted and what was found."""
    wanted: list[tuple[str, ...]] = [
        (name, f"{found[name]:.2f}", f"{least:.2f}", "yes" if found[name] >= least else "no")
        for name, least in TARGETS
        if name in found
    ]
    if wanted:
        print_table(wanted, ("ratio", "found", "wanted at the 0.6B shape", "reached"), width=TABLE_WIDTH)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6B", help="A published shape with random weights.")
    parser.add_argument(
        "--layers", type=int, default=None, help="Fewer layers, for a quick look: embedding and tokenising stay whole."
    )
    parser.add_argument("--model", default=None, help="A checkpoint folder or bundled name, instead of a shape.")
    parser.add_argument("--cases", nargs="+", choices=[*cases(), "all"], default=["mixed"])
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES, "all"], default=list(DEFAULT_ENGINES))
    parser.add_argument("--peers", type=Path, default=None, help="Environment of the other engines (benchmarks.peers).")
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies the number of texts.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="What the medians are of.")
    parser.add_argument("--name", default="engines", help="Name of the result file.")
    options = parser.parse_args()
    options.cases = list(cases()) if "all" in options.cases else options.cases
    options.engines = list(ENGINES) if "all" in options.engines else options.engines
    return options


def checkpoint(options: argparse.Namespace, scratch: Path) -> Path:
    """The folder to run: the user's, or random weights, kept beside the exported models where there is such a place."""
    if options.model is not None:
        return resolve(options.model)
    config = shape(options.shape, options.layers)
    kept = options.peers / "exported" if options.peers is not None and options.peers.exists() else scratch
    folder: Path = kept / f"random-{options.shape}-{config.num_hidden_layers}"
    if not folder.exists():
        with whole_folder(folder) as beside:
            write_embedder(beside, config)
    return folder


def main() -> None:
    options = arguments()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = checkpoint(options, scratch)
        config, words = read_config(folder), Tokenizer.from_folder(folder)
        whole_depth = config.num_hidden_layers if options.model else SHAPES[options.shape].num_hidden_layers
        engines, left_out = start(options.engines, folder, options.peers, options.threads)
        for engine in engines.values():
            stack.callback(engine.close)
        found = []
        for name in options.cases:
            case = cases(options.scale)[name]
            result = run(case, case.work(words), engines, options.rounds, options.clock)
            add_shares(result, config)
            show(result, config, whole_depth)
            found.append(result)
        ratios = targets(found)
        show_targets(ratios)
        if config.num_hidden_layers != whole_depth:
            print(f"{config.num_hidden_layers} of {whole_depth} layers: tokens/s are higher than at the whole depth by "
                  "about that ratio; estimates assume that all time is spent in the layers.")  # fmt: skip
    line = {
        **{"model": options.model or options.shape, "layers": config.num_hidden_layers, "of_layers": whole_depth},
        **{"rounds": options.rounds, "clock": options.clock, "scale": options.scale},
        "load_seconds": {name: engine.load_seconds for name, engine in engines.items()},
        "cases": found,
        "ratios": ratios,
        "left_out": left_out,
        **machine(),
        "threads": options.threads,
    }
    print(json.dumps(line))
    print(save(options.name, line), file=sys.stderr)


if __name__ == "__main__":
    main()
