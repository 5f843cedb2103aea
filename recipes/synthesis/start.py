"""What the query writer starts from: an embedder's words and layers, with a silent layer in front.

The embedder's last layer already gathers the words that matter into the last position, which is half of what writing a
query takes; the new layer learns which word follows which.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training.base import silence
from qwen3_embedding.training.export import export_language_model


def make_start(embedder: Path, output: Path, seed: int = 0) -> Path:
    """Write a language-model folder with one layer more than the embedder, in front.

    The table and everything that writes beside it are scaled to rows of unit length, which changes nothing but how far
    a step of the optimizer goes, and the final norm so that a state and its own token make a logit of about 10.
    """
    source, _ = load_backbone(embedder, dtype=torch.float32)
    layers = source.config.num_hidden_layers + 1
    config = BackboneConfig(**{**source.config.__dict__, "num_hidden_layers": layers, "dtype": "float32"})
    backbone = Backbone(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, layer in enumerate(backbone.layers):
            assert isinstance(layer, Layer)
            if number == 0:
                silence(layer, generator)
            else:
                layer.load_state_dict(source.layers[number - 1].state_dict())
            scale = 1.0 / float(source.embed_tokens.weight.norm(dim=-1).median())
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
        backbone.embed_tokens.weight.copy_(source.embed_tokens.weight * scale)
        backbone.norm.weight.fill_(10.0 / config.hidden_size**0.5)
    beside = output.with_name(output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_language_model(beside, backbone, {}, embedder, "float32", Tokenizer.from_folder(embedder).end_id)
    beside.rename(output)
    return output
