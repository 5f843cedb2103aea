"""Whole layers at an exact published width, every row computed: ours in float32 and int8 beside transformers.

Small and quick (a small vocabulary, two layers), for comparing arithmetic, not loading, sorting or padding.

    python -m benchmarks.layers --rounds 5 --clock cpu
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace

import numpy as np
import torch
import transformers

from benchmarks.cases import machine, random_backbone, save, shape
from qwen3_embedding.inference.speed import gemm_rate, interleave, matrix_operations, operators_by_part
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.model.config import config_json
from qwen3_embedding.model.quantized import quantize_


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
    small = quantize_(copy.deepcopy(backbone))
    with torch.device("meta"):
        reference = transformers.Qwen3Model(transformers.Qwen3Config(**config_json(config, 1)))
    reference.load_state_dict(backbone.state_dict(), assign=True)
    reference.rotary_emb = type(reference.rotary_emb)(reference.config)
    reference.eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 2000, length).tolist() for length in options.lengths]
    batch, tokens = pack(sequences), sum(options.lengths)
    runs = {
        "ours float32": lambda: backbone.hidden_states(batch),
        "ours int8": lambda: small.hidden_states(batch),
        "transformers float32, one by one": lambda: [
            reference(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state for ids in sequences
        ],
    }
    with torch.inference_mode():
        timings = interleave(runs, options.rounds, clock=options.clock)
        parts = {name: operators_by_part(runs[name]) for name in ("ours float32", "ours int8")}
        cosines = torch.nn.functional.cosine_similarity(runs["ours float32"](), runs["ours int8"]())
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
        "lowest_cosine_int8": float(cosines.min()),
        "parts": parts,
        **machine(),
    }
    print(json.dumps(result))
    save("layers", result)


if __name__ == "__main__":
    main()
