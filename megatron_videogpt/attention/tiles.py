"""Which tiles of a mask attend, in part or in full: what block-sparse kernels walk.  Computed from the intervals by
arithmetic, never from a dense mask.

Work and memory grow with rows + tiles, everything happens on the intervals' device, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Pure memoisation: every layer, and every layer that is computed again, asks for the tiles of the same tensor.
_built: dict[tuple[Hashable, ...], tuple[StorageWeakRef, int, Any]] = {}


class TileLists(NamedTuple):
    """For each of R tiles of one side, the tiles of the other side that it attends; int32, on the intervals' device.

    partial_count ``[R]``, partial ``[R, C]``: tiles in which some pairs attend, ascending; the first `partial_count`
    entries of a row count, the others are 0.  full_count, full: the same for tiles in which all pairs attend.
    """

    partial_count: Tensor
    partial: Tensor
    full_count: Tensor
    full: Tensor


def _joined(intervals: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both intervals of every row as int64 (start, stop), adjacent ones joined into the first: a tile across their seam
    can be full.
    """
    a0, a1, b0, b1 = intervals.long().unbind(1)
    both = (a1 > a0) & (b1 > b0)
    after, before = both & (a1 == b0), both & (b1 == a0)
    seam = after | before
    return [
        (torch.where(before, b0, a0), torch.where(after, b1, a1)),
        (torch.where(seam, 0, b0), torch.where(seam, 0, b1)),
    ]


def _covered(spans: list[tuple[Tensor, Tensor]], row_tiles: Tensor, shape: tuple[int, int]) -> Tensor:
    """How many spans ``[first, last)`` of tiles cover each tile: int32 ``[R, C]``, from the differences
    at their ends.
    """
    steps = torch.zeros(shape[0] * (shape[1] + 1), dtype=torch.int32, device=row_tiles.device)
    for first, last in spans:
        valid = (last > first).to(torch.int32)
        base = row_tiles * (shape[1] + 1)
        # Integer sums are exact in any order, so that the device may add in any.
        steps.index_add_(0, base + first.clamp(max=shape[1]), valid)
        steps.index_add_(0, base + last.clamp(max=shape[1]), -valid)
    return steps.unflatten(0, (shape[0], shape[1] + 1)).cumsum(1, dtype=torch.int32)[:, :-1]


def tiles(intervals: Tensor, row_tile: int, key_tile: int, keys: int | None = None) -> tuple[Tensor, Tensor]:
    """Which tiles attend in part and which in full: two bool ``[ceil(rows / row_tile), ceil(keys / key_tile)]``, never
    both true.

    intervals: int32 ``[rows, 4]``; keys: how many there are, None for as many as rows.  A last tile of fewer than
    `row_tile` rows is full when its rows attend all its keys; a last tile of fewer than `key_tile` keys is never full,
    because kernels read beyond its end.
    """
    rows = intervals.shape[0]
    shape = (-(-rows // row_tile), -(-(rows if keys is None else keys) // key_tile))
    pairs = _joined(intervals)
    row_tiles = torch.arange(rows, device=intervals.device) // row_tile
    present = torch.full((shape[0], 1), row_tile, dtype=torch.int32, device=intervals.device)
    if rows % row_tile:
        present[-1].fill_(rows % row_tile)
    empty = [stop <= start for start, stop in pairs]
    touching = [
        (torch.where(none, 0, start // key_tile), torch.where(none, 0, (stop + key_tile - 1) // key_tile))
        for (start, stop), none in zip(pairs, empty)
    ]
    inside = [((start + key_tile - 1) // key_tile, stop // key_tile) for start, stop in pairs]
    full = _covered(inside, row_tiles, shape) == present
    return (_covered(touching, row_tiles, shape) > 0) & ~full, full


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen tiles ``[R, C]`` as (how many per row ``[R]``, their numbers ``[R, C]``)."""
    rows, columns = chosen.shape
    place = torch.where(chosen, chosen.cumsum(1) - 1, columns)
    numbers = torch.arange(columns, dtype=torch.int32, device=chosen.device).expand(rows, columns)
    # What is not chosen lands in a column of its own.
    listed = torch.zeros(rows, columns + 1, dtype=torch.int32, device=chosen.device).scatter_(1, place, numbers)
    return chosen.sum(1, dtype=torch.int32), listed[:, :columns].contiguous()


def tile_lists(intervals: Tensor, row_tile: int, key_tile: int, keys: int | None = None) -> tuple[TileLists, TileLists]:
    """(for every tile of rows its tiles of keys, for every tile of keys its tiles of rows); arguments as in `tiles`."""
    partial, full = tiles(intervals, row_tile, key_tile, keys)
    by_row, by_key = (TileLists(*_listed(a), *_listed(b)) for a, b in ((partial, full), (partial.T, full.T)))
    return by_row, by_key


def memoised(intervals: Tensor, what: Hashable, build: Callable[[], Any]) -> Any:
    """`build()`, kept for as long as the intervals' memory lives unchanged; what: names what is built.

    Keyed by the storage and not the tensor object: activation recomputation detaches its arguments, which makes new
    objects of the same memory.
    """
    storage = intervals.untyped_storage()
    key = (storage._cdata, intervals.storage_offset(), intervals.shape, intervals.stride(), what)
    # The weak reference keeps the storage's address from being given to another one, so that an entry cannot be taken
    # for a later tensor's.
    reference, version, value = _built.get(key, (None, -1, None))
    if reference is None or reference.expired() or version != intervals._version:
        for old in [old for old, entry in _built.items() if entry[0].expired()]:
            del _built[old]
        value = build()
        _built[key] = (StorageWeakRef(storage), intervals._version, value)
    return value
