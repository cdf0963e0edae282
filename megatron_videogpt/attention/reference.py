"""Attention with a dense boolean mask: slow, plain, the oracle of every other backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sequence.intervals import dense_mask


def attend(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = False) -> Tensor:
    """softmax(scale * q k^T, where the intervals allow) v, in float32 (float64 for float64 inputs).

    q ``[Lq, H, d]``, k and v ``[Lk, Hkv, d]`` with Hkv dividing H, intervals int32 ``[Lq, 4]`` -> ``[Lq, H, d]`` in q's
    dtype. Memory grows with ``H * Lq * Lk``.  It is as deterministic as torch's matrix products, whatever
    `deterministic` says.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    heads = q.shape[1] // k.shape[1]
    queries = q.to(exact).transpose(0, 1)
    keys, values = (x.to(exact).transpose(0, 1).repeat_interleave(heads, dim=0) for x in (k, v))
    scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(~dense_mask(intervals, k.shape[0]), float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
