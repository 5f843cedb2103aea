"""Each method against its float64 formula on whole vectors, and against numbers of mergekit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_embedding.merging import methods
from qwen3_embedding.merging.methods import Geometry, GeometrySums, Magnitude

MERGEKIT: dict[str, Any] = json.loads((Path(__file__).parent / "mergekit.json").read_text(encoding="utf-8"))
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of a few hundred terms in another order


def tensors(count: int, spread: float = 1.0, shape: tuple[int, ...] = (12, 25)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    common = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [
        (1 + 0.2 * i) * (common + spread * torch.randn(shape, generator=generator, dtype=torch.float64))
        for i in range(count)
    ]


def logarithm(mean: Tensor, unit: Tensor) -> Tensor:
    """The tangent at ``mean`` that leads to ``unit``."""
    cosine = torch.dot(mean, unit).clamp(-1, 1)
    across = unit - cosine * mean
    length = across.norm()
    tangent: Tensor = torch.zeros_like(mean) if length == 0 else torch.atan2(length, cosine) * across / length
    return tangent


def karcher(units: list[Tensor], weights: list[float]) -> Tensor:
    """The weighted Fréchet mean, by gradient steps in the space of the vectors themselves."""
    mean: Tensor = torch.stack([w * u for w, u in zip(weights, units, strict=True)]).sum(0)
    mean = mean / mean.norm()
    for _ in range(3000):
        step = torch.stack([w * logarithm(mean, u) for w, u in zip(weights, units, strict=True)]).sum(0)
        size = step.norm()
        if size < 1e-16:
            break
        mean = torch.cos(size) * mean + torch.sin(size) * step / size
        mean = mean / mean.norm()
    return mean


def test_linear_is_the_weighted_mean() -> None:
    xs = tensors(4)
    expected = (2 * xs[0] + 1 * xs[1] + 0.5 * xs[2] + 0.5 * xs[3]) / 4
    torch.testing.assert_close(methods.linear(xs, [2, 1, 0.5, 0.5]), expected, **CLOSE)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("spread", [1.5, 1e-2, 1e-4, 1e-6])
def test_slerp_is_shoemakes_formula_at_wide_and_narrow_angles(t: float, spread: float) -> None:
    a, b = tensors(2, spread)
    u, v = a.flatten() / a.norm(), b.flatten() / b.norm()
    theta = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    expected = torch.sin((1 - t) * theta) / torch.sin(theta) * a + torch.sin(t * theta) / torch.sin(theta) * b
    torch.testing.assert_close(methods.slerp(a, b, t), expected, **CLOSE)


@pytest.mark.parametrize("case", MERGEKIT["slerp"], ids=lambda case: f"{case['name']}-{case['t']}")
def test_slerp_agrees_with_mergekit(case: dict[str, Any]) -> None:
    first, second, expected = (torch.tensor(case[k], dtype=torch.float64) for k in ("first", "second", "expected"))
    torch.testing.assert_close(methods.slerp(first, second, case["t"], lerp_above_cosine=0.9995), expected, **CLOSE)
    if case["name"] != "near":  # without the switch the formula itself is the same
        torch.testing.assert_close(methods.slerp(first, second, case["t"]), expected, **CLOSE)


@pytest.mark.parametrize("case", MERGEKIT["karcher"], ids=lambda case: f"{len(case['weights'])}")
def test_spherical_mean_agrees_with_mergekits_karcher(case: dict[str, Any]) -> None:
    xs = [torch.tensor(x, dtype=torch.float64) for x in case["tensors"]]
    expected = torch.tensor(case["expected"], dtype=torch.float64)
    # it stops at a tangent of 1e-13 of the unit sphere, scaled by lengths of about 5
    torch.testing.assert_close(methods.spherical_mean(xs, case["weights"]), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spread", [3.0, 1.0, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("weights", [[0.1, 0.3, 0.2, 0.15, 0.25], [0.2] * 5, [0.96, 0.01, 0.01, 0.01, 0.01]])
def test_spherical_mean_is_the_weighted_frechet_mean(spread: float, weights: list[float]) -> None:
    xs = tensors(5, spread)
    units = [x.flatten() / x.norm() for x in xs]
    length = sum(w * x.norm() for w, x in zip(weights, xs, strict=True))
    expected = (length * karcher(units, weights)).reshape(xs[0].shape)
    torch.testing.assert_close(methods.spherical_mean(xs, weights), expected, rtol=1e-11, atol=1e-11)


def test_spherical_mean_minimises_the_squared_angles_where_the_projected_mean_does_not() -> None:
    xs = tensors(3, 3.0)
    weights = [0.7, 0.2, 0.1]
    units = [x.flatten() / x.norm() for x in xs]

    def cost(x: Tensor) -> float:
        unit = x.flatten() / x.norm()
        return sum(w * float(torch.acos(torch.dot(unit, u))) ** 2 for w, u in zip(weights, units, strict=True))

    mean = methods.spherical_mean(xs, weights)
    projected = torch.stack([w * u for w, u in zip(weights, units, strict=True)]).sum(0)
    gradient = torch.stack(
        [w * logarithm(mean.flatten() / mean.norm(), u) for w, u in zip(weights, units, strict=True)]
    )
    assert gradient.sum(0).norm() < 1e-13
    assert cost(mean) < cost(projected) - 1e-4
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        moved = mean + 1e-2 * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        assert cost(mean) < cost(moved)


@pytest.mark.parametrize("magnitude", ["mean", "geometric", "first"])
def test_spherical_mean_of_two_is_slerp(magnitude: Magnitude) -> None:
    a, b = tensors(2)
    torch.testing.assert_close(
        methods.spherical_mean([a, b], [0.3, 0.7], magnitude), methods.slerp(a, b, 0.7, magnitude), **CLOSE
    )


def test_lengths_are_those_asked_for() -> None:
    xs = tensors(3)
    norms = torch.stack([x.norm() for x in xs])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    wanted: dict[Magnitude, Tensor] = {
        "mean": weights @ norms,
        "geometric": torch.exp(weights @ norms.log()),
        "first": norms[0],
    }
    for magnitude, length in wanted.items():
        merged = methods.spherical_mean(xs, weights.tolist(), magnitude)
        torch.testing.assert_close(merged.norm(), length, **CLOSE)


def test_weights_are_relative_and_order_does_not_matter() -> None:
    xs = tensors(4)
    one = methods.spherical_mean(xs, [1, 2, 3, 4])
    torch.testing.assert_close(methods.spherical_mean(xs[::-1], [0.4, 0.3, 0.2, 0.1]), one, **CLOSE)


def test_equal_tensors_stay_as_they_are() -> None:
    x = tensors(1)[0]
    torch.testing.assert_close(methods.spherical_mean([x, x, x], [1, 2, 3]), x, **CLOSE)
    torch.testing.assert_close(methods.slerp(x, x, 0.3), x, **CLOSE)
    zeros = torch.zeros(3)
    assert torch.equal(methods.spherical_mean([zeros, zeros], [1, 1]), zeros.double())


def test_task_vectors_add_weighted_differences() -> None:
    base, a, b = tensors(3)
    expected = base + 0.5 * (0.8 * (a - base) + 0.9 * (b - base))
    torch.testing.assert_close(methods.task_vector(base, [a, b], [0.8, 0.9], 0.5), expected, **CLOSE)


def test_geometry_from_pieces_is_that_of_the_whole() -> None:
    xs = [x.float() for x in tensors(3)]
    sums = GeometrySums(3)
    for start in range(0, 300, 70):
        sums.add([x.flatten()[start : start + 70] for x in xs])
    whole = Geometry.of(xs)
    np.testing.assert_allclose(sums.geometry().norms_N, whole.norms_N, rtol=1e-14)
    np.testing.assert_allclose(sums.geometry().angles_NN, whole.angles_NN, rtol=1e-13)
    wide = [x.double().flatten() for x in xs]
    expected = torch.acos(torch.dot(wide[0], wide[1]) / (wide[0].norm() * wide[1].norm()))
    assert whole.angles_NN[0, 1] == pytest.approx(float(expected), rel=1e-12)


def test_small_angles_are_not_lost() -> None:
    x = tensors(1)[0].flatten()
    across = torch.zeros_like(x)
    across[0], across[1] = -x[1], x[0]  # at a right angle to x
    tilted = x + 1e-9 * x.norm() / across.norm() * across
    assert Geometry.of([x, tilted]).angles_NN[0, 1] == pytest.approx(
        1e-9, rel=1e-5
    )  # 1 - cos is 5e-19: lost in float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: methods.slerp(a, -2 * a, 0.5), "opposite directions"),
        (lambda a, b: methods.spherical_mean([a, -a, b], [1, 1, 1]), "opposite directions"),
        (lambda a, b: methods.spherical_mean([a, b], [1, -0.5]), "one sign"),
        (lambda a, b: methods.spherical_mean([a, torch.zeros_like(a)], [1, 1]), "all zeros"),
        (lambda a, b: methods.spherical_mean([a, b], [1, 1], "raw"), "belongs to slerp"),
        (lambda a, b: methods.slerp(a, b, 1.5), r"t=1.5; wanted a value in \[0, 1\]"),
        (lambda a, b: methods.linear([a, b], [1, -1]), "sum to 1"),
        (lambda a, b: methods.linear([a, b[:3]], [1, 1]), "all of one shape"),
        (lambda a, b: methods.task_vector(a, [b], [float("nan")]), "finite"),
    ],
)
def test_what_has_no_meaning_is_refused(call: Any, message: str) -> None:
    a, b = tensors(2)
    with pytest.raises(ValueError, match=message):
        call(a, b)


def test_directions_that_cancel_out_are_refused() -> None:
    around = [torch.tensor([np.cos(x), np.sin(x)]) for x in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    with pytest.raises(ValueError, match="cancel out"):
        methods.spherical_mean(around, [1, 1, 1])
