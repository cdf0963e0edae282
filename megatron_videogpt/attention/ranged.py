"""Attention as dense calls on the rectangles of the mask: the CPU default, portable to every device.

Saves q, k, v, the output and the log-sum-exp of the scores, nothing that grows with ``L * L``.  Rectangles of the same
rows are merged by their log-sum-exp; the backward of each needs only the final output and log-sum-exp of its rows, as
in FlashAttention (Dao et al. 2022, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sequence.row import CachedGroups
from .groups import Call, calls
from .plan import Costs

# Fitted on one core of an AMD EPYC (Zen 4, about 80 GFLOP/s) at the shapes of docs/benchmarks.md; the optimum is flat
# (a factor of 2 costs 3%). A call, forward and backward, takes as long as _CALL_FLOPS operations; a key and its
# gradients as much memory time as _KEY_ROWS pairs; a mask 6% more.
_CALL_FLOPS = 1.6e7
# Threads wait for each other at every call; fitted with two of them (docs/benchmarks.md).
_SHARED_CALL_FLOPS = 4 * _CALL_FLOPS
_KEY_ROWS = 8
_MASK_SHARE = 0.06
_SMALL_PAIRS = 1 << 18
"""Rectangles below this many pairs go backward in float32, whatever the inputs are: torch's kernel for half precision
takes two to ten times as long there (torch 2.13 on a processor with AMX), because it packs its operands in each call.
"""
_MATH_SCORES = 1 << 26
"""Scores that the path without a fused kernel holds at once."""


def _fused(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _heads(x: Tensor) -> Tensor:
    """``[L, H, d]`` as the ``[1, H, L, d]`` view that the kernels take."""
    return x.transpose(0, 1).unsqueeze(0)


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of ``[B, H, n, d]``: (output, log-sum-exp ``[B, H, rows]``)."""
    if _fused(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    outputs, sums = [], []
    for rows, part in _slices(q, k, mask):
        scores = _scores(rows, k, part, scale)
        sums.append(scores.logsumexp(-1))
        outputs.append(torch.exp(scores - sums[-1].unsqueeze(-1)).to(v.dtype) @ v)
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


def _slices(q: Tensor, k: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Query rows and their mask in portions whose scores fit the memory limit."""
    step = max(1, _MATH_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    masks = [None] * (-(-q.shape[2] // step)) if mask is None else mask.split(step)
    return list(zip(q.split(step, dim=2), masks))


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    return scores if mask is None else scores + mask


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, ...]:
    """Gradients for q, k, v of one rectangle, from the output and log-sum-exp of the *whole* rows."""
    if _fused(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale
        )
    grad_q, grad_k, grad_v, start = [], torch.zeros_like(k, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype), 0
    for rows, part in _slices(q, k, mask):
        here = slice(start, start + rows.shape[2])
        start = here.stop
        weights = torch.exp(_scores(rows, k, part, scale) - lse[:, :, here, None])
        inner = (grad[:, :, here] * out[:, :, here]).sum(-1, keepdim=True, dtype=lse.dtype)
        to_scores = (weights * ((grad[:, :, here] @ v.transpose(-1, -2)) - inner) * scale).to(q.dtype)
        grad_q.append(to_scores @ k)
        grad_k += to_scores.transpose(-1, -2) @ rows
        grad_v += weights.to(q.dtype).transpose(-1, -2) @ grad[:, :, here]
    return torch.cat(grad_q, dim=2), grad_k, grad_v


class _Ranged(torch.autograd.Function):
    """The calls of a plan, one after another."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, steps: tuple[Call, ...], scale: float) -> Tensor:
        """Rectangles that share rows are merged by their log-sum-exp; saves q, k, v, out and that."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(1, q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        queries, keys, values, outputs = _heads(q), _heads(_repeat(k, q)), _heads(_repeat(v, q)), _heads(out)
        for call in steps:
            part, part_lse = _forward(call.rows(queries), call.keys(keys), call.keys(values), _mask(call, q), scale)
            old, old_lse = call.rows(outputs), call.rows(lse)
            if call.box.first:
                old.copy_(part)
                old_lse.copy_(part_lse)
            else:
                old.lerp_(part, torch.sigmoid(part_lse - old_lse).unsqueeze(-1).to(part.dtype))
                torch.logaddexp(old_lse, part_lse, out=old_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.steps, ctx.scale = steps, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scores are computed again, call by call."""
        q, k, v, out, lse = ctx.saved_tensors
        # Sums over calls are kept in at least float32, whatever the inputs are.
        wide = [q, _repeat(k, q), _repeat(v, q)]
        sums = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in wide]
        grad_q, grad_k, grad_v = (_heads(x) for x in sums)
        given = [_heads(x) for x in (grads[0].contiguous(), *wide, out)]
        exact: list[Tensor] = []
        for call in ctx.steps:
            if not _in_float32(call, q):
                inputs = given
            else:
                # Of whole rows, once: a conversion for each call takes longer than its arithmetic.
                exact = inputs = exact or [x.float() for x in given]
            grad, queries, keys, values, outputs = inputs
            pairs = call.rows(grad), call.rows(queries), call.keys(keys), call.keys(values), call.rows(outputs)
            parts = _backward(*pairs, call.rows(lse), _mask(call, q), ctx.scale)
            call.rows(grad_q).add_(parts[0])
            call.keys(grad_k).add_(parts[1])
            call.keys(grad_v).add_(parts[2])
        return sums[0].to(q.dtype), _sum_heads(sums[1], k), _sum_heads(sums[2], v), None, None


def _in_float32(call: Call, x: Tensor) -> bool:
    box = call.box
    pairs = (box.row1 - box.row0) * (box.key1 - box.key0) // call.groups**2
    return _fused(x) and x.dtype != torch.float32 and pairs < _SMALL_PAIRS


def _mask(call: Call, x: Tensor) -> Tensor | None:
    return None if call.box.mask is None else call.box.mask.to(x.device)


def _repeat(x: Tensor, q: Tensor) -> Tensor:
    """Key-value heads repeated for the query heads that read them."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _sum_heads(grad: Tensor, x: Tensor) -> Tensor:
    """The reverse of `_repeat` for gradients."""
    return (grad if grad.shape == x.shape else grad.unflatten(1, (x.shape[1], -1)).sum(2)).to(x.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    scale: float,
    deterministic: bool = False,
    groups: tuple[int, int] | CachedGroups | None = None,
) -> Tensor:
    """Interval attention on any device; shapes as in `attention.attend`.  Calls are added in a fixed order,
    `deterministic` or not.
    """
    pair_flops = 14 * q.shape[1] * q.shape[2]
    call_flops = _CALL_FLOPS if torch.get_num_threads() == 1 else _SHARED_CALL_FLOPS
    costs = Costs(call=call_flops / pair_flops, key=_KEY_ROWS, mask=_MASK_SHARE)
    return _Ranged.apply(
        *(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)), calls(intervals, costs, groups), scale
    )
