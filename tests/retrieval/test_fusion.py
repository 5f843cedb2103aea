"""Fusion and interpolation against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwen3_embedding.retrieval.fusion import (
    Fusion,
    check_rerank_weight,
    interpolate,
    reciprocal_rank_fusion,
    score_fusion,
)


def test_scores_are_weighted_reciprocal_ranks() -> None:
    fused = reciprocal_rank_fusion([[("a", 9.0), ("b", 8.0)], [("b", 0.3), ("c", 0.2)]], (1.0, 2.0), k=60)
    assert fused == [("b", 1 / 62 + 2 / 61), ("c", 2 / 62), ("a", 1 / 61)]


def test_equal_scores_come_in_the_order_of_ids() -> None:
    assert [one for one, _ in reciprocal_rank_fusion([[("z", 1.0)], [("a", 1.0)]], (1, 1))] == ["a", "z"]


def test_a_leg_of_weight_zero_adds_nothing() -> None:
    assert reciprocal_rank_fusion([[("a", 1.0)], [("b", 1.0)]], (1.0, 0.0)) == [("a", 1 / 61)]


@pytest.mark.parametrize("options", [{"dense_weight": -1}, {"dense_weight": 0, "text_weight": 0}, {"k": 0}])
def test_weights_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"wanted|both 0"):
        Fusion(**options)  # type: ignore[arg-type]


def test_scores() -> None:
    """Cosine plus BM25 over the best; what dense lacks has its lowest cosine, what text lacks has nothing."""
    fused = dict(score_fusion([("a", 0.9), ("b", 0.4)], [("b", 8.0), ("c", 2.0)], 1.0, 0.5))
    assert fused == pytest.approx({"a": 0.9, "b": 0.4 + 0.5, "c": 0.4 + 0.5 * 0.25})


def test_scores_of_one_leg() -> None:
    dense, text = [("a", 0.9), ("b", 0.4)], [("b", 8.0), ("c", 2.0)]
    assert [one for one, _ in score_fusion(dense, text, 0.0, 1.0)] == ["b", "c"]
    assert score_fusion(dense, text, 1.0, 0.0) == dense
    assert [one for one, _ in score_fusion([], text)] == ["b", "c"]
    assert score_fusion(dense, []) == dense


def test_scores_tie_by_id() -> None:
    assert [one for one, _ in score_fusion([("z", 0.5), ("a", 0.5)], [])] == ["a", "z"]


def test_method() -> None:
    dense, text = [("a", 0.9), ("b", 0.1)], [("b", 8.0), ("a", 7.9)]
    assert Fusion(method="score").fuse(dense, text)[0][0] == "a"
    assert Fusion(dense_weight=0.5).fuse(dense, text)[0][0] == "b"
    with pytest.raises(ValueError, match="wanted one of rank, score"):
        Fusion(method="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_reranker_with_a_share_against_the_formula(weight: float) -> None:
    first, second = np.array([3.0, 2.5, -1.0], np.float32), np.array([0.1, 0.9, 0.5], np.float32)
    expected = (1 - weight) * np.array([1, 3.5 / 4, 0]) + weight * np.array([0, 1, 0.5])
    found = interpolate(first, second, weight)
    np.testing.assert_allclose(found, second if weight == 1 else expected, atol=1e-6)


def test_nothing_to_order_is_no_error() -> None:
    nothing = np.empty(0, np.float32)
    assert interpolate(nothing, nothing, 0.3).shape == interpolate(nothing, nothing, 1.0).shape == (0,)


def test_scores_that_are_all_equal_decide_nothing() -> None:
    same, other = np.full(3, 0.5, np.float32), np.array([0.1, 0.9, 0.5], np.float32)
    assert interpolate(same, other, 0.2).argmax() == interpolate(other, same, 0.2).argmax() == 1


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_share_that_is_none_is_refused(weight: Any) -> None:
    with pytest.raises(ValueError, match="rerank_weight="):
        check_rerank_weight(weight)
