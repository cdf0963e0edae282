"""Vectors of frames at all tokens of these: products and sums that keep nothing as long as the row beside their inputs,
and whose gradients are added up by a matrix product, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _sums(values: Tensor, frame: Tensor, frames: int) -> Tensor:
    """``[l, D]`` -> ``[F, D]``, the sum over each frame's tokens."""
    here = torch.arange(frames, device=frame.device)[:, None] == frame
    return here.to(values.dtype) @ values


class _ScaleShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, frame: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, frame)
        return torch.addcmul(shift.index_select(0, frame), x, scale.index_select(0, frame))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, scale, frame = ctx.saved_tensors
        count = len(scale)
        return grad * scale.index_select(0, frame), _sums(grad * x, frame, count), _sums(grad, frame, count), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, gate: Tensor, frame: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate, frame)
        return torch.addcmul(residual, x, gate.index_select(0, frame))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, frame = ctx.saved_tensors
        return grad, grad * gate.index_select(0, frame), _sums(grad * x, frame, len(gate)), None


def modulate(x: Tensor, shift: Tensor, scale: Tensor, frame: Tensor, eps: float) -> Tensor:
    """``LN(x) * (1 + scale) + shift`` with a norm without weights: x ``[l, D]``, shift and scale ``[F, D]`` of its
    dtype, frame int64 ``[l]``.
    """
    return _ScaleShift.apply(F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale, shift, frame)


def gated(residual: Tensor, x: Tensor, gate: Tensor, frame: Tensor) -> Tensor:
    """``residual + gate * x``: residual and x ``[l, D]``, gate ``[F, D]``, frame int64 ``[l]``."""
    return _Gate.apply(residual, x, gate, frame)
