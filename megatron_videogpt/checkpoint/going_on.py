"""What a run that goes on from a checkpoint is about to do: the steps that are left, and the learning rate, which must
not jump up unasked.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config.options import value_of
from ..config.schedules import learning_rate
from ..config.schema import Config, OptimizerConfig
from ..config.toml import show
from ..errors import RunError
from ..objective.build import parts_of
from .saved import Saved

SCHEDULE = (
    *("schedule", "lr", "min_lr", "warmup_steps"),
    *("lr_wsd_decay_style", "lr_wsd_decay_iters", "lr_wsd_decay_share", "lr_wsd_decay_ends"),
)
"""Options of the optimizer that a schedule follows from, beside `train.steps`."""

TOLERANCE = 1e-3
"""A rate may be higher by this share of it: numbers that are typed anew have fewer digits."""


class Rates(NamedTuple):
    """Learning rates of one of the objective's networks around a checkpoint.

    part: its name, "" for the first one; schedule: that of today; last: of the step before it; planned: of the step
    after it, by the options it was saved with; now: by those of today.
    """

    part: str
    schedule: str
    last: float
    planned: float
    now: float

    @property
    def jumps(self) -> bool:
        """Whether it goes up further than the schedule itself would have it."""
        return self.now > max(self.last, self.planned) * (1 + TOLERANCE)


def check_steps(saved: Saved, config: Config) -> None:
    """Raise RunError when a run has gone further than it is asked to go."""
    if saved.state["step"] > config.train.steps:
        raise RunError(
            f"{saved.path}: {_nothing_to_do(saved, config)}, or start another run from its weights "
            f"(train.init_from={saved.run} and another train.output)"
        )


def check_rates(saved: Saved, config: Config) -> None:
    """Raise RunError where options that differ from the checkpoint's would lift a learning rate; not with
    `optimizer.allow_rate_jump`, nor where no step is left.
    """
    step = saved.state["step"]
    if config.optimizer.allow_rate_jump or step >= config.train.steps:
        return
    for rates in _rates(saved, config):
        if rates.jumps:
            raise RunError(
                f"{saved.path}: the learning rate{_of(rates.part)} would jump up at step {step + 1}, from "
                f"{_shown(max(rates.last, rates.planned))} to {_shown(rates.now)}, because "
                f"{'; '.join(_changes(saved, config))}; use the options of its config.toml, start another run from its "
                f"weights (train.init_from={saved.run} and another train.output), or take the jump with "
                "optimizer.allow_rate_jump=true"
            )


def outlook(saved: Saved, config: Config) -> str:
    """One line: steps that are left, learning rates before and after, options of the schedule that have changed."""
    step, steps = saved.state["step"], config.train.steps
    if step >= steps:
        return _nothing_to_do(saved, config)
    rates = [
        f"learning rate{_of(one.part)} {_shown(one.last)} -> {_shown(one.now)} ({one.schedule}"
        f"{', a jump as asked for' * one.jumps})"
        for one in _rates(saved, config)
    ]
    return "; ".join([f"step {step} of {steps}, {steps - step} to go", *rates, *_changes(saved, config)])


def _nothing_to_do(saved: Saved, config: Config) -> str:
    step, planned = saved.state["step"], saved.config.train.steps
    return (
        f"the checkpoint is at step {step} of {planned} (train.steps={config.train.steps}): nothing to do; "
        f"use train.steps={step + 1} or more to go on"
    )


def _options(config: Config) -> dict[str, OptimizerConfig]:
    """Of every network that is trained, by its name; "" for the first one."""
    parts = parts_of(config)
    return {
        part.name if number else "": part.optimizer(config.optimizer)
        for number, part in enumerate(parts)
        if part.trained
    }


def _rates(saved: Saved, config: Config) -> list[Rates]:
    step, before = saved.state["step"], _options(saved.config)
    steps, planned = config.train.steps, saved.config.train.steps
    return [
        Rates(
            part,
            today.schedule,
            learning_rate(before[part], max(0, step - 1), planned),
            learning_rate(before[part], step, planned),
            learning_rate(today, step, steps),
        )
        for part, today in _options(config).items()
        if part in before
    ]


def _changes(saved: Saved, config: Config) -> list[str]:
    """Every option of a schedule that differs, with both values."""
    names = ("train.steps", *(f"optimizer.{name}" for name in SCHEDULE))
    found = {name: (value_of(saved.config, name), value_of(config, name)) for name in names}
    before = _options(saved.config)
    for part, today in _options(config).items():
        for name in SCHEDULE if part in before else ():
            pair = getattr(before[part], name), getattr(today, name)
            # What a network has from the run's own options is said there.
            if pair != found[f"optimizer.{name}"]:
                found[f"{name}{_of(part)}"] = pair
    return [
        f"{name} is {show(there)} there and {show(here)} here" for name, (there, here) in found.items() if there != here
    ]


def _of(part: str) -> str:
    return f" of the {part}" if part else ""


def _shown(rate: float) -> str:
    return f"{rate:.2e}" if rate else "0"
