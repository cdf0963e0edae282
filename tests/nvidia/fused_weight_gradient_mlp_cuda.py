"""A stand-in for the extension of NVIDIA Apex, on a CPU; see README.md."""

from __future__ import annotations

import torch
from torch import Tensor

CALLS = [0]
"""How many there were."""


def _rows(x: Tensor, name: str) -> Tensor:
    """The extension reads memory as if it were contiguous, whatever the strides are: what it would read wrongly is
    refused here.
    """
    if not x.is_contiguous():
        raise RuntimeError(f"{name} is not contiguous")
    return x.view(-1, x.shape[-1])


def wgrad_gemm_accum_fp32(input: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    """Adds `d_output.T @ input` to d_weight, which is float32; products of 16-bit tensors are added up in float32."""
    rows, grads = _rows(input, "input"), _rows(d_output, "d_output")
    if d_weight.dtype != torch.float32 or rows.dtype != grads.dtype or rows.dtype == torch.float64:
        raise RuntimeError(f"wgrad_gemm_accum_fp32: {rows.dtype} and {grads.dtype} into {d_weight.dtype}")
    if not d_weight.is_contiguous() or d_weight.shape != (grads.shape[1], rows.shape[1]):
        raise RuntimeError(f"wgrad_gemm_accum_fp32: d_weight {tuple(d_weight.shape)}")
    CALLS[0] += 1
    d_weight.add_(grads.float().t() @ rows.float())


def wgrad_gemm_accum_fp16(input: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    """Not modelled: gradients are float32."""
    raise RuntimeError("wgrad_gemm_accum_fp16 is not modelled")
