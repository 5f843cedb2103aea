"""Who computes the layers: our own CPU kernel, or PyTorch's."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from qwen3_embedding.model.attention import attention_for
from qwen3_embedding.model.backbone import Backbone
from qwen3_embedding.model.fused import FusedLayer
from qwen3_embedding.model.native.forward import NativeForward
from qwen3_embedding.model.native.library import Library, NativeUnavailableError, native
from qwen3_embedding.model.quantized import choose_engine, native_engine, quantize_, refined_products

KERNELS = ("auto", "native", "library")
NATIVE_TYPES = (torch.float32, torch.int8)

logger = logging.getLogger(__name__)


def choose_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> Library | None:
    """Our own kernel, or ``None`` for PyTorch's.

    Args:
        kernel: ``native`` is ours, ``library`` PyTorch's, ``auto`` ours where it runs (float32 and int8 on a CPU that
            it knows, with a C++ compiler at first use); why not is logged once.
        device: where the model runs.
        dtype: the type of its products.

    Raises:
        ValueError: an unknown name, or ``native`` where it does not run; the message says why.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}; wanted {', '.join(KERNELS)}")
    for_it = device.type == "cpu" and dtype in NATIVE_TYPES
    if kernel == "native" and not for_it:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"kernel='native' runs float32 and int8 on the CPU; got {name} on {device}")
    if kernel == "library" or not for_it:
        return None
    try:
        return native()
    except NativeUnavailableError as error:
        if kernel == "native":
            raise ValueError(f"kernel='native' does not run here: {error}") from None
        _say_once(str(error))
        return None


@lru_cache(maxsize=8)
def _say_once(reason: str) -> None:
    logger.warning("PyTorch's kernels are used, ours is not: %s (kernel='library' asks for that)", reason)


def use_kernel(backbone: Backbone, library: Library | None, dtype: torch.dtype) -> Backbone:
    """Set a float32 backbone up for its kernel and, for int8, quantise it; in place."""
    if dtype == torch.int8:
        quantize_(backbone, choose_engine() if library is None else native_engine(library))
    if library is not None:
        backbone.native = NativeForward(library)
    return backbone


def describe(backbone: Backbone) -> str:
    """The kernels of a loaded model, for people: ``native avx512-vnni``, ``PyTorch, attention=sdpa``, ``Triton,
    attention=varlen`` (our own between a GPU's products).

    Products of an int8 model that take more than 8 bits are counted behind it.
    """
    refined = refined_products(backbone)
    wider = f", 15-bit activations in {len(refined)} of {7 * len(backbone.layers)} products" if refined else ""
    if backbone.native is not None:
        return f"native {backbone.native.library.isa}{wider}"
    first = backbone.layers[0]
    between = "Triton" if isinstance(first, FusedLayer) and first.takes(backbone.embed_tokens.weight) else "PyTorch"
    return f"{between}, attention={attention_for(backbone.device, backbone.dtype).__name__}{wider}"


def why_not_native(backbone: Backbone) -> str:
    """Why a model does not run on our kernel; empty where it does."""
    if backbone.native is not None:
        return ""
    if backbone.device.type != "cpu" or (backbone.quantization is None and backbone.dtype not in NATIVE_TYPES):
        return f"it runs float32 and int8 on the CPU, not {backbone.type_name} on {backbone.device}"
    try:
        native()
    except NativeUnavailableError as error:
        return str(error)
    return "kernel='library' was asked for"
