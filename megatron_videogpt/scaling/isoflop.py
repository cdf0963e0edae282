"""Runs of about the same compute, and the parabola through them: for a picture, not for numbers.

The vertex of such a parabola is biased even without noise, by how wide the grid of sizes is, how far off centre, and
where the two exponents differ (Czech et al. 2026, arXiv 2603.22339).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .points import ALIKE, Point

WIDTH = 0.08
"""Decades of compute that a group spans at most: a factor of 1.2."""

FEWEST, MOST = 3, 12
"""Different sizes of a group, and groups of a picture."""


@dataclass(frozen=True)
class Group:
    """Points of about one compute (its geometric mean, FLOPs), by size; parabola: coefficients of the loss in log10 N,
    highest first.
    """

    compute: float
    points: tuple[Point, ...]
    parabola: np.ndarray

    @property
    def opens(self) -> bool:
        """Whether it has a minimum."""
        return bool(self.parabola[0] > 0)

    @property
    def vertex(self) -> float:
        """N at its minimum."""
        return float(10 ** (-self.parabola[1] / (2 * self.parabola[0])))


def groups(points: Sequence[Point]) -> list[Group]:
    """At most `MOST` groups of at least `FEWEST` sizes, by compute; those with most sizes are found first."""
    left = sorted(points, key=lambda point: point.compute)
    found: list[Group] = []
    while True:
        best = max((_near(left, first) for first in left), key=_different, default=[])
        if _different(best) < FEWEST or len(found) == MOST:
            return sorted(found, key=lambda group: group.compute)
        members = sorted(best, key=lambda point: point.parameters)
        sizes = np.log10([point.parameters for point in members])
        parabola = np.polyfit(sizes, [point.loss for point in members], 2)
        compute = 10 ** np.log10([point.compute for point in members]).mean()
        found.append(Group(float(compute), tuple(members), parabola))
        left = [point for point in left if point not in best]


def _near(points: Sequence[Point], first: Point) -> list[Point]:
    """Points from one on that are within `WIDTH`."""
    return [point for point in points if 1 <= point.compute / first.compute <= 10**WIDTH]


def _different(points: Sequence[Point]) -> int:
    logs = np.sort(np.log([point.parameters for point in points]))
    return int(len(logs) > 0) + int((np.diff(logs) > ALIKE).sum())
