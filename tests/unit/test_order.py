"""Permutations, mixtures and cost buckets: each sample once, shares as asked for, orders that all look alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare, spearmanr

from megatron_videogpt.data.order import bucketed, mixture_pattern, permute, splitmix64

UNLIKELY = 1e-4


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of the reference implementation seeded with 0 and with 1234567 (Vigna's splitmix64.c)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(3, dtype=np.uint64) * golden
    assert [f"{value:016x}" for value in splitmix64(states).tolist()] == [
        "e220a8397b1dcdaf",
        "6e789e6aa1b965f4",
        "06c45d188009454f",
    ]
    assert splitmix64(states + np.uint64(1234567)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert states.tolist() == [0, int(golden), 2 * int(golden) % 2**64]


@given(length=st.integers(1, 3000) | st.integers(1, 40), key=st.integers(0, 2**64 - 1))
@settings(max_examples=80, deadline=None)
def test_permutations_send_every_index_somewhere_else(length: int, key: int) -> None:
    sent = permute(np.arange(length), length, key)
    assert np.array_equal(np.sort(sent), np.arange(length))
    some = np.arange(0, length, 7)
    assert np.array_equal(permute(some[::-1], length, key), sent[some[::-1]])
    for outside in ([-1], [0, length]):
        with pytest.raises(ValueError, match="must be in"):
            permute(outside, length, key)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_permutations_of_short_lists_are_all_alike(length: int) -> None:
    """Each of the length! orders as often as any other, over 24,000 keys."""
    seen = Counter(tuple(permute(np.arange(length), length, key).tolist()) for key in range(24_000))
    orders = int(np.prod(np.arange(1, length + 1)))
    expected = 24_000 / orders
    statistic = sum((count - expected) ** 2 / expected for count in seen.values()) + (orders - len(seen)) * expected
    assert chi2.sf(statistic, orders - 1) > UNLIKELY


def test_long_permutations_look_random() -> None:
    """70 million places (Panda-70M): no copies among a hundred thousand, ends alike, no trend, and neighbours land
    anywhere.
    """
    length, key = 70_000_000, 5
    sent = permute(np.arange(100_000), length, key)
    assert len(set(sent.tolist())) == 100_000 and sent.min() >= 0 and sent.max() < length
    assert chisquare(np.bincount(sent * 100 // length, minlength=100)).pvalue > UNLIKELY
    assert chisquare(np.bincount(np.diff(sent) % length * 100 // length, minlength=100)).pvalue > UNLIKELY
    assert abs(spearmanr(np.arange(100_000), sent)[0]) < 5 / 100_000**0.5
    assert (permute(np.arange(100_000), length, key + 1) == sent).mean() < 1e-3
    assert permute([0, 1, 2, length - 1], length, key).tolist() == [13627458, 10502961, 34845340, 20332247]


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_mixtures_keep_their_shares_at_every_place(weights: list[float]) -> None:
    pattern, counts, before = mixture_pattern(weights)
    length = len(pattern)
    assert np.array_equal(np.bincount(pattern, minlength=len(weights)), counts) and counts.min() >= 1 and length <= 4096
    came = np.cumsum(pattern[:, None] == np.arange(len(weights)), axis=0)
    assert np.all(np.abs(came * length - np.arange(1, length + 1)[:, None] * counts) < length)
    assert np.array_equal(before, came[np.arange(length), pattern] - 1)
    shares = np.array(weights) / sum(weights)
    # To 1/4096, or where a weight is smaller than that, what its one place takes from the others.
    assert np.all(np.abs(counts / length - shares) <= (1 + len(weights)) / 4096)


def test_mixtures_are_short_where_they_can_be() -> None:
    assert mixture_pattern([0.2, 0.8])[0].tolist() == [1, 1, 1, 0, 1]
    assert [len(mixture_pattern(weights)[0]) for weights in ([3.0], [1, 1, 1], [0.25, 0.75], [0.1, 0.33, 0.57])] == [
        1,
        3,
        4,
        100,
    ]
    assert mixture_pattern([1e-9, 1.0])[1].tolist() == [1, 4095]
    for wrong in ([], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ValueError, match="data.mixture"):
            mixture_pattern(wrong)


@given(windows=st.integers(1, 12), batch=st.integers(1, 20), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_buckets_hold_neighbours_in_cost_and_each_sample_once(windows: int, batch: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 30, windows * batch)
    order = bucketed(costs, batch, seed)
    assert np.array_equal(np.sort(order), np.arange(windows * batch)) and np.array_equal(
        order, bucketed(costs, batch, seed)
    )
    groups = order.reshape(windows, batch)
    assert np.array_equal(np.sort(groups, axis=1), groups)
    # Sorted by their cheapest sample, batches do not overlap in cost.
    spans = sorted((int(costs[group].min()), int(costs[group].max())) for group in groups)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:]))


def test_batches_of_a_window_come_in_any_order() -> None:
    costs = np.arange(40)
    firsts = [bucketed(costs, 10, key)[0] // 10 for key in range(4000)]
    assert chisquare(np.bincount(firsts, minlength=4)).pvalue > UNLIKELY
