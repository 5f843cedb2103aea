"""What a trainer needs of the thing that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from qwen3_embedding.training.config import RunSettings
from qwen3_embedding.training.distributed import Ranks


@dataclass(frozen=True)
class StepReport:
    """What a step did, gradients aside."""

    group: str
    loss: float
    tokens: int
    """Tokens computed by this rank, shared ones once."""
    texts: int
    """Sequences of this rank."""
    epoch: int = 0
    masked_fraction: float = 0.0
    masked: Mapping[str, int] = field(default_factory=dict)
    candidates: Mapping[str, int] = field(default_factory=dict)
    by_dimension: Mapping[int, float] = field(default_factory=dict)
    saturated_fraction: float = 0.0
    """Of a reranker's pairs: those whose yes is so certain that float32 has 1 for it and their order is lost."""


class Objective(Protocol):
    """An embedder, a reranker or a language model in training."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        ...

    @property
    def data_hashes(self) -> Mapping[str, str]:
        """Each source's identity, for the run folder and the check at resume."""
        ...

    @property
    def data_facts(self) -> Mapping[str, Mapping[str, int]]:
        """Of each source: how many records are used, and how many of their texts are longer than the limits."""
        ...

    def shard(self) -> None:
        """Split the model over the processes, before the optimizer is made."""
        ...

    def gather(self, keep: bool) -> None:
        """Put a split model together for the export, where ``keep`` is true; every process takes part."""
        ...

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """Add the gradients of this rank's share of the step's batch."""
        ...

    def describe_batch(self, step: int) -> dict[str, Any]:
        """The batch of a step in plain, readable values, for inspection."""
        ...

    def masked_samples(self, step: int, run: RunSettings, limit: int) -> list[dict[str, Any]]:
        """Pairs that the mask dropped in a step's batch, readable."""
        ...

    def measure(self, run: RunSettings) -> dict[str, dict[str, float]]:
        """Metrics on the held-out sources, if there are any."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained checkpoint into an empty folder."""
        ...
