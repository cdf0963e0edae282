"""The two methods by which a law is fitted to points; both look through a grid of exponents first, so that neither
stops in a poor minimum.

`huber`: Huber's loss of log residuals with delta 1e-3, L-BFGS from the best places of the grid (Hoffmann et al. 2022).
`projection`: a search over the exponents alone, in which E and the factors are the least squares solution for relative
residuals, none negative (variable projection: Golub and Pereyra 1973; for scaling laws arXiv 2603.22339).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .law import Law
from .solve import EXPONENTS, HUBER, SQUARES, Measure, Space

STARTS = (0.1, 0.3, 0.5, 0.8, 1.2)
"""Exponents of the grid that L-BFGS starts from, in every combination; the `TRIED` that fit best are."""

TRIED = 9

GRID = np.geomspace(0.02, 3.0, 14)
"""Exponents that the search of variable projection begins with."""

AT_FLOOR = 1e-6
"""E below this share of the smallest loss is none."""


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    method: huber or projection; theta: of `space`; measured: log of the losses ``[n]``; objective: of `measure`.
    """

    method: str
    space: Space
    measure: Measure
    theta: np.ndarray
    measured: np.ndarray
    objective: float

    @property
    def law(self) -> Law:
        """In numbers as people write them."""
        return self.space.law(self.theta)

    @property
    def residuals(self) -> np.ndarray:
        """Log of predicted over measured, ``[n]``."""
        log_loss: np.ndarray = self.space.terms(self.theta[None])[0][0] - self.measured
        return log_loss

    @property
    def free(self) -> int:
        """Degrees of freedom that are left: points less coordinates."""
        return len(self.measured) - self.space.size

    @property
    def remarks(self) -> list[str]:
        """What the points do not determine."""
        law, said = self.law, []
        if law.floor < AT_FLOOR * np.exp(self.measured.min()):
            said.append("E is 0: the points show no floor, so that predictions far beyond them are too low at best")
        for name, value in list(law.numbers.items())[1 + len(law.inputs) :]:
            if value <= 2 * EXPONENTS[0] or value >= 0.99 * EXPONENTS[1]:
                said.append(f"{name} = {value:.3g} is at the end of what is looked through: the points do not show it")
        return said


def huber(names: tuple[str, ...], inputs: np.ndarray, losses: np.ndarray) -> Fit:
    """By Huber's loss; inputs ``[n, K]``, losses ``[n]``, float64."""
    from scipy.optimize import minimize

    space, measured = Space.of(names, inputs), np.log(losses)
    bounds = [(None, None)] * (1 + len(names)) + [EXPONENTS] * len(names)
    # L-BFGS stops by absolute sizes of the gradient; residuals of a percent would look converged.
    scale = 1.0 / HUBER.delta

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_loss, shares = space.terms(theta[None])
        residuals = log_loss[0] - measured
        jacobian = np.concatenate([shares[0], -shares[0, :, 1:] * space.logs], -1)
        value = HUBER.total(residuals, np.ones(1))
        return scale * float(value), scale * (HUBER.slope(residuals) @ jacobian)

    options = {"maxiter": 3000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    starts = _starts(space, losses)
    found = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts
    ]
    best = min(found, key=lambda one: float(one.fun))
    return Fit("huber", space, HUBER, best.x, measured, float(best.fun) / scale)


def _starts(space: Space, losses: np.ndarray) -> list[np.ndarray]:
    """A theta for each of the best combinations of `STARTS`."""
    project = projector(space, losses)
    exponents = [np.array(one) for one in itertools.product(STARTS, repeat=len(space.names))]
    ranked = sorted(exponents, key=lambda one: project(one)[0])[:TRIED]
    starts = []
    for one in ranked:
        theta = space.theta(*_split(project(one)[1]), one)
        # A term that is nothing at a start has no gradient to come back by.
        count = 1 + len(space.names)
        theta[:count] = np.maximum(theta[:count], np.log(1e-3 * losses.min()))
        starts.append(theta)
    return starts


def _split(terms: np.ndarray) -> tuple[float, np.ndarray]:
    return float(terms[0]), terms[1:]


def projector(space: Space, losses: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """A function of the exponents ``[K]``: norm of the relative residuals at the best E and factors (at the centre),
    and these, ``[1 + K]``, none negative.
    """
    from scipy.optimize import nnls

    ones = np.ones(len(losses))

    def project(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        columns = np.concatenate([ones[:, None], np.exp(-exponents * space.logs)], 1) / losses[:, None]
        terms, norm = nnls(columns, ones, maxiter=1000)
        return float(norm), terms

    return project


def projection(names: tuple[str, ...], inputs: np.ndarray, losses: np.ndarray) -> Fit:
    """By variable projection; inputs ``[n, K]``, losses ``[n]``, float64."""
    from scipy.optimize import minimize

    space = Space.of(names, inputs)
    project = projector(space, losses)
    low, high = np.log(EXPONENTS)

    def norm(logs: np.ndarray) -> float:
        return project(np.exp(np.clip(logs, low, high)))[0]

    grid = [np.log(one) for one in itertools.product(GRID, repeat=len(names))]
    ranked = sorted(grid, key=norm)[:3]
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000, "maxfev": 8000}
    best = min((minimize(norm, start, method="Nelder-Mead", options=options) for start in ranked), key=lambda r: r.fun)
    exponents = np.exp(np.clip(best.x, low, high))
    size, terms = project(exponents)
    theta = space.theta(*_split(terms), exponents)
    return Fit("projection", space, SQUARES, theta, np.log(losses), 0.5 * size**2)


METHODS: dict[str, Callable[[tuple[str, ...], np.ndarray, np.ndarray], Fit]] = {
    "huber": huber,
    "projection": projection,
}
