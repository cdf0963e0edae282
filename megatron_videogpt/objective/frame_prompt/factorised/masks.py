"""The masks of packed videos for factorised layers, as intervals: tokens are stored frame by frame, and attention in
time goes by an order of its own, place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....sequence.intervals import padding_intervals
from ....sequence.row import Mask, grouped_mask
from .variant import PARTIAL, Variant, key_frames, repeats_frames, seen_in_time


class Extent(NamedTuple):
    """A video in a row: `frames` frames of `patches` tokens, of which the first `prompt` are given."""

    frames: int
    prompt: int
    patches: int

    @property
    def tokens(self) -> int:
        """In the row."""
        return self.frames * self.patches


def masks_of(extents: Sequence[Extent], length: int, variant: Variant) -> tuple[Mask, ...]:
    """A row's masks by the numbers of `model.factorised`: spatial, temporal and, where there is enhancement, that of
    the prompt; length: of the row, padding included.
    """
    found = (spatial_mask(extents, length), temporal_mask(extents, length, variant))
    return found if variant.enhance == "none" else (*found, prompt_mask(extents, length, variant))


def spatial_mask(extents: Sequence[Extent], length: int) -> Mask:
    """Patches of a frame see each other."""
    sizes = torch.tensor([extent.patches for extent in extents for _ in range(extent.frames)])
    first = sizes.cumsum(0) - sizes
    table = _table(first, first + sizes).repeat_interleave(sizes, dim=0)
    return grouped_mask(_padded(table, length), _leading([(int(size),) for size in sizes], extents[0].patches))


def temporal_mask(extents: Sequence[Extent], length: int, variant: Variant) -> Mask:
    """A patch sees its place in the frames that its frame sees; the order has the frames of a place side by side."""
    order, tables, start = [], [], 0
    for extent in extents:
        frames, prompt, patches = extent
        order.append((start + torch.arange(extent.tokens)).view(frames, patches).T.flatten())
        first = start + frames * torch.arange(patches).repeat(frames)
        seen = torch.tensor(seen_in_time(variant, frames, prompt)).repeat_interleave(patches)
        tables.append(_table(first, first + seen))
        start += extent.tokens
    alike = [
        (extent.frames, extent.prompt if variant.time == PARTIAL else 0)
        for extent in extents
        for _ in range(extent.patches)
    ]
    by_place = torch.cat([*order, torch.arange(start, length)])
    return grouped_mask(_padded(torch.cat(tables), length), _leading(alike, extents[0].frames), by_place)


def prompt_mask(extents: Sequence[Extent], length: int, variant: Variant) -> Mask:
    """Patches of a frame see those of the frames that `variant.key_frames` names.

    Where a frame counts several times beside others, its keys are there several times: the mask has a list of keys
    then, those of the row and behind them the repeated ones.
    """
    starts, ends, more, start = [], [], [], 0
    behind = length
    for extent in extents:
        frames, prompt, patches = extent
        repeated = repeats_frames(variant, prompt)
        for frame in range(frames):
            keys = key_frames(variant, frame, prompt)
            if repeated and frame >= prompt:
                starts.append(behind)
                ends.append(behind + len(keys) * patches)
            else:
                starts.append(start + keys[0] * patches)
                ends.append(start + (keys[-1] + 1) * patches)
        if repeated:
            keys = key_frames(variant, prompt, prompt)
            more += [torch.arange(start + key * patches, start + (key + 1) * patches) for key in keys]
            behind += len(keys) * patches
        start += extent.tokens
    sizes = torch.tensor([extent.patches for extent in extents for _ in range(extent.frames)])
    table = _padded(_table(torch.tensor(starts), torch.tensor(ends)).repeat_interleave(sizes, dim=0), length)
    if more:
        return Mask(table, torch.cat([torch.arange(length), *more]))
    first = extents[0]
    own_alone = variant.enhance == "prev_frames" and first.prompt > 0
    return grouped_mask(table, (first.prompt, first.patches)) if own_alone else Mask(table)


def text_intervals(extents: Sequence[Extent], words: Sequence[int], length: int) -> Tensor:
    """int32 ``[L, 4]``: each token sees all text tokens of its video, of which there are `words`, one video's after
    another's; padding sees the first one.
    """
    counts = torch.tensor(words)
    tokens = torch.tensor([extent.tokens for extent in extents])
    end = counts.cumsum(0)
    table = _table(end - counts, end).repeat_interleave(tokens, dim=0)
    return torch.cat([table, padding_intervals(0, 1).expand(length - len(table), -1)])


def _table(first: Tensor, end: Tensor) -> Tensor:
    nothing = torch.zeros_like(first)
    return torch.stack([first, end, nothing, nothing], dim=1).to(torch.int32)


def _padded(table: Tensor, length: int) -> Tensor:
    return torch.cat([table, padding_intervals(len(table), length - len(table))])


def _leading(kinds: Sequence[tuple[int, ...]], size: int) -> tuple[int, int]:
    """How many groups at the start are of one kind, and their size: the hint of `Mask.groups`."""
    return next((number for number, kind in enumerate(kinds) if kind != kinds[0]), len(kinds)), size
