"""What lies between two matrix products on a GPU, each in one pass over memory: norms, rotary embedding, SwiGLU.

Written in Triton, which comes with PyTorch's CUDA builds for Linux; :func:`available` tells whether it is here. A
kernel is compiled when it is first called (seconds, and kept on disk). All arithmetic is fp32 inside; a row's result
depends on that row alone. The functions with ``_fp8`` write e4m3 codes and their row scale
(:mod:`qwen3_embedding.model.fp8`), so that what the product reads is all that is ever written.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds, and systems that Triton does not know
    triton = None

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
TINY = torch.finfo(torch.float32).tiny
HEADS_PER_PROGRAM = 8
NORM_ELEMENTS = 4096
"""Elements of a norm's program: some rows where rows are short."""


@lru_cache
def available() -> bool:
    """Whether these kernels can run here."""
    return triton is not None and torch.cuda.is_available()


def rms_norm(x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """(R, D): root-mean-square norm, at the type of the weight."""
    out_RD = torch.empty(x_RD.shape, dtype=weight_D.dtype, device=x_RD.device)
    _launch_norm(x_RD, weight_D, out_RD, out_RD, eps, False)
    return out_RD


def rms_norm_fp8(x_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(R, D) e4m3 and (R, 1) fp32 scales of the normed rows."""
    rows, columns = x_RD.shape
    codes_RD, scale_R1 = _room(rows, columns, x_RD.device)
    _launch_norm(x_RD, weight_D, codes_RD, scale_R1, eps, True)
    return codes_RD, scale_R1


def quantize_fp8(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) e4m3 and (R, 1) fp32 scales."""
    rows, columns = x_RK.shape
    codes_RK, scale_R1 = _room(rows, columns, x_RK.device)
    if rows:
        block = triton.next_power_of_2(columns)
        _quantize_kernel[(rows,)](
            x_RK, codes_RK, scale_R1, rows, columns, x_RK.stride(0), LARGEST, TINY, block, num_warps=_warps(block)
        )
    return codes_RK, scale_R1


def norm_and_rotate_(
    joined_TE: Tensor, query_weight_d: Tensor, key_weight_d: Tensor, eps: float, cos_T1d: Tensor, sin_T1d: Tensor,
    query_heads: int, key_heads: int,
) -> None:  # fmt: skip
    """Norm and turn the heads of queries and keys in (T, (H + 2K) * d), in place; the values stay as they are."""
    tokens, head_dim = len(joined_TE), query_weight_d.shape[0]
    heads = query_heads + key_heads
    if not tokens:
        return
    half = triton.next_power_of_2(head_dim // 2)
    grid = (tokens, triton.cdiv(heads, HEADS_PER_PROGRAM))
    _rotate_kernel[grid](
        joined_TE, query_weight_d, key_weight_d, cos_T1d, sin_T1d, joined_TE.stride(0), cos_T1d.stride(0),
        query_heads, heads, head_dim, eps, HEADS_PER_PROGRAM, half, num_warps=4,
    )  # fmt: skip


def silu_multiply(gate_up_RJ: Tensor) -> Tensor:
    """(R, I): ``silu(gate) * up`` of (R, 2I)."""
    rows, inner = gate_up_RJ.shape[0], gate_up_RJ.shape[1] // 2
    out_RI = torch.empty((rows, inner), dtype=gate_up_RJ.dtype, device=gate_up_RJ.device)
    if rows:
        block = 1024
        grid = (rows, triton.cdiv(inner, block))
        _silu_kernel[grid](gate_up_RJ, out_RI, inner, gate_up_RJ.stride(0), block, num_warps=4)
    return out_RI


def silu_multiply_fp8(gate_up_RJ: Tensor) -> tuple[Tensor, Tensor]:
    """(R, I) e4m3 and (R, 1) fp32 scales of ``silu(gate) * up``."""
    rows, inner = gate_up_RJ.shape[0], gate_up_RJ.shape[1] // 2
    codes_RI, scale_R1 = _room(rows, inner, gate_up_RJ.device)
    if rows:
        block = triton.next_power_of_2(inner)
        _silu_fp8_kernel[(rows,)](
            gate_up_RJ, codes_RI, scale_R1, rows, inner, gate_up_RJ.stride(0), LARGEST, TINY, block,
            num_warps=_warps(block),
        )  # fmt: skip
    return codes_RI, scale_R1


def _launch_norm(x_RD: Tensor, weight_D: Tensor, out_RD: Tensor, scale: Tensor, eps: float, fp8: bool) -> None:
    rows, columns = x_RD.shape
    if not rows:
        return
    block = triton.next_power_of_2(columns)
    together = max(1, NORM_ELEMENTS // block)
    _norm_kernel[(triton.cdiv(rows, together),)](
        x_RD, weight_D, out_RD, scale, rows, columns, x_RD.stride(0), eps, LARGEST, TINY, together, block, fp8,
        num_warps=_warps(together * block),
    )  # fmt: skip


def _room(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(R, C) for codes and (R, 1) for their scales."""
    codes_RC = torch.empty((rows, columns), dtype=E4M3, device=device)
    return codes_RC, torch.empty((rows, 1), dtype=torch.float32, device=device)


def _warps(elements: int) -> int:
    """16 elements a thread."""
    return min(16, max(1, elements // 512))


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


# fmt: off
@_jit
def _store_codes(wide, codes, scales, row, rows, column, columns, mask, largest, tiny):
    """The formula of model/fp8.py on a block of rows (R, 1) by columns (1, C)."""
    scale = tl.maximum(tl.max(tl.abs(wide), axis=1)[:, None] / largest, tiny)
    tl.store(scales + row, scale, mask=row < rows)
    quotient = tl.minimum(tl.maximum(wide / scale, -largest), largest)
    tl.store(codes + row * columns + column, quotient.to(tl.float8e4nv), mask=mask)


@_jit
def _gated(gate_up, row, column, inner, stride, mask):
    """silu(gate) * up of a block, in fp32."""
    gate = tl.load(gate_up + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + inner + column, mask=mask, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@_jit
def _norm_kernel(
    x, weight, out, scales, rows, columns, stride, eps, largest, tiny,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    values = tl.load(x + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, axis=1)[:, None] / columns + eps)
    factor = tl.load(weight + column, mask=column < columns, other=0.0)
    # rounded before the weight and after it, as the reference is
    normed = ((values * inverse).to(factor.dtype).to(tl.float32) * factor.to(tl.float32)).to(factor.dtype)
    if FP8:
        _store_codes(normed.to(tl.float32), out, scales, row, rows, column, columns, mask, largest, tiny)
    else:
        tl.store(out + row * columns + column, normed, mask=mask)


@_jit
def _quantize_kernel(x, codes, scales, rows, columns, stride, largest, tiny, BLOCK: tl.constexpr):
    row = (tl.program_id(0) + tl.arange(0, 1)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = column < columns
    wide = tl.load(x + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    _store_codes(wide, codes, scales, row, rows, column, columns, mask, largest, tiny)


@_jit
def _rotate_kernel(
    joined, query_weight, key_weight, cos, sin, stride, angle_stride, query_heads, heads, head_dim, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    half = head_dim // 2
    inside = column < half
    mask = (head < heads) & inside
    place = joined + token * stride + head * head_dim + column
    first = tl.load(place, mask=mask, other=0.0)
    kind = first.dtype
    first = first.to(tl.float32)
    second = tl.load(place + half, mask=mask, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, axis=1)[:, None]
    inverse = tl.rsqrt(squares / head_dim + eps)
    asks = head < query_heads
    left = tl.where(asks, tl.load(query_weight + column, mask=inside, other=0.0),
                    tl.load(key_weight + column, mask=inside, other=0.0)).to(tl.float32)
    right = tl.where(asks, tl.load(query_weight + half + column, mask=inside, other=0.0),
                     tl.load(key_weight + half + column, mask=inside, other=0.0)).to(tl.float32)
    first = ((first * inverse).to(kind).to(tl.float32) * left).to(kind).to(tl.float32)
    second = ((second * inverse).to(kind).to(tl.float32) * right).to(kind).to(tl.float32)
    cosine = tl.load(cos + token * angle_stride + column, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + token * angle_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (first * cosine - second * sine).to(kind), mask=mask)
    tl.store(place + half, (second * cosine + first * sine).to(kind), mask=mask)


@_jit
def _silu_kernel(gate_up, out, inner, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < inner
    wide = _gated(gate_up, row, column, inner, stride, mask)
    tl.store(out + row * inner + column, wide.to(out.dtype.element_ty), mask=mask)


@_jit
def _silu_fp8_kernel(gate_up, codes, scales, rows, inner, stride, largest, tiny, BLOCK: tl.constexpr):
    row = (tl.program_id(0) + tl.arange(0, 1)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = column < inner
    wide = _gated(gate_up, row, column, inner, stride, mask)
    _store_codes(wide, codes, scales, row, rows, column, inner, mask, largest, tiny)
# fmt: on
