"""int8 on CPU: weights per output channel, activations per token, integer products by our kernel or by oneDNN.

Each token's row is scaled by its own largest component and integer sums are exact, so a text's result does not depend
on what else is in the batch.  Norms, rotary embedding, attention, SwiGLU and the residual stream stay in fp32, and so
does the embedding table.  The product of a row of codes ``c_x`` (levels -L..L) and a column of codes ``c_w``
(-127..127) is

    y = (sum_k c_x[k] * c_w[k]) * scale_x * scale_w

with ``scale_x = max|x| / L`` of the token and ``scale_w = max|w| / 127`` of the output channel.

Queries and keys end in the exponent of a softmax, where a fixed share of a large score is a large factor.  A layer
whose scores 8 bits would move too far (:func:`score_error`) takes a second integer product for them, of what the first
rounding of its rows left; both together resolve 15 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import MLP, Layer, SelfAttention
from qwen3_embedding.model.native.library import Library, Matrix, pointer

WEIGHT_LEVELS = 127
TINY = torch.finfo(torch.float32).tiny
LARGEST_SCORE_ERROR = 0.05
"""Standard deviation over keys of what rounding adds to a score before the softmax: a weight moves by this share."""
PROBE_ROWS = 32
"""Rows that probe a layer's scores when it is quantised."""


@dataclass(frozen=True)
class Engine:
    """Who multiplies, and how wide the codes of activations may be for the sums to be exact."""

    name: str
    levels: int
    """Codes of activations are -levels..levels."""
    zero_point: int
    """Stored on top of the codes, which makes them unsigned."""
    prepare: Callable[[Tensor], Any]
    """(out, in) int8 codes of weights to what ``multiply`` takes."""
    multiply: Callable[[Tensor, Any, Tensor, int], Tensor]
    """(codes_RK, prepared, scale_N, zero_point) -> fp32 (R, N), still without the scales of the rows."""


def _prepare_onednn(codes_NK: Tensor) -> tuple[Tensor, Tensor]:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes_NK, None)
    return packed, torch.zeros(len(codes_NK), dtype=torch.int64)


def _multiply_onednn(codes_RK: Tensor, prepared: tuple[Tensor, Tensor], scale_N: Tensor, zero_point: int) -> Tensor:
    packed, zeros_N = prepared
    # Unsigned activations: with signed ones this operator takes a reference kernel, a thousand times slower.
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes_RK, 1.0, zero_point, packed, scale_N, zeros_N, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


def _prepare_plain(codes_NK: Tensor) -> Tensor:
    return codes_NK.t()


def _multiply_plain(codes_RK: Tensor, prepared: Tensor, scale_N: Tensor, zero_point: int) -> Tensor:
    signed = (codes_RK.to(torch.int16) - zero_point).to(torch.int8)
    return torch._int_mm(signed, prepared).float() * scale_N


ONEDNN = Engine("onednn-u8", 127, 128, _prepare_onednn, _multiply_onednn)
ONEDNN_NARROW = Engine("onednn-u7", 63, 64, _prepare_onednn, _multiply_onednn)
"""For CPUs without VNNI, whose 8-bit products are added in pairs that saturate at 16 bits: 2 x 127 x 127 still fits."""
PLAIN = Engine("plain", 127, 128, _prepare_plain, _multiply_plain)
"""Works wherever torch does; slow where torch has no integer kernel for the CPU."""


def native_engine(library: Library) -> Engine:
    """Products by the native kernel; a whole backbone of them runs in one call (``native.forward``)."""

    def multiply(codes_RK: Tensor, prepared: tuple[Tensor, Tensor], scale_N: Tensor, zero_point: int) -> Tensor:
        packed, start = prepared
        rows, inner = codes_RK.shape
        scale, wide = torch.zeros(len(start)), F.pad(codes_RK, (0, -inner % 4))
        scale[: len(scale_N)] = scale_N
        matrix = Matrix(pointer(packed), pointer(scale), pointer(start), len(scale_N), inner)
        return library.multiply(matrix, wide.contiguous(), torch.ones(rows))

    return Engine(f"native {library.isa}", 127, library.zero_point, library.pack, multiply)


@lru_cache(maxsize=1)
def choose_engine() -> Engine:
    """The first of the library's engines that this machine has and whose sums are exact at the largest codes."""
    return next((engine for engine in (ONEDNN, ONEDNN_NARROW) if _is_exact(engine)), PLAIN)


def _is_exact(engine: Engine) -> bool:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (64, 256), generator=generator) * 2 - 1
    signs[0] = 1
    codes_NK = (signs * WEIGHT_LEVELS).to(torch.int8)
    codes_RK = signs * engine.levels
    wanted = codes_RK.double() @ codes_NK.double().t()
    try:
        prepared = engine.prepare(codes_NK)
        stored = (codes_RK + engine.zero_point).to(torch.uint8)
        got = engine.multiply(stored, prepared, torch.ones(64), engine.zero_point)
    except (AttributeError, NotImplementedError, RuntimeError):  # a build of torch without oneDNN
        return False
    return bool(torch.equal(got.double(), wanted))


@dataclass(frozen=True)
class Codes:
    """Rows as integers: ``x = (codes - zero_point) * scale``."""

    codes_RK: Tensor
    """uint8."""
    scale_R1: Tensor
    """fp32."""

    def taken_from(self, x_RK: Tensor, zero_point: int) -> Tensor:
        """What rounding left of the rows: ``x - (codes - zero_point) * scale``."""
        signed_RK = (self.codes_RK - zero_point).view(torch.int8)  # wraps, as the sum in quantize_rows did
        return x_RK - signed_RK * self.scale_R1

    def only(self, rows: Tensor | None) -> Codes:
        """Some of the rows."""
        return self if rows is None else Codes(self.codes_RK[rows], self.scale_R1[rows])


def quantize_rows(x_RK: Tensor, engine: Engine) -> Codes:
    """Each row's codes and scale.

    A row with NaN or infinity has a scale that is not finite, so its products are not finite either.
    """
    scale_R1 = x_RK.abs().amax(dim=-1, keepdim=True).div_(engine.levels).clamp_(min=TINY)
    steps_RK = (x_RK * scale_R1.reciprocal()).round_()
    # By way of int8, whose conversion is seven times as fast as that to uint8; the sum wraps as two's complement does.
    return Codes(steps_RK.to(torch.int8).view(torch.uint8).add_(engine.zero_point), scale_R1)


class QuantizedLinear(nn.Module):
    """``x @ weight.T`` in integers; takes rows that are quantised already, so that several products share them."""

    in_features: int
    out_features: int
    engine: Engine
    scale_N: Tensor
    prepared: Any
    refined: bool
    """Whether what rounding left of the rows is multiplied too."""

    def __init__(self, linear: nn.Linear, engine: Engine, refined: bool = False) -> None:
        super().__init__()
        if getattr(linear, "bias", None) is not None:
            raise ValueError("got a linear layer with a bias; Qwen3 has none and int8 knows none")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.engine, self.refined = engine, refined
        weight_NK = linear.weight.detach().float()
        self.scale_N = (weight_NK.abs().amax(dim=1) / WEIGHT_LEVELS).clamp(min=TINY)
        codes_NK = (weight_NK / self.scale_N[:, None]).round().to(torch.int8)
        self.prepared = engine.prepare(codes_NK)

    def forward(self, x: Tensor | Codes) -> Tensor:
        """(R, out) fp32."""
        rows = x if isinstance(x, Codes) else quantize_rows(x, self.engine)
        return self.unscaled(rows).mul_(rows.scale_R1)

    def unscaled(self, rows: Codes) -> Tensor:
        """The product without the scales of its rows, for who puts them in later."""
        return self.engine.multiply(rows.codes_RK, self.prepared, self.scale_N, self.engine.zero_point)

    def extra_repr(self) -> str:
        """Shape and engine."""
        bits = ", activations in 15 bits" if self.refined else ""
        return f"{self.in_features}, {self.out_features}, engine={self.engine.name}{bits}"


class QuantizedAttention(SelfAttention):
    """Attention whose three projections share one quantisation of their input."""

    def project(self, normed_TD: Tensor, query_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(R, H * d), (T, K * d), (T, K * d)."""
        query, key = (cast("QuantizedLinear", part) for part in (self.q_proj, self.k_proj))
        rows = quantize_rows(normed_TD, key.engine)
        query_RQ, key_TK = query(rows.only(query_rows)), key(rows)
        if query.refined or key.refined:
            rest = quantize_rows(rows.taken_from(normed_TD, key.engine.zero_point), key.engine)
            query_RQ = query_RQ + query(rest.only(query_rows)) if query.refined else query_RQ
            key_TK = key_TK + key(rest) if key.refined else key_TK
        return query_RQ, key_TK, self.v_proj(rows)


class QuantizedMLP(MLP):
    """SwiGLU on codes. A token's scale goes straight through ``up``, so it is put in once, after ``down``."""

    def forward(self, x_RD: Tensor) -> Tensor:
        """(R, D) to (R, D)."""
        gate, up, down = (cast("QuantizedLinear", part) for part in (self.gate_proj, self.up_proj, self.down_proj))
        rows = quantize_rows(x_RD, gate.engine)
        inner_RI = F.silu(gate(rows), inplace=True).mul_(up.unscaled(rows))
        inner = quantize_rows(inner_RI, down.engine)
        return down.unscaled(inner).mul_(inner.scale_R1 * rows.scale_R1)


@torch.no_grad()
def score_error(layer: Layer) -> tuple[float, float]:
    """What rounding rows to 8 bits adds to a layer's scores, by its queries alone and by its keys alone.

    The layer's own norms and weights answer, on rows drawn from a normal distribution (always the same): every query
    row against every key row, without rotation, which keeps lengths.  An error that all keys of a query share drops out
    of the softmax, so it is the standard deviation over the keys that counts, as root mean square over the queries of
    the worst head.

    Returns:
        (of the queries, of the keys), in the unit of a score: a weight behind the softmax moves by about that share.
    """
    attention, size = layer.self_attn, layer.self_attn.head_dim
    inputs = torch.randn(PROBE_ROWS, attention.q_proj.in_features, generator=torch.Generator().manual_seed(0))
    normed = layer.input_layernorm(inputs)
    codes = quantize_rows(normed, PLAIN)
    rounded = normed - codes.taken_from(normed, PLAIN.zero_point)

    def heads(norm: nn.Module, part: nn.Linear, rows: Tensor) -> Tensor:
        return cast("Tensor", norm(part(rows).view(PROBE_ROWS, -1, size))).transpose(0, 1)

    query, query_off = (heads(attention.q_norm, attention.q_proj, rows) for rows in (normed, rounded))
    key, key_off = (heads(attention.k_norm, attention.k_proj, rows) for rows in (normed, rounded))
    group = len(query) // len(key)
    errors = (
        (query_off - query) @ key.repeat_interleave(group, 0).mT,
        query @ (key_off - key).repeat_interleave(group, 0).mT,
    )
    of_queries, of_keys = (float((e / size**0.5).var(2).mean(1).max().sqrt()) for e in errors)
    return of_queries, of_keys


def refined_products(backbone: Backbone) -> list[str]:
    """The products whose activations have 15 bits instead of 8: ``layers.0.self_attn.k_proj``."""
    parts = backbone.named_modules()
    return [name for name, part in parts if isinstance(part, QuantizedLinear) and part.refined]


def quantize_(backbone: Backbone, engine: Engine | None = None) -> Backbone:
    """Swap every linear layer of the backbone for its int8 form, in place; the fp32 weights are let go.

    Raises:
        ValueError: a backbone that is quantised already, not on the CPU, or not in float32.
    """
    if backbone.quantization is not None:
        raise ValueError(f"this backbone is {backbone.quantization} already")
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32:
        found = f"{backbone.dtype} on {backbone.device}"
        raise ValueError(f"got a backbone in {found}; int8 starts from float32 on the CPU")
    engine = engine or choose_engine()
    for layer in backbone.layers:
        assert isinstance(layer, Layer)
        errors = dict(zip(("q_proj", "k_proj"), score_error(layer), strict=True))
        for part, cls in ((layer.self_attn, QuantizedAttention), (layer.mlp, QuantizedMLP)):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    refined = errors.get(name, 0.0) > LARGEST_SCORE_ERROR
                    setattr(part, name, QuantizedLinear(child, engine, refined))
            part.__class__ = cls
    backbone.quantization = "int8"
    return backbone
