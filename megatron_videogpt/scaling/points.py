"""Points that a law is fitted to: which are used, which are held out, which are dropped and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from .law import FLOPS

SIZES = ("N", "D")
STEPS = ("N", "S", "b")
"""Inputs of the two forms: parameters and tokens; parameters, optimizer steps and batch."""

ALIKE = 0.01
"""Values that differ by less than this share are one, where different ones are counted."""

COLLINEAR = 0.999
"""Share of the variance of an input's log that the others may explain, before their terms cannot be told apart."""


@dataclass(frozen=True)
class Point:
    """A finished training run, or a decayed moment of one.

    parameters N, tokens D, loss; steps S, batch b: where they are known, NaN elsewhere; levels: other losses by name
    (by noise level, by latent frame); errors: standard errors of the loss, under "loss", and of the levels, where they
    are known; flops: counted with attention on attended pairs, NaN where unknown; dropped: why it is not used, "" where
    it is.
    """

    name: str
    parameters: float
    tokens: float
    loss: float
    steps: float = math.nan
    batch: float = math.nan
    flops: float = math.nan
    levels: dict[str, float] = field(default_factory=dict)
    dropped: str = ""
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def compute(self) -> float:
        """C = 6 N D, in FLOPs."""
        return FLOPS * self.parameters * self.tokens

    def value(self, name: str) -> float:
        """Of an input by its letter."""
        return {"N": self.parameters, "D": self.tokens, "S": self.steps, "b": self.batch}[name]


@dataclass(frozen=True)
class Selection:
    """fitted: what laws are fitted to; held_out: what they are asked to predict, of largest compute; dropped."""

    fitted: tuple[Point, ...]
    held_out: tuple[Point, ...]
    dropped: tuple[Point, ...]


def judged(point: Point) -> Point:
    """The point, dropped where a number of it is none that a law has."""
    if point.dropped:
        return point
    numbers = {"N": point.parameters, "D": point.tokens, "loss": point.loss}
    for name, value in numbers.items():
        if not math.isfinite(value):
            return replace(point, dropped=f"{name} is no finite number ({value})")
        if value <= 0:
            return replace(point, dropped=f"{name} = {value:g} is not above 0")
    return point


def select(
    points: Sequence[Point], exclude: Collection[str] = (), drop_largest: int = 0, hold_out: int = 0
) -> Selection:
    """Sort points out, in this order: what is no number, what is excluded by name, the `drop_largest` largest losses,
    the `hold_out` largest computes.

    Raises:
        UserError: a name that no point has.
    """
    unknown = sorted(set(exclude) - {point.name for point in points})
    if unknown:
        some = ", ".join(point.name for point in points[:5])
        raise UserError(
            f"--exclude {unknown[0]}: no point has this name; names are {some}{', ...' * (len(points) > 5)}"
        )
    checked = [judged(point) for point in points]
    checked = [
        replace(point, dropped="--exclude") if point.name in exclude and not point.dropped else point
        for point in checked
    ]
    used = [point for point in checked if not point.dropped]
    dropped = [point for point in checked if point.dropped]
    for number, name in ((drop_largest, "--drop-largest"), (hold_out, "--hold-out")):
        if number >= len(used) > 0:
            raise UserError(f"{name} {number}: leaves none of the {len(used)} points; use a smaller number")
    used.sort(key=lambda point: point.loss)
    for point in used[len(used) - drop_largest :]:
        dropped.append(replace(point, dropped=f"--drop-largest {drop_largest}: among the largest losses"))
    used = sorted(used[: len(used) - drop_largest], key=lambda point: point.compute)
    held = used[len(used) - hold_out :]
    return Selection(tuple(used[: len(used) - hold_out]), tuple(held), tuple(dropped))


def inputs_of(points: Sequence[Point], names: Sequence[str]) -> np.ndarray:
    """Inputs float64 ``[n, K]`` by their letters."""
    return np.array([[point.value(name) for name in names] for point in points], float).reshape(-1, len(names))


def losses_of(points: Sequence[Point], level: str = "") -> np.ndarray:
    """Losses float64 ``[n]``, or those of a level; NaN where a point has none."""
    return np.array([point.levels.get(level, math.nan) if level else point.loss for point in points], float)


def undetermined(points: Sequence[Point], names: Sequence[str]) -> str:
    """Why points cannot tell the terms of a law in these inputs apart, with the fix; "" where they can."""
    inputs, numbers = inputs_of(points, names), 1 + 2 * len(names)
    if len(points) <= numbers:
        return f"{len(points)} points are too few for a law of {numbers} numbers; give at least {numbers + 1}"
    if not np.isfinite(inputs).all():
        return f"not every point has {', '.join(names)}"
    logs = np.log(inputs)
    for name, column in zip(names, logs.T):
        different = 1 + int((np.diff(np.sort(column)) > ALIKE).sum())
        if different < 3:
            values = "value" if different == 1 else "different values"
            return f"{name} has {different} {values}; an exponent needs at least 3"
    for place, name in enumerate(names):
        others = np.concatenate([np.ones((len(logs), 1)), np.delete(logs, place, 1)], 1)
        rest = logs[:, place] - others @ np.linalg.lstsq(others, logs[:, place], rcond=None)[0]
        if rest.var() < (1 - COLLINEAR) * logs[:, place].var():
            told = " and ".join(other for other in names if other != name)
            return (
                f"the points are collinear: {name} follows from {told} up to {100 * np.sqrt(rest.var()):.2g} %, so "
                "that their terms cannot be told apart; add runs of a size with another number of tokens"
            )
    return ""
