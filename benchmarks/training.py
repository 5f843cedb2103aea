"""Training speed and memory: this package beside sentence-transformers on the same records, batches and model.

    python -m benchmarks.training speed [RECORDS.jsonl.xz] [--batch-size 256] [--steps 3]
    python -m benchmarks.training memory [RECORDS.jsonl.xz] [--batch-size 4096]

``speed`` takes turns: a step of each engine, so that what else the machine does falls on both; the figure is the ratio
of the medians.  Both make the same gradient step: the loss of CachedMultipleNegativesRankingLoss (query against
documents, nothing masked), AdamW, clipping, fp32.  Tokens are counted as the texts have them: without padding, prompts
included.  Tokenising is outside the time of both.  sentence-transformers runs with its default chunks of 32 texts and
with chunks of as many tokens as ours; the faster one counts.  ``memory`` makes one step and prints the peak of the
process.

The model is the bundled nano embedder, or with ``--layers`` a random one of that many layers of width 256.  Without
RECORDS the texts are random, with log-normal lengths as real collections have them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import machine, save, tokenizer
from qwen3_embedding.cli.common import print_table
from qwen3_embedding.data import Record, read_records, write_records
from qwen3_embedding.inference.speed import mixed_lengths, peak_memory, random_texts
from qwen3_embedding.training.config import parse_settings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import EmbedderObjective
from qwen3_embedding.training.optimizer import clip_gradients, make_optimizer
from qwen3_embedding.training.repeatable import fixed_order

NANO = Path(__file__).resolve().parents[1] / "qwen3_embedding" / "assets" / "nano-embedding"
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.02,
}
MAX_TOKENS = 256
CHUNK_TOKENS = 8192
GIB = 1024**3

Step = Callable[[int], object]


def random_records(count: int) -> Iterator[Record]:
    """Pairs of random texts: short queries, documents of log-normal lengths."""
    words = tokenizer()
    queries = random_texts(words, mixed_lengths(count, mean=12, longest=40, seed=1))
    documents = random_texts(words, mixed_lengths(count, mean=90, longest=400, seed=2))
    for number, (query, document) in enumerate(zip(queries, documents, strict=True)):
        yield Record(f"{number} {query}", (f"{number} {document}",), "retrieval", "random")


def objective(folder: Path, options: argparse.Namespace) -> EmbedderObjective:
    model = NANO
    if options.layers:
        from tests.support.checkpoints import make_embedder_folder

        model = make_embedder_folder(folder / "model", **SHAPE, num_hidden_layers=options.layers)
    taken = folder / "records.jsonl"
    count = (options.steps + 1) * options.batch_size
    write_records(taken, islice(read_records(options.records), count) if options.records else random_records(count))
    settings = parse_settings(
        {
            "kind": "embedder",
            "model": str(model),
            "output": str(folder / "out"),
            "data": {
                "sources": [{"path": str(taken)}],
                "batch_size": options.batch_size,
                "by_language": False,
                "negatives": 0,
                "max_query_tokens": MAX_TOKENS,
                "max_document_tokens": MAX_TOKENS,
                "cache": str(folder / "cache"),
            },
            "loss": {
                "temperature": 0.05,
                "query_query": False,
                "document_document": False,
                "mask_by_margin": False,
                "mask_equal_texts": False,
            },
            "run": {"chunk_tokens": CHUNK_TOKENS, "kept_tokens": options.kept_tokens},
        }
    )
    return EmbedderObjective(settings, torch.device("cpu"))


def our_step(made: EmbedderObjective) -> Step:
    optimizer = make_optimizer(made.parameters.items(), made.settings.optimizer)

    def step(number: int) -> None:
        with fixed_order(made.device):
            optimizer.zero_grad(set_to_none=True)
            made.backward(number, made.settings.run, Ranks())
            clip_gradients(made.parameters.values(), 1.0)
            optimizer.step()

    return step


def their_step(made: EmbedderObjective, mini_batch_tokens: int | None) -> Step:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from qwen3_embedding.inputs.prompts import query_prefix

    model = SentenceTransformer(
        str(made.settings.model), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    model.max_seq_length = MAX_TOKENS
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_num_tokens=mini_batch_tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    records = list(read_records(made.settings.data.sources[0].path))
    ready: dict[int, list[Any]] = {}

    def prepare(number: int) -> None:
        chosen = [records[row] for row in made.batches.batch(number).records.tolist()]
        prompts = [query_prefix(record.instruction) + record.query for record in chosen]
        ready[number] = [model.preprocess(prompts), model.preprocess([record.positives[0] for record in chosen])]

    for number in range(made_steps(made)):
        prepare(number)

    def step(number: int) -> None:
        features = ready[number]
        optimizer.zero_grad(set_to_none=True)
        value: torch.Tensor = loss.forward(features, torch.zeros(len(features[0]["input_ids"])))
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.train()
    return step


def made_steps(made: EmbedderObjective) -> int:
    """Steps of one pass over the records."""
    return len(made.batches.stores[0]) // made.settings.data.batch_size


def speed(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        made = objective(Path(name), options)
        engines = {
            "ours": our_step(made),
            "sentence-transformers, 32 texts": their_step(made, None),
            f"sentence-transformers, {CHUNK_TOKENS} tokens": their_step(made, CHUNK_TOKENS),
        }
        rates: dict[str, list[float]] = {engine: [] for engine in engines}
        for number in range(options.steps + 1):  # the first warms up
            tokens = sum(map(len, made.batches.batch(number).sequences))
            for engine, step in engines.items():
                began = time.perf_counter() if options.clock == "wall" else time.process_time()
                step(number)
                ended = time.perf_counter() if options.clock == "wall" else time.process_time()
                if number:
                    rates[engine].append(tokens / (ended - began))
    medians = {engine: statistics.median(found) for engine, found in rates.items()}
    theirs = max(rate for engine, rate in medians.items() if engine != "ours")
    rows = [(e, f"{r:,.0f}", f"{min(rates[e]):,.0f} to {max(rates[e]):,.0f}") for e, r in medians.items()]
    print_table(rows, ("engine", "tokens/s", "range"), f"{options.steps} steps of {options.batch_size} pairs, fp32")
    return {"tokens_per_second": rates, "medians": medians, "times_as_fast": round(medians["ours"] / theirs, 3)}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        made = objective(Path(name), options)
        step = our_step(made)
        before = peak_memory()
        began = time.perf_counter()
        step(0)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, made.batches.batch(0).sequences))
    peak = peak_memory()
    row = (str(options.batch_size), f"{tokens:,}", f"{before / GIB:.2f}", f"{peak / GIB:.2f}", f"{seconds:.1f}")
    print_table([row], ("pairs", "tokens", "GiB before", "GiB at most", "seconds"), "one step")
    return {"peak_gib": peak / GIB, "before_gib": before / GIB, "seconds": seconds, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--batch-size", type=int, default=None, help="default: 256 for speed, 4096 for memory")
    parser.add_argument("--layers", type=int, default=0, help="a random model of so many layers; 0: the bundled one")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kept-tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.what == "memory":
        options.steps = 0
    options.batch_size = options.batch_size or (4096 if options.what == "memory" else 256)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = (speed if options.what == "speed" else memory)(options)
    about = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()}
    line = {**about, **result, **machine()}
    print(json.dumps(line))
    print(save(f"training-{options.what}", line), file=sys.stderr)


if __name__ == "__main__":
    main()
