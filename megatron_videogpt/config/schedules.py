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


DECAY_STYLES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "exponential": lambda done: 2.0 * 0.5**done - 1.0,
    "minus_sqrt": lambda done: 1.0 - math.sqrt(done),
}
"""What is left of the way from min_lr to lr once a share (0 to 1) of a decay is done; Megatron-LM's styles."""


def decay_steps(options: Any, end: int) -> int:
    """Steps of the decay that ends after `end` steps: `lr_wsd_decay_iters`, or its share of these steps."""
    return options.lr_wsd_decay_iters or max(1, round(options.lr_wsd_decay_share * end))


def decays(options: Any, steps: int) -> list[tuple[int, int]]:
    """(first, end) of each decay of a run of `steps` steps, which covers steps first to end - 1, counted from 0; [] of
    schedules that have no decay of their own.

    A checkpoint after `first` steps is the one to go on from, one after `end` steps the one to measure.
    """
    ends = {"wsd": (steps,), "wsd_s": options.lr_wsd_decay_ends}.get(options.schedule, ())
    return [(end - decay_steps(options, end), end) for end in ends]


def kept_steps(options: Any, steps: int) -> frozenset[int]:
    """Steps whose checkpoints are written and kept: before and after each decay."""
    return frozenset(step for decay in decays(options, steps) for step in decay)


def _stable_decay(options: Any, step: int, steps: int) -> float:
    """Constant, but in decays, whose last step has min_lr: one at the end (wsd), or at several steps (wsd_s; Wen et al.
    2024, arXiv 2410.05192), after each of which the rate is high again at once.
    """
    if step < options.warmup_steps:
        warming: float = options.lr * (step + 1) / options.warmup_steps
        return warming
    periods = decays(options, steps)
    if options.schedule == "wsd":
        # Beyond the end: a run that was made longer by hand.
        step = min(step, steps - 1)
    for first, end in periods:
        if first <= step < end:
            left = DECAY_STYLES[options.lr_wsd_decay_style]((step - first + 1) / (end - first))
            rate: float = options.min_lr + (options.lr - options.min_lr) * left
            return rate
    return float(options.lr)


for name, after in (("constant", _constant), ("cosine", _cosine), ("linear", _linear)):
    enter_schedule(name, warmed_up(after))
for name in ("wsd", "wsd_s"):
    enter_schedule(name, _stable_decay)
