"""What the query writer starts from: an embedder's words, and layers that at first only copy.

The last layer moves the words of the document to the place where the query is written, evenly and as they are, which
with tied embeddings makes them likely; training finds out which of them, in which order, and what stands between them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.export import export_language_model
from qwen3_embedding.training.words import SPECIAL_DIMENSIONS, silence, word_vectors

HEAD_DIM = 64


def make_start(embedder: Path, output: Path, layers: int = 2, seed: int = 0) -> Path:
    """Write a language-model folder with the embedder's tokenizer and words (:func:`words_of`), at unit length.

    The length matters to the optimizer: its steps are the same for all weights, and in tables of long rows they would
    move nothing.  The final norm is such that a state and its own token make a logit of about 10.
    """
    source, _ = load_backbone(embedder, dtype=torch.float32)
    size = source.config.hidden_size
    heads = size // HEAD_DIM if size % HEAD_DIM == 0 else 1
    shape = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": size // heads,
        "intermediate_size": 2 * size,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    backbone = Backbone(BackboneConfig(**{**source.config.__dict__, **shape}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, layer in enumerate(backbone.layers):
            assert isinstance(layer, Layer)
            begin_layer(layer, copies=number == layers - 1, generator=generator)
        backbone.embed_tokens.weight.copy_(words_of(source, generator))
        backbone.norm.weight.fill_(10.0 / size**0.5)
    beside = output.with_name(output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_language_model(beside, backbone, {}, embedder, "float32", Tokenizer.from_folder(embedder).end_id)
    beside.rename(output)
    return output


def words_of(embedder: Backbone, generator: torch.Generator) -> Tensor:
    """(V, D) directions of the tokens, one unit long.

    An embedder that sums words keeps markers and weights in the last dimensions of its table: they are left out, or
    all tokens that it does not hear, the end token among them, would begin alike. These get random directions.
    """
    table_VD = embedder.embed_tokens.weight.detach().float()
    if not sums_words(embedder):
        return nn.functional.normalize(table_VD, dim=-1)
    vectors_VD = nn.functional.pad(word_vectors(embedder), (0, SPECIAL_DIMENSIONS))
    silent_V = vectors_VD.norm(dim=-1) == 0
    vectors_VD[silent_V] = torch.randn(int(silent_V.sum()), vectors_VD.shape[1], generator=generator)
    return nn.functional.normalize(vectors_VD, dim=-1)


def sums_words(embedder: Backbone) -> bool:
    """Whether the final norm shuts the last dimensions, as ``training/words.py`` writes it."""
    return not embedder.norm.weight[-SPECIAL_DIMENSIONS:].any()


def begin_layer(layer: Layer, copies: bool, generator: torch.Generator) -> None:
    """Random projections of unit gain that add nothing; or attention that adds what it looks at, at its own length."""
    silence(layer, generator)
    if copies:
        size = layer.self_attn.v_proj.weight.shape[1]
        layer.self_attn.v_proj.weight.copy_(torch.eye(size))
        layer.self_attn.o_proj.weight.copy_(torch.eye(size) * 4.0 * size**-0.5)
