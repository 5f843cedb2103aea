"""What computing shared prefixes once saves: reranking for one query, and queries behind one instruction.

Both ways in one process, interleaved, through :class:`Reranker` and :class:`Embedder` as people call them.

    python -m benchmarks.prefix_sharing --dtype int8 --rounds 3
    python -m benchmarks.prefix_sharing --dtype float32 --layers 4 --rounds 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import (
    INSTRUCTION_TOKENS,
    QUERY_TOKENS,
    machine,
    random_backbone,
    save,
    shape,
    task_of,
    tokenizer,
)
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.kernel import KERNELS, choose_kernel, describe, use_kernel
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.runner import DTYPES
from qwen3_embedding.inference.speed import Clock, count_tokens, interleave, random_texts
from qwen3_embedding.model.scoring import YesNoHead

DOCUMENT_TOKENS = 100


def compare(
    model: Embedder | Reranker, run: Callable[[], np.ndarray], rounds: int, clock: Clock = "wall"
) -> dict[str, Any]:
    """Tokens, seconds and results of ``run`` with sharing on and off."""
    on, off = (replace(model.runner.settings, share_prefixes=share) for share in (True, False))

    def with_settings(settings: Any) -> Callable[[], np.ndarray]:
        def work() -> np.ndarray:
            model.runner.settings = settings
            return run()

        return work

    shared, separate = with_settings(on), with_settings(off)
    outputs: list[np.ndarray] = []

    def kept(work: Callable[[], np.ndarray]) -> Callable[[], object]:
        return lambda: outputs.append(work())

    tokens = [count_tokens(model.backbone, kept(work)) for work in (shared, separate)]
    timings = interleave({"shared": shared, "separate": separate}, rounds, warm_up=False, clock=clock)
    return {
        "tokens_shared": tokens[0],
        "tokens_separate": tokens[1],
        "share_of_tokens": tokens[0] / tokens[1],
        "seconds_shared": timings["shared"].seconds,
        "seconds_separate": timings["separate"].seconds,
        "speed_up": timings["separate"].median / timings["shared"].median,
        "largest_difference": float(np.abs(outputs[0] - outputs[1]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--layers", type=int, default=None, help="Fewer layers; every layer saves the same share.")
    parser.add_argument("--dtype", choices=("float32", "int8"), default="float32")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--queries", type=int, default=64)
    options = parser.parse_args()
    words, backbone = tokenizer(), random_backbone(shape(options.shape, options.layers))
    head = YesNoHead(
        backbone.embed_tokens.weight[words.no_id].clone(), backbone.embed_tokens.weight[words.yes_id].clone()
    )
    dtype = DTYPES[options.dtype]
    use_kernel(backbone, choose_kernel(options.kernel, backbone.device, dtype), dtype)
    reranker, embedder = Reranker(backbone, head, words, "random"), Embedder(backbone, words, "random")
    query = random_texts(words, [QUERY_TOKENS + 1])[0]
    documents = random_texts(words, [DOCUMENT_TOKENS + 1] * options.documents, seed=1)
    queries = random_texts(words, [QUERY_TOKENS + 1] * options.queries, seed=2)
    task = task_of(words, INSTRUCTION_TOKENS)
    result = {
        **{
            "shape": options.shape,
            "layers": backbone.config.num_hidden_layers,
            "dtype": options.dtype,
            "kernel": describe(backbone),
            "clock": options.clock,
        },
        "rerank": compare(reranker, lambda: reranker.score(query, documents), options.rounds, options.clock),
        "queries": compare(embedder, lambda: embedder.embed_queries(queries, task), options.rounds, options.clock),
        **machine(),
    }
    print(json.dumps(result))
    save(f"prefix-sharing-{options.dtype}", result)


if __name__ == "__main__":
    main()
