"""A language model in training: the next token, of plain texts or of the query behind its document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwen3_embedding.errors import CheckpointError
from qwen3_embedding.inputs.packing import PackedBatch, pack, plan_batches
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.training import lora
from qwen3_embedding.training.config import RunSettings, TrainingSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import trainable_backbone
from qwen3_embedding.training.export import DTYPES, export_language_model
from qwen3_embedding.training.language_batches import LanguageBatches, Sequence
from qwen3_embedding.training.next_token import next_token_loss
from qwen3_embedding.training.objective import StepReport
from qwen3_embedding.training.precision import Precision, checkpoint_layers, matmul_precision


class LanguageModel:
    """A backbone with its head over the vocabulary: the table of the tied embeddings, or one of its own."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.backbone, extra = trainable_backbone(folder, device)
        if "score.weight" in extra:
            raise CheckpointError(f"{folder}: a sequence-classification head; a language model needs the whole lm_head")
        tied = self.backbone.config.tie_word_embeddings
        if not tied and "lm_head.weight" not in extra:
            raise CheckpointError(f"{folder}: tie_word_embeddings is false and the weights have no lm_head.weight")
        self.separate = None if tied else nn.Parameter(extra["lm_head.weight"].detach().clone())

    @property
    def head_VD(self) -> Tensor:
        """(V, D) the rows that make logits."""
        return self.separate if self.separate is not None else self.backbone.embed_tokens.weight

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's, and a separate head."""
        named = dict(self.backbone.named_parameters())
        return named if self.separate is None else {**named, "lm_head.weight": self.separate}

    def freeze_head(self) -> None:
        """Leave a separate head as it is."""
        if self.separate is not None:
            self.separate.requires_grad_(False)

    def loss(self, sequences: list[Sequence], packed: PackedBatch, precision: Precision) -> Tensor:
        """Summed cross-entropy, in nats, of the learnt tokens of the packed sequences."""
        with matmul_precision(self.backbone.device, precision):
            hidden_TD = self.backbone.hidden_states(packed)
        rows, targets = [], []
        for number, sequence in enumerate(sequences):
            # A row predicts the token behind it; rows that sequences share predict once for each.
            rows.append(packed.sequence_rows(number)[sequence.given - 1 : -1])
            targets.append(sequence.ids[sequence.given :])
        device = hidden_TD.device
        rows_R = torch.from_numpy(np.concatenate(rows)).to(device)
        targets_R = torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device)
        return next_token_loss(hidden_TD[rows_R], self.head_VD, targets_R)

    def head(self) -> dict[str, Tensor]:
        """The separate head, for export."""
        return {} if self.separate is None else {"lm_head.weight": self.separate}


class LanguageModelObjective:
    """A language model trained on batches of sequences."""

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self.settings = settings
        self.model = LanguageModel(settings.model, device)
        checkpoint_layers(self.backbone, settings.run)
        if settings.lora is not None:
            self.model.freeze_head()
            lora.attach(self.backbone, settings.lora, settings.run.seed)
        self.batches = LanguageBatches(
            settings.data, settings.language_model, settings.model, self.model.tokenizer, settings.run.seed
        )
        held_out = settings.held_out
        self.held_out = [self.batches.open(source) for source in held_out.sources] if held_out else []

    @property
    def backbone(self) -> Backbone:
        """The decoder."""
        return self.model.backbone

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The backbone's and the separate head's."""
        return self.model.parameters

    @property
    def data_hashes(self) -> Mapping[str, str]:
        """Hash of each source's files, tokenizer and choice."""
        stores = [windows.store for windows in self.batches.windows]
        return {store.folder.name: ",".join(store.meta["inputs"]["files"]) for store in stores}

    @property
    def data_facts(self) -> Mapping[str, Mapping[str, int]]:
        """Texts, tokens and sequences of each source."""
        return self.batches.facts()

    def shard(self) -> None:
        """Language models are trained whole in each process.

        Raises:
            ValueError: always.
        """
        raise ValueError("run.shard is not there for kind = 'language_model'; remove it, each process holds the model")

    def gather(self, keep: bool) -> None:
        """Nothing was split."""

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """The loss of this rank's sequences, chunk by chunk; its mean is over the learnt tokens of the whole batch."""
        batch = self.batches.batch(step)
        everyone = sum(sequence.learnt for sequence in batch.sequences)
        mine = [batch.sequences[row] for row in ranks.share(len(batch.sequences))]
        total = torch.zeros((), dtype=torch.float64)
        tokens = 0
        for chunk, packed in _chunks(mine, run.chunk_tokens):
            loss = self.model.loss(chunk, packed, run.precision) / everyone
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
            tokens += packed.n_tokens
        on_device = total.to(dtype=torch.float32, device=self.backbone.device)
        return StepReport(
            group=batch.group,
            loss=float(ranks.sum(on_device)),
            tokens=tokens,
            texts=len(mine),
            epoch=batch.epoch,
        )

    def describe_batch(self, step: int) -> dict[str, Any]:
        """What is given and what is learnt of each sequence of a batch."""
        batch = self.batches.batch(step)
        decode = self.model.tokenizer.decode
        rows = [
            {"given": decode(s.ids[: s.given].tolist()), "learnt": decode(s.ids[s.given :].tolist())}
            for s in batch.sequences
        ]
        return {"step": step, "group": batch.group, "rows": rows}

    def masked_samples(self, step: int, run: RunSettings, limit: int) -> list[dict[str, Any]]:
        """A language model's batch masks nothing."""
        return []

    def measure(self, run: RunSettings) -> dict[str, dict[str, float]]:
        """Nats a token and perplexity on each held-out source."""
        self.backbone.eval()
        measured = {}
        for windows in self.held_out:
            rng = np.random.default_rng(run.seed)
            sequences = self.batches.sequences(windows, np.arange(len(windows.items)), rng)
            with torch.no_grad():
                parts = [
                    float(self.model.loss(chunk, packed, run.precision))
                    for chunk, packed in _chunks(sequences, run.chunk_tokens)
                ]
            loss = sum(parts) / sum(sequence.learnt for sequence in sequences)
            name = windows.source.path.name.split(".")[0]
            measured[name] = {"loss": round(loss, 5), "perplexity": round(math.exp(min(loss, 700.0)), 3)}
        self.backbone.train()
        return measured

    def export(self, folder: Path) -> None:
        """Write the trained language model."""
        s = self.settings
        plain = self.backbone if s.lora is None else lora.merged(self.backbone)
        export_language_model(folder, plain, self.model.head(), s.model, s.export_dtype, self.model.tokenizer.end_id)
        if s.lora is not None:
            lora.check_export(folder, self.backbone.eval(), s.model, DTYPES[s.export_dtype])
            lora.write_adapter(folder / "adapter", self.backbone, s.lora, s.model, prefix="model.")


def _chunks(sequences: list[Sequence], max_tokens: int) -> list[tuple[list[Sequence], PackedBatch]]:
    """Sequences by length in packed batches of a token budget."""
    plan = plan_batches([len(sequence.ids) for sequence in sequences], max_tokens) if sequences else ()
    chosen = ([sequences[index] for index in indices] for indices in plan)
    return [(chunk, pack([sequence.ids for sequence in chunk])) for chunk in chosen]
