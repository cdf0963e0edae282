"""`tools/compare_decays.py`: pairs of WSD-S's points and runs of their own, and what has no partner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.scaling.runs import Run, read_run
from tests.unit.test_scaling_command import options, write_run
from tools import compare_decays


def made(folder: Path, seed: int, schedule: dict[str, Any], losses: dict[int, float]) -> Run:
    values = options(32, max(losses))
    values["optimizer"] = {"warmup_steps": 2, **schedule}
    values["train"]["seed"] = seed
    lines = [{"step": n, "validation_loss": x, "validation_se_loss": x / 50} for n, x in losses.items()]
    return read_run(write_run(folder, values, lines))


def runs_of(folder: Path, seed: int, together: dict[int, float], apart: dict[int, float]) -> list[Run]:
    several = {"schedule": "wsd_s", "lr_wsd_decay_ends": list(together)}
    alone = [
        made(folder / f"{seed}_{steps}", seed, {"schedule": "wsd"}, {steps: loss}) for steps, loss in apart.items()
    ]
    return [made(folder / f"{seed}_all", seed, several, together), *alone]


def test_pairs_share_seed_and_steps(tmp_path: Path) -> None:
    """Differences of +1 and +3 % over two seeds: their mean, and sqrt(2) / sqrt(2) = 1 percent of error."""
    runs = runs_of(tmp_path, 0, {20: 2.02, 40: 1.0}, {20: 2.0, 40: 1.0})
    runs += runs_of(tmp_path, 1, {20: 1.03, 40: 1.0}, {20: 1.0, 40: 1.0})
    first, second = compare_decays.compare(compare_decays.pair(runs))
    assert (first.steps, second.steps) == (20, 40)
    assert (first.decays, first.apart, first.error) == pytest.approx((1.525, 1.5, 2.0))
    assert first.differences.tolist() == pytest.approx([1.0, 3.0]) and first.scatter == pytest.approx(1.0)
    lines = compare_decays.shown([first, second]).splitlines()
    assert lines[2] == "| 20 | 2 | 1.5250 | 1.5000 | +2.00 +- 1.00 | 2.0 |"
    assert lines[3] == "| 40 | 2 | 1.0000 | 1.0000 | +0.00 +- 0.00 | 2.0 |"


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, 0, {20: 2.0, 40: 1.0}, {40: 1.0})
    with pytest.raises(ValueError, match="20 steps of seed 0 are in no run of their own; give wsd_s runs"):
        compare_decays.pair(runs)
    with pytest.raises(ValueError, match="40 steps of seed 0 are in no decay; give"):
        compare_decays.pair(runs[1:])
    with pytest.raises(ValueError, match="another run has 40 steps and seed 0"):
        compare_decays.pair([*runs, runs[1]])
