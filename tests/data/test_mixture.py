"""Batches are a pure function of (seed, step) and come as the weights say."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3_embedding.data.mixture import Group, Mixture, damped_weights

GROUPS = [
    Group("large", "retrieval", 1000, 6.0, 64),
    Group("small", "bitext", 10, 3.0, 64),
    Group("rare", "sts", 100, 0.05, 32),
]


def test_the_same_step_has_the_same_batch_whatever_was_asked_before() -> None:
    one, other = Mixture(GROUPS, seed=7), Mixture(GROUPS, seed=7)
    far = other.draw(5000)
    for step in [3, 0, 900, 5000, 17]:
        a, b = one.draw(step), other.draw(step)
        assert a.group == b.group
        assert np.array_equal(a.rows, b.rows)
    assert np.array_equal(one.draw(5000).rows, far.rows)


def test_another_seed_has_another_order() -> None:
    one, other = Mixture(GROUPS, seed=1), Mixture(GROUPS, seed=2)
    assert any(not np.array_equal(one.draw(step).rows, other.draw(step).rows) for step in range(5))


def test_turns_follow_the_weights_evenly() -> None:
    mixture = Mixture(GROUPS, seed=0)
    turns = np.array([mixture.draw(step).group for step in range(3000)])
    shares = np.array([g.weight for g in GROUPS]) / sum(g.weight for g in GROUPS)
    for window in (100, 3000):
        for start in range(0, 3000, window):
            counts = np.bincount(turns[start : start + window], minlength=3)
            assert np.all(np.abs(counts - shares * window) <= 3)


def test_an_epoch_has_every_record_once_but_for_the_short_last_batch() -> None:
    mixture = Mixture([Group("only", "retrieval", 100, 1.0, 30)], seed=3)
    draws = [mixture.draw(step) for step in range(6)]
    assert [draw.epoch for draw in draws] == [0, 0, 0, 1, 1, 1]
    first = np.concatenate([draw.rows for draw in draws[:3]])
    second = np.concatenate([draw.rows for draw in draws[3:]])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 90
    assert not np.array_equal(first, second)


def test_a_small_group_gives_small_batches_without_repeats() -> None:
    mixture = Mixture([GROUPS[1]], seed=0)
    assert sorted(mixture.draw(4).rows.tolist()) == list(range(10))


def test_bad_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="weight=0"):
        Group("x", "retrieval", 1, 0.0, 1)
    with pytest.raises(ValueError, match="size=0"):
        Group("x", "retrieval", 0, 1.0, 1)
    with pytest.raises(ValueError, match="no groups"):
        Mixture([], 0)
    with pytest.raises(ValueError, match="step=-1"):
        Mixture(GROUPS, 0).draw(-1)


def test_damped_weights() -> None:
    assert damped_weights([100, 4], 0.5) == [10.0, 2.0]
    assert damped_weights([100, 4], 0.0) == [1.0, 1.0]
