"""Rotary position embedding (Su et al. 2021), half-rotation layout as in Qwen3, angles in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

# The library of vector functions behind these two picks its code at the first call.  Where two threads make that call
# together, one of them now and then gets cosines that are off by 1e-4; so one thread makes it, before there is work.
for _function in (torch.cos, torch.sin):
    _function(torch.zeros(1, device="cpu"))


def rotation(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each token's angles, both (T, 1, d)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_T.device).float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    angles = positions_T.float()[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    """Turn each head's vector by its token's angles."""
    first, second = heads_THd.chunk(2, dim=-1)
    if torch.is_grad_enabled():
        return heads_THd * cos_T1d + torch.cat([-second, first], dim=-1) * sin_T1d
    half = first.shape[-1]
    cos, sin = cos_T1d[..., :half], sin_T1d[..., :half]
    turned_THd = torch.empty_like(heads_THd)
    left, right = turned_THd.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return turned_THd
