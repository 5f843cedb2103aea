"""Cases beside sentence-transformers in one process: interleaved, warmed up, medians; a table and one JSON line.

python -m benchmarks.runner --shape 0.6B --cases mixed --scale 0.0625 --rounds 3
python -m benchmarks.runner --model path/to/checkpoint --cases mixed short
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case, cases, machine, save, shape, write_embedder
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.speed import Clock, gemm_rate, interleave, matrix_operations, peak_memory, time_by_part

ENGINES = ("ours-float32", "ours-int8", "sentence-transformers", "sentence-transformers-one-by-one")

Encode = Callable[[list[str]], np.ndarray]


def load(folder: Path, engines: list[str]) -> dict[str, Encode]:
    """Each engine as a function from texts to unit vectors."""
    loaded: dict[str, Encode] = {}
    for name in engines:
        if name.startswith("ours-"):
            loaded[name] = Embedder.from_pretrained(
                folder, device="cpu", dtype=name.removeprefix("ours-")
            ).embed_documents
    if any(name.startswith("sentence-transformers") for name in engines):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        for name in engines:
            if name.startswith("sentence-transformers"):
                size = 1 if name.endswith("one-by-one") else 32
                loaded[name] = lambda texts, size=size: model.encode(texts, batch_size=size, show_progress_bar=False)
    return loaded


def run(case: Case, folder: Path, encoders: dict[str, Encode], rounds: int, clock: Clock = "wall") -> dict[str, Any]:
    """One case on every engine."""
    words = Embedder.from_pretrained(folder, device="cpu")
    texts = case.texts(words.tokenizer)
    tokens = sum(map(len, words.tokenizer.encode_documents(texts).ids))
    operations = matrix_operations(words.backbone.config)
    for encode in encoders.values():
        encode(texts[: min(4, len(texts))])
    vectors: dict[str, np.ndarray] = {}

    def work(name: str) -> Callable[[], object]:
        return lambda: vectors.__setitem__(name, encoders[name](texts))

    timings = interleave({name: work(name) for name in encoders}, rounds, warm_up=False, clock=clock)
    rates = {int8: gemm_rate(int8, clock=clock) for int8 in (False, True)}
    reference = next(iter(vectors.values()))
    rows = {
        name: {
            "seconds": timing.seconds,
            "tokens_per_second": tokens / timing.median,
            "spread": timing.spread,
            "share_of_gemm": tokens / timing.median * operations / rates[name == "ours-int8"],
            "lowest_cosine": float((vectors[name] * reference).sum(1).min()),
        }
        for name, timing in timings.items()
    }
    return {
        **{"case": case.name, "texts": len(texts), "tokens": tokens, "longest": max(case.lengths)},
        "gemm_gops": {"float32": rates[False] / 1e9, "int8": rates[True] / 1e9},
        "engines": rows,
    }


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    slowest = max(np.median(row["seconds"]) for row in result["engines"].values())
    rows = [
        (
            name,
            f"{np.median(row['seconds']):.2f}",
            f"{row['spread']:.0%}",
            f"{row['tokens_per_second']:,.0f}",
            f"{slowest / np.median(row['seconds']):.2f}",
            f"{row['share_of_gemm']:.0%}",
            f"{row['lowest_cosine']:.5f}",
        )
        for name, row in result["engines"].items()
    ]
    columns = ("engine", "median s", "spread", "tokens/s", "x slowest", "of GEMM rate", "lowest cosine")
    print_table(rows, columns, f"{result['case']}: {result['texts']} texts, {result['tokens']} tokens")


def main() -> None:
    every = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B", help="A published shape with random weights.")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--model", type=Path, default=None, help="A checkpoint folder, instead of a shape.")
    parser.add_argument("--cases", nargs="+", choices=list(every), default=["mixed"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES[:3]))
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies the number of texts.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="Add our time by part.")
    parser.add_argument("--name", default="runner", help="Name of the result file.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch) / "model"
        if options.model is None:
            write_embedder(folder, shape(options.shape, options.layers))
        encoders = load(folder, options.engines)
        found = [
            run(cases(options.scale)[name], folder, encoders, options.rounds, options.clock) for name in options.cases
        ]
        parts = {}
        if options.profile:
            for name in (name for name in options.engines if name.startswith("ours-")):
                embedder = Embedder.from_pretrained(folder, device="cpu", dtype=name.removeprefix("ours-"))
                texts = cases(options.scale)[options.cases[0]].texts(embedder.tokenizer)
                parts[name] = time_by_part(embedder, texts)
    for result in found:
        show(result)
    model = str(options.model or options.shape)
    line = {
        "model": model,
        "layers": options.layers,
        "clock": options.clock,
        "cases": found,
        "parts": parts,
        **machine(),
    }
    line["peak_memory_mib"] = peak_memory() >> 20
    print(json.dumps(line))
    print(save(options.name, line), file=sys.stderr)


if __name__ == "__main__":
    main()
