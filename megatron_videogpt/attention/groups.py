"""What `ranged` computes: equal groups of tokens in one batched call, other rows by the rectangles of their plan."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sequence.intervals import dense_mask
from ..sequence.row import CachedGroups
from .plan import MASKED_OUT, Costs, Rectangle, plan


class Call(NamedTuple):
    """A rectangle whose rows and keys are both cut into so many equal groups: each attends its own keys, all under the
    one mask ``[rows / groups, keys / groups]``.  width: leading keys of each group that are attended, 0 for all.
    """

    box: Rectangle
    groups: int = 1
    width: int = 0

    def rows(self, x: Tensor) -> Tensor:
        """Queries (or what belongs to them) ``[1, H, L, ...]`` -> a view ``[groups, H, rows / groups, ...]``."""
        return self._cut(x, self.box.row0, self.box.row1)

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values ``[1, H, L, d]`` -> a view ``[groups, H, keys / groups, d]``, or of their width."""
        part = self._cut(x, self.box.key0, self.box.key1)
        return part[:, :, : self.width] if self.width else part

    def _cut(self, x: Tensor, start: int, stop: int) -> Tensor:
        part = x[:, :, start:stop]
        return part if self.groups == 1 else part[0].unflatten(1, (self.groups, -1)).transpose(0, 1)


@lru_cache(maxsize=8)
def _pattern(table: bytes, keys: int) -> Tensor | None:
    """Additive mask of one group and so many keys from its intervals, None if its tokens see all of them."""
    intervals = torch.from_numpy(np.frombuffer(table, dtype=np.int32).reshape(-1, 4).copy())
    sees = dense_mask(intervals, keys)
    return None if sees.all() else torch.where(sees, 0.0, MASKED_OUT)


def calls(intervals: Tensor, costs: Costs, groups: tuple[int, int] | CachedGroups | None) -> tuple[Call, ...]:
    """Calls that together cover every attended pair exactly once, and no other.

    intervals: int32 ``[Lq, 4]``, one row at least, on any device; groups: of the first rows and keys, as
    `sequence.row.Mask` has it, or None.
    """
    if groups is None:
        return tuple(map(Call, plan(intervals, costs)))
    count, size = (groups.count, groups.size) if isinstance(groups, CachedGroups) else groups
    together = count * size
    own = intervals[:size].detach().to("cpu", torch.int32).contiguous()
    if isinstance(groups, CachedGroups):
        batches = _behind(own, groups)
    else:
        batches = [Call(Rectangle(0, together, 0, together, _pattern(own.numpy().tobytes(), size), True), count)]
    rest = plan(intervals[together:], costs) if len(intervals) > together else ()
    return (*batches, *(Call(replace(box, row0=box.row0 + together, row1=box.row1 + together)) for box in rest))


def _behind(own: Tensor, groups: CachedGroups) -> list[Call]:
    """One call for each block of keys.  own: the first group's intervals."""
    found: list[Call] = []
    for number, (first, stride, width) in enumerate(groups.blocks):
        if not width:
            continue
        table = torch.zeros_like(own)
        table[:, :2] = own[:, 2 * number : 2 * number + 2] - first
        mask = _pattern(table.numpy().tobytes(), width)
        box = Rectangle(0, groups.count * groups.size, first, first + groups.count * stride, mask, not found)
        found.append(Call(box, groups.count, width))
    return found
