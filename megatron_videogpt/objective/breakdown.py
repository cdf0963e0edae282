"""The loss of a video's frames apart: by their place in it, by how many clean frames they have before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sequence.row import Row
from .base import Metric

MOST = 8
"""Groups of equal size."""


@dataclass(frozen=True)
class Breakdown:
    """Groups of units by a whole number that each has, counted in validation alone.

    number: its name in `Row.units`; groups: (first, last) of each, both in it; label: of the drawing, with a place for
    the group.
    """

    number: str
    groups: tuple[tuple[int, int], ...]
    label: str

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One for each group, such as ``frame_loss_4-7``."""
        return tuple(
            Metric(f"{self.number}_loss_{name}", f"loss_by_{self.number}", self.label.format(name), held_out=True)
            for name in map(_name, self.groups)
        )

    def inside(self, row: Row) -> Tensor:
        """bool ``[groups, units]``: which units each has."""
        number = row.units[self.number]
        # Numbers, not a tensor of them, which a device would have to wait for.
        return torch.stack([(number >= first) & (number <= last) for first, last in self.groups])


def _name(group: tuple[int, int]) -> str:
    first, last = group
    return f"{first}" if first == last else f"{first}-{last}"


def equal(count: int) -> tuple[tuple[int, int], ...]:
    """Numbers 0 to count - 1 in at most `MOST` groups, equal ones but for the last."""
    size = -(-count // MOST)
    return tuple((first, min(first + size, count) - 1) for first in range(0, count, size))


def doubling(count: int) -> tuple[tuple[int, int], ...]:
    """Numbers 0 to count - 1 as 0, 1, 2-3, 4-7, 8-15 and so on: what one more adds is the less, the more there are."""
    starts = [0, *(2**power for power in range(max(0, count - 1).bit_length()))]
    return tuple((first, min(end, count) - 1) for first, end in zip(starts, [*starts[1:], count]))


def grouped(values: Tensor, counted: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts of groups, float32 and int64 ``[groups]``, of a value per unit and whether it counts ``[units]``.

    A later shard of a row adds to the loss of units that the first one counts.
    """
    # Not index_add, which adds in another order, and so to other last digits, in every run on a GPU.
    sums = values.float().expand(inside.shape).masked_fill(~inside, 0.0).sum(dim=1)
    return sums, counted.long().expand(inside.shape).masked_fill(~inside, 0).sum(dim=1)


def by_place(frames: int) -> tuple[Breakdown, ...]:
    """Of videos of so many frames: by a frame's number, and by how many clean frames its clip sees; none for 0."""
    if not frames:
        return ()
    return Breakdown("frame", equal(frames), "frame {}"), Breakdown("history", doubling(frames), "{} frames before")


def by_prompt(prompts: tuple[int, ...], chunk: int) -> tuple[Breakdown, ...]:
    """Of chunks behind prompts of these lengths: by a frame's number behind the prompt, and by the prompt's length;
    none for a chunk of 0.
    """
    if not chunk:
        return ()
    lengths = sorted({0, *prompts})
    groups = tuple((length, length) for length in lengths) if len(lengths) <= MOST else doubling(lengths[-1] + 1)
    return Breakdown("frame", equal(chunk), "frame {} behind"), Breakdown("history", groups, "prompt of {}")
