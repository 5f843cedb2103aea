"""Who computes for a served model: its own object in this process, or worker processes that hold copies of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.inference.runner import Runner, RunSettings
from qwen3_embedding.inputs.packing import pack
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.serving.queue import Compute, Restartable
from qwen3_embedding.types import FloatArray

ONE_BATCH = 2**62
"""The queue cuts work into batches; the runner below it takes each as one, so that all of it shares beginnings."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says and needs to know of a model."""

    dimensions: int
    """Full vector size D."""
    max_tokens: int
    batch_tokens: int
    """Token budget of a batch on its device."""
    dtype: str
    device: str
    """As torch names it; several are joined by commas."""

    @classmethod
    def of(cls, model: Embedder | Reranker) -> Facts:
        """Those of a loaded model."""
        backbone = model.backbone
        return cls(
            backbone.config.hidden_size,
            model.max_tokens,
            model.runner.settings.batch_tokens,
            backbone.type_name,
            str(backbone.device),
        )

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.partition(":")[0].partition(",")[0]


class Engine(Protocol):
    """Token ids in, numbers out, for one model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        ...

    @property
    def facts(self) -> Facts:
        """See :class:`Facts`."""
        ...

    @property
    def computes(self) -> Sequence[Compute | Restartable]:
        """What the model's queue runs, one a worker."""
        ...

    def hidden_states(self, sequences: Sequence[list[int]]) -> list[FloatArray]:
        """(T, D) hidden states of every token of each sequence; blocks."""
        ...


class LocalEngine:
    """A model in this process.

    Args:
        model: an embedder or a reranker.
        lock: held while it computes, so that several models do not fight for the same cores.
    """

    def __init__(self, model: Embedder | Reranker, lock: threading.Lock) -> None:
        self.tokenizer = model.tokenizer
        self.facts = Facts.of(model)
        self._backbone = model.backbone
        self._lock = lock
        self._run = raw_compute(model)
        self.computes: Sequence[Compute | Restartable] = [self._compute]

    def _compute(self, sequences: list[list[int]]) -> FloatArray:
        with self._lock:
            return self._run(sequences)

    def hidden_states(self, sequences: Sequence[list[int]]) -> list[FloatArray]:
        """(T, D) hidden states of every token of each sequence; blocks."""
        states = []
        for ids in sequences:
            with self._lock, torch.inference_mode():
                hidden_TD = self._backbone.hidden_states(pack([ids]))
                states.append(np.asarray(hidden_TD.float().cpu().numpy()))
        return states


def raw_compute(model: Embedder | Reranker) -> Callable[[list[list[int]]], FloatArray]:
    """What a queue runs: token ids to pooled rows (N, D), fp32, not normalised, or to the log-odds of "yes" (N,)."""
    finish = model.head if isinstance(model, Reranker) else _as_float
    return Runner(model.backbone, finish, RunSettings(ONE_BATCH)).run


def _as_float(pooled_ND: Tensor) -> Tensor:
    return pooled_ND.float()
