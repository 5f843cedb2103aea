"""A smaller vocabulary in Qwen3's form, for models that must stay small: byte-level BPE trained on one's own texts.

Normaliser, splitting rule, special tokens (names and order) and post-processor are those of the published tokenizers,
so prompts and templates are read the same way; only the merges are fewer and the special tokens' ids follow them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from qwen3_embedding.whole import write_text

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen3 cuts text into words before merging."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Added to the vocabulary without being special, as in the published tokenizers."""

_ALWAYS = ("yes", "no", "Instruct: task\nQuery:text", "<Instruct>: task\n<Query>: text\n<Document>: text")
_ALWAYS_COUNT = 3000
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def train_vocabulary(texts: Iterable[str], size: int) -> str:
    """``tokenizer.json`` of a byte-level BPE with ``size`` ids, special tokens included.

    The reranker's answers "yes" and "no" are always tokens of their own.

    Raises:
        ValueError: ``size`` is too small for the 256 bytes, the special tokens and a merge.
    """
    added = len(SPECIAL_TOKENS) + len(ADDED_TOKENS)
    if size < 256 + added + 8:
        raise ValueError(f"size={size}; wanted at least {256 + added + 8}")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_specification({}, [], 0)))
    trainer = trainers.BpeTrainer(
        vocab_size=size - added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.model = models.BPE()
    tokenizer.train_from_iterator(_with_prompts(texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return json.dumps(_specification(model["vocab"], model["merges"], len(model["vocab"])), ensure_ascii=False)


def write_tokenizer(folder: Path, tokenizer_json: str) -> None:
    """``tokenizer.json`` and the ``tokenizer_config.json`` of the published models."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
    }
    for name, text in (("tokenizer.json", tokenizer_json), ("tokenizer_config.json", json.dumps(config, indent=2))):
        write_text(folder / name, text)


def without_end_token(tokenizer_json: str) -> str:
    """The form of rerankers and language models: no end token behind a pair or a prompt. Unchanged if it is so."""
    spec = json.loads(tokenizer_json)
    if not _puts_end_token(spec):
        return tokenizer_json
    spec["post_processor"] = _BYTE_LEVEL
    return json.dumps(spec, ensure_ascii=False)


def with_end_token(tokenizer_json: str) -> str:
    """The form of embedders: the post-processor puts the end token behind every text. Unchanged if it is so."""
    spec = json.loads(tokenizer_json)
    if _puts_end_token(spec):
        return tokenizer_json
    (end_id,) = (token["id"] for token in spec["added_tokens"] if token["content"] == SPECIAL_TOKENS[0])
    spec["post_processor"] = _end_token_processor(end_id)
    return json.dumps(spec, ensure_ascii=False)


def _puts_end_token(spec: dict[str, Any]) -> bool:
    processor = spec.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    return any(step.get("type") == "TemplateProcessing" for step in steps)


def _end_token_processor(end_id: int) -> dict[str, Any]:
    name = SPECIAL_TOKENS[0]
    last = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [first, last],
        "pair": [first, second, last],
        "special_tokens": {name: {"id": name, "ids": [end_id], "tokens": [name]}},
    }
    return {"type": "Sequence", "processors": [_BYTE_LEVEL, template]}


def _with_prompts(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for _ in range(_ALWAYS_COUNT):
        yield from _ALWAYS


def _specification(vocabulary: dict[str, int], merges: list[Any], first_added: int) -> dict[str, Any]:
    added = [(name, True) for name in SPECIAL_TOKENS] + [(name, False) for name in ADDED_TOKENS]
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": first_added + number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for number, (name, special) in enumerate(added)
            if vocabulary
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _end_token_processor(first_added) if vocabulary else None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
