"""Checkpoint folders that tests make: tiny random Qwen3, in the published layout, with Qwen3's special tokens."""

from __future__ import annotations

import json
import lzma
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from qwen3_embedding.inputs.prompts import RERANKER_CHAT_TEMPLATE
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.weights import Layout, save_backbone, write_json
from qwen3_embedding.types import DEFAULT_INSTRUCTION

DATA = Path(__file__).resolve().parents[1] / "data"
TINY_MERGES = 3000


@lru_cache(maxsize=1)
def real_tokenizer_json() -> str:
    """``tokenizer.json`` of Qwen3-Embedding-0.6B."""
    return lzma.decompress((DATA / "qwen3-tokenizer.json.xz").read_bytes()).decode("utf-8")


@lru_cache(maxsize=1)
def tiny_tokenizer_json() -> str:
    """The published tokenizer with its first merges only: same rules, same special tokens, small ids."""
    spec: dict[str, Any] = json.loads(real_tokenizer_json())
    merges = spec["model"]["merges"][:TINY_MERGES]
    kept = [token for token, id_ in spec["model"]["vocab"].items() if id_ < 256]
    kept += ["".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges]
    kept = list(dict.fromkeys([*kept, *_closure(spec, ["yes", "no"])]))
    spec["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    spec["model"]["merges"] = [
        m for m in spec["model"]["merges"] if _parts(m)[2] in spec["model"]["vocab"] and _known(m, kept)
    ]
    for number, added in enumerate(spec["added_tokens"]):
        added["id"] = len(kept) + number
    end = spec["added_tokens"][0]["id"]
    for processor in spec["post_processor"]["processors"]:
        if processor["type"] == "TemplateProcessing":
            processor["special_tokens"]["<|endoftext|>"]["ids"] = [end]
    return json.dumps(spec, ensure_ascii=False)


def _parts(merge: Any) -> tuple[str, str, str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    return left, right, left + right


def _known(merge: Any, kept: list[str]) -> bool:
    left, right, _ = _parts(merge)
    known = _as_set(tuple(kept))
    return left in known and right in known


@lru_cache(maxsize=4)
def _as_set(tokens: tuple[str, ...]) -> frozenset[str]:
    return frozenset(tokens)


def _closure(spec: dict[str, Any], words: list[str]) -> list[str]:
    made = {_parts(merge)[2]: _parts(merge)[:2] for merge in reversed(spec["model"]["merges"])}
    out: list[str] = []
    for word in words:
        if word in made:
            out += [*_closure(spec, list(made[word])), word]
    return out


def tiny_config(vocab_size: int, **changes: Any) -> BackboneConfig:
    """A Qwen3 of three narrow layers, with grouped queries."""
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
    }
    return BackboneConfig(**{**shape, **changes})


def make_embedder_folder(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, layout: Layout | None = None, **changes: Any
) -> Path:
    """A tiny random embedder that loads in this package, transformers and sentence-transformers."""
    backbone = _write_backbone(folder, tiny_tokenizer_json(), seed, dtype, layout, changes)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": backbone.config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    prompts = {"query": f"Instruct: {DEFAULT_INSTRUCTION}\nQuery:", "document": ""}
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    return folder


def make_reranker_folder(
    folder: Path, seed: int = 1, dtype: torch.dtype = torch.float32, layout: Layout | None = None, **changes: Any
) -> Path:
    """A tiny random reranker with the published rerankers' key style and chat template."""
    spec = json.loads(tiny_tokenizer_json())
    spec["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
    }  # fmt: skip
    _write_backbone(
        folder, json.dumps(spec, ensure_ascii=False), seed, dtype, layout or Layout(prefix="model."), changes
    )
    (folder / "chat_template.jinja").write_text(RERANKER_CHAT_TEMPLATE, encoding="utf-8")
    return folder


def _write_backbone(
    folder: Path, tokenizer_json: str, seed: int, dtype: torch.dtype, layout: Layout | None, changes: dict[str, Any]
) -> Backbone:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_bos_token": False,
            "model_max_length": 131072,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
        },
    )
    tokenizer = Tokenizer.from_folder(folder)
    backbone = Backbone(tiny_config(**{"vocab_size": tokenizer.vocab_size, **changes})).initialize(seed)
    save_backbone(folder, backbone, dtype, tokenizer.end_id, layout)
    return backbone
