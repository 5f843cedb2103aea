"""A loaded model with a LoRA adapter on top, sharing the model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import overload

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inference.embedder import Embedder
from qwen3_embedding.inference.reranker import Reranker
from qwen3_embedding.model.adapters import adapted


@overload
def with_adapter(model: Embedder, folder: str | Path, name: str) -> Embedder: ...
@overload
def with_adapter(model: Reranker, folder: str | Path, name: str) -> Reranker: ...
@overload
def with_adapter(model: Embedder | Reranker, folder: str | Path, name: str) -> Embedder | Reranker: ...
def with_adapter(model: Embedder | Reranker, folder: str | Path, name: str) -> Embedder | Reranker:
    """``model`` with the adapter of ``folder`` (PEFT's format); ``model`` itself stays as it is.

    Args:
        model: the base.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: what the adapted model is called.

    Raises:
        CheckpointError: not an adapter, or one of another base (by fingerprint where it has one, by names and shapes).
        ValueError: an int8 base.
    """
    folder = Path(folder)
    _check_base(model, folder)
    backbone = adapted(model.backbone, folder)
    fresh: Embedder | Reranker
    if isinstance(model, Reranker):
        fresh = Reranker(backbone, model.head, model.tokenizer, name)
    else:
        fresh = Embedder(backbone, model.tokenizer, name)
    fresh.max_tokens, fresh.runner.settings = model.max_tokens, model.runner.settings
    return fresh


def _check_base(model: Embedder | Reranker, folder: Path) -> None:
    known = folder / "base.json"
    if not known.is_file() or model.folder is None:
        return
    try:
        wanted = json.loads(known.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{known}: not valid: {error}") from None
    if wanted != model.fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on another checkpoint than {model.name} (fingerprints differ); see "
            "base_model_name_or_path in its adapter_config.json"
        )
