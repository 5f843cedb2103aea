"""Peak memory and time of one long text at an exact published shape, on CPU in float32.

The activations of a layer are gone when the next begins, so peak memory beside the weights does not depend on how many
layers there are; run with two counts to see it.

    python -m benchmarks.long_context --tokens 32768 --layers 2 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.cases import GIB, machine, random_backbone, resident, save, shape
from qwen3_embedding.inference.kernel import KERNELS, choose_kernel, use_kernel
from qwen3_embedding.inference.speed import peak_memory
from qwen3_embedding.inputs.packing import pack


def child(name: str, tokens: int, layers: int, kernel: str) -> None:
    backbone = random_backbone(shape(name, layers))
    use_kernel(backbone, choose_kernel(kernel, torch.device("cpu"), torch.float32), torch.float32)
    ids = np.random.default_rng(0).integers(0, 151643, tokens)
    weights = resident()
    assert peak_memory() <= weights * 1.05, "building the weights used more than the weights; the peak would be theirs"
    begin = time.perf_counter()
    with torch.inference_mode():
        vector = backbone(pack([ids]))
    seconds = time.perf_counter() - begin
    assert vector.isfinite().all()
    beside = (peak_memory() - weights) / GIB
    print(json.dumps({"layers": layers, "seconds": seconds, "weights_gib": weights / GIB, "beside_gib": beside}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.6B")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.shape, options.tokens, options.layers[0], options.kernel)
        return
    runs = []
    for layers in options.layers:
        command = [sys.executable, "-m", "benchmarks.long_context", "--child", "--shape", options.shape]
        command += ["--tokens", str(options.tokens), "--layers", str(layers), "--kernel", options.kernel]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout))
        print(json.dumps(runs[-1]), file=sys.stderr)
    facts = {"shape": options.shape, "tokens": options.tokens, "dtype": "float32", "kernel": options.kernel}
    result = {**facts, "runs": runs, **machine()}
    print(json.dumps(result))
    save("long-context", result)


if __name__ == "__main__":
    main()
