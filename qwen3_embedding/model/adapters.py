"""LoRA adapters (Hu et al. 2021) on a backbone, not merged: several share one base and cost only themselves.

An adapted layer computes ``W x + scale * B (A x)`` with ``scale = alpha / r`` (``alpha / sqrt(r)`` for rsLoRA): what
merging gives, up to rounding. Files are PEFT's; only safetensors are read.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.weights import plain_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_UNSUPPORTED = ("use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "trainable_token_indices")


class AdaptedLinear(nn.Module):
    """A linear layer with the low-rank product of an adapter beside it."""

    def __init__(self, base: nn.Linear, down_KI: Tensor, up_OK: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        like = base.weight
        self.down = nn.Parameter(down_KI.to(like.device, like.dtype), requires_grad=False)
        self.up = nn.Parameter((up_OK.float() * scale).to(like.device, like.dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(R, I) to (R, O)."""
        low_RK = nn.functional.linear(x, self.down)
        return torch.addmm(self.base(x), low_RK, self.up.t())


def adapted(backbone: Backbone, folder: Path) -> Backbone:
    """A backbone with the adapter of ``folder`` that shares all weights of ``backbone``, which stays as it is.

    Raises:
        ValueError: an int8 backbone.
        CheckpointError: not a LoRA adapter in PEFT's format, one with parts that a LoRA on linear layers does not have,
            or one of another base (by names and shapes).
    """
    if backbone.quantization is not None:
        raise ValueError(f"adapters need a base in a float type and it is {backbone.quantization}; use dtype float32")
    config, tensors = _read(folder)
    with torch.device("meta"):
        result = Backbone(backbone.config)
    result.load_state_dict(backbone.state_dict(), assign=True)
    result.requires_grad_(False)
    for name in sorted(tensors):
        if not name.endswith(_DOWN):
            continue
        plain = plain_name(name.removeprefix("base_model.model.")).removesuffix(_DOWN)
        _adapt(result, plain, tensors[name], tensors.get(name.replace(_DOWN, _UP)), config, folder)
    return result.eval()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        kind, rank, _ = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a LoRA adapter in PEFT's format: {error}") from error
    extras = [name for name in _UNSUPPORTED if config.get(name)]
    foreign = [name for name in tensors if not name.endswith((_DOWN, _UP))]
    if kind != "LORA" or extras or foreign or rank < 1 or not tensors:
        found = ", ".join([*extras, *foreign[:2]]) or f"peft_type={kind}, {len(tensors)} tensors"
        raise CheckpointError(f"{folder}: wanted a plain LoRA on linear layers; found {found}. Merge it into its base")
    return config, tensors


def _adapt(
    backbone: Backbone, name: str, down: Tensor, up: Tensor | None, config: dict[str, Any], folder: Path
) -> None:
    try:
        layer: nn.Module | None = backbone.get_submodule(name)
    except AttributeError:
        layer = None
    shape = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else None
    if shape is None or up is None or shape != (len(up), down.shape[1]) or len(down) != up.shape[1]:
        raise CheckpointError(
            f"{folder}: {name} has the shapes {tuple(down.shape)} and {None if up is None else tuple(up.shape)}, and "
            f"the base {shape}; the adapter belongs to another base"
        )
    assert isinstance(layer, nn.Linear)
    parent, _, leaf = name.rpartition(".")
    setattr(backbone.get_submodule(parent), leaf, AdaptedLinear(layer, down, up, _scale(name, len(down), config)))


def _scale(name: str, rank: int, config: dict[str, Any]) -> float:
    alpha = float(config["lora_alpha"])
    for pattern, special in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
            alpha = float(special)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
