"""Low-rank adapters (Hu et al. 2021) through PEFT: put on, merged, written in PEFT's format, and checked after merging.

What is exported is merged, since an adapter that its reader overlooks changes nothing and nobody notices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.weights import fingerprint, load_backbone, write_json
from qwen3_embedding.optional import require
from qwen3_embedding.training.config import LoraSettings

NAME = "default"
PROBES = ([1, 2, 3, 4, 5], [7, 5, 3], list(range(10, 60)))
"""Token ids whose vectors are compared before and after the export."""


def attach(backbone: Backbone, settings: LoraSettings, seed: int) -> None:
    """Put adapters on the target layers; from then on only they are trained.

    Raises:
        ValueError: no layer has one of the target names.
    """
    peft = require("peft", extra="train")
    config = _config(peft, settings)
    linear = {name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(settings.targets) - linear)
    if unknown:
        raise ValueError(
            f"lora.targets: no linear layer is called {unknown[0]!r}; there are {', '.join(sorted(linear))}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, backbone, adapter_name=NAME)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _config(peft: Any, settings: LoraSettings) -> Any:
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )


def merged(backbone: Backbone) -> Backbone:
    """A plain backbone with the adapters' products added to the weights, in fp32."""
    deltas = {f"{name}.weight": layer.get_delta_weight(NAME) for name, layer in _adapted(backbone)}
    state: dict[str, Tensor] = {}
    for name, tensor in backbone.state_dict().items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        state[plain] = tensor + deltas[plain] if plain in deltas else tensor
    with torch.device("meta"):
        result = Backbone(backbone.config)
    result.load_state_dict(state, assign=True)
    return result.eval()


def _adapted(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in backbone.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A"):
            yield name, module


def write_adapter(folder: Path, backbone: Backbone, settings: LoraSettings, base: Path, prefix: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT reads them.

    Args:
        folder: where to.
        backbone: with adapters.
        settings: of the adapters.
        base: the checkpoint folder they were trained on; its fingerprint is kept in ``base.json``.
        prefix: ``""`` for embedders, ``"model."`` for causal-LM checkpoints (rerankers).
    """
    peft = require("peft", extra="train")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{prefix}{name.replace(f'.{NAME}.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in backbone.state_dict().items()
        if "lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _config(peft, settings)
    config.base_model_name_or_path = base.name
    config.inference_mode = True
    config.task_type = "CAUSAL_LM" if prefix else "FEATURE_EXTRACTION"
    config.save_pretrained(str(folder))
    write_json(folder / "base.json", {"fingerprint": fingerprint(base)})


def merge_adapter(base: Path, adapter: Path) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone of ``base`` with an adapter written by :func:`write_adapter` or PEFT merged in, and the head's rows.

    Raises:
        CheckpointError: not an adapter, or one of another base (by fingerprint, or by names and shapes).
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(adapter / "adapter_model.safetensors")
        scale = float(config["lora_alpha"]) / int(config["r"])
    except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{adapter}: not a LoRA adapter in PEFT's format: {error}") from error
    known = adapter / "base.json"
    if known.exists() and json.loads(known.read_text())["fingerprint"] != fingerprint(base):
        raise CheckpointError(
            f"{adapter}: was trained on another checkpoint than {base} (fingerprints differ); use "
            f"{config.get('base_model_name_or_path')!r}"
        )
    backbone, extra = load_backbone(base, dtype=torch.float32)
    weights = dict(backbone.named_parameters())
    with torch.no_grad():
        for name, down in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            plain = (
                name.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".lora_A.weight") + ".weight"
            )
            up = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if up is None or plain not in weights or weights[plain].shape != (len(up), down.shape[1]):
                raise CheckpointError(
                    f"{adapter}: {name} {tuple(down.shape)} does not fit {base}; it is of another base"
                )
            parent, _, leaf = plain.rpartition(".")
            fresh = weights[plain] + scale * (up.float() @ down.float())
            setattr(backbone.get_submodule(parent), leaf, nn.Parameter(fresh, requires_grad=False))
    return backbone, extra


def output_hash(backbone: Backbone) -> str:
    """Hash of the vectors of some token ids, to three decimals of a unit vector: equal weights, equal hash."""
    vectors = probe(backbone)
    return hashlib.sha256((vectors * 1000).round().to(torch.int32).numpy().tobytes()).hexdigest()


def probe(backbone: Backbone) -> Tensor:
    """(P, D) unit vectors of some token ids, in fp32."""
    rows = backbone.config.vocab_size
    with torch.no_grad():
        pooled = backbone(pack([[token % rows for token in ids] for ids in PROBES]))
    return nn.functional.normalize(pooled.float().cpu(), dim=-1)


def check_export(folder: Path, trained: Backbone, base: Path, dtype: torch.dtype) -> None:
    """Read an exported checkpoint back and compare its vectors with the trained model's and the base's.

    Raises:
        CheckpointError: it does not give the trained model's vectors, or gives the base's.
    """
    wanted = probe(trained)
    got = probe(load_backbone(folder, dtype=torch.float32)[0])
    apart = float((wanted - got).abs().max())
    limit = 1e-4 if dtype == torch.float32 else 0.05
    if apart > limit:
        raise CheckpointError(
            f"{folder}: merged vectors differ from the trained ones by {apart:.2g}, above {limit:.2g}"
        )
    before = probe(load_backbone(base, dtype=torch.float32)[0])
    moved = any(bool((layer.lora_B[NAME].weight != 0).any()) for _, layer in _adapted(trained))
    if moved and torch.equal(before, got):
        raise CheckpointError(f"{folder}: gives the vectors of {base}; the adapter was not merged")
