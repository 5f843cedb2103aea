"""How a model learns a domain: the table of one that sums words, low-rank matrices beside the layers of any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_embedding.model.weights import read_tensor
from qwen3_embedding.training.config import (
    ContrastiveSettings,
    DataSettings,
    LoraSettings,
    OptimizerSettings,
    RunSettings,
    SourceSettings,
    TrainingSettings,
)
from qwen3_embedding.training.words import shuts_last


@dataclass(frozen=True)
class Adapting:
    """How a domain is learnt; what is ``None`` follows from the model."""

    steps: int = 300
    batch_size: int = 64
    learning_rate: float | None = None
    """``None``: 1e-4 for adapters, 0.1 for the table of a base that sums words."""
    max_query_tokens: int = 96
    max_document_tokens: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"
    temperature: float | None = None
    """``None``: 0.02, or 0.05 of a base that sums words."""


def sums_its_words(base: Path) -> bool:
    """Whether the table alone is trained: steps through layers that only sum words would wreck them."""
    return shuts_last(read_tensor(base, "norm.weight"))


def adapting_settings(
    base: Path,
    output: Path,
    source: SourceSettings,
    wanted: Adapting,
    *,
    cache: Path,
    lora: LoraSettings | None = None,
    negatives: int = 0,
    crop_removed: float = 0.5,
    seed: int = 0,
) -> TrainingSettings:
    """The settings of a run.

    Args:
        base: checkpoint folder.
        output: checkpoint folder to write.
        source: the domain's records.
        wanted: how.
        cache: of tokens.
        lora: adapters; ``None`` is their default, and a bag has none.
        negatives: hard negatives a query.
        crop_removed: share of crops that are taken out of the document.
        seed: of order and draws.
    """
    bag = sums_its_words(base)
    return TrainingSettings(
        kind="bag" if bag else "embedder",
        model=base,
        output=output,
        data=DataSettings(
            sources=(source,),
            batch_size=wanted.batch_size,
            negatives=negatives,
            max_query_tokens=wanted.max_query_tokens,
            max_document_tokens=wanted.max_document_tokens,
            by_language=False,
            crop_removed=crop_removed,
            cache=cache,
        ),
        # Sums of words: other queries and documents as negatives of their kind flatten everything (docs/log.md).
        loss=ContrastiveSettings(
            temperature=wanted.temperature or (0.05 if bag else 0.02),
            query_query=not bag,
            document_document=not bag,
            mask_by_margin=not bag,
        ),
        optimizer=OptimizerSettings(
            wanted.learning_rate or (0.1 if bag else 1e-4),
            warmup_steps=max(1, wanted.steps // 10),
            weight_decay=0.0,
            betas=(0.9, 0.99 if bag else 0.98),
            clip=0.0 if bag else 1.0,
        ),
        run=RunSettings(
            steps=wanted.steps,
            seed=seed,
            precision=wanted.precision,
            checkpoint_every=max(1, wanted.steps // 6),
        ),
        lora=None if bag else lora or LoraSettings(),
    )
