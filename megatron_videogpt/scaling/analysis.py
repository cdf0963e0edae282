"""Everything that `scaling fit` finds out, from points to predictions; nothing is read, printed or written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..errors import UserError
from .fit import METHODS, Fit
from .intervals import Bootstrap, Interval, bootstrap, percentiles, profile
from .law import Frontier, frontier, size_exponent
from .points import SIZES, STEPS, Point, Selection, inputs_of, losses_of, undetermined

SHARE, FALL = "a", "c"
"""Names of the exponents of the best size and of the frontier, N ~ C^a and L - E ~ C^-c."""

SURE = 0.999
"""Level at which a loss must be below the other points' E before it is refused."""

PROFILED = ("E", "alpha", "beta")
FURTHER = (1.0, 10.0, 100.0)
"""Multiples of the largest compute at which the frontier is told."""


@dataclass(frozen=True)
class Settings:
    """replicates: of the bootstrap; level: of all intervals; compute: FLOPs at which the frontier is told, () for
    `FURTHER`.
    """

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0
    compute: tuple[float, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A fit with its intervals by name: of the bootstrap, and of the profile where there is one."""

    fit: Fit
    replicates: Bootstrap
    numbers: dict[str, float]
    bootstrap: dict[str, Interval]
    profile: dict[str, Interval]


@dataclass(frozen=True)
class Prediction:
    """A run that was held out, the loss that a method expects of it, and the interval for one such run."""

    point: Point
    method: str
    loss: float
    interval: Interval

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.loss / self.point.loss - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss is in the interval."""
        return self.interval[0] <= self.point.loss <= self.interval[1]

    @property
    def half_width(self) -> float:
        """Of the interval, as a share of the predicted loss."""
        return (self.interval[1] - self.interval[0]) / 2 / self.loss


@dataclass(frozen=True)
class Best:
    """Where compute is best spent, ``[n]`` each, with intervals ``[2, n]``."""

    line: Frontier
    low: Frontier
    high: Frontier


@dataclass(frozen=True)
class Result:
    """estimates, best: by method; predictions: for each held-out run and method; steps: of the form in steps and batch;
    levels, level_predictions: by level, by variable projection; left_out: why there is no such form, or no fit of a
    level.
    """

    selection: Selection
    settings: Settings
    estimates: dict[str, Estimate]
    best: dict[str, Best]
    predictions: tuple[Prediction, ...]
    steps: dict[str, Estimate] = field(default_factory=dict)
    levels: dict[str, Estimate] = field(default_factory=dict)
    level_predictions: dict[str, tuple[Prediction, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def frontier(self, method: str, compute: np.ndarray) -> Best:
        """At computes ``[n]``."""
        estimate = self.estimates[method]
        numbers = {name: np.asarray(value) for name, value in estimate.numbers.items()}
        line, many = frontier(numbers, compute), frontier(estimate.replicates.numbers, compute)
        ends = [(1 - self.settings.level) / 2, (1 + self.settings.level) / 2]
        bands = [np.quantile(values, ends, axis=0) for values in (many.parameters, many.tokens, many.loss)]
        low, high = (Frontier(compute, *(band[side] for band in bands)) for side in (0, 1))
        return Best(line, low, high)


def analyse(
    selection: Selection, settings: Settings, told: Callable[[str, int], None] = lambda what, done: None
) -> Result:
    """Fit everything that the points determine.

    told: what is being fitted, and how many replicates of it are done.

    Raises:
        UserError: the points do not determine the law in N and D, or contradict it.
    """
    why = undetermined(selection.fitted, SIZES)
    if why:
        apart = f"{len(selection.dropped)} dropped, {len(selection.held_out)} held out"
        raise UserError(f"{why} (fitted: {len(selection.fitted)} points; {apart})")
    left_out: dict[str, str] = {}
    estimates = {
        method: _estimate(method, SIZES, selection.fitted, settings, partial(told, method)) for method in METHODS
    }
    _check_floor([estimate.fit for estimate in estimates.values()], selection)
    result = Result(
        selection, settings, estimates, {}, _predictions(selection.held_out, estimates, settings), left_out=left_out
    )
    largest = max(point.compute for point in (*selection.fitted, *selection.held_out))
    compute = np.array(settings.compute or [largest * times for times in FURTHER])
    result.best.update({method: result.frontier(method, compute) for method in METHODS})
    why = undetermined(selection.fitted, STEPS)
    if why:
        left_out["steps and batch"] = why
    else:
        for method in METHODS:
            counted = partial(told, f"{method}, steps and batch")
            result.steps[method] = _estimate(method, STEPS, selection.fitted, settings, counted)
    for level in sorted({level for point in selection.fitted for level in point.levels}):
        known = [point for point in selection.fitted if point.levels.get(level, 0) > 0]
        why = undetermined(known, SIZES)
        if why:
            left_out[level] = why
        else:
            estimate = _estimate("projection", SIZES, known, settings, partial(told, level), level)
            result.levels[level] = estimate
            later = [replace(p, loss=p.levels[level]) for p in selection.held_out if p.levels.get(level, 0) > 0]
            result.level_predictions[level] = _predictions(later, {"projection": estimate}, settings)
    return result


def fits_ahead(selection: Selection) -> int:
    """How many fits `analyse` will tell of."""
    levels = {level for point in selection.fitted for level in point.levels}
    return len(METHODS) * (2 - bool(undetermined(selection.fitted, STEPS))) + len(levels)


def _estimate(
    method: str,
    names: Sequence[str],
    points: Sequence[Point],
    settings: Settings,
    told: Callable[[int], None],
    level: str = "",
) -> Estimate:
    fit = METHODS[method](tuple(names), inputs_of(points, names), losses_of(points, level))
    drawn = bootstrap(fit, settings.replicates, settings.seed, settings.level, told)
    numbers, many = dict(fit.law.numbers), dict(drawn.numbers)
    if tuple(names) == SIZES:
        numbers[SHARE] = float(size_exponent(numbers["alpha"], numbers["beta"]))
        many[SHARE] = size_exponent(many["alpha"], many["beta"])
        numbers[FALL], many[FALL] = numbers["alpha"] * numbers[SHARE], many["alpha"] * many[SHARE]
    profiled = PROFILED if method == "projection" and tuple(names) == SIZES else ()
    return Estimate(
        fit,
        drawn,
        numbers,
        {name: percentiles(values, settings.level) for name, values in many.items()},
        {name: profile(fit, name, settings.level) for name in profiled},
    )


def _check_floor(fits: Sequence[Fit], selection: Selection) -> None:
    """A loss below E contradicts the law, since nothing reaches that: below the E of a fit, or, for the smallest loss,
    surely below the E that the other points give (which a fit to all of them may hide by giving up its E).
    """
    for fit in fits:
        for point in (*selection.fitted, *selection.held_out):
            if point.loss <= fit.law.floor:
                raise _below(point, f"the fitted E = {fit.law.floor:.6g} ({fit.method})")
    lowest = min(selection.fitted, key=lambda point: point.loss)
    others = [point for point in selection.fitted if point is not lowest]
    if undetermined(others, SIZES):
        return
    fit = METHODS["projection"](SIZES, inputs_of(others, SIZES), losses_of(others))
    surely = profile(fit, "E", SURE)[0]
    if lowest.loss <= surely:
        raise _below(lowest, f"E of the other points, which is {surely:.6g} at least")


def _below(point: Point, what: str) -> UserError:
    return UserError(
        f"{point.name}: its loss {point.loss:.6g} is below {what}, and no size and no amount of data reaches E; "
        f"check it, or leave it out: --exclude '{point.name}'"
    )


def _predictions(points: Sequence[Point], estimates: dict[str, Estimate], settings: Settings) -> tuple[Prediction, ...]:
    if not points:
        return ()
    inputs = inputs_of(points, SIZES)
    found = []
    for method, estimate in estimates.items():
        losses = estimate.fit.law.loss(inputs)
        many = estimate.replicates.runs(inputs, settings.seed)
        for place, point in enumerate(points):
            interval = percentiles(many[:, place], settings.level)
            found.append(Prediction(point, method, float(losses[place]), interval))
    return tuple(found)
