"""From pooled hidden states to vectors: cut to the wanted dimensions, then normalise."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MIN_DIMENSIONS = 32
"""The smallest size the published models were trained for (Matryoshka representation learning)."""


def normalize(pooled_ND: Tensor, dimensions: int | None = None) -> Tensor:
    """Unit vectors (N, dimensions), in fp32: the first ``dimensions`` components, normalised after the cut."""
    vectors = pooled_ND.float()
    if dimensions is not None:
        vectors = vectors[:, :dimensions]
    return F.normalize(vectors, dim=-1)


def check_dimensions(dimensions: int | None, full: int) -> int:
    """The vector size to use.

    Raises:
        ValueError: outside ``min(32, full)`` to ``full``.
    """
    if dimensions is None:
        return full
    least = min(MIN_DIMENSIONS, full)
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise TypeError(f"dimensions={dimensions!r}; wanted a whole number from {least} to {full}")
    if dimensions > full:
        raise ValueError(f"dimensions={dimensions} exceeds this model's {full}; use {least} to {full}")
    if dimensions < least:
        raise ValueError(
            f"dimensions={dimensions} is below {least}, the smallest this model is for; use {least} to {full}"
        )
    return dimensions
