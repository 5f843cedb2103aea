"""What the query writer starts from: an embedder's words, and layers that copy the document in order.

* Layer 0 looks back.  One head stands one token behind, another two; what they see, a random projection of the words,
  goes into a slot beside the words.  So every place knows what stood before it.
* Layer 1 goes on (an induction head, Olsson et al. 2022).  Its first heads look for the place whose slot holds what was
  written last and what stood before that, and add the word of that place, which with tied embeddings makes it the
  likeliest to be written next.  As many others add every word of the document, by the weight that the embedder gives
  it: so a query begins with a word that matters.  Two more see what was written last, and add what most often stands
  behind it in queries: the linear map that comes nearest (ridge regression), so that a question ends like one.

Training has to find out where to begin, and when to copy and when to ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer, SelfAttention
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.export import export_language_model
from qwen3_embedding.training.words import SPECIAL_DIMENSIONS, silence, steady_places, sums_words, word_vectors
from qwen3_embedding.whole import whole_folder

HEAD_DIM = 64
SLOT = 64
"""Dimensions behind the words that hold what stood before a place."""
BESIDE = SLOT + SPECIAL_DIMENSIONS
"""All dimensions that hold no words; the last three of them are a token's prior, its weight and a constant."""
PRIOR = -3
CONSTANT = 0.3
"""Of every token's row, one long: it lets a head ask the same everywhere."""
SECOND = 0.6
"""Size of the word two back in a slot, beside the word one back."""
SLOT_SIZE = 0.5
FAST_PAIRS = 12
"""Pairs of a head whose turning tells neighbours apart; the fastest has half of the energy."""
STEADY_PAIRS = 18
"""Pairs that turn by less than 0.4 radians over 150 tokens: what is compared over any distance stands in them."""
BACK_LOGIT, FOUND_LOGIT, WEIGHT_LOGIT = 40.0, 24.0, 5.0
FOUND_SIZE, WORDS_SIZE = 8.0, 16.0
"""Of the word that comes next, and of the mean of all words, beside the word that was written last."""
LAST_HEADS, LAST_SIZE, RIDGE = 2, 14.0, 0.001
"""Of the mean of what stands behind the word that was written last."""
SEPARATOR = "\nQuery:"
"""The setting's default; its last token stands before a query."""
PRIOR_SIZE = 40.0
"""Of the state's part that makes the tokens of queries likelier."""
LOGIT = 21.0
"""Of a word whose state is its own row."""


def make_start(embedder: Path, output: Path, queries: Iterable[str] = (), seed: int = 0) -> Path:
    """Write a language-model folder with the embedder's tokenizer and words (:func:`words_of`).

    The queries' tokens, by how often they come, are likelier from the beginning.

    Rows are one unit long. The length matters to the optimizer: its steps are the same for all weights, and in tables
    of long rows they would move nothing.
    """
    source, _ = load_backbone(embedder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = Tokenizer.from_folder(embedder)
    *written, asked = tokenizer.token_ids([*queries, SEPARATOR])
    sequences = [[asked[-1], *ids, tokenizer.end_id] for ids in written]
    table_VD = table_of(source, prior_of(sequences, source.config.vocab_size), generator)
    size = table_VD.shape[1]
    heads = 2 * -(-(size - BESIDE) // HEAD_DIM) + LAST_HEADS
    shape = {
        "hidden_size": size,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_DIM,
        "intermediate_size": size,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    backbone = Backbone(BackboneConfig(**{**source.config.__dict__, **shape}))
    first, second = (layer for layer in backbone.layers if isinstance(layer, Layer))
    with torch.no_grad():
        for layer in (first, second):
            silence(layer, generator)
        seen_SW = torch.randn(SLOT, size - BESIDE, generator=generator) * SLOT**-0.5
        turn_SS = torch.linalg.qr(torch.randn(SLOT, SLOT, generator=generator))[0]
        look_back(first.self_attn, seen_SW, turn_SS, backbone.config.rope_theta)
        go_on(second.self_attn, seen_SW, turn_SS, generator)
        gather_words(second.self_attn)
        follow(second.self_attn, table_VD, sequences, backbone.config.rope_theta, generator)
        backbone.embed_tokens.weight.copy_(table_VD)
        backbone.norm.weight.fill_(LOGIT / math.sqrt(size))
        backbone.norm.weight[-BESIDE:] = 0.0
        backbone.norm.weight[PRIOR] = LOGIT / math.sqrt(size)
    with whole_folder(output) as beside:
        export_language_model(beside, backbone, {}, embedder, "float32", tokenizer.end_id)
    return output


def prior_of(sequences: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """(V,) logarithms of how often each token comes in queries, from 0 down to -1, which is no more than once."""
    counts_V = torch.zeros(vocabulary)
    for ids in sequences:
        counts_V.index_add_(0, torch.tensor(ids[1:]), torch.ones(len(ids) - 1))
    most = counts_V.max().clamp_min(2.0)
    return (counts_V.clamp_min(1.0) / most).log() / most.log()


def table_of(embedder: Backbone, prior_V: Tensor, generator: torch.Generator) -> Tensor:
    """(V, D) rows, one unit long: a token's direction, an empty slot, its prior, its weight and the constant.

    D is the embedder's, or more where the words would be squeezed into fewer than half of it; a multiple of a head's.
    """
    size = embedder.config.hidden_size
    size = -(-(size if size >= 2 * BESIDE else size + BESIDE) // HEAD_DIM) * HEAD_DIM
    words_VW, weight_V = words_of(embedder, size - BESIDE, generator)
    ends_V3 = CONSTANT * torch.stack([prior_V, weight_V, torch.ones_like(weight_V)], dim=-1)
    room_V1 = (1 - ends_V3.square().sum(-1, keepdim=True)).sqrt()
    return torch.cat([words_VW * room_V1, words_VW.new_zeros(len(words_VW), BESIDE - 3), ends_V3], dim=-1)


def words_of(embedder: Backbone, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(V, width) directions of the tokens and (V,) logarithms of their weights, between -2 and 2, around 0.

    An embedder that sums words keeps markers and weights in the last dimensions of its table: they are left out, or
    all tokens that it does not hear, the end token among them, would begin alike. These get random directions and the
    least weight.
    """
    table_VD = embedder.embed_tokens.weight.detach().float()
    if not sums_words(embedder):
        return nn.functional.normalize(fitted(table_VD, width), dim=-1), table_VD.new_zeros(len(table_VD))
    vectors_VW = word_vectors(embedder)
    lengths_V = vectors_VW.norm(dim=-1)
    silent_V = lengths_V == 0
    weight_V = lengths_V.clamp_min(1e-9).log()
    weight_V = (weight_V - weight_V[~silent_V].mean()).clamp(-2.0, 2.0)
    words_VW = fitted(nn.functional.normalize(vectors_VW, dim=-1), width)
    words_VW[silent_V] = torch.randn(int(silent_V.sum()), width, generator=generator)
    return nn.functional.normalize(words_VW, dim=-1), weight_V


def fitted(words_VW: Tensor, width: int) -> Tensor:
    """Words in ``width`` dimensions: the directions in which they differ most, or padded."""
    if words_VW.shape[1] <= width:
        return nn.functional.pad(words_VW, (0, width - words_VW.shape[1]))
    _, axes_WW = torch.linalg.eigh(words_VW.T @ words_VW)
    return words_VW @ axes_WW[:, -width:]


def look_back(attention: SelfAttention, seen_SW: Tensor, turn_SS: Tensor, theta: float) -> None:
    """Heads 0 and 1: what stood one and two tokens before, into the slot."""
    size, words = attention.v_proj.weight.shape[1], seen_SW.shape[1]
    for head, (distance, part_SW) in enumerate(((1, seen_SW), (2, SECOND * turn_SS @ seen_SW))):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        stand_back(attention, head, distance, theta)
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows, :words] = part_SW
        attention.o_proj.weight[words : words + SLOT, rows] = torch.eye(SLOT) * SLOT_SIZE / math.sqrt(size)
    set_logit(attention, BACK_LOGIT)


def stand_back(attention: SelfAttention, head: int, distance: int, theta: float) -> None:
    """Let a head look at the token that stands so many before."""
    rows, half = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM), HEAD_DIM // 2
    energy = torch.full((FAST_PAIRS,), 0.5 / (FAST_PAIRS - 1))
    energy[0] = 0.5
    angles = theta ** (-torch.arange(FAST_PAIRS) / half)
    query, key = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    query.zero_()
    key.zero_()
    query[:FAST_PAIRS, -1] = energy.sqrt()
    # A key turned on by so many positions meets the query that stands so many behind it.
    key[:FAST_PAIRS, -1] = energy.sqrt() * (distance * angles).cos()
    key[half : half + FAST_PAIRS, -1] = energy.sqrt() * (distance * angles).sin()


def go_on(attention: SelfAttention, seen_SW: Tensor, turn_SS: Tensor, generator: torch.Generator) -> None:
    """The first heads: find where the last two words stood, each by a look of its own; add what follows."""
    size, words = attention.v_proj.weight.shape[1], seen_SW.shape[1]
    places = slow_places()
    for head in range(movers(attention)):
        rows = torch.arange(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        look_PS = torch.linalg.qr(torch.randn(SLOT, SLOT, generator=generator))[0][: len(places)]
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows] = 0.0
        attention.q_proj.weight[rows[places], :words] = look_PS @ seen_SW
        attention.q_proj.weight[rows[places], words : words + SLOT] = SECOND / SLOT_SIZE * look_PS @ turn_SS
        attention.k_proj.weight[rows[places], words : words + SLOT] = look_PS
        move(attention, head, head * HEAD_DIM, words, FOUND_SIZE / math.sqrt(size))
    set_logit(attention, FOUND_LOGIT)


def gather_words(attention: SelfAttention) -> None:
    """As many more: the mean of all words, by their weights."""
    size = attention.v_proj.weight.shape[1]
    first, second = steady_places(HEAD_DIM)
    half = movers(attention)
    for head in range(half, 2 * half):
        begin = head * HEAD_DIM
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[begin : begin + HEAD_DIM] = 0.0
        # The norm makes weight / sqrt(weight^2 + 2^2) of it, of the logit that both kinds of heads have in common.
        share = WEIGHT_LOGIT / FOUND_LOGIT
        attention.q_proj.weight[begin + first, -1] = share
        attention.q_proj.weight[begin + second - 1, -1] = math.sqrt(1 - share**2)
        attention.k_proj.weight[begin + first, -2] = 1.0
        attention.k_proj.weight[begin + second, -1] = 2.0
        move(attention, head, (head - half) * HEAD_DIM, size - BESIDE, WORDS_SIZE / math.sqrt(size))
    # The last of them has places left; one moves the constant to where the prior is.
    place = 2 * half * HEAD_DIM - 1
    attention.v_proj.weight[place, -1] = 1.0
    attention.o_proj.weight[PRIOR, place] = PRIOR_SIZE / math.sqrt(size)


def follow(
    attention: SelfAttention,
    table_VD: Tensor,
    sequences: Sequence[Sequence[int]],
    theta: float,
    generator: torch.Generator,
) -> None:
    """The last heads: see the token itself, in a random projection, and add what stands behind it in queries."""
    size = table_VD.shape[1]
    words_VW = table_VD[:, : size - BESIDE]
    seen_PW = torch.randn(LAST_HEADS * HEAD_DIM, size - BESIDE, generator=generator) / math.sqrt(LAST_HEADS * HEAD_DIM)
    begin = attention.v_proj.out_features - len(seen_PW)
    for head in range(begin // HEAD_DIM, attention.v_proj.out_features // HEAD_DIM):
        stand_back(attention, head, 0, theta)
    attention.v_proj.weight[begin:] = 0.0
    attention.v_proj.weight[begin:, : size - BESIDE] = seen_PW
    attention.o_proj.weight[:, begin:] = 0.0
    if not sequences:
        return
    before, after = (torch.tensor([t for ids in sequences for t in ids[part]]) for part in (slice(-1), slice(1, None)))
    seen_BP = words_VW[before] @ seen_PW.T
    square_PP = seen_BP.T @ seen_BP
    ridge_PP = square_PP + RIDGE * square_PP.diagonal().mean() * torch.eye(len(square_PP))
    next_WP = torch.linalg.solve(ridge_PP, seen_BP.T @ words_VW[after]).T
    attention.o_proj.weight[: size - BESIDE, begin:] = next_WP * LAST_SIZE / math.sqrt(size)


def movers(attention: SelfAttention) -> int:
    """Heads that move the words whole."""
    return (attention.q_proj.out_features // HEAD_DIM - LAST_HEADS) // 2


def move(attention: SelfAttention, head: int, begin: int, words: int, gain: float) -> None:
    """Let a head add the words' dimensions from ``begin`` on of what it looks at."""
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    count = min(HEAD_DIM, words - begin)
    attention.v_proj.weight[rows] = 0.0
    attention.v_proj.weight[rows, begin : begin + count] = torch.eye(HEAD_DIM, count)
    attention.o_proj.weight[begin : begin + count, rows] = gain * torch.eye(count, HEAD_DIM)


def slow_places() -> Tensor:
    """The places of a head's steady pairs."""
    slow = torch.arange(HEAD_DIM // 2 - STEADY_PAIRS, HEAD_DIM // 2)
    return torch.cat([slow, slow + HEAD_DIM // 2])


def set_logit(attention: SelfAttention, largest: float) -> None:
    """Let a query and a key that are alike have this logit."""
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.fill_(math.sqrt(largest / math.sqrt(HEAD_DIM)))
