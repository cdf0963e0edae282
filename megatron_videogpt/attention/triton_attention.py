"""Attention with own Triton kernels on the two-interval mask: any recent NVIDIA GPU, no dependency but Triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .tiles import TileLists, memoised, tile_lists
from .triton_backward_kernels import delta_kernel, key_value_kernel, query_kernel
from .triton_kernels import forward_kernel

HEAD_DIMS = {16: (16, 0), 32: (32, 0), 64: (64, 0), 96: (64, 32), 128: (128, 0)}
"""Head dimension -> columns of its two chunks, powers of two."""

_DELTA_ROWS = 64


class Launch(NamedTuple):
    """Query rows and keys of a tile (powers of two of at least 16), warps of a program, stages of its software
    pipeline.
    """

    rows: int
    keys: int
    warps: int
    stages: int


class Launches(NamedTuple):
    """One for each kernel; `atomic` is the kernel of `key_value` where it also adds up the gradients of queries."""

    forward: Launch
    key_value: Launch
    atomic: Launch
    query: Launch


# No tuning at run time: its first steps are slow, and ranks that chose differently would compute different bits.
# Chosen by compiling bf16 kernels with Triton 3.7.1 for as many query as key-value heads: the largest tiles that spill
# no register (atomic: 96 bytes at head dimension 96).  In comments: registers a thread / KiB of shared memory a block,
# of forward, key_value, atomic, query.
_LARGE = {
    # 164 / 16, 156 / 21, 180 / 37, 198 / 20
    16: Launches(Launch(128, 64, 4, 3), Launch(64, 128, 8, 3), Launch(64, 128, 8, 3), Launch(128, 64, 4, 3)),
    # 186 / 32, 221 / 41, 203 / 57, 218 / 40
    32: Launches(Launch(128, 64, 4, 3), Launch(64, 128, 8, 3), Launch(64, 128, 8, 3), Launch(128, 64, 4, 3)),
    # 207 / 112, 216 / 81, 249 / 97, 129 / 80
    64: Launches(Launch(128, 128, 8, 3), Launch(64, 128, 8, 3), Launch(64, 128, 8, 3), Launch(128, 64, 8, 3)),
    # 252 / 168, 255 / 121, 255 / 153, 172 / 120
    96: Launches(Launch(128, 128, 8, 3), Launch(64, 128, 8, 3), Launch(64, 128, 8, 3), Launch(128, 64, 8, 3)),
    # 188 / 128, 233 / 113, 236 / 153, 210 / 160
    128: Launches(Launch(128, 64, 8, 3), Launch(32, 128, 8, 3), Launch(32, 128, 8, 3), Launch(128, 64, 8, 3)),
}
"""GPUs with 227 KiB of shared memory a block: Hopper and Blackwell of data centres."""

_SMALL = {
    # Compiled for sm_86, where key_value and atomic spill 32 to 48 bytes at head dimensions 96 and 128.
    16: Launches(
        Launch(64, 64, 4, 2), Launch(32, 64, 4, 2), Launch(32, 64, 4, 2), Launch(64, 32, 4, 2)
    ),  # 96 / 6, 84 / 6, 128 / 10, 76 / 6
    32: Launches(
        Launch(64, 64, 4, 2), Launch(32, 64, 4, 2), Launch(32, 64, 4, 2), Launch(64, 32, 4, 2)
    ),  # 128 / 12, 128 / 12, 168 / 16, 96 / 12
    64: Launches(
        Launch(128, 64, 8, 2), Launch(32, 64, 4, 2), Launch(32, 64, 4, 2), Launch(64, 64, 4, 2)
    ),  # 162 / 32, 181 / 24, 168 / 28, 188 / 32
    96: Launches(
        Launch(128, 64, 8, 2), Launch(32, 64, 4, 2), Launch(32, 64, 4, 2), Launch(64, 32, 4, 2)
    ),  # 205 / 48, 255 / 36, 255 / 44, 180 / 36
    128: Launches(
        Launch(64, 32, 4, 2), Launch(32, 64, 4, 2), Launch(32, 64, 4, 2), Launch(64, 32, 4, 2)
    ),  # 241 / 36, 255 / 52, 255 / 56, 244 / 52
}
"""Other GPUs: fits 99 KiB."""

_FLOAT32 = Launches(Launch(32, 32, 8, 1), Launch(16, 32, 4, 1), Launch(16, 32, 4, 1), Launch(32, 32, 8, 1))
"""Exact float32 products run without tensor cores: at most 222 registers (atomic and query spill 32 and 8 bytes at head
dimension 96), 64 KiB.
"""


def default_launches(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Launches:
    """Tiles and warps by head dimension (of `HEAD_DIMS`), precision and compute capability."""
    if dtype == torch.float32:
        return _FLOAT32
    return (_LARGE if capability[0] in (9, 10) else _SMALL)[head_dim]


class _Walk(NamedTuple):
    """Tile lists as the kernels read them (text of `triton_kernels`), all int32."""

    order: Tensor
    counts: Tensor
    lists: Tensor


def _walk(lists: TileLists) -> _Walk:
    counts = torch.stack([lists.full_count, lists.partial_count], dim=1)
    order = counts.sum(1).argsort(descending=True, stable=True)
    return _Walk(order.to(torch.int32), counts, torch.stack([lists.full, lists.partial], dim=1))


def _walks(intervals: Tensor, launch: Launch, keys: int) -> tuple[_Walk, _Walk]:
    """(for every tile of rows, for every tile of keys)."""

    def build() -> tuple[_Walk, _Walk]:
        by_row, by_key = tile_lists(intervals, launch.rows, launch.keys, keys)
        return _walk(by_row), _walk(by_key)

    return memoised(intervals, ("triton", launch.rows, launch.keys, keys), build)


def _spans(intervals: Tensor) -> Tensor:
    """Intervals as ``[4, rows]``: neighbouring rows are read by neighbouring threads."""
    return memoised(intervals, "triton spans", lambda: intervals.T.contiguous())


def _strides(*tensors: Tensor) -> list[int]:
    """Row and head stride of each."""
    return [stride for x in tensors for stride in x.stride()[:2]]


def _forward(q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, launch: Launch) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp in base 2 as float32 ``[H, Lq]``)."""
    rows, heads, head_dim = q.shape
    walk = _walks(intervals, launch, k.shape[0])[0]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, rows, dtype=torch.float32, device=q.device)
    forward_kernel[(heads, len(walk.order))](
        q, k, v, out, lse, _spans(intervals), *walk, rows, k.shape[0], walk.lists.shape[2], scale, *_strides(q, k, v,
        out),
        heads // k.shape[1], launch.rows, launch.keys, *HEAD_DIMS[head_dim], num_warps=launch.warps,
        num_stages=launch.stages,
    )  # fmt: skip
    return out, lse


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    intervals: Tensor,
    scale: float,
    deterministic: bool,
    launches: Launches,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    rows, heads, head_dim = q.shape
    keys, groups = k.shape[0], k.shape[1]
    spans, chunks, group = _spans(intervals), HEAD_DIMS[head_dim], heads // groups
    delta = torch.empty_like(lse)
    delta_kernel[(heads, -(-rows // _DELTA_ROWS))](out, grad, delta, rows, *_strides(out, grad), _DELTA_ROWS, *chunks)
    grad_q = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if deterministic
        else torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    )
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    launch = launches.key_value if deterministic else launches.atomic
    walk = _walks(intervals, launch, keys)[1]
    key_value_kernel[(groups, len(walk.order))](
        q, k, v, grad, lse, delta, grad_q, grad_k, grad_v, spans, *walk, rows, keys, walk.lists.shape[2], scale,
        *_strides(q, k, v, grad, grad_q, grad_k),
        group, launch.rows, launch.keys, *chunks, not deterministic, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    if not deterministic:
        return grad_q.to(q.dtype), grad_k, grad_v
    launch = launches.query
    walk = _walks(intervals, launch, keys)[0]
    query_kernel[(heads, len(walk.order))](
        q, k, v, grad, lse, delta, grad_q, spans, *walk, rows, keys, walk.lists.shape[2], scale, *_strides(q, k, v,
        grad, grad_q),
        group, launch.rows, launch.keys, *chunks, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


class _Interval(torch.autograd.Function):
    """Saves q, k, v, the output, the log-sum-exp and the intervals."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, intervals: Tensor, scale: float, deterministic: bool,
        launches: Launches
    ) -> Tensor:  # fmt: skip
        out, lse = _forward(q, k, v, intervals, scale, launches.forward)
        ctx.save_for_backward(q, k, v, out, lse, intervals)
        ctx.scale, ctx.deterministic, ctx.launches = scale, deterministic, launches
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, intervals = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        return (
            *_backward(q, k, v, out, lse, grad, intervals, ctx.scale, ctx.deterministic, ctx.launches),
            None,
            None,
            None,
            None,
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    scale: float,
    deterministic: bool = False,
    launches: Launches | None = None,
) -> Tensor:
    """Interval attention on an NVIDIA GPU; shapes as in `attention.attend`.

    bfloat16, float16 or float32 (exact and slow), head dimensions as in `HEAD_DIMS`, positive scale.  deterministic:
    gradients of q come from a kernel of their own, not from atomics in another.  launches: tiles of one's choice, to
    measure and to test.  Saves q, k, v, the output and a float32 a row and head.
    """
    if q.shape[2] not in HEAD_DIMS:
        raise UserError(
            f"attention backend triton has head dimensions {', '.join(map(str, HEAD_DIMS))}, and it is "
            f"{q.shape[2]}: use attention.backend=auto"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            "attention backend triton takes q, k, v all in bfloat16, float16 or float32, and they are in "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    if scale <= 0:
        raise ValueError(f"attention backend triton needs a positive scale, and it is {scale}")
    # Rows and heads may lie at any stride.
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    chosen = launches or default_launches(q.shape[2], q.dtype, torch.cuda.get_device_capability(q.device))
    return _Interval.apply(q, k, v, intervals, scale, deterministic, chosen)
