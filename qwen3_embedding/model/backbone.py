"""The Qwen3 decoder over a packed batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qwen3_embedding.inputs.packing import PackedBatch
from qwen3_embedding.model.attention import AttentionPlan, plan_all, plan_rows
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer, RMSNorm, Rotation
from qwen3_embedding.model.native.forward import NativeForward
from qwen3_embedding.model.rope import rotation
from qwen3_embedding.model.transfer import to_device
from qwen3_embedding.types import IntArray


class Backbone(nn.Module):
    """Token embeddings, layers, final norm. The state dict is that of the published embedders (no ``model.`` prefix).

    Call it for the pooled rows (what embedding and reranking need); :meth:`hidden_states` gives every row.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.recomputing: Callable[[], AbstractContextManager[Any]] = nullcontext
        """In which the backward pass runs a layer again, where the forward pass ran in one that it does not know of."""
        self.quantization: str | None = None
        self.native: NativeForward | None = None
        """Runs all layers in one call of our own kernel; only where nobody asks for gradients."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embedding table, of the norms and of what flows between the layers."""
        return self.embed_tokens.weight.dtype

    @property
    def type_name(self) -> str:
        """Type of the matrix products: ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``fp8``."""
        return self.quantization or str(self.dtype).removeprefix("torch.")

    def initialize(self, seed: int) -> Backbone:
        """Random weights as Qwen3 is initialised: normal of ``initializer_range``, norms at one."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self

    def forward(self, batch: PackedBatch, compute_dtype: torch.dtype | None = None) -> Tensor:
        """Hidden state of each sequence's last token after the final norm.

        The last layer computes queries, attention output and MLP for these rows only.

        Args:
            batch: N sequences.
            compute_dtype: run the layers at this type instead of the weights' own; weights are converted a layer at a
                time, so the memory beside them is one layer.

        Returns:
            (N, D), in the batch's order of sequences.
        """
        # Equal sequences share a row; by position, so that rows with equally many keys are neighbours.
        unique, inverse = np.unique(batch.pooled_rows, return_inverse=True)
        native_RD = self._run_native(batch, unique, compute_dtype)
        if native_RD is not None:
            return native_RD[torch.from_numpy(inverse)]
        by_position = np.argsort(batch.positions[unique], kind="stable")
        place = np.empty_like(by_position)
        place[by_position] = np.arange(len(by_position))
        last = plan_rows(batch, unique[by_position], self.device)
        hidden_RD = self._run(batch, last, compute_dtype)
        return hidden_RD[to_device(place[inverse], self.device)]

    def hidden_states(self, batch: PackedBatch, compute_dtype: torch.dtype | None = None) -> Tensor:
        """(T, D) hidden states of every row after the final norm."""
        native_TD = self._run_native(batch, None, compute_dtype)
        return self._run(batch, None, compute_dtype) if native_TD is None else native_TD

    def _run_native(
        self, batch: PackedBatch, asked: IntArray | None, compute_dtype: torch.dtype | None
    ) -> Tensor | None:
        """The pass by our own kernel, or ``None`` where it is not one that the kernel makes."""
        if self.native is None or not self.native.runs(self.embed_tokens.weight, compute_dtype or self.dtype):
            return None
        hidden_TD = self.embed_tokens(torch.from_numpy(batch.token_ids))
        positions = torch.from_numpy(batch.positions)
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta, torch.float32)
        return self.native(self.layers, self.norm.weight, batch, hidden_TD, angles, asked)

    def _run(self, batch: PackedBatch, last: AttentionPlan | None, compute_dtype: torch.dtype | None) -> Tensor:
        dtype = compute_dtype or self.dtype
        ids = to_device(batch.token_ids, self.device)
        positions = to_device(batch.positions, self.device)
        hidden_TD = self.embed_tokens(ids).to(dtype)
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta, dtype)
        everyone = plan_all(batch, self.device)
        for number, layer in enumerate(self.layers):
            plan = last if last is not None and number == len(self.layers) - 1 else everyone
            hidden_TD = self._layer(layer, hidden_TD, angles, plan, dtype)
        return _as_type(self.norm, dtype)(hidden_TD)  # type: ignore[no-any-return]

    def _layer(
        self, layer: nn.Module, hidden_TD: Tensor, angles: Rotation, plan: AttentionPlan, dtype: torch.dtype
    ) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(  # type: ignore[no-any-return]
                layer, hidden_TD, angles, plan,
                use_reentrant=False, context_fn=lambda: (nullcontext(), self.recomputing()),
            )  # fmt: skip
        return _as_type(layer, dtype)(hidden_TD, angles, plan)  # type: ignore[no-any-return]


def _as_type(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself where it has that type already, else a converted copy."""
    if next(module.parameters()).dtype == dtype:
        return module
    return copy.deepcopy(module).to(dtype)
