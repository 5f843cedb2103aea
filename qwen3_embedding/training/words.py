"""Weights of a small embedder whose vector of a text is the weighted sum of its words' vectors.

Two layers say exactly that, in the published architecture:

* Layer 0 tells the task from the query.  One head looks for the tokens that open an instruction (``Instruct``) and a
  query (``Query``), the latter louder; what stands behind the first and not behind the second loses its weight.
* Layer 1 sums.  The end token attends to every token with the logarithm of the token's weight, and what it gathers is
  the sum of weight times direction: the words' vectors.

The four dimensions that carry markers and weights are shut at the final norm, so the vector of a text is the normalised
sum of the rows that :func:`write_words` was given, with and without an instruction. The two markers themselves are
silent, and so is what stands behind ``Instruct`` in a text that has no ``Query``.  The other heads of layer 0 and
both MLPs add nothing yet and can be trained on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.layers import Layer, SelfAttention

SPECIAL_DIMENSIONS = 4
"""The last hidden dimensions carry no words: instruction marker, query marker, a constant, the weight."""
RANGE = 12.0
"""Largest attention logit either way: weights from e^-12 to e^12 times the mean; what is silent has the smallest."""
_SILENT = -60.0
_MARKER = 2.0
_QUERY_LOUDER = 5.0
_MARKER_LOGIT = 40.0
_GAIN = 16.0


def write_words(backbone: Backbone, tokenizer: Tokenizer, vectors_VW: Tensor, seed: int = 0) -> Backbone:
    """Set a backbone's weights so that it gives the normalised sum of word vectors.

    Args:
        backbone: two layers, as many key/value heads as heads, which fill the hidden size D.
        tokenizer: its vocabulary, with "Instruct" and "Query" as one token each.
        vectors_VW: a vector of D - 4 components for each token; its length is the token's weight.
        seed: of the projections that are free for training.

    Raises:
        ValueError: a backbone or vectors of another shape.
        CheckpointError: a marker that is not one token.
    """
    config = backbone.config
    layers = [layer for layer in backbone.layers if isinstance(layer, Layer)]
    size, words = config.hidden_size, config.hidden_size - SPECIAL_DIMENSIONS
    if len(layers) != 2 or config.num_key_value_heads * config.head_dim != size:
        raise ValueError(
            f"{len(layers)} layers, {config.num_key_value_heads} key/value heads of {config.head_dim}; wanted 2 layers "
            f"and heads that fill the hidden size of {size}"
        )
    if tuple(vectors_VW.shape) != (config.vocab_size, words):
        raise ValueError(f"vectors of shape {tuple(vectors_VW.shape)}; wanted {(config.vocab_size, words)}")
    markers = one_token(tokenizer, "Instruct"), one_token(tokenizer, "Query")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        backbone.embed_tokens.weight.copy_(_table(vectors_VW.float(), tokenizer.end_id, markers, generator))
        for layer in layers:
            silence(layer, generator)
        _tell_task(layers[0].self_attn, words)
        _sum(layers[1].self_attn, words)
        backbone.norm.weight.fill_(1.0)
        backbone.norm.weight[words:] = 0.0
    return backbone


def word_vectors(backbone: Backbone) -> Tensor:
    """(V, D - 4): what :func:`write_words` was given, up to a common factor; zero for tokens that are silent."""
    words = backbone.config.hidden_size - SPECIAL_DIMENSIONS
    table_VD = backbone.embed_tokens.weight.detach().float()
    slope_V = table_VD[:, words + 3] / table_VD[:, words + 2]
    logit_V = RANGE * slope_V / (1 + slope_V.square()).sqrt()
    vectors_VW = table_VD[:, :words] * logit_V.exp()[:, None]
    vectors_VW[slope_V <= _SILENT / 2] = 0.0
    return vectors_VW


def sums_words(backbone: Backbone) -> bool:
    """Whether a backbone is one of :func:`write_words`: its final norm shuts the last dimensions.

    Its layers have gains that small steps wreck, so what is trained of it is the table (``kind = "bag"``).
    """
    return shuts_last(backbone.norm.weight)


def shuts_last(norm_D: Tensor) -> bool:
    """Whether a final norm's weight shuts the dimensions that carry no words."""
    return not norm_D[-SPECIAL_DIMENSIONS:].any()


def one_token(tokenizer: Tokenizer, text: str) -> int:
    """The id of a text that has to be one token.

    Raises:
        CheckpointError: it is not.
    """
    (ids,) = tokenizer.token_ids([text])
    if len(ids) != 1:
        raise CheckpointError(f"{text!r} is {len(ids)} tokens in this vocabulary; wanted one")
    return ids[0]


def silence(layer: Layer, generator: torch.Generator) -> None:
    """Random projections of unit gain; outputs at zero, so that the layer adds nothing yet."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        else:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]), generator=generator)


def _table(vectors_VW: Tensor, end_id: int, markers: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(V, D): rows of equal length, so that the norms in front of the layers favour none.

    A row is direction times rho, the markers, the constant 1, and the slope r of its weight: the logit in layer 1 is
    ``RANGE * r / sqrt(1 + r^2)``.
    """
    words = vectors_VW.shape[1]
    lengths_V = vectors_VW.norm(dim=1)
    heard_V = lengths_V > 1e-9
    heard_V[[end_id, *markers]] = False
    log_weight_V = lengths_V.clamp_min(1e-9).log()
    log_weight_V -= log_weight_V[heard_V].mean()
    square = 4.0 * (words + SPECIAL_DIMENSIONS)
    slope_V = torch.zeros_like(log_weight_V)
    for _ in range(
        30
    ):  # the slope takes from the length that is left for the direction, and the weight makes up for it
        rho_V = (square - 1.0 - slope_V.square()).sqrt()
        logit_V = (log_weight_V - (rho_V / math.sqrt(square)).log()).clamp(-0.95 * RANGE, 0.95 * RANGE)
        slope_V = logit_V / (RANGE**2 - logit_V.square()).sqrt()
    table_VD = torch.zeros(len(vectors_VW), words + SPECIAL_DIMENSIONS)
    table_VD[:, :words] = vectors_VW / lengths_V.clamp_min(1e-9)[:, None] * rho_V[:, None]
    table_VD[:, words + 3] = slope_V
    table_VD[~heard_V] = 0.0
    table_VD[~heard_V, words + 3] = _SILENT
    table_VD[:, words + 2] = 1.0
    # What an empty text looks like: any direction, far too short to be felt beside a word.
    table_VD[end_id, :words] = torch.randn(words, generator=generator) * 1e-3
    for place, marker in enumerate(markers):
        table_VD[marker, words + place] = _MARKER
    return table_VD


def _tell_task(attention: SelfAttention, words: int) -> None:
    """Head 0: behind the instruction's marker, and not yet behind the query's, the weight sinks to nothing."""
    opening, asking, constant, weight = range(words, words + SPECIAL_DIMENSIONS)
    first, second = steady_places(attention.head_dim)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[: attention.head_dim] = 0.0
    attention.q_proj.weight[first, constant] = 1.0
    attention.k_proj.weight[first, opening] = 1.0
    attention.k_proj.weight[first, asking] = _QUERY_LOUDER
    attention.k_proj.weight[second, constant] = 2.0
    attention.q_norm.weight.fill_(_MARKER_LOGIT / math.sqrt(attention.head_dim))
    attention.v_proj.weight[0, opening] = 1.0
    attention.o_proj.weight[weight, 0] = _SILENT


def _sum(attention: SelfAttention, words: int) -> None:
    """All heads: attend by the tokens' weights and gather their directions."""
    constant, weight = words + 2, words + 3
    first, second = steady_places(attention.head_dim)
    size = words + SPECIAL_DIMENSIONS
    gather = torch.eye(size)
    gather[words:] = 0.0
    attention.q_proj.weight.zero_()
    attention.k_proj.weight.zero_()
    attention.v_proj.weight.copy_(gather)
    attention.o_proj.weight.copy_(_GAIN * gather)
    for begin in range(0, size, attention.head_dim):
        attention.q_proj.weight[begin + first, constant] = 1.0
        attention.k_proj.weight[begin + first, weight] = 1.0
        attention.k_proj.weight[begin + second, constant] = 1.0
    attention.q_norm.weight.fill_(RANGE / math.sqrt(attention.head_dim))


def steady_places(head_dim: int) -> tuple[int, int]:
    """The two places of a head that rotary embedding turns slowest: 0.05 radians over 32,768 positions at 64."""
    return head_dim // 2 - 1, head_dim // 2 - 2
