"""Next-token cross-entropy over a large vocabulary, in tiles and in fp32: no T x V matrix is ever held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TILE_ELEMENTS = 2**24
"""Logits that are held at a time: 64 MiB."""


def next_token_loss(
    hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor, tile_elements: int = TILE_ELEMENTS
) -> Tensor:
    """Sum over rows of ``-log softmax(head @ hidden)[target]``, in nats.

    The gradients are worked out tile by tile along with the loss, and handed over in backward, so that logits are
    computed once and never kept.

    Args:
        hidden_RD: hidden states after the final norm, of the rows that predict.
        head_VD: the language-model head; with tied embeddings the embedding table.
        targets_R: the id that each row should predict.
        tile_elements: largest number of logits held at a time.

    Returns:
        Scalar, differentiable in hidden states and head.

    Raises:
        ValueError: no row, or as many targets as rows were wanted.
    """
    if len(hidden_RD) != len(targets_R) or not len(targets_R):
        raise ValueError(f"{len(hidden_RD)} hidden rows and {len(targets_R)} targets; wanted equally many, at least 1")
    with torch.autocast(hidden_RD.device.type, enabled=False):
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        loss: Tensor = _NextToken.apply(hidden_RD.to(wide), head_VD.to(wide), targets_R, tile_elements)  # type: ignore[no-untyped-call]
        return loss


class _NextToken(torch.autograd.Function):
    """The loss with gradients of its own."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor, tile_elements: int) -> Tensor:
        of_hidden, of_head, *_ = ctx.needs_input_grad
        grad_RD = torch.empty_like(hidden_RD) if of_hidden else None
        grad_VD = torch.zeros_like(head_VD) if of_head else None
        total = hidden_RD.new_zeros(())
        step = max(1, tile_elements // len(head_VD))
        for begin in range(0, len(hidden_RD), step):
            tile = slice(begin, begin + step)
            logits_RV = hidden_RD[tile] @ head_VD.T
            target_R1 = targets_R[tile, None]
            lse_R1 = logits_RV.logsumexp(-1, keepdim=True)
            total += (lse_R1 - logits_RV.gather(1, target_R1)).sum()
            if not (of_hidden or of_head):
                continue
            # d loss / d logit = softmax - one-hot
            slope_RV = logits_RV.sub_(lse_R1).exp_()
            slope_RV.scatter_add_(1, target_R1, torch.full_like(lse_R1, -1.0))
            if grad_RD is not None:
                torch.mm(slope_RV, head_VD, out=grad_RD[tile])
            if grad_VD is not None:
                grad_VD.addmm_(slope_RV.T, hidden_RD[tile])
        ctx.grads = grad_RD, grad_VD
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (slope,) = outer
        grad_RD, grad_VD = ctx.grads
        ctx.grads = None
        return (
            None if grad_RD is None else grad_RD.mul_(slope),
            None if grad_VD is None else grad_VD.mul_(slope),
            None,
            None,
        )
