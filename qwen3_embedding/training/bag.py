"""A small embedder's words in training: its table alone, as a weighted bag of words.

For a backbone in the form of :mod:`qwen3_embedding.training.words` the vector of a text is the normalised sum of its
words' vectors, so the table can be trained without running the layers: a step costs what looking up the rows and
comparing the sums costs, and batches of thousands of pairs take a second on a
processor.  Data, loss, optimizer, checkpoints and resume are those of every embedder.  What is exported runs through
the layers and gives the same vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3_embedding.training import grad_cache
from qwen3_embedding.training.batches import Ids
from qwen3_embedding.training.config import RunSettings, TrainingSettings
from qwen3_embedding.training.contrastive import LossReport
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import (
    EmbedderObjective,
    across_ranks,
    batch_share,
    settings_at,
    step_report,
)
from qwen3_embedding.training.export import export_embedder
from qwen3_embedding.training.objective import StepReport
from qwen3_embedding.training.words import one_token, word_vectors, write_words


class BagObjective(EmbedderObjective):
    """The words of a checkpoint that sums words.

    Raises:
        ValueError: a checkpoint of another form, or LoRA, which has nothing to hold on to here.
    """

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        if settings.lora is not None:
            raise ValueError("kind='bag' trains the table whole; take [lora] out of the recipe")
        super().__init__(settings, device)
        self.markers = [one_token(self.tokenizer, text) for text in ("Instruct", "Query")]
        self.table = nn.Parameter(word_vectors(self.backbone))
        self._put_words()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The words' vectors, (V, D - 4)."""
        return {"embed_tokens.words": self.table}

    def shard(self) -> None:
        """The table is whole in each process.

        Raises:
            ValueError: always.
        """
        raise ValueError("run.shard is not there for kind = 'bag'; remove it, each process holds the table")

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """The loss over the sums of the whole batch; each rank sums its share."""
        batch = self.batches.batch(step)
        mine = batch_share(batch, ranks)
        sequences = [self._heard(ids) for ids in batch.sequences]
        own = self._sums([sequences[index] for index in mine])
        settings = settings_at(self.settings.loss, step, run)

        def loss_of(vectors: Tensor) -> LossReport:
            return self._loss(batch, vectors, settings, ranks)

        report, gradient = across_ranks(own.detach(), mine, len(sequences), loss_of, ranks)
        torch.autograd.backward(own, gradient)
        return step_report(batch, report, sum(len(sequences[index]) for index in mine), len(mine), ranks)

    def export(self, folder: Path) -> None:
        """The layers that sum these words."""
        self._put_words()
        s = self.settings
        export_embedder(folder, self.backbone, s.model, s.export_dtype, self.tokenizer.end_id)

    def _encoder(self, run: RunSettings) -> grad_cache.Encode:
        """Through the layers, as the exported model will."""
        self._put_words()
        return super()._encoder(replace(run, precision="float32"))

    def _put_words(self) -> None:
        write_words(self.backbone, self.tokenizer, self.table.detach(), self.settings.run.seed)

    def _heard(self, ids: Ids) -> Ids:
        """What layer 0 leaves of a text: the ids behind the query's marker, no markers, no end token."""
        opening, asking = self.markers
        (places,) = np.nonzero(ids == asking)
        begin = places[0] + 1 if len(places) and ids[0] == opening else 0
        rest = ids[begin:-1]
        return np.asarray(rest[(rest != opening) & (rest != asking)])

    def _sums(self, sequences: list[Ids]) -> Tensor:
        """(N, W) sums of the sequences' rows."""
        ids = torch.from_numpy(np.concatenate(sequences)).to(self.table.device)
        lengths = np.array([0, *map(len, sequences)])
        starts = torch.from_numpy(np.cumsum(lengths[:-1])).to(self.table.device)
        return F.embedding_bag(ids.long(), self.table, starts, mode="sum")
