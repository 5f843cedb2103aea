"""Random choices that depend on nothing but a seed, a document's hash and what is chosen.

A counter-free generator: every choice has a name, and its value is a hash of the name. So a unit makes the same choices
in any order, in any process, beside any other documents, and with any version of Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draws:
    """The choices of one unit."""

    key: str
    """What they depend on, for example ``seed/document hash/kind/number``."""

    def bits(self, purpose: str) -> int:
        """64 bits for a purpose."""
        digest = hashlib.blake2b(f"{self.key}\0{purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def uniform(self, purpose: str) -> float:
        """A number in [0, 1)."""
        return (self.bits(purpose) >> 11) / (1 << 53)

    def integer(self, purpose: str, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int(self.uniform(purpose) * (high - low + 1))

    def seed(self, purpose: str) -> int:
        """A seed for a model: 31 bits, which every server takes."""
        return self.bits(purpose) & 0x7FFFFFFF

    def choice(self, purpose: str, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the items, by weight.

        Raises:
            ValueError: nothing to choose from.
        """
        if not items or (weights is not None and not sum(weights) > 0):
            raise ValueError(f"{purpose}: nothing to choose from")
        if weights is None:
            return items[int(self.uniform(purpose) * len(items))]
        point = self.uniform(purpose) * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            point -= weight
            if point < 0:
                return item
        return next(item for item, weight in zip(reversed(items), reversed(weights), strict=True) if weight > 0)

    def sample(self, purpose: str, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items (all, where there are fewer), in an order of their own: a partial shuffle."""
        moved: dict[int, int] = {}
        picked = []
        for at in range(min(count, len(items))):
            other = self.integer(f"{purpose}/{at}", at, len(items) - 1)
            picked.append(items[moved.get(other, other)])
            moved[other] = moved.get(at, at)
        return picked
