"""Schedules by name: their values by hand, and one of another package."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_videogpt.config import schedules
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.options import options
from megatron_videogpt.config.schedules import decays, enter_schedule, kept_steps, learning_rate, warmed_up
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


# Megatron-LM's formulas with done = 1/4, 1/2, 3/4, 1.
STYLES = {
    "linear": [0.75, 0.5, 0.25, 0.0],
    "cosine": [(1 + math.cos(math.pi * done)) / 2 for done in (0.25, 0.5, 0.75, 1.0)],
    "exponential": [2 * 0.5**done - 1 for done in (0.25, 0.5, 0.75, 1.0)],
    "minus_sqrt": [0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0],
}


@pytest.mark.parametrize("style", STYLES)
def test_a_stable_rate_decays_at_the_end(style: str) -> None:
    decay = {"schedule": "wsd", "lr_wsd_decay_style": style, "lr_wsd_decay_iters": 4}
    optimizer = OptimizerConfig(lr=1e-3, min_lr=1e-4, warmup_steps=4, **decay)  # type: ignore[arg-type]
    rates = [learning_rate(optimizer, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:16] == [1e-3] * 12
    assert rates[16:] == pytest.approx([1e-4 + 9e-4 * left for left in STYLES[style]])
    assert learning_rate(optimizer, 30, 20) == pytest.approx(rates[-1])
    assert kept_steps(optimizer, 20) == {16, 20}


def test_several_decays_are_those_of_runs_of_each_length() -> None:
    """WSD-S: within a decay the rates of a wsd run that ends there, else the stable one; a function of the step."""
    stable = {"lr": 1e-3, "warmup_steps": 2, "lr_wsd_decay_share": 0.2}
    ends = (10, 20, 40)
    optimizer = OptimizerConfig(schedule="wsd_s", lr_wsd_decay_ends=ends, **stable)  # type: ignore[arg-type]
    assert decays(optimizer, 40) == [(8, 10), (16, 20), (32, 40)]
    assert kept_steps(optimizer, 40) == {8, 10, 16, 20, 32, 40}
    backwards = {step: learning_rate(optimizer, step, 40) for step in reversed(range(40))}
    for step in range(40):
        end = next((end for first, end in decays(optimizer, 40) if first <= step < end), None)
        alone = OptimizerConfig(schedule="wsd" if end else "constant", **stable)  # type: ignore[arg-type]
        assert backwards[step] == learning_rate(alone, step, end or 40)
    assert backwards[9] == backwards[39] == 0.0 and backwards[10] == backwards[31] == 1e-3
    assert [decays(replace(optimizer, schedule=name), 40) for name in ("constant", "wsd")] == [[], [(32, 40)]]


@pytest.mark.parametrize(
    ("optimizer", "steps", "line"),
    [
        (
            {"schedule": "wsd_s"},
            40,
            "optimizer.lr_wsd_decay_ends = []: must be ascending and end with train.steps = 40",
        ),
        (
            {"schedule": "wsd_s", "lr_wsd_decay_ends": [20, 10, 40]},
            40,
            "optimizer.lr_wsd_decay_ends = [20, 10, 40]: must be ascending",
        ),
        (
            {"schedule": "wsd_s", "lr_wsd_decay_ends": [10, 20]},
            40,
            "optimizer.lr_wsd_decay_ends = [10, 20]: must be ascending and end with train.steps = 40; use for example "
            "[10, 20, 40]",
        ),
        (
            {"schedule": "wsd_s", "lr_wsd_decay_ends": [30, 40], "lr_wsd_decay_iters": 11},
            40,
            "optimizer.lr_wsd_decay_iters = 11: must leave the decay before it its 30 steps, but the decay that ends "
            "at step 40 begins at 29",
        ),
        (
            {"schedule": "wsd", "lr_wsd_decay_share": 0.9},
            40,
            "optimizer.lr_wsd_decay_share = 0.9: must leave the warm-up its 8 steps, but",
        ),
        (
            {"schedule": "wsd", "lr_wsd_decay_ends": [40]},
            40,
            "optimizer.lr_wsd_decay_ends = [40]: must be left out with ",
        ),
        (
            {"schedule": "cosine", "lr_wsd_decay_iters": 4},
            40,
            "optimizer.lr_wsd_decay_iters = 4: must be left out with optimizer.schedule = cosine",
        ),
    ],
)
def test_decays_that_do_not_fit_are_refused(optimizer: dict[str, Any], steps: int, line: str) -> None:
    values = {"optimizer": {"warmup_steps": 8, **optimizer}, "train": {"steps": steps}}
    (problem,) = find_problems(config_from_dict(values), None)
    assert problem.startswith(line)


def test_a_schedule_of_another_package_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_entered", dict(schedules._entered))
    values = {"optimizer": {"schedule": "square_root", "lr": 0.5}}
    (problem,) = find_problems(config_from_dict(values), None)
    assert problem.startswith(
        'optimizer.schedule = "square_root": must be one of constant, cosine, linear, wsd, wsd_s, nbp_cosine; '
    )
    enter_schedule("square_root", warmed_up(lambda optimizer, done: optimizer.lr * (1 - done) ** 0.5))
    config = config_from_dict(values)
    assert find_problems(config, None) == []
    warmup = config.optimizer.warmup_steps
    assert learning_rate(config.optimizer, 75 + warmup, 101 + warmup) == 0.25
    known = {option.name: option.choices for option in options(of=Config())}
    assert known["optimizer.schedule"] == ("constant", "cosine", "linear", "wsd", "wsd_s", "nbp_cosine", "square_root")
    with pytest.raises(ValueError, match="'square_root' is entered twice"):
        enter_schedule("square_root", lambda optimizer, step, steps: 0.0)
