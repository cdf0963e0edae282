"""What a micro-batch is: one packed row of tokens with everything that model and loss need.

Nothing here knows an objective: its tokens come as named streams, its masks as intervals, its side inputs as contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class CachedGroups:
    """A hint of a mask under a cache: the first count * size tokens in the order of the queries form groups of size
    tokens, all under the pattern of the first one.

    blocks: (first, stride, width) for each of the two intervals: those of group g lie within the width keys from first
    + g * stride on, of which there are count * stride; width 0 where none of them sees anything.
    """

    count: int
    size: int
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Mask:
    """Which keys each token of a row of L tokens sees; a layer names its mask by number.

    intervals: int32 ``[L, 4]`` (`sequence.intervals`), one entry per token as stored.  order: int64 ``[L]``, the tokens
    in the order in which the intervals count: key number j is token ``order[j]``; None where that is the stored order.
    Under a cache both count in the rows of its buffers (`model.cache.CachedRow`): key number j is row ``order[j]``, and
    there may be more or fewer of them than tokens.  Without one, an order of another length lists keys alone, some of
    them several times, for queries as stored.

    groups: (count, size), a hint that the first count * size tokens of the order form groups of size tokens that see
    each other only, all by the same pattern, which a CPU computes in one call.  `grouped_mask` checks it; nothing does
    later.  Under a cache the hint is `CachedGroups`.

    queries: int64 ``[L]``, under a cache the tokens in the order in which they attend, which is no one's concern but
    the hint's; None for as stored.

    plan: what a backend worked out of it ahead of the pass (`model.ahead`), and which stays on the host until then;
    None of backends that do without, and wherever nobody did.
    """

    intervals: Tensor
    order: Tensor | None = None
    groups: tuple[int, int] | CachedGroups | None = None
    queries: Tensor | None = None
    plan: Any = None


def grouped_mask(intervals: Tensor, groups: tuple[int, int], order: Tensor | None = None) -> Mask:
    """A `Mask` with the hint `groups`, on the CPU; the intervals of every group must be written as those of the first.

    Raises ValueError, which says where, when the order is not one of all tokens, or when the first count * size tokens
    of the order are not groups that see each other only, all by the same pattern.
    """
    (count, size), length = groups, len(intervals)
    if order is not None and not torch.equal(order.sort().values, torch.arange(length)):
        raise ValueError(f"the order of {length} tokens has {len(order)} entries and not each token once")
    if count < 1 or size < 1 or count * size > length:
        raise ValueError(f"{count} groups of {size} tokens are not in a row of {length}")
    grouped = (intervals if order is None else intervals[order])[: count * size].view(count, size, 2, 2)
    offsets = torch.arange(0, count * size, size).view(count, 1, 1, 1)
    own = torch.where(grouped[..., 1:] > grouped[..., :1], grouped - offsets, 0)
    for wrong, what in (
        ((own < 0) | (own > size), "sees keys outside its group"),
        (own != own[0], "does not see of its group what the same token of the first group sees of its own"),
    ):
        if wrong.any():
            group, token = wrong.flatten(2).any(-1).nonzero()[0].tolist()
            seen = grouped[group, token].flatten().tolist()
            raise ValueError(f"token {token} of group {group} (of {count} x {size}), intervals {seen}, {what}")
    return Mask(intervals, order, groups)


@dataclass(frozen=True)
class Stream:
    """The tokens of one kind in a row, or in a shard of one.

    rows: int64 ``[n]``, where they stand, ascending; values: tensors with one entry for each of them (patches, ids,
    cells of a position table, the unit that a token belongs to).
    """

    rows: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Context:
    """A side input of layers.  per_token: one entry per token of the row, cut into shards as the tokens are; else it is
    whole on every rank (text features, a modulation of each frame).  plan: of intervals, as `Mask.plan`.
    """

    value: Tensor
    per_token: bool = False
    plan: Any = None


@dataclass(frozen=True)
class Row:
    """One packed row of L tokens, or a contiguous shard of l = L/CP of them, on one device.

    masks: of the whole row on every rank; positions: int64 ``[l]``, for RoPE; streams: the tokens by kind (those of
    padding are in none); scored: the stream whose outputs the head computes, n tokens; target: one entry per scored
    token, or empty when sampling; weight: float32 ``[n]``, share of each in its unit, 0 in samples that could not be
    read; units: tensors with one entry for each unit that the loss is a mean of (a frame), whole on every rank;
    counted: float32 ``[units]``, 1 for those that this shard counts (those of readable samples on the first one, none
    on the others); count: how many these are; context: side inputs of layers; identity: int64 ``[l]``, of each token
    (`sequence.identity`), which dropout goes by; None of an objective that does without.
    """

    masks: tuple[Mask, ...]
    positions: Tensor
    streams: dict[str, Stream]
    scored: str
    target: Tensor
    weight: Tensor
    counted: Tensor
    count: int
    units: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Context] = field(default_factory=dict)
    identity: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of the whole row, padding included."""
        return self.masks[0].intervals.shape[0]

    @property
    def intervals(self) -> Tensor:
        """Those of the first mask, int32 ``[L, 4]``."""
        return self.masks[0].intervals

    @property
    def scored_rows(self) -> Tensor:
        """int64 ``[n]``: where the tokens stand whose outputs the head computes."""
        return self.streams[self.scored].rows

    def to(self, device: torch.device) -> Row:
        """A copy on `device`, whose work until then the host does not wait for."""

        def move(value: Tensor) -> Tensor:
            # Only pinned memory is copied in the background.
            pinned = value.pin_memory() if device.type != "cpu" and value.device.type == "cpu" else value
            return pinned.to(device, non_blocking=True)

        return _with_tensors(self, move)

    def shard(self, rank: int, size: int) -> Row:
        """The contiguous part of a whole row that context parallel rank `rank` of `size` works on; `size` must divide
        the row's length.
        """
        if size == 1:
            return self
        assert self.length % size == 0 and self.positions.shape[0] == self.length
        each = self.length // size
        start = rank * each
        here = {name: (part.rows >= start) & (part.rows < start + each) for name, part in self.streams.items()}
        streams = {
            name: Stream(part.rows[here[name]] - start, {key: value[here[name]] for key, value in part.values.items()})
            for name, part in self.streams.items()
        }
        mine = here[self.scored]
        return replace(
            self,
            positions=self.positions[start : start + each],
            identity=None if self.identity is None else self.identity[start : start + each],
            streams=streams,
            # Targets are absent when sampling.
            target=self.target[mine] if len(self.target) == len(mine) else self.target,
            weight=self.weight[mine],
            counted=torch.zeros_like(self.counted) if rank else self.counted,
            count=0 if rank else self.count,
            context={
                name: replace(side, value=side.value[start : start + each]) if side.per_token else side
                for name, side in self.context.items()
            },
        )


def _with_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """A copy of nested dataclasses, dicts and tuples with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {name: _with_tensors(part, change) for name, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(_with_tensors(part, change) for part in value)  # type: ignore[return-value]
    if is_dataclass(value):
        parts: dict[str, Any] = {item.name: _with_tensors(getattr(value, item.name), change) for item in fields(value)}
        return replace(value, **parts)  # type: ignore[type-var]
    return value
