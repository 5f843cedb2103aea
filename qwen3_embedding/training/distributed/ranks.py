"""One process or many: which share of a batch is mine, and sums over all. The only place that knows torch.distributed.

Gradients are never reduced chunk by chunk: every rank adds up its own, and one sum over the ranks ends the step.  Every
rank knows the whole batch (it is a pure function of seed and step), so shares need no talk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's part of ``count`` rows; the parts follow each other and differ by at most one row."""
        base, more = divmod(count, self.size)
        begin = self.rank * base + min(self.rank, more)
        return range(begin, begin + base + (self.rank < more))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over the ranks, in one message."""
        if self.size == 1:
            return
        used = list(parameters)
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that ``torchrun`` started, or this process alone."""
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
