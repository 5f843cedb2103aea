"""Losses beside the contrastive one: labelled pairs, graded similarity, yes/no, lists, distillation. All in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_embedding.training.contrastive import ContrastiveSettings, Items, LossReport, Vectors, check_fit

RerankerLoss = Literal["yes_no", "listwise", "distillation"]


@dataclass(frozen=True)
class GradedSettings:
    """CoSENT for graded similarity (``sts`` records)."""

    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; wanted a positive number")


def labelled_loss(
    vectors: Vectors, items: Items, settings: ContrastiveSettings, rows: range | None = None
) -> LossReport:
    """Contrastive loss against the own, explicit negatives only: classification and clustering.

    There, other items of the batch may well carry the same label, so none of them is taken for a negative.

    Raises:
        ValueError: a query of ``rows`` without a negative; its loss would always be 0.
    """
    sizes = check_fit(vectors, items, settings)
    n = len(items.query_ids)
    rows = rows if rows is not None else range(n)
    mine_M = ((items.negative_owners >= rows.start) & (items.negative_owners < rows.stop)).nonzero()[:, 0]
    owners_M = items.negative_owners[mine_M]
    counts_N = torch.bincount(owners_M, minlength=n)
    lonely = (counts_N[rows.start : rows.stop] == 0).nonzero()
    if len(lonely):
        raise ValueError(
            f"row {rows.start + int(lonely[0])} has no negatives; a classification or clustering record needs its own "
            "(texts of other labels)"
        )
    keep_M: Tensor | None = None
    losses, by_dimension = [], {}
    with torch.autocast(vectors.queries_ND.device.type, enabled=False):
        for size, weight in zip(sizes, settings.weights, strict=True):
            unit = vectors.unit(size)
            own_N = (unit.queries_ND * unit.positives_ND).sum(-1)
            against_M = (unit.queries_ND[owners_M] * unit.negatives_MD[mine_M]).sum(-1)
            if keep_M is None:
                keep_M = _kept_negatives(own_N, against_M, owners_M, mine_M, items, settings)
            loss = _owned_cross_entropy(own_N, against_M, owners_M, keep_M, settings.temperature, rows) / n
            by_dimension[size] = float(loss.detach())
            losses.append(weight * loss)
    assert keep_M is not None
    return LossReport(
        loss=torch.stack(losses).sum(),
        by_dimension=by_dimension,
        candidates={"own_negatives": len(mine_M)},
        masked={"own_negatives": len(mine_M) - int(keep_M.count_nonzero())},
    )


def _kept_negatives(
    own_N: Tensor, against_M: Tensor, owners_M: Tensor, mine_M: Tensor, items: Items, settings: ContrastiveSettings
) -> Tensor:
    keep_M = torch.ones_like(owners_M, dtype=torch.bool)
    if settings.mask_equal_texts:
        keep_M = ~(items.positive_ids[owners_M] == items.negative_ids[mine_M][:, None]).any(-1)
    if settings.mask_by_margin and settings.mask_own_negatives:
        keep_M &= against_M.detach() <= own_N.detach()[owners_M] + settings.margin
    return keep_M


def _owned_cross_entropy(
    own_N: Tensor, against_M: Tensor, owners_M: Tensor, keep_M: Tensor, temperature: float, rows: range
) -> Tensor:
    """Sum over ``rows`` of -log softmax of the positive among itself and its kept negatives."""
    n = len(own_N)
    order = torch.argsort(owners_M, stable=True)
    sorted_owners = owners_M[order]
    counts_N = torch.bincount(owners_M, minlength=n)
    begins_N = counts_N.cumsum(0) - counts_N
    slot_M = torch.arange(len(order), device=order.device) - begins_N[sorted_owners]
    logits = own_N.new_full((n, int(counts_N.max()) + 1), -torch.inf)
    logits[:, 0] = own_N / temperature
    values = (against_M / temperature).masked_fill(~keep_M, -torch.inf)[order]
    logits = logits.index_put((sorted_owners, slot_M + 1), values)
    return (logits.logsumexp(-1) - logits[:, 0])[rows.start : rows.stop].sum()


def graded_loss(
    vectors: Vectors, grades_N: Tensor, settings: GradedSettings, contrastive: ContrastiveSettings
) -> LossReport:
    """CoSENT (Su 2022): ``log(1 + sum over y_i > y_j of exp((s_j - s_i) / t))``, over all pairs of the batch.

    It asks only that higher grades score higher, so a low grade is never trained as a positive pair.  The vector sizes
    and their weights are those of the contrastive loss.
    """
    if len(grades_N) != len(vectors.queries_ND):
        raise ValueError(f"{len(grades_N)} grades for {len(vectors.queries_ND)} pairs; wanted as many")
    higher = grades_N[:, None] > grades_N[None, :]
    losses, by_dimension = [], {}
    with torch.autocast(vectors.queries_ND.device.type, enabled=False):
        for size, weight in zip((vectors.size, *contrastive.dimensions), contrastive.weights, strict=True):
            unit = vectors.unit(size)
            score_N = (unit.queries_ND * unit.positives_ND).sum(-1) / settings.temperature
            gaps = (score_N[None, :] - score_N[:, None]).masked_fill(~higher, -torch.inf).flatten()
            loss = torch.cat([gaps.new_zeros(1), gaps]).logsumexp(0)
            by_dimension[size] = float(loss.detach())
            losses.append(weight * loss)
    return LossReport(loss=torch.stack(losses).sum(), by_dimension=by_dimension)


def yes_no_loss(log_odds_QC: Tensor, present_QC: Tensor, balanced: bool) -> Tensor:
    """The report's Eq. 2: mean of -log p(label), with p(yes) = sigmoid(logit_yes - logit_no).

    Args:
        log_odds_QC: candidates of each query, the positive ("yes") in column 0, negatives ("no") behind it.
        present_QC: which of them there are.
        balanced: weigh the positive of a query as much as all its negatives together; else every pair alike.
    """
    signed = log_odds_QC.float()
    losses = torch.cat([F.softplus(-signed[:, :1]), F.softplus(signed[:, 1:])], dim=1) * present_QC
    if not balanced:
        return losses.sum() / present_QC.sum()
    negatives = present_QC[:, 1:].sum(-1)
    against = losses[:, 1:].sum(-1) / negatives.clamp_min(1)
    return ((losses[:, 0] + against) / (1 + (negatives > 0))).mean()


def listwise_loss(log_odds_QC: Tensor, present_QC: Tensor) -> Tensor:
    """Mean of -log softmax of the positive, in column 0, among the candidates of its query that are present."""
    logits = log_odds_QC.float().masked_fill(~present_QC, -torch.inf)
    return (logits.logsumexp(-1) - logits[:, 0]).mean()


def distillation_loss(log_odds_QC: Tensor, teacher_QC: Tensor, present_QC: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL divergence from the teacher's distribution over a query's candidates, times temperature squared."""
    student = (log_odds_QC.float() / temperature).masked_fill(~present_QC, -torch.inf).log_softmax(-1)
    teacher = (teacher_QC.float() / temperature).masked_fill(~present_QC, -torch.inf).log_softmax(-1)
    terms = torch.where(present_QC, teacher.exp() * (teacher - student), 0.0)
    return terms.sum(-1).mean() * temperature**2
