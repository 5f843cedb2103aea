"""The model a small run starts from, where there is no pre-trained one: a vocabulary and weights that retrieve by
words.

Before the first step a text's vector is the sum of its tokens' vectors, each of them random, weighted by how rare the
token is: a random projection of the weighted bag of tokens, which retrieves by shared words about as a classical
ranking does, as far as the vector's size allows (:mod:`qwen3_embedding.training.words` says how the layers do it).
Training then moves the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qwen3_embedding.data.files import read_records, record_files
from qwen3_embedding.data.record import Record
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.training.export import export_embedder
from qwen3_embedding.training.vocabulary import train_vocabulary, write_tokenizer
from qwen3_embedding.training.words import SPECIAL_DIMENSIONS, write_words
from qwen3_embedding.types import FloatArray, IntArray
from qwen3_embedding.whole import whole_folder

TEXT_CHARACTERS = 400
"""Of each text, for the vocabulary: enough to count words by."""
FEW_RECORDS, MOST_REPEATS = 1500, 4
"""A language of a source with fewer records is counted several times, but not more often than this."""


@dataclass(frozen=True)
class BaseSettings:
    """Shape and texts of a base model."""

    output: Path
    data: Path
    """A record file or a folder of them; its texts make the vocabulary."""
    vocab_size: int = 40000
    records_per_language: int = 20000
    """So many records of each language of a file, evenly spread, for the vocabulary."""
    counted_per_source: int = 20000
    """So many of each file, evenly spread, for the document frequencies."""
    hidden_size: int = 384
    intermediate_size: int = 384
    heads: int = 6
    head_dim: int = 64
    context: int = 32768
    seed: int = 0

    def __post_init__(self) -> None:
        if self.heads * self.head_dim != self.hidden_size:
            raise ValueError(
                f"heads={self.heads} times head_dim={self.head_dim} is not hidden_size={self.hidden_size}; the "
                "sum of words needs them equal"
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
        num_hidden_layers=2,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.context,
    )
    rarity_V = torch.from_numpy(rarity(settings, tokenizer))
    generator = torch.Generator().manual_seed(settings.seed)
    directions_VW = torch.randn(config.vocab_size, config.hidden_size - SPECIAL_DIMENSIONS, generator=generator)
    backbone = write_words(Backbone(config), tokenizer, rarity_V[:, None] * directions_VW, settings.seed)
    with whole_folder(settings.output) as beside:
        export_embedder(beside, backbone, vocabulary, "float32", tokenizer.end_id)
    return settings.output


def _texts(settings: BaseSettings) -> Iterator[str]:
    """What the vocabulary is counted on: no language of a source above its share, small ones a little above theirs."""
    for file in record_files(settings.data):
        sizes = Counter(record.language for record in read_records(file))
        seen: Counter[str | None] = Counter()
        for record in read_records(file):
            size, number = sizes[record.language], seen[record.language]
            seen[record.language] += 1
            if not _spread(number, size, settings.records_per_language):
                continue
            for _ in range(min(MOST_REPEATS, max(1, FEW_RECORDS // size))):
                yield record.query[:TEXT_CHARACTERS]
                yield record.positives[0][:TEXT_CHARACTERS]


def _spread(number: int, size: int, wanted: int) -> bool:
    """Whether item ``number`` of ``size`` is one of ``wanted`` that are evenly spread."""
    return size <= wanted or number * wanted // size != (number - 1) * wanted // size


def _counted(settings: BaseSettings) -> Iterator[Record]:
    for file in record_files(settings.data):
        records = list(read_records(file))
        yield from (r for i, r in enumerate(records) if _spread(i, len(records), settings.counted_per_source))


def rarity(settings: BaseSettings, tokenizer: Tokenizer) -> FloatArray:
    """(V,) inverse document frequency of each token, from 0 to 1."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    texts: list[str] = []
    total = 0
    for record in _counted(settings):
        texts += [record.query[:TEXT_CHARACTERS], record.positives[0][:TEXT_CHARACTERS]]
        if len(texts) >= 20_000:
            total += _count(counts, texts, tokenizer)
    total += _count(counts, texts, tokenizer)
    weights = np.log((total + 1) / (counts + 1))
    return np.asarray(weights / weights.max(), dtype=np.float32)


def _count(counts: IntArray, texts: list[str], tokenizer: Tokenizer) -> int:
    """Add the texts' document frequencies, empty the list, and say how many there were."""
    ids = [np.unique(np.asarray(sequence, dtype=np.int64)) for sequence in tokenizer.token_ids(texts)]
    counts += np.bincount(np.concatenate([*ids, np.empty(0, dtype=np.int64)]), minlength=len(counts))
    done = len(texts)
    texts.clear()
    return done
