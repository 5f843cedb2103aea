"""fp8 on GPUs of the Hopper generation and newer: e4m3 weights and activations, scaled by row, bf16 out.

Weights have one scale an output channel, activations one a token, so a token's result does not depend on the others'.
Norms, rotary embedding, attention and the residual stream stay in bf16. With a row ``q_x`` of fp8 values and a column
``q_w``

    y = (sum_k q_x[k] * q_w[k]) * scale_x * scale_w,    scale = max|.| / 448

where 448 is the largest e4m3 value.  Off a GPU the same values are multiplied in float32, which is how tests hold this
file to its formula.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.fused import FusedLayer, fuse_

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
TINY = torch.finfo(torch.float32).tiny
HOPPER = (9, 0)
"""First compute capability whose matrix products take row-wise scales."""


def quantize_rows(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) e4m3 and (R, 1) fp32 scales. A row with NaN or infinity gets a scale that is not finite."""
    wide_RK = x_RK.float()
    scale_R1 = (wide_RK.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=TINY)
    # Clamped, for a quotient may round to just above the largest value, which e4m3 has no infinity for.
    return (wide_RK / scale_R1).clamp(-LARGEST, LARGEST).to(E4M3), scale_R1


class Fp8Linear(nn.Module):
    """``x @ weight.T`` in fp8."""

    weight_NK: Tensor
    scale_1N: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.in_features % 16 or linear.out_features % 16:
            raise ValueError(f"got {linear.in_features} x {linear.out_features}; fp8 products want multiples of 16")
        codes_NK, scale_N1 = quantize_rows(linear.weight.detach())
        self.register_buffer("weight_NK", codes_NK)
        self.register_buffer("scale_1N", scale_N1.t().contiguous())

    def forward(self, x_RK: Tensor) -> Tensor:
        """(R, K) to (R, N), at the type of ``x_RK``; a plain product where the layer was converted to a wider type."""
        if self.weight_NK.dtype != E4M3:
            return nn.functional.linear(x_RK, self.weight_NK * self.scale_1N.t())
        codes_RK, scale_R1 = quantize_rows(x_RK)
        if x_RK.device.type == "cuda":
            return self.multiply(codes_RK, scale_R1, x_RK.dtype)
        return (codes_RK.float() @ self.weight_NK.float().t() * scale_R1 * self.scale_1N).to(x_RK.dtype)

    def multiply(self, codes_RK: Tensor, scale_R1: Tensor, dtype: torch.dtype) -> Tensor:
        """(R, N) of rows that are quantised already, on a GPU."""
        return torch._scaled_mm(
            codes_RK, self.weight_NK.t(), scale_R1, self.scale_1N, out_dtype=dtype, use_fast_accum=True
        )


def check_device(device: torch.device) -> None:
    """Say clearly where fp8 does not run.

    Raises:
        ValueError: no GPU, or one before Hopper.
    """
    if device.type != "cuda":
        raise ValueError(f"dtype='fp8' runs on GPUs (Hopper and newer) and the device is {device}; use int8 on CPU")
    capability = torch.cuda.get_device_capability(device)
    if capability < HOPPER:
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"dtype='fp8' wants compute capability 9.0 and {name} has {capability}; use bfloat16")


def quantize_fp8_(backbone: Backbone) -> Backbone:
    """Swap every product of the layers for its fp8 form, in place; fused if it is not yet.

    Raises:
        ValueError: a backbone that is quantised already, or with sizes that are no multiples of 16.
    """
    if backbone.quantization is not None:
        raise ValueError(f"this backbone is {backbone.quantization} already")
    if not isinstance(backbone.layers[0], FusedLayer):
        fuse_(backbone)
    for layer in backbone.layers:
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer, name, Fp8Linear(child))
    backbone.quantization = "fp8"
    return backbone
