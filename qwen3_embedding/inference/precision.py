"""Vectors at other precisions, and how alike they are.

int8 and uint8 scale each vector by its own largest component, which leaves the direction, all that cosine sees, as
exact as eight bits allow at any dimension.  binary and ubinary keep the signs, eight to a byte.
"""

from __future__ import annotations

import numpy as np

from qwen3_embedding.types import PRECISIONS, FloatArray, Precision, Vectors


def check_precision(precision: str, dimensions: int) -> None:
    """Refuse an unknown precision, and binary vectors whose bits do not fill bytes."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; wanted one of {', '.join(PRECISIONS)}")
    if precision in ("binary", "ubinary") and dimensions % 8:
        raise ValueError(
            f"precision={precision!r} packs 8 dimensions a byte and dimensions={dimensions} is no multiple of 8"
        )


def to_precision(vectors_ND: FloatArray, precision: Precision) -> Vectors:
    """Convert float32 unit vectors.

    Returns:
        float32, float16, int8 in [-127, 127] or uint8 (the same plus 128): (N, D).
        binary (int8) or ubinary (uint8): (N, D / 8), bit set where the component is positive, first dimension in the
        highest bit; binary is ubinary minus 128.
    """
    check_precision(precision, vectors_ND.shape[-1])
    if precision == "float32":
        return vectors_ND
    if precision == "float16":
        return vectors_ND.astype(np.float16)
    if precision in ("int8", "uint8"):
        largest = np.abs(vectors_ND).max(axis=-1, keepdims=True)
        whole = np.rint(vectors_ND * (127.0 / np.maximum(largest, np.finfo(np.float32).tiny)))
        return np.asarray(whole, np.int8) if precision == "int8" else np.asarray(whole + 128, np.uint8)
    bits = np.packbits(vectors_ND > 0, axis=-1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def from_precision(vectors: Vectors, precision: Precision) -> FloatArray:
    """Unit float32 vectors (N, D) that point where the converted ones do; signs become plus or minus one."""
    if precision in ("binary", "ubinary"):
        bits = vectors if precision == "ubinary" else (vectors.astype(np.int16) + 128).astype(np.uint8)
        wide = np.unpackbits(bits, axis=-1).astype(np.float32) * 2 - 1
    else:
        wide = vectors.astype(np.float32) - (128 if precision == "uint8" else 0)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)  # type: ignore[no-any-return]


def infer_precision(vectors: Vectors, dimensions: int) -> Precision:
    """What the vectors are, from their type and from whether eight of their columns could make one of the model's."""
    kinds: dict[np.dtype, tuple[Precision, Precision]] = {
        np.dtype(np.int8): ("int8", "binary"),
        np.dtype(np.uint8): ("uint8", "ubinary"),
    }
    if vectors.dtype in kinds:
        whole, packed = kinds[vectors.dtype]
        return packed if vectors.shape[-1] < 32 or vectors.shape[-1] * 8 == dimensions else whole
    return "float32"
