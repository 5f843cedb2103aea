"""Where a small reranker starts when there is no pre-trained one: three layers that score shared words.

Grown from an embedder whose table carries rarity (:mod:`qwen3_embedding.training.base`), before the first step it

1. marks: every token behind ``<Document`` gets a mark (layer 0 attends to that token);
2. matches: every token of the document looks for its like in front of the document and takes over the rarity it finds
   (layer 1: queries and keys are the token vectors, keys with the mark are pushed away);
3. pools: the last position gathers what the document's tokens found, on average and where it is highest (layer 2), and
   writes it along the difference of the rows of "yes" and "no".

Training then changes all of it.  Four hidden dimensions are cleared of words for this.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import Layer, SelfAttention
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.base import silence
from qwen3_embedding.training.export import export_embedder

LAYERS = 3
LOG_ODDS_PER_RARITY = 0.15
"""How much a head's average find moves the log-odds of "yes"."""


@dataclass(frozen=True)
class _Dims:
    """Hidden dimensions with a meaning."""

    size: int

    @property
    def rare(self) -> int:
        return self.size - 1

    @property
    def same(self) -> int:
        return self.size - 2

    @property
    def mark(self) -> int:
        """Behind ``<Document``."""
        return self.size - 3

    @property
    def found(self) -> int:
        """Rarity of what a token matched."""
        return self.size - 4


def matching_start(source: Path, output: Path, seed: int = 0) -> Path:
    """Write a reranker that scores shared words, made from an embedder with rarity in its table.

    Raises:
        ValueError: ``output`` is there already.
        CheckpointError: heads that do not fill the hidden size, or a vocabulary in which ``<Document`` is not one
            token.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; choose another output or remove it")
    small, _ = load_backbone(source, dtype=torch.float32)
    tokenizer = Tokenizer.from_folder(source)
    config = replace(small.config, num_hidden_layers=LAYERS)
    if config.num_key_value_heads * config.head_dim != config.hidden_size:
        raise CheckpointError(f"{source}: the key/value heads do not fill the hidden size; this start needs that")
    marker = _one_token(tokenizer, "<Document")
    backbone = Backbone(config)
    generator = torch.Generator().manual_seed(seed)
    dims = _Dims(config.hidden_size)
    with torch.no_grad():
        table = small.embed_tokens.weight.clone()
        table[:, [dims.mark, dims.found]] = 0.0
        (body,) = tokenizer.encode_pairs([""], [""]).ids  # the prompt around query and document, control tokens and all
        table[sorted(set(body)), dims.rare] = 0.0
        toward_yes = table[tokenizer.yes_id] - table[tokenizer.no_id]
        last = table[body[-1]]
        last -= toward_yes * (last @ toward_yes) / toward_yes.square().sum()  # no opinion before the document is read
        backbone.embed_tokens.weight.copy_(table)
        backbone.norm.weight.fill_(1.0)
        layers = [layer for layer in backbone.layers if isinstance(layer, Layer)]
        for layer in layers:
            silence(layer, generator)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.mul_(0.02)
        _mark(layers[0].self_attn, table[marker], dims)
        _match(layers[1].self_attn, dims, generator)
        _pool(layers[2].self_attn, toward_yes, dims)
    beside = output.with_name(output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_embedder(beside, backbone, source, "float32", tokenizer.end_id)
    beside.rename(output)
    return output


def _one_token(tokenizer: Tokenizer, text: str) -> int:
    (ids,) = tokenizer.token_ids([text])
    if len(ids) != 1:
        raise CheckpointError(f"{text!r} is {len(ids)} tokens in this vocabulary; the start needs it as one")
    return ids[0]


def _mark(attention: SelfAttention, marker_D: Tensor, dims: _Dims) -> None:
    """Head 0: everything attends to the marker where there is one before it, and writes the mark."""
    slow = attention.head_dim // 2 - 1
    toward = marker_D.clone()
    toward[[dims.mark, dims.found, dims.rare, dims.same]] = 0.0
    toward /= toward.square().sum()
    attention.q_proj.weight[slow, dims.same] = 2.0
    attention.k_proj.weight[slow] = 16.0 * toward
    attention.k_proj.weight[slow - 1, dims.same] = 2.0
    attention.q_norm.weight.fill_(1.5)
    attention.v_proj.weight[0] = toward
    attention.o_proj.weight[dims.mark, 0] = 4.0


def _match(attention: SelfAttention, dims: _Dims, generator: torch.Generator) -> None:
    """All heads: tokens attend to their like in front of the document and take over its rarity."""
    half, d = attention.head_dim // 2, attention.head_dim
    steady = [*range(half - 18, half - 1), *range(d - 18, d - 1)]  # turn too slowly to tell near from far
    words = torch.randperm(dims.size - 4, generator=generator)
    for head in range(dims.size // d):
        begin = head * d
        for place, row in enumerate(steady):
            column = int(words[(head * len(steady) + place) % len(words)])
            attention.q_proj.weight[begin + row, column] = 1.0
            attention.k_proj.weight[begin + row, column] = 1.0
        attention.q_proj.weight[begin + half - 1, dims.same] = 1.0
        attention.k_proj.weight[begin + half - 1, dims.mark] = -2.5
        attention.v_proj.weight[begin, dims.rare] = 1.0
        attention.o_proj.weight[dims.found, begin] = 1.0
    attention.q_norm.weight.fill_(2.0)


def _pool(attention: SelfAttention, toward_yes_D: Tensor, dims: _Dims) -> None:
    """Each head gathers what the document's tokens found, from the mean to nearly the highest."""
    slow, d = attention.head_dim // 2 - 1, attention.head_dim
    gain = LOG_ODDS_PER_RARITY / toward_yes_D.square().sum()
    for head in range(dims.size // d):
        begin = head * d
        attention.q_proj.weight[begin + slow, dims.same] = float(head)
        attention.q_proj.weight[begin + slow - 1, dims.same] = 2.0
        attention.k_proj.weight[begin + slow, dims.found] = 1.0
        attention.k_proj.weight[begin + slow - 1, dims.mark] = 1.0
        attention.k_proj.weight[begin + slow - 2, dims.same] = 2.0
        attention.v_proj.weight[begin, dims.found] = 1.0
        attention.o_proj.weight[:, begin] = gain * toward_yes_D
    attention.q_norm.weight.fill_(1.5)
