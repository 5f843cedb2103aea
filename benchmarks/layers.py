"""Whole layers at an exact published width, every row computed: by PyTorch, by our kernel, and by transformers.

Small and quick (a small vocabulary, two layers), for comparing arithmetic, not loading, sorting or padding.

    python -m benchmarks.layers --rounds 5 --clock cpu
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.cases import machine, random_backbone, save, shape
from qwen3_embedding.inference.kernel import choose_kernel, use_kernel
from qwen3_embedding.inference.speed import gemm_rate, interleave, matrix_operations, operators_by_part
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.model.config import config_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 128, 128, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    config = replace(shape(options.shape, options.layers), vocab_size=2000)
    backbone = random_backbone(config)
    native = choose_kernel("native", torch.device("cpu"), torch.float32)
    ours = {"PyTorch float32": backbone, "PyTorch int8": use_kernel(copy.deepcopy(backbone), None, torch.int8)}
    for name, dtype in (("native float32", torch.float32), ("native int8", torch.int8)):
        ours[name] = use_kernel(copy.deepcopy(backbone), native, dtype)
    with torch.device("meta"):
        reference = transformers.Qwen3Model(transformers.Qwen3Config(**config_json(config, 1)))
    assert native is not None
    reference.load_state_dict(backbone.state_dict(), assign=True)
    reference.rotary_emb = type(reference.rotary_emb)(reference.config)
    reference.eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 2000, length).tolist() for length in options.lengths]
    batch, tokens = pack(sequences), sum(options.lengths)
    runs: dict[str, Callable[[], Any]] = {
        **{name: partial(model.hidden_states, batch) for name, model in ours.items()},
        "transformers float32, one by one": lambda: [
            reference(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state for ids in sequences
        ],
    }
    with torch.inference_mode():
        timings = interleave(runs, options.rounds, clock=options.clock)
        parts = {name: operators_by_part(runs[name], model) for name, model in ours.items()}
        exact = runs["PyTorch float32"]()
        cosines = {
            name: float(torch.nn.functional.cosine_similarity(exact, runs[name]()).min())
            for name in ours
            if "int8" in name
        }
    rates = {int8: gemm_rate(int8, clock=options.clock) for int8 in (False, True)}
    operations = matrix_operations(config) * tokens
    engines = {
        name: {
            "seconds": timing.seconds,
            "spread": timing.spread,
            "ms_per_layer": timing.median / options.layers * 1000,
            "share_of_gemm": operations / timing.median / rates["int8" in name],
        }
        for name, timing in timings.items()
    }
    result = {
        **{"shape": options.shape, "layers": options.layers, "lengths": options.lengths, "clock": options.clock},
        "gemm_gops": {"float32": rates[False] / 1e9, "int8": rates[True] / 1e9},
        "engines": engines,
        "kernel": native.isa,
        "lowest_cosine_int8": cosines,
        "parts": parts,
        **machine(),
    }
    slow = timings["transformers float32, one by one"].median
    for name, engine in engines.items():
        times = f"{slow / timings[name].median:.2f} x transformers"
        print(
            f"{name:34} {engine['ms_per_layer']:8.2f} ms a layer  {engine['share_of_gemm']:7.1%} of the rate  {times}"
        )
    print(json.dumps(result))
    save("layers", result)


if __name__ == "__main__":
    main()
