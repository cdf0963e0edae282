"""Attention under an interval mask (docs/attention.md): one interface, one module a backend, all with the same result;
`choice` picks one.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..sequence.row import CachedGroups

MODULES = {
    **{"reference": "reference", "ranged": "ranged", "flex": "flex", "triton": "triton_attention", "flash": "flash"},
    **{"npu": "npu", "npu_dense": "npu_dense"},
}
"""Backend -> its module here."""

BACKENDS = tuple(MODULES)
"""Names of the kernels; `auto` stands for the best of them on a device."""

GROUPED = ("ranged",)
"""Those that compute equal groups in one call; the others find the same pairs in the intervals."""

PLANNED = ("npu",)
"""Those that take a plan of `plan_ahead`; without one the first layer makes it, for which the host waits for the
intervals.
"""


def plan_ahead(backend: str, intervals: Tensor, heads: int, head_dim: int, device: torch.device) -> Any:
    """What one of `PLANNED` works out of intervals on the CPU, int32 ``[Lq, 4]``, for attention on `device` with so
    many query heads: an object with `send()`, which gives the `plan` of `attend`.  Takes seconds of a core for long
    rows.
    """
    return importlib.import_module(f".{MODULES[backend]}", __name__).Ahead(intervals, heads, head_dim, device)


def plan_finely(backend: str, intervals: Tensor, device: torch.device) -> Any:
    """The `plan` that one of `PLANNED` takes, in as many parts as long rows have even where the rows are few and would
    be one: for comparisons, so that they meet how parts are merged.  intervals: as in `plan_ahead`.
    """
    return importlib.import_module(f".{MODULES[backend]}", __name__).finely(intervals, device)


def attend(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    scale: float,
    deterministic: bool = False,
    groups: tuple[int, int] | CachedGroups | None = None,
    plan: Any = None,
) -> Tensor:
    """Attention of every query row over the keys of its two intervals.

    q ``[Lq, H, d]``, k and v ``[Lk, Hkv, d]``: head i reads key-value head ``i // (H / Hkv)``.  intervals: int32 ``[Lq,
    4]``, row r attends the keys ``[a0, a1) U [b0, b1)``, which are disjoint and not both empty.  scale: factor on the
    scores.  deterministic: gradients are the same bits in every run; without it a backend may add in whatever order is
    fastest.  groups: a hint, see `sequence.row.Mask`; the first queries are those of the first keys then, unless
    it says where keys of a cache lie.  plan: of just these intervals, see `plan_ahead`.  Returns ``[Lq, H, d]`` in q's
    dtype.
    """
    if backend not in MODULES:
        raise ValueError(
            f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}; resolve 'auto' with "
            "attention.choice first"
        )
    # Imported on first use: compiling backends bring imports of several seconds that the others do not need.
    kernel = importlib.import_module(f".{MODULES[backend]}", __name__).attend
    hints: dict[str, Any] = {"groups": groups} if groups is not None and backend in GROUPED else {}
    hints |= {"plan": plan} if plan is not None and backend in PLANNED else {}
    return kernel(q, k, v, intervals, scale, deterministic, **hints)
