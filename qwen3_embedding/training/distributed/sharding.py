"""Weights, gradients and optimizer in parts, one a process: FSDP2, and torch.distributed.checkpoint over safetensors.

The checkpoints' files are safetensors whose headers say which part of a tensor they hold; there is no pickled index.
They are read back on any number of processes, also by one alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_parts
from torch.distributed.checkpoint.state_dict_saver import save as write_parts
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from qwen3_embedding.errors import CheckpointError


def shard(module: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Split the parameters over the processes: each layer is whole only while it computes.

    Gradients are summed over the processes, not averaged, as everywhere here.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*layers, module):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def agree(device: torch.device, chunks: int, kept: int) -> tuple[int, int]:
    """How many forward passes every process makes, and of how many it keeps the activations.

    The layers are put together from all processes at each pass, so all must make equally many, in the same order.
    """
    both = torch.tensor([chunks, -kept], device=device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    most, least = both.tolist()
    return int(most), -int(least)


def clip_sharded(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """As :func:`qwen3_embedding.training.optimizer.clip_gradients`, for parameters in parts."""
    gradients = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()
    dist.all_reduce(squares)
    norm = squares.sqrt()
    if limit > 0:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.dtype))
    return norm


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors put together on CPU, one at a time, where ``keep`` is true; every process takes part."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.detach().cpu().contiguous()
    return found


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write each process's parts into the folder, which is there.

    Raises:
        OSError: a process could not write its part.
    """
    plain = {name: tensor.detach().reshape(tensor.shape or (1,)) for name, tensor in tensors.items()}
    try:
        write_parts(plain, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise OSError(_last_line(error)) from error


def load(folder: Path, wanted: Mapping[str, Tensor]) -> None:
    """Fill ``wanted``, whole or in parts, from the safetensors files of a folder, whole or in parts.

    Raises:
        CheckpointError: a file that is torn, or a tensor that is missing or of another shape.
    """
    targets = {name: tensor.detach() for name, tensor in wanted.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as intended
            reader = HuggingFaceStorageReader(str(folder))
            read_parts(targets, storage_reader=reader, no_dist=not dist.is_initialized())
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{folder}: cannot be read: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
