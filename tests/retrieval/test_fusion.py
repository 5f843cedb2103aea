"""Reciprocal rank fusion against its definition."""

from __future__ import annotations

import pytest

from qwen3_embedding.retrieval.fusion import Fusion, reciprocal_rank_fusion


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
