"""The same functions as `fused_torch`, for Ascend NPUs: torch_npu's RMSNorm, SwiGLU and rotation, with what wheels from
2.7.1 on share.

SwiGLU's operators want contiguous tensors.  The rotation's takes four dimensions, and casts cosines
and sines to the dtype of what it turns: positions reach 20,000, whose angles bfloat16 would lose, so that it is float32
that is turned.  Its own derivative would keep what was turned; turning back by the negative angle needs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

ROTARY_LIMIT = 896
"""The rotation's operator takes even head dimensions below this."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `fused_torch.rms_norm`, but multiplied by the weight before it is rounded; the reciprocal is float32 ``[rows,
    1]``.
    """
    y, rstd = torch.ops.npu.npu_rms_norm(x, weight, eps)
    return y, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See `fused_torch.rms_norm_backward`."""
    grad_x, grad_weight = torch.ops.npu.npu_rms_norm_backward(grad, x, weight, rstd)
    return grad_x, grad_weight.to(weight.dtype)


def swiglu(x: Tensor) -> Tensor:
    """See `fused_torch.swiglu`."""
    return torch.ops.npu.npu_swiglu(x.contiguous(), dim=-1)


def swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """See `fused_torch.swiglu_backward`."""
    return torch.ops.npu.npu_swiglu_backward(grad.contiguous(), x.contiguous(), dim=-1)


def _turns(angles: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[L, 1, 1, d]`` of sign * angles ``[L, d]``."""
    width = angles.shape[-1]
    if width % 2 or width >= ROTARY_LIMIT:
        raise UserError(
            f"heads of {width} channels (model.hidden_size / model.num_attention_heads): torch_npu's rotation takes "
            f"an even number below {ROTARY_LIMIT}; use more heads, or model.positions other than rope"
        )
    wide = angles.float()[:, None, None]
    return wide.cos(), sign * wide.sin()


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """``[L, ..., d]`` rotated in half-split form: contiguous ``[L, H, d]``, H of all dimensions between."""
    rows = x.float().reshape(len(x), 1, -1, x.shape[-1])
    return torch.ops.npu.npu_rotary_mul(rows, *turns)[:, 0].to(x.dtype)


def split_rotary(
    joint: Tensor, angles: Tensor, rows: Tensor | None, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fused_torch.split_rotary`."""
    turns = _turns(angles, 1)
    wanted, theirs = joint, turns
    if rows is not None:
        wanted, theirs = joint.index_select(0, rows), (turns[0].index_select(0, rows), turns[1].index_select(0, rows))
    value = joint[:, :, -1].clone(memory_format=torch.contiguous_format)
    return _turned(wanted[:, :, :-2], theirs), _turned(joint[:, :, -2], turns), value


def split_rotary_backward(
    grads: tuple[Tensor, Tensor, Tensor], angles: Tensor, rows: Tensor | None, place: Tensor | None
) -> Tensor:
    """See `fused_torch.split_rotary_backward`."""
    grad_q, grad_k, grad_v = grads
    tokens, groups, width = grad_k.shape
    turns = _turns(angles, -1)
    joint = grad_k.new_empty(tokens, groups, grad_q.shape[1] // groups + 2, width)
    queries = joint[:, :, :-2]
    if rows is None:
        queries.copy_(_turned(grad_q, turns).unflatten(1, (groups, -1)))
    else:
        theirs = turns[0].index_select(0, rows), turns[1].index_select(0, rows)
        queries.zero_()
        queries.index_copy_(0, rows, _turned(grad_q, theirs).unflatten(1, (groups, -1)))
    joint[:, :, -2] = _turned(grad_k, turns)
    joint[:, :, -1] = grad_v
    return joint
