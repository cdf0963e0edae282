"""Attention on Ascend NPUs: torch_npu's `npu_fusion_attention` on the rectangles of the mask.

A call returns its rows' largest scores and sums of exponentials, by which rectangles of the same rows are merged. The
operator's own derivative ignores what flows into these two, so the backward is written out: `npu_fusion_attention_grad`
for each rectangle, with the *merged* statistics and output of its rows.  What wheels from torch_npu 2.7.1 on share is
all that is used; gradients are taken by position, because releases return four or five.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plan import Costs, Rectangle, covering, table_of
from .tiles import memoised

CALL_SECONDS = 1e-4
PAIR_FLOPS_PER_SECOND = 2e14
KEY_PAIRS = 8
MASK_SHARE = 0.06
"""What `covering` weighs, all four assumed and none measured on a device: a call with its merge, forward and backward
(about ten launches); speed of the matrix units; a key with its gradients, and a mask, as in `ranged`.
"""
FINE = Costs(call=400, key=KEY_PAIRS, mask=MASK_SHARE)
"""Instead of a device's, by which the rows of a comparison are one rectangle: they become many, masked and not, of
which some are merged.
"""
_KEPT_BYTES = 1 << 30
"""Of plans, with their masks, that the host keeps: rows of a run's first stage are all alike, as are those of a
validation and the next one, and of one denoising step and the next.
"""
_BOX_BYTES = 1000
"""Of a rectangle's objects, about."""
_REPEATS = 8
"""Times that each softmax statistic stands in the last dimension."""


class Call(NamedTuple):
    """A rectangle with its mask on the device: bool, True hides, or None."""

    box: Rectangle
    hides: Tensor | None

    def rows(self, x: Tensor) -> Tensor:
        """Its rows of ``[L, ...]``, as a view."""
        return x[self.box.row0 : self.box.row1]

    def keys(self, x: Tensor) -> Tensor:
        """Its keys of ``[L, ...]``, as a view."""
        return x[self.box.key0 : self.box.key1]

    def mask(self) -> dict[str, Any]:
        """Arguments of the operator."""
        return {} if self.hides is None else {"atten_mask": self.hides, "sparse_mode": 1}


def costs(heads: int, head_dim: int) -> Costs:
    """What `covering` weighs, in pairs of so many heads."""
    pair_seconds = 14 * heads * head_dim / PAIR_FLOPS_PER_SECOND
    return Costs(call=CALL_SECONDS / pair_seconds, key=KEY_PAIRS, mask=MASK_SHARE)


def on_device(boxes: tuple[Rectangle, ...], device: torch.device) -> tuple[Call, ...]:
    """Rectangles of `covering` as calls; nothing waits for masks in pinned memory."""
    return tuple(Call(box, None if box.mask is None else ~box.mask.to(device, non_blocking=True)) for box in boxes)


def finely(intervals: Tensor, device: torch.device) -> tuple[Call, ...]:
    """See `attention.plan_finely`."""
    return on_device(covering(intervals, FINE), device)


class Ahead:
    """The rectangles of intervals, made on the host before a pass needs them; see `attention.plan_ahead`."""

    def __init__(self, intervals: Tensor, heads: int, head_dim: int, device: torch.device) -> None:
        assert intervals.device.type == "cpu"
        self.device, self.boxes = device, _kept(table_of(intervals), costs(heads, head_dim), device.type != "cpu")

    def send(self) -> tuple[Call, ...]:
        """Calls whose masks are on their way to the device."""
        return on_device(self.boxes, self.device)


class _Kept:
    """Plans by what they were made of: those used last that fit `_KEPT_BYTES`, one at least.  The thread that reads
    data asks, and the main one.
    """

    def __init__(self) -> None:
        # In the order of their last use.
        self._plans: dict[tuple[bytes, Costs, bool], tuple[Rectangle, ...]] = {}
        self._bytes, self._lock = 0, threading.Lock()

    def __call__(self, table: bytes, costs: Costs, pinned: bool) -> tuple[Rectangle, ...]:
        """Rectangles that cover a `table_of` intervals, their masks in pinned memory or not."""
        key = (table, costs, pinned)
        with self._lock:
            boxes = self._taken(key)
            if boxes is not None:
                self._put(key, boxes)
                return boxes
        boxes = covering(torch.frombuffer(bytearray(table), dtype=torch.int32).view(-1, 4), costs)
        if pinned:
            boxes = tuple(box if box.mask is None else replace(box, mask=box.mask.pin_memory()) for box in boxes)
        with self._lock:
            # The other thread may have made the same.
            self._taken(key)
            self._put(key, boxes)
            while self._bytes > _KEPT_BYTES and len(self._plans) > 1:
                self._taken(next(iter(self._plans)))
        return boxes

    def _taken(self, key: tuple[bytes, Costs, bool]) -> tuple[Rectangle, ...] | None:
        boxes = self._plans.pop(key, None)
        self._bytes -= 0 if boxes is None else _size(key[0], boxes)
        return boxes

    def _put(self, key: tuple[bytes, Costs, bool], boxes: tuple[Rectangle, ...]) -> None:
        self._plans[key] = boxes
        self._bytes += _size(key[0], boxes)

    def cache_clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._plans.clear()
            self._bytes = 0


def _size(table: bytes, boxes: tuple[Rectangle, ...]) -> int:
    """Bytes, about."""
    return len(table) + sum(_BOX_BYTES + (0 if box.mask is None else box.mask.nbytes) for box in boxes)


# Pure memoisation.
_kept = _Kept()


class Calls(torch.autograd.Function):
    """Calls that together cover every attended pair once; saves q, k, v, the output and two numbers a row and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, calls: tuple[Call, ...], scale: float) -> Tensor:
        """Shapes as in `attention.attend`."""
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(q.shape, dtype=wide, device=q.device)
        # [L, H, 1], as the rows of the output lie.
        most = torch.full((*q.shape[:2], 1), float("-inf"), dtype=torch.float32, device=q.device)
        total = torch.zeros_like(most)
        for call in calls:
            part, part_most, part_total = torch.ops.npu.npu_fusion_attention(
                *_batched(call.rows(q), call.keys(k), call.keys(v)), q.shape[1], "BSND", scale=scale, **call.mask()
            )[:3]
            part_most, part_total = (x[0, :, :, :1].transpose(0, 1) for x in (part_most, part_total))
            rows = call.rows(out), call.rows(most), call.rows(total)
            _merge(rows, (part[0], part_most, part_total), call.box.first)
        ctx.calls, ctx.scale = calls, scale
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, most, total)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Each rectangle's exact share, added up in float32."""
        q, k, v, out, most, total = ctx.saved_tensors
        given = grads[0].contiguous()
        sums = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
        for call in ctx.calls:
            statistics = {
                name: call.rows(x).transpose(0, 1).unsqueeze(0).expand(-1, -1, -1, _REPEATS).contiguous()
                for name, x in (("softmax_max", most), ("softmax_sum", total))
            }
            parts = torch.ops.npu.npu_fusion_attention_grad(
                *_batched(call.rows(q), call.keys(k), call.keys(v), call.rows(given)),
                q.shape[1],
                "BSND",
                attention_in=call.rows(out).unsqueeze(0),
                scale_value=ctx.scale,
                **statistics,
                **call.mask(),
            )[:3]
            for cut, x, part in zip((call.rows, call.keys, call.keys), sums, parts):
                cut(x).add_(part[0])
        return *(x.to(like.dtype) for x, like in zip(sums, (q, k, v))), None, None


def _batched(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``[n, H, d]`` as ``[1, n, H, d]``; copies nothing."""
    return tuple(x.unsqueeze(0) for x in tensors)


Results = tuple[Tensor, Tensor, Tensor]
"""Attention ``[rows, H, d]`` with its rows' largest scores and sums of exponentials, float32 ``[rows, H, 1]``."""


def _merge(rows: Results, found: Results, first: bool) -> None:
    """Take what a call found into what its rows have, in place."""
    if first:
        for old, new in zip(rows, found):
            old.copy_(new)
        return
    (out, most, total), (part, part_most, part_total) = rows, found
    # Rows that nobody wrote have -inf and 0, which weigh nothing.
    larger = torch.maximum(most, part_most)
    total.mul_(torch.exp(most - larger))
    weight = part_total * torch.exp(part_most - larger)
    total.add_(weight)
    out.lerp_(part.to(out.dtype), weight / total)
    most.copy_(larger)


def _planned(intervals: Tensor, costs: Costs, device: torch.device) -> tuple[Call, ...]:
    return on_device(_kept(table_of(intervals), costs, device.type != "cpu"), device)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    scale: float,
    deterministic: bool = False,
    plan: tuple[Call, ...] | None = None,
) -> Tensor:
    """Interval attention; shapes as in `attention.attend`.  float32, bfloat16 and float16; calls are added in a fixed
    order, `deterministic` or not.  plan: of `Ahead`; without it masks are sent to the device here, once for all layers,
    and the host waits for the intervals, to look for a plan of equal ones.
    """
    if plan is None:
        own = costs(q.shape[1], q.shape[2])
        plan = memoised(intervals, ("npu", own), lambda: _planned(intervals, own, q.device))
    assert max(call.box.row1 for call in plan) == len(q), "a plan of another mask"
    return Calls.apply(q, k, v, plan, scale)
