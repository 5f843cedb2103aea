"""Qwen3 Embedding and Reranker, end to end.

The public names load on first use: importing the package imports neither torch nor lancedb.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_embedding.inference.embedder import Embedder
    from qwen3_embedding.inference.reranker import Reranker
    from qwen3_embedding.retrieval.index import SearchIndex
    from qwen3_embedding.types import Hit

__version__ = "0.1.0"

_PUBLIC = {
    "Embedder": "qwen3_embedding.inference.embedder",
    "Reranker": "qwen3_embedding.inference.reranker",
    "SearchIndex": "qwen3_embedding.retrieval.index",
    "Hit": "qwen3_embedding.types",
}

__all__ = ["Embedder", "Hit", "Reranker", "SearchIndex", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
