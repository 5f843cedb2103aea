"""The same numbers every time: additions in a fixed order, random numbers that follow from (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_DROPOUT = 4  # stream of random numbers, beside those of the batches


@contextmanager
def fixed_order(device: torch.device) -> Iterator[None]:
    """On CPU, let no kernel add in an order that depends on which thread comes first.

    Where rows are gathered more than once (prefixes that texts share), the backward pass adds to them; with several
    threads the plain kernel does so atomically, in any order.  The one in a fixed order is also the faster: 16 ms of
    CPU time against 61 for 36,000 rows of 256 values.  On GPU nothing is changed: some kernels have no fixed order.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's generators for a step (dropout), so that no state has to be kept between steps."""
    torch.manual_seed(int(np.random.SeedSequence([seed, _DROPOUT, step, rank]).generate_state(1, np.uint64)[0] >> 1))
