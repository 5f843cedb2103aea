"""Peak memory and speed of a merge of 8B-shaped checkpoints.

Writes random bfloat16 checkpoints with the full tables and the full width of Qwen3-8B and fewer layers (memory does not
depend on how many there are), merges them in a process of its own, and prints that process's peak resident set.

    python benchmarks/merge_memory.py --layers 4 --sources 2 --method slerp --folder /tmp/merge-memory
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qwen3_embedding.merging import tensors
from qwen3_embedding.merging.merge import merge
from qwen3_embedding.merging.settings import MergeSettings, Source
from qwen3_embedding.merging.tensors import Planned, write_folder
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig, config_json
from qwen3_embedding.model.weights import write_json

GIB = 1024**3


def shape(layers: int) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
    )


def write_checkpoint(folder: Path, config: BackboneConfig, seed: int) -> None:
    folder.mkdir(parents=True)
    with torch.device("meta"):
        names = {name: tuple(parameter.shape) for name, parameter in Backbone(config).named_parameters()}
    generator = torch.Generator().manual_seed(seed)

    def pieces(planned: Planned) -> Iterator[Tensor]:
        left = planned.bytes // 2
        while left:
            size = min(left, tensors.PIECE)
            yield torch.randn(size, generator=generator).mul_(0.02).to(torch.bfloat16)
            left -= size

    write_folder(folder, [Planned(name, torch.bfloat16, dims) for name, dims in names.items()], pieces, 4 * GIB)
    write_json(folder / "config.json", config_json(config, 151643))
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": []})


def child(folder: Path, sources: int, method: str) -> None:
    paths = tuple(Source(folder / f"run-{number}", number + 1.0) for number in range(sources))
    begin = time.perf_counter()
    report = merge(MergeSettings(method=method, sources=paths, output=folder / "merged"))  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"parameters": report.parameters, "seconds": seconds, "peak_gib": peak / GIB}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--method", default="slerp")
    parser.add_argument("--folder", type=Path, default=Path("merge-memory"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, options.sources, options.method)
        return
    try:
        for number in range(options.sources):
            write_checkpoint(options.folder / f"run-{number}", shape(options.layers), number)
        command = [sys.executable, __file__, "--child", "--sources", str(options.sources), "--method", options.method]
        done = subprocess.run([*command, "--folder", str(options.folder)], check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    result = json.loads(done.stdout)
    about = {"method": options.method, "sources": options.sources, "layers": options.layers, "torch": torch.__version__}
    speed = {"million_parameters_per_second": result["parameters"] / result["seconds"] / 1e6}
    print(json.dumps({**about, **result, **speed, "machine": platform.processor() or platform.machine()}, indent=2))


if __name__ == "__main__":
    main()
