"""Schedules of the learning rate by name, as functions of the step; another package may enter its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Schedule = Callable[[Any, int, int], float]
"""`schedule(options, step, steps)`: learning rate of step `step` (from 0) of `steps`; options: the section
`[optimizer]`.
"""

_entered: dict[str, Schedule] = {}


def enter_schedule(name: str, schedule: Schedule) -> None:
    """Make a schedule known; raises ValueError where another one has its name."""
    if _entered.setdefault(name, schedule) is not schedule:
        raise ValueError(f"schedule {name!r} is entered twice")


def schedule_names() -> tuple[str, ...]:
    """What `optimizer.schedule` may be."""
    return tuple(_entered)


def learning_rate(options: Any, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`, by the schedule that `optimizer.schedule` names."""
    return _entered[options.schedule](options, step, steps)


def warmed_up(after: Callable[[Any, float], float]) -> Schedule:
    """Linear warm-up from lr/warmup_steps, then ``after(options, done)``, where `done` (0 to 1) is the share of the
    steps behind it that have been taken.
    """

    def schedule(options: Any, step: int, steps: int) -> float:
        if step < options.warmup_steps:
            rate: float = options.lr * (step + 1) / options.warmup_steps
            return rate
        done = (step - options.warmup_steps) / max(1, steps - options.warmup_steps - 1)
        return after(options, min(1.0, done))

    return schedule


def _constant(options: Any, done: float) -> float:
    rate: float = options.lr
    return rate


def _cosine(options: Any, done: float) -> float:
    rate: float = options.min_lr + (options.lr - options.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return rate


def _linear(options: Any, done: float) -> float:
    rate: float = options.lr + (options.min_lr - options.lr) * done
    return rate


for name, after in (("constant", _constant), ("cosine", _cosine), ("linear", _linear)):
    enter_schedule(name, warmed_up(after))
