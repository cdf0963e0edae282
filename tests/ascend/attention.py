"""npu_fusion_attention and its gradient as documented for A2 and A3, with plain CPU tensors: batched layouts, sparse
modes 0 and 1.  Whatever the documentation forbids, and whatever is not modelled here, is a RuntimeError.

float32 is computed in float64, so that only the documented results are rounded.  16-bit tensors are multiplied as
kernels do it: probabilities and gradients of the scores are rounded to 16 bits before they meet values, keys and
queries, and sums are float32 (assumed; no document says so).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_limits import check_call, check_gradient, hidden, neutral

SHARED = ("atten_mask", "pre_tockens", "next_tockens", "sparse_mode", "inner_precise")
"""Options of the forward operator that its gradient takes under the same names, of those that are modelled."""
UNINITIALISED = (-0x5A5A5A5A5A5A, 0x7FFF5A5A5A5A, -0x0101010101)
"""What seed, offset and numels hold without dropout: memory that nobody wrote."""
REPEATS = 8
"""Times that each softmax statistic stands in the last dimension."""


def forward(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, *, scale: float, **options: Any
) -> tuple[Any, ...]:
    """(attention, softmax_max, softmax_sum, an empty tensor, seed, offset, numels); options as in the schema."""
    neutral(options, SHARED)
    shape = check_call(query, key, value, head_num, input_layout)
    mask = hidden(shape, options)
    q, k, v = (_heads(x, input_layout, n) for x, n in zip((query, key, value), shape.heads))
    scores = _scores(q, k, mask, scale)
    most = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - most)
    total = weights.sum(-1, keepdim=True)
    out = _narrow(weights, query) @ _repeat(v, q) / total
    statistics = [x.float().expand(*x.shape[:-1], REPEATS).contiguous() for x in (most, total)]
    return _stored(out, input_layout, query), *statistics, query.new_empty(0), *UNINITIALISED


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    softmax_max: Tensor | None,
    softmax_sum: Tensor | None,
    attention_in: Tensor | None,
    scale_value: float,
    **options: Any,
) -> tuple[Tensor, ...]:
    """(dq, dk, dv) of the pairs of this call, whose probabilities are those of the statistics that are given."""
    neutral(options, SHARED)
    shape = check_call(query, key, value, head_num, input_layout)
    most, total, attention = check_gradient(shape, query, dy, softmax_max, softmax_sum, attention_in)
    mask = hidden(shape, options)
    q, k, v = (_heads(x, input_layout, n) for x, n in zip((query, key, value), shape.heads))
    grad, out = (_heads(x, input_layout, head_num) for x in (dy, attention))
    weights = torch.exp(_scores(q, k, mask, scale_value) - most[..., :1].to(q.dtype)) / total[..., :1].to(q.dtype)
    inner = (grad * out).sum(-1, keepdim=True)
    to_scores = _narrow(weights * (grad @ _repeat(v, q).transpose(-1, -2) - inner) * scale_value, query)
    grad_q = to_scores @ _repeat(k, q)
    grad_k = _sum_groups(to_scores.transpose(-1, -2) @ q, k)
    grad_v = _sum_groups(_narrow(weights, query).transpose(-1, -2) @ grad, v)
    return tuple(_stored(x, input_layout, like) for x, like in zip((grad_q, grad_k, grad_v), (query, key, value)))


def _heads(x: Tensor, layout: str, heads: int) -> Tensor:
    """`[B, N, S, D]` in the dtype to compute in."""
    x = x.to(torch.float64 if x.dtype == torch.float32 else torch.float32)
    if layout in ("BSH", "SBH"):
        x = x.unflatten(-1, (heads, -1))
    return x.permute({"BNSD": (0, 1, 2, 3), "SBH": (1, 2, 0, 3)}.get(layout, (0, 2, 1, 3)))


def _stored(x: Tensor, layout: str, like: Tensor) -> Tensor:
    """The reverse of `_heads`, contiguous, in the dtype of `like`."""
    order = {"BNSD": (0, 1, 2, 3), "SBH": (2, 0, 1, 3)}.get(layout, (0, 2, 1, 3))
    return x.permute(order).reshape(like.shape).to(like.dtype).contiguous()


def _narrow(x: Tensor, like: Tensor) -> Tensor:
    """Rounded to what the matrix units take."""
    return x if like.dtype == torch.float32 else x.to(like.dtype).to(x.dtype)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ _repeat(k, q).transpose(-1, -2) * scale
    return scores if mask is None else scores.masked_fill(mask, float("-inf"))


def _repeat(x: Tensor, q: Tensor) -> Tensor:
    """Head i of the queries reads key-value head `i // (N / Nkv)`."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _sum_groups(grad: Tensor, x: Tensor) -> Tensor:
    return grad.unflatten(1, (x.shape[1], -1)).sum(2)
