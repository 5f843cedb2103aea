"""Matrix products of linear layers in bf16, on weights and gradients that are fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from qwen3_embedding.model.backbone import Backbone
    from qwen3_embedding.training.config import RunSettings

Precision = Literal["float32", "bfloat16"]


def matmul_precision(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which the backbone runs forward.

    On GPU ``bfloat16`` is autocast.  On CPU only the linear layers change: there autocast also takes attention to bf16,
    whose backward pass is several times slower than in fp32.
    """
    if precision == "float32":
        return nullcontext()
    if device.type == "cpu":
        return _LinearInBf16()
    return torch.autocast(device.type, torch.bfloat16)


def checkpoint_layers(backbone: Backbone, run: RunSettings) -> None:
    """Gradient checkpointing as the run says: what the backward pass computes again is in the precision it had."""
    backbone.gradient_checkpointing = run.gradient_checkpointing
    backbone.recomputing = partial(matmul_precision, backbone.device, run.precision)


class _LinearInBf16(TorchFunctionMode):
    """Sends ``F.linear`` through :class:`_Bf16Linear`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs and (len(args) == 2 or args[2] is None):
            return _Bf16Linear.apply(*args[:2])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Bf16Linear(torch.autograd.Function):
    """``x @ weight.T`` with bf16 factors and fp32 sums; fp32 in, fp32 out, fp32 gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        small_x, small_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(small_x, small_weight)
        return (small_x @ small_weight.T).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        slope = outer[0].bfloat16()
        of_x = (slope @ weight).float() if ctx.needs_input_grad[0] else None
        of_weight = (slope.flatten(0, -2).T @ x.flatten(0, -2)).float() if ctx.needs_input_grad[1] else None
        return of_x, of_weight
