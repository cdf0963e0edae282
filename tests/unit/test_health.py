"""The gate that skips steps, against the rule worked out by hand."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from megatron_videogpt.config.schema import OptimizerConfig


def gate(norms: list[float], skipped: int = 0, **options: float):  # type: ignore[no-untyped-def]
    from megatron_videogpt.platforms import activate

    activate("cpu")
    from megatron_videogpt.train.health import Gate

    return Gate(OptimizerConfig(**options), norms, skipped)  # type: ignore[arg-type]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_without_a_factor_only_what_is_not_finite_is_skipped(norm: float) -> None:
    assert gate([1.0] * 50).accept(norm) == math.isfinite(norm)


def test_a_spike_is_measured_against_the_median_of_taken_steps() -> None:
    norms = [float(n) for n in range(1, 51)]  # median 25.5
    assert gate(norms, spike_factor=2.0).accept(51.0)
    assert not gate(norms, spike_factor=2.0).accept(51.1)


def test_few_steps_are_no_measure() -> None:
    assert gate([1.0] * 24, spike_factor=2.0).accept(1e9)
    assert not gate([1.0] * 25, spike_factor=2.0).accept(1e9)


def test_taken_steps_are_remembered_and_skipped_ones_counted_in_a_row() -> None:
    tested = gate([], max_skipped=2)
    for n in range(60):
        tested.note(float(n), taken=True)
    assert tested.norms == [float(n) for n in range(10, 60)]
    tested.note(math.nan, taken=False)
    assert (tested.skipped, tested.too_many()) == (1, False)
    tested.note(5.0, taken=True)
    tested.note(math.nan, taken=False)
    tested.note(math.nan, taken=False)
    assert (tested.skipped, tested.too_many()) == (2, True) and tested.norms[-1] == 5.0
