"""One short text on a GPU without the host's work: the whole pass recorded once, then replayed.

A single query is a few hundred small kernels, and starting them takes longer than running them. A CUDA graph starts all
at once, but its shapes are fixed: a text is filled up to the next size of :data:`SIZES` by rows that form a sequence of
their own behind it, so they change nothing, and the number of its tokens is data, not shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.model.attention import AttentionPlan
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.rope import rotation
from qwen3_embedding.model.transfer import to_device

SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Rows that are recorded for; a longer text fills the chip and takes the ordinary way."""
WARM_UPS = 3


@dataclass(frozen=True)
class Inputs:
    """Where the recorded pass reads: one int64 tensor, so that a text is one copy."""

    values: Tensor
    """(2 * size + 3,): ids of all rows, positions of all rows, then the bounds 0, n, size."""
    size: int

    @property
    def ids(self) -> Tensor:
        """(size,)"""
        return self.values[: self.size]

    @property
    def positions(self) -> Tensor:
        """(size,)"""
        return self.values[self.size : 2 * self.size]

    @property
    def starts(self) -> Tensor:
        """(3,): 0, n, size."""
        return self.values[2 * self.size :]


def fill(ids: Sequence[int], size: int) -> np.ndarray:
    """What :class:`Inputs` holds for a text of ``len(ids)`` tokens in ``size`` rows."""
    n = len(ids)
    padded = np.zeros(size, dtype=np.int64)
    padded[:n] = ids
    positions = np.concatenate([np.arange(n), np.arange(size - n)])
    return np.concatenate([padded, positions, [0, n, size]])


def hidden_of_last(backbone: Backbone, inputs: Inputs, plan: Callable[[Inputs], AttentionPlan]) -> Tensor:
    """(1, D): the pass over fixed shapes. Every row is computed in every layer, so no shape depends on the text."""
    hidden_TD = backbone.embed_tokens(inputs.ids)
    config = backbone.config
    angles = rotation(inputs.positions, config.head_dim, config.rope_theta, backbone.dtype)
    everyone = plan(inputs)
    for layer in backbone.layers:
        hidden_TD = layer(hidden_TD, angles, everyone)
    last_1D = hidden_TD.index_select(0, inputs.starts[1:2] - 1)
    return backbone.norm(last_1D)  # type: ignore[no-any-return]


def kernel_plan(inputs: Inputs) -> AttentionPlan:
    """The text and what fills it up, as two sequences for the variable-length kernel; bounds are read on the device.

    An empty second sequence (a text as long as the size) is one of no rows, which the kernel skips.
    """
    bounds = inputs.starts.to(torch.int32)
    return AttentionPlan((), inputs.size, None, None, bounds, bounds, inputs.size, inputs.size)


class TextGraphs:
    """Recorded passes of one backbone on CUDA, one a size, made when a text first needs it."""

    def __init__(self, backbone: Backbone) -> None:
        if backbone.device.type != "cuda":
            raise ValueError(f"CUDA graphs want a backbone on a GPU; this one is on {backbone.device}")
        self.backbone = backbone
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Inputs, Tensor]] = {}

    def takes(self, tokens: int) -> bool:
        """Whether a text of this length is short enough."""
        return tokens <= SIZES[-1]

    @torch.inference_mode()
    def hidden(self, ids: Sequence[int]) -> Tensor:
        """(1, D) hidden state of the last token; valid until the next call with a text of like size."""
        size = next(size for size in SIZES if size >= len(ids))
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        graph, inputs, out_1D = self._recorded[size]
        inputs.values.copy_(to_device(fill(ids, size), self.backbone.device), non_blocking=True)
        graph.replay()
        return out_1D

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, Inputs, Tensor]:
        inputs = Inputs(to_device(fill([0] * (size - 1), size), self.backbone.device), size)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                hidden_of_last(self.backbone, inputs, kernel_plan)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out_1D = hidden_of_last(self.backbone, inputs, kernel_plan)
        return graph, inputs, out_1D
