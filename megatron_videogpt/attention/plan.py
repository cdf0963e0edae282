"""Covering an interval mask with few rectangles of (query rows x keys), each one dense attention call.

Rows with equal intervals form a group.  Neighbouring groups share a call when the pairs computed in vain cost less than
a call of their own: a hint token's single row joins its frame, small frames join one another, packed samples stay
apart.  The best cut of the groups into chunks is found by dynamic programming over a cost in units of one (row, key)
pair.  Before that, groups whose rows attend the same long history are stacked: one tall rectangle covers what all of
them attend, because kernels are slow where few rows meet many keys, and the chunks cover the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .chunks import TALL, Costs, Side, as_one, cut_into_chunks, joint_costs, side_costs, side_of

MASKED_OUT = -1e30
"""Added to scores that do not attend.  Finite: a row that sees nothing of a rectangle gets numbers to weigh with 0."""

_KEYS = 2048
"""Most keys of a rectangle without a mask: they, the values and the gradients of both stay in a core's cache."""


@dataclass(frozen=True)
class Rectangle:
    """Query rows ``[row0, row1)`` against keys ``[key0, key1)``.

    mask: float32 ``[rows, keys]`` to add to the scores (of `covering`: bool, True where a pair attends), or None if
    every pair attends.  first: no earlier rectangle wrote these rows.
    """

    row0: int
    row1: int
    key0: int
    key1: int
    mask: Tensor | None
    first: bool


class _Stack(NamedTuple):
    """Groups ``[first, end)`` whose rows all attend the keys ``[key0, key1)``, which one tall rectangle covers; none
    where these are equal.
    """

    first: int
    end: int
    key0: int
    key1: int


def _without(intervals: np.ndarray, key1: int) -> np.ndarray:
    """Intervals whose first one no longer holds the keys before `key1`."""
    rest = intervals.copy()
    rest[:, 0] = np.maximum(rest[:, 0], key1)
    rest[rest[:, 1] <= rest[:, 0], :2] = 0
    return rest


def _tall(starts: np.ndarray, groups: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts the groups where the first intervals start elsewhere or stop getting longer, and what lies between into
    parts of `TALL` rows or more.
    """
    start, stop = groups[:, 0], groups[:, 1]
    other = (start[1:] != start[:-1]) | (stop[1:] < stop[:-1]) | (stop[:-1] <= start[:-1])
    edges = [0, *(1 + np.flatnonzero(other)), len(groups)]
    for first, last in zip(edges, edges[1:]):
        for end in range(first + 1, last + 1):
            if end == last or min(starts[end] - starts[first], starts[last] - starts[end]) >= TALL:
                yield first, end
                first = end


def _stacks(starts: np.ndarray, groups: np.ndarray, costs: Costs) -> list[_Stack]:
    """All groups in order: stacks where a shared history makes the plan cheaper, and between them the longest runs of
    groups without.
    """
    stacks: list[_Stack] = []
    for first, end in _tall(starts, groups):
        own, edges = groups[first:end], starts[first : end + 1]
        rows, key0, key1 = int(edges[-1] - edges[0]), int(own[0, 0]), int(own[:, 1].min())
        if rows >= TALL and key1 > key0:
            shared = costs.call + (key1 - key0) * (costs.key + rows)
            if shared + cut_into_chunks(edges, _without(own, key1), costs)[1] < cut_into_chunks(edges, own, costs)[1]:
                stacks.append(_Stack(first, end, key0, key1))
                continue
        if stacks and stacks[-1].key0 == stacks[-1].key1:
            first = stacks.pop().first
        stacks.append(_Stack(first, end, 0, 0))
    return stacks


def _mask(intervals: np.ndarray, key0: int, key1: int) -> Tensor | None:
    """Which of the keys ``[key0, key1)`` rows see, None if all do; intervals ``[rows, 2 or 4]``."""
    pairs = [intervals[:, i : i + 2] for i in range(0, intervals.shape[1], 2)]
    if any((pair[:, 0] <= key0).all() and (pair[:, 1] >= key1).all() for pair in pairs):
        return None
    keys = np.arange(key0, key1, dtype=np.int32)
    sees = np.zeros((len(intervals), key1 - key0), dtype=bool)
    for pair in pairs:
        sees |= (keys >= pair[:, :1]) & (keys < pair[:, 1:])
    return None if sees.all() else torch.from_numpy(sees)


def _added(box: Rectangle) -> Rectangle:
    """With an additive mask."""
    return box if box.mask is None else replace(box, mask=torch.where(box.mask, 0.0, MASKED_OUT))


def _sighted(boxes: Iterable[Rectangle]) -> Iterator[Rectangle]:
    """Without rows that see none of their rectangle's keys: it is cut where they begin and end."""
    for box in boxes:
        if box.mask is None:
            yield box
            continue
        sees = np.concatenate([[0], box.mask.any(dim=1).numpy(), [0]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(sees)).reshape(-1, 2)
        for start, stop in edges.tolist():
            mask = box.mask[start:stop]
            keys = np.flatnonzero(mask.any(dim=0).numpy())
            low, high = int(keys[0]), int(keys[-1]) + 1
            part = mask[:, low:high]
            yield Rectangle(
                box.row0 + start,
                box.row0 + stop,
                box.key0 + low,
                box.key0 + high,
                None if bool(part.all()) else part.contiguous(),
                box.first,
            )


def _ranges(side: Side, cut: bool) -> list[tuple[int, int]]:
    """Key ranges that cover one interval of a chunk."""
    low, high, start, stop = (int(x[0]) for x in side)
    ranges = [(start, stop), (low, start), (stop, high)] if cut else [(low, high)]
    return [(k0, k1) for k0, k1 in ranges if k1 > k0]


def _rectangles(own: np.ndarray, row0: int, costs: Costs, first: bool) -> list[Rectangle]:
    """The rectangles of one chunk, in the arrangement that `cut_into_chunks` reckoned with.  own: intervals of its
    rows, of which the first is `row0`.
    """
    a, b = (as_one(side_of(own[:, i], own[:, i + 1])) for i in (0, 2))
    rows = np.array([len(own)])
    (cost_a, cut_a), (cost_b, cut_b) = side_costs(a, rows, costs), side_costs(b, rows, costs)
    if joint_costs(a, b, rows, costs)[0] <= cost_a[0] + cost_b[0]:
        parts = [(own, int(min(a.low[0], b.low[0])), int(max(a.high[0], b.high[0])))]
    else:
        parts = [(own[:, :2], *keys) for keys in _ranges(a, bool(cut_a[0]))] + [
            (own[:, 2:], *keys) for keys in _ranges(b, bool(cut_b[0]))
        ]
    row1 = row0 + len(own)
    return [
        Rectangle(row0, row1, k0, k1, _mask(part, k0, k1), first and number == 0)
        for number, (part, k0, k1) in enumerate(parts)
    ]


def _cut(box: Rectangle) -> list[Rectangle]:
    """A rectangle as ones of at most `_KEYS` keys, if it has no mask."""
    keys = box.key1 - box.key0
    parts = 1 if box.mask is not None else -(-keys // _KEYS)
    edges = [box.key0 + keys * number // parts for number in range(parts + 1)]
    return [
        replace(box, key0=edges[number], key1=edges[number + 1], first=box.first and number == 0)
        for number in range(parts)
    ]


def _boxes(table: bytes, costs: Costs) -> list[Rectangle]:
    """Rectangles with bool masks."""
    intervals = np.frombuffer(table, dtype=np.int32).reshape(-1, 4)
    starts = np.concatenate([[0], 1 + np.flatnonzero((intervals[1:] != intervals[:-1]).any(axis=1)), [len(intervals)]])
    groups = intervals[starts[:-1]].astype(np.int64)
    boxes: list[Rectangle] = []
    for stack in _stacks(starts, groups, costs):
        edges, alone = starts[stack.first : stack.end + 1], stack.key0 == stack.key1
        if not alone:
            boxes.append(Rectangle(int(edges[0]), int(edges[-1]), stack.key0, stack.key1, None, True))
        own, rows = (
            x if alone else _without(x, stack.key1)
            for x in (groups[stack.first : stack.end], intervals[edges[0] : edges[-1]])
        )
        for first, end in cut_into_chunks(edges, own, costs)[0]:
            row0, row1 = int(edges[first]), int(edges[end])
            boxes += _rectangles(rows[row0 - edges[0] : row1 - edges[0]], row0, costs, alone)
    return boxes


def table_of(intervals: Tensor) -> bytes:
    """Intervals as a key; waits for a device that they are on."""
    return intervals.detach().to("cpu", torch.int32).contiguous().numpy().tobytes()


@lru_cache(maxsize=8)
def _plan(table: bytes, costs: Costs) -> tuple[Rectangle, ...]:
    return tuple(_added(part) for box in _boxes(table, costs) for part in _cut(box))


def covering(intervals: Tensor, costs: Costs) -> tuple[Rectangle, ...]:
    """As `plan`, for kernels that must not meet a row that sees none of its keys, and need not spare a core's cache:
    no rectangle has such a row, those without a mask are whole, and masks are bool, True where a pair attends.  Not
    memoised.  first: no earlier rectangle wrote any of these rows; where it is False, one may have written some.
    """
    written = np.zeros(len(intervals), dtype=bool)
    boxes = []
    for box in _sighted(_boxes(table_of(intervals), costs)):
        boxes.append(replace(box, first=not written[box.row0 : box.row1].any()))
        written[box.row0 : box.row1] = True
    return tuple(boxes)


def plan(intervals: Tensor, costs: Costs) -> tuple[Rectangle, ...]:
    """Rectangles (masks on the CPU) that together cover every attended pair exactly once, and no other.

    intervals: int32 ``[Lq, 4]``, one row at least, on any device.  Memoised on their values, because every layer asks
    for the same ones.
    """
    return _plan(table_of(intervals), costs)
