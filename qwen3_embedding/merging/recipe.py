"""A merge recipe: a merge, and how to search its weights where they are to be found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_embedding.merging.search import SearchSettings
from qwen3_embedding.merging.settings import MergeSettings


@dataclass(frozen=True)
class SearchRecipe(SearchSettings):
    """A search of weights by the mean main metric over held-out evaluation tasks."""

    folders: tuple[Path, ...] = ()
    """Evaluation tasks, or folders of tasks."""
    model: Literal["embedder", "reranker"] = "embedder"
    """What the checkpoints are. A reranker orders the candidates of BM25."""
    max_queries: int | None = None
    """A fixed sample of each task's queries."""
    device: str = "auto"
    dtype: str = "auto"
    ledger: Path | None = None
    """Where scores are kept; ``None``: ``OUTPUT.search.jsonl``."""

    def __post_init__(self) -> None:
        SearchSettings.__post_init__(self)
        if not self.folders:
            raise ValueError("folders is empty; wanted held-out evaluation tasks to score merges on")


@dataclass(frozen=True)
class MergeRecipe(MergeSettings):
    """What ``merge RECIPE.toml`` does."""

    search: SearchRecipe | None = None
    """Search the weights; those of the sources are not used then."""

    @property
    def ledger(self) -> Path:
        """Where a search keeps its scores."""
        named = self.search.ledger if self.search else None
        return named or self.output.with_name(self.output.name + ".search.jsonl")
