"""``info``: what a model is, and how it would run here."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated, Any

import typer

from qwen3_embedding import __version__
from qwen3_embedding.cli.common import Device, DType, HubName, Json, Kernel, Offline, hub


def command(
    source: Annotated[str, typer.Argument(help="Folder, hub id, or bundled name.")] = "nano-embedding",
    device: Device = "auto",
    dtype: DType = "auto",
    hub_name: HubName = "huggingface",
    offline: Offline = False,
    kernel: Kernel = "auto",
    as_json: Json = False,
) -> None:
    """Show what is loaded and how: shape, type, device, kernel, fingerprint, versions."""
    facts = _facts(source, device, dtype, offline, hub_name, kernel)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:{width}}  {value}")


def _facts(source: str, device: str, dtype: str, offline: bool, hub_name: str, kernel: str) -> dict[str, Any]:
    import numpy
    import tokenizers
    import torch

    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.kernel import describe, why_not_native
    from qwen3_embedding.inference.reranker import Reranker
    from qwen3_embedding.inference.source import resolve
    from qwen3_embedding.inference.verify import kind_of
    from qwen3_embedding.model.quantized import choose_engine

    folder = resolve(source, offline=offline, hub=hub(hub_name))
    kind = kind_of(folder)
    loader = Embedder if kind == "embedder" else Reranker
    model = loader.from_pretrained(folder, device, dtype, kernel=kernel)
    config = model.backbone.config
    return {
        "model": source,
        "kind": kind,
        "folder": str(folder),
        "fingerprint": model.fingerprint,
        "parameters": config.parameters,
        "layers": config.num_hidden_layers,
        "dimensions": config.hidden_size,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "max tokens": model.max_tokens,
        "stored as": config.dtype,
        "runs as": model.backbone.type_name,
        "device": str(model.backbone.device),
        "kernel": describe(model.backbone),
        "why not native": why_not_native(model.backbone) or "-",
        "batch tokens": model.runner.settings.batch_tokens,
        "library's int8": choose_engine().name,
        "threads": torch.get_num_threads(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "package": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
    }
