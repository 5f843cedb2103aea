"""The model a small run starts from, where there is no pre-trained one: a vocabulary and weights that retrieve by
words.

Before the first step the end token's vector is the mean of the text's token vectors, each of them random, weighted by
how rare the token is: a random projection of the weighted bag of tokens, which retrieves by shared words about as a
classical ranking does, as far as the vector's size allows.  Two of the hidden dimensions carry the weighting: one is
the same for all tokens, one grows with the inverse document frequency; keys read both, so the angle between them,
which the key norm keeps, is the rarity.  Contrastive training then moves the words.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from qwen3_embedding.data.files import read_records, record_files
from qwen3_embedding.data.record import Record
from qwen3_embedding.inputs.prompts import query_prefix
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.layers import Layer
from qwen3_embedding.training.export import export_embedder
from qwen3_embedding.training.vocabulary import train_vocabulary, write_tokenizer
from qwen3_embedding.types import FloatArray, IntArray

TEXT_CHARACTERS = 400
"""Of each text, for the vocabulary: enough to count words by."""


INSTRUCTION_WORDS = (
    "Given a an the any some question query queries web search topic request description need claim title "
    "heading headline word sentence text snippet document documents passage passages paragraph paragraphs "
    "abstract abstracts article section page answer answers definition translation meaning summary retrieve "
    "find search identify select rank classify judge match relevant similar related same semantically exactly "
    "not opposite that which what who it its of in for to from with about and or is are be does do means "
    "satisfy satisfies support supports refute refutes contain contains help state English Chinese Japanese "
    "Korean Python language languages scientific paper papers medical code function functions user online "
    "information research Wikipedia encyclopedia news task tasks shell command"
)
"""Words of task instructions; they say what is wanted, not what it is about, and should not draw attention."""

SHARPNESS = 0.75
"""How steeply attention follows rarity: the rarest token weighs about 70 times the commonest."""


@dataclass(frozen=True)
class BaseSettings:
    """Shape and texts of a base model."""

    output: Path
    data: Path
    """A record file or a folder of them; its texts make the vocabulary."""
    vocab_size: int = 40000
    records_per_source: int = 40000
    """So many records of each file, from its beginning, for the vocabulary."""
    counted_per_source: int = 10000
    """So many for the document frequencies."""
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
                f"heads={self.heads} times head_dim={self.head_dim} is not hidden_size={self.hidden_size}; the "
                "averaging start needs them equal"
            )


def make_base(settings: BaseSettings) -> Path:
    """Train the vocabulary, set the weights, write the checkpoint folder.

    The vocabulary, which takes most of the time, stays in ``<output>.vocabulary`` and is taken up again from there.

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
    backbone = averaging_start(Backbone(config), tokenizer.end_id, rarity(settings, tokenizer), settings.seed)
    beside = settings.output.with_name(settings.output.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    export_embedder(beside, backbone, vocabulary, "float32", tokenizer.end_id)
    beside.rename(settings.output)
    return settings.output


def _records(settings: BaseSettings, per_source: int) -> Iterator[Record]:
    for file in record_files(settings.data):
        yield from islice(read_records(file), per_source)


def _texts(settings: BaseSettings) -> Iterator[str]:
    for record in _records(settings, settings.records_per_source):
        yield record.query[:TEXT_CHARACTERS]
        yield record.positives[0][:TEXT_CHARACTERS]


def rarity(settings: BaseSettings, tokenizer: Tokenizer) -> FloatArray:
    """(V,) inverse document frequency of each token, from 0 to 1; those of prompts get next to nothing."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    words = INSTRUCTION_WORDS.split()
    prompts = {query_prefix(), INSTRUCTION_WORDS, " ".join(words).lower(), *words}
    texts: list[str] = []
    total = 0
    for record in _records(settings, settings.counted_per_source):
        prompts.add(query_prefix(record.instruction))
        texts += [record.query[:TEXT_CHARACTERS], record.positives[0][:TEXT_CHARACTERS]]
        if len(texts) >= 20_000:
            total += _count(counts, texts, tokenizer)
    total += _count(counts, texts, tokenizer)
    weights = np.log((total + 1) / (counts + 1))
    weights /= weights.max()
    prompt_ids = np.unique(np.concatenate(tokenizer.token_ids(sorted(prompts))))
    weights[prompt_ids] = np.minimum(weights[prompt_ids], 0.05)
    return weights.astype(np.float32)


def _count(counts: IntArray, texts: list[str], tokenizer: Tokenizer) -> int:
    """Add the texts' document frequencies, empty the list, and say how many there were."""
    ids = [np.unique(np.asarray(sequence, dtype=np.int64)) for sequence in tokenizer.token_ids(texts)]
    counts += np.bincount(np.concatenate([*ids, np.empty(0, dtype=np.int64)]), minlength=len(counts))
    done = len(texts)
    texts.clear()
    return done


def averaging_start(backbone: Backbone, end_id: int, rarity_V: FloatArray, seed: int) -> Backbone:
    """Set the weights so that a text's vector is the mean of its tokens' random vectors, weighted by rarity.

    Every head of the last layer has queries (0, 8) and keys 8 (1, r) / |(1, r)| in the two slowest-turning dimensions,
    for a token of rarity r, so the attention logit is ``8 * SHARPNESS * r / sqrt(1 + r^2)`` at any distance.
    """
    generator = torch.Generator().manual_seed(seed)
    size, head_dim = backbone.config.hidden_size, backbone.config.head_dim
    same, rare = size - 2, size - 1
    with torch.no_grad():
        table = backbone.embed_tokens.weight
        table.normal_(0.0, 1.0, generator=generator)
        table[:, same] = 4.0
        table[:, rare] = 4.0 * torch.from_numpy(rarity_V)
        table[end_id] *= 0.05  # the end token asks; its own vector should not weigh
        table[end_id, same], table[end_id, rare] = 0.5, 0.0
        layers = [layer for layer in backbone.layers if isinstance(layer, Layer)]
        for layer in layers:
            silence(layer, generator)
        attention = layers[-1].self_attn
        eye = torch.eye(size)
        eye[same, same] = eye[rare, rare] = 0.0
        attention.v_proj.weight.copy_(eye)
        attention.o_proj.weight.copy_(4.0 * eye)
        attention.q_proj.weight.mul_(0.03)
        attention.k_proj.weight.mul_(0.03)
        slow = head_dim // 2 - 1  # of the half-rotation layout: the pair (slow, slow + head_dim / 2) turns slowest
        for begin in range(0, size, head_dim):
            attention.q_proj.weight[begin + slow, same] = 1.0
            attention.k_proj.weight[begin + slow, rare] = 1.0
            attention.k_proj.weight[begin + slow - 1, same] = 1.0
        attention.q_norm.weight.fill_(SHARPNESS)
        backbone.norm.weight.fill_(1.0)
    return backbone


def silence(layer: Layer, generator: torch.Generator) -> None:
    """Random projections of unit gain; outputs at zero, so that the layer adds nothing yet."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        else:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]), generator=generator)
