"""The model a small run starts from, where there is no pre-trained one: a vocabulary and weights that average.

The last layer's value and output projections are the identity, so before the first step the end token's vector is near the
mean of the text's token vectors, each of them random: a random projection of the bag of tokens, which already retrieves by
shared words.  Contrastive training then moves the words.  Layers below write nothing at first (zero output projections), so
adding them (:func:`grow`) changes no vector.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qwen3_embedding.data.files import read_records, record_files
from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.export import export_embedder
from qwen3_embedding.training.vocabulary import train_vocabulary, write_tokenizer

TEXT_CHARACTERS = 400
"""Of each text, for the vocabulary: enough to count words by."""


@dataclass(frozen=True)
class BaseSettings:
    """Shape and texts of a base model."""

    output: Path
    data: Path
    """A record file or a folder of them; its texts make the vocabulary."""
    vocab_size: int = 40000
    records_per_source: int = 40000
    """So many records of each file, from its beginning."""
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 1
    heads: int = 4
    head_dim: int = 64
    context: int = 32768
    seed: int = 0

    def __post_init__(self) -> None:
        if self.heads * self.head_dim != self.hidden_size:
            raise ValueError(
                f"heads={self.heads} times head_dim={self.head_dim} is not hidden_size={self.hidden_size}; the averaging "
                "start needs them equal"
            )


def make_base(settings: BaseSettings) -> Path:
    """Train the vocabulary, set the weights, write the checkpoint folder.

    The vocabulary, which takes most of the time, stays beside in ``<output>.vocabulary`` and is taken up again from there.

    Raises:
        ValueError: ``output`` is there already.
    """
    if settings.output.exists():
        raise ValueError(f"{settings.output} is there already; choose another output or remove it")
    vocabulary = settings.output.with_name(settings.output.name + ".vocabulary")
    if not (vocabulary / "tokenizer_config.json").exists():
        write_tokenizer(vocabulary, train_vocabulary(_texts(settings), settings.vocab_size))
    tokenizer = Tokenizer.from_folder(vocabulary)
    config = BackboneConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.context,
    )
    backbone = averaging_start(Backbone(config), tokenizer.end_id, settings.seed)
    beside = settings.output.with_name(settings.output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_embedder(beside, backbone, vocabulary, "float32", tokenizer.end_id)
    beside.rename(settings.output)
    return settings.output


def _texts(settings: BaseSettings) -> Iterator[str]:
    for file in record_files(settings.data):
        for number, record in enumerate(read_records(file)):
            if number == settings.records_per_source:
                break
            yield record.query[:TEXT_CHARACTERS]
            yield record.positives[0][:TEXT_CHARACTERS]


def averaging_start(backbone: Backbone, end_id: int, seed: int) -> Backbone:
    """Set the weights so that a text's vector is near the mean of its tokens' random vectors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        backbone.embed_tokens.weight.normal_(0.0, 1.0, generator=generator)
        backbone.embed_tokens.weight[end_id] *= 0.05  # the end token asks; its own vector should not weigh
        for number in range(len(backbone.layers)):
            layer = backbone.layers[number]
            assert isinstance(layer, Layer)
            _silent(layer, generator)
            if number == len(backbone.layers) - 1:
                size = backbone.config.hidden_size
                layer.self_attn.v_proj.weight.copy_(torch.eye(size))
                layer.self_attn.o_proj.weight.copy_(4.0 * torch.eye(size))
        backbone.norm.weight.fill_(1.0)
    return backbone


def _silent(layer: Layer, generator: torch.Generator) -> None:
    """Random projections of unit gain; outputs at zero, so that the layer adds nothing yet."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        else:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]), generator=generator)


def grow(source: Path, output: Path, layers: int, seed: int = 0) -> Path:
    """Put new layers below the last one. They add nothing yet, so every vector stays what it was.

    Raises:
        ValueError: ``layers`` is not more than the model has, or ``output`` is there.
        CheckpointError: ``source`` is no checkpoint.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; choose another output or remove it")
    small, extra = load_backbone(source, dtype=torch.float32)
    if extra:
        raise CheckpointError(f"{source}: has a separate head ({', '.join(extra)}); only tied models can grow")
    old = small.config.num_hidden_layers
    if layers <= old:
        raise ValueError(f"layers={layers}; {source} has {old} and can only grow")
    large = Backbone(replace(small.config, num_hidden_layers=layers))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        large.embed_tokens.load_state_dict(small.embed_tokens.state_dict())
        large.norm.load_state_dict(small.norm.state_dict())
        for number in range(layers):
            # The old layers below the last stay at the bottom, the last on top, the new between them.
            kept = number if number < old - 1 else old - 1 if number == layers - 1 else None
            layer = large.layers[number]
            assert isinstance(layer, Layer)
            if kept is None:
                _silent(layer, generator)
            else:
                layer.load_state_dict(small.layers[kept].state_dict())
    beside = output.with_name(output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_embedder(beside, large, source, "float32", Tokenizer.from_folder(source).end_id)
    beside.rename(output)
    return output
