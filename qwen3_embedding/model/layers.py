"""The parts of a Qwen3 layer. Attribute names are those of the published state dicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3_embedding.model.attention import AttentionPlan, attention_for
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.rope import rotate

Rotation = tuple[Tensor, Tensor]

MLP_CHUNK_ROWS = 8192
"""Rows the MLP takes at a time without autograd, so that its widest activation does not grow with the input."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), in fp32 inside whatever the weights are."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype; the last axis is normalised."""
        if not torch.is_grad_enabled() and x.dtype == torch.float32 and x.device.type == "cpu":
            # The library's norm takes twice as long on short rows (heads).
            scale = torch.rsqrt((x * x).mean(-1, keepdim=True).add_(self.eps))
            return (x * scale).mul_(self.weight)
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Grouped-query causal attention with per-head RMSNorm on queries and keys."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, normed_TD: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """(R, D) for the R rows that the plan asks for."""
        cos, sin = rotation
        query, key, value = (
            rows.reshape(len(rows), -1, self.head_dim) for rows in self.project(normed_TD, plan.query_rows)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if plan.query_rows is None:
            query = rotate(query, cos, sin)
        else:
            query = rotate(query, cos[plan.query_rows], sin[plan.query_rows])
        key = rotate(key, cos, sin)
        attend = attention_for(query.device, query.dtype)
        return self.o_proj(attend(query, key, value, plan).flatten(1))  # type: ignore[no-any-return]

    def project(self, normed_TD: Tensor, query_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, H * d) of the rows that ask, keys (T, K * d) and values (T, K * d) of all."""
        asking_RD = normed_TD if query_rows is None else normed_TD[query_rows]
        return self.q_proj(asking_RD), self.k_proj(normed_TD), self.v_proj(normed_TD)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_RD: Tensor) -> Tensor:
        """(R, D) to (R, D)."""
        gate_RI, up_RI = self.gate_proj(x_RD), self.up_proj(x_RD)
        if torch.is_grad_enabled():
            return self.down_proj(F.silu(gate_RI) * up_RI)  # type: ignore[no-any-return]
        # In place: these are the widest activations, and fresh pages for them cost more than the arithmetic.
        return self.down_proj(F.silu(gate_RI, inplace=True).mul_(up_RI))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One decoder layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_TD: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        """(R, D) for the R rows that the plan asks for (all T of them where it names none)."""
        attended_RD = self.self_attn(self.input_layernorm(hidden_TD), rotation, plan)
        residual_RD = hidden_TD if plan.query_rows is None else hidden_TD[plan.query_rows]
        hidden_RD: Tensor = residual_RD + attended_RD
        if torch.is_grad_enabled() or len(hidden_RD) <= MLP_CHUNK_ROWS:
            added_RD: Tensor = self.mlp(self.post_attention_layernorm(hidden_RD))
            return hidden_RD + added_RD
        for chunk in hidden_RD.split(MLP_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            chunk += self.mlp(self.post_attention_layernorm(chunk))
        return hidden_RD
