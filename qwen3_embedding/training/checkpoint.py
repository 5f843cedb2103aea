"""Checkpoints of a run: weights and optimizer as safetensors, the rest as JSON; whole or not there at all.

One process writes ``weights.safetensors`` and ``optimizer.safetensors``.  Processes that hold the model in parts
write a file each, under the same tensor names.  Either is read back by one process or by any number.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.whole import force_to_disk

FOLDER = re.compile(r"step-(\d{8})")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what to do where a folder cannot be written; a full disk is an error of the library that writes tensors.

    Raises:
        CheckpointError: the folder could not be written. What was there before is untouched.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else ".").free
        raise CheckpointError(
            f"{folder}: cannot be written: {error} ({free / 1e9:.1f} GB are free there); make room and run again, it "
            "goes on from the last checkpoint"
        ) from error


@dataclass(frozen=True)
class State:
    """Where a run stands, weights and optimizer aside. Batches and random numbers need no state: they follow
    from seed and step."""

    step: int
    """Steps done."""
    settings: Mapping[str, Any]
    """What must not change between two parts of a run."""


@dataclass(frozen=True)
class Trained:
    """What a checkpoint keeps of a model in training."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    sharded: bool = False
    """Whether each process holds a part of every parameter."""


def save(run_folder: Path, state: State, trained: Trained, keep: int) -> Path:
    """Write the checkpoint of a step beside, then rename; then remove all but the newest ``keep``.

    Every process calls this and waits until the checkpoint is there.

    Raises:
        CheckpointError: it cannot be written; the one before stays.
    """
    folder = run_folder / "checkpoints" / f"step-{state.step:08d}"
    with writing(folder):
        _save(folder, state, trained)
    if trained.ranks.first:
        for old in all_checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
    trained.ranks.wait()
    return folder


def _save(folder: Path, state: State, trained: Trained) -> None:
    beside = folder.with_name(folder.name + ".partial")
    ranks = trained.ranks
    if ranks.first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    if trained.sharded:
        from qwen3_embedding.training.distributed import sharding

        ranks.wait()
        sharding.save(beside, {**trained.parameters, **_moments(trained)})
        ranks.wait()
    elif ranks.first:
        weights = {name: p.detach().cpu().contiguous() for name, p in trained.parameters.items()}
        save_file(weights, beside / "weights.safetensors")
        moments = {name: value.cpu().contiguous() for name, value in _moments(trained).items()}
        save_file(moments, beside / "optimizer.safetensors")
    if ranks.first:
        text = json.dumps({"step": state.step, "settings": state.settings}, ensure_ascii=False, indent=2)
        (beside / "state.json").write_text(text + "\n", encoding="utf-8")
        force_to_disk(*beside.rglob("*"), beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(beside, folder)


def all_checkpoints(run_folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run_folder / "checkpoints").glob("step-*") if FOLDER.fullmatch(path.name))


def load(folder: Path, settings: Mapping[str, Any], trained: Trained) -> State:
    """Put a checkpoint's weights and optimizer back.

    Raises:
        CheckpointError: a torn file, other weights, or other settings than the run was begun with.
    """
    try:
        raw = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise _unreadable(folder, error) from error
    _check_settings(folder, raw["settings"], settings)
    if trained.sharded or not (folder / "weights.safetensors").exists():
        _load_parts(folder, trained)
    else:
        _load_whole(folder, trained)
    return State(int(raw["step"]), raw["settings"])


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: cannot be read: {error}; remove it to go on from the one before")


def _load_whole(folder: Path, trained: Trained) -> None:
    try:
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    parameters = trained.parameters
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[0]
        raise CheckpointError(f"{folder}: its weights are not this model's (first difference: {odd})")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    _restore(trained, {key: value.to(parameters[key.rsplit(":", 1)[0]].device) for key, value in moments.items()})


def _load_parts(folder: Path, trained: Trained) -> None:
    """Into weights and moments that are whole or in parts, from files that are whole or in parts."""
    from qwen3_embedding.training.distributed import sharding

    moments: dict[str, Tensor] = {}
    for name, parameter in trained.parameters.items():
        moments[f"{name}:step"] = torch.zeros(1, device=parameter.device)
        for kind in ("exp_avg", "exp_avg_sq"):
            moments[f"{name}:{kind}"] = torch.zeros_like(parameter, requires_grad=False)
    sharding.load(folder, {**trained.parameters, **moments})
    _restore(trained, moments)


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(now))
    for key in sorted({*before, *plain}):
        if before.get(key) != plain.get(key):
            raise CheckpointError(
                f"{folder}: the run was begun with {key}={before.get(key)!r} and now has {plain.get(key)!r}; use the "
                "settings it was begun with, or another output"
            )


def _moments(trained: Trained) -> dict[str, Tensor]:
    """Of each parameter the optimizer's tensors, the step counter as a vector of one."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.parameters.items():
        for key, value in trained.optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value).detach()
            tensors[f"{name}:{key}"] = tensor if tensor.ndim else tensor.reshape(1)
    return tensors


def _restore(trained: Trained, moments: Mapping[str, Tensor]) -> None:
    for key, value in moments.items():
        name, kind = key.rsplit(":", 1)
        # The step counter stays fp32 on the parameter's device, as the fused optimizer wants it.
        trained.optimizer.state[trained.parameters[name]][kind] = value.reshape(()) if kind == "step" else value
