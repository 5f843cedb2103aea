"""Layers for GPUs: one product for queries, keys and values, one for gate and up, and everything between two products
as one function that ``torch.compile`` can turn into a kernel or two.

A layer is three calls: what comes before attention, attention (:mod:`qwen3_embedding.model.attention`), and what comes
after it. The first and the last are functions of tensors only, compiled once for all layers and all numbers of tokens.
For inference: the state dict is no longer that of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3_embedding.model import triton_kernels
from qwen3_embedding.model.attention import AttentionPlan, attention_for
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import Layer, RMSNorm, Rotation
from qwen3_embedding.model.rope import rotate

HALF = (torch.bfloat16, torch.float16)
"""Types that our kernels are for; the passes at wider ones are there for exactness."""
MLP_CHUNK_ROWS = 65536
"""Rows the MLP takes at a time: a GPU wants many, and memory is plenty beside a batch of the default budget."""


class FusedLayer(nn.Module):
    """A :class:`~qwen3_embedding.model.layers.Layer` with fewer, wider products; equal to it up to rounding."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim = attention.head_dim
        self.sizes = [part.out_features for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.qkv_proj = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj: nn.Module = attention.o_proj
        self.gate_up_proj = _joined(mlp.gate_proj, mlp.up_proj)
        self.down_proj: nn.Module = mlp.down_proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.kernels = triton_kernels.available()
        """Whether our own kernels do what lies between the products; else PyTorch does, compiled or not."""
        self.before: Callable[..., tuple[Tensor, Tensor, Tensor]] = partial(before_attention, self)
        self.after: Callable[..., Tensor] = partial(after_attention, self)

    def forward(self, hidden_TD: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """(R, D) for the R rows that the plan asks for (all T of them where it names none)."""
        if self.takes(hidden_TD):
            return self._by_kernels(hidden_TD, rotation, plan)
        query, key, value = self.before(hidden_TD, *rotation)
        residual_RD = hidden_TD
        if plan.query_rows is not None:
            # Only the last layer asks for some rows; a product of its own for them would save half a percent of 28.
            query, residual_RD = query[plan.query_rows], hidden_TD[plan.query_rows]
        attended = attention_for(query.device, query.dtype)(query, key, value, plan)
        if len(residual_RD) <= MLP_CHUNK_ROWS:
            return self.after(residual_RD, attended)
        chunks = zip(residual_RD.split(MLP_CHUNK_ROWS), attended.split(MLP_CHUNK_ROWS), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self.after(*chunk) for chunk in chunks])

    def takes(self, hidden_TD: Tensor) -> bool:
        """Whether our own kernels run on such rows."""
        return self.kernels and hidden_TD.is_cuda and hidden_TD.dtype in HALF

    def _by_kernels(self, hidden_TD: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """The same by :mod:`qwen3_embedding.model.triton_kernels`; ``hidden_TD`` is written over."""
        cos_T1d, sin_T1d = rotation
        query_size, key_size, _ = self.sizes
        joined = _normed_product(self.qkv_proj, hidden_TD, self.input_layernorm)
        triton_kernels.norm_and_rotate_(
            joined, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, cos_T1d, sin_T1d,
            query_size // self.head_dim, key_size // self.head_dim,
        )  # fmt: skip
        query, key, value = (rows.unflatten(-1, (-1, self.head_dim)) for rows in joined.split(self.sizes, dim=-1))  # type: ignore[no-untyped-call]
        residual_RD = hidden_TD
        if plan.query_rows is not None:
            query, residual_RD = query[plan.query_rows], hidden_TD[plan.query_rows]
        attended_RE = attention_for(query.device, query.dtype)(query, key, value, plan).flatten(1)
        del joined, query, key, value
        _add_product_(residual_RD, self.o_proj, attended_RE)
        for rows in residual_RD.split(MLP_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            gate_up_RJ = _normed_product(self.gate_up_proj, rows, self.post_attention_layernorm)
            if isinstance(self.down_proj, nn.Linear):
                _add_product_(rows, self.down_proj, triton_kernels.silu_multiply(gate_up_RJ))
            else:
                rows += self.down_proj.multiply(*triton_kernels.silu_multiply_fp8(gate_up_RJ), rows.dtype)  # type: ignore[operator]
        return residual_RD


def _normed_product(product: nn.Module, hidden_RD: Tensor, norm: RMSNorm) -> Tensor:
    if isinstance(product, nn.Linear):
        return F.linear(triton_kernels.rms_norm(hidden_RD, norm.weight, norm.eps), product.weight)
    codes, scale = triton_kernels.rms_norm_fp8(hidden_RD, norm.weight, norm.eps)
    return product.multiply(codes, scale, hidden_RD.dtype)  # type: ignore[no-any-return,operator]


def _add_product_(residual_RD: Tensor, product: nn.Module, x_RK: Tensor) -> None:
    """``residual += product(x)``; a plain product adds in the same kernel, before the sum is rounded."""
    if isinstance(product, nn.Linear):
        residual_RD.addmm_(x_RK, product.weight.t())
    else:
        residual_RD += product.multiply(*triton_kernels.quantize_fp8(x_RK), residual_RD.dtype)  # type: ignore[operator]


def before_attention(
    layer: FusedLayer, hidden_TD: Tensor, cos_T1d: Tensor, sin_T1d: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, d), keys and values (T, K, d), normed and rotated."""
    joined = layer.qkv_proj(layer.input_layernorm(hidden_TD))
    query, key, value = (rows.unflatten(-1, (-1, layer.head_dim)) for rows in joined.split(layer.sizes, dim=-1))
    query, key = layer.q_norm(query), layer.k_norm(key)
    return _turn(query, cos_T1d, sin_T1d), _turn(key, cos_T1d, sin_T1d), value.contiguous()


def after_attention(layer: FusedLayer, residual_RD: Tensor, attended_RHd: Tensor) -> Tensor:
    """(R, D): attention's output projected and added, then the MLP's."""
    hidden_RD = residual_RD + layer.o_proj(attended_RHd.flatten(1))
    gate_RI, up_RI = layer.gate_up_proj(layer.post_attention_layernorm(hidden_RD)).chunk(2, dim=-1)
    out: Tensor = hidden_RD + layer.down_proj(F.silu(gate_RI) * up_RI)
    return out


def _turn(heads_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        return rotate(heads_THd, cos_T1d, sin_T1d)
    first, second = heads_THd.chunk(2, dim=-1)  # a compiler fuses the plain formula better than writes into views
    return heads_THd * cos_T1d + torch.cat([-second, first], dim=-1) * sin_T1d


def _joined(*linears: nn.Linear) -> nn.Linear:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    with torch.device("meta"):
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    return joined


def fuse_(backbone: Backbone) -> Backbone:
    """Swap every layer for its fused form, in place; the separate weights are let go a layer at a time.

    Raises:
        ValueError: a backbone whose layers are not plain any more.
    """
    for number, layer in enumerate(backbone.layers):
        if type(layer) is not Layer or not isinstance(layer.mlp.gate_proj, nn.Linear):
            raise ValueError(f"layer {number} is {type(layer).__name__} with {backbone.type_name} products; fuse first")
        backbone.layers[number] = FusedLayer(layer).eval()
    return backbone


def compile_(backbone: Backbone, **options: Any) -> Backbone:
    """Compile what lies between attention and attention, once for all layers; fused if it is not yet.

    Where our own kernels run they go on to, for they are faster. The first batches take up to a minute otherwise.
    ``options`` go to :func:`torch.compile`.
    """
    if not isinstance(backbone.layers[0], FusedLayer):
        fuse_(backbone)
    before = torch.compile(before_attention, dynamic=True, **options)
    after = torch.compile(after_attention, dynamic=True, **options)
    for layer in backbone.layers:
        assert isinstance(layer, FusedLayer)
        layer.before, layer.after = partial(before, layer), partial(after, layer)
    return backbone
