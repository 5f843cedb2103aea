"""Which records make the batch of a step: a pure function of (seed, step).

No sampler has a state, so a run that was killed goes on with the very batch it would have had, and one that is spread
over more processes sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_embedding.data.record import Task
from qwen3_embedding.types import IntArray

_ORDER, _TURN = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Group:
    """Records that may share a batch: one task, one source, one language (or the small ones of a source together)."""

    name: str
    task: Task
    size: int
    """Records in it."""
    weight: float
    """Its share of the steps, relative to the other groups'."""
    batch_size: int
    """Records of a batch; a smaller group gives smaller batches."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch_size < 1:
            raise ValueError(f"group {self.name}: size={self.size}, batch_size={self.batch_size}; wanted at least 1")
        if not self.weight > 0:
            raise ValueError(f"group {self.name}: weight={self.weight}; wanted a positive number")


@dataclass(frozen=True)
class Draw:
    """The records of one step."""

    group: int
    rows: IntArray
    """(B,) which records of the group, no record twice."""
    epoch: int
    """How often the group had been gone through before."""


class Mixture:
    """Groups, drawn in proportion to their weights, each gone through in a new order every epoch.

    Step by step the groups come as evenly spread as their weights allow: a group with a hundredth of the weight has
    one turn in each stretch of a hundred steps.  Within a group the records of an epoch are a permutation, cut into
    batches; the last, short one is left out.
    """

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        if not groups:
            raise ValueError("no groups; wanted at least one to draw from")
        self.groups = tuple(groups)
        self.seed = seed
        self._turns = _Turns.plan(self.groups, seed, 0)

    def draw(self, step: int) -> Draw:
        """The records of a step, counted from 0."""
        if step < 0:
            raise ValueError(f"step={step}; wanted at least 0")
        if step >= len(self._turns.group):
            self._turns = _Turns.plan(self.groups, self.seed, 2 * step)
        number = int(self._turns.group[step])
        group = self.groups[number]
        size = min(group.batch_size, group.size)
        epoch, place = divmod(int(self._turns.turn[step]), group.size // size)
        order = np.random.default_rng([self.seed, _ORDER, number, epoch]).permutation(group.size)
        return Draw(number, order[place * size : (place + 1) * size], epoch)


@dataclass(frozen=True)
class _Turns:
    """Whose turn each step is, and the how manieth of that group's."""

    group: IntArray
    turn: IntArray

    @classmethod
    def plan(cls, groups: Sequence[Group], seed: int, steps: int) -> _Turns:
        """Turns of at least ``steps`` steps; a longer plan begins with the shorter one.

        Turn k of a group with share w falls at a random moment of the k-th of its stretches, ``(k + u) / w`` for u in
        [0, 1).  The steps are these moments in order.
        """
        horizon = max(1024, steps + 1) + len(groups)
        shares = np.array([group.weight for group in groups]) / sum(group.weight for group in groups)
        moments, owner, turn = [], [], []
        for number, share in enumerate(shares):
            count = int(np.ceil(horizon * share)) + 1
            jitter = np.random.default_rng([seed, _TURN, number]).random(count)
            moments.append((np.arange(count) + jitter) / share)
            owner.append(np.full(count, number))
            turn.append(np.arange(count))
        times = np.concatenate(moments)
        order = np.argsort(times, kind="stable")
        # Behind the horizon some groups' moments are not all there.
        order = order[: int(np.searchsorted(times[order], horizon))]
        return cls(np.concatenate(owner)[order], np.concatenate(turn)[order])


def damped_weights(sizes: Sequence[int], exponent: float) -> list[float]:
    """Weights ``size ** exponent``: 1 draws in proportion to size, 0 draws all alike."""
    return [float(size) ** exponent for size in sizes]
