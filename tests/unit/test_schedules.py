"""Schedules by name: their values by hand, and one of another package."""

from __future__ import annotations

import math

import pytest

from megatron_videogpt.config import schedules
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.options import options
from megatron_videogpt.config.schedules import enter_schedule, learning_rate, warmed_up
from megatron_videogpt.config.schema import Config, OptimizerConfig


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("constant", lambda done: 1e-3),
        ("cosine", lambda done: 1e-4 + 9e-4 * (1 + math.cos(math.pi * done)) / 2),
        ("linear", lambda done: 1e-3 - 9e-4 * done),
    ],
)
def test_rates_by_hand(name: str, after) -> None:  # type: ignore[no-untyped-def]
    optimizer = OptimizerConfig(lr=1e-3, min_lr=1e-4, warmup_steps=4, schedule=name)
    rates = [learning_rate(optimizer, step, 25) for step in range(25)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:] == pytest.approx([after(place / 20) for place in range(21)])
    # Beyond the end: a run that was made longer by hand.
    assert learning_rate(optimizer, 30, 25) == pytest.approx(rates[-1])


def test_a_schedule_of_another_package_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_entered", dict(schedules._entered))
    values = {"optimizer": {"schedule": "square_root", "lr": 0.5}}
    (problem,) = find_problems(config_from_dict(values), None)
    assert problem.startswith(
        'optimizer.schedule = "square_root": must be one of constant, cosine, linear, nbp_cosine; '
    )
    enter_schedule("square_root", warmed_up(lambda optimizer, done: optimizer.lr * (1 - done) ** 0.5))
    config = config_from_dict(values)
    assert find_problems(config, None) == []
    warmup = config.optimizer.warmup_steps
    assert learning_rate(config.optimizer, 75 + warmup, 101 + warmup) == 0.25
    known = {option.name: option.choices for option in options(of=Config())}
    assert known["optimizer.schedule"] == ("constant", "cosine", "linear", "nbp_cosine", "square_root")
    with pytest.raises(ValueError, match="'square_root' is entered twice"):
        enter_schedule("square_root", lambda optimizer, step, steps: 0.0)
