"""Attention on Ascend NPUs with the whole mask in one call of `npu_fusion_attention`: the second opinion on `npu`.  It
holds a matrix of a byte for each pair of rows and keys.
"""

from __future__ import annotations

from torch import Tensor

from ..sequence.intervals import dense_mask
from .npu import Call, Calls
from .plan import Rectangle
from .tiles import memoised


def _call(intervals: Tensor, keys: int) -> tuple[Call, ...]:
    hides = ~dense_mask(intervals, keys)
    return (Call(Rectangle(0, len(intervals), 0, keys, None, True), hides),)


def attend(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = False) -> Tensor:
    """Interval attention; shapes, dtypes and determinism as in `npu.attend`."""
    calls = memoised(intervals, ("npu_dense", len(k)), lambda: _call(intervals, len(k)))
    return Calls.apply(q, k, v, calls, scale)
