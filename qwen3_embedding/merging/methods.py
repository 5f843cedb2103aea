"""How tensors are merged: pure functions, no files.

Every method here is a weighted sum ``sum_i c_i x_i`` of the given tensors, and the coefficients ``c_i`` depend only on
the tensors' norms and pairwise distances (their :class:`Geometry`, n x n numbers).  So a merge needs two passes over
the numbers and never holds more than a piece of each tensor: one pass for the geometry, one for the sum.  The geometry
and the sum are in float64; the result is rounded once.

Legend: n tensors ``x_i`` with norms ``|x_i|``, directions ``u_i = x_i / |x_i|``, weights ``w_i``, angle ``theta``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

Magnitude = Literal["mean", "geometric", "first", "raw"]
"""Length of the result of a spherical method, apart from its direction.

``mean``: the weighted arithmetic mean of the lengths; ``geometric``: their weighted geometric mean; ``first``: the
length of the first tensor; ``raw`` (slerp only): Shoemake's coefficients applied to the tensors as they are,
lengths included, which is what the tools in circulation do.
"""

ANTIPODAL = 1e-6
"""Radians short of pi at which two directions count as opposite: no shortest arc joins them."""
SMALL_ANGLE = 1e-7
"""Below this, ``sin(t theta) / sin(theta)`` equals ``t`` in float64."""
KARCHER_STEPS, KARCHER_TOLERANCE = 10_000, 1e-15


@dataclass(frozen=True)
class Geometry:
    """Norms and pairwise distances of n tensors of one shape."""

    norms_N: Array
    distances_NN: Array
    """Euclidean distances: an angle from a distance stays exact where one from a cosine near 1 does not."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Geometry:
        """The geometry of whole tensors.

        Raises:
            ValueError: different shapes.
        """
        _check_shapes(tensors)
        sums = GeometrySums(len(tensors))
        sums.add([tensor.reshape(-1) for tensor in tensors])
        return sums.geometry()

    @property
    def angles_NN(self) -> Array:
        """Pairwise angles in radians; 0 where a tensor is all zeros."""
        products = np.outer(self.norms_N, self.norms_N)
        gaps = np.subtract.outer(self.norms_N, self.norms_N)
        with np.errstate(invalid="ignore", divide="ignore"):
            chords_squared = (self.distances_NN**2 - gaps**2) / products
        chords = np.sqrt(np.clip(np.where(products > 0, chords_squared, 0.0), 0.0, 4.0))
        angles: Array = 2.0 * np.arcsin(chords / 2.0)
        return angles

    @property
    def gram_NN(self) -> Array:
        """Inner products of the tensors."""
        squares = self.norms_N**2
        gram: Array = (squares[:, None] + squares[None, :] - self.distances_NN**2) / 2.0
        return gram

    def length(self, coefficients_N: Array) -> float:
        """Length of ``sum_i c_i x_i``."""
        return math.sqrt(max(0.0, float(coefficients_N @ self.gram_NN @ coefficients_N)))


class GeometrySums:
    """Collects a :class:`Geometry` from pieces of the tensors, so that none is held whole."""

    def __init__(self, count: int) -> None:
        self._squares = np.zeros(count)
        self._distances = np.zeros((count, count))

    def add(self, pieces: Sequence[Tensor]) -> None:
        """Count in the same piece of every tensor (1-D, equal lengths)."""
        wide = [piece.to(torch.float64) for piece in pieces]
        for i, piece in enumerate(wide):
            self._squares[i] += float(torch.dot(piece, piece))
            for j in range(i):
                difference = piece - wide[j]
                self._distances[i, j] += float(torch.dot(difference, difference))

    def geometry(self) -> Geometry:
        """The geometry of what was added."""
        return Geometry(np.sqrt(self._squares), np.sqrt(self._distances + self._distances.T))


def combine(tensors: Sequence[Tensor], coefficients_N: Array) -> Tensor:
    """``sum_i c_i x_i`` in float64; shape of the tensors."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, coefficient in zip(tensors, coefficients_N, strict=True):
        if coefficient:
            total.add_(tensor.to(torch.float64), alpha=float(coefficient))
    return total


# --- coefficients ---------------------------------------------------------------------------------------------------


def linear_coefficients(weights: Sequence[float]) -> Array:
    """``c_i = w_i / sum w``.

    Raises:
        ValueError: the weights are not finite or sum to zero.
    """
    weights_N = np.asarray(weights, dtype=np.float64)
    total = weights_N.sum()
    if not np.isfinite(weights_N).all() or total == 0:
        raise ValueError(
            f"weights={list(map(float, weights))} cannot be scaled to sum to 1; wanted finite weights with a sum"
        )
    scaled_N: Array = weights_N / total
    return scaled_N


def slerp_coefficients(
    geometry: Geometry, t: float, magnitude: Magnitude = "raw", lerp_above_cosine: float | None = None
) -> Array:
    """Coefficients of spherical linear interpolation between two tensors (Shoemake 1985).

    ``c = (sin((1-t) theta), sin(t theta)) / sin(theta)``, scaled to the length that ``magnitude`` asks for.

    Args:
        geometry: of exactly two tensors.
        t: 0 gives the first tensor, 1 the second.
        magnitude: see :data:`Magnitude`.
        lerp_above_cosine: interpolate linearly where the absolute cosine is above this (0.9995 in other tools);
            ``None`` keeps the exact formula, which needs no such switch.

    Raises:
        ValueError: not two tensors, ``t`` outside [0, 1], opposite directions, a tensor of zeros.
    """
    if len(geometry.norms_N) != 2:
        raise ValueError(
            f"slerp of {len(geometry.norms_N)} tensors; it is defined for 2, use the spherical mean for more"
        )
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t={t}; wanted a value in [0, 1]")
    if not geometry.norms_N.any():
        return np.array([1.0 - t, t])
    _check_directions(geometry)
    theta = float(geometry.angles_NN[0, 1])
    if lerp_above_cosine is not None and abs(np.cos(theta)) > lerp_above_cosine:
        arc = np.array([1.0 - t, t])
        if magnitude == "raw":
            return arc
    elif theta < SMALL_ANGLE:
        arc = np.array([1.0 - t, t])
    else:
        arc = np.array([np.sin((1.0 - t) * theta), np.sin(t * theta)]) / np.sin(theta)
    if magnitude == "raw":
        return arc
    return _with_magnitude(geometry, arc, np.array([1.0 - t, t]), magnitude)


def spherical_mean_coefficients(geometry: Geometry, weights: Sequence[float], magnitude: Magnitude = "mean") -> Array:
    """Coefficients of the weighted Fréchet mean of n directions on the sphere, scaled to a length.

    The mean direction minimises ``sum_i w_i theta(u_i, m)^2``.  It lies in the span of the ``u_i``, so the iteration
    ``m <- exp_m(sum_i w_i log_m u_i)`` (Karcher 1977) runs on n coordinates with the inner products of the ``u_i``.
    The curvature of ``theta^2 / 2`` on a sphere is at most 1, so the unit step never overshoots.

    Raises:
        ValueError: negative weights, opposite directions, a tensor of zeros, no convergence.
    """
    if magnitude == "raw":
        raise ValueError("magnitude='raw' belongs to slerp; the spherical mean takes 'mean', 'geometric' or 'first'")
    weights_N = linear_coefficients(weights)
    if (weights_N < 0).any():
        raise ValueError(f"weights={list(map(float, weights))}; a spherical mean needs weights of one sign")
    if not geometry.norms_N.any():
        return weights_N
    _check_directions(geometry)
    gram_NN: Array = np.cos(geometry.angles_NN)
    return _with_magnitude(geometry, _karcher(gram_NN, weights_N), weights_N, magnitude)


def task_vector_coefficients(weights: Sequence[float], scale: float = 1.0) -> Array:
    """Coefficients of ``base + scale * sum_i w_i (x_i - base)`` on (base, x_1 … x_n).

    The weights are taken as they are, not scaled to sum to 1 (Li et al. 2024, arXiv:2410.15035).

    Raises:
        ValueError: a weight or the scale is not finite.
    """
    weights_N = scale * np.asarray(weights, dtype=np.float64)
    if not np.isfinite(weights_N).all():
        raise ValueError(f"weights={list(map(float, weights))}, scale={scale}; wanted finite numbers")
    return np.concatenate([[1.0 - weights_N.sum()], weights_N])


def _karcher(gram_NN: Array, weights_N: Array) -> Array:
    """Coordinates of the mean direction in the basis of the directions whose cosines are ``gram_NN``."""
    mean_N = weights_N.copy()
    length = math.sqrt(max(0.0, float(mean_N @ gram_NN @ mean_N)))
    if length < ANTIPODAL:
        raise ValueError("the weighted directions cancel out: their spherical mean is not defined; use method 'linear'")
    mean_N /= length
    for _ in range(KARCHER_STEPS):
        cosines_N = np.clip(gram_NN @ mean_N, -1.0, 1.0)
        angles_N = np.arccos(cosines_N)
        pulls_N = weights_N / np.sinc(angles_N / np.pi)  # w theta / sin(theta); numpy's sinc(x) is sin(pi x) / (pi x)
        step_N = pulls_N - (pulls_N @ cosines_N) * mean_N
        size = math.sqrt(max(0.0, float(step_N @ gram_NN @ step_N)))
        moved_N: Array = math.cos(size) * mean_N + float(np.sinc(size / np.pi)) * step_N
        moved_N /= math.sqrt(float(moved_N @ gram_NN @ moved_N))
        change = float(np.abs(moved_N - mean_N).max())
        mean_N = moved_N
        if change <= KARCHER_TOLERANCE * max(1.0, float(np.abs(mean_N).max())) * len(mean_N):
            return mean_N
    raise ValueError(
        f"the spherical mean did not converge in {KARCHER_STEPS} steps; use method 'linear' for this tensor"
    )


def _with_magnitude(geometry: Geometry, direction_N: Array, weights_N: Array, magnitude: Magnitude) -> Array:
    """From coordinates on unit directions to coefficients on the tensors, with the length asked for."""
    norms_N = geometry.norms_N
    if magnitude == "first":
        length = float(norms_N[0])
    elif magnitude == "geometric":
        length = float(np.exp(weights_N @ np.log(norms_N)))
    else:
        length = float(weights_N @ norms_N)
    on_tensors_N = direction_N / norms_N
    scaled_N: Array = on_tensors_N * (length / geometry.length(on_tensors_N))
    return scaled_N


def _check_directions(geometry: Geometry) -> None:
    if not geometry.norms_N.all():
        raise ValueError("one of the tensors is all zeros and has no direction; use method 'linear'")
    if (geometry.angles_NN > np.pi - ANTIPODAL).any():
        raise ValueError("two tensors point in opposite directions: no shortest arc joins them; use method 'linear'")


def _check_shapes(tensors: Sequence[Tensor]) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1:
        raise ValueError(f"tensors of shapes {sorted(shapes)}; wanted at least one tensor, all of one shape")


# --- whole tensors --------------------------------------------------------------------------------------------------


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted arithmetic mean; float64."""
    _check_shapes(tensors)
    return combine(tensors, linear_coefficients(weights))


def slerp(
    first: Tensor, second: Tensor, t: float, magnitude: Magnitude = "raw", lerp_above_cosine: float | None = None
) -> Tensor:
    """Spherical linear interpolation of two tensors seen as vectors; float64. See :func:`slerp_coefficients`."""
    tensors = (first, second)
    return combine(tensors, slerp_coefficients(Geometry.of(tensors), t, magnitude, lerp_above_cosine))


def spherical_mean(tensors: Sequence[Tensor], weights: Sequence[float], magnitude: Magnitude = "mean") -> Tensor:
    """Weighted Fréchet mean on the sphere; float64. See :func:`spherical_mean_coefficients`."""
    return combine(tensors, spherical_mean_coefficients(Geometry.of(tensors), weights, magnitude))


def task_vector(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float = 1.0) -> Tensor:
    """``base + scale * sum_i w_i (x_i - base)``; float64."""
    _check_shapes([base, *tensors])
    return combine([base, *tensors], task_vector_coefficients(weights, scale))
