"""What a merge did: angles, lengths and coefficients of every tensor, and their summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_embedding.merging.methods import Array, Geometry


@dataclass(frozen=True)
class TensorReport:
    """One merged tensor. Angles are in degrees and are exact to about 1e-6 of a degree."""

    name: str
    shape: tuple[int, ...]
    rule: str
    """How it was merged: the method, or ``linear`` for the tensors that are always merged so."""
    coefficients: tuple[float, ...]
    norms: tuple[float, ...]
    merged_norm: float
    largest_angle: float
    """Between any two of the sources; between any two task vectors for the task-vector method."""
    angles_to_merged: tuple[float, ...]
    from_linear: float
    """``|merged - linear| / |merged|``, ``linear`` being the weighted mean; 0 where both agree."""


@dataclass(frozen=True)
class MergeReport:
    """A whole merge."""

    method: str
    sources: tuple[str, ...]
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in the merged checkpoint."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors)

    def summary(self) -> dict[str, Any]:
        """Means (weighted by size) and extremes over the tensors."""
        sizes = np.array([np.prod(tensor.shape) for tensor in self.tensors], dtype=np.float64)
        angles = np.array([tensor.largest_angle for tensor in self.tensors])
        gaps = np.array([tensor.from_linear for tensor in self.tensors])
        widest = self.tensors[int(angles.argmax())]
        return {
            "method": self.method,
            "sources": list(self.sources),
            "tensors": len(self.tensors),
            "parameters": self.parameters,
            "mean_angle_degrees": float(angles @ sizes / sizes.sum()),
            "largest_angle_degrees": float(angles.max()),
            "largest_angle_tensor": widest.name,
            "mean_from_linear": float(gaps @ sizes / sizes.sum()),
            "largest_from_linear": float(gaps.max()),
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, Any]:
        """Summary and all tensors as plain values."""
        return {"summary": self.summary(), "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors]}

    def lines(self, widest: int = 5) -> list[str]:
        """The summary for people, with the ``widest`` tensors whose sources lie farthest apart."""
        summary = self.summary()
        out = [
            f"{self.method} of {len(self.sources)} checkpoints: {len(self.tensors)} tensors, "
            f"{self.parameters:,} parameters",
            f"angle between sources: mean {summary['mean_angle_degrees']:.3f}°, largest "
            f"{summary['largest_angle_degrees']:.3f}° ({summary['largest_angle_tensor']})",
            f"difference from the linear merge: mean {summary['mean_from_linear']:.2e}, largest "
            f"{summary['largest_from_linear']:.2e} of the tensor's length",
        ]
        for tensor in sorted(self.tensors, key=lambda item: -item.largest_angle)[:widest]:
            norms = ", ".join(f"{norm:.4g}" for norm in tensor.norms)
            out.append(f"  {tensor.largest_angle:8.3f}°  {tensor.name}  lengths {norms} -> {tensor.merged_norm:.4g}")
        return out + [f"note: {note}" for note in self.notes]


def describe(
    name: str,
    shape: tuple[int, ...],
    rule: str,
    geometry: Geometry,
    coefficients_N: Array,
    linear_N: Array,
    base: bool,
) -> TensorReport:
    """The report of one tensor from its geometry; ``base``: the first tensor is the base of task vectors."""
    gram_NN = geometry.gram_NN
    merged = geometry.length(coefficients_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_N = gram_NN @ coefficients_N / (geometry.norms_N * merged)
        gap = np.float64(geometry.length(coefficients_N - linear_N)) / merged
    angles_N = np.degrees(np.arccos(np.clip(np.nan_to_num(cosines_N, nan=1.0), -1.0, 1.0)))
    return TensorReport(
        name=name,
        shape=shape,
        rule=rule,
        coefficients=_floats(coefficients_N),
        norms=_floats(geometry.norms_N),
        merged_norm=merged,
        largest_angle=float(np.degrees((task_geometry(geometry) if base else geometry).angles_NN.max(initial=0.0))),
        angles_to_merged=_floats(angles_N),
        from_linear=float(np.nan_to_num(gap)),
    )


def task_geometry(geometry: Geometry) -> Geometry:
    """Geometry of the differences from the first tensor."""
    return Geometry(geometry.distances_NN[0, 1:], geometry.distances_NN[1:, 1:])


def _floats(values: Array | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
