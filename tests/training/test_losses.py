"""The other losses against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from qwen3_embedding.training.contrastive import ContrastiveSettings, Items, Vectors, contrastive_loss
from qwen3_embedding.training.losses import (
    GradedSettings,
    distillation_loss,
    graded_loss,
    labelled_loss,
    listwise_loss,
    yes_no_loss,
)

OWN_ONLY = ContrastiveSettings(
    temperature=0.05, query_query=False, document_document=False, query_document=False, dimensions=(4,)
)


def make(n: int = 6, m: int = 15, d: int = 8) -> tuple[Vectors, Items]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(k, d, generator=generator) + 1.0 for k in (n, n, m)]
    owners = torch.arange(m).flip(0) % n
    negative_ids = torch.arange(50, 50 + m)
    negative_ids[:1] = 30 + owners[:1]  # one that is the positive
    items = Items(torch.arange(n), torch.arange(30, 30 + n)[:, None], negative_ids, owners)
    return Vectors(*(tensor.requires_grad_() for tensor in tensors)), items


def test_labelled_is_eq_1_with_own_negatives_only() -> None:
    vectors, items = make()
    one, other = labelled_loss(vectors, items, OWN_ONLY), contrastive_loss(vectors, items, OWN_ONLY)
    assert torch.allclose(one.loss, other.loss, rtol=1e-5)
    assert (one.candidates, one.masked) == (other.candidates, other.masked)
    assert one.by_dimension == pytest.approx(other.by_dimension, rel=1e-5)
    gradients = [torch.autograd.grad(report.loss, vectors.tensors) for report in (one, other)]
    for got, wanted in zip(*gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_labelled_shares_add_up() -> None:
    vectors, items = make()
    whole = labelled_loss(vectors, items, OWN_ONLY).loss
    parts = [labelled_loss(vectors, items, OWN_ONLY, rows=rows).loss for rows in (range(2), range(2, 6))]
    assert torch.allclose(sum(parts), whole, rtol=1e-5)  # type: ignore[arg-type]


def test_labelled_without_negatives_is_refused() -> None:
    vectors, items = make(m=3)
    with pytest.raises(ValueError, match="row 3 has no negatives"):
        labelled_loss(vectors, items, OWN_ONLY)


def test_graded_is_cosent() -> None:
    vectors, _ = make(m=0)
    grades = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.2, 0.9])
    report = graded_loss(vectors, grades, GradedSettings(temperature=0.1), OWN_ONLY)
    total = 0.0
    for size in (8, 4):
        q, p = (torch.nn.functional.normalize(t.detach().double()[:, :size], dim=-1) for t in vectors.tensors[:2])
        s = (q * p).sum(-1) / 0.1
        inner = sum(math.exp(s[j] - s[i]) for i in range(6) for j in range(6) if grades[i] > grades[j])
        total += math.log(1 + inner)
    assert report.loss.item() == pytest.approx(total, rel=1e-5)


def test_low_grades_are_no_positive_pairs() -> None:
    """One step down the gradient parts the pair of the lower grade and joins the other."""
    torch.manual_seed(0)
    vectors = Vectors(torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True), torch.zeros(0, 8))
    settings = GradedSettings(temperature=1.0)

    def cosines() -> torch.Tensor:
        return torch.cosine_similarity(vectors.queries_ND, vectors.positives_ND).detach()

    before = cosines()
    gradients = torch.autograd.grad(
        graded_loss(vectors, torch.tensor([0.9, 0.1]), settings, ContrastiveSettings()).loss, vectors.tensors[:2]
    )
    with torch.no_grad():
        for tensor, gradient in zip(vectors.tensors, gradients, strict=False):
            tensor -= 0.1 * gradient
    assert cosines()[0] > before[0]
    assert cosines()[1] < before[1]


def test_equal_grades_ask_for_nothing() -> None:
    vectors, _ = make(m=0)
    assert graded_loss(vectors, torch.full((6,), 0.5), GradedSettings(), ContrastiveSettings()).loss.item() == 0.0
    with pytest.raises(ValueError, match="2 grades for 6 pairs"):
        graded_loss(vectors, torch.zeros(2), GradedSettings(), ContrastiveSettings())


def test_yes_no_is_the_cross_entropy_of_the_two_logits() -> None:
    """Eq. 2: binary cross-entropy of the difference equals two-way cross-entropy."""
    logits = torch.randn(3, 4, 2, dtype=torch.float64)
    labels = (torch.arange(4) == 0).long().expand(3, 4)
    present = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    each = torch.nn.functional.cross_entropy(logits.reshape(-1, 2), labels.reshape(-1), reduction="none").view(3, 4)
    log_odds = (logits[..., 1] - logits[..., 0]).float()
    plain = (each * present).sum() / 7
    assert float(yes_no_loss(log_odds, present, balanced=False)) == pytest.approx(float(plain), rel=1e-5)
    balanced = ((each[0, 0] + each[0, 1:].mean()) / 2 + (each[1, 0] + each[1, 1]) / 2 + each[2, 0]) / 3
    assert float(yes_no_loss(log_odds, present, balanced=True)) == pytest.approx(float(balanced), rel=1e-5)


def test_listwise_and_distillation_leave_out_what_is_absent() -> None:
    scores = torch.tensor([[1.0, 0.0, 9.0], [0.5, 2.0, -1.0]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1.5) + math.exp(-1.5))) / 2
    assert float(listwise_loss(scores, present)) == pytest.approx(wanted, rel=1e-6)
    teacher = torch.tensor([[0.0, 0.0, -5.0], [1.0, 1.0, 1.0]])
    first, second = (torch.tensor(row).log_softmax(-1) for row in ([1.0, 0.0], [0.5, 2.0, -1.0]))
    kl = (-(first + math.log(2)).mean() - (second + math.log(3)).mean()) / 2
    assert float(distillation_loss(scores, teacher, present)) == pytest.approx(float(kl), rel=1e-5)
    assert float(distillation_loss(scores, scores, present)) == pytest.approx(0.0, abs=1e-7)
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(leaf, teacher, present), leaf)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 2] == 0
