"""The gate that skips steps, against the rule worked out by hand."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from megatron_videogpt.config.schema import OptimizerConfig


def gate(norms: list[float], skipped: int = 0, **options: float):  # type: ignore[no-untyped-def]
    from megatron_videogpt.platforms import activate

    activate("cpu")
    from megatron_videogpt.train.health import NormGate

    return NormGate(OptimizerConfig(**options), norms, skipped)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), max_size=60))
def test_without_a_factor_any_norm_is_taken(norms: list[float]) -> None:
    assert gate(norms).limit == math.inf


def test_a_spike_is_measured_against_the_median_of_taken_steps() -> None:
    assert gate([float(n) for n in range(1, 51)], spike_factor=2.0).limit == 2 * 25.5


def test_few_steps_are_no_measure() -> None:
    assert gate([1.0] * 24, spike_factor=2.0).limit == math.inf
    assert gate([1.0] * 25, spike_factor=2.0).limit == 2.0


def test_taken_steps_are_remembered_and_skipped_ones_counted_in_a_row() -> None:
    tested = gate([], max_skipped=2)
    for n in range(60):
        tested.record(float(n), taken=True)
    assert tested.norms == [float(n) for n in range(10, 60)]
    tested.record(math.nan, taken=False)
    assert (tested.skipped, tested.too_many()) == (1, False)
    tested.record(5.0, taken=True)
    tested.record(math.nan, taken=False)
    tested.record(math.nan, taken=False)
    assert (tested.skipped, tested.too_many()) == (2, True) and tested.norms[-1] == 5.0
    # A step in which nothing is scored is no sign of health, nor of sickness.
    tested.record(0.0, taken=False, scored=False)
    assert tested.skipped == 2 and tested.norms[-1] == 5.0
