"""An embedder in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwen3_embedding.inputs.packing import PackedBatch
from qwen3_embedding.inputs.tokenizer import Tokenizer
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.config import BackboneConfig
from qwen3_embedding.model.weights import load_backbone
from qwen3_embedding.training import grad_cache, lora
from qwen3_embedding.training.batches import Batches, TrainBatch
from qwen3_embedding.training.config import RunSettings, TrainingSettings
from qwen3_embedding.training.contrastive import ContrastiveSettings, LossReport, Vectors, contrastive_loss
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.export import DTYPES, export_embedder
from qwen3_embedding.training.held_out import HeldOut
from qwen3_embedding.training.losses import graded_loss, labelled_loss
from qwen3_embedding.training.objective import StepReport
from qwen3_embedding.training.precision import checkpoint_layers, matmul_precision


class EmbedderObjective:
    """The backbone of a checkpoint, trained on batches of records."""

    def __init__(self, settings: TrainingSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.tokenizer = Tokenizer.from_folder(settings.model)
        self.backbone = trainable_backbone(settings.model, device)[0]
        checkpoint_layers(self.backbone, settings.run)
        # A chunk's gradient for the table is its own tokens' rows; as a whole table, every chunk would write all of it.
        self.backbone.embed_tokens.sparse = True
        if settings.lora is not None:
            lora.attach(self.backbone, settings.lora, settings.run.seed)
        self.batches = Batches(settings.data, settings.model, self.tokenizer.end_id, settings.run.seed)
        self.held_out = HeldOut(settings, self.tokenizer.end_id)
        self.agree: grad_cache.Agree | None = None

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The backbone's."""
        return dict(self.backbone.named_parameters())

    @property
    def data_hashes(self) -> Mapping[str, str]:
        """Hash of each source's files, tokenizer and choice."""
        return {store.folder.name: ",".join(store.meta["inputs"]["files"]) for store in self.batches.stores}

    @property
    def data_facts(self) -> Mapping[str, Mapping[str, int]]:
        """Records and cut texts of each source."""
        return self.batches.facts()

    def shard(self) -> None:
        """Each layer's weights in parts, one a process."""
        self.agree = split_backbone(self.backbone, self.backbone, self.device)

    def gather(self, keep: bool) -> None:
        """The whole backbone again, on CPU."""
        from qwen3_embedding.training.distributed import sharding

        state = sharding.whole(self.backbone.state_dict(), keep)
        if keep:
            self.backbone = whole_backbone(self.backbone.config, self.settings, state)

    def backward(self, step: int, run: RunSettings, ranks: Ranks) -> StepReport:
        """GradCache over this rank's share; see :class:`qwen3_embedding.training.objective.Objective`."""
        batch = self.batches.batch(step)
        mine = batch_share(batch, ranks)
        sequences = batch.sequences
        encode = self._encoder(run)
        budget = grad_cache.Budget(run.chunk_tokens, run.kept_tokens)
        chunks = grad_cache.forward_chunks(encode, [sequences[index] for index in mine], budget, agree=self.agree)
        settings = settings_at(self.settings.loss, step, run)

        def loss_of(vectors: Tensor) -> LossReport:
            return self._loss(batch, vectors, settings, ranks)

        report, gradient = across_ranks(grad_cache.gather(chunks), mine, len(sequences), loss_of, ranks)
        grad_cache.backward_chunks(encode, chunks, gradient)
        make_dense(self.backbone.embed_tokens.weight)
        return step_report(batch, report, sum(chunk.packed.n_tokens for chunk in chunks), len(mine), ranks)

    def _encoder(self, run: RunSettings) -> grad_cache.Encode:
        return pooled_encoder(self.backbone, run)

    def _loss(self, batch: TrainBatch, vectors: Tensor, settings: ContrastiveSettings, ranks: Ranks) -> LossReport:
        """This rank's share of the loss over the vectors of the global batch."""
        n = len(batch.queries)
        views = Vectors(vectors[:n], vectors[n : 2 * n], vectors[2 * n :])
        items = batch.items.to(vectors.device)
        if batch.task == "sts":
            grades = torch.from_numpy(batch.grades).to(vectors.device)
            report = graded_loss(views, grades, self.settings.graded, settings)
            return replace(report, loss=report.loss / ranks.size)
        labelled = batch.task in ("classification", "clustering")
        return (labelled_loss if labelled else contrastive_loss)(views, items, settings, ranks.share(n))

    def describe_batch(self, step: int) -> dict[str, Any]:
        """The texts of a batch as the model read them."""
        batch = self.batches.batch(step)
        owners = batch.items.negative_owners.tolist()
        negatives: list[list[str]] = [[] for _ in batch.queries]
        for owner, ids in zip(owners, batch.negatives, strict=True):
            negatives[owner].append(self._text(ids.tolist()))
        rows = zip(batch.records.tolist(), batch.queries, batch.positives, negatives, strict=True)
        return {
            "step": step,
            "group": batch.group,
            "task": batch.task,
            "rows": [
                {
                    "record": record,
                    "query": self._text(query.tolist()),
                    "positive": self._text(positive.tolist()),
                    "negatives": texts,
                }
                for record, query, positive, texts in rows
            ],
        }

    def masked_samples(self, step: int, run: RunSettings, limit: int) -> list[dict[str, Any]]:
        """Pairs of query and other document that the margin dropped, with both scores, for a look at the mask."""
        batch = self.batches.batch(step)
        if batch.task in ("sts", "classification", "clustering"):
            return []
        n = min(len(batch.queries), 256)
        sequences = [*batch.queries[:n], *batch.positives[:n]]
        with torch.no_grad():
            budget = grad_cache.Budget(run.chunk_tokens, 0)
            chunks = grad_cache.forward_chunks(self._encoder(run), sequences, budget)
        vectors = torch.empty(2 * n, self.backbone.config.hidden_size)
        for chunk in chunks:
            vectors[chunk.sequences] = chunk.output.float().cpu()
        unit = nn.functional.normalize(vectors, dim=-1)
        scores = unit[:n] @ unit[n:].T
        own = scores.diagonal()
        ids = batch.items.positive_ids[:n]
        other = (ids[:, :1] != ids[:, 0]) & (batch.items.query_ids[:n, None] != batch.items.query_ids[:n])
        dropped = (other & (scores > own[:, None] + self.settings.loss.margin)).nonzero()
        return [
            {
                "group": batch.group,
                "query": self._text(batch.queries[i].tolist()),
                "own": self._text(batch.positives[i].tolist()),
                "own_score": round(float(own[i]), 4),
                "dropped": self._text(batch.positives[j].tolist()),
                "dropped_score": round(float(scores[i, j]), 4),
            }
            for i, j in dropped[torch.randperm(len(dropped), generator=torch.Generator().manual_seed(step))].tolist()[
                :limit
            ]
        ]

    def measure(self, run: RunSettings) -> dict[str, dict[str, float]]:
        """Retrieval on the held-out sources."""
        self.backbone.eval()
        measured = self.held_out.measure(self._encoder(run), run)
        self.backbone.train()
        return measured

    def _text(self, ids: list[int]) -> str:
        return "".join(self.tokenizer.token_strings(ids))

    def export(self, folder: Path) -> None:
        """Write the trained embedder."""
        s = self.settings
        plain = self.backbone if s.lora is None else lora.merged(self.backbone)
        export_embedder(folder, plain, s.model, s.export_dtype, self.tokenizer.end_id)
        if s.lora is not None:
            lora.check_export(folder, self.backbone.eval(), s.model, DTYPES[s.export_dtype])
            lora.write_adapter(folder / "adapter", self.backbone, s.lora, s.model, prefix="")


def trainable_backbone(folder: Path, device: torch.device) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone of a checkpoint with its own fp32 weights, not those mapped from the file, and the head's rows."""
    backbone, extra = load_backbone(folder, dtype=torch.float32, device=device)
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return backbone.train(), extra


def split_backbone(root: nn.Module, backbone: Backbone, device: torch.device) -> grad_cache.Agree:
    """Split a backbone, layer by layer, and the module around it; returns how the processes keep in step."""
    from qwen3_embedding.training.distributed import sharding

    backbone.embed_tokens.sparse = False  # gradients in parts are dense
    sharding.shard(root, backbone.layers, device)
    return partial(sharding.agree, device)


def whole_backbone(config: BackboneConfig, settings: TrainingSettings, state: Mapping[str, Tensor]) -> Backbone:
    """A backbone of these weights, with adapters where the run has them."""
    with torch.device("meta"):
        backbone = Backbone(config)
    if settings.lora is not None:
        lora.attach(backbone, settings.lora, settings.run.seed)
    backbone.load_state_dict(state, assign=True)
    return backbone


def make_dense(table: Tensor) -> None:
    """The gradient that the chunks left row by row, as a whole table for the optimizer."""
    if table.grad is not None and table.grad.is_sparse:
        table.grad = table.grad.coalesce().to_dense()


def pooled_encoder(backbone: Backbone, run: RunSettings) -> grad_cache.Encode:
    """The backbone's pooled rows, matrix products in the run's precision, the result in fp32."""

    def encode(batch: PackedBatch) -> Tensor:
        with matmul_precision(backbone.device, run.precision):
            return backbone(batch).float()  # type: ignore[no-any-return]

    return encode


def settings_at(settings: ContrastiveSettings, step: int, run: RunSettings) -> ContrastiveSettings:
    """The loss of a step: while the margin warms up, it comes down from 2, where it masks nothing."""
    if step >= run.margin_warmup_steps:
        return settings
    share = step / run.margin_warmup_steps
    return replace(settings, margin=2.0 + (settings.margin - 2.0) * share)


def batch_share(batch: TrainBatch, ranks: Ranks) -> list[int]:
    """Which of the batch's sequences are this rank's: its rows' queries, positives and hard negatives."""
    n = len(batch.queries)
    rows = ranks.share(n)
    negatives = [2 * n + m for m, owner in enumerate(batch.items.negative_owners.tolist()) if owner in rows]
    return [*rows, *(n + row for row in rows), *negatives]


def step_report(batch: TrainBatch, report: LossReport, tokens: int, texts: int, ranks: Ranks) -> StepReport:
    """What a step did: the loss of all ranks, the tokens and texts of this one."""
    return StepReport(
        group=batch.group,
        loss=float(ranks.sum(report.loss.detach().clone())),
        tokens=tokens,
        texts=texts,
        epoch=batch.epoch,
        masked_fraction=report.masked_fraction,
        masked=report.masked,
        candidates=report.candidates,
        by_dimension=report.by_dimension,
    )


def across_ranks(
    own: Tensor, mine: list[int], total: int, loss_of: Callable[[Tensor], LossReport], ranks: Ranks
) -> tuple[LossReport, Tensor]:
    """Phase 2: this rank's vectors gathered with the others', differentiated, the gradients summed for their owners.

    Args:
        own: (m, D) vectors of this rank, without graph.
        mine: (m,) their places in the global batch.
        total: vectors of the global batch.
        loss_of: this rank's share of the loss over the (total, D) vectors.
        ranks: the processes.

    Returns:
        The loss of ``loss_of`` and the (m, D) gradient of all ranks' losses.
    """
    everyone = own
    if ranks.size > 1:
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[mine] = own
        everyone = ranks.sum(everyone)
    everyone.requires_grad_()
    report: LossReport = loss_of(everyone)
    (gradient,) = torch.autograd.grad(report.loss, everyone)
    return report, gradient if ranks.size == 1 else ranks.sum(gradient.contiguous())[mine]
