"""All GPU figures in one call: bf16 and fp8, plain, compiled and recorded, beside sentence-transformers.

    python -m benchmarks.gpu                       # 0.6B shape, everything, on one card
    python -m benchmarks.gpu --shape 8B --cases 512 long

The shapes are the published ones, the weights random. Prints a table for people and one JSON line, and leaves a dated
file in ``benchmarks/results/``. It needs an NVIDIA GPU; fp8 one of the Hopper generation or newer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import GIB, SHAPES, Case, Work, cases, machine, save, shape, write_embedder
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.runner import RunSettings
from qwen3_embedding.inference.speed import interleave, matrix_operations, random_texts
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.fp8 import HOPPER, quantize_rows
from qwen3_embedding.model.weights import yes_no_head

SCALE = {"512": 64, "mixed": 8, "rerank-64x160": 8, "2048": 32, "queries": 4}
"""How many times the texts of the CPU's cases fill a GPU."""
WAYS = ("kernels", "compiled", "plain")
LONG_TOKENS = 32768
TARGETS = {
    "bf16 share of the GEMM rate, 512 tokens": 0.55,
    "bf16 against sentence-transformers bf16": 3.0,
    "rerank pairs a second, 64 x 160": 4000,
    "fp8 against bf16": 1.3,
    "single query p50, ms (at most)": 6.0,
}
"""What this project wants at the 0.6B shape on one H100-class card."""


def no_gpu() -> str | None:
    """Why nothing can be measured here, or ``None``."""
    if not torch.cuda.is_available():
        built = "has no CUDA in it" if torch.version.cuda is None else "finds no CUDA device"
        return f"this benchmark needs an NVIDIA GPU and torch {torch.__version__} {built}; nothing was measured"
    return None


def gemm_rates(size: int = 8192, repeats: int = 20) -> dict[str, float]:
    """Operations a second of square library products on this card, random data, best of some."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    products: dict[str, Callable[[], object]] = {"bfloat16": lambda: left @ right}
    if torch.cuda.get_device_capability() >= HOPPER:
        (a, scale_a), (b, scale_b) = quantize_rows(left), quantize_rows(right)
        products["fp8"] = lambda: torch._scaled_mm(
            a, b.t(), scale_a, scale_b.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    found = {}
    for name, product in products.items():
        timing = interleave({name: synchronised(product)}, repeats)[name]
        found[name] = 2 * size**3 / min(timing.seconds)
    return found


def synchronised(work: Callable[[], object]) -> Callable[[], object]:
    """The work and the wait for its end."""

    def run() -> object:
        out = work()
        torch.cuda.synchronize()
        return out

    return run


class Ours:
    """This package on the GPU at one type, called as users call it."""

    def __init__(self, folder: Path, dtype: str, way: str = "kernels") -> None:
        self.embedder = Embedder.from_pretrained(folder, device="cuda", dtype=dtype)
        words, backbone = self.embedder.tokenizer, self.embedder.backbone
        self.reranker = Reranker(
            backbone, yes_no_head(backbone, {}, words.no_id, words.yes_id, folder), words, "random"
        )
        if way != "kernels":
            for layer in backbone.layers:
                layer.kernels = False  # type: ignore[assignment]
        if way != "plain":
            self.embedder.compile()
        self.reranker.runner.graphs = self.embedder.runner.graphs

    def run(self, work: Work) -> np.ndarray:
        if work.kind == "pairs":
            return np.asarray(self.reranker.score(work.query, work.texts))
        if work.kind == "queries":
            return np.asarray(self.embedder.embed_queries(work.texts, work.instruction))
        return np.asarray(self.embedder.embed_documents(work.texts))


class Peer:
    """sentence-transformers in bf16, with the largest batch size of a few that is fastest on 512 texts."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        arguments = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        self.model = SentenceTransformer(str(folder), device="cuda", model_kwargs=arguments)
        texts = random_texts(Tokenizer.from_folder(folder), [512] * 128)
        seconds = {}
        for self.size in (32, 128):
            self.encode(texts)
            begin = time.perf_counter()
            self.encode(texts)
            seconds[self.size] = time.perf_counter() - begin
        self.size = min(seconds, key=lambda size: seconds[size])

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self.model.encode(texts, batch_size=self.size, show_progress_bar=False), dtype=np.float32)

    def run(self, work: Work) -> np.ndarray:
        return self.encode(work.prompts)


def measure(case: Case, work: Work, engines: dict[str, Ours | Peer], rounds: int) -> dict[str, Any]:
    """One case on every engine, in turns."""
    rows: dict[str, np.ndarray] = {}

    def once(name: str) -> Callable[[], object]:
        return lambda: rows.__setitem__(name, engines[name].run(work))

    # The first pass compiles and records; the second settles the clocks.
    for name in engines:
        once(name)()
    timings = interleave({name: once(name) for name in engines}, rounds * case.repeats)
    reference = next(iter(rows.values()))
    found: dict[str, Any] = {}
    for name, timing in timings.items():
        torch.cuda.reset_peak_memory_stats()
        once(name)()
        cosine = float((rows[name] * reference).sum(1).min()) if reference.ndim == 2 else None
        found[name] = {
            **{"seconds": [round(value, 6) for value in timing.seconds], "median": timing.median},
            **{"spread": timing.spread, "p50_ms": timing.median * 1000},
            "tokens_per_second": work.tokens / timing.median,
            "texts_per_second": len(work.texts) / timing.median,
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "lowest_cosine": cosine,
            # A peer without a reranking head gives the vectors of the prompts.
            "largest_difference": (
                float(np.abs(rows[name] - reference).max()) if rows[name].shape == reference.shape else None
            ),
        }
    return {"case": case.name, "texts": len(work.texts), "tokens": work.tokens, "engines": found}


def long_text(embedder: Embedder) -> dict[str, float]:
    """One text of 32,768 tokens (or the model's limit): seconds and memory beside the weights."""
    tokens = min(LONG_TOKENS, embedder.max_tokens)
    text = random_texts(embedder.tokenizer, [tokens])[0]
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    timing = interleave({"long": lambda: embedder.embed_documents([text])}, 2)["long"]
    peak = torch.cuda.max_memory_allocated()
    return {
        "tokens": tokens,
        "seconds": timing.median,
        "weights_gib": weights / GIB,
        "beside_gib": (peak - weights) / GIB,
    }


def synchronisations(embedder: Embedder, texts: list[str]) -> int:
    """Places in a pass over several batches at which the host waits for the device, the waits for results aside."""
    settings = embedder.runner.settings
    embedder.runner.settings = RunSettings(4096)
    embedder.embed_documents(texts)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            embedder.embed_documents(texts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        embedder.runner.settings = settings
    return sum("synchroniz" in str(warning.message) for warning in caught)


def add_shares(result: dict[str, Any], config: BackboneConfig, rates: dict[str, float]) -> None:
    """Matrix products done, against the card's own rate at that type."""
    for name, row in result["engines"].items():
        rate = rates.get("fp8" if name.startswith("fp8") else "bfloat16")
        row["share_of_gemm"] = None if rate is None else row["tokens_per_second"] * matrix_operations(config) / rate


def targets(results: list[dict[str, Any]]) -> dict[str, float]:
    """Those of :data:`TARGETS` that these results answer, by the fastest of our ways at each type."""
    found: dict[str, float] = {}
    by_case = {result["case"]: result["engines"] for result in results}

    def best(case: str, kind: str, figure: str, choose: Callable[..., float] = max) -> float | None:
        values = [row[figure] for name, row in by_case.get(case, {}).items() if name.startswith(kind)]
        return choose(values) if values else None

    wide, small = best("512", "bf16", "tokens_per_second"), best("512", "fp8", "tokens_per_second")
    peer = best("512", "sentence-transformers", "tokens_per_second")
    figures = {
        "bf16 share of the GEMM rate, 512 tokens": best("512", "bf16", "share_of_gemm"),
        "bf16 against sentence-transformers bf16": wide / peer if wide and peer else None,
        "rerank pairs a second, 64 x 160": best("rerank-64x160", "bf16", "texts_per_second"),
        "fp8 against bf16": small / wide if small and wide else None,
        "single query p50, ms (at most)": best("single", "bf16", "p50_ms", min),
    }
    found.update({name: value for name, value in figures.items() if value is not None})
    return found


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{row['p50_ms']:,.2f}",
            f"{row['spread']:.0%}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['texts_per_second']:,.0f}",
            "-" if row["share_of_gemm"] is None else f"{row['share_of_gemm']:.0%}",
            f"{row['peak_gib']:.1f}",
            "-" if row["lowest_cosine"] is None else f"{row['lowest_cosine']:.5f}",
            "-" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}",
        )
        for name, row in result["engines"].items()
    ]
    columns = ("engine", "p50 ms", "spread", "tokens/s", "texts/s", "of GEMM", "peak GiB", "cosine", "difference")
    print_table(rows, columns, f"{result['case']}: {result['texts']} texts, {result['tokens']:,} tokens", 130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6B")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--cases", nargs="+", default=["512", "rerank-64x160", "single", "mixed", "queries", "long"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="What does the work between products.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="Leave sentence-transformers out.")
    options = parser.parse_args()
    reason = no_gpu()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(3)
    warnings.simplefilter("ignore")
    config = shape(options.shape, options.layers)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_embedder(folder, config, torch.bfloat16)
        rates = gemm_rates()
        engines: dict[str, Ours | Peer] = {}
        for way in options.ways:
            engines[f"bf16 {way}"] = Ours(folder, "bfloat16", way)
            if "fp8" in rates and way != "plain":
                engines[f"fp8 {way}"] = Ours(folder, "fp8", way)
        if not options.no_peer:
            engines["sentence-transformers bf16"] = Peer(folder)
        words, found = Tokenizer.from_folder(folder), []
        extra: dict[str, Any] = {}
        for name in options.cases:
            if name == "long":
                first = next(iter(engines.values()))
                assert isinstance(first, Ours)
                extra["long"] = long_text(first.embedder)
                extra["synchronisations"] = synchronisations(first.embedder, random_texts(words, [500] * 64))
                print(f"one long text: {extra['long']}; waits inside a pass: {extra['synchronisations']}")
                continue
            case = cases(SCALE.get(name, 1))[name]
            result = measure(case, case.work(words), engines, options.rounds)
            add_shares(result, config, rates)
            show(result)
            found.append(result)
    ratios = targets(found)
    rows: list[tuple[str, ...]] = [(name, f"{value:,.2f}", f"{TARGETS[name]:,}") for name, value in ratios.items()]
    print_table(rows, ("figure", "found", "wanted at the 0.6B shape"), width=130)
    card = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    line = {
        **{"shape": options.shape, "layers": config.num_hidden_layers},
        "gemm_tflops": {name: rate / 1e12 for name, rate in rates.items()},
        "cases": found,
        "ratios": ratios,
        **extra,
        **card,
        **machine(),
    }
    print(json.dumps(line))
    print(save(f"gpu-{options.shape}", line), file=sys.stderr)


if __name__ == "__main__":
    main()
