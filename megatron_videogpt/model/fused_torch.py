"""RMSNorm, SwiGLU and the cut of a joint projection into rotated queries, keys and values, forward and backward, in
plain torch for any device.

Tensors are ``[rows, ...]`` with contiguous rows.  `fused_triton` has the same functions for CUDA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x ``[rows, D]``, weight ``[D]`` -> (``x / rms(x)`` rounded to x's dtype, times weight; the reciprocal of rms(x)
    ``[rows]``, at least float32).
    """
    exact = x.to(_exact(x.dtype))
    rstd = torch.rsqrt(exact.square().mean(-1) + eps)
    return (exact * rstd[:, None]).to(x.dtype) * weight, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight."""
    wide, normed = grad.to(rstd.dtype, copy=True), x.to(rstd.dtype, copy=True).mul_(rstd[:, None])
    grad_weight = (wide * normed.to(x.dtype)).sum(0).to(weight.dtype)
    wide.mul_(weight)
    inner = (wide * normed).mean(-1, keepdim=True)
    # In place: on a CPU every array of this size costs as much as the arithmetic.
    return wide.addcmul_(normed, inner, value=-1).mul_(rstd[:, None]).to(x.dtype), grad_weight


def swiglu(x: Tensor) -> Tensor:
    """``[rows, 2F]`` -> silu of the first half times the second ``[rows, F]``."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of x from that of `swiglu`'s output ``[rows, F]``."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    (gate, up), (to_gate, to_up) = x.chunk(2, dim=-1), grad_x.chunk(2, dim=-1)
    # In place: these are the widest tensors of a layer, and its backward pass is where a step needs most memory.
    torch.mul(grad, up, out=to_gate)
    torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
    torch.ops.aten.silu.out(gate, out=to_up).mul_(grad)
    return grad_x


def _turn(x: Tensor, angles: Tensor | None, sign: int, out: Tensor) -> None:
    """x ``[rows, ..., d]`` rotated by sign * angles ``[rows, d]`` in half-split form, channel i and i + d/2 being a
    pair, into `out` of x's shape and dtype; as it is without angles.
    """
    if angles is None:
        out.copy_(x)
        return
    exact = x.to(_exact(x.dtype))
    half = x.shape[-1] // 2
    angle = angles[:, :half].to(exact.dtype).reshape(len(x), *[1] * (x.dim() - 2), half)
    cos, sin = angle.cos(), sign * angle.sin()
    # Whole rows at once: loops over half of them are too short for a CPU.
    turned = torch.cat([exact[..., half:], exact[..., :half]], dim=-1).mul_(torch.cat([-sin, sin], dim=-1))
    out.copy_(turned.addcmul_(exact, torch.cat([cos, cos], dim=-1)))


def _of(angles: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return angles if angles is None or rows is None else angles.index_select(0, rows)


def split_rotary(
    joint: Tensor, angles: Tensor | None, rows: Tensor | None, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Joint projection ``[L, G, H/G + 2, d]``, in each group the queries, the key and the value, and angles ``[L, d]``
    (None for none) -> rotated q ``[L, H, d]``, rotated k and v ``[L, G, d]``, all contiguous.

    rows: int64 ``[n]``, the only rows whose queries are wanted, q is then ``[n, H, d]``; place: int32 ``[L]``, where in
    it each row is, or -1.
    """
    tokens, groups, each, width = joint.shape
    wanted = joint if rows is None else joint.index_select(0, rows)
    q = joint.new_empty(len(wanted), groups, each - 2, width)
    k = joint.new_empty(tokens, groups, width)
    _turn(wanted[:, :, :-2], _of(angles, rows), 1, q)
    _turn(joint[:, :, -2], angles, 1, k)
    return q.flatten(1, 2), k, joint[:, :, -1].clone(memory_format=torch.contiguous_format)


def split_rotary_backward(
    grads: tuple[Tensor, Tensor, Tensor], angles: Tensor | None, rows: Tensor | None, place: Tensor | None
) -> Tensor:
    """Gradient of the joint projection from those of q, k and v; queries that were not wanted get zeros."""
    grad_q, grad_k, grad_v = grads
    tokens, groups, width = grad_k.shape
    by_group = grad_q.unflatten(1, (groups, -1))
    joint = grad_k.new_empty(tokens, groups, by_group.shape[2] + 2, width)
    if rows is None:
        _turn(by_group, angles, -1, joint[:, :, :-2])
    else:
        turned = torch.empty_like(by_group)
        _turn(by_group, _of(angles, rows), -1, turned)
        joint[:, :, :-2] = 0
        joint[:, :, :-2].index_copy_(0, rows, turned)
    _turn(grad_k, angles, -1, joint[:, :, -2])
    joint[:, :, -1] = grad_v
    return joint
