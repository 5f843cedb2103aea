"""Checkpoints of a run: weights and optimizer as safetensors, the rest as JSON; whole or not there at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen3_embedding.errors import CheckpointError

FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class State:
    """Where a run stands, weights and optimizer aside. Batches need no state: they follow from seed and step."""

    step: int
    """Steps done."""
    settings: Mapping[str, Any]
    """What must not change between two parts of a run."""


def save(
    run_folder: Path, state: State, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write the checkpoint of a step beside, then rename; then remove all but the newest ``keep``."""
    folder = run_folder / "checkpoints" / f"step-{state.step:08d}"
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, beside / "weights.safetensors")
    save_file(_moments(parameters, optimizer), beside / "optimizer.safetensors")
    save_file({"cpu": torch.get_rng_state()}, beside / "random.safetensors")
    text = json.dumps({"step": state.step, "settings": state.settings}, ensure_ascii=False, indent=2)
    (beside / "state.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(beside, folder)
    for old in all_checkpoints(run_folder)[:-keep]:
        shutil.rmtree(old)
    return folder


def all_checkpoints(run_folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run_folder / "checkpoints").glob("step-*") if FOLDER.fullmatch(path.name))


def load(
    folder: Path, settings: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> State:
    """Put a checkpoint's weights, optimizer and random state back.

    Raises:
        CheckpointError: a torn file, other weights, or other settings than the run was begun with.
    """
    try:
        raw = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        random = load_file(folder / "random.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}; remove it to go on from the one before") from error
    _check_settings(folder, raw["settings"], settings)
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[0]
        raise CheckpointError(f"{folder}: its weights are not this model's (first difference: {odd})")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    _restore(parameters, optimizer, moments)
    torch.set_rng_state(random["cpu"])
    return State(int(raw["step"]), raw["settings"])


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(now))
    for key in sorted({*before, *plain}):
        if before.get(key) != plain.get(key):
            raise CheckpointError(
                f"{folder}: the run was begun with {key}={before.get(key)!r} and now has {plain.get(key)!r}; use the "
                "settings it was begun with, or another output"
            )


def _moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def _restore(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    for key, value in moments.items():
        name, kind = key.rsplit(":", 1)
        parameter = parameters[name]
        # The step counter stays fp32 on the parameter's device, as the fused optimizer wants it.
        optimizer.state[parameter][kind] = value.to(parameter.device)
