"""`cost`: the fit on timings whose coefficients are known, and rows that can tell tokens from pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.config.load import load_config
from megatron_videogpt.config.schema import Config
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.train.cost.fit import describe, fit_cost, plot, rows_to_time, work_of_rows

PATCHES = 240


def works(frames: int) -> list[tuple[float, float]]:
    return [
        (sum(clip_work(clips, PATCHES).tokens for clips in row), sum(clip_work(clips, PATCHES).pairs for clips in row))
        for row in rows_to_time(frames)
    ]


@given(
    a=st.floats(1e-7, 1e-4),
    pairs_per_token=st.floats(500, 100_000),
    c=st.sampled_from([0.0, 1e-3, 0.1]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_fit_finds_what_made_the_times(a: float, pairs_per_token: float, c: float, seed: int) -> None:
    tokens, pairs = map(np.array, zip(*works(80)))
    b = a / pairs_per_token
    seconds = a * tokens + b * pairs + c
    exact = fit_cost(tokens, pairs, seconds)
    assert (exact.a, exact.b) == pytest.approx((a, b), rel=1e-5) and np.abs(exact.errors).max() < 1e-6
    noisy = fit_cost(tokens, pairs, seconds * (1 + 0.02 * np.random.default_rng(seed).standard_normal(len(tokens))))
    assert min(noisy.a, noisy.b, noisy.c) >= 0 and np.abs(noisy.errors).max() < 0.12
    # What the fit is for: the cost of rows in proportion to each other.
    known, found = a * tokens + b * pairs, noisy.a * tokens + noisy.b * pairs
    if c < 0.01 * seconds.min():
        assert np.abs(found / found.sum() * known.sum() / known - 1).max() < 0.25


def test_rows_are_worth_what_the_objective_says() -> None:
    """Of plans of such samples, in closed form; 240 patches of 16 pixels."""
    config = Config()
    assert work_of_rows(config, rows_to_time(16), (16 * 12, 16 * 20)) == works(16)


def test_no_coefficient_is_below_zero() -> None:
    """Attention that costs nothing, and times that fall as pairs grow, both give b = 0."""
    tokens, pairs = map(np.array, zip(*works(80)))
    assert fit_cost(tokens, pairs, 1e-5 * tokens).b == pytest.approx(0, abs=1e-14)
    assert fit_cost(tokens, pairs, 1e-4 * tokens - 1e-10 * pairs).b == 0.0
    for wrong in (([1, 2], [1, 2], [1.0, 2.0]), ([1, 2, 3], [1, 4, 9], [1.0, 0.0, 2.0])):
        with pytest.raises(ValueError, match="a fit needs at least 3"):
            fit_cost(*wrong)


@pytest.mark.parametrize("frames", [8, 16, 48, 80])
def test_rows_tell_tokens_from_pairs(frames: int) -> None:
    """None is longer than the longest sample; for equal tokens, pairs differ by a factor of two and more."""
    rows = rows_to_time(frames)
    assert len(rows) == len(set(rows)) >= 10 and all(min(clips) >= 1 for row in rows for clips in row)
    tokens, pairs = map(np.array, zip(*works(frames)))
    assert tokens.max() == (2 * frames - 1) * (PATCHES + 2) and tokens.max() / tokens.min() > 3
    near = (tokens[:, None] < 1.3 * tokens) & (tokens < 1.3 * tokens[:, None])
    assert (pairs[:, None] / pairs)[near].max() > 2


def test_the_line_can_be_pasted(tmp_path: Path) -> None:
    config = Config()
    made, rows = works(16), rows_to_time(16)
    seconds = [2e-6 * tokens + 3e-11 * pairs + 1e-3 for tokens, pairs in made]
    fit = fit_cost(*zip(*made), seconds)
    text = describe(config, config, rows, made, seconds, fit, "some device")
    line = text.splitlines()[-1]
    (tmp_path / "run.toml").write_text("")
    assert load_config(tmp_path / "run.toml", [line]).data.cost == pytest.approx((2e-6, 3e-11), rel=1e-3)
    assert "a token costs as much as 66,667 pairs" in text
    plot(tmp_path / "new" / "fit.png", made, seconds, fit)
    assert (tmp_path / "new" / "fit.png").read_bytes()[:4] == b"\x89PNG"
