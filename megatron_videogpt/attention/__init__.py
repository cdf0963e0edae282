"""Attention under an interval mask (DESIGN section 3): one interface, one file a backend, all with the same result."""

from __future__ import annotations

import importlib
import importlib.util

import torch
from torch import Tensor

BACKENDS = ("reference", "ranged", "flex")
"""Names of the kernels; `auto` stands for the best of them on a device."""

_FLEX_MIN_HEAD_DIM = 16


def _flex_obstacle(device_type: str, dtype: torch.dtype, head_dim: int) -> str:
    """Why FlexAttention cannot train here, or an empty string."""
    if device_type != "cuda":
        return f"FlexAttention has no backward on {device_type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"FlexAttention does not take {dtype}"
    if head_dim < _FLEX_MIN_HEAD_DIM:
        return f"FlexAttention needs a head dimension of at least {_FLEX_MIN_HEAD_DIM}, and it is {head_dim}"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention needs the package triton, which is not installed"
    return ""


def select(backend: str, device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """The backend that will run and, in words, why.

    backend: a name of `BACKENDS`, or `auto`.  device_type: as in `torch.device.type`.  Raises ValueError for an unknown name and for a backend
    that cannot train on this device.
    """
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"attention.backend is {backend!r}, but it must be one of {', '.join(('auto', *BACKENDS))}")
    obstacle = _flex_obstacle(device_type, dtype, head_dim)
    if backend == "flex" and obstacle:
        raise ValueError(f"attention.backend is 'flex', but {obstacle}: use attention.backend=auto or ranged")
    if backend != "auto":
        return backend, "as configured"
    if not obstacle:
        return "flex", "the fastest on CUDA"
    return "ranged", "the fastest on CPU" if device_type == "cpu" else f"portable; {obstacle}"


def attend(backend: str, q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float) -> Tensor:
    """Attention of every query row over the keys of its two intervals.

    q ``[L, H, d]``, k and v ``[L, Hkv, d]``: head i reads key-value head ``i // (H / Hkv)``.  intervals: int32 ``[L, 4]``, row r attends the keys
    ``[a0, a1) U [b0, b1)``, which are disjoint and not both empty.  scale: factor on the scores.  Returns ``[L, H, d]`` in q's dtype.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}; resolve 'auto' with attention.select first")
    # Imported on first use: compiling backends bring imports of several seconds that the others do not need.
    return importlib.import_module(f".{backend}", __name__).attend(q, k, v, intervals, scale)
