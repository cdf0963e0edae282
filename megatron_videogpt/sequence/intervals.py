"""Masks as two key intervals per query row (docs/attention.md).

A mask is an int32 tensor ``[L, 4]``: row q may look at the keys ``[a0, a1) U [b0, b1)``.  An empty interval is ``(0,
0)``. The same form describes key columns: which query rows look at a key.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dense_mask(intervals: Tensor, length: int | None = None) -> Tensor:
    """The boolean matrix ``[rows, length]`` that the intervals stand for; for tests and the
    `reference` backend only.
    """
    keys = torch.arange(length or intervals.shape[0], device=intervals.device)
    a0, a1, b0, b1 = intervals.long().unsqueeze(-1).unbind(1)
    return ((keys >= a0) & (keys < a1)) | ((keys >= b0) & (keys < b1))


def attended_pairs(intervals: Tensor) -> int:
    """Number of (query, key) pairs that attend: the work of attention, independent of any backend."""
    a0, a1, b0, b1 = intervals.long().unbind(1)
    return int((a1 - a0 + b1 - b0).sum())


def shift(intervals: Tensor, offset: int) -> Tensor:
    """Intervals of a sequence that starts at row `offset` of a packed row; empty intervals stay ``(0, 0)``."""
    first, second = intervals[:, :2], intervals[:, 2:]
    moved = [torch.where(pair[:, 1:] > pair[:, :1], pair + offset, 0) for pair in (first, second)]
    return torch.cat(moved, dim=1).to(torch.int32)


def padding_intervals(start: int, count: int, columns: bool = False) -> Tensor:
    """Rows (or columns) of `count` padding tokens at `start`: all of them look at the first one, so that no row is
    empty.
    """
    table = torch.zeros(count, 4, dtype=torch.int32)
    if not columns:
        table[:, 0], table[:, 1] = start, start + 1
    elif count:
        table[0, 0], table[0, 1] = start, start + count
    return table
