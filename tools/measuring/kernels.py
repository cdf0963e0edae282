"""The attention functions that are compared: backends and torch's own, why one cannot run here, seconds of its two
passes, and the time of building tile lists.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.attention import BACKENDS, MODULES, attend
from megatron_videogpt.attention.choice import obstacle
from megatron_videogpt.attention.tiles import memoised
from megatron_videogpt.errors import UserError
from megatron_videogpt.sequence.intervals import dense_mask
from tools.measuring.clock import seconds

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

BASELINES = ("sdpa", "sdpa-full")
"""torch's scaled_dot_product_attention with the mask as a dense boolean matrix, and without a mask: what this machine
can do on full attention.
"""


def dense_bytes(rows: int, keys: int, dtype: torch.dtype) -> int:
    """Memory of a dense mask: as booleans, and as the numbers that torch's kernels turn it into."""
    return rows * keys * (1 + dtype.itemsize)


def free_memory(device: str) -> int:
    """Bytes that this process can still fill."""
    if device != "cpu":
        return torch.get_device_module(device).mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if Path("/proc/meminfo").exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's attention on ``[L, H, d]``; mask: bool ``[Lq, Lk]``."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])[
        0
    ].transpose(0, 1)


def dense_attend(
    q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool = False
) -> Tensor:
    """Attention as the published Video-GPT code computes it: one dense mask, built once for all layers.  A backend for
    benchmarks only.
    """
    return sdpa(q, k, v, memoised(intervals, "dense mask", lambda: dense_mask(intervals, k.shape[0])), scale)


def obstacle_of(name: str, intervals: Tensor, device: str, dtype: torch.dtype, head_dim: int) -> str:
    """Why a backend or baseline cannot be measured here, or an empty string."""
    if name in BASELINES:
        # Comparisons build some more matrices of booleans.
        need = dense_bytes(len(intervals), len(intervals), dtype) + 3 * len(intervals) ** 2
        if name == "sdpa" and need > free_memory(device):
            return f"the dense mask needs {need / 2**30:.1f} GiB, and {free_memory(device) / 2**30:.1f} are free"
        return ""
    return obstacle(name.removesuffix("/fixed"), device, dtype, head_dim, deterministic=name.endswith("/fixed"))


def kernel(name: str, intervals: Tensor, scale: float) -> Kernel:
    """A backend of `attention` or a baseline as a function of q, k, v.  NAME/fixed: with `deterministic` on.  A dense
    mask is built here.
    """
    if name == "sdpa-full":
        return lambda q, k, v: sdpa(q, k, v, None, scale)
    if name == "sdpa":
        mask = dense_mask(intervals)
        return lambda q, k, v: sdpa(q, k, v, mask, scale)
    backend, fixed = name.removesuffix("/fixed"), name.endswith("/fixed")
    if backend not in BACKENDS:
        raise UserError(f"backend {name!r} is not one of {', '.join((*BASELINES, *BACKENDS))}")
    return lambda q, k, v: attend(backend, q, k, v, intervals, scale, fixed)


def forward_backward(run: Kernel, inputs: list[Tensor], device: str, count: int = 1) -> tuple[float, float]:
    """Seconds of one forward and one backward.  inputs: q, k, v and a gradient of the output."""
    out: list[Tensor] = []

    def forward() -> None:
        out[:] = [run(*inputs[:3])]

    first = seconds(forward, device, count)
    return first, seconds(
        lambda: torch.autograd.grad(out[0], inputs[:3], inputs[3], retain_graph=count > 1), device, count
    )


@dataclass
class Building:
    """Seconds spent on tile lists, plans and dense masks, and how many were built."""

    seconds: float = 0.0
    count: int = 0


@contextlib.contextmanager
def building_clock(device: str) -> Iterator[Building]:
    """Adds up, inside, the time of everything that backends compute from intervals alone.  On a GPU or NPU each waits
    for the device, before and after.
    """
    spent = Building()

    def wait() -> None:
        if device != "cpu":
            torch.get_device_module(device).synchronize()

    def timed(build: Callable[[], Any]) -> Any:
        wait()
        began = time.perf_counter()
        value = build()
        wait()
        spent.seconds, spent.count = spent.seconds + time.perf_counter() - began, spent.count + 1
        return value

    def patched(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        if name == "plan":
            return lambda intervals, costs: timed(lambda: plain(intervals, costs))
        return lambda intervals, what, build: plain(intervals, what, lambda: timed(build))

    for module in MODULES.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(f"megatron_videogpt.attention.{module}")
    modules = [
        sys.modules[__name__],
        *(module for path, module in list(sys.modules.items()) if path.startswith("megatron_videogpt.attention.")),
    ]
    places = [
        (module, name) for module in modules for name in ("memoised", "plan") if callable(getattr(module, name, None))
    ]
    before = [(module, name, getattr(module, name)) for module, name in places]
    try:
        for module, name, plain in before:
            setattr(module, name, patched(name, plain))
        yield spent
    finally:
        for module, name, plain in before:
            setattr(module, name, plain)


def forget() -> None:
    """Let the next call build its tile lists or plan anew, as a row that was not seen before does."""
    from megatron_videogpt.attention import npu, plan, tiles

    plan._plan.cache_clear()
    npu._kept.cache_clear()
    tiles._built.clear()
