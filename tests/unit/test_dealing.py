"""Samples dealt to ranks and rows by cost."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_videogpt.data.dealing import deal, fill_rows, row_ladder


@given(costs=st.lists(st.integers(0, 10**13), min_size=1, max_size=60), ranks=st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_dealing_keeps_grahams_bound(costs: list[int], ranks: int) -> None:
    """LPT is at most 4/3 - 1/(3m) of the best (Graham 1969), which is at least the mean, the largest cost, and two of
    the m+1 largest; exchanges only help.
    """
    groups = deal(np.array(costs), ranks)
    assert sorted(itertools.chain(*groups)) == list(range(len(costs))) and len(groups) == ranks
    largest = sorted(costs, reverse=True)
    pair = largest[ranks - 1] + largest[ranks] if len(costs) > ranks else 0
    top = max(sum(costs[i] for i in group) for group in groups)
    assert top >= max(Fraction(sum(costs), ranks), largest[0])
    if len(costs) <= ranks:
        assert top == largest[0]
    if len(costs) <= 8 and ranks <= 3:
        best = min(
            max(sum(c for c, r in zip(costs, where) if r == rank) for rank in range(ranks))
            for where in itertools.product(range(ranks), repeat=len(costs))
        )
        assert max(best, pair) == best <= top <= best * (Fraction(4, 3) - Fraction(1, 3 * ranks))


def test_dealing_improves_what_the_largest_first_gives() -> None:
    """The textbook case in which LPT ends at 11, where 9 is possible."""
    groups = deal(np.array([5, 5, 4, 4, 3, 3, 3]), 3)
    assert sorted(sorted([5, 5, 4, 4, 3, 3, 3][i] for i in group) for group in groups) == [[3, 3, 3], [4, 5], [4, 5]]


def test_dealing_many_samples_is_nearly_even_where_in_order_it_is_not() -> None:
    costs = np.rint(1e9 * np.random.default_rng(0).lognormal(0, 0.8, 640)).astype(np.int64)
    for ranks in (8, 64):
        dealt = [sum(costs[group]) for group in deal(costs, ranks)]
        assert max(dealt) < 1.01 * costs.sum() / ranks < costs.reshape(ranks, -1).sum(axis=1).max() / 1.05


@given(
    tokens=st.lists(st.integers(1, 50), min_size=0, max_size=40),
    ranks=st.integers(1, 5),
    budget=st.integers(50, 200),
    row_step=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_rows_hold_their_budget(tokens: list[int], ranks: int, budget: int, row_step: int) -> None:
    groups = [list(range(rank, len(tokens), ranks)) for rank in range(ranks)]
    costs = [size * size for size in tokens]
    filled = fill_rows(groups, tokens, costs, budget, row_step)
    assert [sorted(itertools.chain(*rows)) for rows in filled] == groups
    assert all(sum(tokens[i] for i in row) <= budget for rows in filled for row in rows)
    counts = {len(rows) for rows in filled}
    (count,) = counts
    # First fit needs at most twice the tokens' worth of rows.
    need = max(1, max(-(-sum(tokens[i] for i in group) // budget) for group in groups))
    assert count % row_step == 0 and need <= count < 2 * need + 1 + row_step
    sums = [[sum(costs[i] for i in row) for row in rows] for rows in filled]
    assert all(loads == sorted(loads, reverse=True) for loads in sums)


def test_rows_of_a_rank_are_balanced_by_cost() -> None:
    """Two long samples go into two rows, though one would hold both, and the short ones to the cheaper of them."""
    assert fill_rows([[0, 1, 2, 3]], [40, 38, 4, 2], [1600, 1444, 16, 4], 78) == [[[0], [1, 2, 3]]]
    assert fill_rows([[0, 1, 2, 3]], [50, 50, 50, 50], [10, 9, 8, 7], 100) == [[[0, 3], [1, 2]]]
    # Where balance and budget cannot both be had, the budget wins: 60+40 and 50+50 fill both rows, the costliest first
    # does not fit.
    assert fill_rows([[0, 1, 2, 3]], [60, 50, 50, 40], [90, 10, 80, 70], 100) == [[[0, 3], [1, 2]]]


@given(budget=st.integers(3, 100_000), count=st.integers(1, 100), multiple=st.integers(1, 16))
@settings(max_examples=150, deadline=None)
def test_ladders_cover_the_budget_in_even_steps(budget: int, count: int, multiple: int) -> None:
    ladder = row_ladder(budget, count, multiple, 3)
    assert 1 <= len(ladder) <= count and np.all(ladder % multiple == 0) and np.all(np.diff(ladder) > 0)
    assert budget <= ladder[-1] < budget + multiple and ladder[0] >= 3
    assert max(np.diff(ladder), default=0) < budget / count + multiple
