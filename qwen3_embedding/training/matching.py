"""Where a small reranker starts when there is no pre-trained one: three layers that compare words and meanings.

Grown from the words of an embedder (:mod:`qwen3_embedding.training.words`), before the first step it

1. marks: everything behind ``<Query`` and everything behind ``<Document`` gets a mark of its own, and every token is
   told which one stands before it;
2. matches: every token of the document looks for its like among the query's tokens, itself and the document's tokens
   before it, and finds the share of its attention that goes to the query: a half for a word's first occurrence, a
   third for its second, nothing for a word that the query lacks; another head does the same with pairs of neighbours.
   The MLP drops small shares and multiplies by the token's weight, so that repeating a word adds little, as in BM25.
   The last position gathers the query's words;
3. pools: the last position gathers the document's words and the mean of what its tokens found, over some tokens more
   than it has; the MLP multiplies the two sums of words, component by component, and all of it goes into one dimension
   that "yes" and "no" read with opposite signs.

Training then changes all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from qwen3_embedding.training.export import export_reranker
from qwen3_embedding.training.words import one_token, silence, steady_places, word_vectors
from qwen3_embedding.whole import whole_folder

_MARKERS = ("query_marker", "document_marker", "sink", "constant", "log_weight")
_FOUND = ("found", "found_pair", "fresh")
_SPECIAL = (*_MARKERS, "weight", "previous_weight", "query", "document", *_FOUND, "answer", "fill")
_PREVIOUS = 40  # components of the token before
_COMPARED = 64  # components of the two sums that are multiplied
_LEAST = 0.27  # of a find: a word's first occurrence in the document finds 1/2, the second 1/3, the third 1/4
_SHARP = 80.0  # how sharply finds below that are dropped: what is left of hundreds of nothings must be nothing
_REST = 1.18  # how much the mean find is taken over beside the document's tokens: as much as some 300 tokens more
_MEAN_GAIN, _PAIR_GAIN = 200.0, 2.0
_ROW = 2.0  # root mean square of a row of the table, so that one unit behind a norm is this much before it


@dataclass(frozen=True)
class MatchingSettings:
    """Shape of the reranker."""

    source: Path
    """An embedder that sums words."""
    output: Path
    hidden_size: int = 192
    intermediate_size: int = 192
    heads: int = 4
    head_dim: int = 256
    meaning: float = 0.005
    """How loud the product of the two sums of words is beside the words found: more where queries and passages share
    meanings and no words."""
    seed: int = 0

    def __post_init__(self) -> None:
        words = _Dims(self.hidden_size).words
        if self.heads < 4 or words < 2 * _COMPARED or self.intermediate_size < 2 * _COMPARED:
            raise ValueError(
                f"heads={self.heads}, hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}; "
                f"wanted at least 4, {2 * _COMPARED + self.hidden_size - words} and {2 * _COMPARED}"
            )
        if max(words / 2, 2 * _PREVIOUS) > len(_steady(self.head_dim)):
            raise ValueError(
                f"head_dim={self.head_dim} has {len(_steady(self.head_dim))} places that rotary embedding leaves "
                f"alone; wanted {max(math.ceil(words / 2), 2 * _PREVIOUS)}"
            )


@dataclass(frozen=True)
class _Dims:
    """Where in the hidden state things stand: words first, then the word before, then what has a name."""

    size: int

    @property
    def words(self) -> int:
        return self.size - len(_SPECIAL) - _PREVIOUS

    def __getitem__(self, name: str) -> int:
        return self.words + _PREVIOUS + _SPECIAL.index(name)


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
        raise ValueError(
            f"{settings.source} has words of {vectors_VW.shape[1]} components; wanted at least {dims.words}"
        )
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
        _look_back(layers[0].self_attn, dims)
        _match(layers[1].self_attn, dims)
        _weigh(layers[1].mlp, dims)
        _pool(layers[2].self_attn, dims)
        _multiply(layers[2].mlp, dims, settings.meaning)
        backbone.norm.weight.fill_(0.002)
        backbone.norm.weight[dims["answer"]] = 1.0
    with whole_folder(output) as beside:
        export_reranker(beside, backbone, {}, settings.source, "float32", tokenizer.end_id)
    return output


def _table(vectors_VW: Tensor, tokenizer: Tokenizer, dims: _Dims) -> Tensor:
    """(V, D): directions, weights and their logarithms (0 to 1), markers; rows filled up to the same length."""
    lengths_V = vectors_VW.norm(dim=1)
    heard_V = lengths_V > 1e-9
    heard_V[_control_ids(tokenizer)] = False
    log_V = lengths_V.clamp_min(1e-9).log()
    low, high = log_V[heard_V].quantile(0.02), log_V[heard_V].quantile(0.98)
    table_VD = torch.zeros(len(vectors_VW), dims.size)
    table_VD[:, dims["log_weight"]] = _ROW * ((log_V - low) / (high - low)).clamp(0, 1) * heard_V
    table_VD[:, dims["weight"]] = _ROW * (lengths_V / lengths_V[heard_V].quantile(0.98)).clamp(0, 1) * heard_V
    table_VD[_template_ids(tokenizer), dims["log_weight"]] = 0.0
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


def _look_back(attention: SelfAttention, dims: _Dims) -> None:
    """Head 2: every token attends to the one before it, by rotary embedding alone, and copies its words and weight."""
    half, begin = attention.head_dim // 2, 2 * attention.head_dim
    for place, turn in enumerate(_turns(attention.head_dim)):
        if turn < 0.3:
            break
        attention.q_proj.weight[begin + place, dims["constant"]] = 10.0
        attention.k_proj.weight[begin + place, dims["constant"]] = 10.0 * math.cos(turn)
        attention.k_proj.weight[begin + half + place, dims["constant"]] = 10.0 * math.sin(turn)
    for value, (source, target) in enumerate(
        [*((word, dims.words + word) for word in range(_PREVIOUS)), (dims["weight"], dims["previous_weight"])]
    ):
        attention.v_proj.weight[begin + value] = 0.0
        attention.v_proj.weight[begin + value, source] = 1.0
        attention.o_proj.weight[target, begin + value] = _ROW


def _match(attention: SelfAttention, dims: _Dims) -> None:
    """Heads 0 and 1, each on half of the components: find the like in the query. Head 2: the query's words.

    Head 3 finds pairs of neighbours, on some components of both.
    """
    first, second = steady_places(attention.head_dim)
    half = math.sqrt(dims.size / 2)  # the length of half a row's components, behind the norm
    for head in range(2):
        _find(attention, head, range(head, dims.words, 2), half, dims)
        attention.o_proj.weight[dims["found"], head * attention.head_dim] = _ROW / 2
    both = [*range(_PREVIOUS), *range(dims.words, dims.words + _PREVIOUS)]
    _find(attention, 3, both, math.sqrt(len(both) * dims.size / dims.words), dims)
    attention.o_proj.weight[dims["found_pair"], 3 * attention.head_dim] = _ROW
    begin = 2 * attention.head_dim
    attention.q_proj.weight[begin + first, dims["constant"]] = 10.0
    attention.q_proj.weight[begin + second, dims["constant"]] = 10.0
    _of_query(attention.k_proj.weight[begin + first], dims, 1.0)
    attention.k_proj.weight[begin + second, dims["log_weight"]] = 1.0
    for component in range(_COMPARED):
        attention.v_proj.weight[begin + component] = 0.0
        attention.v_proj.weight[begin + component, component] = 1.0
        attention.o_proj.weight[_COMPARED + component, begin + component] = 2 * _ROW
    attention.q_norm.weight.fill_(40.0 / math.sqrt(attention.head_dim))


def _find(attention: SelfAttention, head: int, columns: Sequence[int], length: float, dims: _Dims) -> None:
    """Look for the like in these components, in query and document alone; the value tells the one from the other.

    ``length`` is that of the components together, behind the norm.
    """
    begin, (first, _) = head * attention.head_dim, steady_places(attention.head_dim)
    for place, column in zip(_steady(attention.head_dim), columns, strict=False):
        attention.q_proj.weight[begin + place, column] = 1.0
        attention.k_proj.weight[begin + place, column] = 1.0
    attention.q_proj.weight[begin + first, dims["constant"]] = length
    attention.k_proj.weight[begin + first, dims["constant"]] = -3.0 * length
    attention.k_proj.weight[begin + first, dims["query"]] = 3.0 * length
    attention.v_proj.weight[begin] = 0.0
    attention.v_proj.weight[begin, dims["query"]] = 1.0
    attention.v_proj.weight[begin, dims["document"]] = -1.0


def _of_query(row_D: Tensor, dims: _Dims, size: float) -> None:
    """A key component: ``size`` for tokens of the query, negative for all others."""
    row_D[dims["constant"]] = -2.0 * size
    row_D[dims["query"]] = 3.0 * size
    row_D[dims["document"]] = -6.0 * size


def _weigh(mlp: MLP, dims: _Dims) -> None:
    """What a token found, times its weight, where it is more than what a word's second or third occurrence finds."""
    for unit, (found, weights, gain) in enumerate(
        (("found", ("weight",), 1.0), ("found_pair", ("weight", "previous_weight"), _PAIR_GAIN))
    ):
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[unit] = 0.0
        mlp.gate_proj.weight[unit, dims[found]] = _SHARP
        mlp.gate_proj.weight[unit, dims["constant"]] = -_SHARP * _LEAST
        for name in weights:
            mlp.up_proj.weight[unit, dims[name]] = 1.0 / len(weights)
        mlp.down_proj.weight[dims["fresh"], unit] = gain * _ROW / (_SHARP * (0.5 - _LEAST))


def _pool(attention: SelfAttention, dims: _Dims) -> None:
    """Head 0: the document's words. Head 1: the mean of what is fresh, over some tokens more than there are."""
    first, second = steady_places(attention.head_dim)
    d = attention.head_dim
    for head in range(2):
        attention.q_proj.weight[head * d + first, dims["constant"]] = 10.0
        attention.k_proj.weight[head * d + first, dims["constant"]] = -2.0
        attention.k_proj.weight[head * d + first, dims["document"]] = 3.0
    attention.q_proj.weight[second, dims["constant"]] = 10.0
    attention.k_proj.weight[second, dims["log_weight"]] = 1.0
    for component in range(_COMPARED):
        attention.v_proj.weight[component] = 0.0
        attention.v_proj.weight[component, component] = 1.0
        attention.o_proj.weight[component, component] = 2 * _ROW
    attention.k_proj.weight[d + second, dims["constant"]] = _REST
    attention.k_proj.weight[d + first, dims["sink"]] = 40.0
    attention.v_proj.weight[d] = 0.0
    attention.v_proj.weight[d, dims["fresh"]] = 1.0
    attention.o_proj.weight[dims["answer"], d] = _MEAN_GAIN
    attention.q_norm.weight.fill_(16.0 / math.sqrt(d))


def _multiply(mlp: MLP, dims: _Dims, gain: float) -> None:
    """The product of the two sums, by ``silu(a) b + silu(-a) (-b) = a b``."""
    mlp.gate_proj.weight[: 2 * _COMPARED] = 0.0
    mlp.up_proj.weight[: 2 * _COMPARED] = 0.0
    for component in range(_COMPARED):
        for unit, sign in ((component, 1.0), (_COMPARED + component, -1.0)):
            mlp.gate_proj.weight[unit, component] = sign
            mlp.up_proj.weight[unit, _COMPARED + component] = sign
            mlp.down_proj.weight[dims["answer"], unit] = gain


def _steady(head_dim: int) -> list[int]:
    """Places of a head that turn less than 0.3 radians in 500 positions, the slowest first but for the two slowest."""
    slow = [pair for pair, turn in enumerate(_turns(head_dim)[:-2]) if 500 * turn < 0.3]
    return [place for pair in reversed(slow) for place in (pair, head_dim // 2 + pair)]


def _turns(head_dim: int) -> list[float]:
    """Radians a position by which rotary embedding turns each pair of places, the fastest first."""
    return [BackboneConfig.rope_theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
