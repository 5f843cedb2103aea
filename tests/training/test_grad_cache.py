"""GradCache equals the plain loss, whatever the chunks, and costs nothing where the batch fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qwen3_embedding.inputs.packing import PackedBatch, pack
from qwen3_embedding.training import grad_cache
from qwen3_embedding.training.config import RunSettings
from qwen3_embedding.training.distributed import Ranks
from qwen3_embedding.training.embedder import EmbedderObjective
from qwen3_embedding.training.precision import checkpoint_layers
from tests.training.support import settings

CPU = torch.device("cpu")
TOLERANCE = 1e-5
"""Largest difference over largest value: the order of fp32 sums differs."""


def gradients(objective: EmbedderObjective, run: RunSettings, step: int) -> tuple[float, dict[str, Tensor]]:
    for parameter in objective.parameters.values():
        parameter.grad = None
    loss = objective.backward(step, run, Ranks()).loss
    return loss, {name: p.grad.clone() for name, p in objective.parameters.items() if p.grad is not None}


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory, embedder_folder: Path) -> EmbedderObjective:
    return EmbedderObjective(settings(tmp_path_factory.mktemp("cache"), embedder_folder), CPU)


PLAIN = RunSettings(chunk_tokens=10**6, kept_tokens=10**6)


@pytest.mark.parametrize(
    "run",
    [
        RunSettings(chunk_tokens=100, kept_tokens=1),
        RunSettings(chunk_tokens=100, kept_tokens=250),
        RunSettings(chunk_tokens=12, kept_tokens=1),
        RunSettings(chunk_tokens=100, kept_tokens=1, gradient_checkpointing=True),
    ],
    ids=["all recomputed", "some kept", "few texts a chunk", "checkpointing"],
)
def test_chunks_change_no_gradient(objective: EmbedderObjective, run: RunSettings) -> None:
    seen = set()
    for step in range(4):
        seen.add(objective.batches.batch(step).task)
        loss, wanted = gradients(objective, PLAIN, step)
        objective.backbone.gradient_checkpointing = run.gradient_checkpointing
        got_loss, got = gradients(objective, run, step)
        objective.backbone.gradient_checkpointing = False
        assert got_loss == pytest.approx(loss, rel=TOLERANCE)
        assert got.keys() == wanted.keys()
        for name, gradient in got.items():
            # A gradient that is zero but for rounding is measured against the largest of its kind.
            scale = max(float(wanted[name].abs().max()), 1e-3 * max(float(g.abs().max()) for g in wanted.values()))
            assert float((gradient - wanted[name]).abs().max()) <= TOLERANCE * scale, name
    assert seen == {"retrieval", "sts", "classification"}


def test_layers_are_computed_again_in_the_precision_they_had(objective: EmbedderObjective) -> None:
    plain = RunSettings(chunk_tokens=100, kept_tokens=1, precision="bfloat16")
    again = replace(plain, gradient_checkpointing=True)
    loss, wanted = gradients(objective, plain, 0)
    checkpoint_layers(objective.backbone, again)
    got_loss, got = gradients(objective, again, 0)
    checkpoint_layers(objective.backbone, plain)
    assert got_loss == loss
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=0)
    fp32 = gradients(objective, replace(plain, precision="float32"), 0)[1]
    assert any(not torch.equal(gradient, fp32[name]) for name, gradient in got.items())


def test_it_is_the_plain_loss(objective: EmbedderObjective) -> None:
    """Against a forward and backward pass without any of this machinery."""
    batch = objective.batches.batch(0)
    for parameter in objective.parameters.values():
        parameter.grad = None
    objective.backbone.embed_tokens.sparse = False
    vectors = torch.cat([objective.backbone(pack([ids])) for ids in batch.sequences])
    report = objective._loss(batch, vectors, objective.settings.loss, Ranks())
    wanted = torch.autograd.grad(report.loss, list(objective.parameters.values()))
    objective.backbone.embed_tokens.sparse = True
    loss, got = gradients(objective, RunSettings(chunk_tokens=120, kept_tokens=200), 0)
    assert loss == pytest.approx(report.loss.item(), rel=TOLERANCE)
    for gradient, want in zip(got.values(), wanted, strict=True):
        scale = max(float(want.abs().max()), 1e-3 * max(float(g.abs().max()) for g in wanted))
        assert float((gradient - want).abs().max()) <= TOLERANCE * scale


@dataclass
class Sum:
    loss: Tensor


def test_what_fits_is_computed_once() -> None:
    calls: list[bool] = []
    weight = nn.Parameter(torch.ones(1))

    def encode(batch: PackedBatch) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.from_numpy(batch.sequence_lengths).float()[:, None] * weight

    sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    for budget, wanted in (((100, 100), [True]), ((4, 4), [True, False, False, True, True]), ((100, 1), [False, True])):
        calls.clear()
        weight.grad = torch.zeros(1)
        chunks = grad_cache.forward_chunks(encode, sequences, grad_cache.Budget(*budget))
        result, gradient = grad_cache.vector_gradients(
            chunks, lambda v: Sum((v[:, 0] * torch.tensor([1.0, 10.0, 100.0])).sum())
        )
        grad_cache.backward_chunks(encode, chunks, gradient)
        assert calls == wanted
        assert result.loss.item() == 3 + 20 + 400
        assert weight.grad.item() == 423


def test_dropout_is_the_same_in_both_passes() -> None:
    weight = nn.Parameter(torch.ones(8))
    masks: list[Tensor] = []

    def encode(batch: PackedBatch) -> Tensor:
        mask = nn.functional.dropout(torch.ones(batch.n_sequences, 8), 0.5)
        masks.append(mask)
        return mask * weight

    torch.manual_seed(0)
    chunks = grad_cache.forward_chunks(encode, [[1], [2], [3]], grad_cache.Budget(2, 0))
    _, gradient = grad_cache.vector_gradients(chunks, lambda v: Sum(v.sum()))
    state = torch.get_rng_state()
    grad_cache.backward_chunks(encode, chunks, gradient)
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert torch.equal(torch.get_rng_state(), state)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.cat(masks[:2]).sum(0))
