"""What a run says that goes on with other options, and which learning rates it refuses: rates by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint import going_on
from megatron_videogpt.checkpoint.going_on import check_rates, check_steps, outlook
from megatron_videogpt.checkpoint.saved import Saved
from megatron_videogpt.config.schema import Config, OptimizerConfig, TrainConfig
from megatron_videogpt.errors import RunError

SCHEDULE = {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2}


def config(steps: int, **optimizer: Any) -> Config:
    return Config(train=TrainConfig(steps=steps), optimizer=OptimizerConfig(**{**SCHEDULE, **optimizer}))


def saved(step: int, steps: int, **optimizer: Any) -> Saved:
    return Saved(Path(f"runs/a/checkpoints/step_{step:08d}"), {"step": step}, config(steps, **optimizer))


def cosine(step: int, steps: int) -> float:
    """The rate of a step, from 0, behind two steps of warm-up."""
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 2) / (steps - 2 - 1)))


def test_it_says_what_is_left_and_where_the_rate_goes() -> None:
    assert outlook(saved(6, 10), config(10)) == (
        f"step 6 of 10, 4 to go; learning rate {cosine(5, 10):.2e} -> {cosine(6, 10):.2e} (cosine)"
    )
    check_rates(saved(6, 10), config(10))
    # The rate comes down, which is allowed and said.
    check_rates(saved(6, 10), config(8))
    assert outlook(saved(6, 10), config(8)) == (
        f"step 6 of 8, 2 to go; learning rate {cosine(5, 10):.2e} -> {cosine(6, 8):.2e} (cosine); "
        "train.steps is 10 there and 8 here"
    )


@pytest.mark.parametrize(
    ("before", "today", "rates", "changed"),
    [
        pytest.param(
            saved(6, 6), config(10), ("0", f"{cosine(6, 10):.2e}"), ["train.steps is 6 there and 10 here"], id="longer"
        ),
        pytest.param(
            saved(6, 10, warmup_steps=8),
            config(10, lr=3e-3),
            # The next step of the old warm-up would have had 7/8.
            ("8.75e-04", f"{cosine(6, 10) * 3:.2e}"),
            ["optimizer.lr is 0.001 there and 0.003 here", "optimizer.warmup_steps is 8 there and 2 here"],
            id="a higher rate, and a shorter warm-up",
        ),
        pytest.param(
            saved(6, 10),
            config(10, schedule="constant"),
            (f"{cosine(5, 10):.2e}", "1.00e-03"),
            ['optimizer.schedule is "cosine" there and "constant" here'],
            id="another schedule",
        ),
        pytest.param(
            saved(10, 10),
            config(12, min_lr=5e-4),
            ("0", f"{5e-4 + cosine(10, 12) / 2:.2e}"),
            ["train.steps is 10 there and 12 here", "optimizer.min_lr is 0.0 there and 0.0005 here"],
            id="another end",
        ),
    ],
)
def test_a_rate_that_would_jump_up_is_refused_unless_asked_for(
    before: Saved, today: Config, rates: tuple[str, str], changed: list[str]
) -> None:
    with pytest.raises(RunError) as caught:
        check_rates(before, today)
    line = str(caught.value)
    assert f"would jump up at step {before.state['step'] + 1}, from {rates[0]} to {rates[1]}, because " in line
    assert f"because {'; '.join(changed)}; use" in line and "\n" not in line
    assert "optimizer.allow_rate_jump=true" in line and "train.init_from=runs/a " in line
    asked = replace(today, optimizer=replace(today.optimizer, allow_rate_jump=True))
    check_rates(before, asked)
    assert f"-> {rates[1]} ({today.optimizer.schedule}, a jump as asked for); {changed[0]}" in outlook(before, asked)


@pytest.mark.parametrize(
    ("before", "today"),
    [
        pytest.param(saved(3, 20, warmup_steps=9), config(20, warmup_steps=9), id="a warm-up that is still rising"),
        pytest.param(saved(6, 6, schedule="constant"), config(90, schedule="constant"), id="longer and constant"),
        pytest.param(saved(6, 10), config(10, lr=1.0005e-3, weight_decay=0.3), id="less than a thousandth"),
        pytest.param(saved(6, 6), config(6, lr=0.5), id="no step is left"),
    ],
)
def test_no_jump(before: Saved, today: Config) -> None:
    check_rates(before, today)


def test_a_network_with_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its rate is another one; what it has in common with the run is told once."""
    from megatron_videogpt.objective.base import Part

    def parts(config: Config) -> tuple[Any, ...]:
        own = 2e-3 if config.train.steps == 6 else 4e-3
        critic = Part("critic", None, optimizer=lambda options: replace(options, lr=own))  # type: ignore[arg-type]
        return Part("model", None), critic, Part("teacher", None, trained=False)  # type: ignore[arg-type]

    monkeypatch.setattr(going_on, "parts_of", parts)
    with pytest.raises(
        RunError, match=r"rate of the critic would jump up at step 4, from 2.00e-03 to 4.00e-03, be"
    ) as e:
        check_rates(saved(3, 6, schedule="constant"), config(8, schedule="constant"))
    assert "because train.steps is 6 there and 8 here; lr of the critic is 0.002 there and 0.004 here; use" in str(
        e.value
    )
    told = outlook(saved(3, 6), config(6))
    assert told.endswith("(cosine); learning rate of the critic 2.00e-03 -> 1.50e-03 (cosine)")


def test_nothing_to_do() -> None:
    with pytest.raises(RunError) as caught:
        check_steps(saved(6, 6), config(4))
    assert str(caught.value) == (
        "runs/a/checkpoints/step_00000006: the checkpoint is at step 6 of 6 (train.steps=4): nothing to do; use "
        "train.steps=7 or more to go on, or start another run from its weights (train.init_from=runs/a and another "
        "train.output)"
    )
    check_steps(saved(6, 6), config(6))
    assert "at step 6 of 6 (train.steps=6): nothing to do" in outlook(saved(6, 6), config(6))
