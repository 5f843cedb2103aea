"""What it costs that a text's vector is equal to the last bit alone and in any batch, on our kernel and on PyTorch's.

python -m benchmarks.reproducible --layers 2 --texts 32 --rounds 3 --clock cpu
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.cases import machine, random_backbone, save, shape
from qwen3_embedding.inference.kernel import choose_kernel, use_kernel
from qwen3_embedding.inference.runner import DTYPES, Runner, RunSettings
from qwen3_embedding.inference.speed import interleave, mixed_lengths
from qwen3_embedding.model.pooling import normalize

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    backbone = random_backbone(replace(shape(options.shape, options.layers), vocab_size=2000))
    rng = np.random.default_rng(0)
    lengths = mixed_lengths(options.texts)
    sequences = [rng.integers(0, 2000, length).tolist() for length in lengths]
    found = {}
    for dtype in ("float32", "int8"):
        runs = {}
        for kernel in ("native", "library"):
            library = choose_kernel(kernel, CPU, DTYPES[dtype])
            model = use_kernel(copy.deepcopy(backbone), library, DTYPES[dtype])
            for reproducible in (False, True):
                settings = RunSettings.for_device(CPU, reproducible=reproducible)
                name = f"{kernel}{', reproducible' if reproducible else ''}"
                runs[name] = partial(Runner(model, normalize, settings).run, sequences)
        timings = interleave(runs, options.rounds, clock=options.clock)
        for name, run in runs.items():
            alone = np.concatenate([run.func.__self__.run([sequence]) for sequence in sequences])  # type: ignore[attr-defined]
            rate = sum(lengths) / timings[name].median
            found[f"{dtype} {name}"] = {"tokens_per_second": rate, "bit_equal_alone": bool((alone == run()).all())}
            print(f"{dtype:8} {name:24} {rate:10,.0f} tokens/s, alone bit-equal: {bool((alone == run()).all())}")
    result = {"shape": options.shape, "layers": options.layers, "tokens": sum(lengths), "clock": options.clock}
    result |= {"runs": found, **machine()}
    print(json.dumps(result))
    save("reproducible", result)


if __name__ == "__main__":
    main()
