"""All layers of a packed batch in one native call: int8 or float32, without autograd."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from qwen3_embedding.inputs.packing import PackedBatch
from qwen3_embedding.model.native.library import Batch, Layer, Library, Matrix, Model, pointer
from qwen3_embedding.types import IntArray

if TYPE_CHECKING:
    from qwen3_embedding.model.layers import Layer as PlainLayer

CHUNK_ROWS = 384
"""Rows that go through a layer together, for each thread: few enough for the caches, a multiple of the kernel's six."""


class NativeForward:
    """Runs the layers of one backbone; holds no weights, only where they are."""

    def __init__(self, library: Library, threads: int | None = None) -> None:
        """``threads``: of the kernel; ``None`` is as many as PyTorch uses at the time of a call."""
        self.library = library
        self.threads = threads
        self._model: Model | None = None
        self._made_for: tuple[int, ...] = ()
        self._layers: Any = None
        self._scales: list[Tensor] = []

    def runs(self, hidden_TD: Tensor, dtype: torch.dtype) -> bool:
        """Whether a pass is one of those that this kernel makes: fp32 between the layers, on CPU, no gradients."""
        plain = dtype == hidden_TD.dtype == torch.float32 and hidden_TD.device.type == "cpu"
        return plain and not torch.is_grad_enabled()

    def __call__(
        self,
        layers: nn.ModuleList,
        norm: Tensor,
        batch: PackedBatch,
        hidden_TD: Tensor,
        rotation: tuple[Tensor, Tensor],
        asked: IntArray | None,
    ) -> Tensor:
        """(T, D) hidden states behind the embedding to (R, D) after the final norm.

        Args:
            layers: at least one; of one type throughout, on CPU.
            norm: (D,) the final norm's weight.
            batch: T rows.
            hidden_TD: fp32.
            rotation: cosines and sines, (T, 1, d).
            asked: (R,) ascending rows that the last layer computes, or ``None`` for all T.
        """
        model = self._table(layers, norm)
        half = model.head_dim // 2
        cos, sin = (part[:, 0, :half].contiguous() for part in rotation)
        context_rows, context_begins = _contexts(batch)
        starts, lengths = batch.segment_starts.astype(np.int32), batch.context_lengths.astype(np.int32)
        rows = None if asked is None else asked.astype(np.int32)
        table = Batch(
            pointer(cos), pointer(sin), starts.ctypes.data, lengths.ctypes.data, context_begins.ctypes.data,
            context_rows.ctypes.data, None if rows is None else rows.ctypes.data,
            batch.n_tokens, batch.n_segments, 0 if rows is None else len(rows),
        )  # fmt: skip
        hidden_TD = hidden_TD.contiguous()
        out_RD = torch.empty(batch.n_tokens if rows is None else len(rows), hidden_TD.shape[1])
        threads = self.threads or torch.get_num_threads()
        self.library.forward(model, table, hidden_TD, out_RD, threads, CHUNK_ROWS * threads)
        return out_RD

    def _table(self, layers: nn.ModuleList, norm: Tensor) -> Model:
        """The addresses of all weights, made anew when one has moved."""
        parts = [_parts(cast("PlainLayer", layer)) for layer in layers]
        addresses = (norm.data_ptr(), *(tensor.data_ptr() for layer in parts for tensor in layer))
        if self._model is None or addresses != self._made_for:
            self._scales = []
            self._layers = (Layer * len(parts))(*[self._layer(cast("PlainLayer", layer)) for layer in layers])
            first = cast("PlainLayer", layers[0])
            attention, mlp = first.self_attn, first.mlp
            size = attention.head_dim
            self._model = Model(
                layers=ctypes.cast(self._layers, ctypes.c_void_p),
                norm=pointer(norm),
                n_layers=len(parts),
                int8=not isinstance(attention.q_proj, nn.Linear),
                hidden=attention.q_proj.in_features,
                inner=mlp.down_proj.in_features,
                heads=attention.q_proj.out_features // size,
                key_heads=attention.k_proj.out_features // size,
                head_dim=size,
                eps=first.input_layernorm.eps,
            )
            self._made_for = addresses
        return self._model

    def _layer(self, layer: PlainLayer) -> Layer:
        return Layer(*map(self._matrix, _linears(layer)), *map(pointer, _norms(layer)))

    def _matrix(self, part: Any) -> Matrix:
        if isinstance(part, nn.Linear):
            return Matrix(pointer(part.weight), None, None, part.out_features, part.in_features)
        packed, start = part.prepared
        scale = torch.zeros(len(start))
        scale[: len(part.scale_N)] = part.scale_N
        self._scales.append(scale)
        shape = part.out_features, part.in_features
        return Matrix(pointer(packed), pointer(scale), pointer(start), *shape, part.refined)


def _linears(layer: PlainLayer) -> tuple[Any, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    )  # fmt: skip


def _norms(layer: PlainLayer) -> tuple[Tensor, ...]:
    attention = layer.self_attn
    norms = (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm)
    return tuple(norm.weight for norm in norms)


def _parts(layer: PlainLayer) -> tuple[Tensor, ...]:
    weights = (part.weight if isinstance(part, nn.Linear) else part.prepared[0] for part in _linears(layer))
    return (*weights, *_norms(layer))


def _contexts(batch: PackedBatch) -> tuple[IntArray, IntArray]:
    """The rows above each segment, once for all children of a parent, and where each segment's begin."""
    lists, begins, found, total = [], np.zeros(batch.n_segments, np.int64), {-1: 0}, 0
    for segment, parent in enumerate(batch.segment_parents.tolist()):
        if parent not in found:
            own = np.arange(batch.segment_starts[parent], batch.segment_starts[parent + 1])
            rows = np.concatenate([batch.context_rows(parent), own])
            lists.append(rows)
            found[parent] = total
            total += len(rows)
        begins[segment] = found[parent]
    return (np.concatenate(lists) if lists else np.zeros(1)).astype(np.int32), begins
