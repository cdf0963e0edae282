"""Many fits of one law at once: bootstrap replicates and points of a profile differ in a few numbers and start from the
same place, so that one damped Gauss-Newton over all of them takes hundredths of a second.

A law in coordinates that are well conditioned, theta: log E, the log of each term at the mean of the log inputs, and
the exponents.  The loss is positive for any theta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .law import Law

EXPONENTS = (1e-3, 5.0)
"""What is looked through; no published exponent is near either end."""

RELATIVE, LOG = "relative", "log"
"""Residuals: predicted / measured - 1, which is linear in E and the factors, or the log of predicted / measured."""

TAIL = 0.05
"""Curvature of the linear part of Huber's loss, where it has none, as a share of its majorising parabola's."""


@dataclass(frozen=True)
class Space:
    """Coordinates of laws in some inputs.

    names: letters of the inputs; centre: ``[K]``, mean of their logs; logs: ``[n, K]``, their logs less the centre.
    """

    names: tuple[str, ...]
    centre: np.ndarray
    logs: np.ndarray

    @classmethod
    def of(cls, names: tuple[str, ...], inputs: np.ndarray) -> Space:
        """Of inputs ``[n, K]``."""
        logs = np.log(inputs)
        return cls(names, logs.mean(0), logs - logs.mean(0))

    @property
    def size(self) -> int:
        """Coordinates: 1 + 2 K."""
        return 1 + 2 * len(self.names)

    def theta(self, floor: float, factors: np.ndarray, exponents: np.ndarray) -> np.ndarray:
        """Coordinates of a law whose factors are those at the centre; nothing is below 1e-12 of the largest term."""
        terms = np.array([floor, *factors])
        return np.concatenate([np.log(np.maximum(terms, 1e-12 * terms.max())), exponents])

    def law(self, theta: np.ndarray) -> Law:
        """Of coordinates ``[1 + 2 K]``."""
        numbers = self.numbers(theta)
        count = len(self.names)
        values = [float(value) for value in numbers.values()]
        return Law(self.names, values[0], tuple(values[1 : 1 + count]), tuple(values[1 + count :]))

    def numbers(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """As `Law.numbers`, of coordinates ``[..., 1 + 2 K]``."""
        count = len(self.names)
        exponents = theta[..., 1 + count :]
        factors = np.exp(theta[..., 1 : 1 + count] + exponents * self.centre)
        names = Law(self.names, 0.0, (0.0,) * count, (0.0,) * count).numbers
        columns = [np.exp(theta[..., 0]), *np.moveaxis(factors, -1, 0), *np.moveaxis(exponents, -1, 0)]
        return dict(zip(names, columns))

    def terms(self, theta: np.ndarray, logs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Log of the loss ``[R, n]`` of laws ``[R, 1 + 2 K]``, and each term's share of the loss ``[R, n, 1 + K]``.

        logs: of other inputs, less the centre.
        """
        logs = self.logs if logs is None else logs
        count = len(self.names)
        powers = theta[:, None, 1 : 1 + count] - theta[:, None, 1 + count :] * logs
        floor = np.broadcast_to(theta[:, None, :1], (*powers.shape[:2], 1))
        terms = np.concatenate([floor, powers], -1)
        largest = terms.max(-1, keepdims=True)
        shares = np.exp(terms - largest)
        total = shares.sum(-1, keepdims=True)
        return (largest + np.log(total))[..., 0], shares / total

    def log_loss(self, theta: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Log of the loss ``[R, m]`` of laws ``[R, 1 + 2 K]`` at inputs ``[m, K]``."""
        return self.terms(theta, np.log(inputs) - self.centre)[0]


@dataclass(frozen=True)
class Measure:
    """What a fit minimises: the sum over points of Huber's loss of the residual (0.5 r^2 up to delta, linear beyond),
    or of 0.5 r^2 where delta is infinite.

    residual: `RELATIVE` or `LOG`.
    """

    residual: str
    delta: float = np.inf

    def residuals(self, log_loss: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals, and their derivatives by the log of the predicted loss."""
        difference = log_loss - measured
        if self.residual == LOG:
            return difference, np.ones_like(difference)
        ratio = np.exp(np.minimum(difference, 50.0))
        return ratio - 1, ratio

    def total(self, residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Objective: the sum over the last axis, each point as often as `counts` says."""
        size = np.abs(residuals)
        small = np.minimum(size, self.delta)
        return (counts * (0.5 * small**2 + np.where(size > small, small * (size - small), 0.0))).sum(-1)

    def slope(self, residuals: np.ndarray) -> np.ndarray:
        """Derivative of each point's loss by its residual."""
        return np.clip(residuals, -self.delta, self.delta)

    def curvature(self, residuals: np.ndarray) -> np.ndarray:
        """Second derivative; in the tail a little, see `TAIL`."""
        size = np.abs(residuals)
        return np.where(size <= self.delta, 1.0, TAIL * np.minimum(self.delta, size) / np.maximum(size, 1e-300))


SQUARES, HUBER = Measure(RELATIVE), Measure(LOG, 1e-3)
"""Those of the two methods; 1e-3 is Hoffmann et al. 2022's."""


@dataclass
class _Batch:
    """Fits that still move: number, point, log loss, shares, objective, damping of each."""

    number: np.ndarray
    theta: np.ndarray
    log_loss: np.ndarray
    shares: np.ndarray
    total: np.ndarray
    damping: np.ndarray

    def kept(self, which: np.ndarray) -> _Batch:
        return _Batch(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def refit(
    space: Space,
    measure: Measure,
    start: np.ndarray,
    measured: np.ndarray,
    counts: np.ndarray | None = None,
    fixed: int | None = None,
    steps: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Damped Gauss-Newton from `start`, for R fits at once: theta ``[R, P]`` and objectives ``[R]``.

    Args:
        start: ``[R, P]``.
        measured: log of the losses, ``[n]`` or ``[R, n]``.
        counts: how often each point counts, ``[R, n]``; None for once.
        fixed: a coordinate that stays as it starts.
        steps: the most that are taken.
    """
    found, totals = start.copy(), np.zeros(len(start))
    measured = np.broadcast_to(measured, (len(start), len(space.logs)))
    counts = np.ones(measured.shape) if counts is None else counts
    low, high = np.full(space.size, -np.inf), np.full(space.size, np.inf)
    low[1 + len(space.names) :], high[1 + len(space.names) :] = EXPONENTS
    log_loss, shares = space.terms(start)
    totals[:] = measure.total(measure.residuals(log_loss, measured)[0], counts)
    batch = _Batch(np.arange(len(start)), start.copy(), log_loss, shares, totals.copy(), np.full(len(start), 1e-3))
    for _ in range(steps):
        here, often = measured[batch.number], counts[batch.number]
        theta = np.clip(batch.theta + _step(space, measure, batch, here, often, fixed), low, high)
        log_loss, shares = space.terms(theta)
        total = measure.total(measure.residuals(log_loss, here)[0], often)
        better = total <= batch.total
        gain = (batch.total - total) / np.maximum(batch.total, 1e-300)
        # Or worse by no more than rounding.
        settled = np.where(better, gain < 1e-10, gain > -1e-13)
        for name, new in (("theta", theta), ("log_loss", log_loss), ("shares", shares), ("total", total)):
            getattr(batch, name)[better] = new[better]
        batch.damping = np.clip(np.where(better, 0.2, 5.0) * batch.damping, 1e-12, 1e12)
        found[batch.number], totals[batch.number] = batch.theta, batch.total
        batch = batch.kept(~(settled | (batch.damping > 1e10)))
        if not len(batch.number):
            break
    return found, totals


def _step(
    space: Space, measure: Measure, batch: _Batch, measured: np.ndarray, counts: np.ndarray, fixed: int | None
) -> np.ndarray:
    """Where each fit goes next, ``[R, P]``, no coordinate further than 2."""
    residuals, by_log = measure.residuals(batch.log_loss, measured)
    jacobian = np.concatenate([batch.shares, -batch.shares[..., 1:] * space.logs], -1) * by_log[..., None]
    free = np.array([place for place in range(space.size) if place != fixed])
    jacobian = jacobian[..., free]
    weighted = jacobian * (counts * measure.curvature(residuals))[..., None]
    hessian = np.swapaxes(weighted, -1, -2) @ jacobian
    slope = ((counts * measure.slope(residuals))[..., None] * jacobian).sum(-2)
    diagonal = np.einsum("rpp->rp", hessian)
    added = batch.damping[:, None] * diagonal + 1e-14 * diagonal.sum(-1, keepdims=True) + 1e-300
    place = np.arange(len(free))
    hessian[:, place, place] += added
    step = np.zeros((len(batch.theta), space.size))
    step[:, free] = -np.linalg.solve(hessian, slope[..., None])[..., 0]
    return np.clip(step, -2.0, 2.0)
