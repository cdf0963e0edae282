"""RMSNorm, SwiGLU and rotary positions as autograd functions that keep as little as they can: their inputs, and of
RMSNorm one number a row.  GELU is torch's own, which keeps its input too.

The arithmetic is Triton's on CUDA (`fused_triton`), torch_npu's on Ascend NPUs (`fused_npu`) and torch's elsewhere
(`fused_torch`); what is kept for the backward pass is the same.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MODULES = {"triton": "fused_triton", "npu": "fused_npu", "torch": "fused_torch"}
"""Kernels -> the module here that has them."""


def select(platform: str) -> tuple[str, str]:
    """The kernels of a platform, a key of `MODULES`, and why."""
    if platform == "npu":
        return "npu", "torch_npu's operators"
    if platform != "cuda":
        return "torch", f"fused kernels are for CUDA, and this is {platform}"
    if importlib.util.find_spec("triton") is None:
        return "torch", "the package triton is not installed"
    return "triton", "fused kernels on CUDA"


def _module(kernels: str) -> ModuleType:
    # Imported on first use: the package triton is not everywhere.
    return importlib.import_module(f".{MODULES[kernels]}", __package__)


def _rows(x: Tensor) -> Tensor:
    """``[..., D]`` as ``[rows, D]`` with contiguous rows, without a copy where the strides allow."""
    return x.reshape(-1, x.shape[-1]) if x.stride(-1) == 1 else x.contiguous().view(-1, x.shape[-1])


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kernels: str) -> Tensor:
        y, rstd = _module(kernels).rms_norm(_rows(x), weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.kernels = kernels
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, rstd = ctx.saved_tensors
        grad_x, grad_weight = _module(ctx.kernels).rms_norm_backward(_rows(grad), _rows(x), weight, rstd)
        return grad_x.view(x.shape), grad_weight, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return _module(kernels).swiglu(_rows(x)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _module(ctx.kernels).swiglu_backward(_rows(grad), _rows(x)).view(x.shape), None


class _SplitRotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, joint: Tensor, angles: Tensor | None, rows: Tensor | None, place: Tensor | None, kernels: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(angles, rows, place)
        # A cut without a turn is copies, at which torch is as good as any kernel.
        ctx.kernels = kernels if angles is not None else "torch"
        return _module(ctx.kernels).split_rotary(joint, angles, rows, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        angles, rows, place = ctx.saved_tensors
        return (
            _module(ctx.kernels).split_rotary_backward(tuple(x.contiguous() for x in grads), angles, rows, place),
            None,
            None,
            None,
            None,
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float, kernels: str) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` with float32 statistics, rounded to x's dtype, times weight ``[D]``; x ``[...,
    D]``.

    Keeps x and one float32 number a row.  The weight's gradient is summed in a fixed order.
    """
    return _RMSNorm.apply(x, weight, eps, kernels)


def swiglu(x: Tensor, kernels: str) -> Tensor:
    """``[..., 2F]`` -> ``silu(first half) * second half``; keeps x."""
    return _SwiGLU.apply(x, kernels)


def activation(x: Tensor, name: str, kernels: str) -> Tensor:
    """`model.activation` by its name: ``[..., 2F]`` (swiglu) or ``[..., F]`` -> ``[..., F]``; keeps x."""
    if name == "swiglu":
        return swiglu(x, kernels)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def split_rotary(
    joint: Tensor, angles: Tensor | None, kernels: str, rows: Tensor | None = None, place: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a joint projection, queries and keys turned by their rotary angles (half-split form).

    joint ``[L, G, H/G + 2, d]``, contiguous but for the rows: in each group the queries, the key and the value; angles:
    float32 ``[L, d]``, both halves alike, or None, which turns nothing.  Returns contiguous q ``[L, H, d]``, k and v
    ``[L, G, d]`` and keeps the angles alone, so that the joint projection can go.  rows: int64 ``[n]``, if only their
    queries are wanted (q is ``[n, H, d]``); place: int32 ``[L]``, the inverse of rows, -1 for the others.
    """
    assert joint[0].is_contiguous() and (rows is None) == (place is None)
    assert angles is None or angles.stride(-1) == 1
    return _SplitRotary.apply(joint, angles, rows, place, kernels)
