"""Where a small reranker starts when there is no pre-trained one: three layers that compare words and meanings.

Grown from the words of an embedder (:mod:`qwen3_embedding.training.words`), before the first step it

1. marks: everything behind ``<Query`` and everything behind ``<Document`` gets a mark of its own;
2. matches: every token of the document looks for its like in the query and takes over that token's weight, or that of
   the template's first token, which is nothing; the last position gathers the query's words;
3. pools: the last position gathers the document's words, what its tokens found on average, and what the luckiest
   found; the MLP multiplies the two sums, component by component, and all of it goes into one dimension that "yes" and
   "no" read with opposite signs.

Training then changes all of it.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwen3_embedding.inputs.prompts import RERANKER_PREFIX, RERANKER_SUFFIX
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import MLP, Layer, SelfAttention
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.export import export_embedder
from qwen3_embedding.training.words import one_token, silence, steady_places, word_vectors

_SPECIAL = ("query_marker", "document_marker", "sink", "constant", "weight", "query", "document", "found", "answer", "fill")
_COMPARED = 64  # components of the two sums that are multiplied
_ROW = 2.0  # root mean square of a row of the table, so that one unit behind a norm is this much before it


@dataclass(frozen=True)
class MatchingSettings:
    """Shape of the reranker."""

    source: Path
    """An embedder that sums words."""
    output: Path
    hidden_size: int = 192
    intermediate_size: int = 192
    heads: int = 3
    head_dim: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        words = self.hidden_size - len(_SPECIAL)
        if self.heads < 3 or words < 2 * _COMPARED or self.intermediate_size < 2 * _COMPARED:
            raise ValueError(
                f"heads={self.heads}, hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}; wanted "
                f"at least 3, {2 * _COMPARED + len(_SPECIAL)} and {2 * _COMPARED}"
            )
        if words / 2 > len(_steady(self.head_dim)):
            raise ValueError(
                f"head_dim={self.head_dim} has {len(_steady(self.head_dim))} places that rotary embedding leaves alone; "
                f"wanted {math.ceil(words / 2)}"
            )


@dataclass(frozen=True)
class _Dims:
    """Where in the hidden state things stand: words first, then what has a name."""

    size: int

    @property
    def words(self) -> int:
        return self.size - len(_SPECIAL)

    def __getitem__(self, name: str) -> int:
        return self.words + _SPECIAL.index(name)


def matching_start(settings: MatchingSettings) -> Path:
    """Write a reranker that compares words, made from an embedder that sums them.

    Raises:
        ValueError: ``output`` is there already, or the embedder has fewer components than the reranker wants words.
        CheckpointError: a vocabulary in which ``<Query`` or ``<Document`` is not one token.
    """
    output = settings.output
    if output.exists():
        raise ValueError(f"{output} is there already; choose another output or remove it")
    small, _ = load_backbone(settings.source, dtype=torch.float32)
    tokenizer = Tokenizer.from_folder(settings.source)
    vectors_VW, dims = word_vectors(small), _Dims(settings.hidden_size)
    if vectors_VW.shape[1] < dims.words:
        raise ValueError(f"{settings.source} has words of {vectors_VW.shape[1]} components; wanted {dims.words} or more")
    config = BackboneConfig(
        vocab_size=small.config.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.head_dim,
        max_position_embeddings=small.config.max_position_embeddings,
    )
    backbone = Backbone(config)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        backbone.embed_tokens.weight.copy_(_table(vectors_VW[:, : dims.words], tokenizer, dims))
        layers = [layer for layer in backbone.layers if isinstance(layer, Layer)]
        for layer in layers:
            silence(layer, generator)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.mul_(0.01)
        _mark(layers[0].self_attn, dims)
        _match(layers[1].self_attn, dims)
        _pool(layers[2].self_attn, dims)
        _multiply(layers[2].mlp, dims)
        backbone.norm.weight.fill_(0.02)
        backbone.norm.weight[dims["answer"]] = 1.0
    beside = output.with_name(output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_embedder(beside, backbone, settings.source, "float32", tokenizer.end_id)
    beside.rename(output)
    return output


def _table(vectors_VW: Tensor, tokenizer: Tokenizer, dims: _Dims) -> Tensor:
    """(V, D): directions, weights from 0 to 1, markers; rows filled up to the same length."""
    lengths_V = vectors_VW.norm(dim=1)
    heard_V = lengths_V > 1e-9
    heard_V[_control_ids(tokenizer)] = False
    log_V = lengths_V.clamp_min(1e-9).log()
    low, high = log_V[heard_V].quantile(0.02), log_V[heard_V].quantile(0.98)
    table_VD = torch.zeros(len(vectors_VW), dims.size)
    table_VD[:, dims["weight"]] = _ROW * ((log_V - low) / (high - low)).clamp(0, 1) * heard_V
    table_VD[_template_ids(tokenizer), dims["weight"]] = 0.0
    table_VD[:, dims["constant"]] = _ROW
    table_VD[one_token(tokenizer, "<Query"), dims["query_marker"]] = 3 * _ROW
    table_VD[one_token(tokenizer, "<Document"), dims["document_marker"]] = 3 * _ROW
    table_VD[tokenizer.reranker_prefix_ids[0], dims["sink"]] = _ROW
    table_VD[tokenizer.yes_id, dims["answer"]] = _ROW
    table_VD[tokenizer.no_id, dims["answer"]] = -_ROW
    left_V = (_ROW**2 * dims.size - table_VD.square().sum(1)).sqrt()
    words = dims.words
    table_VD[:, :words] = (vectors_VW / lengths_V.clamp_min(1e-9)[:, None]) * left_V[:, None] * heard_V[:, None]
    table_VD[~heard_V, dims["fill"]] = left_V[~heard_V]
    return table_VD


def _template_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that stand behind ``<Query`` whatever query and document are."""
    (ids,) = tokenizer.encode_pairs([""], [""], instruction="").ids
    return sorted(set(ids[ids.index(one_token(tokenizer, "<Query")) :]))


def _control_ids(tokenizer: Tokenizer) -> list[int]:
    """The template's ids that no text can have."""
    template = [*tokenizer.reranker_prefix_ids, *tokenizer.reranker_suffix_ids]
    (spelt,) = tokenizer.token_ids([RERANKER_PREFIX + RERANKER_SUFFIX])
    return sorted(set(template) - set(spelt))


def _mark(attention: SelfAttention, dims: _Dims) -> None:
    """Heads 0 and 1: everything attends to its marker where there is one before it, and writes the mark."""
    first, second = steady_places(attention.head_dim)
    for head, (marker, mark) in enumerate((("query_marker", "query"), ("document_marker", "document"))):
        begin = head * attention.head_dim
        attention.q_proj.weight[begin + first, dims["constant"]] = 10.0
        attention.k_proj.weight[begin + first, dims[marker]] = 1.0
        attention.k_proj.weight[begin + second, dims["constant"]] = 1.0
        attention.v_proj.weight[begin] = 0.0
        attention.v_proj.weight[begin, dims[marker]] = 1.0
        attention.o_proj.weight[dims[mark], begin] = _ROW / 3
    attention.q_norm.weight.fill_(30.0 / math.sqrt(attention.head_dim))


def _match(attention: SelfAttention, dims: _Dims) -> None:
    """Heads 0 and 1, each on half of the components: find the like in the query. Head 2: the query's words."""
    first, second = steady_places(attention.head_dim)
    steady = _steady(attention.head_dim)
    length = math.sqrt(dims.size / 2)  # of half a row's components, behind the norm
    for head in range(2):
        begin = head * attention.head_dim
        for place, column in zip(steady, range(head, dims.words, 2), strict=False):
            attention.q_proj.weight[begin + place, column] = 1.0
            attention.k_proj.weight[begin + place, column] = 1.0
        attention.q_proj.weight[begin + first, dims["constant"]] = 1.5 * length
        _of_query(attention.k_proj.weight[begin + first], dims, length)
        attention.k_proj.weight[begin + first, dims["sink"]] = 40 * length
        attention.v_proj.weight[begin] = 0.0
        attention.v_proj.weight[begin, dims["weight"]] = 1.0
        attention.o_proj.weight[dims["found"], begin] = _ROW / 2
    begin = 2 * attention.head_dim
    attention.q_proj.weight[begin + first, dims["constant"]] = 10.0
    attention.q_proj.weight[begin + second, dims["constant"]] = 10.0
    _of_query(attention.k_proj.weight[begin + first], dims, 1.0)
    attention.k_proj.weight[begin + second, dims["weight"]] = 1.0
    for component in range(_COMPARED):
        attention.v_proj.weight[begin + component] = 0.0
        attention.v_proj.weight[begin + component, component] = 1.0
        attention.o_proj.weight[_COMPARED + component, begin + component] = 2 * _ROW
    attention.q_norm.weight.fill_(40.0 / math.sqrt(attention.head_dim))


def _of_query(row_D: Tensor, dims: _Dims, size: float) -> None:
    """A key component: ``size`` for tokens of the query, negative for all others."""
    row_D[dims["constant"]] = -2.0 * size
    row_D[dims["query"]] = 3.0 * size
    row_D[dims["document"]] = -6.0 * size


def _pool(attention: SelfAttention, dims: _Dims) -> None:
    """Head 0: the document's words. Head 1: the mean find, over 100 tokens more. Head 2: the highest finds."""
    first, second = steady_places(attention.head_dim)
    d = attention.head_dim
    for head in range(3):
        attention.q_proj.weight[head * d + first, dims["constant"]] = 10.0
        attention.k_proj.weight[head * d + first, dims["constant"]] = -2.0
        attention.k_proj.weight[head * d + first, dims["document"]] = 3.0
    attention.q_proj.weight[second, dims["constant"]] = 10.0
    attention.k_proj.weight[second, dims["weight"]] = 1.0
    for component in range(_COMPARED):
        attention.v_proj.weight[component] = 0.0
        attention.v_proj.weight[component, component] = 1.0
        attention.o_proj.weight[component, component] = 2 * _ROW
    attention.k_proj.weight[d + second, dims["constant"]] = 1.0
    attention.k_proj.weight[d + first, dims["sink"]] = 40.0
    attention.q_proj.weight[2 * d + second, dims["constant"]] = 10.0
    attention.k_proj.weight[2 * d + second, dims["found"]] = 1.0
    for head, gain in ((1, 60.0), (2, 3.0)):
        attention.v_proj.weight[head * d] = 0.0
        attention.v_proj.weight[head * d, dims["found"]] = 1.0
        attention.o_proj.weight[dims["answer"], head * d] = gain
    attention.q_norm.weight.fill_(16.0 / math.sqrt(d))


def _multiply(mlp: MLP, dims: _Dims) -> None:
    """The product of the two sums, by ``silu(a) b + silu(-a) (-b) = a b``."""
    mlp.gate_proj.weight[: 2 * _COMPARED] = 0.0
    mlp.up_proj.weight[: 2 * _COMPARED] = 0.0
    for component in range(_COMPARED):
        for unit, sign in ((component, 1.0), (_COMPARED + component, -1.0)):
            mlp.gate_proj.weight[unit, component] = sign
            mlp.up_proj.weight[unit, _COMPARED + component] = sign
            mlp.down_proj.weight[dims["answer"], unit] = 0.15


def _steady(head_dim: int) -> list[int]:
    """Places of a head that turn less than 0.3 radians in 500 positions, the two slowest pairs left out."""
    half = head_dim // 2
    slow = [place for place in range(half - 2) if 500 * 1e6 ** (-place / half) < 0.3]
    return [*slow, *(half + place for place in slow)]
