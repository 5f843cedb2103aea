"""Training speed and memory: this package beside sentence-transformers on the same records, batch, shape and machine.

    python benchmarks/training.py speed RECORDS.jsonl.xz [--batch-size 256] [--steps 3]
    python benchmarks/training.py memory RECORDS.jsonl.xz [--batch-size 4096]

``speed`` takes turns: a step of each engine, so that what else the machine does falls on both.  Tokens are counted as
the texts have them: without padding, prompts included.  ``memory`` runs one step and prints the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qwen3_embedding.data import read_records, write_records
from qwen3_embedding.training.config import parse_settings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import EmbedderObjective
from qwen3_embedding.training.optimizer import clip_gradients, make_optimizer
from tests.support.checkpoints import make_embedder_folder

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.02,
}
MAX_TOKENS = 256


def objective(folder: Path, records: Path, arguments: argparse.Namespace, precision: str) -> EmbedderObjective:
    model = make_embedder_folder(folder / "model", **SHAPE)
    taken = folder / "records.jsonl"
    write_records(taken, islice(read_records(records), 4 * arguments.batch_size))
    settings = parse_settings(
        {
            "kind": "embedder",
            "model": str(model),
            "output": str(folder / "out"),
            "data": {
                "sources": [{"path": str(taken)}],
                "batch_size": arguments.batch_size,
                "max_query_tokens": MAX_TOKENS,
                "max_document_tokens": MAX_TOKENS,
                "cache": str(folder / "cache"),
            },
            # The terms of CachedMultipleNegativesRankingLoss.
            "loss": {"temperature": 0.05, "query_query": False, "document_document": False, "mask_by_margin": False},
            "run": {"precision": precision, "chunk_tokens": 8192, "kept_tokens": arguments.kept_tokens},
        }
    )
    return EmbedderObjective(settings, torch.device("cpu"))


def our_step(made: EmbedderObjective) -> Callable[[int], None]:
    optimizer = make_optimizer(made.parameters.items(), made.settings.optimizer)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        made.backward(number, made.settings.run, Ranks())
        clip_gradients(made.parameters.values(), 1.0)
        optimizer.step()

    return step


def their_step(made: EmbedderObjective, mini_batch: int) -> Callable[[int], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(str(made.settings.model), device="cpu", local_files_only=True)
    model.max_seq_length = MAX_TOKENS
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=mini_batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    records = list(read_records(made.settings.data.sources[0].path))

    def step(number: int) -> None:
        batch = made.batches.batch(number)
        chosen = [records[row] for row in batch.records.tolist()]
        prompts = [f"Instruct: {record.instruction}\nQuery:{record.query}" for record in chosen]
        features = [model.preprocess(prompts), model.preprocess([record.positives[0] for record in chosen])]
        optimizer.zero_grad(set_to_none=True)
        value: torch.Tensor = loss.forward(features, torch.zeros(len(chosen)))
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.train()
    return step


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        makers: dict[str, Callable[[Path], Callable[[int], None]]] = {
            "ours, float32": lambda folder: our_step(objective(folder, arguments.records, arguments, "float32")),
            "ours, bfloat16": lambda folder: our_step(objective(folder, arguments.records, arguments, "bfloat16")),
            "sentence-transformers, float32": lambda folder: their_step(
                objective(folder, arguments.records, arguments, "float32"), arguments.mini_batch
            ),
        }
        engines: dict[str, Callable[[int], None]] = {}
        for number, (engine, maker) in enumerate(makers.items()):
            folder = Path(name) / str(number)
            folder.mkdir()
            engines[engine] = maker(folder)
        counter = objective(Path(name), arguments.records, arguments, "float32")
        seconds = {engine: [0.0, 0.0] for engine in engines}
        tokens = 0
        for step in range(arguments.steps + 1):  # the first warms up
            tokens += sum(len(ids) for ids in counter.batches.batch(step).sequences) * (step > 0)
            for engine, run in engines.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run(step)
                if step:
                    seconds[engine][0] += time.perf_counter() - wall
                    seconds[engine][1] += time.process_time() - cpu
    return {
        "tokens": tokens,
        "tokens_per_second": {engine: round(tokens / wall, 1) for engine, (wall, _) in seconds.items()},
        "tokens_per_cpu_second": {engine: round(tokens / cpu, 1) for engine, (_, cpu) in seconds.items()},
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        step = our_step(objective(Path(name), arguments.records, arguments, arguments.precision))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        step(0)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_gib": round(peak / 2**20, 2), "before_gib": round(before / 2**20, 2), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("records", type=Path)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--mini-batch", type=int, default=32, help="of sentence-transformers (its default)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kept-tokens", type=int, default=16384)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args()
    result = (speed if arguments.what == "speed" else memory)(arguments)
    facts = {
        "command": " ".join(sys.argv),
        "shape": SHAPE,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
    }
    print(json.dumps({**facts, **result}, indent=2))


if __name__ == "__main__":
    main()
