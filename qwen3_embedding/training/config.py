"""Settings of a training run, as they stand in its TOML recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3_embedding.config import from_mapping, load_toml
from qwen3_embedding.errors import ConfigError
from qwen3_embedding.training.contrastive import ContrastiveSettings
from qwen3_embedding.training.losses import GradedSettings, RerankerLoss


@dataclass(frozen=True)
class SourceSettings:
    """One source of records and how it is used."""

    path: Path
    """A record file, or a folder of them."""
    weight: float = 0.0
    """Its share of the steps relative to the other sources'; 0 stands for ``size ** damping``."""
    cap: int = 0
    """Use at most so many records, a random choice by the run's seed; 0 uses all."""
    batch_size: int = 0
    """Records of a batch of this source; 0 is the run's."""
    task: str = ""
    """Use only records of this task; empty uses all."""
    instruction: str = ""
    """Use this instruction in place of the records' own; ``default`` is the web-search task."""
    swap: float = 0.0
    """Share of pairs whose two sides change places (pairs that hold both ways, such as bitext)."""
    crop: float = 0.0
    """Share of pairs whose query is replaced by a stretch of the positive (the inverse cloze task)."""
    window: float = 0.0
    """Share of over-long documents cut at a random place instead of at the beginning."""
    hide: float = 0.0
    """Share of pairs whose positive is read without the longest run of tokens that it has in common with the query: of
    queries that copy, which teach little but to find the copy (as the inverse cloze task hides its sentence)."""

    def __post_init__(self) -> None:
        for name in ("swap", "crop", "window", "hide"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted a share from 0 to 1")
        for name in ("weight", "cap", "batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 0")


@dataclass(frozen=True)
class DataSettings:
    """Which records make the batches."""

    sources: tuple[SourceSettings, ...]
    batch_size: int = 256
    """Records of a global batch, over all ranks."""
    negatives: int = 7
    """At most so many hard negatives a query, chosen anew each time the record comes."""
    max_query_tokens: int = 128
    """With prompt and end token."""
    max_document_tokens: int = 256
    """With end token."""
    damping: float = 0.5
    """Sources without a weight, and the languages of a source, come in proportion to ``size ** damping``."""
    by_language: bool = True
    """Keep the languages of a source apart; those with fewer records than a batch share one group."""
    crop_tokens: tuple[int, int] = (4, 16)
    """Shortest and longest stretch that ``crop`` takes."""
    crop_removed: float = 0.5
    """Share of crops that are taken out of the document."""
    hide_tokens: int = 3
    """Shortest run that ``hide`` takes out."""
    cache: Path = Path("runs/token-cache")
    """Where token ids are kept, by hash of what they were made from."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; wanted at least one [[data.sources]] with a path")
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size}; wanted at least 2")
        if self.negatives < 0:
            raise ValueError(f"negatives={self.negatives}; wanted at least 0")
        if self.hide_tokens < 1:
            raise ValueError(f"hide_tokens={self.hide_tokens}; wanted at least 1")
        if not 1 <= self.crop_tokens[0] <= self.crop_tokens[1]:
            raise ValueError(f"crop_tokens={self.crop_tokens}; wanted shortest and longest, at least 1")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the learning rate over the steps."""

    learning_rate: float = 1e-4
    embedding_learning_rate: float = 0.0
    """Of the token embeddings; 0 is ``learning_rate``."""
    warmup_steps: int = 50
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.05
    """Learning rate at the last step, as a share of the highest."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    """On matrices; not on norms and token embeddings."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}; wanted a positive number")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final={self.final}; wanted a share from 0 to 1")


@dataclass(frozen=True)
class RunSettings:
    """How long, how precisely, how often to write."""

    steps: int = 1000
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights, optimizer, similarities and loss are fp32 always."""
    chunk_tokens: int = 8192
    """Tokens of one forward pass."""
    kept_tokens: int = 16384
    """Activations of so many tokens are kept for the backward pass; what is beyond is computed twice (GradCache)."""
    gradient_checkpointing: bool = False
    shard: bool = False
    """Under ``torchrun``, keep weights, gradients and optimizer in parts, one a process (FSDP2)."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 1
    """How many to keep, the newest."""
    log_every: int = 1
    """Steps between lines of the log."""
    tensorboard: bool = False
    wandb: str = ""
    """Weights & Biases project to log to as well (extra ``wandb``); empty for none. It needs an account, or
    ``WANDB_MODE=offline``."""
    margin_warmup_steps: int = 0
    """Steps in which the mask's margin comes down from 2 (nothing masked) to its value."""
    masked_samples_every: int = 0
    """Steps between samples of masked pairs in ``masked.jsonl``; 0 writes none."""

    def __post_init__(self) -> None:
        for name in ("steps", "chunk_tokens", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted at least 1")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021) instead of full training."""

    rank: int = 32
    alpha: float = 64.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}; wanted at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; wanted a share from 0 to below 1")
        if not self.targets:
            raise ValueError("targets is empty; wanted names of linear layers, such as q_proj")


@dataclass(frozen=True)
class RerankerSettings:
    """What a reranker learns from."""

    loss: RerankerLoss = "yes_no"
    random_negatives: int = 0
    """Documents of other records of the batch added as easy negatives where a record has fewer than wanted."""
    teacher: str = ""
    """Checkpoint folder of the reranker whose scores ``distillation`` follows."""
    temperature: float = 1.0
    """Of ``distillation``."""
    balanced: bool = True
    """In ``yes_no``, a query's positive weighs as much as all its negatives together; else every pair weighs alike."""

    def __post_init__(self) -> None:
        if self.loss == "distillation" and not self.teacher:
            raise ValueError("loss='distillation' needs teacher, a checkpoint folder of a reranker")
        if self.random_negatives < 0:
            raise ValueError(f"random_negatives={self.random_negatives}; wanted at least 0")


Learn = Literal["texts", "queries"]


@dataclass(frozen=True)
class LanguageModelSettings:
    """What a language model learns: the next token."""

    learn: Learn = "texts"
    """``texts``: every text of the sources, records or lines of plain text (``{"text": …}``), cut into stretches of
    ``max_document_tokens``. ``queries``: of each record the query behind one of its positives; only the query and the
    end token are learnt."""
    separator: str = "\nQuery:"
    """Stands between document and query."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("separator is empty; wanted a text that says where the document ends and the query begins")


@dataclass(frozen=True)
class HeldOutSettings:
    """Records to measure retrieval (of a language model: nats a token) on while training; keep them out of ``data``."""

    sources: tuple[SourceSettings, ...]
    every: int = 500
    """Steps between measurements; there is one at the end as well."""

    def __post_init__(self) -> None:
        if not self.sources or self.every < 1:
            raise ValueError(f"{len(self.sources)} sources every {self.every} steps; wanted at least 1 of both")


@dataclass(frozen=True)
class TrainingSettings:
    """A whole run: from which checkpoint, on what, to which checkpoint."""

    kind: Literal["embedder", "bag", "reranker", "language_model"]
    """``bag`` trains the words of a small embedder that sums them (:mod:`qwen3_embedding.training.bag`);
    ``language_model`` the next token (:mod:`qwen3_embedding.training.language_model`)."""
    model: Path
    """Checkpoint folder to start from."""
    output: Path
    """Checkpoint folder to write; it must not be there yet."""
    data: DataSettings
    run_folder: Path | None = None
    """Checkpoints, log and resolved settings of the run; ``None`` is ``output`` with ``.run`` behind its name."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in ``output``."""
    loss: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    graded: GradedSettings = field(default_factory=GradedSettings)
    reranker: RerankerSettings = field(default_factory=RerankerSettings)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    lora: LoraSettings | None = None
    held_out: HeldOutSettings | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder or self.output.with_name(self.output.name + ".run")


def load_settings(path: str | Path) -> TrainingSettings:
    """Read a recipe.

    Raises:
        ConfigError: as :func:`qwen3_embedding.config.load_toml`.
    """
    return load_toml(path, TrainingSettings)


def parse_settings(raw: dict[str, Any]) -> TrainingSettings:
    """Settings from plain values, as strictly as from a file."""
    return from_mapping(raw, TrainingSettings)


__all__ = [
    "ConfigError",
    "ContrastiveSettings",
    "DataSettings",
    "GradedSettings",
    "LanguageModelSettings",
    "Learn",
    "LoraSettings",
    "OptimizerSettings",
    "RerankerSettings",
    "RunSettings",
    "SourceSettings",
    "TrainingSettings",
    "load_settings",
    "parse_settings",
]
