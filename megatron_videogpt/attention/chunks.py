"""The cheapest cut of the groups of an interval mask into chunks of neighbours, each covered by a call or a few.

Costs are in units of one (row, key) pair (`Costs`); what the chunks are for: `plan`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

_WIDTH = 96
"""Most units in a chunk."""

TALL, _MEDIUM = 768, 192
"""Rows from which on torch's CPU kernels work on 256 and on 64 rows at once (below: 32), and so read the keys less
often.
"""

_VAIN_CALLS = 2
"""What a packed sample computes in vain, in calls, for the search not to cut it: that would save one call at most, and
the search took an eighth of a step of eight samples of 93 tokens.
"""

_BEYOND = np.iinfo(np.int32).max
"""Behind every key."""


class Costs(NamedTuple):
    """What a call costs, in units of computing one (row, key) pair of all heads, forward and backward.

    call: fixed part.  key: reading one key and value and adding to their gradients.  mask: share added to a pair by a
    mask.
    """

    call: float
    key: float
    mask: float


class Side(NamedTuple):
    """One interval of several chunks at once: hull ``[low, high)`` of all rows' intervals and core ``[start, stop)``
    that all rows share.
    """

    low: np.ndarray
    high: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def join(self, other: Side) -> Side:
        """The same for chunks that are extended by others."""
        return Side(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.maximum(self.start, other.start),
            np.minimum(self.stop, other.stop),
        )

    def cut(self, rows: slice) -> Side:
        """Some of the chunks."""
        return Side(*(x[rows] for x in self))


def as_one(side: Side) -> Side:
    """One chunk of all."""
    low, high = side.low.min(keepdims=True), side.high.max(keepdims=True)
    return Side(low, high, side.start.max(keepdims=True), side.stop.min(keepdims=True))


def _effort(rows: np.ndarray) -> np.ndarray:
    """Time of one pair in rectangles of so many rows, relative to tall ones (measured with heads of 96:
    docs/benchmarks.md).
    """
    return np.where(rows >= TALL, 1.0, np.where(rows >= _MEDIUM, 1.17, 1.4))


def side_of(start: np.ndarray, stop: np.ndarray) -> Side:
    """One interval of every group; an empty one must neither widen a hull nor leave a core."""
    empty = stop <= start
    start, stop = np.where(empty, _BEYOND, start), np.where(empty, 0, stop)
    return Side(start, stop, start, stop)


def side_costs(side: Side, rows: np.ndarray, costs: Costs) -> tuple[np.ndarray, np.ndarray]:
    """(cost, whether to cut the hull into core and ragged ends) of covering one interval of each chunk."""
    hull = np.maximum(side.high - side.low, 0)
    core = np.maximum(side.stop - side.start, 0)
    plain = rows * _effort(rows)
    masked = plain * (1 + costs.mask)
    whole = costs.call + hull * (costs.key + np.where(core == hull, plain, masked))
    ends = (side.start > side.low).astype(np.int64) + (side.stop < side.high)
    split = costs.call * (1 + ends) + core * plain + (hull - core) * masked + hull * costs.key
    use_split = (core > 0) & (split < whole)
    return np.where(hull > 0, np.where(use_split, split, whole), 0), use_split


def joint_costs(a: Side, b: Side, rows: np.ndarray, costs: Costs) -> np.ndarray:
    """Cost of covering both intervals, and the gap between them, in one masked call; infinite where there
    is only one.
    """
    keys = np.maximum(a.high, b.high) - np.minimum(a.low, b.low)
    return np.where(
        (a.high > a.low) & (b.high > b.low),
        costs.call + keys * (costs.key + rows * _effort(rows) * (1 + costs.mask)),
        np.inf,
    )


class _Unit(NamedTuple):
    """Groups ``[first, end)`` that the search does not cut; alone: nor joins to others."""

    first: int
    end: int
    alone: bool


def _units(starts: np.ndarray, groups: np.ndarray, costs: Costs) -> list[_Unit]:
    """All groups in order.

    An island shares no key with the groups around it, as a packed sample.  Two of them that are worth a call each are
    cheaper apart, and cutting one saves at most what it computes in vain: where that is worth little, it is one unit.
    """
    a, b = (side_of(groups[:, i], groups[:, i + 1]) for i in (0, 2))
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    free = np.maximum.accumulate(high)[:-1] <= np.minimum.accumulate(low[::-1])[::-1][1:]
    attended = np.diff(starts) * (groups[:, 1::2] - groups[:, ::2]).clip(min=0).sum(axis=1)
    units: list[_Unit] = []
    for first, end in itertools.pairwise([0, *(1 + np.flatnonzero(free)), len(groups)]):
        pairs = (starts[end] - starts[first]) * max(int(high[first:end].max() - low[first:end].min()), 0)
        if pairs - attended[first:end].sum() <= _VAIN_CALLS * costs.call:
            units.append(_Unit(first, end, bool(pairs >= costs.call)))
        else:
            units += [_Unit(group, group + 1, False) for group in range(first, end)]
    return units


def _joined(side: Side, units: list[_Unit]) -> Side:
    """One interval of every unit, which follow each other, from that of every group."""
    begin = units[0].first
    here, starts = side.cut(slice(begin, units[-1].end)), [unit.first - begin for unit in units]
    return Side(
        np.minimum.reduceat(here.low, starts),
        np.maximum.reduceat(here.high, starts),
        np.maximum.reduceat(here.start, starts),
        np.minimum.reduceat(here.stop, starts),
    )


def _chunk_costs(a: Side, b: Side, rows: np.ndarray, costs: Costs) -> np.ndarray:
    """Cost of each chunk: its intervals apart, or together."""
    apart = side_costs(a, rows, costs)[0] + side_costs(b, rows, costs)[0]
    return np.minimum(apart, joint_costs(a, b, rows, costs))


def cut_into_chunks(starts: np.ndarray, groups: np.ndarray, costs: Costs) -> tuple[list[tuple[int, int]], float]:
    """The cheapest cut of the groups into chunks, as (first group, end group) in order, and its cost.

    groups: intervals ``[G, 4]``; starts ``[G + 1]``: first row of each, and the end of the last.
    """
    sides = [side_of(groups[:, i], groups[:, i + 1]) for i in (0, 2)]
    chunks: list[tuple[int, int]] = []
    total = 0.0
    for alone, some in itertools.groupby(_units(starts, groups, costs), lambda unit: unit.alone):
        units = list(some)
        a, b = (_joined(side, units) for side in sides)
        edges = starts[[unit.first for unit in units] + [units[-1].end]]
        if alone:
            found = [(number, number + 1) for number in range(len(units))]
            price = float(_chunk_costs(a, b, np.diff(edges), costs).sum())
        else:
            found, price = _cheapest(edges, a, b, costs)
        chunks += [(units[begin].first, units[stop - 1].end) for begin, stop in found]
        total += price
    return chunks, total


def _cheapest(starts: np.ndarray, a: Side, b: Side, costs: Costs) -> tuple[list[tuple[int, int]], float]:
    """The cheapest cut of units by dynamic programming, milliseconds for a hundred of them.

    a, b: the intervals of each unit; starts: its first row, and the end of the last.
    """
    count = len(starts) - 1
    wide_a, wide_b = a, b
    price, alone = np.full((count + 1, min(_WIDTH, count)), np.inf), np.zeros(count + 1)
    for width in range(1, price.shape[1] + 1):
        if width > 1:
            wide_a, wide_b = (
                wide.cut(slice(0, -1)).join(one.cut(slice(width - 1, None))) for wide, one in ((wide_a, a), (wide_b, b))
            )
        rows = starts[width:] - starts[: count + 1 - width]
        price[width:, width - 1] = _chunk_costs(wide_a, wide_b, rows, costs)
        if width == 1:
            alone[1:] = np.cumsum(price[1:, 0])
        # Waste grows faster with the width than calls are saved: once no chunk beats its own groups one by one, wider
        # ones will not.
        elif (price[width:, width - 1] > alone[width:] - alone[:-width]).all():
            break
    best, widths = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        most = min(price.shape[1], end)
        total = price[end, :most] + best[end - most : end][::-1]
        widths[end] = np.argmin(total) + 1
        best[end] = total[widths[end] - 1]
    chunks, end = [], count
    while end:
        chunks.append((end - int(widths[end]), end))
        end -= int(widths[end])
    return chunks[::-1], float(best[count])
