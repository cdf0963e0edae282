"""How sure a fit is: the bootstrap for everything that follows from it, and the profile of the least squares objective
for single numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .fit import Fit
from .solve import refit

CHUNK = 50

Interval = tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """Replicates of a fit.

    thetas: of its space ``[R, P]``; spread: log residuals ``[n]`` as those of a new point may be, see `widened`.
    """

    fit: Fit
    thetas: np.ndarray
    spread: np.ndarray

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """Of the law, ``[R]`` each."""
        return self.fit.space.numbers(self.thetas)

    def runs(self, inputs: np.ndarray, seed: int) -> np.ndarray:
        """Losses that runs at inputs ``[m, K]`` may come to, ``[R, m]``: a replicate's prediction and a residual."""
        chance = np.random.default_rng(seed).choice(self.spread, (len(self.thetas), len(inputs)))
        losses: np.ndarray = np.exp(self.fit.space.log_loss(self.thetas, inputs) - chance)
        return losses


def percentiles(values: np.ndarray, level: float) -> Interval:
    """The middle `level` of values ``[R]``."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def widened(fit: Fit, level: float) -> np.ndarray:
    """Log residuals ``[n]``, centred, and larger by what the fit took up of them (degrees of freedom) and by how much
    further a t distribution of as many reaches than the normal one.
    """
    from scipy.special import ndtri, stdtrit

    free, place = max(1, fit.free), (1 + level) / 2
    residuals = fit.residuals - fit.residuals.mean()
    wider: np.ndarray = residuals * np.sqrt(len(residuals) / free) * stdtrit(free, place) / ndtri(place)
    return wider


def bootstrap(
    fit: Fit, replicates: int, seed: int, level: float = 0.95, told: Callable[[int], None] = lambda done: None
) -> Bootstrap:
    """Draw as many points as there are, with replacement, `replicates` times, and fit each draw from the fit itself on.

    Args:
        level: of the intervals that will be asked for, see `widened`.
        told: after each chunk, how many replicates are done.
    """
    random, thetas = np.random.default_rng(seed), []
    for first in range(0, replicates, CHUNK):
        counts = np.stack([_drawn(random, fit) for _ in range(min(CHUNK, replicates - first))])
        found, _ = refit(fit.space, fit.measure, np.tile(fit.theta, (len(counts), 1)), fit.measured, counts)
        thetas.append(found)
        told(first + len(counts))
    return Bootstrap(fit, np.concatenate(thetas), widened(fit, level))


def _drawn(random: np.random.Generator, fit: Fit) -> np.ndarray:
    """How often each point counts, float64 ``[n]``; draws of fewer different points than a law has numbers say
    nothing.
    """
    count = len(fit.measured)
    while True:
        counts = random.multinomial(count, np.full(count, 1 / count)).astype(float)
        if (counts > 0).sum() >= min(fit.space.size, count):
            return counts


def profile(fit: Fit, name: str, level: float = 0.95) -> Interval:
    """Values of a coordinate (E, or an exponent by name) at which the best sum of squares is not larger than that of
    the fit by more than the F distribution allows; an end that the points do not set is 0 or infinity.

    Of fits by least squares only: Huber's objective is no likelihood.
    """
    from scipy.special import fdtri

    assert np.isinf(fit.measure.delta)
    place = list(fit.law.numbers).index(name)
    limit = fit.objective * (1 + fdtri(1, max(1, fit.free), level) / max(1, fit.free))
    ends = []
    for side in (-1, 1):
        ends.append(_crossing(fit, place, side, limit))
    low, high = (np.exp(end) if name == "E" else end for end in ends)
    return max(0.0, float(low)), float(high)


def _crossing(fit: Fit, place: int, side: int, limit: float) -> float:
    """Where the profile crosses `limit` on one side: a ladder of values, once coarse and once fine."""
    middle = fit.theta[place]
    near, far = 0.0, 0.0
    reach = 0.05 * max(abs(middle), 0.1)
    start = fit.theta
    for _ in range(12):
        offsets = reach * np.linspace(0.1, 1.0, 10)
        thetas = np.tile(start, (len(offsets), 1))
        thetas[:, place] = middle + side * offsets
        found, totals = refit(fit.space, fit.measure, thetas, fit.measured, fixed=place)
        above = np.flatnonzero(totals > limit)
        if len(above):
            far = offsets[above[0]]
            near = offsets[above[0] - 1] if above[0] else near
            break
        near, reach, start = reach, 3 * reach, found[-1]
    else:
        return side * np.inf
    for _ in range(2):
        offsets = np.linspace(near, far, 12)
        thetas = np.tile(start, (len(offsets), 1))
        thetas[:, place] = middle + side * offsets
        _, totals = refit(fit.space, fit.measure, thetas, fit.measured, fixed=place)
        first = int(np.flatnonzero(totals > limit)[0]) if (totals > limit).any() else len(offsets) - 1
        near, far = offsets[max(0, first - 1)], offsets[first]
    return float(middle + side * (near + far) / 2)
