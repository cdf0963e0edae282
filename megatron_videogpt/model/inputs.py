"""What layers get in a pass of the model beside hidden states and positions.

It travels in megatron-core's argument `packed_seq_params`, which every layer gets untouched.  Full recomputation passes
that by closure, where a tensor with a gradient would send its second backward pass through the network behind it once
more.  So side inputs that are trained lie flattened in one tensor, megatron-core's `context`, and `LayerInputs` knows
where in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sequence.row import CachedGroups, Context, Mask
from .cache import Cached, CachedRow, cached_by


@dataclass(frozen=True)
class OrderedMask:
    """A mask as attention goes by it, made once a pass so that kernels know its tensors again in every layer.

    intervals: int32 ``[Lq, 4]`` of the queries, in the order of their attention.  order: int64, the number of key j
    among what the layer computed, or among the rows of a cache; None for keys as they are.  inverse: int64 ``[L]``, the
    place of each token in the order; None for the rows of a cache and for a list of keys.  all_queries: whether the
    queries are all L tokens, and so are put into the order too.  groups: see `Mask`, None without all queries, but
    under a cache.  queries, back: int64 ``[L]``, the number of each query among the tokens, and the place of each token
    among the queries, where these have an order of their own.  plan, plan_of_scored: see `attention.plan_ahead`.
    """

    intervals: Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None
    all_queries: bool = True
    groups: tuple[int, int] | CachedGroups | None = None
    queries: Tensor | None = None
    back: Tensor | None = None
    plan: Any = None
    plan_of_scored: Any = None

    def of_rows(self, intervals: Tensor) -> OrderedMask:
        """The same keys for the scored rows alone, with their intervals int32 ``[n, 4]``."""
        return replace(self, intervals=intervals, all_queries=False, groups=None, plan=self.plan_of_scored)


def ordered(mask: Mask, cached: bool, scored: bool = False, more: bool = False) -> OrderedMask:
    """A row's mask for a pass; cached: whether its keys are the rows of a cache; scored, more: of `MaskPlan.send`."""
    found = _ordered(mask, cached)
    if mask.plan is None or cached:
        return found
    plan, plan_of_scored = mask.plan.send(scored, more)
    return replace(found, plan=plan, plan_of_scored=plan_of_scored)


def with_plans_sent(context: dict[str, Context], scored: bool, more: bool) -> dict[str, Context]:
    """Side inputs of a row for a pass: their plans are both that `MaskPlan.send` gives."""
    return {
        name: side if side.plan is None else replace(side, plan=side.plan.send(scored, more))
        for name, side in context.items()
    }


def _ordered(mask: Mask, cached: bool) -> OrderedMask:
    if cached and mask.queries is not None:
        intervals = mask.intervals.index_select(0, mask.queries)
        return OrderedMask(intervals, mask.order, None, False, mask.groups, mask.queries, _inverse(mask.queries))
    if cached:
        return OrderedMask(mask.intervals, mask.order, all_queries=False)
    if mask.order is None:
        return OrderedMask(mask.intervals, groups=mask.groups)
    if len(mask.order) != len(mask.intervals):
        return OrderedMask(mask.intervals, mask.order, all_queries=False)
    intervals = mask.intervals.index_select(0, mask.order)
    return OrderedMask(intervals, mask.order, _inverse(mask.order), groups=mask.groups)


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


class ScoredRows(NamedTuple):
    """The rows of a packed row of L tokens that reach the head.

    rows: int64 ``[n]``, ascending; place: int32 ``[L]``, where in them each row is, or -1; intervals: int32 ``[n, 4]``,
    theirs in the last layer's mask.
    """

    rows: Tensor
    place: Tensor
    intervals: Tensor


def scored_rows(rows: Tensor, intervals: Tensor) -> ScoredRows:
    """`ScoredRows` of row numbers int64 ``[n]`` and the intervals ``[L, 4]`` of all rows."""
    place = torch.full((len(intervals),), -1, dtype=torch.int32, device=rows.device)
    place[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    return ScoredRows(rows, place, intervals.index_select(0, rows))


class Slot(NamedTuple):
    """Where a trained side input lies in the tensor of all of them.  start: first element; per_token: see `Context`."""

    start: int
    shape: torch.Size
    per_token: bool


def join_trained(sides: dict[str, Context]) -> tuple[Tensor | None, dict[str, Slot]]:
    """All trained side inputs in one tensor, of the widest of their dtypes, and where each lies in it; None of none."""
    slots, start = {}, 0
    for name, side in sides.items():
        slots[name] = Slot(start, side.value.shape, side.per_token)
        start += side.value.numel()
    return torch.cat([side.value.flatten() for side in sides.values()]) if sides else None, slots


@dataclass(frozen=True)
class LayerInputs:
    """What a layer finds in its argument `packed_seq_params`, for a shard of l tokens.

    masks: of the row; scored: the rows that the last layer is to compute, None for all; cached: where keys and values
    are kept; fixed: side inputs of the row; slots: of the trained ones; part, parts: under sequence parallelism, which
    of how many equal parts of the l tokens this rank has the hidden states of between layers; identity: int64, of these
    tokens, what dropout goes by; None where nothing is dropped.
    """

    masks: tuple[OrderedMask, ...]
    scored: ScoredRows | None = None
    cached: Cached | None = None
    fixed: dict[str, Context] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    part: int = 0
    parts: int = 1
    identity: Tensor | None = None

    def cached_by(self, mask: int) -> CachedRow | None:
        """Where the keys and values are kept of the attention that goes by this mask; None for nowhere."""
        return cached_by(self.cached, mask)

    def identity_of(self, rows: Tensor | None) -> Tensor | None:
        """`identity` of these rows only, int64 ``[n]``; None for all."""
        return self.identity if self.identity is None or rows is None else self.identity.index_select(0, rows)

    def side(self, name: str, context: Tensor | None) -> Tensor:
        """A side input as it is: whole, or ``[l, ...]`` if it is per token.

        context: what the layer got under that name, which holds the trained ones.  Raises KeyError for a name that
        neither the row nor the network's `sides` have.
        """
        slot = self.slots.get(name)
        if slot is None:
            return self.fixed[name].value
        assert context is not None
        return context.narrow(0, slot.start, slot.shape.numel()).view(slot.shape)

    def plan_of_side(self, name: str, of_scored: bool) -> Any:
        """Of a side input of intervals, or of the scored rows' alone: see `attention.plan_ahead`; None without one."""
        plans = self.fixed[name].plan
        return None if plans is None else plans[int(of_scored)]

    def side_here(self, name: str, context: Tensor | None) -> Tensor:
        """A side input per token for the hidden states between layers: ``[l, ...]``, and under sequence parallelism
        this rank's part of it ``[l/TP, ...]``.

        Raises KeyError as `side` does.
        """
        whole = self.side(name, context)
        each = len(whole) // self.parts
        return whole.narrow(0, self.part * each, each)
