"""npu_rms_norm, npu_swiglu and npu_rotary_mul with their gradients as documented, with plain CPU tensors.  Whatever the
documentation forbids, and whatever is not modelled here, is a RuntimeError.  float32 is computed in float64, 16-bit
tensors in float32; each result is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROTARY_FORMS = {
    "BNSD": ("11SD", "B1SD", "BNSD"),
    "BSND": ("1S1D", "BS1D", "BSND"),
    "SBND": ("S11D", "SB1D", "SBND"),
}
"""Shapes of cosines and sines for each layout of the input."""
MOST_ROTARY_DIM, MOST_ROTARY_HEADS, MOST_PRODUCT = 896, 1000, 1024


def refuse(wrong: object, about: str) -> None:
    """RuntimeError where something is wrong."""
    if wrong:
        raise RuntimeError(about)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.dtype == torch.float32 else torch.float32)


def _check_norm(input: Tensor, gamma: Tensor) -> tuple[int, ...]:
    """The dimensions that are normalised."""
    refuse(input.dtype not in DTYPES, f"npu_rms_norm: input is {input.dtype}")
    half_by_float = input.dtype != torch.float32 and gamma.dtype == torch.float32
    refuse(gamma.dtype != input.dtype and not half_by_float, f"npu_rms_norm: gamma {gamma.dtype}, input {input.dtype}")
    refuse(not 2 <= input.dim() <= 8, f"npu_rms_norm: {input.dim()} dimensions, 2 to 8 are taken")
    fits = 1 <= gamma.dim() <= input.dim() and gamma.shape == input.shape[input.dim() - gamma.dim() :]
    refuse(not fits, f"npu_rms_norm: gamma {tuple(gamma.shape)} is not the last of {tuple(input.shape)}")
    return tuple(range(-gamma.dim(), 0))


def rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(y in input's dtype, float32 `1 / rms` with ones for the normalised dimensions)."""
    dims = _check_norm(input, gamma)
    x = _wide(input)
    rstd = torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon)
    return (x * rstd * gamma.to(x.dtype)).to(input.dtype), rstd.float()


def rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """(dx in input's dtype, dgamma in float32)."""
    dims = _check_norm(input, gamma)
    refuse(dy.shape != input.shape or dy.dtype != input.dtype, "npu_rms_norm_backward: dy is not like input")
    expected = (*input.shape[: input.dim() - len(dims)], *[1] * len(dims))
    refuse(rstd.dtype != torch.float32, f"npu_rms_norm_backward: rstd is {rstd.dtype}, not float32")
    refuse(tuple(rstd.shape) != expected, f"npu_rms_norm_backward: rstd {tuple(rstd.shape)} is not {expected}")
    x, grad, scale = _wide(input), _wide(dy), rstd.to(_wide(input).dtype)
    normal, to_normal = x * scale, grad * gamma.to(x.dtype)
    dx = scale * (to_normal - normal * (to_normal * normal).mean(dims, keepdim=True))
    rows = input.dim() - len(dims)
    return dx.to(input.dtype), (grad * normal).reshape(-1, *input.shape[rows:]).sum(0).float()


def _check_swiglu(input: Tensor, dim: int) -> None:
    refuse(input.dtype not in DTYPES, f"npu_swiglu: input is {input.dtype}")
    refuse(not input.is_contiguous(), "npu_swiglu: input is not contiguous")
    refuse(input.numel() == 0, "npu_swiglu: input is empty")
    refuse(not -input.dim() <= dim < input.dim(), f"npu_swiglu: dim={dim} of {input.dim()} dimensions")
    refuse(input.shape[dim] % 2, f"npu_swiglu: {input.shape[dim]} numbers along dim={dim} are not even")


def swiglu(input: Tensor, dim: int) -> Tensor:
    """silu of the first half times the second."""
    _check_swiglu(input, dim)
    first, second = _wide(input).chunk(2, dim)
    return (first * torch.sigmoid(first) * second).to(input.dtype)


def swiglu_backward(grad_output: Tensor, input: Tensor, dim: int) -> Tensor:
    """Gradient of input."""
    _check_swiglu(input, dim)
    halved = list(input.shape)
    halved[dim] //= 2
    refuse(list(grad_output.shape) != halved, f"npu_swiglu_backward: grad_output {tuple(grad_output.shape)}")
    refuse(grad_output.dtype != input.dtype, f"npu_swiglu_backward: grad_output is {grad_output.dtype}")
    refuse(not grad_output.is_contiguous(), "npu_swiglu_backward: grad_output is not contiguous")
    (first, second), grad = _wide(input).chunk(2, dim), _wide(grad_output)
    gate = torch.sigmoid(first)
    to_first = grad * second * gate * (1 + first * (1 - gate))
    return torch.cat([to_first, grad * first * gate], dim).to(input.dtype)


def _layout(input: Tensor, angles: Tensor) -> str:
    """The layout under which these shapes are documented, or nothing."""
    for layout, forms in ROTARY_FORMS.items():
        sizes = dict(zip(layout, input.shape))
        if sizes["B"] >= MOST_ROTARY_HEADS or sizes["N"] >= MOST_ROTARY_HEADS:
            continue
        if any(tuple(angles.shape) == tuple(sizes.get(letter, 1) for letter in form) for form in forms):
            return layout
    return ""


def _check_rotary(input: Tensor, r1: Tensor, r2: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines, cast to input's dtype as the operator does it."""
    refuse(mode != "half", f"npu_rotary_mul: rotary_mode={mode!r} is not modelled, half is")
    refuse(any(x.dtype not in DTYPES for x in (input, r1, r2)), "npu_rotary_mul: float16, bfloat16 and float32 only")
    refuse(any(x.dim() != 4 for x in (input, r1, r2)), "npu_rotary_mul: input, r1 and r2 have four dimensions")
    width = input.shape[-1]
    refuse(width % 2 or not 0 < width < MOST_ROTARY_DIM, f"npu_rotary_mul: last dimension {width}, even and below 896")
    refuse(r1.shape != r2.shape, "npu_rotary_mul: r1 and r2 differ in shape")
    refuse(any(x.abs().amax() > 1 for x in (r1, r2)), "npu_rotary_mul: r1 and r2 lie between -1 and 1")
    about = f"npu_rotary_mul: r1 {tuple(r1.shape)} does not fit input {tuple(input.shape)} in any layout"
    refuse(not _layout(input, r1), f"{about} with less than {MOST_ROTARY_HEADS} batches and heads")
    return _wide(r1.to(input.dtype)), _wide(r2.to(input.dtype))


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str, rotate: Tensor | None = None) -> Tensor:
    """`input * r1 + rotated(input) * r2`."""
    refuse(rotate is not None, "npu_rotary_mul: rotate is not modelled")
    cos, sin = _check_rotary(input, r1, r2, rotary_mode)
    x = _wide(input)
    return (x * cos + _rotated(x) * sin).to(input.dtype)


def rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, r1 and r2."""
    cos, sin = _check_rotary(input, r1, r2, rotary_mode)
    refuse(grad.shape != input.shape or grad.dtype != input.dtype, "npu_rotary_mul_backward: grad is not like input")
    sizes = dict(zip(_layout(input, r1), input.shape))
    refuse(sizes["B"] * sizes["N"] > MOST_PRODUCT, "npu_rotary_mul_backward: more than 1024 batches times heads")
    x, g = _wide(input), _wide(grad)
    dx = g * cos - _rotated(g * sin)
    to_angles = [(g * part).sum_to_size(r1.shape).to(r1.dtype) for part in (x, _rotated(x))]
    return dx.to(input.dtype), *to_angles
