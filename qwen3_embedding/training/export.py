"""The trained checkpoint as a folder that loads everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3_embedding.inputs.prompts import RERANKER_CHAT_TEMPLATE, query_prefix
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig, config_json
from qwen3_embedding.model.weights import Layout, save_weights, write_json
from qwen3_embedding.training.vocabulary import with_end_token, without_end_token

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE",
    "NOTICE",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_embedder(folder: Path, backbone: Backbone, source: Path, dtype: str, end_id: int) -> None:
    """Weights, configuration, tokenizer and the sentence-transformers files."""
    _export(folder, backbone, {}, source, dtype, end_id, Layout())
    _set_end_token(folder, True)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", _pooling(backbone.config))
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": query_prefix(), "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def export_reranker(
    folder: Path, backbone: Backbone, head: dict[str, Tensor], source: Path, dtype: str, end_id: int
) -> None:
    """Weights with the published rerankers' names, configuration, tokenizer and chat template.

    The tokenizer puts no end token behind a pair, as the published ones do not: the model card's own code adds the
    template's end to what it gives.
    """
    _export(folder, backbone, head, source, dtype, end_id, Layout(prefix="model."))
    _set_end_token(folder, False)
    (folder / "chat_template.jinja").write_text(RERANKER_CHAT_TEMPLATE, encoding="utf-8")


def export_language_model(
    folder: Path, backbone: Backbone, head: dict[str, Tensor], source: Path, dtype: str, end_id: int
) -> None:
    """A ``Qwen3ForCausalLM`` folder; its tokenizer puts no end token behind a prompt, as generation wants it."""
    _export(folder, backbone, head, source, dtype, end_id, Layout(prefix="model."))
    _set_end_token(folder, False)


def _set_end_token(folder: Path, wanted: bool) -> None:
    """Let the tokenizer's post-processor put the end token on, or not, where its file says otherwise."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    before = path.read_text(encoding="utf-8")
    after = with_end_token(before) if wanted else without_end_token(before)
    if after != before:
        path.write_text(after, encoding="utf-8")


def _export(
    folder: Path,
    backbone: Backbone,
    head: dict[str, Tensor],
    source: Path,
    dtype: str,
    end_id: int,
    layout: Layout,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    state = {name: tensor.detach().to(DTYPES[dtype]) for name, tensor in {**backbone.state_dict(), **head}.items()}
    save_weights(folder, state, layout)
    config = BackboneConfig(**{**backbone.config.__dict__, "dtype": dtype})
    write_json(folder / "config.json", config_json(config, end_id))


def _pooling(config: BackboneConfig) -> dict[str, Any]:
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    return {
        "word_embedding_dimension": config.hidden_size,
        **{f"pooling_mode_{mode}": False for mode in modes},
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
