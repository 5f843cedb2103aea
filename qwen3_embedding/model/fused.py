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

from qwen3_embedding.model.attention import AttentionPlan, attention_for
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import MLP_CHUNK_ROWS, Layer, Rotation
from qwen3_embedding.model.rope import rotate


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
        self.before: Callable[..., tuple[Tensor, Tensor, Tensor]] = partial(before_attention, self)
        self.after: Callable[..., Tensor] = partial(after_attention, self)

    def forward(self, hidden_TD: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """(R, D) for the R rows that the plan asks for (all T of them where it names none)."""
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

    The first batches take up to a minute. ``options`` go to :func:`torch.compile`.
    """
    if not isinstance(backbone.layers[0], FusedLayer):
        fuse_(backbone)
    before = torch.compile(before_attention, dynamic=True, **options)
    after = torch.compile(after_attention, dynamic=True, **options)
    for layer in backbone.layers:
        assert isinstance(layer, FusedLayer)
        layer.before, layer.after = partial(before, layer), partial(after, layer)
    return backbone
