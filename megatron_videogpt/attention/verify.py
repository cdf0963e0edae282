"""Is a backend right on this device?  A small mask that crosses tile edges, forward and gradients, against `reference`
in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sequence.intervals import dense_mask
from ..sequence.layout import layout, pack, training_shape
from . import PLANNED, attend, plan_finely
from .rounding import allowances

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Errors that are always allowed, as a fraction of the largest value: kernels may multiply float32 as products of
several shorter numbers.
"""

_ROWS = {"flash": 192, "flex": 128}
"""Rows of the largest tiles where they are more than 64."""

NAMES = ("output", "gradient of q", "gradient of k", "gradient of v")


class Errors(NamedTuple):
    """Largest errors of output and gradients of q, k, v, as fractions of each tensor's largest exact value; with what
    is allowed.
    """

    found: list[float]
    allowed: list[float]


def mask(backend: str) -> Tensor:
    """Two packed samples and padding, about 900 to 1,600 rows, with tiles of every kind for the backend's kernels:
    full, partial, empty, and frames, clips and samples that end inside a tile.
    """
    last = -(-2 * _ROWS.get(backend, 64) // 50)
    samples = [layout(training_shape(clips, grid)) for clips, grid in (((1, 5, last), (6, 8)), ((2, 1, 1), (5, 7)))]
    return pack(samples, 443).intervals


def plans(backend: str, intervals: Tensor, device: torch.device) -> tuple[Any, ...]:
    """What to compare a backend with: its own plan (None), and of `PLANNED` one of many parts, because by a device's
    costs rows as short as these are a single one, and nothing would be merged.
    """
    return (None, plan_finely(backend, intervals.cpu(), device)) if backend in PLANNED else (None,)


def _results(function: object, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    out = function(*leaves)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def _sdpa(intervals: Tensor, keys: int, scale: float) -> object:
    """torch's own attention with the mask as a matrix: what rounding alone does at this precision."""
    dense = dense_mask(intervals, keys)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=dense, scale=scale)[0].transpose(0, 1)

    return run


def _distance(actual: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Not a number counts as infinite."""
    errors = [
        float((a.detach().cpu().double() - e).abs().max() / e.abs().max().clamp(min=0.1)) for a, e in zip(actual, exact)
    ]
    return [error if error == error else float("inf") for error in errors]


def distances(
    backend: str,
    inputs: list[Tensor],
    intervals: Tensor,
    deterministic: bool = False,
    plans: Sequence[Any] = (None,),
) -> tuple[list[float], list[float]]:
    """A backend's errors, and those of torch's attention on the same numbers here, as fractions (`Errors`); arguments
    as of `errors`.
    """
    scale, keys = inputs[0].shape[-1] ** -0.5, inputs[1].shape[0]
    doubles, table = [x.detach().cpu().double() for x in inputs], intervals.cpu()
    exact = _results(lambda q, k, v: attend("reference", q, k, v, table, scale), doubles)

    def distance(plan: Any) -> list[float]:
        hints = {} if plan is None else {"plan": plan}
        run = partial(attend, backend, intervals=intervals, scale=scale, deterministic=deterministic, **hints)
        return _distance(_results(run, inputs), exact)

    found = list(map(max, zip(*map(distance, plans))))
    return found, _distance(_results(_sdpa(intervals, keys, scale), inputs), exact)


def errors(
    backend: str,
    inputs: list[Tensor],
    intervals: Tensor,
    deterministic: bool = False,
    plans: Sequence[Any] = (None,),
) -> Errors:
    """A backend's errors and what they may be: the largest of `ALLOWED`, of what rounding explains on any processor
    (`rounding.allowances`), and of twice the errors of torch's attention on the same numbers here, beside the rounding
    of the result.

    inputs: q ``[Lq, H, d]``, k and v ``[Lk, Hkv, d]`` and a gradient of the output, on the device and in the precision
    to try.  intervals ``[Lq, 4]``.  plans: of `plans`; the largest error of all counts.
    """
    found, rounding = distances(backend, inputs, intervals, deterministic, plans)
    dtype = inputs[0].dtype
    allowed = [max(ALLOWED.get(dtype, 0.0), 2 * error + torch.finfo(dtype).eps / 2) for error in rounding]
    if any(error > most for error, most in zip(found, allowed)):
        # Only now, because it takes as long as all the rest.
        doubles, dense = [x.detach().cpu().double() for x in inputs], dense_mask(intervals.cpu(), len(inputs[1]))
        allowed = list(map(max, allowed, allowances(doubles, dense, inputs[0].shape[-1] ** -0.5, dtype)))
    return Errors(found, allowed)


def problem(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    queries_per_key: int = 1,
    deterministic: bool = False,
) -> str:
    """One line that says what is wrong with a backend here, or an empty string.  Raises whatever the backend does when
    it cannot run.
    """
    noise, intervals = torch.Generator().manual_seed(0), mask(backend)
    heads = (2 * queries_per_key, 2, 2, 2 * queries_per_key)
    inputs = [torch.randn(len(intervals), count, head_dim, generator=noise).to(device, dtype) for count in heads]
    result = errors(backend, inputs, intervals.to(device), deterministic, plans(backend, intervals, device))
    wrong = [f"{name} by {found:.1e} (allowed {most:.1e})" for name, found, most in zip(NAMES, *result) if found > most]
    if not wrong:
        return ""
    return (
        f"attention backend {backend} differs from reference on {device} in {dtype} with head dimension "
        f"{head_dim}: {', '.join(wrong)}; "
        "its kernels are wrong here, do not train with them: set attention.backend to another one, and "
        "please report this line"
    )
