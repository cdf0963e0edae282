"""Launches of the Triton kernels; the same functions as `fused_torch`, for CUDA tensors."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..errors import UserError
from .fused_kernels import (
    rms_norm_backward_kernel,
    rms_norm_kernel,
    split_rotary_backward_kernel,
    split_rotary_kernel,
    swiglu_backward_kernel,
    swiglu_kernel,
)

PARTIALS = 396
"""Programs of RMSNorm's backward, each with a partial sum of the weight's gradient: three for each of an H100's 132
multiprocessors, and the same number on every device, so that the order of summation is.
"""
MAX_WIDTH = 8192
"""Widest row that RMSNorm's kernels hold in registers."""
COLUMNS = 1024
"""Columns of a SwiGLU program."""
HEADS = 16
"""Heads that a program of `split_rotary` moves at once."""


def norm_options(width: int) -> dict[str, int]:
    """Compile-time arguments of RMSNorm's kernels for rows of `width`."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(16, max(4, block // 512))}


def rotary_options(groups: int, slots: int, width: int) -> dict[str, int]:
    """Compile-time arguments of `split_rotary`'s kernels, but CHOSEN."""
    half = width // 2
    return {
        "GROUPS": groups,
        "SLOTS": slots,
        "HALF": half,
        "HEADS_BLOCK": min(HEADS, triton.next_power_of_2(groups * slots)),
        "HALF_BLOCK": triton.next_power_of_2(half),
        "num_warps": 4,
    }


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `fused_torch.rms_norm`."""
    rows, width = x.shape
    if width > MAX_WIDTH:
        raise UserError(
            f"model.hidden_size = {width}: RMSNorm's Triton kernel takes at most {MAX_WIDTH}; install "
            "Transformer Engine for wider models"
        )
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    rms_norm_kernel[(rows,)](x, weight, y, rstd, x.stride(0), eps, **norm_options(width))
    return y, rstd


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See `fused_torch.rms_norm_backward`."""
    rows, width = x.shape
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    partial = torch.empty(min(PARTIALS, rows), width, dtype=torch.float32, device=x.device)
    rms_norm_backward_kernel[(len(partial),)](
        grad, x, weight, rstd, grad_x, partial, rows, grad.stride(0), x.stride(0), **norm_options(width)
    )
    return grad_x, partial.sum(0).to(weight.dtype)


def swiglu(x: Tensor) -> Tensor:
    """See `fused_torch.swiglu`."""
    rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    swiglu_kernel[(rows, triton.cdiv(width, COLUMNS))](x, y, x.stride(0), WIDTH=width, BLOCK=COLUMNS)
    return y


def swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """See `fused_torch.swiglu_backward`."""
    rows, width = grad.shape
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    swiglu_backward_kernel[(rows, triton.cdiv(width, COLUMNS))](
        grad, x, grad_x, grad.stride(0), x.stride(0), WIDTH=width, BLOCK=COLUMNS
    )
    return grad_x


def split_rotary(
    joint: Tensor, angles: Tensor, rows: Tensor | None, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fused_torch.split_rotary`."""
    tokens, groups, slots, width = joint.shape
    q = joint.new_empty(tokens if rows is None else len(rows), groups * (slots - 2), width)
    k, v = joint.new_empty(tokens, groups, width), joint.new_empty(tokens, groups, width)
    options = rotary_options(groups, slots, width)
    split_rotary_kernel[(tokens,)](
        joint, angles, place, q, k, v, joint.stride(0), angles.stride(0), CHOSEN=place is not None, **options
    )
    return q, k, v


def split_rotary_backward(
    grads: tuple[Tensor, Tensor, Tensor], angles: Tensor, rows: Tensor | None, place: Tensor | None
) -> Tensor:
    """See `fused_torch.split_rotary_backward`."""
    grad_q, grad_k, grad_v = grads
    tokens, groups, width = grad_k.shape
    slots = grad_q.shape[1] // groups + 2
    joint = grad_k.new_empty(tokens, groups, slots, width)
    options = rotary_options(groups, slots, width)
    split_rotary_backward_kernel[(tokens,)](
        grad_q, grad_k, grad_v, angles, place, joint, angles.stride(0), CHOSEN=place is not None, **options
    )
    return joint
