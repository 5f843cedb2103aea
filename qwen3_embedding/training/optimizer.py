"""AdamW over fp32 weights and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qwen3_embedding.training.config import OptimizerSettings


def make_optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with three groups: matrices (decayed), token embeddings (their own rate), norms.

    Raises:
        ValueError: weights that are not fp32; an update of a thousandth would be rounded away in bf16.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; weights are trained in float32")
        target = tables if "embed_tokens" in name else matrices if parameter.ndim > 1 else vectors
        target.append(parameter)
    rate = settings.learning_rate
    groups = [
        {"params": matrices, "rate": rate, "weight_decay": settings.weight_decay},
        {"params": tables, "rate": settings.embedding_learning_rate or rate, "weight_decay": 0.0},
        {"params": vectors, "rate": rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing to train: no parameter asks for a gradient")
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=True)


def rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of a step (from 0) as a share of the highest: linear warmup, then the schedule to ``final``."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    fall = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return settings.final + (1 - settings.final) * fall


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's learning rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    return float(optimizer.param_groups[0]["lr"])


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients down to a norm of ``limit`` together (0 leaves them); returns the norm before."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    return nn.utils.clip_grad_norm_(with_gradient, limit if limit > 0 else math.inf)
